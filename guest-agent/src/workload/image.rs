//! `image`: brings a file into memory, as a boot does, then re-reads that memory slowly. All guests with
//! the same image begin with equal memory. The host is asked to attach the pages; pages that it does not
//! attach are copied.

use std::sync::Arc;

use super::kind::{Allowed, Kind, Need, PAUSE, Parameter, RATE, SIZE, Size, parse_yes};
use super::truth::Truth;
use super::{Failure, Work, Worker, WorkloadSpec};
use crate::kernel::{AnonRegion, Kernel, KernelError, Stage};
use memvisor_wire::PAGE_SIZE;

pub(super) const KIND: Kind = Kind {
    usage: "image:PATH",
    does: "brings a file into memory as a boot does, then re-reads it slowly",
    // Slow, because the working set of a booted system is small.
    parameters: &[SIZE, ATTACH, RATE.or("4M"), PAUSE],
    need: |spec| Need::File(spec.pages),
    size: |spec, _| Ok(Size::Memory(open(spec)?.pages())),
    build: |builder| {
        let truth = Arc::new(open(builder.spec)?);
        builder.pages = truth.pages();
        let region = Arc::new(builder.kernel.map_anon(truth.pages()));
        let attach = builder.spec.get(&ATTACH, parse_yes);
        Ok(builder.each(|_, _| Boot {
            truth: Arc::clone(&truth),
            region: Arc::clone(&region),
            next: 0,
            loaded: 0,
            kernel: attach.then(|| Arc::clone(builder.kernel)),
            stage: None,
            attached: 0,
            asked: 0,
            is_willing: false,
        }))
    },
    ..Kind::PLAIN
};

const ATTACH: Parameter = Parameter {
    name: "attach",
    default: Some("yes"),
    allowed: Allowed::Text("yes or no", |text| parse_yes(text).is_some()),
    effect: "whether the host is asked to attach the pages that it has already, so that guests of one image \
             share them from the start; all other pages are copied",
};

fn open(spec: &WorkloadSpec) -> Result<Truth, KernelError> {
    let path = spec.path();
    Truth::open(path, spec.pages.unwrap_or(u32::MAX)).map_err(|source| KernelError::File {
        path: path.to_owned(),
        source,
    })
}

/// The thread that boots.
#[derive(Debug)]
struct Boot {
    truth: Arc<Truth>,
    region: Arc<AnonRegion>,
    next: u32,
    /// How many pages have been brought in so far: a guest can be told to end while it boots.
    loaded: u32,
    /// The kernel that gives a stage; `None` if the host shall attach nothing (more).
    kernel: Option<Arc<Kernel>>,
    /// The stage, while there are pages left for which the host is to be asked.
    stage: Option<Stage>,
    /// Pages below this one need no copy: they were attached, or copied earlier.
    attached: u32,
    /// Before this page, the host is not asked again: it was asked, or the pages are to be copied.
    asked: u32,
    /// Whether the host attached everything at the last request.
    is_willing: bool,
}

/// How many pages to ask for if the host was not willing the last time, or was never asked.
const PROBE: u32 = 16;

impl Boot {
    /// Asks the host to attach pages from `first` on. If the host does not attach all of them, as many pages
    /// as a stage has are brought in before it is asked again, because it may be short of memory for a while.
    fn attach(&mut self, first: u32) -> Result<(), Failure> {
        let Some(kernel) = &self.kernel else {
            return Ok(());
        };
        if self.stage.is_none() {
            self.stage = kernel.stage();
        }
        let left = self.truth.pages() - first;
        let attached = match &self.stage {
            Some(stage) => {
                // A host that refused is asked for a few pages only: what is staged in vain was read for nothing.
                let most = if self.is_willing {
                    stage.pages()
                } else {
                    PROBE
                };
                let count = most.min(left);
                let mut bytes = [0; PAGE_SIZE];
                for page in 0..count {
                    self.truth.read(first + page, &mut bytes)?;
                    stage.put(page, &bytes);
                }
                let attached = stage.attach(&self.region, first, count);
                self.is_willing = attached == Some(count);
                let asked = if self.is_willing {
                    count
                } else {
                    stage.pages()
                };
                self.asked = first + asked.min(left);
                attached
            }
            None => None,
        };
        self.attached = first + attached.unwrap_or(0);
        if attached.is_none() || self.asked == self.truth.pages() {
            (self.kernel, self.stage) = (None, None);
        }
        Ok(())
    }
}

impl Worker for Boot {
    fn to_load(&self) -> u32 {
        self.truth.pages()
    }

    fn load(&mut self, page: u32) -> Result<Work, Failure> {
        if page >= self.asked {
            self.attach(page)?;
        }
        if page >= self.attached {
            let mut bytes = [0; PAGE_SIZE];
            self.truth.read(page, &mut bytes)?;
            self.region
                .write(u64::from(page) * PAGE_SIZE as u64, &bytes)?;
        }
        self.loaded = page + 1;
        Ok(Work::written(PAGE_SIZE))
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let count = self.to_load();
        if count == 0 {
            return Ok(None);
        }
        let page = self.next;
        self.next = (page + 1) % count;
        self.verify(page).map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.loaded
    }

    fn verify(&mut self, page: u32) -> Result<Work, Failure> {
        let mut found = [0; PAGE_SIZE];
        self.region
            .read(u64::from(page) * PAGE_SIZE as u64, &mut found)?;
        self.truth.judge(page, &found, || self.region.gfn_of(page))
    }
}
