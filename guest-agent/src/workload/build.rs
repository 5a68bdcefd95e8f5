//! From specifications to workers: sizes, randomness and content of each.

use std::io;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use thiserror::Error;

use super::content::{Content, hash};
use super::kind::Size;
use super::pageset::{OwnPages, PageSet, Share};
use super::{Sequence, Worker, Workers, WorkloadSpec};
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

/// Builds the workloads of all sequences, or none.
pub(super) fn build<'a>(
    kernel: &Arc<Kernel>,
    sequences: &'a [Sequence],
    seed: u64,
) -> Result<Vec<Vec<Built<'a>>>, StartError> {
    let sizes = sizes(kernel, sequences)?;
    let numbered = (0..).zip(sequences.iter().zip(sizes));
    numbered
        .map(|(number, (sequence, sizes))| {
            let domains =
                std::iter::successors(Some(hash(seed, number)), |last| Some(hash(*last, 0)));
            let workloads = sequence.workloads().iter().zip(sizes).zip(domains);
            workloads
                .map(|((spec, pages), domain)| build_one(kernel, spec, pages, domain))
                .collect()
        })
        .collect()
}

fn build_one<'a>(
    kernel: &Arc<Kernel>,
    spec: &'a WorkloadSpec,
    pages: u32,
    domain: u64,
) -> Result<Built<'a>, StartError> {
    let mut builder = Builder {
        kernel,
        spec,
        pages,
        domain,
    };
    let workers = (spec.kind.build)(&mut builder)?;
    Ok(Built {
        spec,
        pages: builder.pages,
        workers,
    })
}

/// How many pages each workload works on. Workloads without a size share three quarters of RAM, less what the others
/// ask for, but at least an eighth of RAM. Of a sequence the largest workload counts, because it has one at a time.
fn sizes(kernel: &Kernel, sequences: &[Sequence]) -> Result<Vec<Vec<u32>>, StartError> {
    let size = |spec: &WorkloadSpec| (spec.kind.size)(spec, kernel);
    let sizes = sequences
        .iter()
        .map(|sequence| sequence.workloads().iter().map(size).collect())
        .collect::<Result<Vec<Vec<Size>>, _>>()?;
    let ram = u64::from(kernel.ram_capacity());
    let sum = |of: &dyn Fn(Size) -> u32| -> u64 {
        let largest = |sizes: &Vec<Size>| sizes.iter().map(|size| of(*size)).max();
        sizes.iter().filter_map(largest).map(u64::from).sum()
    };
    let asked = sum(&|size| match size {
        Size::Memory(pages) => pages,
        Size::Cache(_) | Size::Passing(_) | Size::Rest(_) => 0,
    });
    let rest = (ram * 3 / 4).saturating_sub(asked).max(ram / 8);
    let parts = sum(&|size| u32::from(matches!(size, Size::Rest(_)))).max(1);
    let part = (rest / parts).clamp(1, u32::MAX.into()) as u32;
    let needed = sum(&|size| match size {
        Size::Memory(pages) | Size::Passing(pages) => pages,
        Size::Cache(_) => 0,
        Size::Rest(least) => part.max(least),
    });
    let pages = |size: &Size| match *size {
        Size::Memory(pages) | Size::Cache(pages) | Size::Passing(pages) => pages,
        Size::Rest(least) => part.max(least),
    };
    let capacity = kernel.capacity();
    if needed > capacity {
        let asked = needed;
        return Err(StartError::TooLarge {
            asked,
            capacity,
            ram,
        });
    }
    let pages = |sizes: &Vec<Size>| sizes.iter().map(pages).collect();
    Ok(sizes.iter().map(pages).collect())
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
