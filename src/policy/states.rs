//! The free-memory states and the only two ways between them.
//!
//! A state that followed free memory alone would flap at each threshold, and with it the means
//! of reclaim. So the ways differ: down at once and as far as needed, because memory can vanish
//! within one boot; up one step at a time, and only when free memory exceeds the *next higher*
//! threshold by a margin. In 2002, soft is entered below 4 % and left above 6 % plus the margin.
//!
//! Until 5.0 what is kept free (`minFree`) is the threshold of high. 6.0 put a state between high and soft:
//! with less than four times `minFree` free, a host is *clear*. (An esxtop of such a host shows 2397 MB free,
//! 939 MB `minFree`, and clear.) Targets aim at `minFree` in every generation: nothing is reclaimed to get from
//! clear to high. (Large pages are broken below high, as in ESX.) High never
//! needs more than half of the budget free, whatever is set, unless `minFree` itself is more.
//!
//! *Shared pages are a debt.* A guest that writes one gets a page of its own, so a host that saves 1 GiB by sharing may have
//! to find 1 GiB within a second. A part of that, the *share reserve* (`Memvisor.ShareReserve`), can be kept free
//! besides: `minFree` and soft, and with them the aim, are so much higher. Hard and low stay where they are. So the host
//! reclaims early to have the reserve, and a storm of writes uses it up before anybody waits. As pages are
//! written the debt shrinks, and the reserve with it. No more than half of the budget is kept free for it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::generation::WHOLE;
use super::{Config, HostSnapshot, percent_of, total};
use crate::units::Pages;

/// How short of memory the host is. A greater state is a shorter host.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum FreeState {
    /// Enough is free: only limits reclaim, and balloons shrink as far as free memory allows.
    /// Balloons already grow when less than `minFree` is free.
    #[default]
    High,
    /// Like high, but less than four times `minFree` is free. In 6.0 only.
    Clear,
    /// Balloons grow; VMs that cannot balloon are evicted from.
    Soft,
    /// No balloon shrinks; VMs above their targets are evicted from.
    Hard,
    /// Like hard, and VMs above their targets wait.
    Low,
}

impl FreeState {
    /// All of them, the best first.
    pub const ALL: [Self; 5] = [Self::High, Self::Clear, Self::Soft, Self::Hard, Self::Low];

    /// Whether the host is short, and takes from VMs because of that: soft or worse.
    #[must_use]
    pub const fn is_short(self) -> bool {
        matches!(self, Self::Soft | Self::Hard | Self::Low)
    }
}

impl fmt::Display for FreeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Clear => "clear",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

/// The amounts of free memory, in host pages, at which the state changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Thresholds {
    /// What the host wants to keep free (`Mem.MinFree`). Under this, balloons begin to grow although
    /// the state is not soft yet.
    pub min_free: Pages,
    /// What of `min_free` is kept for writes to shared pages.
    #[serde(default)]
    pub share_reserve: Pages,
    /// The threshold of high: `min_free`, in 6.0 four times as much.
    pub high: Pages,
    /// Under this the state is clear or worse: `high`. None where there is no such state.
    pub clear: Option<Pages>,
    /// Under this the state is soft or worse.
    pub soft: Pages,
    /// Under this the state is hard or worse.
    pub hard: Pages,
    /// Under this the state is low.
    pub low: Pages,
    /// From this on soft is left: `min_free` plus its margin. The targets aim here, because a host
    /// that stopped at `min_free` would stay soft for ever.
    pub aim: Pages,
    /// From this on the state becomes high: `high` plus its margin. Until 5.0 that is `aim`.
    pub to_high: Pages,
    /// From this on hard becomes soft: `soft` plus its margin.
    pub to_soft: Pages,
    /// From this on low becomes hard: `hard` plus its margin.
    pub to_hard: Pages,
}

impl Thresholds {
    /// The thresholds of a host with this budget that shares nothing.
    #[must_use]
    pub fn of(budget: Pages, config: &Config) -> Self {
        Self::sharing(budget, Pages(0), config)
    }

    /// The thresholds of a host as it is.
    #[must_use]
    pub fn of_host(host: &HostSnapshot, config: &Config) -> Self {
        Self::sharing(host.budget, host.sharing_saved(), config)
    }

