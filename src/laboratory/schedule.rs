//! What happens on a host alone, and when: `0s=0,5s=64M`, or a TOML file.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::units::{Bytes, DURATIONS, Pages, parse_duration};

/// Something that happens on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The target is so many pages from now on.
    Target(Pages),
    /// The balloon may hold so many pages from now on.
    BalloonMax(Pages),
    /// The host uses so many pages, from the first on: they can be neither locked nor unlocked.
    Busy(Pages),
    /// The guest touches a page of its balloon.
    Reset,
    /// Whether the host is too short of memory to relieve its guest.
    Short(bool),
    /// The VM goes away.
    Close,
}

/// Changes, each at its time since the beginning; ascending.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule(pub Vec<(Duration, Change)>);

/// A schedule in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    at: Vec<At>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct At {
    time: Time,
    target: Option<Size>,
    balloon_max: Option<Size>,
    busy: Option<Size>,
    #[serde(default)]
    reset: bool,
    short: Option<bool>,
    #[serde(default)]
    close: bool,
}

/// A time in a file, such as `"500ms"`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Time(pub(super) Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let time = parse_duration(&text);
        (time.map(Self)).ok_or_else(|| format!("`{text}` is not a time: write {DURATIONS}"))
    }
}

/// A size in a file, such as `"64M"`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) Pages);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Bytes = text.parse().map_err(|error| format!("{error}"))?;
        let pages = bytes.whole_pages();
        (pages.map(Self)).ok_or_else(|| format!("`{text}` is not a whole number of pages"))
    }
}

impl Schedule {
    /// Reads a TOML file: tables `[[at]]`, each with a `time` and what happens then.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let written: Written = toml::from_str(text)?;
        let changes = written.at.iter().flat_map(At::changes);
        Ok(Self::sorted(changes.collect()))
    }

    fn sorted(mut changes: Vec<(Duration, Change)>) -> Self {
        changes.sort_by_key(|(time, _)| *time);
        Self(changes)
    }
}

impl At {
    fn changes(&self) -> Vec<(Duration, Change)> {
        let changes = [
            self.balloon_max
                .map(|Size(pages)| Change::BalloonMax(pages)),
            self.target.map(|Size(pages)| Change::Target(pages)),
            self.busy.map(|Size(pages)| Change::Busy(pages)),
            self.short.map(Change::Short),
            self.reset.then_some(Change::Reset),
            self.close.then_some(Change::Close),
        ];
        let at = |change| (self.time.0, change);
        changes.into_iter().flatten().map(at).collect()
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// Reads targets and their times, such as `0s=0,5s=64M`.
    fn from_str(text: &str) -> Result<Self, String> {
        let step = |step: &str| {
            let pair = step.trim().split_once('=');
            let (time, size) = pair.ok_or_else(|| format!("`{step}` is not TIME=SIZE"))?;
            let Time(time) = Time::try_from(time.to_owned())?;
            let Size(size) = Size::try_from(size.to_owned())?;
            Ok((time, Change::Target(size)))
        };
        let changes: Result<_, String> = text.split(',').map(step).collect();
        Ok(Self::sorted(changes?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn targets_of_a_word_are_in_order() {
        let schedule: Schedule = "5s=64M, 0s=0".parse().expect("valid");
        let expected = [
            (S(0), Change::Target(Pages(0))),
            (S(5), Change::Target(Pages(16_384))),
        ];
        assert_eq!(schedule.0, expected);
        for (wrong, named) in [
            ("5s", "`5s`"),
            ("x=1M", "`x`"),
            ("1s=5000", "`5000`"),
            ("1s=1Q", "1Q"),
        ] {
            let error = wrong.parse::<Schedule>().expect_err(wrong);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn file_has_every_change() {
        let text = "[[at]]\ntime = \"2s\"\nreset = true\n[[at]]\ntime = \"1s\"\ntarget = \"4K\"\n\
                    balloon-max = \"8K\"\nbusy = \"4K\"\nshort = true\nclose = true\n";
        let schedule = Schedule::parse(text).expect("valid");
        let changes: Vec<_> = schedule
            .0
            .iter()
            .map(|(time, change)| (time.as_secs(), *change))
            .collect();
        let expected = [
            (1, Change::BalloonMax(Pages(2))),
            (1, Change::Target(Pages(1))),
            (1, Change::Busy(Pages(1))),
            (1, Change::Short(true)),
            (1, Change::Close),
            (2, Change::Reset),
        ];
        assert_eq!(changes, expected);
        let error = Schedule::parse("[[at]]\ntime = \"1s\"\ntaget = \"4K\"\n").expect_err("a typo");
        assert!(error.to_string().contains("`taget`"), "{error}");
    }
}
