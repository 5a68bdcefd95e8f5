//! Faults that have been read and not been served.

use std::collections::HashMap;
use std::time::Instant;

use super::Access;
use super::credits::{Credits, FIRST};
use super::resolve::cause;
use crate::page::{Need, Urgency};
use crate::units::Gfn;
use crate::vm::{Stall, Stalls, Vm};

/// Where the answer to a fault goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The kernel: whoever waits for the page is woken when it is provided.
    Kernel,
    /// The thread at the other end of a fault channel.
    Channel(usize),
}

/// One fault.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) gfn: Gfn,
    pub(super) access: Access,
    pub(super) asker: Asker,
    /// When it was read.
    pub(super) since: Instant,
    /// What its thread stands still for.
    pub(super) stall: Stall,
}

/// The faults of one VM that are parked.
///
/// Its size is bounded: a fault channel has one fault at a time, and of faults on the userfaultfd
/// one a page is kept, as all threads that wait for a page are woken together.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    busy: HashMap<Gfn, Vec<Waiter>>,
    starved: Vec<Waiter>,
}

impl Waiting {
    /// The page of this fault is being moved.
    pub(super) fn park_busy(&mut self, waiter: Waiter, stalls: &Stalls) {
        add(self.busy.entry(waiter.gfn).or_default(), waiter, stalls);
    }

    /// There is no memory for this fault.
    pub(super) fn park_starved(&mut self, waiter: Waiter, stalls: &Stalls) {
        add(&mut self.starved, waiter, stalls);
    }

    /// Takes out the faults that waited for a page.
    pub(super) fn unlocked(&mut self, gfn: Gfn) -> Vec<Waiter> {
        self.busy.remove(&gfn).unwrap_or_default()
    }

    /// Takes out the faults that waited for memory, in the order in which they came.
    pub(super) fn take_starved(&mut self) -> Vec<Waiter> {
        std::mem::take(&mut self.starved)
    }

    /// Says what the faults want that wait for memory.
    pub(super) fn line_up(&self, vm: &Vm) {
        if self.starved.is_empty() {
            return vm.budget.leave(&vm.parking);
        }
        let is_promised = vm.held() < vm.orders.promised();
        let (need, barred) = self.need(vm);
        vm.budget.wait(&vm.parking, need, barred, is_promised);
        // What keeps them from having memory calls them when it changes, and may have changed before it was known that
        // they wait.
        if barred && self.need(vm) != (need, barred) {
            vm.parking.ring();
        }
    }

    /// The pages that the faults want that wait for memory, those in advance for a guest that serves itself included, and
    /// whether there are others, which may have none now.
    fn need(&self, vm: &Vm) -> (Need, bool) {
        let mut need = Need::default();
        let mut is_missing = false;
        for fault in &self.starved {
            let urgency = cause(vm, fault.gfn, fault.access).urgency();
            match urgency {
                _ if !vm.may_have(urgency) => {}
                Urgency::Touch => need.touch += 1,
                _ => need.refill += 1,
            }
            is_missing |= Credits::were_missing(vm, fault.gfn, fault.access);
        }
        let room = vm.below_ceiling().0;
        need.refill = need.refill.min(room);
        need.touch = need.touch.min(room - need.refill);
        let barred = need.pages() < self.starved.len() as u64;
        if is_missing && !barred {
            need.touch += u64::from(FIRST).min(room - need.pages());
        }
        (need, barred)
    }

    /// Whether a fault on this page waits for the page.
    #[cfg(test)]
    pub(crate) fn is_busy(&self, gfn: Gfn) -> bool {
        self.busy.contains_key(&gfn)
    }

    /// Whether a fault on this page waits for memory.
    #[cfg(test)]
    pub(crate) fn is_starved(&self, gfn: Gfn) -> bool {
        self.starved.iter().any(|waiter| waiter.gfn == gfn)
    }

    /// How many faults wait for memory, and since when the first of them.
    pub(super) fn starved(&self) -> Option<(usize, Instant)> {
        let first = self.starved.iter().map(|waiter| waiter.since).min()?;
        Some((self.starved.len(), first))
    }
}

fn add(waiters: &mut Vec<Waiter>, waiter: Waiter, stalls: &Stalls) {
    let woken_with = |other: &&mut Waiter| {
        other.asker == Asker::Kernel && waiter.asker == Asker::Kernel && other.gfn == waiter.gfn
    };
    match waiters.iter_mut().find(woken_with) {
        Some(other) => stalls.join(&mut other.stall, waiter.stall),
        None => waiters.push(waiter),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::vm::Cause;

    #[test]
    fn uffd_faults_on_one_page_are_kept_once_and_channels_each() {
        let start = Instant::now();
        let stalls = Stalls::new(start);
        let waiter = |gfn, asker| Waiter {
            gfn: Gfn(gfn),
            access: Access::Any,
            asker,
            since: start,
            stall: stalls.begin(Cause::Memory, start),
        };
        let mut waiting = Waiting::default();
        for asker in [
            Asker::Kernel,
            Asker::Kernel,
            Asker::Channel(0),
            Asker::Channel(1),
        ] {
            waiting.park_busy(waiter(5, asker), &stalls);
            waiting.park_starved(waiter(5, asker), &stalls);
        }
        waiting.park_starved(waiter(6, Asker::Kernel), &stalls);
        let second = stalls.so_far(None, start + Duration::from_secs(1));
        assert_eq!(second.threads[Cause::Memory].as_secs(), 9, "each thread");
        assert_eq!(waiting.unlocked(Gfn(5)).len(), 3);
        assert_eq!(waiting.unlocked(Gfn(5)).len(), 0);
        assert_eq!(waiting.starved().map(|(count, _)| count), Some(4));
        assert_eq!(waiting.take_starved().len(), 4);
        assert!(waiting.starved().is_none());
    }
}
