//! From the text of a file to a [`Scenario`], or all that is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::changes::WrittenChange;
use super::expect::WrittenExpect;
use super::guests::WrittenGuest;
use super::pools::Pools;
use super::variants::{Combination, combinations};
use super::{Scenario, Setup, Variant};
use crate::machine::BudgetChoice;
use crate::settings::{
    Invalid, Key, Keys, Memory, Problem, Reading, Scalar, StartSettings, number, shown, text_of,
};
use crate::units::{Bytes, DURATIONS, parse_duration};

/// Tables of which there may be many.
const MANY: [&str; 4] = ["guest", "change", "expect", "pool"];
/// What is assumed where a file says nothing.
const DURATION: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(1);
/// Samples more often than this would cost guests more than they tell.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// The longest experiment: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most samples of a run: all are in memory at its end.
const SAMPLES_MAX: u128 = 100_000;
/// The most repetitions.
const REPEAT_MAX: u32 = 100;
/// The longest title.
const TITLE_MAX: usize = 200;

/// Why a scenario cannot be run.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error("cannot read the scenario `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    title: Option<Spanned<String>>,
    about: Option<String>,
    duration: Option<Spanned<Time>>,
    interval: Option<Spanned<Time>>,
    repeat: Option<Spanned<u32>>,
    seed: Option<u64>,
    host: StartSettings,
    settings: Keys,
    files: BTreeMap<String, Spanned<Memory>>,
    pool: BTreeMap<String, Spanned<Keys>>,
    guest: BTreeMap<String, Spanned<WrittenGuest>>,
    change: BTreeMap<String, Spanned<WrittenChange>>,
    expect: BTreeMap<String, Spanned<WrittenExpect>>,
}

/// A time, which may be 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Time(pub(super) Duration);

impl TryFrom<Scalar> for Time {
    type Error = String;

    fn try_from(written: Scalar) -> Result<Self, String> {
        let text = written.to_string();
        let time = parse_duration(&text).map(Self);
        time.ok_or_else(|| format!("cannot be `{}`; allowed: {DURATIONS}", shown(&text)))
    }
}

/// As people write it: what is no whole number of minutes or hours is in seconds or parts of them.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.subsec_nanos() == 0;
        match self.0.as_secs() {
            0 if whole => f.write_str("0s"),
            seconds if whole && seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            seconds if whole && seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{:?}", self.0),
        }
    }
}

/// Reads a scenario.
///
/// # Errors
/// [`ScenarioError`], with all that is wrong in the file.
pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
    let text = text_of(path).map_err(|source| ScenarioError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(parse(path, &text)?)
}

/// Reads the text of the scenario at `path`.
///
/// # Errors
/// [`Invalid`]: all that is wrong in it.
pub fn parse(path: &Path, text: &str) -> Result<Scenario, Invalid> {
    let invalid = |problems| Invalid::new(path.display().to_string(), problems);
    let (mut reading, mut root) = Reading::tree(text);
    let combined = combinations(&mut reading, &mut root);
    prepare(&mut reading, &mut root);
    if !reading.problems.is_empty() {
        return Err(invalid(reading.problems));
    }
    let written: Written = reading.typed(root.clone());
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut scenario = Scenario {
        path: path.to_owned(),
        text: text.to_owned(),
        name: stem.into_owned(),
        title: reading.title(&written),
        about: written.about.clone().unwrap_or_default(),
        repeat: reading.repeat(&written),
        expects: Vec::new(),
        variants: Vec::new(),
    };
    let setup = reading.setup(&written);
    if !reading.problems.is_empty() {
        return Err(invalid(reading.problems));
    }
    for combination in &combined {
        let (mut problems, variant) = variant(text, &root, combination);
        problems.retain(|problem| !reading.problems.contains(problem));
        reading.problems.extend(problems);
        scenario.variants.extend(variant);
    }
    if combined.is_empty() {
        scenario.variants.extend(setup.map(|setup| Variant {
            name: String::new(),
            setup,
        }));
    }
    if reading.problems.is_empty() {
        scenario.expects = reading.expects(written.expect, &scenario.variants);
    }
    if reading.problems.is_empty() {
        return Ok(scenario);
    }
    Err(invalid(reading.problems))
}

/// Makes the tree one from which types can be read.
fn prepare(reading: &mut Reading, root: &mut DeTable<'_>) {
    for (key, value) in root.iter_mut() {
        let is_many = MANY.contains(&key.get_ref().as_ref());
        let value = value.get_mut();
        if !is_many {
            reading.flatten(value);
            continue;
        }
        number(value);
        let is_guest = key.get_ref() == "guest";
        if let DeValue::Table(tables) = value {
            // What a guest has and what a change sets has dots in its names.
            let tables = tables
                .iter_mut()
                .filter_map(|(_, table)| match table.get_mut() {
                    guest if is_guest => Some(guest),
                    DeValue::Table(table) => table.get_mut("set").map(Spanned::get_mut),
                    _ => None,
                });
            tables.for_each(|table| reading.flatten(table));
        }
    }
}

