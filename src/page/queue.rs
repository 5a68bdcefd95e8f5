//! The VMs whose faults wait for memory, and the order in which they get it.
//!
//! When memory comes free while faults of several VMs wait, all of them could be called to try again. But a page goes to
//! whoever comes first: the others were called for nothing, as often as a page is freed, and a fault that has just
//! come takes what one waits for that came long before. Nobody says who is served last, and it can be the same VM again
//! and again.
//!
//! So each VM that waits has a *place* in this queue, and says how many pages it wants ([`Need`]). What comes free is
//! *granted* to the places in order by whoever frees it: charged to the budget at once, so that nobody else can take it, and the
//! VM is called only then. Its fault thread collects the grant, serves its faults, and gives back what it did not use,
//! which goes to the next. While somebody waits, newcomers do too ([`Budget::is_awaited`](super::Budget::is_awaited)).
//!
//! - A place is good for as many pages as were wanted when it was taken. Who wants more then goes to the end, so that
//!   a VM of many threads cannot stay at the front.
//! - VMs below their reservation come before all others: that memory is promised to them.
//! - A VM that may not have memory now, by order of the policy, wants none: it keeps its place and is passed over. What
//!   changes that calls it.
//! - First touches leave more of the budget alone than refills, which do not wait behind them for pages that touches may
//!   not have.
//!
//! The queue is plain data; [`Budget`](super::Budget) has it behind a lock, which is taken only while somebody waits.

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
    /// How many in all.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.refill + self.touch
    }

    /// The part of it that so many pages are enough for.
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
    /// Whether it comes before those that are not.
    is_promised: bool,
    /// So many pages more may it have before it goes to the end; never less than it wants.
    left: u64,
    wants: Need,
    /// What it has been given and has not collected.
    granted: Need,
}

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Place>);

impl Queue {
    /// What a VM wants now. It keeps its place as long as that is good for something, and else gets one at the end; one that
    /// `is_promised` memory gets it before all that are not.
    pub(super) fn want(&mut self, parking: &Arc<Parking>, need: Need, is_promised: bool) {
        let mut granted = Need::default();
        if let Some(at) = self.find(parking) {
            let place = &mut self.0[at];
            // What it has not collected belongs to the place, too.
            let is_over = place.left == 0 && place.granted == Need::default();
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

    /// Hands out pages in order, as far as `take` has so many; who is to be called for that. A VM that has not collected
    /// what it was given before has been called.
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

    /// What a VM has been given since it last asked.
    pub(super) fn collect(&mut self, parking: &Parking) -> Need {
        let place = self.find(parking).map(|at| &mut self.0[at]);
        place
            .map(|place| std::mem::take(&mut place.granted))
            .unwrap_or_default()
    }

    /// Gives a place up; what was granted there and not collected.
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

    /// Where all of them wait.
    pub(super) fn parkings(&self) -> impl Iterator<Item = &Arc<Parking>> {
        self.0.iter().map(|place| &place.parking)
    }

    fn find(&self, parking: &Parking) -> Option<usize> {
        let is_it = |place: &Place| std::ptr::eq(Arc::as_ptr(&place.parking), parking);
        self.0.iter().position(is_it)
    }
}
