//! The map of free pages of a session with the protocol `bitmap`, as a recording has it.
//!
//! What the two sides say by the map they say without a message. So a recording has the words of the map that have
//! changed since it last looked ([`WordRun`]): before each message, and after each move of the host. [`Seen`] is the map
//! as a recorder or a reader knows it, and makes moves of pages of them, which people can read.

use memvisor_wire::balloon::{PAGES_PER_WORD, PageState, map_words};
use memvisor_wire::claims::Words;

use crate::units::{Gfn, GfnRun};
use crate::vm::MAX_PAGES;

/// Words of a map, one behind the other, that all have the same value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WordRun {
    /// The first word.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// What each of them is now.
    pub value: u32,
}

impl WordRun {
    /// Whether a map of the largest VM has these words.
    #[must_use]
    pub fn fits(&self) -> bool {
        let end = u64::from(self.first) + u64::from(self.count);
        self.count > 0 && end <= map_words(MAX_PAGES)
    }
}

/// Pages that have moved from one state to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The state that they had.
    pub from: PageState,
    /// The state that they have.
    pub to: PageState,
    /// The pages.
    pub run: GfnRun,
}

/// The map of a session, as it was when it was last looked at.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    words: Vec<u32>,
}

impl Seen {
    /// Begins with a new map, which is all zeroes.
    pub fn begin(&mut self) {
        self.words.clear();
    }

    /// Looks at the first `count` words of a map. Returns those that have changed.
    pub fn look(&mut self, words: &dyn Words, count: u32) -> Vec<WordRun> {
        let mut changed: Vec<WordRun> = Vec::new();
        self.words.resize(count as usize, 0);
        for (at, known) in (0..count).zip(&mut self.words) {
            let value = words.load(at);
            if std::mem::replace(known, value) == value {
                continue;
            }
            match changed.last_mut() {
                Some(run) if run.first + run.count == at && run.value == value => run.count += 1,
                _ => changed.push(WordRun {
                    first: at,
                    count: 1,
                    value,
                }),
            }
        }
        changed
    }

    /// How many pages are in a state; of USED, those of words that were ever seen to change.
    #[must_use]
    pub fn count(&self, state: PageState) -> u64 {
        let pages = |word: &u32| {
            let is = |page: &u32| PageState::in_word(*word, *page) == state;
            (0..PAGES_PER_WORD).filter(is).count() as u64
        };
        self.words.iter().map(pages).sum()
    }

    /// Takes over what was recorded. Returns the moves of pages.
    pub fn take(&mut self, runs: &[WordRun]) -> Vec<Moved> {
        let mut moves = Vec::new();
        for run in runs.iter().filter(|run| run.fits()) {
            let end = run.first + run.count;
            self.words.resize(self.words.len().max(end as usize), 0);
            for at in run.first..end {
                let before = std::mem::replace(&mut self.words[at as usize], run.value);
                word_moves(at, before, run.value, &mut moves);
            }
        }
        moves
    }
}

/// Adds the moves of the pages of one word.
fn word_moves(at: u32, before: u32, after: u32, moves: &mut Vec<Moved>) {
    if before == after {
        return;
    }
    for page in 0..PAGES_PER_WORD {
        let [from, to] = [before, after].map(|word| PageState::in_word(word, page));
        if from == to {
            continue;
        }
        let gfn = Gfn(at * PAGES_PER_WORD + page);
        match moves.last_mut() {
            Some(last)
                if (last.from, last.to) == (from, to) && last.run.end() == u64::from(gfn.0) =>
            {
                last.run.count += 1;
            }
            _ => moves.push(Moved {
                from,
                to,
                run: GfnRun::single(gfn),
            }),
        }
    }
}

/// The moves by the two states, in the order in which they come first.
#[must_use]
pub fn by_states(moves: &[Moved]) -> Vec<((PageState, PageState), Vec<GfnRun>)> {
    let mut kinds: Vec<((PageState, PageState), Vec<GfnRun>)> = Vec::new();
    for moved in moves {
        let states = (moved.from, moved.to);
        match kinds.iter_mut().find(|(known, _)| *known == states) {
            Some((_, runs)) => runs.push(moved.run),
            None => kinds.push((states, vec![moved.run])),
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memvisor_wire::balloon::FreeMap;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::SharedWords;

    fn states() -> impl Strategy<Value = Vec<(u32, u32, u8)>> {
        proptest::collection::vec((0_u32..100, 1_u32..40, 0_u8..4), 0..12)
    }

    proptest! {
        /// Whatever happens to a map, a reader of what was recorded of it has the same map, and the moves lead there.
        #[test]
        fn reader_of_what_was_recorded_sees_the_same_map(looks in proptest::collection::vec(states(), 1..5)) {
            let words = SharedWords::new("test-map", map_words(150)).expect("memory");
            let map = FreeMap::new(Arc::new(words), 150);
            let (mut recorder, mut reader) = (Seen::default(), Seen::default());
            let mut pages = [PageState::Used; 150];
            for changes in looks {
                for (start, count, to) in changes {
                    for gfn in (start..(start + count).min(150)).map(Gfn) {
                        let to = PageState::in_word(u32::from(to), 0);
                        prop_assert!(map.change(gfn, map.state(gfn), to));
                    }
                }
                let count = u32::try_from(map_words(150)).expect("few");
                let runs = recorder.look(map.words(), count);
                prop_assert!(runs.iter().all(WordRun::fits));
                for moved in reader.take(&runs) {
                    for gfn in moved.run.iter() {
                        let page = &mut pages[gfn.0 as usize];
                        prop_assert_eq!(std::mem::replace(page, moved.to), moved.from);
                    }
                }
                for (gfn, page) in (0..).map(Gfn).zip(&pages) {
                    prop_assert_eq!(map.state(gfn), *page);
                }
                prop_assert!(recorder.look(map.words(), count).is_empty());
            }
        }
    }

    #[test]
    fn whole_words_are_one_run_and_one_move() {
        let mut seen = Seen::default();
        let run = |first, count, value| WordRun {
            first,
            count,
            value,
        };
        let moves = seen.take(&[run(2, 3, 0x5555_5555), run(5, 1, 0b01)]);
        let freed = Moved {
            from: PageState::Used,
            to: PageState::Free,
            run: GfnRun::new(Gfn(32), 49),
        };
        assert_eq!(moves, [freed]);
        let moves = seen.take(&[run(2, 1, 0xAAAA_AAAA), run(5, 1, 0b10)]);
        let kinds = by_states(&moves);
        let [((from, to), runs)] = &kinds[..] else {
            panic!("{kinds:?}");
        };
        assert_eq!((*from, *to), (PageState::Free, PageState::Taken));
        assert_eq!(
            runs[..],
            [GfnRun::new(Gfn(32), 16), GfnRun::single(Gfn(80))]
        );
        assert!(!run(u32::MAX, 2, 0).fits() && !run(0, 0, 0).fits());
    }
}
