//! The map of free pages that guest and host share.
//!
//! Two bits a page, sixteen pages a word of 32 bits, in memory that both sides have mapped. A page is in one of four
//! states, and each move of it is one atomic change of its word, so of two sides that want it one is first:
//!
//! ```text
//!            guest allocates              host begins              host has it
//!   USED <------------------- FREE -------------------> MOVING ------------------> TAKEN
//!     |                        ^  ^                       |                          |
//!     +------------------------+  +--- host cannot -------+                          |
//!            guest frees          +------------------ host gives back ---------------+
//! ```
//!
//! A guest uses a page after it has moved it from FREE to USED, and no page that is MOVING or TAKEN. A host takes the
//! memory of a page between MOVING and TAKEN. A map of zeroes has no page to give.
//!
//! Whoever writes the map against these rules harms the guest alone: the host believes a FREE, and drops that page;
//! of everything else its page table is the truth.

use crate::claims::Words;
use crate::{Gfn, GfnRun};

/// Pages whose states one word has.
pub const PAGES_PER_WORD: u32 = 16;
/// Bits of a state.
const BITS: u32 = 2;
const MASK: u32 = 0b11;

/// The state of a page in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageState {
    /// The guest uses it.
    Used = 0,
    /// Nobody uses it: both sides may take it.
    Free = 1,
    /// The host has it.
    Taken = 2,
    /// The host is taking it.
    Moving = 3,
}

impl PageState {
    const ALL: [Self; 4] = [Self::Used, Self::Free, Self::Taken, Self::Moving];

    /// The state of a page of a word: of its sixteen, the one with this number, modulo 16.
    #[must_use]
    pub const fn in_word(word: u32, page: u32) -> Self {
        Self::ALL[(word >> (page % PAGES_PER_WORD * BITS) & MASK) as usize]
    }

    /// Its name in the document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Used => "USED",
            Self::Free => "FREE",
            Self::Taken => "TAKEN",
            Self::Moving => "MOVING",
        }
    }
}

/// How many words the map of a guest of `pages` pages has.
#[must_use]
pub const fn map_words(pages: u32) -> u64 {
    pages.div_ceil(PAGES_PER_WORD) as u64
}

/// The map of a guest of so many pages, on words that two processes share.
#[derive(Debug)]
pub struct FreeMap<W> {
    words: W,
    pages: u32,
}

impl<W: Words> FreeMap<W> {
    /// The map of a guest of `pages` pages on `words`, of which there are [`map_words`] at least.
    #[must_use]
    pub const fn new(words: W, pages: u32) -> Self {
        Self { words, pages }
    }

    /// The words, for whoever passes their file on.
    #[must_use]
    pub const fn words(&self) -> &W {
        &self.words
    }

    /// Pages of the guest.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// The state of a page.
    ///
    /// # Panics
    /// When the guest has no such page.
    #[must_use]
    pub fn state(&self, gfn: Gfn) -> PageState {
        let (at, _) = self.place(gfn);
        PageState::in_word(self.words.load(at), gfn.0)
    }

    /// Moves a page from one state to another. Returns whether it was in the first.
    ///
    /// # Panics
    /// When the guest has no such page.
    #[must_use = "somebody else may have moved the page"]
    pub fn change(&self, gfn: Gfn, from: PageState, to: PageState) -> bool {
        self.change_run(GfnRun::single(gfn), from, to) == 1
    }

    /// Moves the pages of a run from one state to another, up to the first that is in a third. Returns how many.
    /// Pages of one word move at once.
    ///
    /// # Panics
    /// When the guest lacks a page of the run.
    #[must_use = "somebody else may have moved some of the pages"]
    pub fn change_run(&self, run: GfnRun, from: PageState, to: PageState) -> u32 {
        let mut done = 0;
        while done < run.count {
            let first = Gfn(run.start.0 + done);
            let (at, shift) = self.place(first);
            let here = (PAGES_PER_WORD - shift / BITS).min(run.count - done);
            let moved = self.change_word(at, shift, here, from, to);
            done += moved;
            if moved < here {
                break;
            }
        }
        done
    }

    /// The guest takes back a page that the host has or has given back, because it stops sharing the map. Returns whether
    /// the page is USED now; it is not while the host is just taking it.
    ///
    /// # Panics
    /// When the guest has no such page.
    #[must_use = "a page that the host is taking is not the guest's"]
    pub fn take_back(&self, gfn: Gfn) -> bool {
        let moved = |from| self.change(gfn, from, PageState::Used);
        // FREE once more at the end: the host may have given the page back between the first look and the second.
        moved(PageState::Free) || moved(PageState::Taken) || moved(PageState::Free)
    }

