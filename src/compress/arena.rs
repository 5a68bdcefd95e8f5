//! Which slot of which block of arena pages is taken, and which pages have memory. The bytes are elsewhere.
//!
//! Slots that divide a single page are far apart in size: a page holds two payloads of 1380 bytes, and a third of it is
//! lost. So slots divide *blocks* of [`BLOCK_PAGES`] adjacent pages, and may cross from one page into the next: from
//! half a KiB up, sizes are 5 to 12 % apart.
//!
//! But a block with one taken slot must not keep all of its pages. So a block is only a range of the arena
//! file, and memory is kept by the page. A page gets memory as soon as a payload touches it. It is *emptied* when
//! the last payload that touches it goes, and can then be given back, whatever lies in the rest of its block. The
//! kernel counts in the same way, and a small cache uses a part of a block. The price is a file that is longer
//! than its memory.
//!
//! The order in which slots were taken is a linked list through the entries of the slots. Payloads leave from its
//! middle with each refill; a sorted map would have to search for each and rebalance afterwards.
//!
//! No slot is larger than half a page, so each page of a block holds one slot from end to end. A payload in a
//! well chosen slot therefore never takes more than one new page.

#![expect(
    clippy::cast_possible_truncation,
    reason = "pages and blocks are numbered by u32"
)]

mod block;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use self::block::{Block, State, Taken};
use crate::units::{PAGE_SIZE, SlotId};

/// How many pages are divided into slots together. With four, steps would be 10 % above 1.5 KiB, a frequent size
/// of payloads of programs, and the cache up to 4 % larger.
const BLOCK_PAGES: usize = 8;

/// How many slots share a block, smallest slots first: 256 bytes to half a page.
const SLOTS_PER_BLOCK: [usize; 23] = [
    128, 96, 80, 64, 58, 52, 48, 44, 40, 36, 32, 30, 28, 26, 24, 23, 22, 21, 20, 19, 18, 17, 16,
];

/// The size of the slots of each class. A table, because it is needed for each slot that is looked at, and a division
/// would be too slow.
const SLOT_BYTES: [usize; SLOTS_PER_BLOCK.len()] = {
    let mut sizes = SLOTS_PER_BLOCK;
    let mut class = 0;
    while class < sizes.len() {
        sizes[class] = BLOCK_PAGES * PAGE_SIZE / SLOTS_PER_BLOCK[class];
        class += 1;
    }
    sizes
};

/// A [`SlotId`] is `block * STRIDE + slot in the block`, whatever the size of the slots.
const STRIDE: u32 = 128;

/// The most pages of an arena file whose slots a [`SlotId`] can number: a TiB.
pub(super) const MAX_ARENA_PAGES: u32 = (u32::MAX / STRIDE + 1) * PAGES;

const PAGES: u32 = BLOCK_PAGES as u32;

/// A size of slots, as an index into [`SLOTS_PER_BLOCK`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class(usize);

impl Class {
    /// The class of the smallest slots that hold `len` bytes; `None` when no slot does.
    pub(super) fn of(len: usize) -> Option<Self> {
        (0..SLOTS_PER_BLOCK.len())
            .map(Self)
            .find(|class| len <= class.slot_bytes())
    }

    const fn slots(self) -> usize {
        SLOTS_PER_BLOCK[self.0]
    }

    const fn slot_bytes(self) -> usize {
        SLOT_BYTES[self.0]
    }

    /// The pages of its block that a payload of `len` bytes in a slot touches.
    fn touches(self, slot: usize, len: usize) -> RangeInclusive<usize> {
        let at = slot * self.slot_bytes();
        at / PAGE_SIZE..=(at + len.max(1) - 1) / PAGE_SIZE
    }
}

/// Where the bytes of a payload are; they may go on in the next page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// The arena page in which the bytes begin.
    pub(super) page: u32,
    /// The first byte in it.
    pub(super) at: usize,
    pub(super) len: u16,
}

/// The allocator of slots. It keeps a `T` for each taken slot.
///
/// Invariants: each block is in the list of its state. A page has memory if a payload touches it or if it is
/// in `emptied`. Each taken slot is in the list from `oldest` to `newest`, once.
#[derive(Debug)]
pub(super) struct Arena<T> {
    blocks: Vec<Block<T>>,
    taken: u64,
    oldest: Option<SlotId>,
    newest: Option<SlotId>,
    most_blocks: u32,
    ready: [BTreeSet<u32>; SLOTS_PER_BLOCK.len()],
    thin: [BTreeSet<u32>; SLOTS_PER_BLOCK.len()],
    spare: BTreeSet<u32>,
    unused: BTreeSet<u32>,
    emptied: BTreeSet<u32>,
    pages_used: u32,
}

