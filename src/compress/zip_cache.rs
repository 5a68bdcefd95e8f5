//! The compression cache of one VM.

use std::io;
use std::iter;
use std::os::fd::OwnedFd;

use memvisor_wire::{claims, payload};
use thiserror::Error;

use super::MAX_PAYLOAD;
use super::arena::{Arena, Class, MAX_ARENA_PAGES};
use crate::sys::Published;
use crate::units::{Gfn, PageBuf, Pages, SlotId};

/// Why a payload did not enter the cache; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum StoreRefused {
    /// It needs another arena page, and the cache has as many as it may have: evict the oldest entries.
    #[error("the compression cache is full: {pages} arena pages, the cap is {cap}")]
    Full {
        /// Arena pages in use.
        pages: u32,
        /// The most that may be.
        cap: u32,
    },
    /// It needs another arena page, and the caller has no memory for one.
    #[error("a slot for {len} bytes needs another arena page, and there is no memory for one")]
    NeedsPage {
        /// The length of the payload.
        len: usize,
    },
}

/// Why a compressed page cannot be brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ZipError {
    /// Nothing is stored there: the page table and the cache disagree.
    #[error("slot {} of the compression cache is not in use", slot.0)]
    NotStored {
        /// The slot asked for.
        slot: SlotId,
    },
    /// The bytes are not those that were stored.
    #[error("slot {} of the compression cache, which held {gfn:?}, is corrupt", slot.0)]
    Corrupt {
        /// The slot asked for.
        slot: SlotId,
        /// The page it held.
        gfn: Gfn,
    },
}

/// What is kept for a stored payload besides its bytes.
#[derive(Debug)]
struct Entry {
    gfn: Gfn,
    sum: u32,
    is_in_edge: bool,
}

/// The oldest of the stored pages, about a quarter of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Edge {
    /// How many there are.
    pub pages: Pages,
    /// The bytes of their payloads.
    pub bytes: u64,
    /// How many pages of the edge the guest has brought back since the cache was made.
    pub wanted: u64,
}

/// The part of the stored pages that is the edge: one in so many.
const EDGE: u64 = 4;
/// By how many pages the edge may grow when a page is stored: enough to keep up, and no store takes long.
const EDGE_STEP: usize = 2;

const AGED: &str = "a slot that has an age is in use";

/// From this many pages on, punching is cheaper if the daemon's own mapping of the arena is dropped first.
const FORGET: u32 = 8;

/// The compressed pages of one VM.
#[derive(Debug)]
pub struct ZipCache {
    /// The bytes of the pages of `arena`.
    file: Published,
    arena: Arena<Entry>,
    edge: Edge,
    /// The newest page of the edge.
    edge_end: Option<SlotId>,
    most_pages: u32,
    cap: u32,
    limit: Option<u32>,
}

impl ZipCache {
    /// An empty cache that can never have more than `max_pages` arena pages. Unused pages cost nothing,
    /// so this number can be generous, and [`set_max_pages`](Self::set_max_pages) sets the cap in force.
    /// `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// When the arena file cannot be created or mapped, or `max_pages` is more than slots can number
    /// (2^28, which is a TiB).
    pub fn new(name: &str, max_pages: u32) -> io::Result<Self> {
        if max_pages > MAX_ARENA_PAGES {
            let message = format!("{max_pages} arena pages, at most {MAX_ARENA_PAGES} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let arena = Arena::new(max_pages);
        Ok(Self {
            file: Published::new(name, arena.file_pages())?,
            arena,
            edge: Edge::default(),
            edge_end: None,
            most_pages: max_pages,
            cap: max_pages,
            limit: None,
        })
    }

    /// Stores the compressed page `gfn`. `sum` is the [checksum](payload::checksum) of the uncompressed
    /// page. The cache gets another arena page only if `may_grow`, because that takes host memory. If the
    /// payload needs a page and cannot use the emptied ones, all emptied pages are given back, and it takes one
    /// of them for its own. Then [`pages_used`](Self::pages_used) may fall, even if the store fails.
    ///
    /// # Errors
    /// [`StoreRefused::Full`] before [`StoreRefused::NeedsPage`].
    ///
    /// # Panics
    /// When `payload` is longer than [`MAX_PAYLOAD`].
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a payload is at most half a page"
    )]
    pub fn store(
        &mut self,
        gfn: Gfn,
        payload: &[u8],
        sum: u32,
        may_grow: bool,
    ) -> Result<SlotId, StoreRefused> {
        let (class, len) = (class_of(payload.len()), payload.len() as u16);
        if self.arena.needs_page(class, len) {
            self.make_way(class, len, may_grow)?;
        }
        let entry = Entry {
            gfn,
            sum,
            is_in_edge: false,
        };
        let (slot, place) = self.arena.take(class, len, entry);
        self.file.write(place.page, place.at, payload);
        self.follow_edge();
        Ok(slot)
    }

