//! `image`: brings a file into memory, as a boot does, then re-reads that memory slowly. All guests with
//! the same image begin with equal memory. The host is asked to attach the pages; pages that it does not
//! attach are copied.

use std::sync::Arc;

use memvisor_wire::PAGE_SIZE;

use super::pageset::Share;
use super::truth::Truth;
use super::{Failure, Work, Worker};
use crate::kernel::{AnonRegion, Kernel, Stage};

/// The thread that boots.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) truth: Arc<Truth>,
    pub(super) region: Arc<AnonRegion>,
    pub(super) share: Share,
    pub(super) next: u32,
    /// How many pages have been brought in so far: a guest can be told to end while it boots.
    pub(super) loaded: u32,
    /// The kernel that gives a stage; `None` if the host shall attach nothing (more).
    pub(super) kernel: Option<Arc<Kernel>>,
    /// The stage, while there are pages left for which the host is to be asked.
    pub(super) stage: Option<Stage>,
    /// Pages below this one need no copy: they were attached, or copied earlier.
    pub(super) attached: u32,
    /// Before this page, the host is not asked again: it was asked, or the pages are to be copied.
    pub(super) asked: u32,
    /// Whether the host attached everything at the last request.
    pub(super) is_willing: bool,
}

/// How many pages to ask for if the host was not willing the last time, or was never asked.
const PROBE: u32 = 16;

impl Image {
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

impl Worker for Image {
    fn to_load(&self) -> u32 {
        self.share.count(self.truth.pages())
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        let page = self.share.page(number);
        if page >= self.asked {
            self.attach(page)?;
        }
        if page >= self.attached {
            let mut bytes = [0; PAGE_SIZE];
            self.truth.read(page, &mut bytes)?;
            self.region
                .write(u64::from(page) * PAGE_SIZE as u64, &bytes)?;
        }
        self.loaded = number + 1;
        Ok(Work::written(PAGE_SIZE))
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let count = self.to_load();
        if count == 0 {
            return Ok(None);
        }
        let number = self.next % count;
        self.next = (number + 1) % count;
        self.verify(number).map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.loaded
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        let page = self.share.page(number);
        let mut found = [0; PAGE_SIZE];
        self.region
            .read(u64::from(page) * PAGE_SIZE as u64, &mut found)?;
        self.truth.judge(page, &found, || self.region.gfn_of(page))
    }
}
