//! Which slot of which arena page is taken; no bytes.

use std::collections::BTreeSet;

use crate::units::{PAGE_SIZE, SlotId};

/// How many slots share an arena page, smallest slots first.
const SLOTS_PER_PAGE: [usize; 5] = [16, 8, 4, 3, 2];

/// A [`SlotId`] is `arena page * STRIDE + slot in the page`, whatever the size of the slots.
const STRIDE: u32 = 16;

/// The most arena pages that a [`SlotId`] can tell apart.
pub(super) const MAX_ARENA_PAGES: u32 = u32::MAX / STRIDE;

/// A size of slots, as an index into [`SLOTS_PER_PAGE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class(usize);

impl Class {
    /// The smallest slots that hold `len` bytes; `None` when no slot does.
    pub(super) fn of(len: usize) -> Option<Self> {
        let fits = |slots: &usize| len <= PAGE_SIZE / slots;
        SLOTS_PER_PAGE.iter().position(fits).map(Self)
    }

    fn slots(self) -> usize {
        SLOTS_PER_PAGE[self.0]
    }

    fn slot_bytes(self) -> usize {
        PAGE_SIZE / self.slots()
    }
}

/// An arena page and the byte in it at which a slot starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) page: u32,
    pub(super) at: usize,
}

/// A page in use: `T` of each taken slot.
#[derive(Debug)]
struct ArenaPage<T> {
    class: Class,
    slots: Box<[Option<T>]>,
}

impl<T> ArenaPage<T> {
    fn is_full(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }
}

/// The allocator of slots; keeps a `T` for each taken one.
///
/// Invariants: `partial[c]` holds exactly the pages of class `c` with a free slot; a page without
/// taken slots is `None` in `pages` and in `emptied` or `unused`, or was never used. An emptied page
/// still has its memory, so it is the first to be used again.
#[derive(Debug)]
pub(super) struct Arena<T> {
    pages: Vec<Option<ArenaPage<T>>>,
    emptied: Vec<u32>,
    unused: BTreeSet<u32>,
    partial: [BTreeSet<u32>; SLOTS_PER_PAGE.len()],
}

impl<T> Arena<T> {
    pub(super) const fn new() -> Self {
        Self {
            pages: Vec::new(),
            emptied: Vec::new(),
            unused: BTreeSet::new(),
            partial: [const { BTreeSet::new() }; SLOTS_PER_PAGE.len()],
        }
    }

    /// The arena pages that have memory: those with taken slots and the emptied ones.
    #[expect(clippy::cast_possible_truncation, reason = "pages are numbered by u32")]
    pub(super) fn pages_used(&self) -> u32 {
        (self.pages.len() - self.unused.len()) as u32
    }

    /// Whether a slot of this class takes another arena page.
    pub(super) fn needs_page(&self, class: Class) -> bool {
        self.partial[class.0].is_empty() && self.emptied.is_empty()
    }

    /// Makes room in the tables for one more arena page, which a slot may then take; whether there is memory
    /// for that.
    pub(super) fn make_room(&mut self) -> bool {
        // Each page may be emptied, and that must not fail.
        let emptied = self.pages.len() + 1 - self.emptied.len();
        self.pages.try_reserve(1).is_ok() && self.emptied.try_reserve(emptied).is_ok()
    }

    /// How many pages have memory and no taken slots.
    #[expect(clippy::cast_possible_truncation, reason = "pages are numbered by u32")]
    pub(super) const fn emptied(&self) -> u32 {
        self.emptied.len() as u32
    }

    /// The emptied pages, ascending, whose memory the caller gives back to the machine.
    pub(super) fn take_emptied(&mut self) -> Vec<u32> {
        let mut emptied = std::mem::take(&mut self.emptied);
        emptied.sort_unstable();
        self.unused.extend(&emptied);
        emptied
    }

