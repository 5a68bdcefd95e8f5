//! Experiments as files: what runs on a host, what changes meanwhile, how often, with which settings, and what is
//! expected of it.
//!
//! A published figure comes from an experiment, and an experiment that nobody can repeat proves nothing. A shell script
//! can start a host and guests, but it forgets what it ran with, takes samples at odd times, averages over a guest that
//! has died, and leaves processes behind when it is interrupted. So an experiment is a file ([`Scenario`]), checked as
//! a whole before anything starts: each workload is read by the parser of the guests, each setting by that of the host,
//! and each combination of settings is a scenario of its own that must fit. Whatever was measured reaches the disk while
//! it is measured, and a run that ends early says so in its results.
//!
//! - `read.rs`, `variants.rs`, `pools.rs`, `guests.rs`, `changes.rs`, `expect.rs`, `expected.rs`: a file, or all that is wrong with it.
//! - `fits.rs`: whether a machine has the memory. `promises.rs`: whether the host makes all that it is asked to promise.
//! - [`run`]: all variants and repetitions, one after the other. `session.rs` is one of them: a host, its guests, the
//!   timeline and the samples; `store.rs` is what of it reaches the disk.
//! - `judge.rs`, `figures.rs`: numbers of recordings, and whether they are as expected.
//! - `results.rs`: a results directory, written and read. `page.rs`: its report. [`compare`]: several side by side.

mod changes;
pub mod compare;
mod expect;
mod expected;
mod figures;
mod fits;
mod guests;
mod judge;
mod page;
mod pools;
mod promises;
mod read;
mod results;
pub mod run;
mod said;
mod session;
mod store;
mod units;
mod variants;

use std::path::PathBuf;
use std::time::Duration;

pub use self::changes::{Action, Change};
pub use self::expected::{Bound, Expect, Figure, Published, Value};
pub use self::figures::Measured;
pub use self::fits::{Fits, Misfit};
pub use self::guests::Guest;
pub use self::judge::Verdict;
pub use self::pools::Pools;
pub use self::read::{ScenarioError, load, parse};
pub use self::results::{Repetition, Results, ResultsError, VariantResults};
use crate::settings::{Key, StartSettings};
use crate::units::Bytes;

/// An experiment.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// The file it was read from.
    pub path: PathBuf,
    /// The text of the file.
    pub text: String,
    /// What it is called in results: the stem of the file's name.
    pub name: String,
    /// A line that says what it is.
    pub title: String,
    /// What it shows, and how.
    pub about: String,
    /// How often each variant runs.
    pub repeat: u32,
    /// What is expected.
    pub expects: Vec<Expect>,
    /// What runs: one, or one for each combination of the file's `[variants]`.
    pub variants: Vec<Variant>,
}

/// An experiment with one combination of settings.
#[derive(Clone, PartialEq, Debug)]
pub struct Variant {
    /// The combination; empty if there is only one.
    pub name: String,
    /// What runs.
    pub setup: Setup,
}

/// What runs.
#[derive(Clone, PartialEq, Debug)]
pub struct Setup {
    /// How long.
    pub duration: Duration,
    /// Time between two samples.
    pub interval: Duration,
    /// The seed of the first repetition; each later one has the next.
    pub seed: u64,
    /// The host. Its memory is known.
    pub start: StartSettings,
    /// The budget of the host.
    pub memory: Bytes,
    /// Settings of the host.
    pub settings: Vec<(Key, String)>,
    /// Files that are written for guests to read, by name.
    pub files: Vec<(String, Bytes)>,
    /// Resource pools.
    pub pools: Pools,
    /// The guests.
    pub guests: Vec<Guest>,
    /// What changes, in the order of time.
    pub changes: Vec<Change>,
}

/// How guests are named together: a name, or the beginning of names with a `*` behind it.
#[must_use]
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests;