impl<T> Arena<T> {
    /// An arena without taken slots, which may have memory for up to `most_pages` pages.
    pub(super) fn new(most_pages: u32) -> Self {
        Self {
            blocks: Vec::new(),
            taken: 0,
            oldest: None,
            newest: None,
            most_blocks: blocks(most_pages),
            ready: [const { BTreeSet::new() }; SLOTS_PER_BLOCK.len()],
            thin: [const { BTreeSet::new() }; SLOTS_PER_BLOCK.len()],
            spare: BTreeSet::new(),
            unused: BTreeSet::new(),
            emptied: BTreeSet::new(),
            pages_used: 0,
        }
    }

    /// The length of the arena file in pages.
    pub(super) const fn file_pages(&self) -> u32 {
        self.most_blocks * PAGES
    }

    /// The arena pages that have memory: those that payloads touch and the emptied ones.
    pub(super) const fn pages_used(&self) -> u32 {
        self.pages_used
    }

    /// Whether `len` bytes need a page that has no memory yet. They never need two.
    pub(super) fn needs_page(&self, class: Class, len: u16) -> bool {
        if !self.ready[class.0].is_empty() || !self.spare.is_empty() {
            return false;
        }
        let thin = self.thin[class.0].first();
        thin.is_none_or(|block| self.blocks[*block as usize].best(len.into()).holes > 0)
    }

    /// Makes room in the tables for a slot of this class that [needs a page](Self::needs_page). `false`: there is
    /// no memory for the tables, or no block is left.
    pub(super) fn make_room(&mut self, class: Class) -> bool {
        let has_block = !self.thin[class.0].is_empty() || !self.unused.is_empty();
        let may_have = self.blocks.len() < self.most_blocks as usize;
        // Asked before a block is pushed: a push that finds no memory would end the daemon.
        has_block || may_have && self.blocks.try_reserve(1).is_ok()
    }

    /// How many pages have memory and hold no payload.
    pub(super) fn emptied(&self) -> u32 {
        self.emptied.len() as u32
    }

    /// Takes out the emptied pages, ascending. The caller must give their memory back to the machine.
    pub(super) fn take_emptied(&mut self) -> Vec<u32> {
        let emptied: Vec<u32> = std::mem::take(&mut self.emptied).into_iter().collect();
        self.pages_used -= emptied.len() as u32;
        // Block by block, so that each is put into another list once, and not once for each of its pages.
        for pages in emptied.chunk_by(|page, next| page / PAGES == next / PAGES) {
            let number = pages[0] / PAGES;
            let block = &mut self.blocks[number as usize];
            for page in pages {
                block.memory &= !(1 << (page % PAGES));
            }
            self.enlist(number);
        }
        emptied
    }

    /// Takes a slot for `value` and its `len` bytes: in the lowest block of the class that needs no more memory, else
    /// in a block that is not open and still has memory, else where one page more is enough.
    pub(super) fn take(&mut self, class: Class, len: u16, value: T) -> (SlotId, Place) {
        let number = self.choose(class);
        let block = &mut self.blocks[number as usize];
        if block.slots.is_empty() {
            block.open(class);
        }
        let slot = block.best(usize::from(len)).slot;
        for page in class.touches(slot, usize::from(len)) {
            if block.memory & 1 << page == 0 {
                block.memory |= 1 << page;
                self.pages_used += 1;
            } else if block.touched[page] == 0 {
                // The page was to be given back, and is in use again.
                self.emptied.remove(&(number * PAGES + page as u32));
            }
            block.touched[page] += 1;
        }
        let id = slot_id(number, slot);
        block.slots[slot] = Some(Taken {
            len,
            older: None,
            newer: None,
            value,
        });
        block.free &= !(1 << slot);
        self.enlist(number);
        self.taken += 1;
        self.join(self.newest, Some(id));
        self.newest = Some(id);
        (id, place(class, number, slot, len))
    }

    fn choose(&mut self, class: Class) -> u32 {
        let ready = self.ready[class.0].first().or_else(|| self.spare.first());
        let thin = ready.or_else(|| self.thin[class.0].first());
        if let Some(block) = thin.or_else(|| self.unused.first()) {
            return *block;
        }
        self.blocks.push(Block::unused());
        let number = (self.blocks.len() - 1) as u32;
        self.unused.insert(number);
        number
    }

