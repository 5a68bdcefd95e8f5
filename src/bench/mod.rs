//! `memvisor bench`: what the mechanisms cost, compared with those of the kernel or of a C library.
//!
//! # The problem
//!
//! A figure from another machine, another day or another content says nothing: the speed of a virtual machine
//! differs by half from one hour to the next, and that of a compressor by ten times from one page to another.
//! A comparison with published figures of KSM or zram would compare machines.
//!
//! # The structure
//!
//! So every comparison is made in one run, on the same bytes, turn by turn: a round of ours, a round of the
//! peer, and so on. The ratio of the medians counts, and the spread is shown beside it. The product itself is
//! measured: its sessions, scanner, evictor, stores and fault thread, with guests that are processes of their own
//! (`stage`, [`driven`]). A guest that reads other bytes than it wrote ends the benchmark with an error. Only the
//! policy is left out, because it would move pages in between. [`guests`] measures everything together, with real
//! guests, and compares it with the kernel on the same amount of memory.
//!
//! KSM and zram are settings of the whole machine. They are left alone where somebody else uses them. A separate
//! process restores them, however this one ends ([`guard`]).

mod balloon;
mod class;
pub mod clock;
mod compress;
pub mod content;
pub mod driven;
mod fault;
pub mod guard;
pub mod guests;
pub mod html;
mod jumps;
mod large;
mod machine;
mod many_vms;
mod merge;
pub(crate) mod peer;
mod plan;
pub mod report;
mod scan;
mod stage;
mod swap;

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use memvisor_guest_agent::shim::PowerOnError;
use memvisor_wire::balloon::Protocol;
use thiserror::Error;

pub use machine::Machine;

use self::content::{Class, Content, Source};
use self::guard::Guard;
use self::guests::{Builtin, GuestsOptions};
use self::peer::signal::Remedy;
use self::report::Report;
use crate::control::ClientError;
use crate::engine::EngineError;
use crate::host::{EngineChoice, HostError};
use crate::units::Bytes;

/// A benchmark. They run in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Bench {
    /// Scanning memory: for the first time, and when nothing has changed.
    Scan,
    /// Sharing the equal pages of four guests.
    Merge,
    /// The compression cache.
    Compress,
    /// Faults: first touches, refills, breaks.
    Fault,
    /// Paging out and in.
    Swap,
    /// Ballooning of idle memory.
    Balloon,
    /// Large pages: what they save a guest that jumps about, and how long sharing waits for them.
    Large,
    /// A plan of the policy.
    Plan,
    /// What guests get done when memory is short.
    Guests,
    /// Faults of guests under both choices of victims, random and second chance.
    Victims,
    /// What it costs guests to account for their stalls.
    Stalls,
    /// What it costs a guest to be sampled.
    Sample,
}

impl Bench {
    /// Whether it runs real guests on a daemon, for long and with content of their own.
    #[must_use]
    pub const fn runs_guests(self) -> bool {
        matches!(
            self,
            Self::Guests | Self::Victims | Self::Stalls | Self::Sample
        )
    }
}

/// Shows values by their names on the command line.
macro_rules! shown_by_name {
    ($($named:ty),+) => {$(
        impl fmt::Display for $named {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value().expect("no value is hidden");
                f.pad(value.get_name())
            }
        }
    )+};
}

shown_by_name!(Bench, Class, Builtin, Remedy);

/// The names of all values.
pub(crate) fn names<T: ValueEnum + fmt::Display>() -> String {
    let names: Vec<_> = T::value_variants().iter().map(T::to_string).collect();
    names.join(", ")
}

/// What to compare with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Vs {
    /// The kernel's merging of equal pages.
    Ksm,
    /// The kernel's compressed swap in memory.
    Zram,
    /// The C library of LZ4.
    Lz4,
    /// The kernel with all it has: KSM, zram, swap, a memory cgroup.
    Kernel,
}

/// What to measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BenchOptions {
    /// Which benchmarks.
    pub benches: Vec<Bench>,
    /// Memory of the guests of one benchmark together.
    pub size: Bytes,
    /// How often each is measured.
    pub rounds: u32,
    /// The content of memory. By default each benchmark has its own.
    pub source: Option<Source>,
    /// What to compare with.
    pub vs: Vec<Vs>,
    /// The protocols of the balloon to compare; none: measure the balloon by its usual one.
    pub protocols: Vec<Protocol>,
    /// The engine of the host.
    pub engine: EngineChoice,
    /// What to measure of guests.
    pub guests: GuestsOptions,
}

