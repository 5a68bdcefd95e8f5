//! Guesses what a host could not see: accesses to pages that were resident.
//!
//! While a page is out of RAM its host sees the next access to it, and how long that took to come. While it is resident
//! the host sees nothing. If a page were accessed only when it was seen to be, it would look idle as long as it stayed,
//! and a replay that evicts another page than the host did would evict it for nothing. But what a page does while it is
//! out tells what it does: its *rate* is the number of times it was wanted back, divided by the time it was out. With
//! that rate, accesses are drawn at random for the time in which it was resident.
//!
//! A page that was out once and briefly says little. So each rate is mixed with that of its VM, which weighs as much as
//! half an observation. A page that was never out has the rate of some other page.
//!
//! That is right for guests whose pages are wanted independently of one another and of time. It is wrong for those that
//! sweep their memory in order, or work in phases: docs/replay.md.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What a host saw of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trail {
    pub(super) at_us: u64,
    pub(super) gfn: u32,
    pub(super) seen: Seen,
}

/// What it saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It became resident, because it was accessed, or because it came ahead of that.
    Came,
    /// The same of a shared page, because it was written.
    Written,
    /// It was accessed while it was frozen or sampled.
    Accessed,
    /// It left RAM.
    Left,
}

/// How much the rate of the VM weighs, in observations.
const PRIOR: f64 = 0.5;
/// Accesses that are closer together make no difference to any host.
const CLOSEST_US: f64 = 10_000.0;

/// How often a page was wanted back, and how long it was out.
#[derive(Clone, Copy, Default)]
struct Outs {
    wanted: u32,
    out_us: u64,
}

/// Accesses that nobody saw: times and pages. `trail` is in the order of time, until `end_us`.
pub(super) fn unseen(trail: &[Trail], end_us: u64, seed: u64) -> Vec<(u64, u32)> {
    let rates = Rates::of(trail, end_us);
    let mut dice = StdRng::seed_from_u64(seed);
    let mut unseen = Vec::new();
    let mut draw = |gfn: u32, from: u64, until: u64| {
        let Some(rate) = rates.of_page(gfn) else {
            return;
        };
        let mut at = from as f64;
        loop {
            let chance: f64 = dice.random_range(f64::MIN_POSITIVE..1.0);
            at += (-chance.ln() / rate).max(CLOSEST_US);
            if at >= until as f64 {
                return;
            }
            unseen.push((at as u64, gfn));
        }
    };
    let mut since: HashMap<u32, u64> = HashMap::new();
    for step in trail {
        match step.seen {
            Seen::Came | Seen::Written => {
                since.entry(step.gfn).or_insert(step.at_us);
            }
            Seen::Accessed => {}
            Seen::Left => {
                if let Some(from) = since.remove(&step.gfn) {
                    draw(step.gfn, from, step.at_us);
                }
            }
        }
    }
    let mut left: Vec<(u32, u64)> = since.into_iter().collect();
    // A map has its own order, and the same seed must give the same.
    left.sort_unstable();
    left.into_iter()
        .for_each(|(gfn, from)| draw(gfn, from, end_us));
    unseen
}

/// How often pages are accessed, in accesses a microsecond.
struct Rates {
    pages: HashMap<u32, f64>,
    /// All of them, in the order of pages.
    all: Vec<f64>,
}

impl Rates {
    fn of(trail: &[Trail], end_us: u64) -> Self {
        let mut outs: HashMap<u32, Outs> = HashMap::new();
        let mut since: HashMap<u32, u64> = HashMap::new();
        for step in trail {
            match step.seen {
                Seen::Left => {
                    since.insert(step.gfn, step.at_us);
                }
                Seen::Came | Seen::Written => {
                    if let Some(from) = since.remove(&step.gfn) {
                        let outs = outs.entry(step.gfn).or_default();
                        outs.wanted += 1;
                        outs.out_us += step.at_us.saturating_sub(from);
                    }
                }
                Seen::Accessed => {}
            }
        }
        for (gfn, from) in since {
            outs.entry(gfn).or_default().out_us += end_us.saturating_sub(from);
        }
        let wanted: f64 = outs.values().map(|outs| f64::from(outs.wanted)).sum();
        let out_us: f64 = outs.values().map(|outs| outs.out_us as f64).sum();
        let mean = wanted / out_us.max(1.0);
        let rate =
            |outs: &Outs| (f64::from(outs.wanted) + PRIOR) / (outs.out_us as f64 + PRIOR / mean);
        let pages: HashMap<u32, f64> = match mean > 0.0 {
            true => outs.iter().map(|(gfn, outs)| (*gfn, rate(outs))).collect(),
            false => HashMap::new(),
        };
        let mut order: Vec<(u32, f64)> = pages.iter().map(|(gfn, rate)| (*gfn, *rate)).collect();
        order.sort_unstable_by_key(|(gfn, _)| *gfn);
        let all = order.into_iter().map(|(_, rate)| rate).collect();
        Self { pages, all }
    }

    /// `None`: no page of the VM was ever out.
    fn of_page(&self, gfn: u32) -> Option<f64> {
        let known = self.pages.get(&gfn);
        let at = (u64::from(gfn.wrapping_mul(0x9e37_79b1)) * self.all.len() as u64) >> 32;
        known.or_else(|| self.all.get(at as usize)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of two kinds, wanted by chance, ten times as often the one as the other, of which a host evicts one after
    /// the other. As many accesses are drawn for each kind as there were, but for a tenth.
    #[test]
    fn as_many_accesses_are_drawn_as_there_were() {
        const PAGES: u32 = 600;
        const END_US: u64 = 400_000_000;
        let rate = |gfn: u32| if gfn < PAGES / 2 { 1e-6 } else { 1e-7 };
        let mut dice = StdRng::seed_from_u64(5);
        let mut trail = Vec::new();
        let mut hidden = [0_u64; 2];
        for gfn in 0..PAGES {
            let step = |at_us: f64, seen| Trail {
                at_us: at_us as u64,
                gfn,
                seen,
            };
            let (mut at, mut is_in) = (0.0, true);
            trail.push(step(at, Seen::Came));
            while at < END_US as f64 {
                let mut chance = |rate: f64| -dice.random_range(1e-12_f64..1.0).ln() / rate;
                if is_in {
                    let evicted = at + chance(2e-7);
                    let mut access = at;
                    loop {
                        access += chance(rate(gfn));
                        if access >= evicted.min(END_US as f64) {
                            break;
                        }
                        hidden[usize::from(gfn >= PAGES / 2)] += 1;
                    }
                    at = evicted;
                    trail.push(step(at, Seen::Left));
                } else {
                    at += chance(rate(gfn));
                    trail.push(step(at, Seen::Came));
                }
                is_in = !is_in;
            }
        }
        trail.retain(|step| step.at_us < END_US);
        trail.sort_by_key(|step| step.at_us);
        let drawn = unseen(&trail, END_US, 1);
        let often = drawn.iter().filter(|(_, gfn)| *gfn < PAGES / 2).count() as f64;
        let seldom = drawn.len() as f64 - often;
        for (found, real) in [(often, hidden[0]), (seldom, hidden[1])] {
            let off = (found / real as f64 - 1.0).abs();
            assert!(off < 0.1, "{found} for {real}");
        }
        assert_eq!(drawn, unseen(&trail, END_US, 1));
    }

    #[test]
    fn nothing_is_drawn_for_pages_that_were_never_out() {
        let came = |gfn| Trail {
            at_us: 5,
            gfn,
            seen: Seen::Came,
        };
        assert_eq!(unseen(&[came(1), came(2)], 1_000_000, 1), []);
    }
}
