//! Whether a scenario can run at all, before anything starts.
//!
//! A host refuses a guest whose reservation it cannot promise, and a machine without memory ends processes. Both would
//! happen minutes into an experiment. So the guests are admitted in the order in which they will start, and changes of
//! what is promised are made, by the functions that the host uses (`promises`); and what all guests need is compared with
//! what the machine has.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::{Action, Guest, Scenario, Setup, promises};
use crate::bench::Machine;
use crate::policy::Refusal;
use crate::sys::Filesystem;
use crate::units::Bytes;

/// Memory of the process of a guest beside its RAM: heap, stacks, page tables.
const OF_PROCESS: Bytes = Bytes::from_mib(8);

/// Why a scenario cannot run.
#[derive(Debug, Error)]
pub enum Misfit {
    /// The host would refuse a guest, or a change.
    #[error("{0}the host would refuse {1}")]
    Refused(String, String, #[source] Refusal),
    /// The machine has too little memory.
    #[error(
        "{variant}a host of {budget} and {guests} guests need {needs} of memory, but {available} of this machine are free; \
         allowed: a smaller memory in [host]"
    )]
    Memory {
        /// The variant, as the beginning of a sentence.
        variant: String,
        /// The budget.
        budget: Bytes,
        /// The most guests at a time.
        guests: usize,
        /// What both need.
        needs: Bytes,
        /// What is there.
        available: Bytes,
    },
    /// The disk has too little room.
    #[error(
        "{variant}swap files of {swap} and files of {files} do not fit into `{}`, which has {available} left; allowed: \
         another place by TMPDIR or swap-dir in [host], or smaller guests", dir.display()
    )]
    Disk {
        /// The variant, as the beginning of a sentence.
        variant: String,
        /// What swap files take.
        swap: Bytes,
        /// What files for guests take.
        files: Bytes,
        /// Where.
        dir: PathBuf,
        /// What is left there.
        available: Bytes,
    },
    /// The place of swap files cannot be looked at.
    #[error("swap files cannot be in `{}`", dir.display())]
    Place {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a scenario that fits takes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fits {
    /// The variants.
    pub variants: Vec<String>,
    /// How often each runs.
    pub repeat: u32,
    /// How long all runs take together, without starting and verifying.
    pub time: Duration,
    /// The most memory that a run needs.
    pub memory: Bytes,
    /// The most room that a run needs on a disk.
    pub disk: Bytes,
}

impl Fits {
    /// Whether all variants of a scenario fit this machine, with its files in `dir`.
    ///
    /// # Errors
    /// [`Misfit`]: what does not fit.
    pub fn of(scenario: &Scenario, dir: &Path) -> Result<Self, Misfit> {
        let mut fits = Self {
            variants: Vec::new(),
            repeat: scenario.repeat,
            time: Duration::ZERO,
            memory: Bytes(0),
            disk: Bytes(0),
        };
        let available = Machine::available();
        for variant in &scenario.variants {
            let setup = &variant.setup;
            let name = match variant.name.as_str() {
                "" => String::new(),
                name => format!("in variant {name}, "),
            };
            let most = promises::all(setup)
                .map_err(|(what, refusal)| Misfit::Refused(name.clone(), what, refusal))?;
            let needs = Bytes(setup.memory.0 + most as u64 * OF_PROCESS.0);
            if needs > available {
                return Err(Misfit::Memory {
                    variant: name,
                    budget: setup.memory,
                    guests: most,
                    needs,
                    available,
                });
            }
            let disk = on_disk(setup, name, dir)?;
            fits.variants.push(variant.name.clone());
            fits.time += setup.duration * scenario.repeat;
            fits.memory = fits.memory.max(needs);
            fits.disk = fits.disk.max(disk);
        }
        Ok(fits)
    }
}

/// What is written to disks.
fn on_disk(setup: &Setup, variant: String, dir: &Path) -> Result<Bytes, Misfit> {
    let free = |dir: &Path| {
        let room = Filesystem::of(dir).map(|filesystem| filesystem.available);
        let dir = dir.to_owned();
        room.map_err(|source| Misfit::Place { dir, source })
    };
    let swap_dir = setup.start.swap_dir.as_deref().unwrap_or(dir);
    let swapped = setup.guests.iter().map(|guest| {
        let kept = promises::reservation(guest).bytes();
        guest.memory.0 - kept.0.min(guest.memory.0)
    });
    let swap = Bytes(swapped.sum());
    let files = Bytes(setup.files.iter().map(|(_, size)| size.0).sum());
    let with_swap = if swap_dir == dir { files } else { Bytes(0) };
    for (dir, needs) in [(swap_dir, swap.0 + with_swap.0), (dir, files.0)] {
        let available = free(dir)?;
        if needs > available.0 {
            return Err(Misfit::Disk {
                variant,
                swap,
                files,
                dir: dir.to_owned(),
                available,
            });
        }
    }
    Ok(Bytes(swap.0 + files.0))
}

impl Setup {
    /// The guest of that name.
    #[must_use]
    pub fn guest(&self, name: &str) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.name == name)
    }

    /// All that happens, in the order of time: guests start and end as their tables say, and what changes.
    #[must_use]
    pub fn timeline(&self) -> Vec<(Duration, Action)> {
        let starts = self.guests.iter().filter_map(|guest| {
            let start = guest.start?;
            Some((start, Action::Start(guest.name.clone())))
        });
        let ends = self.guests.iter().filter_map(|guest| {
            let until = guest.until?;
            Some((until, Action::Stop(guest.name.clone())))
        });
        let changes = self.changes.iter().flat_map(|change| {
            let actions = change.actions.iter();
            actions.map(|action| (change.at, action.clone()))
        });
        let mut all: Vec<_> = starts.chain(ends).chain(changes).collect();
        all.sort_by_key(|(at, _)| *at);
        all
    }
}