/// Why a benchmark failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// A guest did not read what it had written.
    #[error("guest `{name}` found {pages} pages with other bytes than it had written")]
    Corrupt {
        /// The guest.
        name: String,
        /// Wrong pages.
        pages: u64,
    },
    /// A guest ended before it was told to.
    #[error("guest `{0}` ended by itself")]
    GuestEnded(String),
    /// A guest cannot be powered on.
    #[error(transparent)]
    PowerOn(PowerOnError),
    /// A process failed.
    #[error("{name} ended with {how}: {message}")]
    Failed {
        /// The host or a guest.
        name: String,
        /// Its exit code or signal.
        how: String,
        /// The end of what it logged.
        message: String,
    },
    /// The host does not answer.
    #[error("the host does not answer")]
    Client(#[from] ClientError),
    /// The host cannot be started.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The session with a guest failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The content cannot be read.
    #[error("cannot take pages from `{source_name}`")]
    Content {
        /// The file or directory.
        source_name: String,
        /// Why.
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error("waited {limit:?} for {what}")]
    Overtime {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// The system refuses something.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BenchError {
    fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    fn content(content: &Content, source: io::Error) -> Self {
        Self::Content {
            source_name: content.source.to_string(),
            source,
        }
    }
}

/// What benchmarks are given to work with.
pub struct Setup<'a> {
    /// What to measure.
    pub options: &'a BenchOptions,
    /// The executable that is started as a guest.
    pub program: PathBuf,
    /// A directory for files; removed by the guard.
    pub scratch: PathBuf,
    /// What restores the machine.
    pub guard: &'a Guard,
    /// Called with what a benchmark measures now; says whether to go on.
    pub progress: &'a dyn Fn(Bench, &str) -> bool,
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("options", self.options)
            .field("scratch", &self.scratch)
            .finish_non_exhaustive()
    }
}

impl Setup<'_> {
    /// Says what is measured now.
    ///
    /// # Errors
    /// [`BenchError::Interrupted`] when the benchmark shall not go on.
    fn step(&self, bench: Bench, text: &str) -> Result<(), BenchError> {
        if (self.progress)(bench, text) {
            Ok(())
        } else {
            Err(BenchError::Interrupted)
        }
    }

    /// The contents to measure on: the one that the user chose, or else the usual ones of the benchmark.
    fn sources(&self, usual: &[Class]) -> Vec<Source> {
        match &self.options.source {
            Some(source) => vec![source.clone()],
            None => usual.iter().copied().map(Source::Class).collect(),
        }
    }

    /// The size in pages, at most `most`.
    fn pages(&self, most: u64) -> u32 {
        let pages = self.options.size.pages().0.clamp(1, most);
        u32::try_from(pages).unwrap_or(u32::MAX)
    }

    fn wants(&self, vs: Vs) -> bool {
        self.options.vs.contains(&vs)
    }

    fn subdirectory(&self, name: &str) -> Result<PathBuf, BenchError> {
        let dir = self.scratch.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(BenchError::io("make a directory")(error))
            }
            _ => Ok(dir),
        }
    }
}

/// Runs the benchmarks. At any time `report` has what was measured so far.
///
/// # Errors
/// [`BenchError`]; the guard restores the machine.
pub fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let peers = peer::Peers::open(setup, report)?;
    for bench in &setup.options.benches {
        match bench {
            Bench::Scan => scan::run(setup, &peers, report)?,
            Bench::Merge => merge::run(setup, &peers, report)?,
            Bench::Compress => compress::run(setup, report)?,
            Bench::Fault => fault::run(setup, &peers, report)?,
            Bench::Swap => swap::run(setup, &peers, report)?,
            Bench::Balloon => balloon::run(setup, report)?,
            Bench::Large => large::run(setup, report)?,
            Bench::Plan => plan::run(setup, report)?,
            Bench::Guests => guests::run(setup, report)?,
            Bench::Victims => guests::victims::run(setup, report)?,
            Bench::Stalls => guests::stalls::run(setup, report)?,
            Bench::Sample => guests::sample::run(setup, report)?,
        }
    }
    Ok(())
}
