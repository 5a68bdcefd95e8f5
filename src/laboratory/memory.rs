//! The memory of a guest that is not there: page numbers, and no RAM behind them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memvisor_guest_agent::balloon::{FreePages, PageSource, Settled};
use memvisor_guest_agent::outside::ShownPages;
use memvisor_wire::balloon::{Stat, StatTag};

use crate::units::{Gfn, GfnRun, PAGE_SIZE, runs_of};

/// The memory of a guest, which can be shown.
pub trait Memory: PageSource + Debug {}

impl<T: PageSource + Debug> Memory for T {}

/// A guest in which nobody uses memory but the balloon.
#[derive(Debug)]
pub struct SimulatedMemory {
    total: u32,
    pages: Mutex<Ledger>,
    /// The map that is shared with a host, if one is.
    shown: Mutex<Option<ShownPages>>,
}

/// Who has each page.
#[derive(Debug, Default)]
struct Ledger {
    free: BTreeSet<u32>,
    /// Those of the free pages that the host has dropped.
    dropped: BTreeSet<u32>,
    pinned: BTreeSet<u32>,
}

impl Ledger {
    /// Pins a page if it is free.
    fn pin(&mut self, page: u32) -> bool {
        let is_free = self.free.remove(&page);
        if is_free {
            self.dropped.remove(&page);
            self.pinned.insert(page);
        }
        is_free
    }
}

impl SimulatedMemory {
    /// A guest with `total` pages, all of them free.
    #[must_use]
    pub fn new(total: u32) -> Self {
        let pages = Mutex::new(Ledger {
            free: (0..total).collect(),
            ..Ledger::default()
        });
        Self {
            total,
            pages,
            shown: Mutex::default(),
        }
    }

    /// The same, with every second page in use by others, so that each run has one page.
    #[must_use]
    pub fn scattered(total: u32) -> Self {
        let memory = Self::new(total);
        memory.ledger().free.retain(|page| page % 2 == 0);
        memory
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, Option<ShownPages>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages that are pinned.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.ledger().pinned.len() as u64
    }

    /// Whether all of these pages are pinned.
    #[must_use]
    pub fn has_pinned(&self, runs: &[GfnRun]) -> bool {
        let ledger = self.ledger();
        let mut gfns = runs.iter().flat_map(|run| run.iter());
        gfns.all(|gfn| ledger.pinned.contains(&gfn.0))
    }
}

impl PageSource for SimulatedMemory {
    fn total_pages(&self) -> u64 {
        self.total.into()
    }

    fn allocate(&self, max: u32, _may_reclaim: bool) -> Vec<GfnRun> {
        let mut ledger = self.ledger();
        // Those that hold memory first.
        let holding = ledger.free.difference(&ledger.dropped);
        let pages = holding.chain(&ledger.dropped).copied();
        let mut taken: Vec<u32> = pages.take(max as usize).collect();
        taken.retain(|page| ledger.pin(*page));
        taken.sort_unstable();
        runs_of(taken.into_iter().map(Gfn))
    }

    fn release(&self, runs: &[GfnRun]) {
        let mut ledger = self.ledger();
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            if ledger.pinned.remove(&gfn.0) {
                ledger.free.insert(gfn.0);
            }
        }
    }

    fn stats(&self) -> Vec<Stat> {
        let bytes = |pages: usize| (pages * PAGE_SIZE) as u64;
        let ledger = self.ledger();
        let (free, pinned) = (ledger.free.len(), ledger.pinned.len());
        let total = self.total as usize - pinned;
        vec![
            Stat::new(StatTag::FREE_MEMORY, bytes(free)),
            Stat::new(StatTag::TOTAL_MEMORY, bytes(total)),
            Stat::new(StatTag::AVAILABLE_MEMORY, bytes(free)),
        ]
    }

    fn free_pages(&self) -> Option<&dyn FreePages> {
        Some(self)
    }
}

impl FreePages for SimulatedMemory {
    fn list(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>) {
        let ledger = self.ledger();
        let is_wanted = |page: &&u32| !fresh || !ledger.dropped.contains(page);
        let mut pages = ledger.free.range(from.0..).filter(is_wanted).copied();
        let listed: Vec<Gfn> = pages.by_ref().take(max as usize).map(Gfn).collect();
        (runs_of(listed), pages.next().map(Gfn))
    }

