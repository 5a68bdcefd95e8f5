//! Faults that have been read and not been served.

use std::collections::HashMap;
use std::time::Instant;

use super::Access;
use crate::units::Gfn;

/// Where the answer to a fault goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The kernel: whoever waits for the page is woken when it is provided.
    Kernel,
    /// The thread at the other end of a fault channel.
    Channel(usize),
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(super) gfn: Gfn,
    pub(super) access: Access,
    pub(super) asker: Asker,
    /// When it was read.
    pub(super) since: Instant,
}

impl Waiter {
    pub(super) const fn new(gfn: Gfn, access: Access, asker: Asker, since: Instant) -> Self {
        Self {
            gfn,
            access,
            asker,
            since,
        }
    }
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
    pub(super) fn park_busy(&mut self, waiter: Waiter) {
        add(self.busy.entry(waiter.gfn).or_default(), waiter);
    }

    /// There is no memory for this fault.
    pub(super) fn park_starved(&mut self, waiter: Waiter) {
        add(&mut self.starved, waiter);
    }

    /// Takes out the faults that waited for a page.
    pub(super) fn unlocked(&mut self, gfn: Gfn) -> Vec<Waiter> {
        self.busy.remove(&gfn).unwrap_or_default()
    }

    /// Takes out the faults that waited for memory, in the order in which they came.
    pub(super) fn take_starved(&mut self) -> Vec<Waiter> {
        std::mem::take(&mut self.starved)
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

fn add(waiters: &mut Vec<Waiter>, waiter: Waiter) {
    let woken_with = |other: &Waiter| {
        other.asker == Asker::Kernel && waiter.asker == Asker::Kernel && other.gfn == waiter.gfn
    };
    if !waiters.iter().any(woken_with) {
        waiters.push(waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(gfn: u32, asker: Asker) -> Waiter {
        Waiter::new(Gfn(gfn), Access::Any, asker, Instant::now())
    }

    #[test]
    fn uffd_faults_on_one_page_are_kept_once_and_channels_each() {
        let mut waiting = Waiting::default();
        for asker in [
            Asker::Kernel,
            Asker::Kernel,
            Asker::Channel(0),
            Asker::Channel(1),
        ] {
            waiting.park_busy(waiter(5, asker));
            waiting.park_starved(waiter(5, asker));
        }
        waiting.park_starved(waiter(6, Asker::Kernel));
        assert_eq!(waiting.unlocked(Gfn(5)).len(), 3);
        assert_eq!(waiting.unlocked(Gfn(5)).len(), 0);
        assert_eq!(waiting.starved().map(|(count, _)| count), Some(4));
        assert_eq!(waiting.take_starved().len(), 4);
        assert!(waiting.starved().is_none());
    }
}
