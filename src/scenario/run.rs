//! Runs a scenario: all variants, each as often as the file says, and what becomes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use memvisor_wire::signals::{ENDING, Signals};
use nix::sys::signal::Signal;
use thiserror::Error;

use super::figures;
use super::fits::{Fits, Misfit};
use super::judge::{Recorded, judge};
use super::page;
use super::results::{Repetition, Results, VariantResults};
use super::session::{Run, Stopped};
use super::store::{StoreError, put};
use super::{Scenario, Variant};
use crate::launch::{Scratch, ScratchError};
use crate::recording::Recording;

pub use super::session::Progress;

/// Where results go unless somebody says otherwise.
const RESULTS: &str = "results";
/// The seeds of two repetitions are so far apart, which is more than there are guests.
const SEEDS: u64 = 1000;

/// How to run a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunOptions {
    /// The executable that is started as host and guests.
    pub program: PathBuf,
    /// The results directory, which must not be there; `None`: a new one in `results`.
    pub out: Option<PathBuf>,
    /// The command line, for the report.
    pub command: String,
}

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place<'a> {
    /// The variant.
    pub variant: &'a str,
    /// The number of this run, from 1 on.
    pub run: usize,
    /// All runs.
    pub of: usize,
}

/// Why a scenario did not run, or its results are not there. A run that ended early is no error but a result.
#[derive(Debug, Error)]
pub enum RunError {
    /// It cannot run here.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The results directory is there already.
    #[error(
        "the results directory `{}` exists already; allowed: --out with a directory that does not", .0.display()
    )]
    Exists(PathBuf),
    /// Something cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A run ended early, and that cannot be written either.
    #[error("{why}. Its results are not complete")]
    Unwritten {
        /// Why it ended.
        why: String,
        /// What cannot be written.
        source: StoreError,
    },
    /// There is no place for sockets and swap files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// Whether a scenario could run on this machine now.
///
/// # Errors
/// [`RunError::Misfit`], or that there is no place for its files.
pub fn check(scenario: &Scenario) -> Result<Fits, RunError> {
    let scratch = Scratch::new()?;
    Ok(Fits::of(scenario, scratch.path())?)
}

