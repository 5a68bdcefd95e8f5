//! From the hash of a page to where such a page may be found.

use std::collections::HashMap;
use std::mem;

use crate::sync::Mutex;
use crate::units::{FrameId, Gfn, VmId};

/// Locks that the index is divided by: enough that scanner, reclaim workers and breaks seldom meet.
const SHARDS: usize = 64;

/// The most hints of one pool. Each takes about 40 bytes, 1 % of the page it speaks for, and the index
/// must stay small beside the memory that it saves; so many speak for 16 GiB of different pages.
const MAX_HINTS: usize = 1 << 22;

/// What the index knew when a page was reported under a hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nothing; now it knows this page.
    Inserted,
    /// This page.
    Same,
    /// Another page, which had this hash some time ago. It is still the one that is known.
    Other(VmId, Gfn),
}

/// The hashes of shared frames and of pages seen by the scanner.
///
/// The maps hash the hashes again with a random key: guests choose what their pages hold, and could
/// otherwise fill one bucket.
#[derive(Debug)]
pub struct Index {
    shards: Box<[Mutex<Shard>]>,
    /// The hints a shard takes before its old ones are dropped.
    generation: usize,
}

/// Hints age in two generations, so that a full shard drops its oldest half at once, at no cost
/// for each hint: `young` becomes `old` when it is full, and what was `old` is gone.
#[derive(Debug, Default)]
struct Shard {
    frames: HashMap<u64, FrameId>,
    young: HashMap<u64, (VmId, Gfn)>,
    old: HashMap<u64, (VmId, Gfn)>,
}

impl Shard {
    fn hint(&mut self, hash: u64, page: (VmId, Gfn), generation: usize) -> Hint {
        if let Some(&known) = self.young.get(&hash) {
            return found(known, page);
        }
        let known = self.old.remove(&hash);
        self.insert_hint(hash, known.unwrap_or(page), generation);
        known.map_or(Hint::Inserted, |known| found(known, page))
    }

    fn insert_hint(&mut self, hash: u64, page: (VmId, Gfn), generation: usize) {
        if self.young.len() >= generation {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(hash, page);
    }

    fn hints(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self::with_max_hints(MAX_HINTS)
    }

    fn with_max_hints(max_hints: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            generation: max_hints / (2 * SHARDS),
        }
    }

    /// Reports that the page `gfn` of `vm` has this hash.
    ///
    /// The first page reported stays the one that is known until it is dropped by
    /// [`drop_hint`](Self::drop_hint), by a frame or by age; being found makes a hint young again.
    pub fn hint(&self, hash: u64, vm: VmId, gfn: Gfn) -> Hint {
        let mut shard = self.shard(hash).lock();
        shard.hint(hash, (vm, gfn), self.generation)
    }

    /// Drops a hint that turned out false, or whose page was shared; nothing if another page is known
    /// under the hash by now.
    pub fn drop_hint(&self, hash: u64, vm: VmId, gfn: Gfn) {
        let mut shard = self.shard(hash).lock();
        let Shard { young, old, .. } = &mut *shard;
        for hints in [young, old] {
            if hints.get(&hash) == Some(&(vm, gfn)) {
                hints.remove(&hash);
            }
        }
    }

    /// Drops all hints at pages of a VM that is gone. Shared frames are left to their counts.
    pub fn forget_vm(&self, vm: VmId) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.young.retain(|_, (owner, _)| *owner != vm);
            shard.old.retain(|_, (owner, _)| *owner != vm);
        }
    }

    /// How many hints there are; counted shard by shard.
    #[must_use]
    pub fn hints(&self) -> u64 {
        let counts = self.shards.iter().map(|shard| shard.lock().hints() as u64);
        counts.sum()
    }

    /// The frame of this hash, if `take_reference` to it succeeds. It is called under the lock that
    /// [`remove_frame`](Self::remove_frame) waits for, so the frame is still the one of the hash.
    pub(super) fn find_frame(
        &self,
        hash: u64,
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Option<FrameId> {
        let shard = self.shard(hash).lock();
        let frame = shard.frames.get(&hash).copied();
        frame.filter(|&frame| take_reference(frame))
    }

    /// The same, or if there is none what [`hint`](Self::hint) says of `page`. Nobody can make a frame
    /// between the two.
    pub(super) fn find_frame_or_hint(
        &self,
        hash: u64,
        page: (VmId, Gfn),
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Result<FrameId, Hint> {
        let mut shard = self.shard(hash).lock();
        let frame = shard.frames.get(&hash).copied();
        match frame.filter(|&frame| take_reference(frame)) {
            Some(frame) => Ok(frame),
            None => Err(shard.hint(hash, page, self.generation)),
        }
    }

    /// Makes `frame` the one of this hash, and takes away the hint that it had; `Err` when another frame
    /// is that `is_live`.
    pub(super) fn insert_frame(
        &self,
        hash: u64,
        frame: FrameId,
        is_live: impl FnOnce(FrameId) -> bool,
    ) -> Result<Option<(VmId, Gfn)>, FrameId> {
        let mut shard = self.shard(hash).lock();
        if let Some(other) = shard
            .frames
            .get(&hash)
            .copied()
            .filter(|&other| is_live(other))
        {
            return Err(other);
        }
        shard.frames.insert(hash, frame);
        let young = shard.young.remove(&hash);
        Ok(young.or_else(|| shard.old.remove(&hash)))
    }

    /// Removes the entry of this hash if it names this frame.
    pub(super) fn remove_frame(&self, hash: u64, frame: FrameId) {
        let mut shard = self.shard(hash).lock();
        if shard.frames.get(&hash) == Some(&frame) {
            shard.frames.remove(&hash);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "reduced to the number of shards"
    )]
    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash % SHARDS as u64) as usize]
    }

    /// All entries of shared frames.
    #[cfg(test)]
    pub(super) fn frames(&self) -> Vec<(u64, FrameId)> {
        let entries = |shard: &Mutex<Shard>| shard.lock().frames.clone();
        self.shards.iter().flat_map(entries).collect()
    }
}

