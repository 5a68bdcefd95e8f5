//! How much of a compression cache is worth its memory.
//!
//! A cache of compressed pages competes with the pages in use for the same memory. If it keeps whatever fits its cap,
//! data that a guest wrote once and never reads again keeps a quarter of its size for ever, while pages that the guest
//! needs all the time come and go. A smaller cap is no answer: where the guest works on what is in the cache, each page
//! that leaves for the swap file comes back ten times as slowly.
//!
//! So the cache is priced at the margin. In the order of their last use, a guest's pages lie in RAM, in the cache and
//! in the swap file, and there are two borders:
//! * One more page of memory for RAM would keep one page out of the cache, one of those that left RAM last. That saves
//!   the refills of such a page, each at the cost of a refill from the cache. These refills are counted over all of the
//!   cache except its edge.
//! * One page of memory less for the cache moves the several pages that it holds from the *edge* of the cache, its
//!   oldest quarter, to the swap file. Each of their refills then costs the difference between the two kinds of refill.
//!   A cache that had kept the pages that left it last would save the same difference: [`Ghosts`](crate::vm::Ghosts) tells
//!   their refills from those of other swapped pages.
//!
//! While RAM saves more than twice as much as the edge, the cache shrinks by an eighth, and by a quarter, which is all of
//! the edge, if it has just shrunk. While the edge saves more than twice as much as RAM, the cache grows by an eighth.
//! While the pages that left would save that much, it doubles: a cache that is too small costs more than one that is too
//! large. In between it stays as it is.
//!
//! What pays may end a few pages further on than the size that was too small, and doubling passes that end. So a cache
//! that had grown and has shrunk since grows by an eighth at first, and by twice as much at each further step. And it
//! may shrink at once as long as it stays larger than the size that was too small. To that size it goes back only
//! after a time that is longer each time that the cache had to grow.
//!
//! The cost of a refill is measured: the time for which threads of the guest stood still for it. The eviction that
//! each refill causes is not included, so RAM saves more than is reckoned here. Until refills from the swap file have
//! been seen, they are taken to be slow. Where the swap file takes nothing, the cache keeps what fits its cap.
//!
//! A VM whose cache holds nothing but what it never reads again may have all that it uses in RAM. Then hardly anything is
//! refilled, and there is nothing to learn from. But other VMs may be short. So what a page of memory would save
//! *elsewhere* on the host ([`Refaults`](crate::vm::Refaults)) counts as what RAM saves if it is more, in part. The cache
//! counts as memory of its VM, so what it gives up goes to the VM's own pages if they are wanted, and else, by the next
//! plan, to the others.
//!
//! Absent on purpose: the time that moving a page takes. The worker spends it, once for each page, and the steps
//! bound it.

use std::time::{Duration, Instant};

use super::Edge;
use crate::units::{PAGE_SIZE, Pages};

/// The shortest time between two notes that count.
const INTERVAL: Duration = Duration::from_secs(1);
/// No decision is based on less time than this.
const SETTLE: Duration = Duration::from_secs(2);
/// Older events are forgotten, because guests change what they work on.
const WINDOW: Duration = Duration::from_secs(4);
/// How many refills are needed to tell what RAM would save.
const EVIDENCE: f64 = 64.0;
/// Refills that may have been missed by chance. Where none is seen although this many are expected, chance is the
/// reason in one case of 20, if refills come at random.
const CHANCE: f64 = 3.0;
/// How much more one side must save than the other before memory goes there.
const MARGIN: f64 = 2.0;
/// What a page would save elsewhere counts one part in so many: it is surmised, and what is lost here is known. Counted in
/// full, a guest that reads all its memory in turn did 14 and 42 % less in two runs, and the others no more.
const SURMISED: f64 = 2.0;
/// The first step down takes one page in so many away, and the smallest step up adds as many.
const STEP: u32 = 8;
/// A step down after another takes one page in so many away: the whole edge, which is what was seen to save little. A guest
/// that begins by filling its memory leaves a cache full of pages that it never reads again.
const NEXT_STEP: u32 = 4;
/// What always stays, to learn from: one page in so many of the cap, and at least a MiB.
const LEAST_PART: u32 = 8;
const LEAST: u32 = 256;
/// How long a cache that had to grow does not go back to the size that was too small: at first, and at most.
const PATIENCE: Duration = Duration::from_secs(8);
const MOST_PATIENCE: Duration = Duration::from_secs(256);
/// What a refill from the swap file is taken to cost, in seconds, before one was seen: ten times what a fast disk
/// takes.
const SLOW_REFILL: f64 = 0.001;
/// The cost of a refill is a mean over this many pages, up to twice as many.
const COSTED: f64 = 4096.0;

