//! What the kernel counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Kernel;

const HALF: Duration = Duration::from_nanos(500);

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds a time, rounded to whole microseconds.
    pub(super) fn add_time(&self, time: Duration) {
        self.add((time + HALF).as_micros() as u64);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The events since boot; the fields are those of [`KernelStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) swap_in: Counter,
    pub(super) swap_out: Counter,
    pub(super) swap_errors: Counter,
    pub(super) written_back: Counter,
    pub(super) swap_wait_us: Counter,
    pub(super) major_faults: Counter,
    pub(super) minor_faults: Counter,
    pub(super) oom: Counter,
    pub(super) alloc_stall: Counter,
    pub(super) async_scan: Counter,
    pub(super) async_reclaim: Counter,
    pub(super) direct_scan: Counter,
    pub(super) direct_reclaim: Counter,
    pub(super) relief: Counter,
}

/// The state of the guest's memory, in pages, and events since boot.
///
/// The fields up to `direct_reclaim` mean what virtio-balloon reports to its host under these names
/// (`VIRTIO_BALLOON_S_*`). The fields after it are our own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KernelStats {
    /// Pages read back from the swap disk.
    pub swap_in: u64,
    /// Pages written to the swap disk.
    pub swap_out: u64,
    /// Faults that had to read the swap disk or a file.
    pub major_faults: u64,
    /// Faults that were served without I/O: first writes to anonymous pages.
    pub minor_faults: u64,
    /// Pages in the free list.
    pub free: u64,
    /// Pages the guest has. Pages in the balloon count, because they come back under pressure.
    pub total: u64,
    /// An estimate of the pages that can be allocated without swapping: the free pages above the low
    /// watermark and the page cache, less a part that stays useful (half of the cache, or as much as
    /// the low watermark if that is less). Reclaim takes the page cache first, so no page is swapped
    /// before this many were allocated. Dirty pages of the cache count, although they are written first.
    pub available: u64,
    /// Pages in the page cache.
    pub caches: u64,
    /// Allocations that failed for good.
    pub oom: u64,
    /// Allocations that found no free page and had to reclaim one.
    pub alloc_stall: u64,
    /// Pages that the clock looked at because memory was below the low watermark.
    pub async_scan: u64,
    /// Pages of `async_scan` that the clock freed.
    pub async_reclaim: u64,
    /// Pages that the clock looked at because an allocation or the balloon waited for one.
    pub direct_scan: u64,
    /// Pages of `direct_scan` that the clock freed.
    pub direct_reclaim: u64,
    /// Pages of anonymous memory in RAM.
    pub anon: u64,
    /// Pages in the balloon.
    pub balloon: u64,
    /// Slots of the swap disk.
    pub swap_total: u64,
    /// Slots of the swap disk that hold a page.
    pub swap_used: u64,
    /// Pages that stayed in RAM because the swap disk, or the disk of their file, failed to write them.
    pub swap_errors: u64,
    /// Pages of files that were written back to their disk.
    pub written_back: u64,
    /// How often the kernel asked for relief because nothing could be reclaimed.
    pub relief: u64,
    /// How many microseconds threads waited for the swap disk, summed over the threads: to read a page back, or to
    /// write other pages before an allocation. Writes for the balloon do not count, because no thread waits for them.
    pub swap_wait_us: u64,
}

impl Kernel {
    /// What memory is used for now, and the events since boot. Cheap: a few short locks.
    #[must_use]
    pub fn stats(&self) -> KernelStats {
        let usage = self.pages.usage();
        let low = u64::from(self.pages.low_watermark());
        let (free, caches) = (u64::from(usage.free), u64::from(usage.cache));
        let counters = &self.counters;
        KernelStats {
            swap_in: counters.swap_in.get(),
            swap_out: counters.swap_out.get(),
            major_faults: counters.major_faults.get(),
            minor_faults: counters.minor_faults.get(),
            free,
            total: u64::from(self.pages.pages()),
            available: free.saturating_sub(low) + caches - low.min(caches / 2),
            caches,
            oom: counters.oom.get(),
            alloc_stall: counters.alloc_stall.get(),
            async_scan: counters.async_scan.get(),
            async_reclaim: counters.async_reclaim.get(),
            direct_scan: counters.direct_scan.get(),
            direct_reclaim: counters.direct_reclaim.get(),
            anon: u64::from(usage.anon),
            balloon: u64::from(usage.balloon),
            swap_total: u64::from(self.swap.pages()),
            swap_used: u64::from(self.swap.used()),
            swap_errors: counters.swap_errors.get(),
            written_back: counters.written_back.get(),
            relief: counters.relief.get(),
            swap_wait_us: counters.swap_wait_us.get(),
        }
    }
}