    /// Takes a slot for `value`, in the lowest partly used page of its class, or else in the page that
    /// was emptied last, or else in the lowest unused page.
    pub(super) fn take(&mut self, class: Class, value: T) -> (SlotId, Place) {
        let partial = self.partial[class.0].first().copied();
        let number = partial.unwrap_or_else(|| self.open_page(class));
        let page = self.pages[number as usize]
            .as_mut()
            .expect("a partly used page is in use");
        let slot = page.slots.iter().position(Option::is_none);
        let slot = slot.expect("a partly used page has a free slot");
        page.slots[slot] = Some(value);
        if page.is_full() {
            self.partial[class.0].remove(&number);
        }
        (slot_id(number, slot), place(class, number, slot))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the cap is a u32")]
    fn open_page(&mut self, class: Class) -> u32 {
        let memory = self.emptied.pop().or_else(|| self.unused.pop_first());
        let number = memory.unwrap_or_else(|| {
            self.pages.push(None);
            (self.pages.len() - 1) as u32
        });
        let slots = (0..class.slots()).map(|_| None).collect();
        self.pages[number as usize] = Some(ArenaPage { class, slots });
        self.partial[class.0].insert(number);
        number
    }

    /// What is kept for a taken slot, and where its bytes are; `None` for a free one.
    pub(super) fn get(&self, id: SlotId) -> Option<(&T, Place)> {
        let (number, slot) = split(id);
        let page = self.pages.get(number as usize)?.as_ref()?;
        let value = page.slots.get(slot)?.as_ref()?;
        Some((value, place(page.class, number, slot)))
    }

    /// Frees a slot; the last of an arena page leaves that page emptied. Returns what was kept for it;
    /// `None` for a free slot.
    pub(super) fn free(&mut self, id: SlotId) -> Option<T> {
        let (number, slot) = split(id);
        let entry = self.pages.get_mut(number as usize)?;
        let page = entry.as_mut()?;
        let value = page.slots.get_mut(slot)?.take()?;
        let partial = &mut self.partial[page.class.0];
        if !page.is_empty() {
            partial.insert(number);
            return Some(value);
        }
        partial.remove(&number);
        *entry = None;
        self.emptied.push(number);
        Some(value)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a page has at most 16 slots"
)]
const fn slot_id(page: u32, slot: usize) -> SlotId {
    SlotId(page * STRIDE + slot as u32)
}

const fn split(id: SlotId) -> (u32, usize) {
    (id.0 / STRIDE, (id.0 % STRIDE) as usize)
}

fn place(class: Class, page: u32, slot: usize) -> Place {
    Place {
        page,
        at: slot * class.slot_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn class_boundaries_share_a_page_by_16_8_4_3_2() {
        for (len, slots) in [
            (1, 16),
            (256, 16),
            (257, 8),
            (512, 8),
            (513, 4),
            (1024, 4),
            (1025, 3),
            (1365, 3),
            (1366, 2),
            (2048, 2),
        ] {
            assert_eq!(Class::of(len).map(Class::slots), Some(slots), "{len} bytes");
        }
        assert_eq!(Class::of(2049), None);
    }

    #[test]
    fn free_of_a_free_or_unknown_slot_is_none() {
        let mut arena = Arena::new();
        let (slot, _) = arena.take(Class::of(2048).unwrap(), ());
        assert!(arena.free(SlotId(slot.0 + 1)).is_none(), "free slot");
        assert!(
            arena.free(SlotId(slot.0 + 2)).is_none(),
            "no such slot in the class"
        );
        assert!(
            arena.free(SlotId(slot.0 + STRIDE)).is_none(),
            "no such page"
        );
        assert!(arena.free(slot).is_some());
        assert!(arena.free(slot).is_none(), "twice");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        Free(usize),
        TakeEmptied,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            9 => (1..=2048usize).prop_map(Step::Take),
            6 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::TakeEmptied),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        /// Against a map of byte ranges and a set of pages with memory: no two slots overlap, none leaves
        /// its page, and an emptied page keeps its memory until that is taken.
        #[test]
        fn arena_any_steps_agree_with_the_model(steps in steps()) {
            let mut arena = Arena::new();
            let mut model: HashMap<SlotId, (u32, Place, usize)> = HashMap::new();
            let mut memory: BTreeSet<u32> = BTreeSet::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Take(len) => {
                        let class = Class::of(len).expect("at most half a page");
                        let grows = arena.needs_page(class);
                        let (slot, place) = arena.take(class, number);
                        prop_assert_eq!(grows, memory.insert(place.page));
                        prop_assert!(place.at + len <= PAGE_SIZE);
                        for (_, other, length) in model.values() {
                            let apart = other.page != place.page
                                || other.at + length <= place.at
                                || place.at + len <= other.at;
                            prop_assert!(apart, "{:?} {:?}", other, place);
                        }
                        prop_assert!(model.insert(slot, (number, place, len)).is_none());
                    }
                    Step::Free(pick) => {
                        let Some(&slot) = model.keys().nth(pick % model.len().max(1)) else {
                            continue;
                        };
                        let (number, _, _) = model.remove(&slot).expect("picked from it");
                        prop_assert_eq!(arena.free(slot), Some(number));
                    }
                    Step::TakeEmptied => {
                        let used: BTreeSet<u32> = model.values().map(|(_, at, _)| at.page).collect();
                        let emptied: Vec<u32> = memory.difference(&used).copied().collect();
                        prop_assert_eq!(arena.take_emptied(), emptied);
                        memory = used;
                    }
                }
                let used: BTreeSet<u32> = model.values().map(|(_, at, _)| at.page).collect();
                prop_assert_eq!(arena.emptied() as usize, memory.len() - used.len());
                prop_assert_eq!(arena.pages_used() as usize, memory.len());
                for (&slot, (number, place, _)) in &model {
                    prop_assert_eq!(arena.get(slot), Some((number, *place)));
                }
            }
        }
    }
}