    /// Takes the next pages into the edge if it has become too small. An edge that is too large shrinks as its pages
    /// leave.
    fn follow_edge(&mut self) {
        for _ in 0..EDGE_STEP {
            if self.edge.pages.0 >= self.stored().0 / EDGE {
                return;
            }
            let next = match self.edge_end {
                Some(newest) => self.arena.newer(newest),
                None => self.arena.oldest(),
            };
            let slot = next.expect("less than all stored pages are in the edge");
            let (_, place) = self.arena.get(slot).expect(AGED);
            self.edge.pages.0 += 1;
            self.edge.bytes += u64::from(place.len);
            self.arena.get_mut(slot).expect(AGED).is_in_edge = true;
            self.edge_end = Some(slot);
        }
    }

    fn make_way(&mut self, class: Class, len: u16, may_grow: bool) -> Result<(), StoreRefused> {
        // The pages that come back are charged still, so one of them pays for the page that is needed.
        let may_take = self.give_back() > 0 || may_grow;
        let (pages, cap) = (self.pages_used(), self.cap);
        if pages >= cap {
            return Err(StoreRefused::Full { pages, cap });
        }
        if !may_take {
            return Err(StoreRefused::NeedsPage { len: len.into() });
        }
        // A cache whose tables cannot grow counts as full: then the oldest pages make room.
        let has_room = self.arena.make_room(class);
        has_room
            .then_some(())
            .ok_or(StoreRefused::Full { pages, cap })
    }