    /// Puts a block that has changed into the list of its state.
    fn enlist(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        let (old, new) = (block.state, block.state());
        if old == new {
            return;
        }
        block.state = new;
        if let Some(list) = self.list(old) {
            list.remove(&number);
        }
        if let Some(list) = self.list(new) {
            list.insert(number);
        }
    }

    fn list(&mut self, state: State) -> Option<&mut BTreeSet<u32>> {
        match state {
            State::Unused => Some(&mut self.unused),
            State::Spare => Some(&mut self.spare),
            State::Ready(class) => Some(&mut self.ready[class.0]),
            State::Thin(class) => Some(&mut self.thin[class.0]),
            State::Full => None,
        }
    }

    /// What is kept for a taken slot, and where its bytes are; `None` for a free one.
    pub(super) fn get(&self, id: SlotId) -> Option<(&T, Place)> {
        let (number, slot) = split(id);
        let block = self.blocks.get(number as usize)?;
        let taken = block.slots.get(slot)?.as_ref()?;
        Some((&taken.value, place(block.class, number, slot, taken.len)))
    }

    /// What is kept for a taken slot, to be changed.
    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        Some(&mut self.slot_mut(id)?.value)
    }

    /// How many slots are taken.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// The slot that has been taken for longest.
    pub(super) const fn oldest(&self) -> Option<SlotId> {
        self.oldest
    }

    /// Of the taken slots, the one that was taken last before this one. Also `None` when this slot is free.
    pub(super) fn older(&self, id: SlotId) -> Option<SlotId> {
        self.slot(id)?.older
    }

    /// Of the taken slots, the one that was taken first after this one. Also `None` when this slot is free.
    pub(super) fn newer(&self, id: SlotId) -> Option<SlotId> {
        self.slot(id)?.newer
    }

    fn slot(&self, id: SlotId) -> Option<&Taken<T>> {
        let (number, slot) = split(id);
        self.blocks.get(number as usize)?.slots.get(slot)?.as_ref()
    }

    fn slot_mut(&mut self, id: SlotId) -> Option<&mut Taken<T>> {
        let (number, slot) = split(id);
        let block = self.blocks.get_mut(number as usize)?;
        block.slots.get_mut(slot)?.as_mut()
    }

    /// Makes two slots neighbours in the list; `None` stands for what is beyond an end of the list.
    fn join(&mut self, older: Option<SlotId>, newer: Option<SlotId>) {
        const LISTED: &str = "a slot in the list is taken";
        match older {
            Some(older) => self.slot_mut(older).expect(LISTED).newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.slot_mut(newer).expect(LISTED).older = older,
            None => self.newest = older,
        }
    }

    /// Frees a slot. Pages that no other payload touches are emptied by that. Returns what was kept for the slot, and
    /// the length of its payload; `None` for a free slot.
    pub(super) fn free(&mut self, id: SlotId) -> Option<(T, u16)> {
        let (number, slot) = split(id);
        let block = self.blocks.get_mut(number as usize)?;
        let Taken {
            len,
            older,
            newer,
            value,
        } = block.slots.get_mut(slot)?.take()?;
        block.free |= 1 << slot;
        for page in block.class.touches(slot, usize::from(len)) {
            block.touched[page] -= 1;
            if block.touched[page] == 0 {
                self.emptied.insert(number * PAGES + page as u32);
            }
        }
        if block.touched == [0; BLOCK_PAGES] {
            // A block without payloads forgets its class, so that payloads of any size can have its memory.
            block.slots = Box::default();
        }
        self.enlist(number);
        self.taken -= 1;
        self.join(older, newer);
        Some((value, len))
    }
}

/// How many blocks an arena of `most_pages` with memory has: twice as many as these pages fill, and one for each class.
/// Blocks run out before pages only when most blocks have lost most of their payloads, and new payloads are of another
/// class.
const fn blocks(most_pages: u32) -> u32 {
    let blocks = 2 * most_pages.div_ceil(PAGES) + SLOTS_PER_BLOCK.len() as u32;
    let most = MAX_ARENA_PAGES / PAGES;
    if blocks < most { blocks } else { most }
}

const fn slot_id(block: u32, slot: usize) -> SlotId {
    SlotId(block * STRIDE + slot as u32)
}

const fn split(id: SlotId) -> (u32, usize) {
    (id.0 / STRIDE, (id.0 % STRIDE) as usize)
}

