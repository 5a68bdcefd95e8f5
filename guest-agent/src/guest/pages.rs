//! Connects the kernel and the balloon agent in both directions.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use memvisor_wire::balloon::{Stat, StatTag, map_words};
use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};

use crate::balloon::{Agent, FreePages, PageSource, Settled};
use crate::kernel::{Kernel, PressureHook};
use crate::outside::OutsideAgent;
use crate::shim::map_shared_words;

/// How long an allocation waits for the balloon when there is nothing left to reclaim.
const RELIEF_TIMEOUT: Duration = Duration::from_secs(2);

/// The kernel, as a source of pages for the agent.
#[derive(Debug)]
pub(super) struct KernelPages(Arc<Kernel>);

impl KernelPages {
    pub(super) const fn new(kernel: Arc<Kernel>) -> Self {
        Self(kernel)
    }
}

impl PageSource for KernelPages {
    fn total_pages(&self) -> u64 {
        self.0.stats().total
    }

    fn allocate(&self, max: u32, may_reclaim: bool) -> Vec<GfnRun> {
        self.0.balloon_alloc(max, may_reclaim)
    }

    fn release(&self, runs: &[GfnRun]) {
        // The agent releases only pages that it was given. If it ever released others, the kernel
        // would free none of them: the pages stay pinned, which costs memory and breaks nothing.
        if let Err(error) = self.0.balloon_free(runs) {
            tracing::error!(%error, "the balloon agent released pages that it does not have");
        }
    }

    fn stats(&self) -> Vec<Stat> {
        let stats = self.0.stats();
        let bytes = |pages: u64| pages * PAGE_SIZE as u64;
        vec![
            Stat::new(StatTag::SWAP_IN, bytes(stats.swap_in)),
            Stat::new(StatTag::SWAP_OUT, bytes(stats.swap_out)),
            Stat::new(StatTag::MAJOR_FAULTS, stats.major_faults),
            Stat::new(StatTag::MINOR_FAULTS, stats.minor_faults),
            Stat::new(StatTag::FREE_MEMORY, bytes(stats.free)),
            Stat::new(
                StatTag::TOTAL_MEMORY,
                bytes(stats.total.saturating_sub(stats.balloon)),
            ),
            Stat::new(StatTag::AVAILABLE_MEMORY, bytes(stats.available)),
            Stat::new(StatTag::DISK_CACHES, bytes(stats.caches)),
            Stat::new(StatTag::OOM_KILLS, stats.oom),
            Stat::new(StatTag::SWAP_WAIT, stats.swap_wait_us),
        ]
    }

    fn free_pages(&self) -> Option<&dyn FreePages> {
        Some(self)
    }
}

impl FreePages for KernelPages {
    fn list(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>) {
        self.0.free_pages(from, max, fresh)
    }

    fn pin(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        self.0.pin_free(runs)
    }

    fn dropped(&self, runs: &[GfnRun]) {
        self.0.note_dropped(runs);
    }

    fn reclaim(&self, max: u32) -> u32 {
        self.0.balloon_reclaim(max)
    }

    fn show(&self, map: OwnedFd) -> io::Result<()> {
        let pages = u32::try_from(self.total_pages()).map_err(io::Error::other)?;
        self.0
            .show_free(Arc::new(map_shared_words(&map, map_words(pages))?));
        Ok(())
    }

    fn settle(&self) -> Settled {
        let (taken, shown) = self.0.settle_free();
        Settled { taken, shown }
    }

    fn hide(&self) {
        self.0.hide_free();
    }
}

/// The agent, as the source of relief for a kernel that is out of memory.
#[derive(Debug)]
pub(super) enum Relief {
    Bundled(Agent),
    Program(OutsideAgent),
}

impl PressureHook for Relief {
    fn relieve(&self, pages: u32) -> bool {
        let pages = u64::from(pages);
        let returned = match self {
            Self::Bundled(agent) => agent.relieve(pages, RELIEF_TIMEOUT),
            Self::Program(agent) => agent.relieve(pages, RELIEF_TIMEOUT),
        };
        returned > 0
    }
}

#[cfg(test)]
mod tests;
