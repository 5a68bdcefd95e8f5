//! Pages of the kernel's own from which the host attaches others.
//!
//! A page that is copied into anonymous memory costs a fault, a page of the host, and later the host's work
//! to find out that other guests have the same. So what is read from an image is put on a *stage*, a few
//! pages that are used again and again, and the host is asked to give the same bytes to pages that hold
//! nothing yet ([`Memory::attach`](crate::shim::Memory::attach)). What it does not do is copied as ever.

use std::fmt;
use std::sync::Arc;

use super::Kernel;
use super::anon::AnonRegion;
use super::pages::PageUse;
use crate::protocol::{GfnRun, PAGE_SIZE};

/// Pages of a stage: so many that asking costs little for each, so few that nobody misses them.
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
    /// How many pages it has.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages.count
    }

    /// Puts bytes on one of its pages.
    ///
    /// # Panics
    /// When it has no such page.
    pub fn put(&self, page: u32, bytes: &[u8; PAGE_SIZE]) {
        let gfn = self.pages.iter().nth(page as usize);
        let gfn = gfn.unwrap_or_else(|| panic!("page {page} of a stage of {}", self.pages()));
        self.kernel.memory.write(gfn, 0, bytes);
    }

    /// Has the host attach the first `count` pages to as many pages of `region` from `first` on that were
    /// never written; how many, from the first on, hold their bytes now. `None` when the kernel has no such pages
    /// to spare, and should rather have its stage back.
    ///
    /// # Panics
    /// When there are not as many pages.
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
