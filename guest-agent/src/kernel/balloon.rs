//! What the balloon takes from the kernel and gives back.

use memvisor_wire::{GfnRun, RunsExt};

use super::{Kernel, KernelError};

/// The most pages (16 MiB) that one call of [`Kernel::balloon_alloc`] reclaims. How often the agent
/// calls thus bounds the rate at which a guest pushes its own memory out for the host.
pub const BALLOON_RECLAIM_PAGES: u32 = 4096;

/// How many pages are reclaimed before they are pinned: few, because other threads allocate meanwhile.
const BATCH: u32 = 64;

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
}
