//! The budget of VMAs of one guest.
//!
//! Every run of shared frames, and without userfaultfd every boundary between open and closed pages,
//! costs the guest a VMA, and at `vm.max_map_count` its `mmap` fails. Keeping an exact count while two
//! threads change mappings would cost more than it is worth. So: an exact count from time to time, and
//! between two counts every remapped run is assumed to have split one VMA into three.

use crate::page::PageTable;
use crate::sync::{AtomicU32, Ordering};

/// An exact count costs a nanosecond a page; it is made after so many changes as a part of the budget.
const RECOUNT: u32 = 64;

/// See the module text.
#[derive(Debug)]
pub struct Vmas {
    budget: AtomicU32,
    opens: bool,
    counted: AtomicU32,
    changes: AtomicU32,
}

impl Vmas {
    /// Nothing mapped yet. `opens`: whether open and closed pages differ (mprotect engine).
    #[must_use]
    pub const fn new(budget: u32, opens: bool) -> Self {
        Self {
            budget: AtomicU32::new(budget),
            opens,
            counted: AtomicU32::new(1),
            changes: AtomicU32::new(0),
        }
    }

    /// The most VMAs that voluntary changes may lead to.
    #[must_use]
    pub fn budget(&self) -> u32 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Sets another budget.
    #[cfg(test)]
    pub(crate) fn set_budget(&self, budget: u32) {
        self.budget.store(budget, Ordering::Relaxed);
    }

    /// At most so many VMAs are in use.
    #[must_use]
    pub fn upper_bound(&self) -> u32 {
        let changes = self.changes.load(Ordering::Relaxed);
        self.counted
            .load(Ordering::Relaxed)
            .saturating_add(changes.saturating_mul(2))
    }

    /// Notes that `runs` runs were remapped.
    pub fn note(&self, runs: usize) {
        self.changes
            .fetch_add(u32::try_from(runs).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// How many more VMAs may be used; counts exactly when the bound says that few are left and
    /// enough has changed since the last count to be worth it.
    pub fn room(&self, table: &PageTable) -> u32 {
        let worth = self.changes.load(Ordering::Relaxed) >= (self.budget() / RECOUNT).max(1);
        if worth && self.upper_bound() > self.budget() / 2 {
            // Changes first: what happens during the count is then counted twice, not lost.
            self.changes.store(0, Ordering::Relaxed);
            self.counted
                .store(table.count_vmas(self.opens), Ordering::Relaxed);
        }
        self.budget().saturating_sub(self.upper_bound())
    }

    /// Whether the budget is used up.
    #[must_use]
    pub fn is_exceeded(&self, table: &PageTable) -> bool {
        self.room(table) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;

    #[test]
    fn room_shrinks_by_the_bound_and_recovers_by_counting() {
        let table = PageTable::new(8, Arc::new(Parking::without_event())).expect("memory");
        let vmas = Vmas::new(10, false);
        vmas.note(2);
        assert_eq!((vmas.upper_bound(), vmas.room(&table)), (5, 5));
        vmas.note(1);
        assert_eq!(vmas.upper_bound(), 7);
        assert_eq!(vmas.room(&table), 9, "counted: one mapping");
        vmas.note(5);
        assert!(
            !vmas.is_exceeded(&table),
            "none of these changes has split a mapping"
        );
    }
}
