//! What happened to pages, counted by where they were and where they went: alike for a recorded host and a simulated one.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::page::{Home, Witness};
use crate::trace::format::Place;
use crate::units::Gfn;

const PLACES: usize = 7;

/// Moves of pages, by where they were and where they went.
#[derive(Debug, Default)]
pub(super) struct Moves([[AtomicU64; PLACES]; PLACES]);

impl Moves {
    pub(super) fn note(&self, from: Place, to: Place) {
        // Relaxed: one thread counts.
        self.0[from as usize][to as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, from: Place, to: Place) -> u64 {
        self.0[from as usize][to as usize].load(Ordering::Relaxed)
    }

    /// How many pages were evicted.
    pub(super) fn evicted(&self) -> u64 {
        self.counts().evicted()
    }

    pub(super) fn counts(&self) -> Counts {
        use Place::{Ballooned, Compressed, Resident, Shared, Swapped, Untouched, Zero};
        let to = |to| self.count(Resident, to) + self.count(Shared, to);
        Counts {
            first_touches: self.count(Untouched, Resident),
            refills_zip: self.count(Compressed, Resident),
            refills_swap: self.count(Swapped, Resident),
            refills_zero: self.count(Zero, Resident),
            breaks: self.count(Shared, Resident),
            pops: self.count(Ballooned, Resident),
            evicted_zip: to(Compressed),
            evicted_swap: to(Swapped),
            evicted_zero: self.count(Resident, Zero),
            spilled: self.count(Compressed, Swapped),
        }
    }
}

impl Witness for Moves {
    fn moved(&self, _: Gfn, from: Home, to: Home) {
        self.note(from.into(), to.into());
    }

    fn accessed(&self, _: Gfn) {}

    fn compressed(&self, _: Gfn, _: u32) {}

    fn hashed(&self, _: Gfn, _: u64) {}
}

/// What happened to pages. Pages that came ahead of their access count like those that were asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Given as zeroes because nothing was there.
    pub first_touches: u64,
    /// Brought back from the compression cache.
    pub refills_zip: u64,
    /// Brought back from the swap file.
    pub refills_swap: u64,
    /// Given as zeroes because they had been found to be zero.
    pub refills_zero: u64,
    /// Copied because they were shared.
    pub breaks: u64,
    /// Taken out of a balloon by an access.
    pub pops: u64,
    /// Evicted into the compression cache.
    pub evicted_zip: u64,
    /// Evicted into the swap file.
    pub evicted_swap: u64,
    /// Found to be zero, and dropped.
    pub evicted_zero: u64,
    /// Moved on from a full cache to the swap file.
    pub spilled: u64,
}

impl Counts {
    /// Pages that were there, and had to be brought back.
    #[must_use]
    pub const fn refaults(&self) -> u64 {
        self.refills_zip + self.refills_swap + self.refills_zero
    }

    /// Pages that left RAM.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted_zip + self.evicted_swap + self.evicted_zero
    }

    /// All of several VMs.
    pub(super) fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            first_touches: sum.first_touches + one.first_touches,
            refills_zip: sum.refills_zip + one.refills_zip,
            refills_swap: sum.refills_swap + one.refills_swap,
            refills_zero: sum.refills_zero + one.refills_zero,
            breaks: sum.breaks + one.breaks,
            pops: sum.pops + one.pops,
            evicted_zip: sum.evicted_zip + one.evicted_zip,
            evicted_swap: sum.evicted_swap + one.evicted_swap,
            evicted_zero: sum.evicted_zero + one.evicted_zero,
            spilled: sum.spilled + one.spilled,
        })
    }
}