    fn pin(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        let mut ledger = self.ledger();
        let pages = runs.iter().flat_map(|run| run.iter());
        runs_of(pages.filter(|gfn| ledger.pin(gfn.0)).collect::<Vec<_>>())
    }

    fn dropped(&self, runs: &[GfnRun]) {
        let mut ledger = self.ledger();
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            if ledger.free.contains(&gfn.0) {
                ledger.dropped.insert(gfn.0);
            }
        }
    }

    /// Nobody uses memory that could be made free. A map is shown pages that are.
    fn reclaim(&self, max: u32) -> u32 {
        let mut shown = self.shown();
        shown.as_mut().map_or(0, |shown| shown.more(max, self))
    }

    fn show(&self, map: OwnedFd) -> io::Result<()> {
        *self.shown() = Some(ShownPages::new(&map, self.total)?);
        Ok(())
    }

    fn settle(&self) -> Settled {
        let settled = self.shown().as_mut().map(ShownPages::settle);
        let (settled, back) = settled.unwrap_or_default();
        self.release(&back);
        settled
    }

    fn hide(&self) {
        let hidden = self.shown().take().map(ShownPages::hide);
        self.release(&hidden.unwrap_or_default());
    }
}

/// A guest that gives a few pages and takes its time for them.
#[derive(Debug)]
pub struct SlowMemory {
    memory: Arc<dyn Memory>,
    at_most: u32,
}

impl SlowMemory {
    /// Gives at most `at_most` pages of `memory` at once.
    pub const fn new(memory: Arc<dyn Memory>, at_most: u32) -> Self {
        Self { memory, at_most }
    }
}

impl PageSource for SlowMemory {
    fn total_pages(&self) -> u64 {
        self.memory.total_pages()
    }

    /// To an agent, fewer pages than it asked for mean that the kernel has no more just now.
    fn allocate(&self, max: u32, may_reclaim: bool) -> Vec<GfnRun> {
        // With free pages alone it gives none, so that its agent slows down.
        let most = if may_reclaim { self.at_most } else { 0 };
        self.memory.allocate(max.min(most), may_reclaim)
    }

    fn release(&self, runs: &[GfnRun]) {
        self.memory.release(runs);
    }

    fn stats(&self) -> Vec<Stat> {
        self.memory.stats()
    }

    fn free_pages(&self) -> Option<&dyn FreePages> {
        self.memory.free_pages()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::RunsExt;

    #[test]
    fn pages_are_pinned_once_and_come_back() {
        let memory = SimulatedMemory::new(10);
        let first = memory.allocate(4, false);
        assert_eq!(first, [GfnRun::new(Gfn(0), 4)]);
        assert_eq!(memory.allocate(99, true).pages(), 6, "the rest");
        memory.release(&[GfnRun::new(Gfn(1), 2), GfnRun::new(Gfn(1), 2)]);
        assert_eq!(memory.pinned(), 8);
        assert!(!memory.has_pinned(&first));
        assert!(memory.has_pinned(&[GfnRun::single(Gfn(3))]));
        assert_eq!(memory.stats()[0].value, 2 * 4096);
    }

    #[test]
    fn free_pages_are_listed_pinned_and_given_again_last_once_they_are_dropped() {
        let memory = SimulatedMemory::scattered(20);
        let single = |page| GfnRun::single(Gfn(page));
        let (listed, next) = memory.list(Gfn(1), 2, true);
        assert_eq!((listed, next), (vec![single(2), single(4)], Some(Gfn(6))));
        memory.dropped(&[single(2), single(3)]);
        assert_eq!(memory.list(Gfn(0), 2, true).0, [single(0), single(4)]);
        assert_eq!(memory.list(Gfn(0), 2, false).0, [single(0), single(2)]);
        assert_eq!(memory.list(Gfn(18), 5, false), (vec![single(18)], None));
        assert_eq!(memory.pin(&[GfnRun::new(Gfn(0), 2)]), [single(0)]);
        let pinned = memory.allocate(8, false);
        assert!(!pinned.contains(&single(2)), "{pinned:?}");
        assert_eq!(memory.allocate(8, false), [single(2)]);
    }
}
