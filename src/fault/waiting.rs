//! Faults that have been read and not yet served.

use std::collections::HashMap;
use std::time::Instant;

use super::Access;
use super::credits::{Credits, first};
use super::resolve::cause;
use crate::page::{Need, Urgency};
use crate::units::Gfn;
use crate::vm::{Stall, Stalls, Vm};

/// Where the answer to a fault goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The kernel: it wakes all threads that wait for the page when the page is provided.
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
/// Its size is bounded: a fault channel has one fault at a time. Of faults on the userfaultfd one for each
/// page is kept, because all threads that wait for a page are woken together.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    busy: HashMap<Gfn, Vec<Waiter>>,
    starved: Vec<Waiter>,
}

impl Waiting {
    /// Parks a fault whose page is being moved.
    pub(super) fn park_busy(&mut self, waiter: Waiter, stalls: &Stalls) {
        add(self.busy.entry(waiter.gfn).or_default(), waiter, stalls);
    }

    /// Parks a fault for which there is no memory.
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

    /// Tells the budget what the faults that wait for memory want; gives the VM's place up if there are none.
    pub(super) fn enqueue(&self, vm: &Vm) {
        if self.starved.is_empty() {
            return vm.budget.leave(&vm.parking);
        }
        let is_promised = vm.held() < vm.orders.promised();
        let (need, barred) = self.need(vm);
        vm.budget.wait(&vm.parking, need, barred, is_promised);
        // When the order that bars them changes, the VM is called. But the order may have changed before it was known
        // that they wait: then nobody calls, so we do.
        if barred && self.need(vm) != (need, barred) {
            vm.parking.ring();
        }
    }

    /// How many pages the faults that wait for memory want, credits for a guest that serves itself included, and
    /// whether there are other faults, which may have no memory now.
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
        // Not more than the ceiling leaves: the VM could not use a larger grant, and others would wait until it comes
        // back.
        need.refill = need.refill.min(room);
        need.touch = need.touch.min(room - need.refill);
        let barred = need.pages() < self.starved.len() as u64;
        if is_missing && !barred {
            need.touch += u64::from(first(vm.params.pages)).min(room - need.pages());
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

    /// How many faults wait for memory, and since when the first of them has waited.
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