fn place(class: Class, block: u32, slot: usize, len: u16) -> Place {
    let at = slot * class.slot_bytes();
    Place {
        page: block * PAGES + (at / PAGE_SIZE) as u32,
        at: at % PAGE_SIZE,
        len,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn class(len: u16) -> Class {
        Class::of(usize::from(len)).expect("at most half a page")
    }

    fn take<T>(arena: &mut Arena<T>, len: u16, value: T) -> (SlotId, Place) {
        assert!(!arena.needs_page(class(len), len) || arena.make_room(class(len)));
        arena.take(class(len), len, value)
    }

    #[test]
    fn classes_are_few_percent_apart_and_the_last_is_half_a_page() {
        let sizes: Vec<usize> = (0..SLOTS_PER_BLOCK.len())
            .map(|class| Class(class).slot_bytes())
            .collect();
        assert_eq!((sizes[0], sizes.last()), (256, Some(&(PAGE_SIZE / 2))));
        for pair in sizes.windows(2) {
            assert!(pair[0] < pair[1]);
            assert_eq!(Class::of(pair[0]).map(Class::slot_bytes), Some(pair[0]));
            assert_eq!(Class::of(pair[0] + 1).map(Class::slot_bytes), Some(pair[1]));
            let most = if pair[0] < 512 { 134 } else { 113 };
            assert!(pair[1] * 100 < pair[0] * most, "{pair:?}");
        }
        assert_eq!(Class::of(PAGE_SIZE / 2 + 1), None);
    }

    /// Otherwise a payload could take two new pages at once, and only one is charged.
    #[test]
    fn each_page_of_a_block_holds_a_slot_from_end_to_end() {
        for class in (0..SLOTS_PER_BLOCK.len()).map(Class) {
            for page in 0..BLOCK_PAGES {
                let is_inside = |slot| class.touches(slot, class.slot_bytes()) == (page..=page);
                assert!((0..class.slots()).any(is_inside), "{class:?}, page {page}");
            }
        }
    }

    #[test]
    fn free_of_a_free_or_unknown_slot_is_none() {
        let mut arena = Arena::new(8);
        let (slot, _) = take(&mut arena, 2048, ());
        assert!(arena.free(SlotId(slot.0 + 1)).is_none(), "free slot");
        assert!(
            arena.free(SlotId(slot.0 + 16)).is_none(),
            "no such slot in the class"
        );
        assert!(
            arena.free(SlotId(slot.0 + STRIDE)).is_none(),
            "no such block"
        );
        assert_eq!(arena.free(slot), Some(((), 2048)));
        assert!(arena.free(slot).is_none(), "twice");
    }

    #[test]
    fn last_payload_of_a_block_keeps_the_pages_it_touches_and_no_others() {
        let mut arena = Arena::new(8);
        let slots: Vec<_> = (0..20).map(|at| take(&mut arena, 1638, at)).collect();
        assert_eq!(arena.pages_used(), 8);
        let (kept, place) = slots[2];
        assert_eq!((place.page, place.at), (0, 2 * 1638));
        for (slot, _) in slots.into_iter().filter(|(slot, _)| *slot != kept) {
            arena.free(slot).expect("taken");
        }
        assert_eq!(arena.take_emptied(), [2, 3, 4, 5, 6, 7]);
        assert_eq!(arena.pages_used(), 2);
        assert_eq!(arena.get(kept), Some((&2, place)));
    }

    #[test]
    fn arena_without_blocks_left_makes_no_room() {
        let mut arena = Arena::new(0);
        let class = class(2048);
        let mut taken = Vec::new();
        while !arena.needs_page(class, 2048) || arena.make_room(class) {
            taken.push(arena.take(class, 2048, ()).0);
        }
        assert_eq!(taken.len(), 2 * arena.file_pages() as usize);
        arena.free(taken[0]);
        assert!(!arena.needs_page(class, 2048));
    }

    /// The arena of the largest VM fits into slots and words of the claim table.
    #[test]
    fn largest_arena_is_a_tib() {
        let arena = Arena::<()>::new(MAX_ARENA_PAGES);
        assert_eq!(arena.file_pages(), 1 << 28);
        assert_eq!(slot_id(arena.most_blocks - 1, 127), SlotId(u32::MAX));
    }

    /// Bytes of memory for a byte of payload.
    #[expect(clippy::cast_precision_loss, reason = "of a few megabytes")]
    fn looseness(arena: &Arena<()>, taken: &[(SlotId, u16)]) -> f64 {
        let bytes: u64 = taken.iter().map(|(_, len)| u64::from(*len)).sum();
        f64::from(arena.pages_used()) * PAGE_SIZE as f64 / bytes as f64
    }

    /// With five classes, whose slots crossed no page, it was 1.20, 1.22 and 1.94.
    #[test]
    fn churn_leaves_the_arena_dense() {
        let mut state = 1_u64;
        let mut draw = |end: u16| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 40) as u16 % end
        };
        let mut arena = Arena::new(1 << 20);
        let mut taken = Vec::new();
        let store = |arena: &mut Arena<()>, taken: &mut Vec<_>, len: u16| {
            taken.push((take(arena, len, ()).0, len));
        };
        for _ in 0..4000 {
            store(&mut arena, &mut taken, 900 + draw(1000));
        }
        let filled = looseness(&arena, &taken);
        for _ in 0..8000 {
            let (slot, _) = taken.swap_remove(usize::from(draw(4000)));
            arena.free(slot);
            store(&mut arena, &mut taken, 900 + draw(1000));
        }
        arena.take_emptied();
        let churned = looseness(&arena, &taken);
        for left in (2000..4000).rev() {
            let (slot, _) = taken.swap_remove(usize::from(draw(left)));
            arena.free(slot);
        }
        arena.take_emptied();
        let thinned = looseness(&arena, &taken);
        let is_dense = filled < 1.05 && churned < 1.13 && thinned < 1.95;
        assert!(is_dense, "{filled}, {churned}, {thinned}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u16),
        Free(usize),
        TakeEmptied,
    }

    /// Lengths of all classes, or of a few that are stored and freed again and again.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (1..=2048_u16).prop_map(Step::Take),
            9 => (1500..=1700_u16).prop_map(Step::Take),
            10 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::TakeEmptied),
        ];
        prop::collection::vec(step, 0..600)
    }

    /// First and last page of a payload.
    fn touched(place: &Place) -> RangeInclusive<u32> {
        let last = (place.at + usize::from(place.len) - 1) / PAGE_SIZE;
        place.page..=place.page + last as u32
    }

    proptest! {
        /// Against a map of byte ranges and a set of pages with memory: no two payloads overlap, no payload takes
        /// more than one new page, or a new page where an emptied one would do, and an emptied page keeps its
        /// memory until that is taken back.
        #[test]
        fn arena_any_steps_agree_with_the_model(steps in steps()) {
            let mut arena = Arena::new(1 << 20);
            let mut model: HashMap<SlotId, (u32, Place)> = HashMap::new();
            let mut bytes: BTreeMap<usize, usize> = BTreeMap::new();
            let mut memory: BTreeSet<u32> = BTreeSet::new();
            let used = |model: &HashMap<SlotId, (u32, Place)>| -> BTreeSet<u32> {
                model.values().flat_map(|(_, place)| touched(place)).collect()
            };
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Take(len) => {
                        let class = class(len);
                        let grows = arena.needs_page(class, len);
                        let (slot, place) = take(&mut arena, len, number);
                        prop_assert_eq!(place.len, len);
                        let new = touched(&place).filter(|page| !memory.contains(page)).count();
                        prop_assert_eq!(usize::from(grows), new);
                        for page in memory.difference(&used(&model)).filter(|_| grows) {
                            let is_other = |id: &&SlotId| {
                                id.0 / STRIDE == page / PAGES && Class::of(model[id].1.len.into()) != Some(class)
                            };
                            prop_assert!(model.keys().any(|id| is_other(&id)), "page {} was emptied", page);
                        }
                        memory.extend(touched(&place));
                        let start = place.page as usize * PAGE_SIZE + place.at;
                        let end = start + usize::from(len);
                        let before = bytes.range(..end).next_back();
                        prop_assert!(before.is_none_or(|(_, end)| *end <= start), "{:?}", place);
                        bytes.insert(start, end);
                        prop_assert!(model.insert(slot, (number, place)).is_none());
                    }
                    Step::Free(pick) => {
                        let Some(&slot) = model.keys().nth(pick % model.len().max(1)) else {
                            continue;
                        };
                        let (number, place) = model.remove(&slot).expect("picked from it");
                        bytes.remove(&(place.page as usize * PAGE_SIZE + place.at));
                        prop_assert_eq!(arena.free(slot), Some((number, place.len)));
                    }
                    Step::TakeEmptied => {
                        let used = used(&model);
                        let emptied: Vec<u32> = memory.difference(&used).copied().collect();
                        prop_assert_eq!(arena.take_emptied(), emptied);
                        memory = used;
                    }
                }
                prop_assert_eq!(arena.emptied() as usize, memory.len() - used(&model).len());
                prop_assert_eq!(arena.pages_used() as usize, memory.len());
                for (&slot, (number, place)) in &model {
                    prop_assert_eq!(arena.get(slot), Some((number, *place)));
                }
            }
        }
    }
}