/// Refills of one kind since power-on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refills {
    /// How many pages were brought back.
    pub pages: u64,
    /// For how long threads stood still for these pages.
    pub stood: Duration,
}

/// A cache and what happened to its VM since power-on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Arena pages of the cache, and the most that it may have.
    pub used: u32,
    /// See `used`.
    pub cap: u32,
    /// Compressed pages in it.
    pub stored: Pages,
    /// The oldest of them.
    pub edge: Edge,
    /// Pages that have left the cache lately, and how many of such have come back since power-on.
    pub left: Pages,
    /// See `left`.
    pub returned: u64,
    /// Refills from the cache.
    pub zip: Refills,
    /// Refills from the swap file.
    pub swap: Refills,
    /// Whether the swap file takes pages.
    pub swap_takes: bool,
    /// What a page of memory would save elsewhere on the host: the time in each second for which threads of all VMs
    /// would not stand still, on average over them.
    pub elsewhere: Duration,
}

/// What a page of memory saves: the part of each second for which threads would stand still without the page.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Saves {
    /// As a page of the cache's edge.
    pub edge: f64,
    /// The same, as much as it could be if chance has hidden refills.
    edge_at_most: f64,
    /// As a page of a cache that had kept what has left it lately.
    pub left: f64,
    /// As a page of RAM.
    pub ram: f64,
}

/// The size that is wanted of one VM's cache. See the module text.
#[derive(Debug, Default)]
pub struct Worth {
    latest: Option<(Instant, Seen)>,
    recent: Recent,
    zip: Cost,
    swap: Cost,
    saves: Saves,
    limit: Option<u32>,
    /// Whether the latest step was one down.
    shrinks: bool,
    grown: Option<Grown>,
}

/// What is remembered of the latest time that the cache had to grow.
#[derive(Clone, Copy, Debug)]
struct Grown {
    at: Instant,
    /// The limit that was too small.
    from: u32,
    /// For how long the cache does not shrink to that size again.
    patience: Duration,
    /// The next step up because pages that left come back: one page in so many.
    part: u32,
}

impl Worth {
    /// Notes what the cache has done until now, and decides whether it grows or shrinks.
    pub fn note(&mut self, now: Instant, seen: Seen) {
        let Some((at, before)) = self.latest else {
            self.latest = Some((now, seen));
            return;
        };
        let passed = now.saturating_duration_since(at);
        if passed >= INTERVAL {
            self.latest = Some((now, seen));
            self.recent.note(passed, &before, &seen);
            self.zip.note(before.zip, seen.zip);
            self.swap.note(before.swap, seen.swap);
            let costs = [self.zip.mean(0.0), self.swap.mean(SLOW_REFILL)];
            self.saves = self.recent.saves(&seen, costs);
            self.step(now, &seen);
        }
        // At every look and not only when an interval is over: what the cache gave up now would have nowhere to go.
        if !seen.swap_takes {
            self.limit = None;
        }
    }

    /// The most arena pages that the cache should have; `None`: as many as its cap allows.
    #[must_use]
    pub const fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// What was found when the cache was last noted.
    #[must_use]
    pub const fn saves(&self) -> Saves {
        self.saves
    }

    fn step(&mut self, now: Instant, seen: &Seen) {
        if self.recent.time < SETTLE.as_secs_f64() {
            return;
        }
        let limit = if let Some((limit, part)) = self.missing(now, seen) {
            self.remember(now, limit, part);
            self.shrinks = false;
            Some(limit.saturating_add(limit.div_ceil(part))).filter(|limit| *limit < seen.cap)
        } else if self.may_shrink(now, seen) {
            if let Some(grown) = &mut self.grown {
                grown.part = STEP;
            }
            let limit = self.shrunk(seen);
            self.shrinks = true;
            Some(limit)
        } else {
            return;
        };
        self.limit = limit;
        // What was seen before a step says nothing about the cache as it is after it.
        self.recent = Recent::default();
    }

