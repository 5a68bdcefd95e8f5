//! What happened to the pages of one VM, counted where it happens.
//!
//! Each counter is exact; counters that are read together may be of different moments. Pages first move and are then
//! counted, so whoever reads a counter and then the page table finds there what was counted. Evictions are the
//! exception: they are counted when the page is stored, which is before it moves.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Counter,)*
        }

        #[cfg(test)]
        impl $name {
            /// All of them, by name.
            pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.get()),)*]
            }
        }
    };
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn one(&self) {
        self.add(1);
    }

    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        // Release pairs with the Acquire of `get`: whoever sees the count sees what was done before it.
        self.0.fetch_add(count, Ordering::Release);
    }

    /// The number so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire pairs with the Release of `add`.
        self.0.load(Ordering::Acquire)
    }
}

counters!(
    /// Counters of one VM. All count pages unless they say otherwise.
    Stats {
        /// Given as zeroes because the guest had nothing there.
        first_touch,
        /// Brought back from the compression cache.
        refill_zip,
        /// Brought back from the swap file.
        refill_swap,
        /// Shared pages that the guest wrote, so that it got copies of its own.
        breaks,
        /// First touches that the guest served itself; counted in `first_touch` too.
        inline_touches,
        /// Refills from the cache that the guest served itself; counted in `refill_zip` too.
        inline_refills,
        /// Refills from the swap file that the guest served itself; counted in `refill_swap` too.
        inline_swap_ins,
        /// Breaks that the guest served itself; counted in `breaks` too.
        inline_breaks,
        /// Brought back from the swap file without being asked for.
        unswapped,
        /// Ballooned pages that the guest accessed.
        pops,
        /// Faults that had to wait because their page was being moved.
        parked,
        /// Faults that had to wait for memory.
        starved,
        /// Scanned.
        scanned,
        /// Passes of the scanner over the whole VM that have ended; not pages.
        passes,
        /// Merged into a frame that others use.
        merged,
        /// Attached to a frame because the guest asked for it.
        attached,
        /// Made the first user of a frame.
        first_users,
        /// Found to be all zero and dropped.
        zeroed,
        /// Changed between two scans.
        volatile,
        /// Had the hash of a frame but other bytes, or changed before they stood still.
        mismatched,
        /// Not shared because the guest is near its budget of VMAs.
        vma_refused,
        /// Evicted: found all zero.
        evict_zero,
        /// Evicted: shared instead.
        evict_shared,
        /// Evicted into the compression cache.
        evict_zip,
        /// Evicted to the swap file without having been in the cache.
        evict_swap,
        /// Evicted pages that did not compress to half.
        incompressible,
        /// Oldest pages of the full cache that left for the swap file or the host cache.
        spilled,
        /// Oldest pages of the host cache that left for the swap file.
        demoted,
        /// Writes to the host cache that failed, and attempts to make or lengthen its file; not pages.
        cache_errors,
        /// Could not be evicted: no cache and no swap would take them.
        evict_failed,
        /// Writes that the full or failing swap file refused; not pages.
        swap_errors,
        /// Left RAM, by whatever way, because their guest had not touched them for long.
        cold,
        /// Went to a store because their guest had not touched them for long, and were wanted back.
        cold_back,
        /// Regions that became large pages; not pages.
        enlarged,
        /// Large pages that were broken; not pages.
        broken,
        /// Given up by the guest.
        inflated,
        /// Given up by the guest although they had only just been brought back from a store: the guest
        /// read them to page them out itself. The host's work was for nothing.
        double_paged,
        /// Taken back by the guest.
        deflated,
    }
);

impl Stats {
    /// Faults that the guest served by itself.
    #[must_use]
    pub fn inline(&self) -> u64 {
        self.inline_touches.get()
            + self.inline_refills.get()
            + self.inline_swap_ins.get()
            + self.inline_breaks.get()
    }

    /// Faults that made a page resident.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.first_touch.get()
            + self.refill_zip.get()
            + self.refill_swap.get()
            + self.breaks.get()
            + self.pops.get()
    }
}