    /// The first run of free pages at or behind `from`, of at most `most` pages; `None` if there is none. It is a
    /// hint: only [`change_run`](Self::change_run) takes pages.
    #[must_use]
    pub fn next_free(&self, from: Gfn, most: u32) -> Option<GfnRun> {
        let mut at = from.0;
        let mut run: Option<GfnRun> = None;
        while at < self.pages {
            let word = self.words.load(at / PAGES_PER_WORD);
            let end = (at / PAGES_PER_WORD + 1)
                .saturating_mul(PAGES_PER_WORD)
                .min(self.pages);
            // Words without a free page are most of them where a guest is busy.
            let has_free = word & !(word >> 1) & LOW_BITS != 0;
            if !has_free && run.is_none() {
                at = end;
                continue;
            }
            while at < end {
                let state = word >> ((at % PAGES_PER_WORD) * BITS) & MASK;
                match &mut run {
                    Some(run) if run.count == most => return Some(*run),
                    Some(run) if state == PageState::Free as u32 => run.count += 1,
                    Some(run) => return Some(*run),
                    None if state == PageState::Free as u32 => run = Some(GfnRun::single(Gfn(at))),
                    None => {}
                }
                at += 1;
            }
        }
        run
    }

    /// Moves up to `count` pages of one word, the first of them at `shift`.
    fn change_word(&self, at: u32, shift: u32, count: u32, from: PageState, to: PageState) -> u32 {
        let mut word = self.words.load(at);
        // It ends: each failure means that a neighbour has moved, and whoever moves pages for ever without a rule is a
        // guest that the tries are counted for.
        for _ in 0..CHANGE_TRIES {
            let mut changed = word;
            let mut moved = 0;
            while moved < count && word >> (shift + moved * BITS) & MASK == from as u32 {
                let place = shift + moved * BITS;
                changed = changed & !(MASK << place) | (to as u32) << place;
                moved += 1;
            }
            if moved == 0 {
                return 0;
            }
            match self.words.compare_exchange(at, word, changed) {
                Ok(_) => return moved,
                Err(now) => word = now,
            }
        }
        0
    }

    fn place(&self, gfn: Gfn) -> (u32, u32) {
        assert!(gfn.0 < self.pages, "{gfn} of {} pages", self.pages);
        (gfn.0 / PAGES_PER_WORD, gfn.0 % PAGES_PER_WORD * BITS)
    }
}

/// The low bit of each state of a word.
const LOW_BITS: u32 = 0x5555_5555;
/// How often a word is tried before its pages count as somebody else's. A neighbour that moves in between costs one
/// try, and there are fifteen neighbours, each of which has a few moves at once.
const CHANGE_TRIES: u32 = 1000;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Plain(Vec<AtomicU32>);

    impl Plain {
        fn of(pages: u32) -> Self {
            Self((0..map_words(pages)).map(|_| AtomicU32::new(0)).collect())
        }
    }

    impl Words for Plain {
        fn load(&self, at: u32) -> u32 {
            self.0[at as usize].load(Ordering::Acquire)
        }
        fn store(&self, at: u32, word: u32) {
            self.0[at as usize].store(word, Ordering::Release);
        }
        fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
            let order = Ordering::AcqRel;
            self.0[at as usize].compare_exchange(from, to, order, Ordering::Acquire)
        }
    }

    const PAGES: u32 = 75;

    proptest! {
        #[test]
        fn moves_match_a_list_of_states(
            moves in vec((0..PAGES, 0..40_u32, 0..4_usize, 0..4_usize), 1..60),
        ) {
            let map = FreeMap::new(Plain::of(PAGES), PAGES);
            let mut model = vec![PageState::Used; PAGES as usize];
            for (start, count, from, to) in moves {
                let count = count.min(PAGES - start);
                let (from, to) = (PageState::ALL[from], PageState::ALL[to]);
                let pages = &mut model[start as usize..][..count as usize];
                let expected = pages.iter().take_while(|state| **state == from).count();
                pages[..expected].fill(to);
                let moved = map.change_run(GfnRun::new(Gfn(start), count), from, to);
                prop_assert_eq!(moved as usize, expected);
                let states: Vec<_> = (0..PAGES).map(|gfn| map.state(Gfn(gfn))).collect();
                prop_assert_eq!(&states, &model);
                let free = model.iter().skip(start as usize).position(|state| *state == PageState::Free);
                let free = free.map(|at| {
                    let rest = &model[start as usize + at..];
                    let length = rest.iter().take_while(|state| **state == PageState::Free).count();
                    GfnRun::new(Gfn(start + at as u32), (length as u32).min(9))
                });
                prop_assert_eq!(map.next_free(Gfn(start), 9), free);
            }
        }
    }

    /// Two sides that want the same pages: each page goes to one of them.
    #[test]
    fn page_that_both_sides_want_goes_to_one() {
        let map = FreeMap::new(Plain::of(PAGES), PAGES);
        let all = GfnRun::new(Gfn(0), PAGES);
        for _ in 0..200 {
            assert_eq!(map.change_run(all, PageState::Used, PageState::Free), PAGES);
            let (guests, hosts) = std::thread::scope(|scope| {
                let take = |to| {
                    let map = &map;
                    let taken = move |gfn: &Gfn| map.change(*gfn, PageState::Free, to);
                    move || all.iter().filter(taken).count()
                };
                let guest = scope.spawn(take(PageState::Used));
                let host = scope.spawn(take(PageState::Moving));
                (
                    guest.join().expect("it ends"),
                    host.join().expect("it ends"),
                )
            });
            assert_eq!(guests + hosts, PAGES as usize);
            let back = |gfn: &Gfn| map.change(*gfn, PageState::Moving, PageState::Used);
            assert_eq!(all.iter().filter(back).count(), hosts);
        }
    }
}
