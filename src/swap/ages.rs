//! The order in which pages came into a file, and which pages they are.

use zerocopy::FromZeros;

use crate::sync::zeroes;
use crate::units::{Gfn, SlotId};

/// The end of the list. No file has so many slots.
const NONE: u32 = u32::MAX;

/// What a slot is linked to. All zero until it is first used.
#[derive(Clone, Copy, Debug, FromZeros)]
struct Link {
    gfn: u32,
    older: u32,
    newer: u32,
}

/// The slots in use as a list from the oldest to the newest, linked through a table, so that a slot anywhere leaves it
/// at once. 12 bytes a slot.
#[derive(Debug)]
pub(super) struct Ages {
    links: Box<[Link]>,
    oldest: u32,
    newest: u32,
}

impl Ages {
    /// No slot of `slots` is in use.
    ///
    /// # Errors
    /// When there is no memory for the table.
    pub(super) fn new(slots: u32) -> std::io::Result<Self> {
        Ok(Self {
            links: zeroes(slots as usize)?,
            oldest: NONE,
            newest: NONE,
        })
    }

    /// Adds a slot, which is not in the list, as the newest.
    pub(super) fn push(&mut self, slot: SlotId, gfn: Gfn) {
        let older = std::mem::replace(&mut self.newest, slot.0);
        self.links[slot.0 as usize] = Link {
            gfn: gfn.0,
            older,
            newer: NONE,
        };
        match older {
            NONE => self.oldest = slot.0,
            older => self.links[older as usize].newer = slot.0,
        }
    }

    /// Takes a slot out of the list, in which it is.
    pub(super) fn remove(&mut self, slot: SlotId) {
        let Link { older, newer, .. } = self.links[slot.0 as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
    }

    /// Whether a slot that is or was in the list is in it now.
    pub(super) fn has(&self, slot: SlotId) -> bool {
        match self.links[slot.0 as usize].older {
            NONE => self.oldest == slot.0,
            older => self.links[older as usize].newer == slot.0,
        }
    }

    /// Which page a slot of the list holds.
    pub(super) fn gfn(&self, slot: SlotId) -> Gfn {
        Gfn(self.links[slot.0 as usize].gfn)
    }

    /// The slots from the oldest.
    pub(super) fn by_age(&self) -> impl Iterator<Item = SlotId> {
        let some = |slot: u32| (slot != NONE).then_some(slot);
        let next = move |slot: &u32| some(self.links[*slot as usize].newer);
        std::iter::successors(some(self.oldest), next).map(SlotId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list that is searched: each step puts a slot in as the newest, or takes it out.
        #[test]
        fn ages_any_steps_agree_with_the_model(steps in prop::collection::vec(0..20u32, 0..200)) {
            let mut ages = Ages::new(20).expect("memory");
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (gfn, slot) in (100..).zip(steps) {
                match model.iter().position(|(known, _)| *known == slot) {
                    Some(at) => {
                        ages.remove(SlotId(slot));
                        model.remove(at);
                    }
                    None => {
                        ages.push(SlotId(slot), Gfn(gfn));
                        model.push((slot, gfn));
                    }
                }
                let listed = ages.by_age().map(|slot| (slot.0, ages.gfn(slot).0));
                prop_assert_eq!(listed.collect::<Vec<_>>(), model.clone());
            }
        }
    }
}
