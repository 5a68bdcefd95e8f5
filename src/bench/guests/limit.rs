//! The search for what the kernel may be given, so that it uses as much memory as our host.
//!
//! A budget holds everything that guests have in memory, compressed pages too. A cgroup holds what is in memory as it
//! is; what zram takes for the rest is outside of it and depends on what is compressed. So the limit of the cgroup is
//! looked for: runs are made until the peak of the cgroup and the most that zram took are the target together.
//!
//! The less the cgroup may have the more is in zram, at the price of its compressed size: the sum is about linear, and
//! each run says how steep. Where even a small part of the target is too much for the cgroup, not all can be in
//! memory: then cgroup and zram get half of it each, and what is left goes to a swap file behind them. Content that
//! zram makes hardly smaller is kept out of it: there the swap file alone is faster.

/// How far from the target the sum may be.
pub(super) const TOLERANCE: f64 = 0.05;

/// Memory that a page takes in zram, of its size, before anything is known: about that of text.
const FIRST_COST: f64 = 0.4;
/// Content that takes more than this of its size is not worth zram.
const NO_GAIN: f64 = 0.8;
/// The part of the target that the cgroup has at least where zram takes all that does not fit.
const LEAST_PART: f64 = 0.15;
/// The part that zram may take where there is a file behind it.
const ZRAM_PART: f64 = 0.5;
/// A device of which so much was used was full at some time.
const FULL: f64 = 0.9;
/// A device is promised to be so much larger than what can come to it.
const ROOM: f64 = 1.5;

/// What the kernel is given, in bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Given {
    /// The limit of the cgroup.
    pub(super) limit: f64,
    /// The size of the zram device, which is what it can hold before compression; 0: none.
    pub(super) zram: f64,
    /// The size of the swap file behind it; 0: none.
    pub(super) file: f64,
}

/// What it used, in bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Used {
    /// The peak of the cgroup.
    pub(super) cgroup: f64,
    /// The most that zram took.
    pub(super) zram: f64,
    /// Of what zram held, the part that it took.
    pub(super) cost: Option<f64>,
}

impl Used {
    /// Memory altogether.
    pub(super) fn total(&self) -> f64 {
        self.cgroup + self.zram
    }
}

/// A search.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Search {
    target: f64,
    wants: f64,
    given: Given,
    /// The limit and what zram took of the run before.
    before: Option<(f64, f64)>,
}

impl Search {
    /// The start of one for guests that want `wants`, and shall use `target` together.
    pub(super) fn new(target: f64, wants: f64) -> Self {
        let mut search = Self {
            target,
            wants,
            given: Given {
                limit: target,
                zram: wants * ROOM,
                file: 0.0,
            },
            before: None,
        };
        search.limit_to(search.limit_for(FIRST_COST), FIRST_COST);
        search
    }

    /// The limit with which all that does not fit is in zram, if it takes so much of its size.
    fn limit_for(&self, cost: f64) -> f64 {
        // Content that does not compress is there as a whole, whatever the limit.
        (self.target - cost * self.wants) / (1.0 - cost).max(0.01)
    }

    /// The cgroup had so little that the kernel ended a process: it gets more, zram less.
    pub(super) fn had_too_little(&mut self) {
        self.given.limit = f64::midpoint(self.given.limit, self.target);
        self.given.file = self.wants * ROOM;
        self.given.zram = (self.target - self.given.limit) / FIRST_COST;
    }

    /// What to try next.
    pub(super) const fn given(&self) -> Given {
        self.given
    }

    /// How far `used` is from the target, as a part of it.
    pub(super) fn miss(&self, used: &Used) -> f64 {
        used.total() / self.target - 1.0
    }

    /// Takes in what the last try used; whether that is what was looked for.
    pub(super) fn has_found(&mut self, used: &Used) -> bool {
        let miss = self.miss(used);
        let has_all = self.given.limit >= self.target * (1.0 - TOLERANCE / 2.0);
        let cost = used.cost.unwrap_or(FIRST_COST);
        let is_needless = self.given.file > 0.0
            && self.given.zram > 0.0
            && self.limit_for(cost) > self.target * LEAST_PART;
        if is_needless {
            // What compresses better than was thought is in memory as a whole.
            (self.given.zram, self.given.file) = (self.wants * ROOM, 0.0);
            self.given.limit = self.limit_for(cost).min(self.target);
            return false;
        }
        // With all memory there is, less was needed.
        if miss.abs() <= TOLERANCE || (miss < 0.0 && has_all) {
            return true;
        }
        if self.given.zram == 0.0 {
            // The cgroup alone: what is over comes from the way its peak is counted.
            self.given.limit *= self.target / used.total();
        } else if self.given.file > 0.0 && used.zram / cost > self.given.zram * FULL {
            self.shrink_zram(self.given.zram * self.for_zram() / used.zram, cost);
        } else {
            // Nothing came to the file, if there was one.
            (self.given.zram, self.given.file) = (self.wants * ROOM, 0.0);
            let limit = self.given.limit;
            let slope = match self.before {
                Some((before, zram)) if (limit - before).abs() > self.target * 0.01 => {
                    (used.zram - zram) / (limit - before)
                }
                // As if all that does not fit were in zram.
                _ => -used.zram / (self.wants - limit).max(1.0),
            };
            self.before = Some((limit, used.zram));
            let slope = slope.clamp(-0.9, 0.0);
            let next = limit + (self.target - used.total()) / (1.0 + slope);
            self.limit_to(next, cost);
        }
        false
    }