    /// The thresholds of a host with this budget on which sharing saves `saved` pages.
    #[must_use]
    pub fn sharing(budget: Pages, saved: Pages, config: &Config) -> Self {
        let (generation, half) = (config.generation, Pages(budget.0 / 2));
        let min_free = generation.min_free(budget, config.min_free_percent);
        let reserve = percent_of(saved, config.share_reserve_percent);
        let reserve = reserve.min(half.saturating_sub(min_free));
        let part = |part: u64| {
            let pages = u128::from(min_free.0) * u128::from(part) / u128::from(WHOLE);
            Pages(u64::try_from(pages).unwrap_or(u64::MAX))
        };
        let [soft, hard, low] = generation.parts().map(part);
        let above = |threshold: Pages, lower: Pages| {
            let margin = percent_of(threshold.saturating_sub(lower), config.margin_percent);
            Pages(threshold.0.saturating_add(margin.0))
        };
        let reserved = |pages: Pages| total([pages, reserve]);
        let aim = reserved(above(min_free, soft));
        let high = generation
            .high_percent()
            .map(|percent| percent_of(min_free, percent).min(half.max(min_free)));
        // Half of the budget is the most for both together.
        let high = high.map(|high| reserved(high).min(half.max(reserved(min_free))));
        Self {
            min_free: reserved(min_free),
            share_reserve: reserve,
            high: high.unwrap_or(reserved(min_free)),
            clear: high,
            soft: reserved(soft),
            hard,
            low,
            aim,
            to_high: high.map_or(aim, |high| above(high, reserved(min_free)).max(aim)),
            to_soft: reserved(above(soft, hard)),
            to_hard: above(hard, low),
        }
    }

    /// The free memory below which the state gets worse than `state`; in low, where low begins.
    #[must_use]
    pub fn below(&self, state: FreeState) -> Pages {
        match state {
            FreeState::High => self.clear.unwrap_or(self.soft),
            FreeState::Clear => self.soft,
            FreeState::Soft => self.hard,
            FreeState::Hard | FreeState::Low => self.low,
        }
    }

    /// The next better state and the free memory from which it is reached; none from high.
    #[must_use]
    pub fn above(&self, state: FreeState) -> Option<(FreeState, Pages)> {
        match state {
            FreeState::High => None,
            FreeState::Clear => Some((FreeState::High, self.to_high)),
            FreeState::Soft if self.clear.is_some() => Some((FreeState::Clear, self.aim)),
            FreeState::Soft => Some((FreeState::High, self.aim)),
            FreeState::Hard => Some((FreeState::Soft, self.to_soft)),
            FreeState::Low => Some((FreeState::Hard, self.to_hard)),
        }
    }

    /// The state that belongs to this much free memory, whatever the state was before.
    fn entered(&self, free: Pages) -> FreeState {
        if free < self.low {
            FreeState::Low
        } else if free < self.hard {
            FreeState::Hard
        } else if free < self.soft {
            FreeState::Soft
        } else if self.clear.is_some_and(|clear| free < clear) {
            FreeState::Clear
        } else {
            FreeState::High
        }
    }
}

