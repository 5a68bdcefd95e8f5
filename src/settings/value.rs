//! Values of settings: what may be written, and how they are shown.
//!
//! A value is written by people (`50%`, `10min`), in TOML or in JSON. All of these become text and
//! are read by [`Kind::read`], so that only one place decides what is allowed. Times are kept in
//! whole milliseconds; a bare number counts in the unit of its setting, as in ESX.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Number;

use crate::units::{parse_duration_in, split};

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
        /// What a bare number counts: `s` or `min`.
        unit: &'static str,
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Kind {
    /// A whole number of `unit`.
    #[must_use]
    pub const fn whole(unit: &'static str, min: u32, max: u32) -> Self {
        Self::Whole { unit, min, max }
    }

    /// A time of which a bare number counts `unit`; its bounds are in milliseconds.
    #[must_use]
    pub const fn time(unit: &'static str, min_ms: u64, max_ms: u64) -> Self {
        Self::Time {
            unit,
            min: Duration::from_millis(min_ms),
            max: Duration::from_millis(max_ms),
        }
    }

    /// Reads a value. `None` if it is not allowed; [`Kind::allowed`] says what is.
    #[must_use]
    pub fn read(self, text: &str) -> Option<Value> {
        match self {
            Self::Whole { unit, min, max } => {
                let (number, written) = split(text)?;
                let (number, fraction) = number.split_once('.').unwrap_or((number, ""));
                let is_whole = fraction.bytes().all(|digit| digit == b'0');
                let number = number.parse().ok()?;
                let fits = is_whole && (min..=max).contains(&number);
                (fits && (written.is_empty() || written == unit)).then_some(Value::Whole(number))
            }
            Self::Time { unit, min, max } => {
                let time = parse_duration_in(text, unit)?;
                if !(min..=max).contains(&time) {
                    return None;
                }
                let rounded = (time + Duration::from_micros(500)).as_millis();
                // Zero turns things off: a shorter time than can be kept must not become that.
                let is_lost = rounded == 0 && !time.is_zero();
                let millis = u64::try_from(rounded).ok().filter(|_| !is_lost)?;
                Some(Value::Time(Duration::from_millis(millis)))
            }
            Self::Choice(words) => {
                let found = words.iter().find(|word| **word == text.trim());
                found.map(|word| Value::Choice(word))
            }
        }
    }

    /// The unit; for a choice, the words to choose from.
    #[must_use]
    pub fn unit(self) -> String {
        match self {
            Self::Whole { unit, .. } | Self::Time { unit, .. } => unit.to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// The bounds as numbers of the unit; a choice has none.
    #[must_use]
    pub fn bounds(self) -> Option<(Scalar, Scalar)> {
        match self {
            Self::Whole { min, max, .. } => Some((min.into(), max.into())),
            Self::Time { unit, min, max } => Some((number(min, unit), number(max, unit))),
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
            Self::Whole { unit: "", .. } => format!("{min} to {max}"),
            Self::Time { unit, .. } => {
                format!("{min} to {max} {unit}, or a time with ms, s, m or h, in whole ms")
            }
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
            (Self::Time { unit, .. }, Value::Time(time)) => number(time, unit),
            (Self::Choice(_), Value::Choice(word)) => Scalar::Text(word.to_owned()),
            _ => panic!("{value:?} is not a value of {self:?}"),
        }
    }
}

/// A time as a number of a unit, without a fraction where it is whole.
fn number(time: Duration, unit: &str) -> Scalar {
    let one = parse_duration_in("1", unit).expect("the unit of a setting is one of time");
    let whole = u64::try_from(time.as_millis() / one.as_millis()).unwrap_or(u64::MAX);
    if time.as_millis().is_multiple_of(one.as_millis()) {
        return Scalar::Number(whole.into());
    }
    // With a single division, the result is the double nearest to the decimal that people wrote.
    let exact = Number::from_f64(time.as_secs_f64() * 1000.0 / (one.as_secs_f64() * 1000.0));
    Scalar::Number(exact.unwrap_or_else(|| whole.into()))
}

/// A type of which the value of a setting can be. `None` for a value of another kind or range.
pub(super) trait FromValue: Sized {
    fn from_value(value: Value) -> Option<Self>;
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Whole(number) => Some(number),
            _ => None,
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Option<Self> {
        u32::from_value(value).map(|number| number == 1)
    }
}

impl FromValue for Duration {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Time(time) => Some(time),
            _ => None,
        }
    }
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
    const PERIOD: Kind = Kind::time("s", 0, 180_000);
    const SCAN: Kind = Kind::time("min", 120, 36_000_000);
    const STATES: Kind = Kind::Choice(&["4.1", "5.0"]);

    #[test]
    fn whole_numbers_are_read_with_and_without_their_unit() {
        for text in ["50", "50%", " 50 % ", "50.0", "050"] {
            assert_eq!(TAX.read(text), Some(Value::Whole(50)), "{text}");
        }
        for text in [
            "100",
            "99999999999999999999999",
            "-1",
            "%",
            "50.5",
            "50s",
            "1e1",
            "true",
        ] {
            assert_eq!(TAX.read(text), None, "{text}");
        }
    }

    #[test]
    fn times_count_in_their_unit_unless_they_name_one() {
        for (kind, text, millis) in [
            (PERIOD, "30", 30_000),
            (PERIOD, "500ms", 500),
            (SCAN, "0.05", 3000),
            (SCAN, "10min", 600_000),
            (SCAN, "0.002", 120),
            (SCAN, "10h", 36_000_000),
            (SCAN, "0.33333", 20_000),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(kind.read(text), Some(Value::Time(time)), "{text}");
        }
        for (kind, text) in [
            (PERIOD, "10%"),
            (PERIOD, "181"),
            (PERIOD, "0.0001"),
            (SCAN, "119ms"),
            (SCAN, "600.0001"),
            (SCAN, &"9".repeat(400)),
            (SCAN, "soon"),
        ] {
            assert_eq!(kind.read(text), None, "{text}");
        }
    }

    #[test]
    fn choices_are_the_words_themselves() {
        assert_eq!(STATES.read("4.1"), Some(Value::Choice("4.1")));
        assert_eq!(STATES.read("5"), None);
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
        let allowed = SCAN.allowed();
        assert!(
            allowed.starts_with("0.002 to 600 min, or a time"),
            "{allowed}"
        );
    }

    #[test]
    fn texts_in_errors_are_short_and_harmless() {
        assert_eq!(shown("a\u{1b}b"), "a\\u{1b}b");
        assert_eq!(shown(&"x".repeat(500)).len(), SHOWN + 3);
    }
}