    /// Has the cgroup take so much, and if that is too little to be sensible half of the target.
    fn limit_to(&mut self, limit: f64, cost: f64) {
        self.given.limit = limit.min(self.target);
        if limit < self.target * LEAST_PART {
            self.given.limit = self.target - self.for_zram();
            self.shrink_zram(self.for_zram() / cost, cost);
        }
    }

    fn for_zram(&self) -> f64 {
        self.target * ZRAM_PART
    }

    fn shrink_zram(&mut self, size: f64, cost: f64) {
        self.given.file = self.wants * ROOM;
        self.given.zram = size;
        if cost > NO_GAIN {
            self.given.zram = 0.0;
            self.given.limit = self.target;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose zram takes `cost` of each byte, `merged` of all of which are merged.
    fn run(given: Given, wants: f64, cost: f64, merged: f64) -> Used {
        let held = wants * (1.0 - merged);
        let cgroup = held.min(given.limit);
        let out = (held - cgroup).max(0.0);
        let stored = out.min(given.zram);
        assert!(out - stored <= given.file, "there is room for everything");
        Used {
            cgroup,
            zram: stored * cost,
            cost: (stored > 0.0).then_some(cost),
        }
    }

    #[test]
    fn search_ends_within_the_tolerance_in_a_few_tries() {
        for overcommit in [1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0] {
            for cost in [0.02, 0.2, 0.45, 0.6, 0.79, 0.85, 1.02] {
                for merged in [0.0, 0.2, 0.6] {
                    let (target, wants) = (1e9 / overcommit, 1e9);
                    let mut search = Search::new(target, wants);
                    let mut tries = 1;
                    let mut used = run(search.given(), wants, cost, merged);
                    while !search.has_found(&used) {
                        used = run(search.given(), wants, cost, merged);
                        tries += 1;
                        let case = format!("{overcommit} {cost} {merged}: {used:?} {search:?}");
                        assert!(tries <= 5, "{case}");
                    }
                    let miss = search.miss(&used);
                    let needs_less = (1.0 - merged) * wants < target;
                    assert!(miss <= TOLERANCE, "{overcommit} {cost} {merged} {miss}");
                    assert!(miss >= -TOLERANCE || needs_less, "{miss}");
                }
            }
        }
    }

    #[test]
    fn content_that_does_not_compress_is_swapped_to_the_file_alone() {
        let mut search = Search::new(1e9, 3e9);
        let first = search.given();
        assert_eq!(first.limit, 0.5e9, "{first:?}");
        assert!(first.zram > 0.0 && first.file > 0.0, "{first:?}");
        let used = Used {
            cgroup: first.limit,
            zram: 1e9,
            cost: Some(1.01),
        };
        assert!(!search.has_found(&used));
        let next = search.given();
        assert_eq!((next.zram, next.limit), (0.0, 1e9));
        assert!(next.file >= 3e9);
    }

    #[test]
    fn content_that_compresses_well_is_all_in_memory() {
        // At the first guess it would not fit.
        let mut search = Search::new(1e9, 2.8e9);
        assert!(search.given().file > 0.0);
        let used = run(search.given(), 2.8e9, 0.3, 0.0);
        assert!(!search.has_found(&used), "{used:?}");
        assert_eq!(search.given().file, 0.0);
        let used = run(search.given(), 2.8e9, 0.3, 0.0);
        assert!(search.has_found(&used), "{used:?}");
    }

    #[test]
    fn cgroup_without_memory_for_its_processes_gets_more_and_zram_less() {
        let mut search = Search::new(1e9, 3e9);
        let before = search.given();
        search.had_too_little();
        let after = search.given();
        assert!(after.limit > before.limit && after.limit < 1e9);
        assert!(after.zram < before.zram && after.file > 0.0);
    }

    #[test]
    fn kernel_that_needs_less_than_it_may_have_is_found_to() {
        let mut search = Search::new(1e9, 1.5e9);
        let used = Used {
            cgroup: 0.4e9,
            zram: 0.0,
            cost: None,
        };
        let is_first_enough = search.has_found(&used);
        assert!(!is_first_enough, "it had {:?}", search.given());
        assert!(search.has_found(&used), "{search:?}");
    }
}
