//! Values of settings: what may be written, and how they are shown.
//!
//! A value is written by people (`50%`, `10min`), in TOML or in JSON. All of these become text and
//! are read by [`Kind::read`], so that only one place decides what is allowed. Times are kept in
//! whole milliseconds; a bare number counts in the unit of its setting, as in ESX.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Number;

/// The value of a host setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number in the unit of the setting.
    Whole(u32),
    /// A time of whole milliseconds.
    Time(Duration),
    /// One of several words.
    Choice(&'static str),
}

/// The unit of a setting, and its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A whole number.
    Whole {
        /// The unit, such as `%`; empty for a switch.
        unit: &'static str,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A time.
    Time {
        /// What a bare number counts.
        unit: TimeUnit,
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What a bare number of a time counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// Minutes.
    Minutes,
}

impl TimeUnit {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Minutes => "min",
        }
    }

    const fn millis(self) -> u32 {
        match self {
            Self::Seconds => 1000,
            Self::Minutes => 60_000,
        }
    }

    /// A time as a number of this unit, without a fraction where it is whole.
    fn number(self, time: Duration) -> Number {
        let millis = time.as_millis();
        let whole = u64::try_from(millis / u128::from(self.millis())).unwrap_or(u64::MAX);
        if millis.is_multiple_of(u128::from(self.millis())) {
            return whole.into();
        }
        // With a single division, the result is the double nearest to the decimal that people wrote.
        let exact = time.as_secs_f64() * 1000.0 / f64::from(self.millis());
        Number::from_f64(exact).unwrap_or_else(|| whole.into())
    }
}

/// What is wrong with the text of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// Not a number at all.
    NotANumber,
    /// A number with a fraction where only whole ones make sense.
    NotWhole,
    /// A unit that the setting does not count in.
    Unit,
    /// Less or more than allowed.
    Range,
    /// A time that is shorter than a millisecond, but not zero.
    TooFine,
    /// None of the choices.
    Choice,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotANumber => "that is not a number",
            Self::NotWhole => "that is not a whole number",
            Self::Unit => "that is not its unit",
            Self::Range => "that is out of range",
            Self::TooFine => "that is less than a millisecond",
            Self::Choice => "that is none of its choices",
        })
    }
}

impl Kind {
    /// A whole number of `unit`.
    #[must_use]
    pub const fn whole(unit: &'static str, min: u32, max: u32) -> Self {
        Self::Whole { unit, min, max }
    }