/// The state after `previous`, now that `free` pages are free.
///
/// It costs a few comparisons and is meant to be called at every allocation, not only by
/// [`plan`](super::Policy::plan): in a boot storm the next plan comes too late. An allocation keeps the
/// worse of the old and the new state; only a plan lets it improve, so that one step up is one
/// round of reclaim and not one allocation.
#[must_use]
pub fn next_state(previous: FreeState, free: Pages, thresholds: &Thresholds) -> FreeState {
    let previous = match previous {
        // The generation was changed meanwhile, and the new one has no clear.
        FreeState::Clear if thresholds.clear.is_none() => FreeState::High,
        previous => previous,
    };
    let entered = thresholds.entered(free);
    if entered > previous {
        return entered;
    }
    match thresholds.above(previous) {
        Some((better, from)) if free >= from => better,
        _ => previous,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Generation;
    use super::*;

    fn thresholds(generation: Generation) -> Thresholds {
        let config = Config {
            generation,
            ..Config::default()
        };
        Thresholds::of(Pages(100_000), &config)
    }

    #[test]
    fn thresholds_of_100000_pages_are_the_worked_numbers() {
        let old = Thresholds {
            min_free: Pages(6000),
            share_reserve: Pages(0),
            high: Pages(6000),
            clear: None,
            soft: Pages(4000),
            hard: Pages(2000),
            low: Pages(1000),
            aim: Pages(6400),
            to_high: Pages(6400),
            to_soft: Pages(4400),
            to_hard: Pages(2200),
        };
        assert_eq!(thresholds(Generation::G2002), old);
        let parts = Thresholds {
            soft: Pages(3840),
            hard: Pages(1920),
            low: Pages(960),
            aim: Pages(6432),
            to_high: Pages(6432),
            to_soft: Pages(4224),
            to_hard: Pages(2112),
            ..old
        };
        assert_eq!(thresholds(Generation::G41), parts);
        // 6 % of less than 4 GiB, by the sliding scale too.
        assert_eq!(thresholds(Generation::G50), parts);
        let clear = Thresholds {
            high: Pages(24_000),
            clear: Some(Pages(24_000)),
            to_high: Pages(27_600),
            ..parts
        };
        assert_eq!(thresholds(Generation::G60), clear);
    }

    #[test]
    fn high_of_6_0_is_half_of_the_budget_at_most() {
        for (min_free_percent, high) in [(12, 48_000), (20, 50_000), (50, 50_000)] {
            let config = Config {
                generation: Generation::G60,
                min_free_percent,
                ..Config::default()
            };
            let thresholds = Thresholds::of(Pages(100_000), &config);
            assert_eq!(thresholds.high, Pages(high), "{min_free_percent} %");
        }
    }

    #[test]
    fn reserve_for_shared_pages_is_kept_free_above_hard_and_is_half_of_the_budget_at_most() {
        for (percent, saved, reserve) in [
            (0, 80_000, 0),
            (25, 40_000, 10_000),
            (100, 30_000, 30_000),
            (100, 80_000, 44_000),
        ] {
            for generation in Generation::ALL {
                let config = Config {
                    generation,
                    ..Config::default()
                };
                let plain = Thresholds::of(Pages(100_000), &config);
                let config = Config {
                    share_reserve_percent: percent,
                    ..config
                };
                let kept = Thresholds::sharing(Pages(100_000), Pages(saved), &config);
                let more = |pages: Pages| Pages(pages.0 + reserve);
                assert_eq!(kept.share_reserve, Pages(reserve));
                assert_eq!(
                    [kept.min_free, kept.aim, kept.soft, kept.to_soft],
                    [plain.min_free, plain.aim, plain.soft, plain.to_soft].map(more)
                );
                assert_eq!(
                    [kept.hard, kept.low, kept.to_hard],
                    [plain.hard, plain.low, plain.to_hard]
                );
                assert!(kept.high >= kept.min_free && kept.to_high >= kept.aim);
                assert!(kept.high <= Pages(50_000), "{kept:?}");
            }
        }
    }

    #[test]
    fn state_falls_at_once_and_as_far_as_needed() {
        for (generation, free, expected) in [
            (Generation::G2002, 4000, FreeState::High),
            (Generation::G2002, 3999, FreeState::Soft),
            (Generation::G2002, 1999, FreeState::Hard),
            (Generation::G2002, 999, FreeState::Low),
            (Generation::G60, 24_000, FreeState::High),
            (Generation::G60, 23_999, FreeState::Clear),
            (Generation::G60, 3840, FreeState::Clear),
            (Generation::G60, 3839, FreeState::Soft),
            (Generation::G60, 959, FreeState::Low),
        ] {
            let state = next_state(FreeState::High, Pages(free), &thresholds(generation));
            assert_eq!(state, expected, "{generation}: {free} free");
        }
    }

    #[test]
    fn state_rises_one_step_only_past_the_margin() {
        let rises =
            |generation, previous, free| next_state(previous, Pages(free), &thresholds(generation));
        for (previous, free, expected) in [
            (FreeState::Soft, 6399, FreeState::Soft),
            (FreeState::Soft, 6400, FreeState::High),
            (FreeState::Hard, 4399, FreeState::Hard),
            (FreeState::Hard, 99_000, FreeState::Soft),
            (FreeState::Low, 2199, FreeState::Low),
            (FreeState::Low, 99_000, FreeState::Hard),
        ] {
            let state = rises(Generation::G2002, previous, free);
            assert_eq!(state, expected, "{previous} with {free} free");
        }
        for (previous, free, expected) in [
            (FreeState::Soft, 6431, FreeState::Soft),
            (FreeState::Soft, 99_000, FreeState::Clear),
            (FreeState::Clear, 27_599, FreeState::Clear),
            (FreeState::Clear, 27_600, FreeState::High),
        ] {
            let state = rises(Generation::G60, previous, free);
            assert_eq!(state, expected, "{previous} with {free} free");
        }
    }

    #[test]
    fn clear_is_high_where_there_is_no_clear() {
        for generation in [Generation::G2002, Generation::G41, Generation::G50] {
            let thresholds = thresholds(generation);
            let state = next_state(FreeState::Clear, Pages(5000), &thresholds);
            assert_eq!(state, FreeState::High);
        }
    }

    proptest! {
        #[test]
        fn state_at_constant_free_memory_never_turns_back(
            budget in 0_u64..1 << 40,
            permille in 0_u64..600,
            start in 0_usize..5,
            generation in 0_usize..4,
            (min_free_percent, margin_percent) in (0_u32..=50, 10_u32..=25),
            (share_reserve_percent, saved) in (0_u32..=100, 0_u64..1 << 42),
        ) {
            let generation = Generation::ALL[generation];
            let config =
                Config { generation, min_free_percent, margin_percent, share_reserve_percent, ..Config::default() };
            let thresholds = Thresholds::sharing(Pages(budget), Pages(saved), &config);
            let free = Pages(budget / 1000 * permille);
            // The states that this generation has, in order.
            let states: Vec<FreeState> = FreeState::ALL
                .into_iter()
                .filter(|state| *state != FreeState::Clear || thresholds.clear.is_some())
                .collect();
            let step = |state: FreeState| states.iter().position(|one| *one == state);
            let start = states[start % states.len()];
            let first = next_state(start, free, &thresholds);
            let mut state = first;
            for _ in 0..4 {
                let next = next_state(state, free, &thresholds);
                prop_assert!(next <= state, "it fell from {state} to {next}");
                if first > start {
                    prop_assert_eq!(next, first, "it fell and rose again");
                }
                prop_assert!(step(state) <= step(next).map(|at| at + 1), "two steps at once");
                state = next;
            }
            prop_assert_eq!(next_state(state, free, &thresholds), state);
        }
    }
}
