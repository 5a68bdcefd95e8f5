//! From specifications to workers: sizes, randomness and content of each.

use std::io;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use thiserror::Error;

use super::content::{Content, hash};
use super::kind::Size;
use super::pageset::{OwnPages, PageSet, Share};
use super::{Worker, Workers, WorkloadSpec};
use crate::kernel::{Kernel, KernelError};

/// Why workloads could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The workloads do not fit into the guest.
    #[error(
        "the workloads need {asked} pages of memory, but the guest has {capacity}: {ram} of RAM \
         that it can use and {} on its swap disk; give them a smaller size=, or it a larger RAM or \
         swap disk", capacity - ram
    )]
    TooLarge {
        /// Pages that the workloads need.
        asked: u64,
        /// Pages that the guest has.
        capacity: u64,
        /// The part of `capacity` that is RAM.
        ram: u64,
    },
    /// A workload cannot work with the size that it got.
    #[error("`{spec}` {why}")]
    Size {
        /// The workload.
        spec: String,
        /// What is wrong, what is allowed, and what to do.
        why: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] KernelError),
    /// The system gave no thread.
    #[error("cannot start a thread for `{spec}`")]
    Thread {
        /// The workload.
        spec: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A workload that is ready to go.
pub(super) struct Built<'a> {
    pub(super) spec: &'a WorkloadSpec,
    pub(super) pages: u32,
    /// One for each thread.
    pub(super) workers: Workers,
}

/// Builds all workloads, or none.
pub(super) fn build<'a>(
    kernel: &Arc<Kernel>,
    specs: &'a [WorkloadSpec],
    seed: u64,
) -> Result<Vec<Built<'a>>, StartError> {
    let sizes = sizes(kernel, specs)?;
    let numbered = (0..).zip(specs.iter().zip(sizes));
    numbered
        .map(|(number, (spec, pages))| {
            let mut builder = Builder {
                kernel,
                spec,
                pages,
                domain: hash(seed, number),
            };
            let workers = (spec.kind.build)(&mut builder)?;
            let pages = builder.pages;
            Ok(Built {
                spec,
                pages,
                workers,
            })
        })
        .collect()
}

/// How many pages each workload works on. Workloads without a size share three quarters of RAM, less what the others
/// ask for, but at least an eighth of RAM.
fn sizes(kernel: &Kernel, specs: &[WorkloadSpec]) -> Result<Vec<u32>, StartError> {
    let sizes = specs
        .iter()
        .map(|spec| (spec.kind.size)(spec, kernel))
        .collect::<Result<Vec<_>, _>>()?;
    let ram = u64::from(kernel.ram_capacity());
    let sum = |of: fn(Size) -> u32| -> u64 { sizes.iter().map(|size| u64::from(of(*size))).sum() };
    let asked = sum(|size| match size {
        Size::Memory(pages) => pages,
        Size::Cache(_) | Size::Rest(_) => 0,
    });
    let rest = (ram * 3 / 4).saturating_sub(asked).max(ram / 8);
    let parts = sum(|size| u32::from(matches!(size, Size::Rest(_)))).max(1);
    let part = (rest / parts).clamp(1, u32::MAX.into()) as u32;
    let mut needed = 0;
    let pages = sizes.iter().map(|size| {
        let (pages, in_memory) = match *size {
            Size::Memory(pages) => (pages, pages),
            Size::Cache(pages) => (pages, 0),
            Size::Rest(least) => (part.max(least), part.max(least)),
        };
        needed += u64::from(in_memory);
        pages
    });
    let (pages, capacity) = (pages.collect(), kernel.capacity());
    if needed > capacity {
        let asked = needed;
        return Err(StartError::TooLarge {
            asked,
            capacity,
            ram,
        });
    }
    Ok(pages)
}

/// What a workload is built with.
pub(super) struct Builder<'a> {
    pub(super) kernel: &'a Arc<Kernel>,
    pub(super) spec: &'a WorkloadSpec,
    /// How many pages the workload works on. A workload that finds fewer says so here.
    pub(super) pages: u32,
    /// The seed of the workload's content and of its random numbers.
    pub(super) domain: u64,
}

impl Builder<'_> {
    /// Makes one worker for each thread, each with a share and randomness of its own.
    pub(super) fn each<W: Worker + 'static>(&self, make: impl Fn(Share, StdRng) -> W) -> Workers {
        let threads = self.spec.threads;
        (0..threads)
            .map(|thread| {
                let seed = hash(self.domain, thread.into());
                let worker = make(Share { thread, threads }, StdRng::seed_from_u64(seed));
                Box::new(worker) as Box<dyn Worker>
            })
            .collect()
    }

    /// Like [`each`](Self::each), for workers with pages of their own.
    pub(super) fn each_with_pages<W: Worker + 'static>(
        &self,
        make: impl Fn(OwnPages, StdRng) -> W,
    ) -> Workers {
        let set = Arc::new(PageSet::map(self.kernel, self.pages, self.content()));
        self.each(|share, random| {
            let set = Arc::clone(&set);
            make(OwnPages { set, share }, random)
        })
    }

    pub(super) fn content(&self) -> Content {
        Content::new(self.spec.content, self.domain)
    }
}
