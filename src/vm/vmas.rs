//! The budget of VMAs of one guest.
//!
//! Every run of shared frames, and without userfaultfd every boundary between open and closed pages,
//! costs the guest a VMA. At `vm.max_map_count` the guest's `mmap` fails. Keeping an exact count while two
//! threads change mappings would cost more than it is worth. So VMAs are counted exactly from time to time, and
//! every run that was remapped since the latest count is assumed to have split one VMA into three.
//!
//! A count walks the page table while runs are being remapped: the guest's kernel maps a run first, and the table shows
//! it a moment later. Nobody knows whether a count has met a run that is under way. So a change has a start and an end,
//! and a count covers only the changes that had ended when it began; the others are still assumed to have split a VMA.
//! Both numbers of changes only grow. A count and the number of changes that it covers are one word: when two threads
//! count at once, either may store last, and what it stores is consistent.

use crate::page::PageTable;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// An exact count costs a nanosecond for each page. It is made when the changes since the last one reach one part in so
/// many of the budget.
const RECOUNT: u32 = 64;

/// See the module text.
#[derive(Debug)]
pub struct Vmas {
    budget: AtomicU32,
    opens: bool,
    /// The latest count in the upper half, and in the lower half how many changes it covers.
    counted: AtomicU64,
    /// How many runs were remapped or are being remapped.
    begun: AtomicU32,
    /// How many of these the page table shows.
    ended: AtomicU32,
    /// What large pages take, which the page table does not show.
    large: AtomicU32,
}

/// Runs that count as being remapped until this is dropped.
#[derive(Debug)]
#[must_use = "a change lasts until the page table tells it"]
pub struct Change<'a> {
    vmas: &'a Vmas,
    runs: usize,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.vmas.end(self.runs);
    }
}

impl Vmas {
    /// The budget of a guest that has nothing mapped yet. `opens`: open pages are mapped differently from closed ones
    /// (engine mprotect).
    #[must_use]
    pub const fn new(budget: u32, opens: bool) -> Self {
        Self {
            budget: AtomicU32::new(budget),
            opens,
            counted: AtomicU64::new(1 << u32::BITS),
            begun: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            large: AtomicU32::new(0),
        }
    }

    /// The number of VMAs beyond which no change is made that can be avoided.
    #[must_use]
    pub fn budget(&self) -> u32 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Sets another budget.
    #[cfg(test)]
    pub(crate) fn set_budget(&self, budget: u32) {
        self.budget.store(budget, Ordering::Relaxed);
    }

    /// An upper bound of the VMAs in use.
    #[must_use]
    pub fn upper_bound(&self) -> u32 {
        // The count before the changes, so that `begun` includes all the changes that it covers.
        let (count, taken_off) = self.latest_count();
        let since = self.begun.load(Ordering::Relaxed).wrapping_sub(taken_off);
        let large = self.large.load(Ordering::Relaxed);
        count
            .saturating_add(since.saturating_mul(2))
            .saturating_add(large)
    }

    /// Sets what large pages take at most.
    pub fn set_large(&self, vmas: u32) {
        self.large.store(vmas, Ordering::Relaxed);
    }

    /// Begins to remap `runs` runs. The change must last until the guest has remapped them and the page table shows it.
    pub fn change(&self, runs: usize) -> Change<'_> {
        self.begin(runs);
        Change { vmas: self, runs }
    }

    /// As [`change`](Self::change), for a change that the guest confirms later; [`end`](Self::end) ends it.
    pub fn begin(&self, runs: usize) {
        self.begun.fetch_add(number(runs), Ordering::Relaxed);
    }

    /// Ends what was [begun](Self::begin): the page table shows it now.
    pub fn end(&self, runs: usize) {
        // Release pairs with the Acquire of `room`: a count that covers this change sees it in the page table.
        self.ended.fetch_add(number(runs), Ordering::Release);
    }

    /// How many more VMAs may be used. It counts exactly when the bound is above half of the budget and enough has
    /// changed since the last count to be worth it.
    pub fn room(&self, table: &PageTable) -> u32 {
        let (_, taken_off) = self.latest_count();
        // Acquire pairs with the Release of `end`.
        let ended = self.ended.load(Ordering::Acquire);
        let worth = ended.wrapping_sub(taken_off) >= (self.budget() / RECOUNT).max(1);
        if worth && self.upper_bound() > self.budget() / 2 {
            let count = u64::from(table.count_vmas(self.opens)) << u32::BITS | u64::from(ended);
            // Release pairs with the Acquire of `latest_count`: whoever sees the count sees the changes that it covers.
            self.counted.store(count, Ordering::Release);
        }
        self.budget().saturating_sub(self.upper_bound())
    }

    /// Whether the budget is used up.
    #[must_use]
    pub fn is_exceeded(&self, table: &PageTable) -> bool {
        self.room(table) == 0
    }

    /// The latest count, and how many changes it covers. `begun` and `ended` that are loaded afterwards include these.
    fn latest_count(&self) -> (u32, u32) {
        // Acquire pairs with the Release of `room`.
        let counted = self.counted.load(Ordering::Acquire);
        ((counted >> u32::BITS) as u32, counted as u32)
    }
}

/// More runs at once than a `u32` can count are over any budget, so they need no exact number.
fn number(runs: usize) -> u32 {
    u32::try_from(runs).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shuttle::thread;

    use super::*;
    use crate::page::{Home, Parking};
    use crate::sync;
    use crate::units::{FrameId, Gfn};

    #[test]
    fn room_shrinks_by_the_bound_and_recovers_by_counting() {
        let table =
            PageTable::new(8, Arc::new(Parking::new().expect("an eventfd"))).expect("memory");
        let vmas = Vmas::new(10, false);
        drop(vmas.change(2));
        assert_eq!((vmas.upper_bound(), vmas.room(&table)), (5, 5));
        let change = vmas.change(1);
        assert_eq!(vmas.upper_bound(), 7);
        assert_eq!(vmas.room(&table), 7, "counted: one, and the one under way");
        drop(change);
        drop(vmas.change(4));
        assert!(
            !vmas.is_exceeded(&table),
            "none of these changes has split a mapping"
        );
        assert_eq!(vmas.upper_bound(), 1);
    }

    /// Two threads share pages that are not neighbours, each of which costs two VMAs, and count.
    #[test]
    fn bound_in_any_schedule_is_never_below_what_is_mapped() {
        sync::model(4_000, || {
            let table =
                PageTable::new(9, Arc::new(Parking::new().expect("an eventfd"))).expect("memory");
            let world = Arc::new((table, Vmas::new(4, false), AtomicU32::new(1)));
            let share = |world: &(PageTable, Vmas, AtomicU32), gfns: [u32; 2]| {
                let (table, vmas, mapped) = world;
                let check = || {
                    let mapped = mapped.load(Ordering::SeqCst);
                    let bound = vmas.upper_bound();
                    assert!(bound >= mapped, "{bound} for {mapped}");
                };
                for gfn in gfns {
                    let page = table.try_lock(Gfn(gfn)).expect("nobody else's");
                    let change = vmas.change(1);
                    mapped.fetch_add(2, Ordering::SeqCst);
                    check();
                    page.set_home(Home::Shared(FrameId(gfn)));
                    drop((change, page));
                    vmas.room(table);
                    check();
                }
            };
            let other = Arc::clone(&world);
            let task = thread::spawn(move || share(&other, [1, 5]));
            share(&world, [3, 7]);
            task.join().expect("the task ends");
            let (table, vmas, _) = &*world;
            assert_eq!(table.count_vmas(false), 9);
            assert_eq!(vmas.room(table), 0);
        });
    }
}
