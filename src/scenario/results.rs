//! A results directory: what a run leaves, and how it is read again.
//!
//! `result.json` is written when a run begins and after each repetition. Its first version says that the run is not
//! whole, so a directory whose process was killed says so too.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use memvisor_guest_agent::guest::GuestReport;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::figures::Measured;
use super::judge::Verdict;
use super::store::{StoreError, put};
use crate::bench::Machine;
use crate::recording::Recording;

/// The version of the format. A reader refuses another.
const FORMAT: u32 = 1;
/// The names of files in a results directory.
pub(super) const RESULT: &str = "result.json";
const SAMPLES: &str = "samples.json";

/// All that a run found out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The version of this format.
    pub format: u32,
    /// The version of memvisor.
    pub memvisor: String,
    /// The name of the scenario.
    pub name: String,
    /// Its title.
    pub title: String,
    /// What it shows.
    pub about: String,
    /// The command line.
    pub command: String,
    /// The machine.
    pub machine: Machine,
    /// When the run began, in seconds since 1970.
    pub began_unix_s: u64,
    /// Whether everything ran to its end.
    pub whole: bool,
    /// Why not.
    pub why: Option<String>,
    /// Whether a guest found other bytes than it had written.
    pub corrupt: bool,
    /// Whether a signal ended the run.
    pub interrupted: bool,
    /// The variants that have begun.
    pub variants: Vec<VariantResults>,
    /// What was expected, and what was measured of it.
    pub verdicts: Vec<Verdict>,
}

/// The runs of one variant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VariantResults {
    /// Its name; empty if there is only one.
    pub name: String,
    /// Its runs that have begun.
    pub repetitions: Vec<Repetition>,
}

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Repetition {
    /// Its directory within that of the results.
    pub dir: PathBuf,
    /// Its seed.
    pub seed: u64,
    /// The engine of its host.
    pub engine: String,
    /// Whether it ran to its end.
    pub whole: bool,
    /// Why not.
    pub why: Option<String>,
    /// The reports of guests that were asked to end.
    pub guests: Vec<GuestReport>,
    /// Figures that each run has.
    pub figures: Vec<Measured>,
}

/// Why a results directory cannot be read.
#[derive(Debug, Error)]
pub enum ResultsError {
    /// A file cannot be read.
    #[error("`{}` is no results directory of `memvisor run`: cannot read `{}`", dir.display(), file.display())]
    Read {
        /// The directory.
        dir: PathBuf,
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is damaged, or another program's.
    #[error("`{}` is damaged, or was not written by `memvisor run`", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A run is said to be somewhere else.
    #[error(
        "`{}` says that a run is in `{}`; allowed: a directory within that of the results, such as `runs/1`",
        file.display(), dir.display()
    )]
    Elsewhere {
        /// The file.
        file: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// Another version has written it.
    #[error("`{}` has format {found}; this version of memvisor reads format {FORMAT}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u64,
    },
}

impl Results {
    /// The results of a run that begins.
    #[must_use]
    pub(super) fn begun(scenario: &super::Scenario, command: &str, began_unix_s: u64) -> Self {
        Self {
            format: FORMAT,
            memvisor: env!("CARGO_PKG_VERSION").to_owned(),
            name: scenario.name.clone(),
            title: scenario.title.clone(),
            about: scenario.about.clone(),
            command: command.to_owned(),
            machine: Machine::here(),
            began_unix_s,
            whole: false,
            why: Some("the run has not ended, or its process was killed".to_owned()),
            corrupt: false,
            interrupted: false,
            variants: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Whether all that is expected holds, as far as it was judged.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.verdicts
            .iter()
            .all(|verdict| verdict.holds != Some(false))
    }

    /// What it is called: its title, or its name if it has none.
    #[must_use]
    pub fn heading(&self) -> &str {
        if self.title.is_empty() {
            return &self.name;
        }
        &self.title
    }

    /// Writes it into a results directory, whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let text = serde_json::to_string_pretty(self).expect("plain data with keys that are text");
        put(&dir.join(RESULT), (text + "\n").as_bytes())
    }

    /// Reads a results directory.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub fn read(dir: &Path) -> Result<Self, ResultsError> {
        let file = dir.join(RESULT);
        Self::parse(&read(dir, &file)?, file)
    }

    /// Reads the text of a `result.json`; `file` is its path, for errors.
    ///
    /// # Errors
    /// [`ResultsError`], but none of reading.
    pub fn parse(text: &[u8], file: PathBuf) -> Result<Self, ResultsError> {
        let value: serde_json::Value = json(text, &file)?;
        let found = value["format"].as_u64();
        if let Some(found) = found.filter(|found| *found != u64::from(FORMAT)) {
            return Err(ResultsError::Format { file, found });
        }
        let results: Self = match serde_json::from_value(value) {
            Ok(results) => results,
            Err(source) => return Err(ResultsError::Damaged { file, source }),
        };
        let runs = results.variants.iter();
        let mut runs = runs.flat_map(|variant| &variant.repetitions);
        match runs.find(|run| !is_within(&run.dir)) {
            Some(run) => Err(ResultsError::Elsewhere {
                dir: run.dir.clone(),
                file,
            }),
            None => Ok(results),
        }
    }

    /// Reads what was recorded of a repetition; `None` if it ended before anything was.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub fn recording(
        dir: &Path,
        repetition: &Repetition,
    ) -> Result<Option<Recording>, ResultsError> {
        let file = dir.join(&repetition.dir).join(SAMPLES);
        if !repetition.whole && !file.exists() {
            return Ok(None);
        }
        json(&read(dir, &file)?, &file).map(Some)
    }
}

/// Whether a path leads to something within the directory that it begins in.
fn is_within(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn read(dir: &Path, file: &Path) -> Result<Vec<u8>, ResultsError> {
    fs::read(file).map_err(|source| ResultsError::Read {
        dir: dir.to_owned(),
        file: file.to_owned(),
        source,
    })
}

fn json<T: serde::de::DeserializeOwned>(text: &[u8], file: &Path) -> Result<T, ResultsError> {
    serde_json::from_slice(text).map_err(|source| ResultsError::Damaged {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of one run that is said to be in `dir`.
    fn results(dir: &str) -> Results {
        let path = Path::new("a.toml");
        let text = "[host]\nmemory = \"64M\"\n[[guest]]\nname = \"a\"\nmemory = \"8M\"\nworkloads = [\"idle\"]\n";
        let scenario = super::super::parse(path, text).expect("right");
        let mut results = Results::begun(&scenario, "memvisor run a.toml", 0);
        results.variants.push(VariantResults {
            name: String::new(),
            repetitions: vec![Repetition {
                dir: dir.into(),
                seed: 1,
                engine: "uffd".to_owned(),
                whole: true,
                why: None,
                guests: Vec::new(),
                figures: Vec::new(),
            }],
        });
        results
    }

    #[test]
    fn runs_are_within_the_directory_of_the_results() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (runs, allowed) in [
            ("runs/1", true),
            ("2-IdleTax=0,on/10", true),
            ("", false),
            (".", false),
            ("..", false),
            ("runs/../../1", false),
            ("/etc", false),
        ] {
            results(runs).write(dir.path()).expect("room");
            match Results::read(dir.path()) {
                Ok(read) => assert!(allowed && read == results(runs), "{runs}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!allowed && text.contains(&format!("`{runs}`")), "{text}");
                    assert!(
                        text.contains("allowed: ") && text.contains(RESULT),
                        "{text}"
                    );
                }
            }
        }
    }
}