    /// The limit, and one in how many pages of it is missing, if the cache is full and keeps too little, because pages
    /// that left it came back or pages of its edge would; `None`: the limit need not rise.
    fn missing(&self, now: Instant, seen: &Seen) -> Option<(u32, u32)> {
        let Saves {
            edge, left, ram, ..
        } = self.saves;
        let limit = self
            .limit
            .filter(|limit| seen.used >= limit - limit / STEP)?;
        let price = ram.max(elsewhere(seen));
        let pays =
            // Less what chance may have added: few refills prove little, and `CHANCE` of them prove nothing.
            |saves: f64, wanted: f64| saves * (1.0 - CHANCE / wanted.max(CHANCE)) > MARGIN * price;
        if pays(left, self.recent.returned) {
            return Some((limit, self.grown_lately(now).map_or(1, |grown| grown.part)));
        }
        pays(edge, self.recent.edge).then_some((limit, STEP))
    }

    /// Notes that this limit was too small, and that the cache grows by one page in `part`.
    fn remember(&mut self, now: Instant, from: u32, part: u32) {
        let patience = match self.grown_lately(now) {
            Some(grown) => (grown.patience * 2).min(MOST_PATIENCE),
            None => PATIENCE,
        };
        self.grown = Some(Grown {
            at: now,
            from,
            patience,
            part: (part / 2).max(1),
        });
    }

    fn grown_lately(&self, now: Instant) -> Option<Grown> {
        // Twice, so that a cache that shrank after the longest patience and has to grow again still counts as wrong.
        let lately = |grown: &Grown| now.saturating_duration_since(grown.at) < 2 * MOST_PATIENCE;
        self.grown.filter(lately)
    }

    /// Whether the cache keeps too much and may shrink. A cache that is still above its limit shrinks already.
    fn may_shrink(&self, now: Instant, seen: &Seen) -> bool {
        let Saves {
            edge_at_most,
            left,
            ram,
            ..
        } = self.saves;
        let most = self.limit.unwrap_or(seen.cap);
        let was_too_small =
            |grown: Grown| self.shrunk(seen) <= grown.from && now < grown.at + grown.patience;
        // With few refills there is nothing to learn about this VM's RAM.
        let ram = if self.recent.young >= EVIDENCE {
            ram
        } else {
            0.0
        };
        let price = ram.max(elsewhere(seen));
        seen.swap_takes
            && seen.used > least(seen.cap)
            // A cache above its limit is being made smaller already; the next step waits for what that shows.
            && seen.used <= most
            && !self.grown.is_some_and(was_too_small)
            // Against the most that chance may have hidden: to shrink by mistake costs slow refills.
            && edge_at_most.max(left) * MARGIN < price
    }

    /// The arena pages of the cache after a step down.
    fn shrunk(&self, seen: &Seen) -> u32 {
        let part = if self.shrinks { NEXT_STEP } else { STEP };
        (seen.used - seen.used / part).max(least(seen.cap))
    }
}

/// What counts of what a page would save elsewhere.
fn elsewhere(seen: &Seen) -> f64 {
    seen.elsewhere.as_secs_f64() / SURMISED
}

/// The arena pages that a cache always keeps.
fn least(cap: u32) -> u32 {
    (cap / LEAST_PART).max(LEAST)
}

/// What happened since the latest step, or since the window began: seconds that passed, and refills from the edge, from
/// the rest of the cache, and of pages that had left it.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    time: f64,
    edge: f64,
    young: f64,
    returned: f64,
}

impl Recent {
    fn note(&mut self, passed: Duration, before: &Seen, seen: &Seen) {
        if self.time >= WINDOW.as_secs_f64() {
            *self = Self::default();
        }
        let edge = seen.edge.wanted - before.edge.wanted;
        let all = seen.zip.pages - before.zip.pages;
        self.time += passed.as_secs_f64();
        self.edge += number(edge);
        // Saturating, because the counters are read one after the other.
        self.young += number(all.saturating_sub(edge));
        self.returned += number(seen.returned - before.returned);
    }

    fn saves(&self, seen: &Seen, [zip, swap]: [f64; 2]) -> Saves {
        let dearer = (swap - zip).max(0.0);
        let each = f64::from(seen.used) / number(seen.stored.0).max(1.0);
        let edge = number(seen.edge.bytes) / number(PAGE_SIZE as u64);
        let left = number(seen.left.0) * each;
        let young = number(seen.stored.0.saturating_sub(seen.edge.pages.0));
        // At least one page, because a part of a page says nothing.
        let per = |saved: f64, pages: f64| saved / (pages.max(1.0) * self.time);
        Saves {
            edge: per(self.edge * dearer, edge),
            edge_at_most: per((self.edge + CHANCE) * dearer, edge),
            left: per(self.returned * dearer, left),
            ram: per(self.young * zip, young),
        }
    }
}

