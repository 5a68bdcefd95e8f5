//! A block of adjacent arena pages, and the slots that divide it.

use std::iter;

use super::{BLOCK_PAGES, Class};
use crate::units::SlotId;

/// What a block is good for. An open one has taken slots, all of its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not open, no page with memory.
    Unused,
    /// Not open, some emptied pages.
    Spare,
    /// Open; a free slot lies in pages with memory.
    Ready(Class),
    /// Open; each free slot touches a page without memory.
    Thin(Class),
    /// Open; no free slot.
    Full,
}

#[derive(Debug)]
pub(super) struct Taken<T> {
    pub(super) len: u16,
    /// The slots that were taken next before and after this one, of those that are taken.
    pub(super) older: Option<SlotId>,
    pub(super) newer: Option<SlotId>,
    pub(super) value: T,
}

#[derive(Debug)]
pub(super) struct Block<T> {
    pub(super) class: Class,
    /// None when the block is not open.
    pub(super) slots: Box<[Option<Taken<T>>]>,
    /// A bit for each free slot.
    pub(super) free: u128,
    /// How many payloads touch each page.
    pub(super) touched: [u8; BLOCK_PAGES],
    /// A bit for each page that has memory.
    pub(super) memory: u8,
    /// As it was when it was last put into a list.
    pub(super) state: State,
}

impl<T> Block<T> {
    pub(super) fn unused() -> Self {
        Self {
            class: Class(0),
            slots: Box::default(),
            free: 0,
            touched: [0; BLOCK_PAGES],
            memory: 0,
            state: State::Unused,
        }
    }

    pub(super) fn open(&mut self, class: Class) {
        self.class = class;
        self.slots = (0..class.slots()).map(|_| None).collect();
        self.free = u128::MAX >> (u128::BITS as usize - class.slots());
    }

    pub(super) fn state(&self) -> State {
        if self.slots.is_empty() {
            return if self.memory == 0 {
                State::Unused
            } else {
                State::Spare
            };
        }
        if self.free == 0 {
            State::Full
        } else if self.memory == u8::MAX || self.free_slots().any(|slot| self.has_memory(slot)) {
            State::Ready(self.class)
        } else {
            State::Thin(self.class)
        }
    }

    /// The free slots of an open block, ascending.
    fn free_slots(&self) -> impl Iterator<Item = usize> {
        let mut free = self.free;
        iter::from_fn(move || {
            let slot = free.trailing_zeros() as usize;
            // Takes out the lowest bit; of none, there is none left.
            free &= free.checked_sub(1)?;
            Some(slot)
        })
    }

    /// Whether all pages of a slot have memory. Asked with every payload that comes or goes.
    fn has_memory(&self, slot: usize) -> bool {
        let mut pages = self.class.touches(slot, self.class.slot_bytes());
        pages.all(|page| self.memory & 1 << page != 0)
    }

    /// What `len` bytes in a slot would take.
    fn cost(&self, slot: usize, len: usize) -> Cost {
        let mut cost = Cost {
            holes: 0,
            emptied: 0,
            slot,
        };
        for page in self.class.touches(slot, len) {
            if self.memory & 1 << page == 0 {
                cost.holes += 1;
            } else if self.touched[page] == 0 {
                cost.emptied += 1;
            }
        }
        cost
    }

    /// The free slot of an open block in which `len` bytes cost least.
    pub(super) fn best(&self, len: usize) -> Cost {
        let mut best = None;
        for cost in self.free_slots().map(|slot| self.cost(slot, len)) {
            if best.is_none_or(|best| cost < best) {
                best = Some(cost);
            }
            if (cost.holes, cost.emptied) == (0, 0) {
                break;
            }
        }
        best.expect("only a block with a free slot is asked")
    }
}

/// Pages that a slot would touch and that nobody else does; less is better, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Cost {
    /// Without memory.
    pub(super) holes: u32,
    /// With memory, which could be given back.
    pub(super) emptied: u32,
    pub(super) slot: usize,
}
