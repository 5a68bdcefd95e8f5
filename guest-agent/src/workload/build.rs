//! From specifications to workers: sizes, files and seeds.

use std::io;
use std::path::Path;
use std::sync::Arc;

use memvisor_wire::PAGE_SIZE;
use rand::SeedableRng;
use rand::rngs::StdRng;
use thiserror::Error;

use super::churn::Churn;
use super::content::{Content, hash};
use super::files::{Reader, Shelf};
use super::image::Image;
use super::kv::{Client, Store};
use super::pageset::{PageSet, Share};
use super::stream::Stream;
use super::toucher::Toucher;
use super::truth::Truth;
use super::zipf::Popularity;
use super::{Kind, Worker, WorkloadSpec};
use crate::kernel::{Kernel, KernelError};

/// The most values one `kv` can have.
const MAX_KEYS: u64 = 1 << 31;

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
    /// A store would have too many values.
    #[error("`{spec}` makes {keys} values; allowed: up to {MAX_KEYS}; make value= larger")]
    TooManyKeys {
        /// The workload.
        spec: String,
        /// How many values.
        keys: u64,
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
pub(super) struct Crew {
    pub(super) spec: WorkloadSpec,
    pub(super) pages: u32,
    pub(super) workers: Vec<Box<dyn Worker>>,
}

/// Builds all workloads, or none.
pub(super) fn build(
    kernel: &Arc<Kernel>,
    specs: &[WorkloadSpec],
    seed: u64,
) -> Result<Vec<Crew>, StartError> {
    let sizes = sizes(kernel, specs)?;
    let numbered = (0..).zip(specs.iter().zip(sizes));
    numbered
        .map(|(number, (spec, pages))| {
            Builder {
                kernel,
                spec,
                pages,
                domain: hash(seed, number),
            }
            .crew()
        })
        .collect()
}

/// How many pages each workload works on. Workloads without a size share three quarters of RAM, less what the others
/// ask for, but at least an eighth of RAM.
fn sizes(kernel: &Kernel, specs: &[WorkloadSpec]) -> Result<Vec<u32>, StartError> {
    let known = specs
        .iter()
        .map(|spec| known_size(kernel, spec))
        .collect::<Result<Vec<_>, _>>()?;
    // The page cache gives way, so files need no memory of their own.
    let in_memory = |(spec, pages): (&WorkloadSpec, u64)| match spec.kind {
        Kind::Files { .. } => 0,
        _ => pages,
    };
    let asked = specs
        .iter()
        .zip(known.iter().map(|size| size.unwrap_or(0).into()));
    let rest = (u64::from(kernel.ram_capacity()) * 3 / 4)
        .saturating_sub(asked.map(in_memory).sum())
        .max(u64::from(kernel.ram_capacity()) / 8);
    let unknown = known.iter().filter(|size| size.is_none()).count().max(1) as u64;
    let each = (rest / unknown).clamp(1, u32::MAX.into()) as u32;
    let sizes: Vec<u32> = specs
        .iter()
        .zip(known)
        .map(|(spec, size)| size.unwrap_or_else(|| each.max(largest_active(spec))))
        .collect();

    let asked = specs.iter().zip(sizes.iter().map(|size| u64::from(*size)));
    let (asked, capacity) = (asked.map(in_memory).sum(), kernel.capacity());
    if asked > capacity {
        let ram = u64::from(kernel.ram_capacity());
        return Err(StartError::TooLarge {
            asked,
            capacity,
            ram,
        });
    }
    Ok(sizes)
}

/// The size that a workload asks for or has by its nature; `None` for a workload that takes what it gets.
fn known_size(kernel: &Kernel, spec: &WorkloadSpec) -> Result<Option<u32>, StartError> {
    Ok(match &spec.kind {
        Kind::Image { path, .. } => Some(image(path, spec)?.pages()),
        Kind::Idle => Some(spec.pages.unwrap_or(0)),
        Kind::Files { .. } => Some(spec.pages.unwrap_or(kernel.ram_capacity())),
        _ => spec.pages,
    })
}

fn image(path: &Path, spec: &WorkloadSpec) -> Result<Truth, KernelError> {
    Truth::open(path, spec.pages.unwrap_or(u32::MAX)).map_err(|source| KernelError::File {
        path: path.to_owned(),
        source,
    })
}

fn largest_active(spec: &WorkloadSpec) -> u32 {
    match &spec.kind {
        Kind::Toucher { active, then, .. } => {
            let later = then.iter().map(|(_, pages)| *pages);
            active.iter().copied().chain(later).max().unwrap_or(0)
        }
        _ => 0,
    }
}

struct Builder<'a> {
    kernel: &'a Arc<Kernel>,
    spec: &'a WorkloadSpec,
    pages: u32,
    domain: u64,
}