    /// Whether the cache would have more arena pages after storing a payload of `len` bytes. It never takes more than
    /// one.
    ///
    /// # Panics
    /// When `len` is more than [`MAX_PAYLOAD`].
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a payload is at most half a page"
    )]
    pub fn would_grow(&self, len: usize) -> bool {
        self.emptied() == 0 && self.arena.needs_page(class_of(len), len as u16)
    }

    /// Decompresses a stored page and verifies it. The slot stays as it is. After an error, what `into` holds
    /// means nothing.
    ///
    /// # Errors
    /// [`ZipError`]: the page is lost.
    pub fn load(&self, slot: SlotId, into: &mut PageBuf) -> Result<(), ZipError> {
        let (entry, place) = self.arena.get(slot).ok_or(ZipError::NotStored { slot })?;
        // Decompressed from where it lies: a copy takes longer than the way to a payload that was not stored beside the
        // last one.
        let payload = self.file.bytes(place.page, place.at, place.len.into());
        if payload::decompress(&payload, &mut into.0) && payload::checksum(&into.0) == entry.sum {
            return Ok(());
        }
        Err(ZipError::Corrupt {
            slot,
            gfn: entry.gfn,
        })
    }

    /// Where a stored page is, for a guest that decompresses it itself; `None` for a free slot.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a place begins inside a page"
    )]
    pub fn place(&self, slot: SlotId) -> Option<claims::Place> {
        let (entry, place) = self.arena.get(slot)?;
        Some(claims::Place {
            page: place.page,
            at: place.at as u16,
            len: place.len,
            sum: entry.sum,
        })
    }

    /// The arena for a guest that decompresses pages itself: the descriptor can be mapped, but only to be read.
    ///
    /// # Errors
    /// What opening it again says.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        self.file.read_only()
    }

    /// The length of the arena file in pages, most of which are holes.
    #[must_use]
    pub const fn arena_pages(&self) -> u32 {
        self.file.pages()
    }

    /// Frees a slot. An arena page that no other slot touches keeps its memory until it is used again or
    /// [given back](Self::give_back). To punch it at once would interrupt every processor that has used it, which
    /// costs more than bringing a page back.
    ///
    /// # Panics
    /// When the slot is free already: the page table named one slot twice.
    pub fn free(&mut self, slot: SlotId) {
        if self.edge_end == Some(slot) {
            // Before the slot is freed, which takes it out of the list.
            self.edge_end = self.arena.older(slot);
        }
        let freed = self.arena.free(slot);
        let (entry, len) = freed.expect("a slot is freed by the one page table entry it has");
        if entry.is_in_edge {
            self.edge.pages.0 -= 1;
            self.edge.bytes -= u64::from(len);
        }
    }

    /// Notes that its guest wants a stored page. The slot is to be freed next.
    pub fn note_wanted(&mut self, slot: SlotId) {
        let entry = self.arena.get(slot).map(|(entry, _)| entry);
        if entry.is_some_and(|entry| entry.is_in_edge) {
            self.edge.wanted += 1;
        }
    }

    /// The edge: the oldest of the stored pages.
    #[must_use]
    pub const fn edge(&self) -> Edge {
        self.edge
    }

    /// Arena pages that have memory and hold nothing.
    #[must_use]
    pub fn emptied(&self) -> u32 {
        self.arena.emptied()
    }

    /// Gives the memory of the emptied arena pages back to the machine, and returns how many pages.
    ///
    /// # Panics
    /// When the kernel refuses to punch an own file inside its length.
    #[must_use = "so many pages are to be given back to the budget"]
    #[expect(clippy::cast_possible_truncation, reason = "pages are numbered by u32")]
    pub fn give_back(&mut self) -> u32 {
        let emptied = self.arena.take_emptied();
        let pages = emptied.len() as u32;
        if pages >= FORGET {
            self.file.forget();
        }
        for run in emptied.chunk_by(|page, next| page + 1 == *next) {
            self.file
                .punch(run[0], run.len() as u32)
                .expect("an own memfd can be punched inside its length");
        }
        pages
    }

    /// Arena pages that have memory, which is what the cache costs the host.
    #[must_use]
    pub const fn pages_used(&self) -> u32 {
        self.arena.pages_used()
    }

    /// Compressed pages in the cache.
    #[must_use]
    pub const fn stored(&self) -> Pages {
        Pages(self.arena.taken())
    }

    /// The most arena pages that the cache may have now.
    #[must_use]
    pub const fn max_pages(&self) -> u32 {
        self.cap
    }

    /// Changes the cap, to at most what [`new`](Self::new) was given. A cache that is above a lowered cap keeps
    /// its pages until the caller evicts the oldest.
    pub fn set_max_pages(&mut self, max_pages: u32) {
        // The arena's file was made for that many pages, and does not grow.
        self.cap = max_pages.min(self.most_pages);
    }

    /// Changes the number of arena pages above which the oldest pages are to move on; `None`: it is the cap. Pages are
    /// still stored up to the cap.
    pub const fn set_limit(&mut self, pages: Option<u32>) {
        self.limit = pages;
    }

    /// See [`set_limit`](Self::set_limit).
    #[must_use]
    pub const fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Whether the cache has more arena pages than its limit or its cap allows.
    #[must_use]
    pub fn is_above_limit(&self) -> bool {
        self.pages_used() > self.limit.map_or(self.cap, |limit| limit.min(self.cap))
    }

    /// The stored pages in the order of arrival, which is the order of eviction.
    pub fn by_age(&self) -> impl Iterator<Item = (Gfn, SlotId)> {
        iter::successors(self.arena.oldest(), |slot| self.arena.newer(*slot)).map(|slot| {
            let (entry, _) = self.arena.get(slot).expect(AGED);
            (entry.gfn, slot)
        })
    }

    /// Flips a bit of a stored payload.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, slot: SlotId) {
        let (_, place) = self.arena.get(slot).expect("the slot is in use");
        let damaged = self.file.bytes(place.page, place.at, 1)[0] ^ 0x10;
        self.file.write(place.page, place.at, &[damaged]);
    }

    /// The memory that the kernel counts for the arena; equals [`pages_used`](Self::pages_used).
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn allocated(&self) -> io::Result<Pages> {
        self.file.allocated()
    }
}