/// What a refill costs, on average over the latest ones.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    pages: f64,
    stood: f64,
}

impl Cost {
    fn note(&mut self, before: Refills, now: Refills) {
        self.pages += number(now.pages - before.pages);
        self.stood += now.stood.saturating_sub(before.stood).as_secs_f64();
        if self.pages > 2.0 * COSTED {
            self.stood *= COSTED / self.pages;
            self.pages = COSTED;
        }
    }

    /// The mean in seconds, as if one refill had been seen before the others, and had cost `first`.
    fn mean(&self, first: f64) -> f64 {
        // The assumed cost weighs as much as one refill, so that the first ones that are seen outweigh it.
        (first + self.stood) / (1.0 + self.pages)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of pages are far below 2^52"
)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const CAP: u32 = 40_000;

    /// A guest whose pages lie in the order of their last use: the hottest in RAM, the next in the cache, the others
    /// in the swap file.
    #[derive(Debug)]
    struct Model {
        /// How many pages are used, and how often a second; the most used first.
        uses: Vec<(f64, f64)>,
        memory: f64,
        /// How many pages a page of the cache holds.
        ratio: f64,
        /// What a refill costs, in seconds.
        costs: [f64; 2],
        swap_takes: bool,
        elsewhere: Duration,
        worth: Worth,
        now: Instant,
        totals: [f64; 4],
        changes: u32,
    }

    /// Where the guest's pages are under some limit: the ends of RAM and cache in the order of use, and the pages of
    /// the cache.
    struct Places {
        ram: f64,
        cached: f64,
        used: f64,
    }

    impl Model {
        fn new(uses: &[(f64, f64)], memory: f64) -> Self {
            Self {
                uses: uses.to_vec(),
                memory,
                ratio: 3.0,
                costs: [10e-6, 100e-6],
                swap_takes: true,
                elsewhere: Duration::ZERO,
                worth: Worth::default(),
                now: Instant::now(),
                totals: [0.0; 4],
                changes: 0,
            }
        }

        fn all(&self) -> f64 {
            self.uses.iter().map(|(pages, _)| pages).sum()
        }

        fn places(&self, limit: Option<u32>) -> Places {
            let missing = (self.all() - self.memory).max(0.0) / (self.ratio - 1.0);
            // The cache is made of the same memory.
            let most = self.memory.min(limit.unwrap_or(CAP).min(CAP).into());
            let used = missing.min(most);
            let ram = self.memory - used;
            Places {
                ram,
                cached: ram + self.ratio * used,
                used,
            }
        }

        /// How often a second the pages between these two are used.
        fn rate(&self, from: f64, to: f64) -> f64 {
            let mut start = 0.0;
            let mut sum = 0.0;
            for (pages, rate) in &self.uses {
                let end = start + pages;
                sum += (to.min(end) - from.max(start)).max(0.0) * rate;
                start = end;
            }
            sum
        }

        /// The part of a second for which threads stand still.
        fn stands(&self, limit: Option<u32>) -> f64 {
            let Places { ram, cached, .. } = self.places(limit);
            self.rate(ram, cached) * self.costs[0] + self.rate(cached, self.all()) * self.costs[1]
        }

        fn seen(&self, limit: Option<u32>) -> Seen {
            let Places { ram, cached, used } = self.places(limit);
            let left = self.left(limit);
            let pages = |pages: f64| Pages(whole(pages));
            let [zip, swap, wanted, returned] = self.totals.map(whole);
            let refills = |pages: u64, cost| Refills {
                pages,
                stood: Duration::from_secs_f64(number(pages) * cost),
            };
            Seen {
                used: u32::try_from(whole(used)).expect("less than the cap"),
                cap: CAP,
                stored: pages(cached - ram),
                edge: Edge {
                    pages: pages((cached - ram) / 4.0),
                    bytes: whole(used / 4.0) * PAGE_SIZE as u64,
                    wanted,
                },
                left: pages(left - cached),
                returned,
                zip: refills(zip, self.costs[0]),
                swap: refills(swap, self.costs[1]),
                swap_takes: self.swap_takes,
                elsewhere: self.elsewhere,
            }
        }

        /// The end, in the order of use, of the pages that have left the cache and are remembered.
        fn left(&self, limit: Option<u32>) -> f64 {
            let Places { ram, cached, .. } = self.places(limit);
            limit.map_or(cached, |_| (2.0 * cached - ram).min(self.all()))
        }

