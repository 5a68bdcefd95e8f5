//! The level at which bids take what is available: water poured into vessels of many shapes.
//!
//! What one VM holds at a level is a line in four pieces: flat at its least, steep while the pages are
//! in use, less steep where they are idle and taxed, flat again at its most. The sum over all VMs is
//! a line in pieces too, which never falls. Bisection would look at every VM once for each of the
//! hundred bits of a level, four times a second. But the pieces are known. They are sorted by where
//! they begin and walked once, with the sum's line carried along; within the right piece the level is
//! a division.
//!
//! Pages are whole, so each VM's part is rounded down, and the lines are up to a page too high for
//! each VM. The pages that this leaves over, fewer than there are VMs, are handed out one by one, always
//! to the VM that gets its next page at the lowest level. The result is the level that bisection
//! finds, bit by bit; a test compares the two. For n VMs it costs n log n.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::units::Pages;

/// Bits after the binary point of a [`Level`]: one step of it moves the part of a VM by less than
/// a page, however many shares the VM has.
const FRACTION: u32 = 32;

/// The cost of pages per share, as a fixed-point number with [`FRACTION`] bits after the point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Level(u128);

impl Level {
    /// In pages per share: how many pages in use one share buys. Idle pages cost more.
    #[expect(clippy::cast_precision_loss, reason = "a price is read by people")]
    pub(super) fn price(self) -> f64 {
        self.0 as f64 / (1_u64 << FRACTION) as f64
    }
}

/// What one VM asks for: what it can be given, and at which price.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bid {
    pub shares: u32,
    /// It is given this much even if that is more than there is.
    pub floor: Pages,
    /// It is given no more than this. At least the floor.
    pub cap: Pages,
    /// Each page up to here costs one.
    pub active: Pages,
    /// Each page beyond `active` costs `100 / untaxed`. 1 to 100.
    pub untaxed: u32,
}

impl Bid {
    /// What this VM holds at a level.
    pub(super) fn at(&self, level: Level) -> Pages {
        let funds = u128::from(self.shares).saturating_mul(level.0);
        let active = u128::from(self.active.0) << FRACTION;
        // Multiplied first: without a tax, nothing is rounded, and use makes no difference.
        let idle = funds.saturating_sub(active);
        let idle = idle.saturating_mul(u128::from(self.untaxed)) / 100;
        let part = (funds.min(active).saturating_add(idle)) >> FRACTION;
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        Pages(part).max(self.floor).min(self.cap)
    }

    /// The lowest level at which its shares buy this many pages. It must have shares: the level is divided by them.
    fn reach(&self, pages: Pages) -> u128 {
        let active = self.active.min(pages);
        let idle = u128::from(pages.saturating_sub(active).0) << FRACTION;
        let taxed = divide_up(idle * 100, self.untaxed);
        divide_up((u128::from(active.0) << FRACTION) + taxed, self.shares)
    }

    /// Whether the level makes a difference to what it holds.
    const fn is_elastic(&self) -> bool {
        self.shares > 0 && self.floor.0 < self.cap.0
    }

    fn flat(pages: Pages) -> Line {
        Line {
            start: i128::from(pages.0) * UNIT,
            slope: 0,
        }
    }

    /// Its line while all its pages are in use.
    fn steep(&self) -> Line {
        Line {
            start: 0,
            slope: i128::from(self.shares) * 100,
        }
    }

    /// Its line where further pages are idle.
    fn taxed(&self) -> Line {
        let taxed = 100 - i128::from(self.untaxed);
        Line {
            start: (i128::from(self.active.0) * taxed) << FRACTION,
            slope: i128::from(self.shares) * i128::from(self.untaxed),
        }
    }

    /// The levels at which its line changes, each with the line that begins there.
    fn pieces(&self) -> impl Iterator<Item = (u128, Line)> {
        let (begin, end) = (self.reach(self.floor), self.reach(self.cap));
        let first = if self.floor < self.active {
            self.steep()
        } else {
            self.taxed()
        };
        let has_breakpoint = self.floor < self.active && self.active < self.cap;
        let breakpoint = has_breakpoint.then(|| (self.reach(self.active), self.taxed()));
        let pieces = [
            Some((begin, first)),
            breakpoint,
            Some((end, Self::flat(self.cap))),
        ];
        pieces.into_iter().flatten()
    }
}

/// A quotient, rounded up. The sum does not overflow: pages in the units of a level are far below 128 bits.
#[expect(
    clippy::manual_div_ceil,
    reason = "that one divides twice, and most of a plan's time goes by in divisions of 128 bits"
)]
fn divide_up(number: u128, by: u32) -> u128 {
    (number + u128::from(by) - 1) / u128::from(by)
}