fn class_of(len: usize) -> Class {
    Class::of(len).unwrap_or_else(|| panic!("a payload of {len} bytes, the most is {MAX_PAYLOAD}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compress::Compressor;
    use crate::compress::compressor::samples;

    fn cache(max_pages: u32) -> ZipCache {
        ZipCache::new("zip-test", max_pages).unwrap()
    }

    fn sum(page: &PageBuf) -> u32 {
        payload::checksum(&page.0)
    }

    fn store(cache: &mut ZipCache, gfn: u32, page: &PageBuf) -> Result<SlotId, StoreRefused> {
        let mut compressor = Compressor::new();
        let payload = compressor.compress(page).expect("it halves");
        cache.store(Gfn(gfn), payload, sum(page), true)
    }

    #[test]
    fn load_every_class_of_content_returns_its_bytes() {
        let mut cache = cache(16);
        let pages = [
            PageBuf::zeroed(),
            samples::text(1),
            samples::code(1),
            samples::mixed(1, 400),
            samples::mixed(1, 900),
            samples::mixed(1, 1300),
            samples::mixed(1, 1950),
        ];
        let slots = pages
            .each_ref()
            .map(|page| store(&mut cache, 0, page).unwrap());
        let mut back = PageBuf::zeroed();
        for (page, slot) in pages.iter().zip(slots) {
            cache.load(slot, &mut back).unwrap();
            assert!(back == *page);
        }
    }

    #[test]
    fn store_at_the_cap_is_full_and_changes_nothing() {
        let mut cache = cache(1);
        store(&mut cache, 0, &samples::mixed(0, 1900)).unwrap();
        assert!(!cache.would_grow(2000));
        store(&mut cache, 1, &samples::mixed(1, 1900)).unwrap();
        assert!(cache.would_grow(2000));
        let refused = store(&mut cache, 2, &samples::mixed(2, 1900));
        assert_eq!(refused, Err(StoreRefused::Full { pages: 1, cap: 1 }));
        assert_eq!((cache.pages_used(), cache.stored()), (1, Pages(2)));
    }

    #[test]
    fn store_without_leave_to_grow_uses_only_pages_it_has() {
        let mut cache = cache(8);
        let refused = cache.store(Gfn(0), &[1; 2000], 0, false);
        assert_eq!(refused, Err(StoreRefused::NeedsPage { len: 2000 }));
        cache.store(Gfn(0), &[1; 2000], 0, true).unwrap();
        cache.store(Gfn(1), &[1; 2000], 0, false).unwrap();
        assert_eq!(cache.pages_used(), 1);
    }

    #[test]
    fn emptied_pages_of_a_block_are_given_back_for_a_page_of_another() {
        let mut cache = cache(2);
        let slots = [0, 1, 2, 3].map(|gfn| cache.store(Gfn(gfn), &[1; 2048], 0, true).unwrap());
        cache.free(slots[2]);
        assert!(cache.would_grow(1000));
        let refused = cache.store(Gfn(4), &[2; 1000], 0, true);
        assert_eq!(refused, Err(StoreRefused::Full { pages: 2, cap: 2 }));
        cache.free(slots[3]);
        assert_eq!((cache.emptied(), cache.would_grow(1000)), (1, false));
        cache.store(Gfn(4), &[2; 1000], 0, false).unwrap();
        assert_eq!((cache.emptied(), cache.pages_used()), (0, 2));
        assert_eq!(cache.allocated().unwrap(), Pages(2));
    }

    #[test]
    fn cap_of_one_page_is_filled() {
        let mut cache = cache(1);
        let slots = [0, 1, 2].map(|gfn| cache.store(Gfn(gfn), &[1; 1200], 0, true).unwrap());
        let refused = cache.store(Gfn(3), &[1; 1200], 0, true);
        assert_eq!(refused, Err(StoreRefused::Full { pages: 1, cap: 1 }));
        slots.into_iter().for_each(|slot| cache.free(slot));
        cache.store(Gfn(3), &[1; 8], 0, false).unwrap();
        assert_eq!(cache.allocated().unwrap(), Pages(1));
    }

    #[test]
    fn cap_lowered_keeps_pages_and_refuses_growth() {
        let mut cache = cache(4);
        let slot = store(&mut cache, 0, &PageBuf::zeroed()).unwrap();
        assert!(!cache.is_above_limit());
        cache.set_max_pages(0);
        assert!(cache.is_above_limit());
        assert_eq!(cache.pages_used(), 1);
        let refused = cache.store(Gfn(1), &[0; 2048], 0, true);
        assert_eq!(refused, Err(StoreRefused::Full { pages: 1, cap: 0 }));
        assert_eq!(cache.by_age().next(), Some((Gfn(0), slot)));
        cache.free(slot);
        assert!(cache.is_above_limit(), "its memory is still there");
        assert_eq!(cache.give_back(), 1);
        assert!(!cache.is_above_limit());
        cache.set_max_pages(u32::MAX);
        assert_eq!(cache.max_pages(), 4);
    }

    #[test]
    fn limit_refuses_no_page_and_is_no_more_than_the_cap() {
        let mut cache = cache(4);
        cache.set_limit(Some(1));
        for gfn in 0..4 {
            cache.store(Gfn(gfn), &[1; 2048], 0, true).unwrap();
        }
        assert!(cache.is_above_limit());
        cache.set_limit(Some(2));
        assert!(!cache.is_above_limit());
        cache.set_max_pages(1);
        assert!(cache.is_above_limit());
        cache.set_max_pages(4);
        cache.set_limit(None);
        assert!(!cache.is_above_limit());
    }

    #[test]
    fn cache_of_no_pages_refuses_everything() {
        let mut cache = cache(0);
        let refused = store(&mut cache, 0, &PageBuf::zeroed());
        assert_eq!(refused, Err(StoreRefused::Full { pages: 0, cap: 0 }));
    }

    #[test]
    fn new_with_more_pages_than_slots_can_number_is_refused() {
        let error = ZipCache::new("zip-test", MAX_ARENA_PAGES + 1).expect_err("too many");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn load_of_any_flipped_bit_never_returns_wrong_bytes() {
        let mut cache = cache(4);
        let page = samples::text(3);
        let slot = store(&mut cache, 9, &page).unwrap();
        let (_, place) = cache.arena.get(slot).unwrap();
        let len = usize::from(place.len);
        let mut found = 0;
        for bit in 0..len * 8 {
            let (at, mask) = (place.at + bit / 8, 1 << (bit % 8));
            let byte = cache.file.bytes(place.page, at, 1)[0];
            cache.file.write(place.page, at, &[byte ^ mask]);
            let mut back = PageBuf::zeroed();
            match cache.load(slot, &mut back) {
                // A match may copy from another place with the same bytes: the page is intact.
                Ok(()) => assert!(back == page, "bit {bit}"),
                Err(error) => {
                    assert_eq!(error, ZipError::Corrupt { slot, gfn: Gfn(9) });
                    found += 1;
                }
            }
            cache.file.write(place.page, at, &[byte]);
        }
        assert!(
            found > len * 7,
            "only {found} of {} flips changed the page",
            len * 8
        );
    }

    #[test]
    fn load_of_a_free_slot_is_an_error() {
        let mut cache = cache(4);
        let slot = store(&mut cache, 0, &samples::text(0)).unwrap();
        cache.free(slot);
        let error = cache.load(slot, &mut PageBuf::zeroed());
        assert_eq!(error, Err(ZipError::NotStored { slot }));
    }

    #[test]
    fn edge_is_the_oldest_quarter_and_counts_what_is_wanted_of_it() {
        let mut cache = cache(16);
        let mut store = |gfn| cache.store(Gfn(gfn), &[1; 100], 0, true).unwrap();
        let slots: Vec<SlotId> = (0..40).map(&mut store).collect();
        let edge = |pages: u64, wanted| Edge {
            pages: Pages(pages),
            bytes: 100 * pages,
            wanted,
        };
        assert_eq!(cache.edge(), edge(10, 0));
        for slot in [slots[3], slots[9], slots[10], slots[39]] {
            cache.note_wanted(slot);
            cache.free(slot);
        }
        assert_eq!(cache.edge(), edge(8, 2));
        // Pages that are freed unwanted do not count, and the edge grows again when a page is stored.
        cache.free(slots[0]);
        assert_eq!(cache.edge(), edge(7, 2));
        for gfn in 40..42 {
            cache.store(Gfn(gfn), &[1; 100], 0, true).unwrap();
        }
        assert_eq!(cache.edge(), edge(9, 2));
        cache.note_wanted(slots[11]);
        assert_eq!(cache.edge(), edge(9, 3), "the next after those that left");
        cache.note_wanted(slots[13]);
        assert_eq!(cache.edge(), edge(9, 3));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Store {
            random: usize,
            seed: u64,
            may_grow: bool,
        },
        Free(usize),
        GiveBack,
        Load(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let store = (0..1950usize, any::<u64>(), prop::bool::weighted(0.9));
        let step = prop_oneof![
            4 => store.prop_map(|(random, seed, may_grow)| Step::Store { random, seed, may_grow }),
            3 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::GiveBack),
            2 => any::<usize>().prop_map(Step::Load),
        ];
        prop::collection::vec(step, 0..250)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a list in order of arrival: bytes, ages, counters, and the kernel's own count.
        #[test]
        fn cache_any_steps_agree_with_the_model(steps in steps()) {
            const CAP: u32 = 12;
            let mut cache = cache(CAP);
            let mut compressor = Compressor::new();
            let mut model: Vec<(Gfn, SlotId, PageBuf, usize)> = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Store { random, seed, may_grow } => {
                        let page = samples::mixed(seed, random);
                        let payload = compressor.compress(&page).expect("it halves");
                        let before = cache.pages_used();
                        let grows = cache.would_grow(payload.len());
                        match cache.store(Gfn(number), payload, sum(&page), may_grow) {
                            Ok(slot) => {
                                let after = cache.pages_used();
                                let is_as_said = if grows { after == before + 1 } else { after <= before };
                                prop_assert!(is_as_said, "{} pages, then {}", before, after);
                                model.push((Gfn(number), slot, page, payload.len()));
                            }
                            Err(StoreRefused::Full { pages, cap }) => {
                                prop_assert!(grows && (pages, cap) == (CAP, CAP));
                            }
                            Err(StoreRefused::NeedsPage { .. }) => {
                                prop_assert!(grows && !may_grow && before < CAP);
                            }
                        }
                    }
                    Step::Free(pick) if !model.is_empty() => {
                        let (_, slot, ..) = model.remove(pick % model.len());
                        let before = cache.pages_used();
                        cache.free(slot);
                        prop_assert_eq!(cache.pages_used(), before);
                    }
                    Step::GiveBack => {
                        let (before, emptied) = (cache.pages_used(), cache.emptied());
                        prop_assert_eq!(cache.give_back(), emptied);
                        prop_assert_eq!(cache.pages_used(), before - emptied);
                        prop_assert_eq!(cache.emptied(), 0);
                    }
                    Step::Load(pick) if !model.is_empty() => {
                        let (_, slot, page, _) = &model[pick % model.len()];
                        let mut back = PageBuf::zeroed();
                        cache.load(*slot, &mut back).unwrap();
                        prop_assert!(back == *page);
                    }
                    Step::Free(_) | Step::Load(_) => {}
                }
                prop_assert_eq!(cache.allocated().unwrap(), Pages(u64::from(cache.pages_used())));
                prop_assert!(cache.pages_used() <= CAP);
            }
            let ages: Vec<_> = model.iter().map(|(gfn, slot, ..)| (*gfn, *slot)).collect();
            prop_assert_eq!(cache.by_age().next(), ages.first().copied());
            prop_assert_eq!(cache.by_age().collect::<Vec<_>>(), ages);
            prop_assert_eq!(cache.stored(), Pages(model.len() as u64));
            let edge = cache.edge();
            let oldest = model.iter().take(edge.pages.0 as usize);
            prop_assert_eq!(edge.bytes, oldest.map(|(.., len)| *len as u64).sum::<u64>());
        }
    }
}
