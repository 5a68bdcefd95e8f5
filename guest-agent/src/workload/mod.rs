//! What guests run, and how they know that none of their bytes was lost.
//!
//! A memory manager that returns wrong bytes once in a billion reads passes every benchmark. So
//! every workload here verifies every byte it reads. The naive way keeps a second copy of all
//! memory, which would cost what overcommitment saves. Here the content of memory is a function of
//! its writer (a domain made of the guest's seed and the workload), its place (the page or the item)
//! and the number of writes (a version). Only the versions are kept, in the heap of the process,
//! which the host does not touch. Bytes read from a file are compared with the file or with a hash of
//! its page. When a guest stops, a last pass verifies everything that its workloads own.
//!
//! Content also decides how well memory can be shared and compressed; see [`Mix`].
//!
//! - [`WorkloadSpec`]: what to run, as text; [`Sequence`]: what to run one after the other.
//! - [`Runner`]: runs several workloads at once, each on threads of its own, and stops them.
//! - [`Report`]: what the workloads have done so far; [`Mismatch`]: a page that was wrong.
//!
//! Each thread owns a worker. A call of the worker does one small piece of work. Between two calls the
//! thread looks whether it shall stop, waits as its rate demands, and counts.

mod boot;
mod build;
mod churn;
mod clocked;
mod compile;
mod content;
mod dbench;
mod diskset;
mod files;
mod idle;
mod image;
mod kind;
mod kv;
mod pace;
mod pageset;
mod profile;
mod report;
mod runner;
mod sequence;
mod spec;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod toucher;
mod truth;
mod turns;
mod zipf;

use std::ops::Add;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

pub use build::StartError;
pub use content::Mix;
pub use kind::{Allowed, Kind, MAX_THREADS, Need, Parameter, long_help, short_help};
pub use profile::{Profile, SIZES};
pub use report::{Latency, Mismatch, Phase, Report, WorkloadReport};
pub use runner::{LastLook, Look, Progress, Runner};
pub use sequence::Sequence;
pub use spec::{SpecError, WorkloadSpec};

use self::pageset::OwnPages;
use crate::kernel::KernelError;

/// The kinds of workloads. To add one, see docs/extending.md.
pub const KINDS: &[&Kind] = &[
    &idle::KIND,
    &stream::KIND,
    &toucher::KIND,
    &kv::KIND,
    &dbench::KIND,
    &compile::KIND,
    &boot::KIND,
    &files::KIND,
    &image::KIND,
    &churn::KIND,
];

/// The bytes and pages of one piece of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Work {
    written: u64,
    verified: u64,
    pages_verified: u64,
}

impl Work {
    const fn written(bytes: usize) -> Self {
        Self {
            written: bytes as u64,
            verified: 0,
            pages_verified: 0,
        }
    }

    /// The work of comparing `bytes` bytes of one page, which were right.
    const fn verified(bytes: usize) -> Self {
        Self {
            written: 0,
            verified: bytes as u64,
            pages_verified: 1,
        }
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            verified: self.verified + other.verified,
            pages_verified: self.pages_verified + other.pages_verified,
        }
    }
}

/// Why a piece of work was not done.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    #[error("`{}` was changed while a workload read it", .0.display())]
    FileChanged(PathBuf),
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        Self::Mismatch(Box::new(mismatch))
    }
}

/// One worker for each thread of a workload.
type Workers = Vec<Box<dyn Worker>>;

/// What one thread of a workload does. Each call works on about one page.
trait Worker: Send {
    /// The pages that this thread fills before its first step and verifies in the last pass. A worker that owns
    /// something else says so by `to_load`, `load`, `to_verify` and `verify`.
    fn pages(&self) -> Option<&OwnPages> {
        None
    }

    /// How many pieces this thread has to load.
    fn to_load(&self) -> u32 {
        self.pages().map_or(0, OwnPages::count)
    }

    /// Writes piece `number` for the first time. A failure changes nothing.
    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        let write = |pages: &OwnPages| pages.write(number);
        self.pages().map_or(Ok(Work::default()), write)
    }

    /// One operation or a part of one; `None` when there is nothing to do, now or ever.
    fn step(&mut self) -> Result<Option<Work>, Failure>;

    /// After a step with nothing to do: how long that lasts; `None` means for ever.
    fn idle_for(&self) -> Option<Duration> {
        None
    }

    /// Whether the last step was not the end of its operation. Of a kind whose operations take many steps.
    fn is_amid_operation(&self) -> bool {
        false
    }

    /// Whether the thread has done all that there is to do, ever.
    fn is_over(&self) -> bool {
        false
    }

    /// How many pieces the last pass of this thread has to verify.
    fn to_verify(&self) -> u32 {
        self.to_load()
    }

    /// Verifies piece `number`.
    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        let verify = |pages: &OwnPages| pages.verify(number);
        self.pages().map_or(Ok(Work::default()), verify)
    }
}
