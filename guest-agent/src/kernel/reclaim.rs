//! Allocation under pressure: the clock, and the request for relief when the clock finds nothing.

use std::ops::AddAssign;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use memvisor_wire::Gfn;

use super::object::Eviction;
use super::pages::{Owner, PageUse};
use super::stats::Counter;
use super::{Kernel, KernelError};

/// Pages that one allocation pushes out while memory is below the low watermark. This is enough to
/// reclaim faster than threads allocate, and few enough to delay no allocation for long.
const WATERMARK_BATCH: u32 = 8;

/// Pages that the clock may look at for such a batch, so that a full swap disk does not turn every
/// allocation into a scan of all memory.
const WATERMARK_SCAN: u32 = 128;

/// Pages a failed allocation reclaims before it tries again.
const DIRECT_BATCH: u32 = 32;

/// How long an allocation waits for a page that another thread is using, before it looks again.
const BUSY_WAIT: Duration = Duration::from_millis(10);

/// How many pages the kernel asks the [`PressureHook`] for at once: as many as virtio-balloon deflates on OOM.
pub const RELIEF_PAGES: u32 = 256;

/// How long one allocation goes on asking for relief. Other threads may take all pages that come free,
/// and a host that is short of memory itself gives nothing for some seconds.
const RELIEF_PATIENCE: Duration = Duration::from_secs(10);

/// How long an allocation that got no relief waits before it asks again.
const RELIEF_PAUSE: Duration = Duration::from_millis(100);

/// What the kernel asks for memory when it has nothing left to reclaim: the balloon agent.
pub trait PressureHook: Send + Sync {
    /// Tries to free about `pages` pages, for instance by deflating the balloon, and may block
    /// until that is done. Returns whether any page came free.
    ///
    /// The calling thread holds the lock of the page on which it faults, and several threads may call at
    /// once. The hook must not touch memory of this guest.
    fn relieve(&self, pages: u32) -> bool;
}

/// Which pages the clock takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Take {
    /// Page cache that was not accessed lately.
    Cache,
    /// All that was not accessed lately.
    Unused,
    /// All.
    All,
}

/// What a round of the clock found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Reclaimed {
    /// Pages that are free now.
    pub(super) freed: u32,
    /// Pages that another thread was using.
    pub(super) busy: u32,
    /// Pages looked at.
    scanned: u32,
    /// How long writing to the swap disk took.
    wrote: Duration,
}

impl AddAssign for Reclaimed {
    fn add_assign(&mut self, other: Self) {
        self.freed += other.freed;
        self.busy += other.busy;
        self.scanned += other.scanned;
        self.wrote += other.wrote;
    }
}