/// Runs a scenario; the results, and where they are. `tell` is called as a run goes on.
///
/// # Errors
/// [`RunError`]
pub fn run(
    scenario: &Scenario,
    options: &RunOptions,
    mut tell: impl FnMut(&Place<'_>, &Progress),
) -> Result<(Results, PathBuf), RunError> {
    check(scenario)?;
    let signals = Signals::block(ENDING.into_iter().chain([Signal::SIGCHLD]));
    let signals = signals.map_err(RunError::Signals)?;
    let out = results_dir(options, &scenario.name)?;
    let copy = out.join("scenario.toml");
    fs::write(&copy, &scenario.text).map_err(StoreError::of(&copy))?;
    let began = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut results = Results::begun(scenario, &options.command, began.as_secs());
    results.write(&out)?;
    let stored = all(scenario, options, (&signals, &out), &mut results, &mut tell);
    match (stored, failure(&results)) {
        (Ok(()), _) => Ok((results, out)),
        (Err(source), Some(why)) => Err(RunError::Unwritten { why, source }),
        (Err(source), None) => Err(source.into()),
    }
}

/// Runs everything and writes what there is to say of it.
fn all(
    scenario: &Scenario,
    options: &RunOptions,
    (signals, out): (&Signals, &Path),
    results: &mut Results,
    tell: &mut dyn FnMut(&Place<'_>, &Progress),
) -> Result<(), StoreError> {
    let mut runs = Runs {
        scenario,
        options,
        signals,
        out,
        results,
        recordings: Vec::new(),
    };
    runs.all(tell)?;
    let recordings = runs.recordings;
    judged(scenario, &recordings, results);
    results.write(out)?;
    let text = page::page(results, &recordings);
    put(&out.join("report.html"), text.as_bytes())
}

/// Why a run ended early, if one did.
fn failure(results: &Results) -> Option<String> {
    let runs = results
        .variants
        .iter()
        .flat_map(|variant| &variant.repetitions);
    runs.last()?.why.clone()
}

/// What was recorded of each repetition of each variant.
pub type Recordings = Vec<(String, Vec<Recording>)>;

/// Judges what is expected, as far as runs were whole.
fn judged(scenario: &Scenario, recordings: &Recordings, results: &mut Results) {
    let whole: Vec<(&str, Vec<Recording>)> = results
        .variants
        .iter()
        .zip(recordings)
        .map(|(variant, (name, runs))| {
            let runs = variant.repetitions.iter().zip(runs);
            let runs = runs.filter(|(repetition, _)| repetition.whole);
            (name.as_str(), runs.map(|(_, run)| run.clone()).collect())
        })
        .collect();
    let recorded: Vec<_> = whole
        .iter()
        .map(|(variant, runs)| Recorded { variant, runs })
        .collect();
    results.verdicts = scenario
        .expects
        .iter()
        .flat_map(|expect| judge(expect, &recorded))
        // What did not run is not judged.
        .filter(|verdict| results.whole || verdict.value.is_some())
        .collect();
}

struct Runs<'a> {
    scenario: &'a Scenario,
    options: &'a RunOptions,
    signals: &'a Signals,
    out: &'a Path,
    results: &'a mut Results,
    recordings: Recordings,
}

impl Runs<'_> {
    /// Runs everything, or until something goes wrong.
    fn all(&mut self, tell: &mut dyn FnMut(&Place<'_>, &Progress)) -> Result<(), StoreError> {
        let repeat = self.scenario.repeat;
        let of = self.scenario.variants.len() * repeat as usize;
        let mut run = 0;
        for (number, variant) in (1..).zip(&self.scenario.variants) {
            let dir = variant_dir(number, variant);
            self.results.variants.push(VariantResults {
                name: variant.name.clone(),
                repetitions: Vec::new(),
            });
            self.recordings.push((variant.name.clone(), Vec::new()));
            for repetition in 1..=repeat {
                run += 1;
                let place = Place {
                    variant: &variant.name,
                    run,
                    of,
                };
                let dir = dir.join(repetition.to_string());
                let goes_on =
                    self.one(variant, repetition, dir, |progress| tell(&place, progress))?;
                self.results.write(self.out)?;
                if !goes_on {
                    return Ok(());
                }
            }
        }
        (self.results.whole, self.results.why) = (true, None);
        Ok(())
    }

    /// One repetition of a variant; whether to go on.
    fn one(
        &mut self,
        variant: &Variant,
        repetition: u32,
        dir: PathBuf,
        tell: impl FnMut(&Progress),
    ) -> Result<bool, StoreError> {
        let path = self.out.join(&dir);
        fs::create_dir_all(&path).map_err(StoreError::of(&path))?;
        let setup = &variant.setup;
        let seed = setup.seed.wrapping_add(SEEDS * u64::from(repetition - 1));
        let run = Run {
            program: &self.options.program,
            setup,
            seed,
            dir: &path,
            signals: self.signals,
        };
        let ran = run.run(tell);
        let why = ran.why();
        let last = self.results.variants.last_mut();
        last.expect("its variant was added")
            .repetitions
            .push(Repetition {
                dir,
                seed,
                engine: ran.engine,
                whole: why.is_none(),
                why: why.clone(),
                guests: ran.reports,
                figures: figures::of(&ran.recording),
            });
        let last = self.recordings.last_mut();
        last.expect("its variant was added").1.push(ran.recording);
        self.results.corrupt |= matches!(ran.stopped, Some(Stopped::Corrupt { .. }));
        self.results.interrupted |= matches!(ran.stopped, Some(Stopped::Interrupted));
        if let Some(why) = why {
            let name = match variant.name.as_str() {
                "" => String::new(),
                name => format!(" of {name}"),
            };
            let repetition = format!("repetition {repetition}{name}");
            self.results.why = Some(format!("{repetition} did not run to its end: {why}"));
            return Ok(false);
        }
        Ok(true)
    }
}

/// The directory of a variant: its name as far as that can be a file's name, behind its number.
fn variant_dir(number: usize, variant: &Variant) -> PathBuf {
    if variant.name.is_empty() {
        return PathBuf::from("runs");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "=.,+_-".contains(c);
    let name = variant.name.chars().take(100);
    let name: String = name.map(|c| if plain(c) { c } else { '-' }).collect();
    PathBuf::from(format!("{number}-{name}"))
}

/// Makes the results directory.
fn results_dir(options: &RunOptions, name: &str) -> Result<PathBuf, RunError> {
    let make = |dir: &Path| {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::create_dir(dir)
    };
    let numbered = (1..).map(|number: u32| Path::new(RESULTS).join(format!("{name}-{number}")));
    let places: Box<dyn Iterator<Item = PathBuf>> = match &options.out {
        Some(out) => Box::new(std::iter::once(out.clone())),
        None => Box::new(numbered),
    };
    let mut exists = PathBuf::new();
    for dir in places {
        match make(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => exists = dir,
            Err(error) => return Err(StoreError::of(&dir)(error).into()),
        }
    }
    Err(RunError::Exists(exists))
}