        fn run(&mut self, seconds: u32) -> &mut Self {
            for _ in 0..seconds {
                let limit = self.worth.limit();
                let Places { ram, cached, .. } = self.places(limit);
                let edge = cached - (cached - ram) / 4.0;
                let happens = [
                    self.rate(ram, cached),
                    self.rate(cached, self.all()),
                    self.rate(edge, cached),
                    self.rate(cached, self.left(limit)),
                ];
                for (total, more) in self.totals.iter_mut().zip(happens) {
                    *total += more;
                }
                self.now += SECOND;
                self.worth.note(self.now, self.seen(limit));
                self.changes += u32::from(self.worth.limit() != limit);
            }
            self
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers"
    )]
    fn whole(number: f64) -> u64 {
        number as u64
    }

    /// Pages that are used and pages that are not used at all; neither kind fits into RAM.
    const HOT_AND_COLD: [(f64, f64); 2] = [(20_000.0, 1.0), (60_000.0, 0.0)];

    #[test]
    fn cold_pages_go_to_the_swap_file_until_ram_has_room_for_the_others() {
        let mut model = Model::new(&HOT_AND_COLD, 30_000.0);
        assert!(model.stands(None) > 0.14);
        model.run(120);
        assert!(model.stands(model.worth.limit()) < 0.014, "{model:?}");
        // Nothing is left to be gained.
        let (limit, changes) = (model.worth.limit(), model.changes);
        model.run(600);
        assert_eq!((model.worth.limit(), model.changes), (limit, changes));
    }

    #[test]
    fn cache_whose_oldest_pages_are_used_like_the_others_stays() {
        let mut model = Model::new(&[(80_000.0, 1.0)], 30_000.0);
        model.run(600);
        assert_eq!((model.worth.limit(), model.changes), (None, 0));
        let Saves { edge, ram, .. } = model.worth.saves();
        assert!(edge > 10.0 * ram, "{model:?}");
    }

    /// All that the guest uses fits into RAM, so there is nothing to learn from its own refills.
    #[test]
    fn cold_pages_go_to_the_swap_file_where_others_could_use_their_memory() {
        let mut model = Model::new(&[(10_000.0, 1.0), (60_000.0, 0.0)], 30_000.0);
        model.run(60);
        assert_eq!(model.worth.limit(), None);
        model.elsewhere = Duration::from_micros(2);
        model.run(60);
        assert!(
            model.worth.limit().is_some_and(|limit| limit < 6000),
            "{model:?}"
        );
    }

    #[test]
    fn pages_of_a_cache_that_save_more_than_others_could_stay() {
        let mut model = Model::new(&[(80_000.0, 1.0)], 30_000.0);
        model.elsewhere = Duration::from_micros(100);
        model.run(600);
        assert_eq!((model.worth.limit(), model.changes), (None, 0));
        model.elsewhere = Duration::from_millis(100);
        model.run(60);
        assert!(
            model.worth.limit().is_some_and(|limit| limit < 6000),
            "{model:?}"
        );
    }

    #[test]
    fn cold_pages_stay_where_the_swap_file_is_too_slow_for_how_cold_they_are() {
        let uses = [(20_000.0, 1.0), (60_000.0, 0.0003)];
        let mut model = Model::new(&uses, 30_000.0);
        model.costs[1] = 0.000_05;
        model.run(120);
        assert!(model.worth.limit().is_some(), "{model:?}");
        let mut model = Model::new(&uses, 30_000.0);
        model.costs[1] = 0.05;
        // A smaller cache is tried, and found to be too small.
        model.run(600);
        let (now, whole) = (model.stands(model.worth.limit()), model.stands(None));
        assert!(now < 1.05 * whole, "{now} {whole} {model:?}");
    }

    #[test]
    fn cache_grows_back_when_what_left_it_is_used() {
        let mut model = Model::new(&HOT_AND_COLD, 30_000.0);
        model.run(120);
        assert!(model.worth.limit().is_some_and(|limit| limit < 15_000));
        model.uses[1].1 = 1.0;
        model.run(30);
        let stood = model.stands(model.worth.limit());
        assert!(stood <= model.stands(None), "{model:?}");
    }

    #[test]
    fn cache_that_had_to_grow_is_in_no_hurry_to_be_as_small_again() {
        let mut model = Model::new(&HOT_AND_COLD, 30_000.0);
        model.run(60).uses[1].1 = 1.0;
        let small = model.worth.limit();
        while model.run(1).worth.limit() == small {}
        model.uses[1].1 = 0.0;
        model.run(7);
        assert!(model.worth.limit() > small, "{model:?}");
        model.run(20);
        assert!(model.worth.limit() <= small, "{model:?}");
    }