impl Kernel {
    /// Sets the hook to ask for relief. The kernel does not keep the hook alive.
    pub fn set_pressure_hook(&self, hook: Weak<dyn PressureHook>) {
        *self.hook.write().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// Gets a page for `owner`, if need be by reclaim or relief. Its bytes are undefined.
    ///
    /// The caller holds the lock of the page on which it faults, so this function may only *try* the
    /// locks of other pages. It may wait for busy pages: a thread that uses a page in RAM needs no
    /// further memory before it is done with the page, so the wait ends.
    pub(super) fn allocate(&self, owner: Owner, page_use: PageUse) -> Result<Gfn, KernelError> {
        if let Some(gfn) = self.pages.take(owner, page_use) {
            self.keep_watermark();
            return Ok(gfn);
        }
        self.counters.alloc_stall.add(1);
        let mut ask_until = None;
        loop {
            let found = self.reclaim_now(DIRECT_BATCH);
            self.counters.swap_wait_us.add_time(found.wrote);
            if let Some(gfn) = self.pages.take(owner, page_use) {
                return Ok(gfn);
            }
            if found.freed > 0 {
                continue;
            }
            if found.busy > 0 {
                // Whoever holds the page may be waiting for the host, so this must not become a busy loop.
                self.pages.wait_freed(BUSY_WAIT);
            } else if !self.relieve(&mut ask_until) {
                return Err(self.out_of_memory());
            }
        }
    }

    /// Reclaims up to `want` pages: page cache as long as there is plenty, then any pages. The clock spares pages that
    /// were accessed lately; only if this frees nothing, a last round does not spare them.
    pub(super) fn reclaim_now(&self, want: u32) -> Reclaimed {
        // Two rounds: the first clears the marks of accesses, the second finds pages without a mark.
        let round = self.pages.pages();
        let two_rounds = round.saturating_mul(2);
        let mut found = self.turn_clock(want.min(self.spare_cache()), two_rounds, Take::Cache);
        found += self.turn_clock(want - found.freed, two_rounds, Take::Unused);
        // Every page was in use since the hand last came by: then one that is in use must go.
        if found.freed == 0 {
            found += self.turn_clock(want, round, Take::All);
        }
        self.count(
            found,
            &self.counters.direct_scan,
            &self.counters.direct_reclaim,
        );
        found
    }

    /// The page cache that goes before anonymous memory. What is left of it below the low watermark stays useful, and
    /// competes with anonymous memory on equal terms.
    fn spare_cache(&self) -> u32 {
        let cache = self.pages.usage().cache;
        cache.saturating_sub(self.pages.low_watermark())
    }

    /// Pushes a few pages out while memory is short, so that the free list seldom runs dry. A real
    /// kernel has a thread for this. Here the allocating threads do it, so an idle guest does nothing.
    fn keep_watermark(&self) {
        if self.pages.usage().free < self.pages.low_watermark() {
            let take = match self.spare_cache() {
                0 => Take::Unused,
                _ => Take::Cache,
            };
            let found = self.turn_clock(WATERMARK_BATCH, WATERMARK_SCAN, take);
            self.counters.swap_wait_us.add_time(found.wrote);
            self.count(
                found,
                &self.counters.async_scan,
                &self.counters.async_reclaim,
            );
        }
    }

    /// Moves the hand over at most `steps` pages until `want` of them are free.
    fn turn_clock(&self, want: u32, steps: u32, take: Take) -> Reclaimed {
        let mut found = Reclaimed::default();
        for _ in 0..steps {
            if found.freed >= want {
                break;
            }
            let gfn = Gfn(self.hand.fetch_add(1, Ordering::Relaxed) % self.pages.pages());
            let Some(owner) = self.pages.owner(gfn) else {
                continue;
            };
            if take == Take::Cache && !self.pages.is_cache(gfn) {
                continue;
            }
            found.scanned += 1;
            if self.pages.take_referenced(gfn) && take != Take::All {
                continue;
            }
            match self.evict(gfn, owner) {
                Eviction::Freed { wrote } => {
                    found.freed += 1;
                    found.wrote += wrote;
                }
                Eviction::Busy => found.busy += 1,
                Eviction::Kept => {}
            }
        }
        found
    }

    fn evict(&self, gfn: Gfn, owner: Owner) -> Eviction {
        match self.objects.get(owner.object) {
            Some(object) => object.evict(self, owner.page, gfn),
            // Unmapped since we looked.
            None => Eviction::Busy,
        }
    }

    /// Asks for relief, and waits a little if none came although the balloon holds pages. Returns whether
    /// to look for a page again. The first call sets `until`.
    fn relieve(&self, until: &mut Option<Instant>) -> bool {
        // The lock ends here, because the hook waits for the host.
        let hook = {
            let set = self.hook.read().unwrap_or_else(PoisonError::into_inner);
            set.as_ref().and_then(Weak::upgrade)
        };
        let Some(hook) = hook else {
            return false;
        };
        let now = Instant::now();
        if now > *until.get_or_insert(now + RELIEF_PATIENCE) {
            return false;
        }
        self.counters.relief.add(1);
        let came = hook.relieve(RELIEF_PAGES);
        // Nothing came, and there is no balloon from which anything could come later.
        if !came && self.pages.usage().balloon == 0 {
            return false;
        }
        if !came {
            self.pages.wait_freed(RELIEF_PAUSE);
        }
        true
    }

    fn out_of_memory(&self) -> KernelError {
        self.counters.oom.add(1);
        let usage = self.pages.usage();
        KernelError::OutOfMemory {
            anon: usage.anon,
            balloon: usage.balloon,
            swap_free: self.swap.pages() - self.swap.used(),
        }
    }

    fn count(&self, found: Reclaimed, scanned: &Counter, freed: &Counter) {
        scanned.add(u64::from(found.scanned));
        freed.add(u64::from(found.freed));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memvisor_wire::PAGE_SIZE;

    use super::super::KernelOptions;
    use super::super::ram::VecMemory;
    use super::*;

    /// Gives nothing.
    struct Short;

    impl PressureHook for Short {
        fn relieve(&self, _pages: u32) -> bool {
            false
        }
    }

    #[test]
    fn allocation_asks_until_its_patience_ends_and_not_without_a_balloon() {
        let options = KernelOptions {
            swap_pages: 0,
            disk_directory: "/nowhere".into(),
        };
        let kernel = Kernel::new(Arc::new(VecMemory::new(32)), &options).expect("it boots");
        let now = Instant::now();
        assert!(!kernel.relieve(&mut None), "nobody to ask");
        let hook: Arc<dyn PressureHook> = Arc::new(Short);
        kernel.set_pressure_hook(Arc::downgrade(&hook));
        let mut until = None;
        assert!(!kernel.relieve(&mut until), "there is nothing to give");
        assert!(until.is_some_and(|until| until >= now + RELIEF_PATIENCE));
        let balloon = kernel.balloon_alloc(8, false);
        assert!(kernel.relieve(&mut until));
        assert_eq!(kernel.stats().relief, 2);
        assert!(!kernel.relieve(&mut Some(now)), "its time is over");
        assert_eq!(kernel.stats().relief, 2);
        kernel.balloon_free(&balloon).expect("it is ours");
    }

    /// Other threads may mark all pages again while the clock goes round. The clock must find pages all
    /// the same, so it has a mode in which it ignores the marks.
    #[test]
    fn clock_spares_marked_pages_only_until_it_is_told_not_to() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = KernelOptions {
            swap_pages: 8,
            disk_directory: directory.path().to_owned(),
        };
        let memory = Arc::new(VecMemory::new(32));
        let kernel = Kernel::new(memory, &options).expect("it boots");
        let region = kernel.map_anon(20);
        let mark_all = || region.write(0, &[1; 20 * PAGE_SIZE]).expect("free pages");

        mark_all();
        let spared = kernel.turn_clock(4, 32, Take::Unused);
        assert_eq!((spared.freed, spared.scanned), (0, 20));
        mark_all();
        assert_eq!(kernel.turn_clock(4, 32, Take::All).freed, 4);
        mark_all();
        assert_eq!(kernel.reclaim_now(6).freed, 6);
    }
}
