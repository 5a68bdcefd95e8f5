//! Which slots of a swap file are free.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

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
    pub(super) const fn end(self) -> u32 {
        self.start.0 + self.len
    }
}

impl fmt::Display for SlotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start.0, self.len)
    }
}

/// The slots of a file whose length changes while it is in use.
///
/// The file has `len` slots. Those below `limit` may be given out, and `limit <= len`. When the limit
/// falls, slots behind it may be in use. Once freed they are *retired*, and when only retired slots are
/// left at the end of the file, it can be cut. A slot is given out only if no more than `limit` slots are
/// in use afterwards, wherever they are: whoever lowers the limit wants less to be swapped.
#[derive(Debug)]
pub(super) struct Slots {
    /// Free, below the limit.
    free: FreeRuns,
    /// Free, from the limit on.
    retired: FreeRuns,
    limit: u32,
    len: u32,
}

impl Slots {
    pub(super) fn new(slots: u32) -> Self {
        let mut all = Self {
            free: FreeRuns::default(),
            retired: FreeRuns::default(),
            limit: 0,
            len: 0,
        };
        all.extend(slots);
        all.set_limit(slots);
        all
    }

    /// Slots that may be in use.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    /// Slots the file has.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Slots in use; for a while more than the limit, after the limit has fallen.
    pub(super) const fn used(&self) -> u32 {
        self.len - self.free.slots - self.retired.slots
    }

    /// Takes `count` slots in few runs; fewer slots when fewer may be given out.
    pub(super) fn take(&mut self, count: u32) -> Vec<SlotRun> {
        // Saturating, because more slots are in use than the limit allows after it has fallen.
        let most = self.limit.saturating_sub(self.used());
        self.free.take(count.min(most))
    }

    /// Frees one slot; `false` when it is free already.
    pub(super) fn give(&mut self, slot: SlotId) -> bool {
        let runs = if slot.0 < self.limit {
            &mut self.free
        } else {
            &mut self.retired
        };
        runs.give(slot)
    }

    /// Changes how many slots may be in use; at most the number that the file has.
    ///
    /// The cost is proportional to the number of free runs between the old limit and the new one.
    pub(super) fn set_limit(&mut self, limit: u32) {
        assert!(limit <= self.len, "{limit} of {} slots", self.len);
        let (from, to, range) = if limit < self.limit {
            (&mut self.free, &mut self.retired, limit..self.limit)
        } else {
            (&mut self.retired, &mut self.free, self.limit..limit)
        };
        for (start, len) in from.cut_out(range) {
            to.join(start, len);
        }
        self.limit = limit;
    }

    /// Notes that the file has `len` slots now, more than before. The new ones are retired until the limit is raised.
    pub(super) fn extend(&mut self, len: u32) {
        self.retired.join(self.len, len - self.len);
        self.len = len;
    }

    /// How many slots the file needs: up to the limit, or up to the last slot in use if that is further.
    pub(super) fn needed(&self) -> u32 {
        match self.retired.by_start.last_key_value() {
            Some((&start, &len)) if start + len == self.len => start,
            _ => self.len,
        }
    }

    /// Notes that the file has been cut to `len` slots, the number that was [`needed`](Self::needed) a moment ago.
    pub(super) fn cut(&mut self, len: u32) {
        self.retired.cut_out(len..self.len);
        self.len = len;
    }
}

/// The free slots as runs that neither overlap nor touch.
///
/// Both indexes hold the same runs: by start to join neighbours, by length to find room. Best fit
/// keeps the long runs long, and clustered writes depend on long runs.
#[derive(Debug, Default)]
struct FreeRuns {
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    slots: u32,
}

