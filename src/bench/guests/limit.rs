//! The search for a cgroup limit and a swap setup with which the kernel uses the same amount of memory as our host.
//!
//! Our budget covers everything that guests have in memory, including compressed pages. A cgroup covers only
//! uncompressed pages in memory. What zram takes for the other pages is outside the cgroup and depends on their
//! content. So runs are repeated until the peak of the cgroup and the most that zram took add up to the target.
//!
//! The lower the limit of the cgroup, the more pages are in zram, at their compressed size. The sum is about linear in
//! the limit, and each run tells the slope. If the cgroup would get less than a small part of the target, not all pages
//! can be in memory. Then cgroup and zram get half of the target each, and the rest goes to a swap file behind them.
//! Content that hardly compresses is kept out of zram, because the swap file alone is faster there.

/// How far from the target the sum may be.
pub(super) const TOLERANCE: f64 = 0.05;

/// The part of its size that a page is assumed to take in zram before anything is known: about that of text.
const FIRST_COST: f64 = 0.4;
/// Content that takes more than this part of its size in zram is not worth it.
const NO_GAIN: f64 = 0.8;
/// The least part of the target that the cgroup gets where zram takes all that does not fit.
const LEAST_PART: f64 = 0.15;
/// The part of the target that zram may take where a file is behind it.
const ZRAM_PART: f64 = 0.5;
/// A device of which this part was used counts as full.
const FULL: f64 = 0.9;
/// How many times larger a device is made than what can come to it.
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

/// What the kernel used, in bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Used {
    /// The peak of the cgroup.
    pub(super) cgroup: f64,
    /// The most that zram took.
    pub(super) zram: f64,
    /// The memory that zram took, as a part of what it held.
    pub(super) cost: Option<f64>,
}

impl Used {
    /// All memory together.
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
    /// The limit of the run before, and what zram took in it.
    before: Option<(f64, f64)>,
    /// Whether a run without a file has shown that the cgroup would get too little.
    needs_file: bool,
}

impl Search {
    /// Starts a search for guests that want `wants` bytes and shall use `target` bytes together.
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
            needs_file: false,
        };
        search.limit_to(search.limit_for(FIRST_COST), FIRST_COST);
        search
    }

    /// The limit with which the target is used when all that does not fit is in zram, at this cost: the solution of
    /// limit + cost * (wants - limit) = target.
    fn limit_for(&self, cost: f64) -> f64 {
        // If content does not compress, the sum is the same at any limit, and this would divide by zero.
        (self.target - cost * self.wants) / (1.0 - cost).max(0.01)
    }

    /// The cgroup had so little memory that the kernel killed a process: the cgroup gets more, and zram less.
    pub(super) fn had_too_little(&mut self) {
        self.given.limit = f64::midpoint(self.given.limit, self.target);
        self.given.file = self.wants * ROOM;
        self.given.zram = (self.target - self.given.limit) / FIRST_COST;
    }

    /// The memory that shall be used.
    pub(super) const fn target(&self) -> f64 {
        self.target
    }

    /// What to try next.
    pub(super) const fn given(&self) -> Given {
        self.given
    }

    /// How far `used` is from the target, as a part of the target.
    pub(super) fn miss(&self, used: &Used) -> f64 {
        used.total() / self.target - 1.0
    }

    /// Learns from what the last try used; whether the search is over.
    pub(super) fn has_found(&mut self, used: &Used) -> bool {
        let miss = self.miss(used);
        let has_all = self.given.limit >= self.target * (1.0 - TOLERANCE / 2.0);
        let cost = used.cost.unwrap_or(FIRST_COST);
        let is_needless = self.given.file > 0.0
            && !self.needs_file
            && self.given.zram > 0.0
            && self.limit_for(cost) > self.target * LEAST_PART;
        if is_needless {
            // The content compresses better than assumed, so all of it fits into memory without a file.
            (self.given.zram, self.given.file) = (self.wants * ROOM, 0.0);
            self.given.limit = self.limit_for(cost).min(self.target);
            return false;
        }
        // If the kernel used less than the target though the cgroup could have had all of it, it needs no more.
        if miss.abs() <= TOLERANCE || (miss < 0.0 && has_all) {
            return true;
        }
        if self.given.zram == 0.0 {
            // Only the cgroup uses memory, so an excess comes from the way in which its peak is counted.
            self.given.limit *= self.target / used.total();
        } else if self.given.file > 0.0 && used.zram / cost > self.given.zram * FULL {
            self.shrink_zram(self.given.zram * self.for_zram() / used.zram, cost);
        } else {
            // zram did not fill up, so nothing went to the file if there was one.
            (self.given.zram, self.given.file) = (self.wants * ROOM, 0.0);
            let limit = self.given.limit;
            let slope = match self.before {
                Some((before, zram)) if (limit - before).abs() > self.target * 0.01 => {
                    (used.zram - zram) / (limit - before)
                }
                // No slope is known yet: assume that all that does not fit was in zram.
                _ => -used.zram / (self.wants - limit).max(1.0),
            };
            self.before = Some((limit, used.zram));
            // Bounded, so that the sum is taken to rise with the limit, and the division is never by about zero.
            let slope = slope.clamp(-0.9, 0.0);
            let next = limit + (self.target - used.total()) / (1.0 + slope);
            // Without this the search would go to and fro: by what zram takes a file seems needless, because guests
            // that read files hold more than they want.
            self.needs_file = next < self.target * LEAST_PART;
            self.limit_to(next, cost);
        }
        false
    }

    /// Sets the limit of the cgroup. If that is less than a sensible part of the target, the cgroup gets half of the
    /// target and zram the other half.
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

    /// A kernel whose zram takes `cost` for each byte, and whose KSM merges the part `merged` of all memory.
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

    /// Guests that read files have them in memory twice, in their own page cache and in the kernel's.
    #[test]
    fn search_ends_also_where_guests_hold_more_than_they_want() {
        for more in [1.0, 1.2, 1.4, 1.5] {
            let mut search = Search::new(1e9, 2e9);
            let found = (0..6).any(|_| {
                let used = run(search.given(), 2e9 * more, 0.42, 0.0);
                search.has_found(&used) && search.miss(&used).abs() <= TOLERANCE
            });
            assert!(found, "{more}: {search:?}");
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