/// The file with a combination of its variants, if it is right.
fn variant(
    text: &str,
    root: &DeTable<'_>,
    combination: &Combination<'_>,
) -> (Vec<Problem>, Option<Variant>) {
    let (mut reading, _) = Reading::tree(text);
    let mut root = root.clone();
    combination.apply(&mut reading, &mut root);
    let written: Written = reading.typed(root);
    let setup = reading.setup(&written);
    let name = combination.name.clone();
    for problem in &mut reading.problems {
        problem.text = format!("{} (in variant {name})", problem.text);
    }
    (reading.problems, setup.map(|setup| Variant { name, setup }))
}

impl Reading {
    fn title(&mut self, written: &Written) -> String {
        let Some(title) = &written.title else {
            return String::new();
        };
        let text = title.get_ref();
        if text.len() > TITLE_MAX || text.contains(char::is_control) {
            let text = format!("title: allowed: a line of at most {TITLE_MAX} bytes");
            self.wrong(title.span(), &text);
        }
        text.clone()
    }

    fn repeat(&mut self, written: &Written) -> u32 {
        let Some(repeat) = &written.repeat else {
            return 1;
        };
        let count = *repeat.get_ref();
        if !(1..=REPEAT_MAX).contains(&count) {
            let text = format!("repeat cannot be {count}; allowed: 1 to {REPEAT_MAX}");
            self.wrong(repeat.span(), &text);
        }
        count
    }

    /// What runs, if all of it is right.
    fn setup(&mut self, written: &Written) -> Option<Setup> {
        let (duration, interval) = self.times(written);
        let memory = match written.host.memory {
            Some(BudgetChoice::Size(memory)) => memory,
            Some(other) => {
                let text = format!(
                    "[host] memory cannot be {other}: a run needs a size, so that it is the same on each machine"
                );
                self.wrong(None, &text);
                Bytes(0)
            }
            None => {
                if self.problems.is_empty() {
                    self.wrong(None, "[host] needs memory, such as memory = \"256M\"");
                }
                Bytes(0)
            }
        };
        self.settings(&written.settings);
        let settings = self.pairs(&written.settings);
        for (name, size) in &written.files {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', ',', '\0']) {
                let text = format!("files: `{}` cannot be a file's name", shown(name));
                self.wrong(size.span(), &text);
            }
        }
        let files: Vec<(String, Bytes)> = written
            .files
            .iter()
            .map(|(name, size)| (name.clone(), size.get_ref().0))
            .collect();
        let pools = self.pools(&written.pool).into_iter();
        let pools: Pools = pools.map(|(name, table)| (name, table.patch)).collect();
        let mut guests = self.crew(&written.guest, &files, &pools, duration);
        // What only follows from a guest that is wrong is no other problem.
        let changes = if self.problems.is_empty() {
            self.changes(&written.change, &mut guests, &pools, duration)
        } else {
            Vec::new()
        };
        self.problems.is_empty().then(|| Setup {
            duration,
            interval,
            seed: written.seed.unwrap_or(1),
            start: written.host.clone(),
            memory,
            settings,
            files,
            pools,
            guests,
            changes,
        })
    }

    /// The settings of the host as they are given to one.
    fn pairs(&mut self, table: &Keys) -> Vec<(Key, String)> {
        // What is wrong with others has been said.
        let known = table
            .iter()
            .filter_map(|(name, value)| Some((Key::find(name).ok()?, value.get_ref().to_string())));
        known.collect()
    }

    fn times(&mut self, written: &Written) -> (Duration, Duration) {
        let of = |time: &Option<Spanned<Time>>, default| {
            time.as_ref().map_or(default, |time| time.get_ref().0)
        };
        let duration = of(&written.duration, DURATION);
        let interval = of(&written.interval, INTERVAL);
        let place = |time: &Option<Spanned<Time>>| time.as_ref().map(Spanned::span);
        if !(SHORTEST_INTERVAL..=LONGEST).contains(&duration) {
            let text = format!(
                "duration cannot be {}; allowed: 100ms to a week",
                Time(duration)
            );
            self.wrong(place(&written.duration), &text);
        } else if !(SHORTEST_INTERVAL..=duration).contains(&interval) {
            let text = format!(
                "interval cannot be {}; allowed: 100ms to the duration of {}",
                Time(interval),
                Time(duration)
            );
            self.wrong(place(&written.interval), &text);
        } else if duration.as_nanos() / interval.as_nanos() > SAMPLES_MAX {
            let text = format!(
                "interval: {} in {} makes more than {SAMPLES_MAX} samples; allowed: a longer one",
                Time(interval),
                Time(duration)
            );
            let place = place(&written.interval).or(place(&written.duration));
            self.wrong(place, &text);
        }
        (duration, interval)
    }
}

#[cfg(test)]
mod tests;
