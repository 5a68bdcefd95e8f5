//! The VMs whose faults wait for memory, and the order in which they get it.
//!
//! The naive way: when memory comes free while faults of several VMs wait, call all of them to try again. Then a page
//! goes to whichever comes first. The others are called for nothing, for each page that is freed, and a new fault
//! takes a page for which an older one has waited long. The same VM can be served last again and again.
//!
//! So each VM that waits has a *place* in this queue, and says how many pages it wants ([`Need`]). The thread that
//! frees pages *grants* them to the places in order. It charges them to the budget at once, so that nobody else can
//! take them, and only then calls the VM. The VM's fault thread collects the grant, serves its faults, and gives back
//! what is left, which goes to the next place. While a VM waits, newcomers wait too
//! ([`Budget::is_awaited`](super::Budget::is_awaited)).
//!
//! - A place is good for the number of pages that were wanted when it was taken. A VM that wants more after that goes
//!   to the end, so a VM of many threads cannot stay at the front.
//! - VMs below their reservation come before all others: that memory is promised to them.
//! - A VM that may not have memory now, by order of the policy, wants none: it keeps its place and is passed over. It
//!   is called when that changes.
//! - First touches must leave more of the budget free than refills. So refills do not wait behind touches for pages
//!   that touches may not have.
//!
//! The queue is plain data. [`Budget`](super::Budget) keeps it behind a lock, which is taken only while a VM waits.

use std::collections::VecDeque;
use std::ops::AddAssign;
use std::sync::Arc;

use super::Urgency;
use super::parking::Parking;

/// Pages that faults of a VM wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// For refills and breaks.
    pub refill: u64,
    /// For first touches.
    pub touch: u64,
}

impl Need {
    /// How many pages in all.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.refill + self.touch
    }

    /// The part of it that `pages` can satisfy, refills first.
    fn at_most(self, pages: u64) -> Self {
        let refill = self.refill.min(pages);
        Self {
            refill,
            touch: self.touch.min(pages - refill),
        }
    }
}

impl AddAssign for Need {
    fn add_assign(&mut self, other: Self) {
        self.refill += other.refill;
        self.touch += other.touch;
    }
}

/// One VM that waits.
#[derive(Debug)]
struct Place {
    parking: Arc<Parking>,
    /// Whether it is below its reservation, and so comes before all that are not.
    is_promised: bool,
    /// How many more pages it may have before it goes to the end; never less than it wants.
    left: u64,
    wants: Need,
    /// What it has been given and has not collected.
    granted: Need,
}

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Place>);

impl Queue {
    /// Sets what a VM wants. It keeps its place while the place is good for more pages; otherwise it gets one at the
    /// end. A VM that `is_promised` memory is placed before all that are not.
    pub(super) fn want(&mut self, parking: &Arc<Parking>, need: Need, is_promised: bool) {
        let mut granted = Need::default();
        if let Some(at) = self.find(parking) {
            let place = &mut self.0[at];
            // A grant that is not collected yet keeps the place alive.
            let is_over = place.left == 0 && place.granted == Need::default();
            // A VM that has fallen below its reservation meanwhile gets a better place. One that is above it again
            // keeps the place that it has.
            if !is_over && place.is_promised >= is_promised {
                place.wants = need.at_most(place.left);
                return;
            }
            granted = self
                .0
                .remove(at)
                .map(|place| place.granted)
                .unwrap_or_default();
        }
        let end = if is_promised {
            self.0.partition_point(|place| place.is_promised)
        } else {
            self.0.len()
        };
        let place = Place {
            parking: Arc::clone(parking),
            is_promised,
            left: need.pages(),
            wants: need,
            granted,
        };
        self.0.insert(end, place);
    }

    /// Hands out the pages that `take` can give, in order, and returns whom to call for them. A VM that has not
    /// collected an earlier grant has been called already.
    pub(super) fn hand_out(
        &mut self,
        mut take: impl FnMut(u64, Urgency) -> u64,
    ) -> Vec<Arc<Parking>> {
        let mut called = Vec::new();
        for place in &mut self.0 {
            let given = Need {
                refill: take(place.wants.refill, Urgency::Refill),
                touch: take(place.wants.touch, Urgency::Touch),
            };
            if given.pages() > 0 && place.granted == Need::default() {
                called.push(Arc::clone(&place.parking));
            }
            place.wants.refill -= given.refill;
            place.wants.touch -= given.touch;
            place.left -= given.pages();
            place.granted += given;
        }
        called
    }

    /// Takes what a VM has been granted since it last collected.
    pub(super) fn collect(&mut self, parking: &Parking) -> Need {
        let place = self.find(parking).map(|at| &mut self.0[at]);
        place
            .map(|place| std::mem::take(&mut place.granted))
            .unwrap_or_default()
    }

    /// Gives a place up, and returns what was granted there and not collected.
    pub(super) fn leave(&mut self, parking: &Parking) -> Need {
        let place = self.find(parking).and_then(|at| self.0.remove(at));
        place.map(|place| place.granted).unwrap_or_default()
    }

    /// How many VMs wait.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What they want in all.
    pub(super) fn wants(&self) -> Need {
        let mut sum = Need::default();
        self.0.iter().for_each(|place| sum += place.wants);
        sum
    }

    /// What is granted and not collected.
    #[cfg(test)]
    pub(super) fn granted(&self) -> Need {
        let mut sum = Need::default();
        self.0.iter().for_each(|place| sum += place.granted);
        sum
    }

    /// The parkings of all VMs that wait.
    pub(super) fn parkings(&self) -> impl Iterator<Item = &Arc<Parking>> {
        self.0.iter().map(|place| &place.parking)
    }

    fn find(&self, parking: &Parking) -> Option<usize> {
        let is_it = |place: &Place| std::ptr::eq(Arc::as_ptr(&place.parking), parking);
        self.0.iter().position(is_it)
    }
}