fn found(known: (VmId, Gfn), asked: (VmId, Gfn)) -> Hint {
    if known == asked {
        Hint::Same
    } else {
        Hint::Other(known.0, known.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: VmId = VmId(1);
    const B: VmId = VmId(2);

    #[test]
    fn hint_first_page_stays_known_until_dropped() {
        let index = Index::new();
        assert_eq!(index.hint(7, A, Gfn(1)), Hint::Inserted);
        assert_eq!(index.hint(7, A, Gfn(1)), Hint::Same);
        assert_eq!(index.hint(7, B, Gfn(1)), Hint::Other(A, Gfn(1)));
        index.drop_hint(7, B, Gfn(1));
        assert_eq!(
            index.hint(7, A, Gfn(2)),
            Hint::Other(A, Gfn(1)),
            "B's was not the one"
        );
        index.drop_hint(7, A, Gfn(1));
        assert_eq!(index.hint(7, B, Gfn(1)), Hint::Inserted);
        assert_eq!(index.hints(), 1);
    }

    #[test]
    fn forget_vm_drops_its_hints_and_no_others() {
        let index = Index::with_max_hints(1 << 20);
        for page in 0..1000 {
            index.hint(u64::from(page), [A, B][page as usize % 2], Gfn(page));
        }
        index.forget_vm(A);
        assert_eq!(index.hints(), 500);
        assert_eq!(index.hint(1, A, Gfn(1)), Hint::Other(B, Gfn(1)));
        assert_eq!(index.hint(0, B, Gfn(0)), Hint::Inserted);
    }

    #[test]
    fn hints_over_the_limit_drop_those_not_found_for_longest() {
        let limit = 8 * SHARDS as u64;
        let index = Index::with_max_hints(limit as usize);
        index.hint(0, A, Gfn(0));
        for hash in 1..10 * limit {
            assert_eq!(index.hint(hash, A, Gfn(0)), Hint::Inserted);
            assert_eq!(
                index.hint(0, B, Gfn(0)),
                Hint::Other(A, Gfn(0)),
                "found again and again"
            );
            assert!(index.hints() <= limit);
        }
        assert_eq!(
            index.hint(SHARDS as u64, A, Gfn(0)),
            Hint::Inserted,
            "long gone"
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Hint(u64, VmId, Gfn),
        Drop(u64, VmId, Gfn),
        Forget(VmId),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let page = || (0..30u64, 0..3u32, 0..4u32);
        let step = prop_oneof![
            10 => page().prop_map(|(hash, vm, gfn)| Step::Hint(hash, VmId(vm), Gfn(gfn))),
            5 => page().prop_map(|(hash, vm, gfn)| Step::Drop(hash, VmId(vm), Gfn(gfn))),
            1 => (0..3u32).prop_map(|vm| Step::Forget(VmId(vm))),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Against one map, all hashes in one shard whose generations hold ten. A hint may be forgotten
        /// only when ten others were reported after it; whatever is known is what the map knows.
        #[test]
        fn hints_any_steps_agree_with_the_model(steps in steps()) {
            const GENERATION: usize = 10;
            let index = Index::with_max_hints(2 * GENERATION * SHARDS);
            let mut model: HashMap<u64, (VmId, Gfn)> = HashMap::new();
            let mut reported: Vec<u64> = Vec::new();
            for step in steps {
                match step {
                    Step::Hint(number, vm, gfn) => {
                        let hash = number * SHARDS as u64;
                        let hint = index.hint(hash, vm, gfn);
                        let recent = reported.iter().rev().take(GENERATION).any(|it| *it == hash);
                        match model.get(&hash) {
                            Some(_) if hint == Hint::Inserted => prop_assert!(!recent),
                            Some(known) => prop_assert_eq!(hint, found(*known, (vm, gfn))),
                            None => prop_assert_eq!(hint, Hint::Inserted),
                        }
                        if hint == Hint::Inserted {
                            model.insert(hash, (vm, gfn));
                        }
                        reported.retain(|it| *it != hash);
                        reported.push(hash);
                    }
                    Step::Drop(number, vm, gfn) => {
                        let hash = number * SHARDS as u64;
                        index.drop_hint(hash, vm, gfn);
                        if model.get(&hash) == Some(&(vm, gfn)) {
                            model.remove(&hash);
                        }
                    }
                    Step::Forget(vm) => {
                        index.forget_vm(vm);
                        model.retain(|_, (owner, _)| *owner != vm);
                    }
                }
                let most = model.len().min(2 * GENERATION);
                prop_assert!(index.hints() <= most as u64);
            }
        }
    }
}