impl Builder<'_> {
    fn crew(mut self) -> Result<Crew, StartError> {
        let workers = match &self.spec.kind {
            Kind::Idle if self.pages == 0 => Vec::new(),
            Kind::Idle => self.streams(true),
            Kind::Stream => self.streams(false),
            Kind::Toucher {
                active,
                then,
                write,
            } => {
                let active = active.unwrap_or(self.pages);
                let set = self.page_set();
                self.each(|share, random| Toucher {
                    set: Arc::clone(&set),
                    share,
                    active,
                    then: then.clone(),
                    write: *write,
                    random,
                    started: None,
                })
            }
            Kind::Kv { write, zipf, value } => self.store(*write, *zipf, *value)?,
            Kind::Files { path, zipf } => {
                let shelf = Arc::new(Shelf::open(self.kernel, path, self.pages)?);
                self.pages = shelf.pages();
                let popularity = Popularity::new(shelf.pages().into(), *zipf);
                self.each(|share, random| Reader {
                    shelf: Arc::clone(&shelf),
                    share,
                    popularity,
                    random,
                })
            }
            Kind::Image { path, attach } => self.image(path, *attach)?,
            Kind::Churn => self.churn(),
        };
        Ok(Crew {
            spec: self.spec.clone(),
            pages: self.pages,
            workers,
        })
    }

    /// One worker per thread, each with a share and randomness of its own.
    fn each<W: Worker + 'static>(&self, make: impl Fn(Share, StdRng) -> W) -> Vec<Box<dyn Worker>> {
        let threads = self.spec.threads;
        (0..threads)
            .map(|thread| {
                let seed = hash(self.domain, thread.into());
                let worker = make(Share { thread, threads }, StdRng::seed_from_u64(seed));
                Box::new(worker) as Box<dyn Worker>
            })
            .collect()
    }

    fn content(&self) -> Content {
        Content::new(self.spec.content, self.domain)
    }

    fn page_set(&self) -> Arc<PageSet> {
        Arc::new(PageSet::map(self.kernel, self.pages, self.content()))
    }

    fn streams(&self, idle: bool) -> Vec<Box<dyn Worker>> {
        let set = self.page_set();
        self.each(|share, _| Stream {
            set: Arc::clone(&set),
            share,
            next: 0,
            idle,
        })
    }

    fn store(&self, write: u8, zipf: f64, value: u16) -> Result<Vec<Box<dyn Worker>>, StartError> {
        let keys = u64::from(self.pages) * (PAGE_SIZE as u64 / u64::from(value));
        if keys > MAX_KEYS {
            return Err(StartError::TooManyKeys {
                spec: self.spec.to_string(),
                keys,
            });
        }
        let store = Store::map(self.kernel, self.pages, value.into(), self.content());
        let popularity = Popularity::new(store.keys(), zipf);
        let store = Arc::new(store);
        Ok(self.each(|share, random| Client {
            store: Arc::clone(&store),
            share,
            popularity,
            write,
            random,
        }))
    }

    fn image(&mut self, path: &Path, attach: bool) -> Result<Vec<Box<dyn Worker>>, StartError> {
        let truth = Arc::new(image(path, self.spec)?);
        self.pages = truth.pages();
        let region = Arc::new(self.kernel.map_anon(truth.pages()));
        Ok(self.each(|share, _| Image {
            truth: Arc::clone(&truth),
            region: Arc::clone(&region),
            share,
            next: 0,
            loaded: 0,
            // A stage attaches neighbouring pages, and only a single thread has neighbouring pages: several
            // threads have every n-th page each.
            kernel: (attach && self.spec.threads == 1).then(|| Arc::clone(self.kernel)),
            stage: None,
            attached: 0,
            asked: 0,
            is_willing: false,
        }))
    }

    fn churn(&self) -> Vec<Box<dyn Worker>> {
        self.each(|share, random| Churn {
            kernel: Arc::clone(self.kernel),
            pages: share.count(self.pages),
            content: self.spec.content,
            domain: hash(self.domain, share.thread.into()),
            random,
            round: 0,
            region: None,
        })
    }
}
