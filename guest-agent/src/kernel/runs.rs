//! Free pages, kept as runs of neighbours.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_wire::{Gfn, GfnRun};

/// The free pages as maximal runs, found by place and by length.
///
/// Single pages come from the shortest run, which leaves the long runs to the balloon: the balloon
/// protocol names pages in runs, and the host releases memory in runs.
#[derive(Debug, Default)]
pub(super) struct FreeRuns {
    by_start: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    pages: u32,
}

impl FreeRuns {
    /// How many pages are free.
    pub(super) const fn pages(&self) -> u32 {
        self.pages
    }

    /// Adds pages that are not in any run yet, and joins them with their neighbours.
    pub(super) fn insert(&mut self, run: GfnRun) {
        if run.count == 0 {
            return;
        }
        let (mut start, mut count) = (run.start.0, run.count);
        if let Some((&left, &length)) = self.by_start.range(..start).next_back()
            && left + length == start
        {
            self.unlink(left, length);
            (start, count) = (left, length + count);
        }
        if let Some(&length) = self.by_start.get(&(start + count)) {
            self.unlink(start + count, length);
            count += length;
        }
        self.link(start, count);
        self.pages += run.count;
    }

    /// Takes the first page of the shortest run.
    pub(super) fn take_one(&mut self) -> Option<Gfn> {
        // From the shortest run, so that the long ones stay long for the balloon.
        let &(length, start) = self.by_length.first()?;
        self.unlink(start, length);
        self.link(start + 1, length - 1);
        self.pages -= 1;
        Some(Gfn(start))
    }

    /// Takes `count` pages from the start of the shortest run that has them. What is left of a run is
    /// shorter, so a second call tends to get the pages that follow.
    pub(super) fn take_run(&mut self, count: u32) -> Option<GfnRun> {
        let &(length, start) = self.by_length.range((count, 0)..).next()?;
        self.unlink(start, length);
        self.link(start + count, length - count);
        self.pages -= count;
        Some(GfnRun::new(Gfn(start), count))
    }

    /// Takes the longest run, or `max` pages from its end when it is longer than that.
    pub(super) fn take_longest(&mut self, max: u32) -> Option<GfnRun> {
        let &(length, start) = self.by_length.last()?;
        let count = length.min(max);
        self.unlink(start, length);
        self.link(start, length - count);
        self.pages -= count;
        Some(GfnRun::new(Gfn(start + length - count), count))
    }

    /// The first free run at or behind a page, of which at most `max` pages. A run that begins before the page counts
    /// from it.
    pub(super) fn next(&self, from: u32, max: u32) -> Option<GfnRun> {
        let before = self.by_start.range(..from).next_back();
        let across = before.filter(|&(&start, &length)| start + length > from);
        let (start, end) = match across {
            Some((&start, &length)) => (from, start + length),
            None => {
                let (&start, &length) = self.by_start.range(from..).next()?;
                (start, start + length)
            }
        };
        Some(GfnRun::new(Gfn(start), (end - start).min(max)))
    }

    /// Takes pages that lie in one free run; whether they did.
    pub(super) fn remove(&mut self, run: GfnRun) -> bool {
        let (start, end) = (run.start.0, run.start.0 + run.count);
        let around = self.by_start.range(..=start).next_back();
        let Some((&left, &length)) = around.filter(|&(&left, &length)| left + length >= end) else {
            return false;
        };
        self.unlink(left, length);
        self.link(left, start - left);
        self.link(end, left + length - end);
        self.pages -= run.count;
        true
    }

    /// All runs, ascending.
    pub(super) fn all(&self) -> impl Iterator<Item = GfnRun> {
        let run = |(&start, &length): (&u32, &u32)| GfnRun::new(Gfn(start), length);
        self.by_start.iter().map(run)
    }

    fn link(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.by_start.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn unlink(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &FreeRuns) -> Vec<(u32, u32)> {
        assert_eq!(runs.by_start.len(), runs.by_length.len());
        assert_eq!(runs.by_start.values().sum::<u32>(), runs.pages);
        runs.by_start.iter().map(|(&s, &l)| (s, l)).collect()
    }

    #[test]
    fn insert_between_two_runs_joins_all_three() {
        let mut free = FreeRuns::default();
        free.insert(GfnRun::new(Gfn(0), 4));
        free.insert(GfnRun::new(Gfn(8), 4));
        assert_eq!(runs(&free), [(0, 4), (8, 4)]);
        free.insert(GfnRun::new(Gfn(4), 4));
        assert_eq!(runs(&free), [(0, 12)]);
    }

    #[test]
    fn next_begins_inside_a_run_and_remove_leaves_both_ends() {
        let mut free = FreeRuns::default();
        free.insert(GfnRun::new(Gfn(4), 10));
        free.insert(GfnRun::new(Gfn(20), 2));
        assert_eq!(free.next(0, 3), Some(GfnRun::new(Gfn(4), 3)));
        assert_eq!(free.next(7, 99), Some(GfnRun::new(Gfn(7), 7)));
        assert_eq!(free.next(14, 99), Some(GfnRun::new(Gfn(20), 2)));
        assert_eq!(free.next(22, 99), None);
        assert!(free.remove(GfnRun::new(Gfn(6), 3)));
        assert_eq!(runs(&free), [(4, 2), (9, 5), (20, 2)]);
        assert!(free.remove(GfnRun::new(Gfn(20), 2)));
        assert!(
            !free.remove(GfnRun::new(Gfn(5), 2)),
            "its second page is not free"
        );
        assert_eq!(runs(&free), [(4, 2), (9, 5)]);
    }

    #[test]
    fn take_one_spares_the_long_run_and_take_longest_uses_it() {
        let mut free = FreeRuns::default();
        free.insert(GfnRun::new(Gfn(0), 10));
        free.insert(GfnRun::new(Gfn(20), 2));
        assert_eq!(free.take_one(), Some(Gfn(20)));
        assert_eq!(free.take_one(), Some(Gfn(21)));
        assert_eq!(free.take_run(11), None);
        assert_eq!(free.take_longest(4), Some(GfnRun::new(Gfn(6), 4)));
        assert_eq!(free.take_run(2), Some(GfnRun::new(Gfn(0), 2)));
        assert_eq!(free.take_longest(9), Some(GfnRun::new(Gfn(2), 4)));
        assert_eq!(free.take_longest(9), None);
        assert_eq!(free.take_one(), None);
        assert_eq!(free.pages(), 0);
    }
}
