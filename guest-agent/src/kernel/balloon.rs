//! What the balloon takes from the kernel and gives back.

use memvisor_wire::{GfnRun, RunsExt};

use super::{Kernel, KernelError};

/// The most pages (16 MiB) that one call of [`Kernel::balloon_alloc`] reclaims. How often the agent
/// calls thus bounds the rate at which a guest pushes its own memory out for the host.
pub const BALLOON_RECLAIM_PAGES: u32 = 4096;

impl Kernel {
    /// Pins up to `max_pages` pages for the balloon, in runs as long as possible.
    ///
    /// It takes free pages above the high watermark. With `may_reclaim` it drops page cache and
    /// swaps for the rest, at most [`BALLOON_RECLAIM_PAGES`] pages per call. If it returns fewer pages
    /// than asked for, or none, the guest cannot spare more now.
    #[must_use = "pages that are forgotten stay in the balloon for good"]
    pub fn balloon_alloc(&self, max_pages: u32, may_reclaim: bool) -> Vec<GfnRun> {
        let floor = self.pages.high_watermark();
        let mut runs = self.pages.pin(max_pages, floor);
        let missing = max_pages.saturating_sub(runs.pages() as u32);
        if may_reclaim && missing > 0 {
            // Pages that are missing below the floor are reclaimed too, because `pin` leaves the floor free.
            let short = floor.saturating_sub(self.pages.usage().free);
            let want = missing.saturating_add(short).min(BALLOON_RECLAIM_PAGES);
            self.reclaim_now(want);
            runs.extend(self.pages.pin(missing, floor));
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
