//! Which slots of a swap file are free.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::units::SlotId;

/// Neighbouring slots of a swap file; never empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotRun {
    /// The first slot.
    pub start: SlotId,
    /// How many slots; at least 1.
    pub len: u32,
}

impl SlotRun {
    /// The slots in ascending order.
    pub fn slots(self) -> impl Iterator<Item = SlotId> {
        (self.start.0..self.end()).map(SlotId)
    }

    /// The number after the last slot.
    const fn end(self) -> u32 {
        self.start.0 + self.len
    }
}

impl fmt::Display for SlotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start.0, self.len)
    }
}

/// The free slots as runs that neither overlap nor touch.
///
/// Both indexes hold the same runs: by start to join neighbours, by length to find room. Best fit
/// keeps the long runs long, which is what clustered writes live on.
#[derive(Debug, Default)]
pub(super) struct FreeSlots {
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    free: u32,
}

impl FreeSlots {
    pub(super) fn new(slots: u32) -> Self {
        let mut free = Self::default();
        if slots > 0 {
            free.insert(0, slots);
        }
        free
    }

    /// How many slots are free.
    pub(super) const fn len(&self) -> u32 {
        self.free
    }

    /// Takes `count` slots in as few runs as there can be without searching all ways to combine
    /// them: the tightest single run, else the longest ones first. Fewer when fewer are free.
    pub(super) fn take(&mut self, count: u32) -> Vec<SlotRun> {
        let mut runs = Vec::new();
        let mut wanted = count;
        while wanted > 0 {
            let tightest = self.by_len.range((wanted, 0)..).next();
            let Some(&(len, start)) = tightest.or_else(|| self.by_len.last()) else {
                break;
            };
            let taken = len.min(wanted);
            self.remove(start, len);
            if taken < len {
                self.insert(start + taken, len - taken);
            }
            runs.push(SlotRun {
                start: SlotId(start),
                len: taken,
            });
            wanted -= taken;
        }
        runs
    }

    /// Frees one slot; `false` when it is free already.
    pub(super) fn give(&mut self, slot: SlotId) -> bool {
        let before = self.by_start.range(..=slot.0).next_back();
        let before = before.map(|(&start, &len)| (start, len));
        if before.is_some_and(|(start, len)| slot.0 < start + len) {
            return false;
        }
        let (mut start, mut len) = (slot.0, 1);
        if let Some((left, left_len)) = before.filter(|(left, len)| left + len == slot.0) {
            self.remove(left, left_len);
            start = left;
            len += left_len;
        }
        if let Some(&right_len) = self.by_start.get(&(slot.0 + 1)) {
            self.remove(slot.0 + 1, right_len);
            len += right_len;
        }
        self.insert(start, len);
        true
    }

    fn insert(&mut self, start: u32, len: u32) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
        self.free += len;
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(start: u32, len: u32) -> SlotRun {
        SlotRun {
            start: SlotId(start),
            len,
        }
    }

    #[test]
    fn take_prefers_the_tightest_run_and_joins_only_when_none_fits() {
        let mut free = FreeSlots::new(20);
        assert_eq!(free.take(20), [run(0, 20)]);
        for slot in [2, 3, 4, 8, 9, 10, 11, 12, 16, 17] {
            assert!(free.give(SlotId(slot)));
        }
        assert_eq!(free.take(3), [run(2, 3)]);
        assert_eq!(free.take(1), [run(16, 1)]);
        assert_eq!(free.take(6), [run(8, 5), run(17, 1)]);
        assert_eq!(free.take(1), []);
    }

    #[test]
    fn take_from_no_slots_is_nothing() {
        assert_eq!(FreeSlots::new(0).take(1), []);
    }

    #[test]
    fn take_of_all_numbers_there_are_ends_below_the_last() {
        let mut free = FreeSlots::new(u32::MAX);
        assert_eq!(free.take(u32::MAX), [run(0, u32::MAX)]);
        assert!(free.give(SlotId(u32::MAX - 1)));
        assert_eq!(free.take(1), [run(u32::MAX - 1, 1)]);
    }

    #[test]
    fn give_twice_is_refused() {
        let mut free = FreeSlots::new(3);
        free.take(3);
        assert!(free.give(SlotId(1)));
        assert!(!free.give(SlotId(1)));
        assert_eq!(free.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u32),
        Give(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => (0..20u32).prop_map(Step::Take),
            8 => (0..SLOTS).prop_map(Step::Give),
        ];
        prop::collection::vec(step, 0..300)
    }

    const SLOTS: u32 = 100;

    proptest! {
        /// Against the set of free slots: what is taken was free, as much as there was, the runs are
        /// maximal, and no single run would have done where several were given.
        #[test]
        fn slots_any_steps_agree_with_the_model(steps in steps()) {
            let mut free = FreeSlots::new(SLOTS);
            let mut model: BTreeSet<u32> = (0..SLOTS).collect();
            for step in steps {
                match step {
                    Step::Take(count) => {
                        let longest = longest_run(&model);
                        let expected = count.min(model.len() as u32);
                        let runs = free.take(count);
                        for slot in runs.iter().flat_map(|run| run.slots()) {
                            prop_assert!(model.remove(&slot.0), "{:?} was not free", slot);
                        }
                        prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u32>(), expected);
                        prop_assert!(runs.len() <= 1 || longest < count);
                    }
                    Step::Give(slot) => {
                        prop_assert_eq!(free.give(SlotId(slot)), model.insert(slot));
                    }
                }
                prop_assert_eq!(free.len(), model.len() as u32);
                let runs = free.by_start.iter().map(|(start, len)| (*start, *len));
                prop_assert_eq!(runs.collect::<Vec<_>>(), runs_of(&model));
                let by_len = free.by_len.iter().map(|(len, start)| (*start, *len));
                prop_assert_eq!(by_len.collect::<BTreeMap<_, _>>(), free.by_start.clone());
            }
        }
    }

    fn runs_of(model: &BTreeSet<u32>) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &slot in model {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == slot => *len += 1,
                _ => runs.push((slot, 1)),
            }
        }
        runs
    }

    fn longest_run(model: &BTreeSet<u32>) -> u32 {
        runs_of(model)
            .iter()
            .map(|(_, len)| *len)
            .max()
            .unwrap_or(0)
    }
}
