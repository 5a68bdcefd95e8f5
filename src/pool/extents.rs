//! Which frames of a pool are free, and where runs of them can grow.

use std::io;

use crate::sync::zeroes;
use crate::units::FrameId;

/// Frames in a word of the map. It is also the smallest free piece in which an extent starts.
const WORD: u32 = u64::BITS;

/// The free frames, one bit each, and above them one bit for each word that is entirely free.
#[derive(Debug)]
pub(super) struct FreeFrames {
    /// Bit `f % 64` of word `f / 64`: frame `f` is free.
    free: Box<[u64]>,
    /// Bit `w % 64` of word `w / 64`: all frames of word `w` of `free` are free.
    whole: Box<[u64]>,
    /// No word of `free` below this one has a free frame.
    lowest: usize,
}

impl FreeFrames {
    pub(super) fn new(frames: u32) -> io::Result<Self> {
        let words = frames.div_ceil(WORD) as usize;
        let mut map = Self {
            free: zeroes(words)?,
            whole: zeroes(words.div_ceil(WORD as usize))?,
            lowest: 0,
        };
        for frame in 0..frames {
            map.give(FrameId(frame));
        }
        Ok(map)
    }

    /// Takes `wanted` if it is free, else the start of an extent with room behind it, else any
    /// free frame; `None` when all are taken.
    pub(super) fn take_near(&mut self, wanted: Option<FrameId>) -> Option<FrameId> {
        let wanted = wanted.filter(|&frame| self.is_free(frame));
        let frame = wanted
            // Not simply the lowest: a run that begins in the middle of free frames has room to grow behind it.
            .or_else(|| self.roomiest())
            .or_else(|| self.lowest_free())?;
        let (word, bit) = split(frame);
        self.free[word] &= !bit;
        self.whole[word / WORD as usize] &= !(1 << (word % WORD as usize));
        Some(frame)
    }

    /// Makes a frame free.
    ///
    /// # Panics
    /// When it is free already.
    pub(super) fn give(&mut self, frame: FrameId) {
        assert!(!self.is_free(frame), "frame {} was freed twice", frame.0);
        let (word, bit) = split(frame);
        self.free[word] |= bit;
        if self.free[word] == u64::MAX {
            self.whole[word / WORD as usize] |= 1 << (word % WORD as usize);
        }
        // Only a start for the search, so it may be too low, and never too high.
        self.lowest = self.lowest.min(word);
    }

    fn is_free(&self, frame: FrameId) -> bool {
        let (word, bit) = split(frame);
        self.free.get(word).is_some_and(|free| free & bit != 0)
    }

    /// The first frame of an aligned free piece: of 64 words if there is one, else of 8, else of 1.
    ///
    /// It scans one bit for 64 frames, 8 KiB for a pool of 16 GiB, and is needed only at the start of a run.
    fn roomiest(&self) -> Option<FrameId> {
        let group = || self.find_whole(|word| (word == u64::MAX).then_some(0));
        let eighth = || {
            self.find_whole(|word| {
                let byte = word
                    .to_le_bytes()
                    .iter()
                    .position(|&byte| byte == u8::MAX)?;
                Some(byte as u32 * u8::BITS)
            })
        };
        let single = || self.find_whole(|word| (word != 0).then(|| word.trailing_zeros()));
        group().or_else(eighth).or_else(single)
    }

    fn find_whole(&self, bit_of: impl Fn(u64) -> Option<u32>) -> Option<FrameId> {
        let mut words = (0..).zip(&self.whole);
        words.find_map(|(at, &word)| Some(FrameId((at * WORD + bit_of(word)?) * WORD)))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "frames are numbered by u32"
    )]
    fn lowest_free(&mut self) -> Option<FrameId> {
        let from = self.lowest;
        let ahead = self.free[from..].iter().position(|&word| word != 0);
        self.lowest = ahead.map_or(self.free.len(), |ahead| from + ahead);
        let word = self.free.get(self.lowest)?;
        Some(FrameId(self.lowest as u32 * WORD + word.trailing_zeros()))
    }
}

