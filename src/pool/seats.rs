//! Short numbers of VMs, for hints.
//!
//! Hints outlive the VM that they name. So seats that are given back are kept until no other seat is free. Only
//! then, after a sweep over all hints, do they go to other VMs.

use std::{io, mem};

use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, zeroes};
use crate::units::VmId;

/// The number of seats, [`NOBODY`] included. Few in tests, so that they run out.
pub(super) const SEATS: usize = if cfg!(any(test, loom)) { 8 } else { 1 << 16 };
/// Stands for VMs that have no seat.
pub(super) const NOBODY: u16 = 0;

/// The number of a sharing domain in the table of hints; never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DomainId(u32);

impl DomainId {
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// A value that differs for each domain, to be mixed with digests.
    pub(super) const fn mix(self) -> u64 {
        (self.0 as u64) << 17
    }
}

/// Who has which seat.
#[derive(Debug)]
pub(super) struct Seats {
    lists: Mutex<Lists>,
    /// For each seat its domain in the upper half and its VM in the lower; 0 when nobody has it. Relaxed is enough:
    /// whoever sees a hint sees the owner that was stored before the hint was made, and sweeps run under the lock under
    /// which seats are given back.
    owners: Box<[AtomicU64]>,
    /// Hints of each seat.
    counts: Box<[AtomicU32]>,
}

#[derive(Debug)]
struct Lists {
    /// Free seats; no hints name them.
    free: Vec<u16>,
    /// Seats that were given back since the last sweep; hints may still name them.
    left: Vec<u16>,
}

impl Seats {
    #[expect(clippy::cast_possible_truncation, reason = "as many as have 16 bits")]
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            lists: Mutex::new(Lists {
                free: (NOBODY + 1..=(SEATS - 1) as u16).rev().collect(),
                left: Vec::new(),
            }),
            owners: zeroes(SEATS)?,
            counts: zeroes(SEATS)?,
        })
    }

    /// A seat for a VM; [`NOBODY`] when all are taken. `sweep` takes away all hints of seats without an owner.
    pub(super) fn take(&self, domain: DomainId, vm: VmId, sweep: impl FnOnce()) -> u16 {
        let mut lists = self.lists.lock();
        if lists.free.is_empty() {
            sweep();
            let Lists { free, left } = &mut *lists;
            // Only after the sweep: until then hints of the VMs that had these seats would name their successors.
            mem::swap(free, left);
        }
        let Some(seat) = lists.free.pop() else {
            tracing::warn!(%vm, "more VMs than hints can name: its pages are found by others only once shared");
            return NOBODY;
        };
        let owner = u64::from(domain.0) << 32 | u64::from(vm.0);
        self.owners[usize::from(seat)].store(owner, Ordering::Relaxed);
        seat
    }

    pub(super) fn give(&self, seat: u16) {
        if seat != NOBODY {
            let mut lists = self.lists.lock();
            self.owners[usize::from(seat)].store(0, Ordering::Relaxed);
            lists.left.push(seat);
        }
    }

    /// Who has the seat.
    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(super) fn owner(&self, seat: usize) -> Option<(DomainId, VmId)> {
        let owner = self.owners[seat].load(Ordering::Relaxed);
        (owner != 0).then_some((DomainId((owner >> 32) as u32), VmId(owner as u32)))
    }

    /// Notes that one more hint names this seat.
    pub(super) fn gained(&self, seat: usize) {
        self.counts[seat].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that one hint less names this seat.
    pub(super) fn lost(&self, seat: usize) {
        self.counts[seat].fetch_sub(1, Ordering::Relaxed);
    }

    /// How many hints name this seat.
    pub(super) fn hints(&self, seat: usize) -> u64 {
        self.counts[seat].load(Ordering::Relaxed).into()
    }

    /// How many hints a domain has.
    pub(super) fn count(&self, domain: DomainId) -> u64 {
        let mine = |owner: &AtomicU64| owner.load(Ordering::Relaxed) >> 32 == u64::from(domain.0);
        let seats = self.owners.iter().zip(&self.counts);
        let counts = seats.filter(|(owner, _)| mine(owner));
        counts
            .map(|(_, count)| u64::from(count.load(Ordering::Relaxed)))
            .sum()
    }
}