    /// A time whose bounds are given in milliseconds.
    #[must_use]
    pub const fn time(unit: TimeUnit, min_ms: u64, max_ms: u64) -> Self {
        Self::Time {
            unit,
            min: Duration::from_millis(min_ms),
            max: Duration::from_millis(max_ms),
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with it; [`Kind::allowed`] says what would be right.
    pub fn read(self, text: &str) -> Result<Value, Wrong> {
        let text = text.trim();
        match self {
            Self::Whole { unit, min, max } => {
                let number = whole(text, unit)?;
                let number = u32::try_from(number).map_err(|_| Wrong::Range)?;
                let fits = (min..=max).contains(&number);
                fits.then_some(Value::Whole(number)).ok_or(Wrong::Range)
            }
            Self::Time { unit, min, max } => {
                let time = time(text, unit)?;
                if !(min..=max).contains(&time) {
                    return Err(Wrong::Range);
                }
                let rounded = time + Duration::from_micros(500);
                let millis = u64::try_from(rounded.as_millis()).map_err(|_| Wrong::Range)?;
                if millis == 0 && !time.is_zero() {
                    return Err(Wrong::TooFine);
                }
                Ok(Value::Time(Duration::from_millis(millis)))
            }
            Self::Choice(words) => {
                let found = words.iter().find(|word| **word == text);
                found.map(|word| Value::Choice(word)).ok_or(Wrong::Choice)
            }
        }
    }

    /// The unit; for a choice, the words to choose from.
    #[must_use]
    pub fn unit(self) -> String {
        match self {
            Self::Whole { unit, .. } => unit.to_owned(),
            Self::Time { unit, .. } => unit.name().to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// The bounds as numbers of the unit; a choice has none.
    #[must_use]
    pub fn bounds(self) -> Option<(Scalar, Scalar)> {
        match self {
            Self::Whole { min, max, .. } => Some((min.into(), max.into())),
            Self::Time { unit, min, max } => Some((
                Scalar::Number(unit.number(min)),
                Scalar::Number(unit.number(max)),
            )),
            Self::Choice(_) => None,
        }
    }

    /// What may be written, for errors.
    #[must_use]
    pub fn allowed(self) -> String {
        let Some((min, max)) = self.bounds() else {
            return self.unit();
        };
        match self {
            Self::Time { unit, .. } => {
                let unit = unit.name();
                format!("{min} to {max} {unit}, or a time with ms, s, m or h")
            }
            Self::Whole { unit: "", .. } => format!("{min} to {max}"),
            _ => format!("a whole number, {min} to {max} {}", self.unit()),
        }
    }

    /// A value as JSON has it: a number of the unit, or the word.
    ///
    /// # Panics
    /// If the value is of another kind; [`Kind::read`] returns no such value.
    #[must_use]
    pub fn scalar(self, value: Value) -> Scalar {
        match (self, value) {
            (Self::Whole { .. }, Value::Whole(number)) => number.into(),
            (Self::Time { unit, .. }, Value::Time(time)) => Scalar::Number(unit.number(time)),
            (Self::Choice(_), Value::Choice(word)) => Scalar::Text(word.to_owned()),
            _ => panic!("{value:?} is not a value of {self:?}"),
        }
    }
}

/// Splits `12.5min` into number and unit.
fn split(text: &str) -> Result<(&str, &str), Wrong> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.starts_with(|c: char| c.is_ascii_digit()) && number.matches('.').count() <= 1 {
        return Ok((number, unit.trim()));
    }
    Err(Wrong::NotANumber)
}

fn whole(text: &str, unit: &str) -> Result<u64, Wrong> {
    let (number, written) = split(text)?;
    let (number, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains(|c| c != '0') {
        return Err(Wrong::NotWhole);
    }
    if !written.is_empty() && written != unit {
        return Err(Wrong::Unit);
    }
    // The text consists of digits: a number that cannot be parsed is too large for any range.
    number.parse().map_err(|_| Wrong::Range)
}

/// Reads a time such as `500ms`, `1.5s`, `2m`, `10min` or `1h`; a bare number counts `bare`.
///
/// # Errors
/// What is wrong with it: no number, another unit, or longer than a [`Duration`] can be.
pub fn time(text: &str, bare: TimeUnit) -> Result<Duration, Wrong> {
    let (number, unit) = split(text)?;
    let unit = match unit {
        "" => f64::from(bare.millis()) / 1000.0,
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(Wrong::Unit),
    };
    let number: f64 = number.parse().map_err(|_| Wrong::NotANumber)?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| Wrong::Range)
}

/// A value as JSON and TOML can write it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a number, a text, true or false is needed")]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// A number; whole ones have no point.
    Number(Number),
    /// A text.
    Text(String),
}

impl From<u32> for Scalar {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The longest part of a wrong text that an error repeats, in characters.
const SHOWN: usize = 80;

/// A text as an error repeats it: whatever somebody sent, an error stays one readable line.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(SHOWN).collect();
    if text.escape_debug().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAX: Kind = Kind::whole("%", 0, 99);
    const PERIOD: Kind = Kind::time(TimeUnit::Seconds, 0, 180_000);
    const SCAN: Kind = Kind::time(TimeUnit::Minutes, 120, 36_000_000);
    const STATES: Kind = Kind::Choice(&["4.1", "5.0"]);

    #[test]
    fn whole_numbers_are_read_with_and_without_their_unit() {
        for text in ["50", "50%", " 50 % ", "50.0", "050"] {
            assert_eq!(TAX.read(text), Ok(Value::Whole(50)), "{text}");
        }
        for (text, wrong) in [
            ("100", Wrong::Range),
            ("99999999999999999999999", Wrong::Range),
            ("-1", Wrong::NotANumber),
            ("+1", Wrong::NotANumber),
            ("", Wrong::NotANumber),
            ("%", Wrong::NotANumber),
            (".5", Wrong::NotANumber),
            ("1.2.3", Wrong::NotANumber),
            ("50.5", Wrong::NotWhole),
            ("50s", Wrong::Unit),
            ("1e1", Wrong::Unit),
            ("true", Wrong::NotANumber),
        ] {
            assert_eq!(TAX.read(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn times_count_in_their_unit_unless_they_name_one() {
        for (kind, text, millis) in [
            (PERIOD, "30", 30_000),
            (PERIOD, "0.5", 500),
            (PERIOD, "500ms", 500),
            (PERIOD, "2m", 120_000),
            (SCAN, "0.05", 3000),
            (SCAN, "10min", 600_000),
            (SCAN, "3s", 3000),
            (SCAN, "0.002", 120),
            (SCAN, "10h", 36_000_000),
            (SCAN, "0.33333", 20_000),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(kind.read(text), Ok(Value::Time(time)), "{text}");
        }
        for (kind, text, wrong) in [
            (PERIOD, "10%", Wrong::Unit),
            (PERIOD, "181", Wrong::Range),
            (PERIOD, "0.0001", Wrong::TooFine),
            (SCAN, "119ms", Wrong::Range),
            (SCAN, "600.0001", Wrong::Range),
            (SCAN, &"9".repeat(400), Wrong::Range),
            (SCAN, "soon", Wrong::NotANumber),
        ] {
            assert_eq!(kind.read(text), Err(wrong), "{text}");
        }
    }

    #[test]
    fn choices_are_the_words_themselves() {
        assert_eq!(STATES.read("4.1"), Ok(Value::Choice("4.1")));
        assert_eq!(STATES.read("5"), Err(Wrong::Choice));
        assert_eq!(STATES.bounds(), None);
        assert_eq!(STATES.allowed(), "one of 4.1, 5.0");
    }

    #[test]
    fn scalars_are_numbers_of_the_unit_whole_where_they_can_be() {
        let json = |kind: Kind, text: &str| {
            let value = kind.read(text).expect(text);
            serde_json::to_string(&kind.scalar(value)).expect("no map")
        };
        assert_eq!(json(TAX, "50"), "50");
        assert_eq!(json(SCAN, "3s"), "0.05");
        assert_eq!(json(SCAN, "60"), "60");
        assert_eq!(json(PERIOD, "1500ms"), "1.5");
        assert_eq!(json(STATES, "5.0"), "\"5.0\"");
    }

    #[test]
    fn allowed_has_bounds_and_unit() {
        assert_eq!(TAX.allowed(), "a whole number, 0 to 99 %");
        assert_eq!(Kind::whole("", 0, 2).allowed(), "0 to 2");
        assert_eq!(
            SCAN.allowed(),
            "0.002 to 600 min, or a time with ms, s, m or h"
        );
    }

    #[test]
    fn texts_in_errors_are_short_and_harmless() {
        assert_eq!(shown("a\u{1b}b"), "a\\u{1b}b");
        assert_eq!(shown(&"x".repeat(500)).len(), SHOWN + 3);
    }
}
