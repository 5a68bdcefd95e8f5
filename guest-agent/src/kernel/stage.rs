//! Pages of the kernel's own from which the host attaches others.
//!
//! Copying a page into anonymous memory costs a fault, a page of the host, and later the host's work of
//! finding out that other guests have the same page. So the bytes of an image are put on a *stage*, a few
//! pages that are used again and again, and the host is asked to give the same bytes to pages that hold
//! nothing yet ([`Memory::attach`](crate::shim::Memory::attach)). Pages that the host does not attach are
//! copied as usual.

use std::fmt;
use std::sync::Arc;

use memvisor_wire::{GfnRun, PAGE_SIZE};

use super::Kernel;
use super::anon::AnonRegion;
use super::pages::PageUse;

/// Pages of a stage: enough to make one request cheap per page, and few enough that the guest does not miss them.
const STAGE_PAGES: u32 = 256;

/// See the module text. Dropping it frees its pages.
pub struct Stage {
    kernel: Arc<Kernel>,
    pages: GfnRun,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// A stage, if there are enough free pages side by side.
    #[must_use]
    pub fn stage(self: &Arc<Self>) -> Option<Stage> {
        let pages = self.pages.take_run(STAGE_PAGES, None, PageUse::Kernel)?;
        Some(Stage {
            kernel: Arc::clone(self),
            pages,
        })
    }
}

impl Stage {
    /// How many pages the stage has.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages.count
    }

    /// Puts bytes on one page of the stage.
    ///
    /// # Panics
    /// When the stage has no such page.
    pub fn put(&self, page: u32, bytes: &[u8; PAGE_SIZE]) {
        let gfn = self.pages.iter().nth(page as usize);
        let gfn = gfn.unwrap_or_else(|| panic!("page {page} of a stage of {}", self.pages()));
        self.kernel.memory.write(gfn, 0, bytes);
    }

    /// Asks the host to give the bytes of the first `count` stage pages to the pages of `region` from `first` on
    /// that were never written. Returns how many of these, counted from `first`, hold their bytes now. `None` when
    /// the kernel has no run of free pages to spare; the caller should then drop the stage.
    ///
    /// # Panics
    /// When the stage or the region has too few pages.
    pub fn attach(&self, region: &AnonRegion, first: u32, count: u32) -> Option<u32> {
        assert!(count <= self.pages(), "{count} pages of a stage");
        region.adopt(first, count, |pages| {
            self.kernel.memory.attach(pages, self.pages.start)
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for gfn in self.pages.iter() {
            self.kernel.pages.release(gfn, PageUse::Kernel);
        }
    }
}