/// A page in the units of a [`Line`]: without fractions of percents and of levels.
const UNIT: i128 = 100 << FRACTION;

/// Pages by level, `start + slope * level`, in 1/[`UNIT`] of a page.
#[derive(Clone, Copy, Debug)]
struct Line {
    start: i128,
    slope: i128,
}

impl Line {
    fn plus(self, other: Self) -> Self {
        Self {
            start: self.start + other.start,
            slope: self.slope + other.slope,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            start: self.start - other.start,
            slope: self.slope - other.slope,
        }
    }
}

/// A level at which the sum's line changes.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    at: u128,
    change: Line,
}

/// The highest level at which the bids take no more than `available`, or the level zero if even
/// their floors are more. None if there is enough for all caps.
///
/// Fewer pages than there are bids are left over, unless bids without shares leave more.
pub(super) fn level(bids: &[Bid], available: Pages) -> Option<Level> {
    let sum = |of: fn(&Bid) -> Pages| -> u128 {
        let pages = bids.iter().map(|bid| u128::from(of(bid).0));
        pages.sum()
    };
    if sum(|bid| bid.cap) <= u128::from(available.0) {
        return None;
    }
    // Promises exceed what there is: everybody keeps the floor, and the host stays short.
    if sum(|bid| bid.floor) > u128::from(available.0) {
        return Some(Level(0));
    }
    Some(settle(bids, available, on_the_lines(bids, available)))
}

/// The highest level at which the sum of the lines is no more than `available`. The bids themselves are
/// rounded down, so they take up to a page less each.
fn on_the_lines(bids: &[Bid], available: Pages) -> Level {
    let available = i128::from(available.0) * UNIT;
    let mut line = Line { start: 0, slope: 0 };
    let mut breakpoints = Vec::with_capacity(3 * bids.len());
    for bid in bids {
        let mut before = Bid::flat(bid.floor);
        line = line.plus(before);
        if bid.is_elastic() {
            for (at, piece) in bid.pieces() {
                let change = piece.minus(before);
                breakpoints.push(Breakpoint { at, change });
                before = piece;
            }
        }
    }
    // Breakpoints at the same level are summed, so their order does not matter.
    breakpoints.sort_unstable_by_key(|breakpoint| breakpoint.at);
    let mut from = 0;
    for breakpoints in breakpoints.chunk_by(|one, other| one.at == other.at) {
        let at = breakpoints[0].at;
        let next = breakpoints
            .iter()
            .fold(line, |sum, breakpoint| sum.plus(breakpoint.change));
        if value(next, at) > available {
            // Within this piece: beyond `at` another line holds, and rounding must not leave the piece.
            return Level(highest(line, available).clamp(from, at.saturating_sub(1)));
        }
        (line, from) = (next, at);
    }
    Level(from)
}

/// It fits: up to the breakpoint that is asked about, no bid's line is above its cap.
fn value(line: Line, level: u128) -> i128 {
    let level = i128::try_from(level).unwrap_or(i128::MAX);
    line.start.saturating_add(line.slope.saturating_mul(level))
}

/// The highest level at which a line is no more than `available`.
fn highest(line: Line, available: i128) -> u128 {
    // A flat line reaches nothing higher: the caller cuts at the end of the piece.
    if line.slope == 0 {
        return u128::MAX;
    }
    let level = (available - line.start).div_euclid(line.slope);
    u128::try_from(level).unwrap_or(0)
}

/// Raises a level at which the bids fit, page by page, to the highest at which they fit.
fn settle(bids: &[Bid], available: Pages, from: Level) -> Level {
    let mut rest = available;
    // A heap, because a VM that has got its next page bids for another one at a higher level.
    let mut next_pages = BinaryHeap::with_capacity(bids.len());
    for bid in bids {
        let part = bid.at(from);
        rest = rest.saturating_sub(part);
        if bid.is_elastic() && part < bid.cap {
            next_pages.push(NextPage::of(bid, part));
        }
    }
    while let Some(mut next) = next_pages.peek_mut() {
        if rest == Pages(0) {
            // Just below the level at which the next page would be due, for which there is no memory.
            return Level(next.at - 1);
        }
        rest.0 -= 1;
        if next.pages < next.bid.cap {
            *next = NextPage::of(next.bid, next.pages);
        } else {
            PeekMut::pop(next);
        }
    }
    let with_shares = bids.iter().filter(|bid| bid.shares > 0);
    let full = with_shares.map(|bid| bid.reach(bid.cap)).max();
    Level(full.unwrap_or(0))
}

/// The level at which a bid gets its next page. The order is reversed, because the heap gives its greatest
/// first and the lowest level is wanted.
#[derive(Clone, Copy, Debug)]
struct NextPage<'a> {
    at: u128,
    /// What the bid holds with that page.
    pages: Pages,
    bid: &'a Bid,
}

