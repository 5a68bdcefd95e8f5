//! The four free-memory states and the only two ways between them.
//!
//! A state that followed free memory alone would flap at each threshold, and with it the means
//! of reclaim. So the ways differ: down at once and as far as needed, because memory can vanish
//! within one boot; up one step at a time, and only when free memory exceeds the *next higher*
//! threshold by a margin. Soft is entered below 4 % and left above 6 % plus the margin.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Config, percent_of};
use crate::units::Pages;

/// How short of memory the host is. A greater state is a shorter host.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum FreeState {
    /// Enough is free: only limits reclaim, and balloons that free memory allows to shrink do.
    /// Balloons already grow when free memory is under the high threshold.
    #[default]
    High,
    /// Balloons grow; VMs that cannot balloon are evicted from.
    Soft,
    /// No balloon shrinks; every VM above its target is evicted from.
    Hard,
    /// As hard, and VMs above their target wait.
    Low,
}

impl fmt::Display for FreeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

/// The amounts of free memory, in host pages, at which the state changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Thresholds {
    /// Under this, balloons begin to grow although the state is still high.
    pub high: Pages,
    /// Under this the state is soft or worse.
    pub soft: Pages,
    /// Under this the state is hard or worse.
    pub hard: Pages,
    /// Under this the state is low.
    pub low: Pages,
    /// From this on soft becomes high: `high` plus its margin. The targets aim here, because a
    /// host that stopped at `high` would stay soft for ever.
    pub to_high: Pages,
    /// From this on hard becomes soft: `soft` plus its margin.
    pub to_soft: Pages,
    /// From this on low becomes hard: `hard` plus its margin.
    pub to_hard: Pages,
}

impl Thresholds {
    /// The thresholds of a host with this budget.
    #[must_use]
    pub fn of(budget: Pages, config: &Config) -> Self {
        let high = percent_of(budget, config.high_percent);
        let soft = percent_of(budget, config.soft_percent);
        let hard = percent_of(budget, config.hard_percent);
        let low = percent_of(budget, config.low_percent);
        let above = |threshold: Pages, lower: Pages| {
            let margin = percent_of(threshold.saturating_sub(lower), config.margin_percent);
            Pages(threshold.0.saturating_add(margin.0))
        };
        Self {
            high,
            soft,
            hard,
            low,
            to_high: above(high, soft),
            to_soft: above(soft, hard),
            to_hard: above(hard, low),
        }
    }

    /// The best state that so much free memory permits when nothing is known of the past.
    fn worst_entered(&self, free: Pages) -> FreeState {
        if free < self.low {
            FreeState::Low
        } else if free < self.hard {
            FreeState::Hard
        } else if free < self.soft {
            FreeState::Soft
        } else {
            FreeState::High
        }
    }
}

/// The state after `previous`, now that `free` pages are free.
///
/// It costs a few comparisons and is meant to be called at every allocation, not only by
/// [`plan`](super::plan()): in a boot storm the next plan comes too late.
#[must_use]
pub fn next_state(previous: FreeState, free: Pages, thresholds: &Thresholds) -> FreeState {
    let entered = thresholds.worst_entered(free);
    if entered > previous {
        return entered;
    }
    match previous {
        FreeState::Soft if free >= thresholds.to_high => FreeState::High,
        FreeState::Hard if free >= thresholds.to_soft => FreeState::Soft,
        FreeState::Low if free >= thresholds.to_hard => FreeState::Hard,
        unchanged => unchanged,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [FreeState; 4] = [
        FreeState::High,
        FreeState::Soft,
        FreeState::Hard,
        FreeState::Low,
    ];

    fn thresholds() -> Thresholds {
        Thresholds::of(Pages(100_000), &Config::default())
    }

    #[test]
    fn thresholds_of_100000_pages_are_the_worked_numbers() {
        let expected = Thresholds {
            high: Pages(6000),
            soft: Pages(4000),
            hard: Pages(2000),
            low: Pages(1000),
            to_high: Pages(6400),
            to_soft: Pages(4400),
            to_hard: Pages(2200),
        };
        assert_eq!(thresholds(), expected);
    }

    #[test]
    fn state_falls_at_once_and_as_far_as_needed() {
        for (free, expected) in [
            (4000, FreeState::High),
            (3999, FreeState::Soft),
            (1999, FreeState::Hard),
            (999, FreeState::Low),
        ] {
            let state = next_state(FreeState::High, Pages(free), &thresholds());
            assert_eq!(state, expected, "{free} free");
        }
    }

    #[test]
    fn state_rises_one_step_only_past_the_margin() {
        for (previous, free, expected) in [
            (FreeState::Soft, 6399, FreeState::Soft),
            (FreeState::Soft, 6400, FreeState::High),
            (FreeState::Hard, 4399, FreeState::Hard),
            (FreeState::Hard, 99_000, FreeState::Soft),
            (FreeState::Low, 2199, FreeState::Low),
            (FreeState::Low, 99_000, FreeState::Hard),
        ] {
            let state = next_state(previous, Pages(free), &thresholds());
            assert_eq!(state, expected, "{previous} with {free} free");
        }
    }

    proptest! {
        #[test]
        fn state_at_constant_free_memory_never_turns_back(
            budget in 0_u64..1 << 40,
            percent in 0.0..0.12_f64,
            start in 0_usize..4,
        ) {
            let thresholds = Thresholds::of(Pages(budget), &Config::default());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss,
                clippy::cast_precision_loss, reason = "any amount will do")]
            let free = Pages((budget as f64 * percent) as u64);
            let first = next_state(STATES[start], free, &thresholds);
            let mut state = first;
            for _ in 0..3 {
                let next = next_state(state, free, &thresholds);
                prop_assert!(next <= state, "it fell from {state} to {next}");
                if first > STATES[start] {
                    prop_assert_eq!(next, first, "it fell and rose again");
                }
                prop_assert!(state as u8 - next as u8 <= 1, "two steps at once");
                state = next;
            }
            prop_assert_eq!(next_state(state, free, &thresholds), state);
        }
    }
}