const fn split(frame: FrameId) -> (usize, u64) {
    ((frame.0 / WORD) as usize, 1 << (frame.0 % WORD))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn take(free: &mut FreeFrames, wanted: Option<u32>) -> Option<u32> {
        free.take_near(wanted.map(FrameId)).map(|frame| frame.0)
    }

    #[test]
    fn take_near_runs_that_grow_in_turn_stay_contiguous() {
        let mut free = FreeFrames::new(4 * 4096).expect("memory");
        let starts = [(); 4].map(|()| take(&mut free, None).unwrap());
        assert_eq!(starts, [0, 4096, 8192, 12288]);
        for step in 1..4096 {
            for start in starts {
                let wanted = start + step;
                assert_eq!(take(&mut free, Some(wanted)), Some(wanted));
            }
        }
        assert_eq!(take(&mut free, None), None);
    }

    #[test]
    fn take_near_without_empty_groups_starts_in_the_largest_piece_left() {
        let mut free = FreeFrames::new(4096).expect("memory");
        let starts: Vec<_> = (0..4).filter_map(|_| take(&mut free, None)).collect();
        assert_eq!(starts, [0, 512, 1024, 1536]);
        for _ in 4..8 {
            take(&mut free, None);
        }
        assert_eq!(take(&mut free, None), Some(64), "the eighths are all begun");
    }

    #[test]
    fn take_near_a_taken_frame_starts_elsewhere() {
        let mut free = FreeFrames::new(128).expect("memory");
        assert_eq!(take(&mut free, None), Some(0));
        assert_eq!(take(&mut free, Some(0)), Some(64));
        assert_eq!(
            take(&mut free, Some(0)),
            Some(1),
            "any, when no piece is free"
        );
    }

    #[test]
    fn take_near_a_frame_that_is_not_there_is_any_other() {
        let mut free = FreeFrames::new(2).expect("memory");
        assert_eq!(take(&mut free, Some(2)), Some(0));
        assert_eq!(take(&mut free, Some(u32::MAX)), Some(1));
        assert_eq!(take(&mut free, None), None);
        assert_eq!(take(&mut FreeFrames::new(0).expect("memory"), None), None);
    }

    #[test]
    #[should_panic(expected = "frame 7 was freed twice")]
    fn give_twice_panics() {
        FreeFrames::new(8).expect("memory").give(FrameId(7));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(Option<u32>),
        Give(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            prop::option::of(0..FRAMES + 5).prop_map(Step::Take),
            any::<usize>().prop_map(Step::Give),
        ];
        prop::collection::vec(step, 0..600)
    }

    const FRAMES: u32 = 64 * 3 + 10;

    proptest! {
        /// Against the set of free frames: a wanted frame is given if it is free, else a frame whose whole aligned
        /// piece is free if there is such a piece, else any; and no frame is given twice.
        #[test]
        fn frames_any_steps_agree_with_the_model(steps in steps()) {
            let mut free = FreeFrames::new(FRAMES).expect("memory");
            let mut model: BTreeSet<u32> = (0..FRAMES).collect();
            let mut taken = Vec::new();
            for step in steps {
                match step {
                    Step::Take(wanted) => {
                        let is_whole = |piece: u32| {
                            model.range(piece * 64..(piece + 1) * 64).count() == 64
                        };
                        let some_whole = (0..FRAMES / 64).any(is_whole);
                        let Some(frame) = take(&mut free, wanted) else {
                            prop_assert!(model.is_empty());
                            continue;
                        };
                        if wanted.is_some_and(|wanted| model.contains(&wanted)) {
                            prop_assert_eq!(Some(frame), wanted);
                        } else if some_whole {
                            prop_assert!(frame % 64 == 0 && is_whole(frame / 64));
                        }
                        prop_assert!(model.remove(&frame), "{} was taken", frame);
                        taken.push(frame);
                    }
                    Step::Give(pick) if !taken.is_empty() => {
                        let frame = taken.swap_remove(pick % taken.len());
                        free.give(FrameId(frame));
                        model.insert(frame);
                    }
                    Step::Give(_) => {}
                }
            }
        }
    }
}