    #[test]
    fn cache_stays_where_there_is_nothing_to_learn_from_and_nothing_takes_its_pages() {
        let mut idle = Model::new(&[(20_000.0, 0.0), (60_000.0, 0.0)], 30_000.0);
        idle.run(600);
        assert_eq!((idle.worth.limit(), idle.changes), (None, 0));
        let mut full = Model::new(&HOT_AND_COLD, 30_000.0);
        full.run(20);
        assert!(full.worth.limit().is_some(), "{full:?}");
        full.swap_takes = false;
        full.run(1);
        assert_eq!(full.worth.limit(), None);
        full.run(60);
        assert_eq!(full.worth.limit(), None);
    }

    /// The pages that are used all the time fit into RAM beside the smallest cache, and no larger one: each step up takes
    /// some of them out. Found by the property below, and by a search near it.
    #[test]
    fn limit_rests_where_one_page_more_would_take_hot_pages_out_of_ram() {
        let found = [
            (
                [(22_727.0, 5.99), (27_983.0, 0.001_29), (22_172.0, 0.0)],
                27_727.0,
                2.0,
            ),
            (
                [(9_228.0, 9.86), (47_181.0, 0.000_65), (46_544.0, 0.000_643)],
                14_397.0,
                6.94,
            ),
            (
                [(43_326.0, 5.96), (49_833.0, 0.002_74), (51_702.0, 0.0)],
                53_636.0,
                2.66,
            ),
        ];
        for (uses, memory, ratio) in found {
            let mut model = Model::new(&uses, memory);
            (model.ratio, model.costs[1]) = (ratio, 0.000_02);
            check(&mut model).expect("it rests");
        }
    }

    /// Whatever the guest does, it stands still no longer than with the whole cache, and the limit comes to rest: with the
    /// longest patience three tries fit into the time, each of a step or two down, two up, and one back.
    fn check(model: &mut Model) -> Result<(), TestCaseError> {
        model.run(300);
        let changes = model.changes;
        model.run(600);
        let (now, whole) = (model.stands(model.worth.limit()), model.stands(None));
        prop_assert!(now <= 1.02 * whole + 1e-4, "{now} for {whole}: {model:?}");
        let more = model.changes - changes;
        prop_assert!(more <= 15, "{more} changes: {model:?}");
        Ok(())
    }

    /// Pages of three degrees of use, memory for some of them, and any costs.
    fn models() -> impl Strategy<Value = Model> {
        let part = || (0_u32..60_000, prop::option::weighted(0.8, -3.0..1.0));
        let swap = prop::sample::select(vec![0.000_02, 0.000_1, 0.001, 0.02]);
        (prop::array::uniform3(part()), 0.2..0.9, 2.0..8.0, swap).prop_map(
            |(parts, memory, ratio, swap)| {
                let rate = |exponent: Option<f64>| exponent.map_or(0.0, |e| 10.0_f64.powf(e));
                let mut uses = parts.map(|(pages, exponent)| (f64::from(pages), rate(exponent)));
                uses.sort_by(|(_, one), (_, other)| other.total_cmp(one));
                let mut model = Model::new(&uses, 0.0);
                model.memory = model.all() * memory;
                (model.ratio, model.costs[1]) = (ratio, swap);
                model
            },
        )
    }

    /// Doubled, the cache would take most of the pages out of RAM that are used all the time, and be left so for minutes.
    /// Found by the property below.
    #[test]
    fn cache_that_grew_too_far_goes_most_of_the_way_back_at_once() {
        let found = [
            (
                [(18_344.0, 8.18), (52_918.0, 0.001_379), (48_925.0, 0.0)],
                28_159.55,
                2.966,
            ),
            (
                [(12_403.0, 8.81), (39_243.0, 6.355), (56_101.0, 0.001_781)],
                65_818.98,
                2.729_5,
            ),
        ];
        for (uses, memory, ratio) in found {
            let mut model = Model::new(&uses, memory);
            (model.ratio, model.costs[1]) = (ratio, 0.000_02);
            model.run(120);
            let mut stood = 0.0;
            for _ in 0..600 {
                model.run(1);
                stood += model.stands(model.worth.limit()) / 600.0;
            }
            assert!(stood < 0.1 * model.stands(None), "{stood}: {model:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn limit_does_no_harm_and_does_not_flap(mut model in models()) {
            check(&mut model)?;
        }
    }
}
