//! What the balloon takes from the kernel and gives back.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::FreeMap;
use memvisor_wire::claims::Words;
use memvisor_wire::{Gfn, GfnRun, RunsExt};

use super::{Kernel, KernelError};

/// The most pages (16 MiB) that one call of [`Kernel::balloon_alloc`] reclaims. How often the agent
/// calls thus bounds the rate at which a guest pushes its own memory out for the host.
pub const BALLOON_RECLAIM_PAGES: u32 = 4096;

/// How many pages are reclaimed before they are pinned: few, because other threads allocate meanwhile.
const BATCH: u32 = 64;

/// How long a kernel that stops sharing its map waits for pages that the host is just taking: far longer than a host
/// that runs needs for a batch.
const HIDE_PATIENCE: Duration = Duration::from_secs(2);

impl Kernel {
    /// Pins up to `max_pages` pages for the balloon, in runs as long as possible.
    ///
    /// It takes free pages above the high watermark. With `may_reclaim` it drops page cache and
    /// swaps for the rest, at most [`BALLOON_RECLAIM_PAGES`] pages per call. If it returns fewer pages
    /// than asked for, or none, the guest cannot spare more now.
    #[must_use = "pages that are forgotten stay in the balloon for good"]
    pub fn balloon_alloc(&self, max_pages: u32, may_reclaim: bool) -> Vec<GfnRun> {
        let high = self.pages.high_watermark();
        let mut runs = self.pages.pin(max_pages, high);
        let mut left = if may_reclaim {
            BALLOON_RECLAIM_PAGES
        } else {
            0
        };
        let mut missing = max_pages.saturating_sub(runs.pages() as u32);
        while missing > 0 && left > 0 {
            // The pages that are free now stay free; those that reclaim frees are the balloon's. A busy guest keeps
            // fewer free than the high watermark, and would take all of them before this much is free.
            let free = self.pages.usage().free;
            let floor = free.clamp(self.pages.low_watermark(), high);
            let short = floor.saturating_sub(free);
            let want = missing.saturating_add(short).min(left).min(BATCH);
            let found = self.reclaim_now(want);
            if found.freed == 0 {
                break;
            }
            left = left.saturating_sub(found.freed);
            let more = self.pages.pin(missing, floor);
            missing -= more.pages() as u32;
            runs.extend(more);
        }
        runs
    }

    /// Takes pages back from the balloon. The runs need not be those that were given out. The bytes of
    /// the pages are undefined.
    ///
    /// # Errors
    /// [`KernelError::NotBallooned`] when one of the pages is not in the balloon; then none is
    /// taken.
    pub fn balloon_free(&self, runs: &[GfnRun]) -> Result<(), KernelError> {
        self.pages.unpin(runs)
    }

    /// Makes up to `max` pages free by dropping page cache and paging out, at most [`BALLOON_RECLAIM_PAGES`]. Returns
    /// how many.
    pub fn balloon_reclaim(&self, max: u32) -> u32 {
        let most = max.min(BALLOON_RECLAIM_PAGES);
        let mut freed = 0;
        while freed < most {
            match self.reclaim_now((most - freed).min(BATCH)).freed {
                0 => break,
                more => freed += more,
            }
        }
        freed
    }

    /// At most `max` free pages from `from` on, and where to go on; `None` at the end of RAM. With `fresh`, it lists only
    /// those that the host has not [dropped](Self::note_dropped) since they came free. A moment later some may be in use.
    #[must_use]
    pub fn free_pages(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>) {
        self.pages.list_free(from, max, fresh)
    }

    /// Pins those of the pages that are free at this moment, as [`Self::balloon_alloc`] does; which ones. As many as the
    /// high watermark that hold memory are left, for the next allocations.
    #[must_use = "pages that are forgotten stay in the balloon for good"]
    pub fn pin_free(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        self.pages.pin_free(runs)
    }

    /// Notes that the host has dropped these pages, which are free: they hold nothing until they are used, and other
    /// free pages are used before them.
    pub fn note_dropped(&self, runs: &[GfnRun]) {
        self.pages.note_dropped(runs);
    }

    /// Shows free pages to the host in a map that it shares: from now on it takes them without asking. Those up to the
    /// high watermark are kept from it. No page may be in the balloon.
    pub fn show_free(&self, words: Arc<dyn Words>) {
        self.pages.show(FreeMap::new(words, self.pages.pages()));
    }

    /// Looks which pages the host has taken and given back. Returns how many it has, and how many more it may take.
    pub fn settle_free(&self) -> (u32, u32) {
        self.pages.settle()
    }

    /// Shows no page any more, and takes back those that the host has. Some stay in the balloon if the host stands
    /// still while it takes them; they come back when a map is shown again.
    pub fn hide_free(&self) {
        let until = Instant::now() + HIDE_PATIENCE;
        loop {
            match self.pages.hide() {
                0 => return,
                pages if Instant::now() > until => {
                    tracing::warn!(
                        pages,
                        "the host was lost while it took pages; they stay unused"
                    );
                    return;
                }
                _ => thread::yield_now(),
            }
        }
    }
}
