//! A VM's turn in the queue for memory: the pages that it was granted, and the pages that it may have.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Vm;
use crate::page::{Need, Urgency};
use crate::units::Pages;

/// Pages that a VM was granted in its turn and has not used yet. Only its fault thread takes from them, and only while
/// it serves the faults that waited: so plain loads and stores are enough.
#[derive(Debug, Default)]
pub(super) struct Granted {
    refill: AtomicU64,
    touch: AtomicU64,
}

impl Granted {
    /// Takes a page, if there is one. First touches leave the pages alone that were granted for refills.
    pub(super) fn take(&self, urgency: Urgency) -> bool {
        let take = |pages: &AtomicU64| {
            let left = pages.load(Ordering::Relaxed);
            pages.store(left.saturating_sub(1), Ordering::Relaxed);
            left > 0
        };
        (urgency == Urgency::Refill && take(&self.refill)) || take(&self.touch)
    }

    fn add(&self, need: Need) {
        for (pages, more) in [(&self.refill, need.refill), (&self.touch, need.touch)] {
            pages.store(pages.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        }
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> Pages {
        Pages(self.refill.load(Ordering::Relaxed) + self.touch.load(Ordering::Relaxed))
    }

    fn take_all(&self) -> u64 {
        self.refill.swap(0, Ordering::Relaxed) + self.touch.swap(0, Ordering::Relaxed)
    }
}

impl Vm {
    /// Collects what was granted to this VM, so that [`charge`](Self::charge) finds it. Returns how many pages.
    pub fn begin_turn(&self) -> Pages {
        // Without a place in the queue nothing was granted: bells for unlocked pages need not take its lock.
        if !self.parking.is_starved() {
            return Pages(0);
        }
        let granted = self.budget.collect(&self.parking);
        self.granted.add(granted);
        Pages(granted.pages())
    }

    /// Gives back what is left of it; it goes to the next VM that waits.
    pub fn end_turn(&self) {
        self.budget.give(self.granted.take_all());
    }

    /// Whether a page for a first touch is granted and unused.
    pub(super) fn has_granted_page(&self) -> bool {
        self.granted.touch.load(Ordering::Relaxed) > 0
    }

    /// Whether the VM may have memory for this now, if any is free.
    #[must_use]
    pub fn may_have(&self, urgency: Urgency) -> bool {
        !self.waits_with(urgency) && !self.is_at_ceiling()
    }

    /// How many pages it may have until it is at its ceiling.
    #[must_use]
    pub fn below_ceiling(&self) -> Pages {
        self.orders.ceiling().saturating_sub(self.held())
    }

    /// Wakes the fault thread if faults wait for an order. To be called when the VM may hold a page more than before.
    pub fn wake_barred(&self) {
        if self.parking.is_barred() {
            self.parking.ring();
        }
    }
}