impl<'a> NextPage<'a> {
    fn of(bid: &'a Bid, part: Pages) -> Self {
        let pages = Pages(part.0 + 1);
        Self {
            at: bid.reach(pages),
            pages,
            bid,
        }
    }
}

impl PartialEq for NextPage<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for NextPage<'_> {}

impl PartialOrd for NextPage<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NextPage<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The other way round, because the heap gives the greatest and the lowest level is wanted.
        other.at.cmp(&self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(bids: &[Bid], available: u64) -> Option<Vec<u64>> {
        let level = level(bids, Pages(available))?;
        Some(bids.iter().map(|bid| bid.at(level).0).collect())
    }

    fn bid(shares: u32, floor: u64, cap: u64) -> Bid {
        Bid {
            shares,
            floor: Pages(floor),
            cap: Pages(cap),
            active: Pages(cap),
            untaxed: 100,
        }
    }

    fn taxed(shares: u32, active: u64, cap: u64, tax: u32) -> Bid {
        Bid {
            active: Pages(active),
            untaxed: 100 - tax,
            ..bid(shares, 0, cap)
        }
    }

    /// OSDI 2002 figure 7, in pages: 344 MB for an idle VM (10 MB active) and a busy one (200 MB).
    /// It measured 101 and 242 to 244 MB; the formula gives 100.75 and 243.25.
    #[test]
    fn level_taxed_gives_figure_7() {
        let mib = |mib: u64| mib * 256;
        let vms = |tax| [10, 200].map(|active| taxed(1000, mib(active), mib(256), tax));
        assert_eq!(parts(&vms(75), mib(344)), Some(vec![25_792, 62_272]));
        // Without the tax both hold the same: 179 of 358 MB.
        assert_eq!(parts(&vms(0), mib(358)), Some(vec![mib(179); 2]));
    }

    #[test]
    fn level_taxed_weighs_shares_against_idleness() {
        let vms = |tax| {
            [
                taxed(2, 50_000, 400_000, tax),
                taxed(1, 250_000, 400_000, tax),
            ]
        };
        assert_eq!(parts(&vms(75), 400_000), Some(vec![158_333, 241_667]));
        assert_eq!(parts(&vms(0), 400_000), Some(vec![266_667, 133_333]));
    }

    /// The tax is a bound: a VM that is wholly idle keeps more than a quarter of its fair part, and
    /// comes closer to a quarter the more others there are.
    #[test]
    fn level_taxed_idle_vm_keeps_more_than_the_untaxed_quarter() {
        for (vms, kept) in [(2, 400), (5, 294), (20, 259)] {
            let mut bids = vec![taxed(1, 20_000, 20_000, 75); vms];
            bids[0].active = Pages(0);
            let parts = parts(&bids, 1000 * vms as u64).expect("the caps are more");
            assert_eq!(parts[0], kept, "{vms} VMs");
        }
    }

    #[test]
    fn level_enough_for_all_is_none() {
        assert_eq!(parts(&[bid(1, 0, 60), bid(2, 0, 40)], 100), None);
    }

    #[test]
    fn level_short_divides_by_shares_between_floor_and_cap() {
        let bids = [
            bid(1000, 0, 900),
            bid(2000, 0, 900),
            bid(1000, 250, 900),
            bid(3000, 0, 100),
        ];
        assert_eq!(parts(&bids, 800), Some(vec![150, 300, 250, 100]));
    }

    #[test]
    fn level_without_shares_stays_at_the_floor() {
        let bids = [bid(0, 10, 500), bid(0, 0, 500)];
        assert_eq!(parts(&bids, 600), Some(vec![10, 0]));
    }

    #[test]
    fn level_floors_above_available_are_kept() {
        let bids = [bid(1, 70, 90), bid(1, 60, 90)];
        assert_eq!(parts(&bids, 100), Some(vec![70, 60]));
    }

    #[test]
    fn level_of_extreme_numbers_does_not_overflow() {
        let bids = [bid(u32::MAX, 0, u64::MAX), bid(1, 0, u64::MAX)];
        let parts = parts(&bids, u64::MAX - 1).expect("the caps are more");
        assert!(parts[0] > u64::MAX - (1 << 33), "{parts:?}");
    }

    /// The level found by bisection, which [`level`] must find bit by bit.
    fn by_bisection(bids: &[Bid], available: Pages) -> Option<Level> {
        let sum = |of: &dyn Fn(&Bid) -> Pages| -> u128 {
            bids.iter().map(|bid| u128::from(of(bid).0)).sum()
        };
        if sum(&|bid| bid.cap) <= u128::from(available.0) {
            return None;
        }
        let with_shares = bids.iter().filter(|bid| bid.shares > 0);
        let full = with_shares.map(|bid| bid.reach(bid.cap)).max();
        let (mut fits, mut above) = (0, full.unwrap_or(0) + 1);
        while above - fits > 1 {
            let middle = fits.midpoint(above);
            if sum(&|bid| bid.at(Level(middle))) <= u128::from(available.0) {
                fits = middle;
            } else {
                above = middle;
            }
        }
        Some(Level(fits))
    }

    /// Any bids, also contradictory ones: some alike, some without shares, some without room.
    fn any_bids() -> impl Strategy<Value = Vec<Bid>> {
        let pages = || prop_oneof![0_u64..20, 0_u64..1_000_000, any::<u64>()];
        let shares = prop_oneof![Just(0), Just(1000), 0_u32..4, any::<u32>()];
        let one = (shares, pages(), pages(), pages(), 1_u32..=100);
        let one = one.prop_map(|(shares, floor, more, active, untaxed)| Bid {
            shares,
            floor: Pages(floor),
            cap: Pages(floor.saturating_add(more)),
            active: Pages(active),
            untaxed,
        });
        let alike = (one.clone(), 1_usize..5).prop_map(|(one, count)| vec![one; count]);
        let several = proptest::collection::vec(one, 0..12);
        prop_oneof![1 => alike, 4 => several]
    }

    fn bids() -> impl Strategy<Value = Vec<Bid>> {
        let one = (1_u32..5000, 0_u64..1000, 0_u64..100_000, 0_u64..=120);
        let one = one.prop_map(|(shares, floor, more, active)| Bid {
            active: Pages((floor + more) * active / 100),
            ..bid(shares, floor, floor + more)
        });
        proptest::collection::vec(one, 1..8)
    }

    /// The cost of `pages` pages, times `untaxed`, so that it is a whole number.
    fn cost(bid: &Bid, pages: u64) -> u64 {
        let used = pages.min(bid.active.0);
        used * u64::from(bid.untaxed) + (pages - used) * 100
    }

    proptest! {
        #[test]
        fn level_is_the_one_that_bisection_finds(
            bids in any_bids(),
            permille in 0_u128..1000,
            offset in -3_i64..=3,
        ) {
            let caps: u128 = bids.iter().map(|bid| u128::from(bid.cap.0)).sum();
            let floors: u128 = bids.iter().map(|bid| u128::from(bid.floor.0)).sum();
            let between = floors + (caps - floors) / 1000 * permille;
            let available = u64::try_from(between).unwrap_or(u64::MAX);
            let available = Pages(available.saturating_add_signed(offset));
            let found = level(&bids, available);
            // With floors above what is available no level fits, and the lowest is as good as any.
            if floors <= u128::from(available.0) {
                prop_assert_eq!(found, by_bisection(&bids, available));
            } else {
                prop_assert_eq!(found, (caps > u128::from(available.0)).then_some(Level(0)));
            }
        }

        /// Without a tax, a page in use and an idle one cost the same.
        #[test]
        fn level_without_tax_does_not_depend_on_use(bids in any_bids(), available: u64) {
            let with_use = |active| -> Vec<Bid> {
                bids.iter().map(|bid| Bid { active, untaxed: 100, ..*bid }).collect()
            };
            let (idle, busy) = (with_use(Pages(0)), with_use(Pages(u64::MAX)));
            prop_assert_eq!(parts(&idle, available), parts(&busy, available));
        }

        /// The rule of min-funding revocation: no VM above its floor pays a lower price per page than one below
        /// its cap would pay, give or take one page.
        #[test]
        fn level_leaves_no_better_funded_taker(
            bids in bids(),
            percent in 1_u64..100,
            tax in 0_u32..=99,
        ) {
            let mut bids = bids;
            bids.iter_mut().for_each(|bid| bid.untaxed = 100 - tax);
            let caps: u64 = bids.iter().map(|bid| bid.cap.0).sum();
            let floors: u64 = bids.iter().map(|bid| bid.floor.0).sum();
            let available = floors.max(caps * percent / 100);
            let Some(parts) = parts(&bids, available) else {
                prop_assert!(caps <= available);
                return Ok(());
            };
            let sum: u64 = parts.iter().sum();
            prop_assert!(sum <= available && available - sum < bids.len() as u64);
            for (rich, pages) in bids.iter().zip(&parts) {
                for (poor, fewer) in bids.iter().zip(&parts) {
                    if *pages > rich.floor.0 && *fewer < poor.cap.0 {
                        prop_assert!(
                            cost(rich, pages - 1) * u64::from(poor.shares)
                                <= cost(poor, fewer + 1) * u64::from(rich.shares),
                            "{rich:?} holds {pages}, {poor:?} only {fewer}"
                        );
                    }
                }
            }
        }
    }
}