impl FreeRuns {
    /// Takes `count` slots, or fewer when fewer are free, in as few runs as possible without searching all
    /// combinations: the tightest single run that fits, else the longest runs first.
    fn take(&mut self, count: u32) -> Vec<SlotRun> {
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
    fn give(&mut self, slot: SlotId) -> bool {
        let before = self.by_start.range(..=slot.0).next_back();
        let before = before.map(|(&start, &len)| (start, len));
        if before.is_some_and(|(start, len)| slot.0 < start + len) {
            return false;
        }
        self.join(slot.0, 1);
        true
    }

    /// Adds slots that are not in any run, and joins them with their neighbours.
    fn join(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some((&left, &left_len)) = self.by_start.range(..start).next_back()
            && left + left_len == start
        {
            self.remove(left, left_len);
            start = left;
            len += left_len;
        }
        if let Some(&right_len) = self.by_start.get(&(start + len)) {
            self.remove(start + len, right_len);
            len += right_len;
        }
        self.insert(start, len);
    }

    /// Takes out all slots of `range`, as runs.
    fn cut_out(&mut self, range: Range<u32>) -> Vec<(u32, u32)> {
        let before = self.by_start.range(..range.start).next_back();
        let inside = self.by_start.range(range.clone());
        let touched: Vec<(u32, u32)> = before
            .filter(|(start, len)| **start + **len > range.start)
            .into_iter()
            .chain(inside)
            .map(|(&start, &len)| (start, len))
            .collect();
        let mut cut = Vec::with_capacity(touched.len());
        for (start, len) in touched {
            self.remove(start, len);
            let (from, to) = (start.max(range.start), (start + len).min(range.end));
            for (rest, end) in [(start, from), (to, start + len)] {
                if rest < end {
                    self.insert(rest, end - rest);
                }
            }
            cut.push((from, to - from));
        }
        cut
    }

    fn insert(&mut self, start: u32, len: u32) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
        self.slots += len;
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.slots -= len;
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

    fn runs_to(slots: u32) -> FreeRuns {
        let mut free = FreeRuns::default();
        free.join(0, slots);
        free
    }

    #[test]
    fn take_prefers_the_tightest_run_and_joins_only_when_none_fits() {
        let mut free = runs_to(20);
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
        assert_eq!(runs_to(0).take(1), []);
    }

    #[test]
    fn take_of_all_numbers_there_are_ends_below_the_last() {
        let mut free = runs_to(u32::MAX);
        assert_eq!(free.take(u32::MAX), [run(0, u32::MAX)]);
        assert!(free.give(SlotId(u32::MAX - 1)));
        assert_eq!(free.take(1), [run(u32::MAX - 1, 1)]);
    }

    #[test]
    fn give_twice_is_refused() {
        let mut free = runs_to(3);
        free.take(3);
        assert!(free.give(SlotId(1)));
        assert!(!free.give(SlotId(1)));
        assert_eq!(free.slots, 1);
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
        /// Against the set of free slots: what is taken was free, and as much is taken as there was. The runs are
        /// maximal, and where several are given no single run would have been enough.
        #[test]
        fn slots_any_steps_agree_with_the_model(steps in steps()) {
            let mut free = runs_to(SLOTS);
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
                prop_assert_eq!(free.slots, model.len() as u32);
                let runs = free.by_start.iter().map(|(start, len)| (*start, *len));
                prop_assert_eq!(runs.collect::<Vec<_>>(), runs_of(&model));
                let by_len = free.by_len.iter().map(|(len, start)| (*start, *len));
                prop_assert_eq!(by_len.collect::<BTreeMap<_, _>>(), free.by_start.clone());
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Resize {
        Take(u32),
        Give(usize),
        Limit(u32),
        Extend(u32),
        Cut,
    }

    fn resizes() -> impl Strategy<Value = Vec<Resize>> {
        let step = prop_oneof![
            3 => (0..30u32).prop_map(Resize::Take),
            9 => any::<usize>().prop_map(Resize::Give),
            2 => (0..SLOTS).prop_map(Resize::Limit),
            1 => (0..SLOTS).prop_map(Resize::Extend),
            1 => Just(Resize::Cut),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Against the set of slots in use: whatever the limit does, a slot is given out once and below the
        /// limit, and never so that more slots than the limit are in use. The file keeps all slots in use.
        #[test]
        fn slots_of_a_file_that_is_resized_agree_with_the_model(steps in resizes()) {
            let mut slots = Slots::new(SLOTS / 2);
            let mut used: BTreeSet<u32> = BTreeSet::new();
            for step in steps {
                let (limit, len) = (slots.limit(), slots.len());
                match step {
                    Resize::Take(count) => {
                        let most = limit.saturating_sub(used.len() as u32);
                        let runs = slots.take(count);
                        prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u32>(), count.min(most));
                        for slot in runs.iter().flat_map(|run| run.slots()) {
                            prop_assert!(slot.0 < limit);
                            prop_assert!(used.insert(slot.0), "{:?} is in use", slot);
                        }
                    }
                    Resize::Give(pick) => {
                        if let Some(&slot) = used.iter().nth(pick % used.len().max(1)) {
                            used.remove(&slot);
                            prop_assert!(slots.give(SlotId(slot)));
                            prop_assert!(!slots.give(SlotId(slot)), "freed twice");
                        }
                    }
                    Resize::Limit(limit) => slots.set_limit(limit.min(len)),
                    Resize::Extend(by) => slots.extend(len + by % 10),
                    Resize::Cut => {
                        let last = used.last().map_or(0, |slot| slot + 1);
                        prop_assert_eq!(slots.needed(), limit.max(last));
                        slots.cut(slots.needed());
                        prop_assert_eq!(slots.len(), limit.max(last));
                    }
                }
                prop_assert_eq!(slots.used(), used.len() as u32);
                let below: BTreeSet<u32> =
                    (0..slots.limit()).filter(|slot| !used.contains(slot)).collect();
                let free = slots.free.by_start.iter().map(|(start, len)| (*start, *len));
                prop_assert_eq!(free.collect::<Vec<_>>(), runs_of(&below));
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
