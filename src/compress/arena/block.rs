//! A block of adjacent arena pages, and the slots that divide it.

use std::iter;

use super::{BLOCK_PAGES, Class};
use crate::units::SlotId;

/// What a block can be used for. An *open* block has taken slots, all of its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not open, and no page has memory.
    Unused,
    /// Not open, and some pages are emptied.
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
    /// The neighbours in the list of taken slots by age.
    pub(super) older: Option<SlotId>,
    pub(super) newer: Option<SlotId>,
    pub(super) value: T,
}

#[derive(Debug)]
pub(super) struct Block<T> {
    pub(super) class: Class,
    /// Empty when the block is not open.
    pub(super) slots: Box<[Option<Taken<T>>]>,
    /// A bit for each free slot.
    pub(super) free: u128,
    /// How many payloads touch each page.
    pub(super) touched: [u8; BLOCK_PAGES],
    /// A bit for each page that has memory.
    pub(super) memory: u8,
    /// The state in which the block was last put into a list.
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
            // Clears the lowest bit. When there is none, the subtraction ends the iteration.
            free &= free.checked_sub(1)?;
            Some(slot)
        })
    }

    /// Whether all pages of a slot have memory.
    fn has_memory(&self, slot: usize) -> bool {
        let mut pages = self.class.touches(slot, self.class.slot_bytes());
        pages.all(|page| self.memory & 1 << page != 0)
    }

    /// What a payload of `len` bytes in a slot would cost.
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
            // No slot can cost less, and a block has up to 128 of them.
            if (cost.holes, cost.emptied) == (0, 0) {
                break;
            }
        }
        best.expect("only a block with a free slot is asked")
    }
}

/// How many pages a slot would touch that no other payload touches. Less is better, in the order of the fields.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Cost {
    /// Pages without memory.
    pub(super) holes: u32,
    /// Emptied pages, whose memory could be given back otherwise.
    pub(super) emptied: u32,
    pub(super) slot: usize,
}
