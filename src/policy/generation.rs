//! The generations of ESX whose free-memory states can be followed.
//!
//! VMware changed twice how much memory is kept free, and four times what happens when it is not.
//! Four constants for all of them would be wrong for three: 6 % of a host with 128 GiB is 7.7 GiB that
//! lie idle, which is why 5.0 came with a sliding scale. So the amounts are data here, a row for
//! each generation; what runs in which state is the table in `mechanisms`.
//!
//! The amount that is kept free is `minFree`. The other thresholds are parts of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::percent_of;
use crate::units::Pages;

/// A generation of ESX. It decides where the free-memory states begin and what they do.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum Generation {
    /// ESX Server of the OSDI 2002 paper: 6, 4, 2 and 1 % of memory.
    #[serde(rename = "2002")]
    G2002,
    /// ESX 4.1: compression comes; the thresholds are parts of 6 %.
    #[serde(rename = "4.1")]
    G41,
    /// ESXi 5.0: what is kept free grows more slowly than the host.
    #[default]
    #[serde(rename = "5.0")]
    G50,
    /// ESXi 6.0: the state clear, and balloons that stop when the state is hard.
    #[serde(rename = "6.0")]
    G60,
}

/// A text that names no generation.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no generation of ESX: 2002, 4.1, 5.0 and 6.0 are allowed")]
pub struct UnknownGeneration(String);

impl Generation {
    /// All of them, the oldest first.
    pub const ALL: [Self; 4] = [Self::G2002, Self::G41, Self::G50, Self::G60];

    /// The names of all of them, in the order of [`Self::ALL`].
    pub const NAMES: [&str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = Self::ALL[at].name();
            at += 1;
        }
        names
    };

    /// Its name: `2002`, `4.1`, `5.0` or `6.0`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::G2002 => "2002",
            Self::G41 => "4.1",
            Self::G50 => "5.0",
            Self::G60 => "6.0",
        }
    }

    /// What is kept free of a budget. `percent` is `Mem.MemMinFreePct`; 0: what the generation keeps.
    pub(super) fn min_free(self, budget: Pages, percent: u32) -> Pages {
        let kept = match (percent, self) {
            (0, Self::G2002 | Self::G41) => percent_of(budget, FIXED_PERCENT),
            (0, Self::G50 | Self::G60) => sliding_scale(budget),
            (percent, _) => percent_of(budget, percent),
        };
        kept.max(LEAST)
    }

    /// The thresholds of soft, hard and low as parts of what is kept free, in 1/300: OSDI 2002 has
    /// 4, 2 and 1 % beside 6 %; from 4.1 on they are 64, 32 and 16 % of it.
    pub(super) const fn parts(self) -> [u64; 3] {
        match self {
            Self::G2002 => [200, 100, 50],
            Self::G41 | Self::G50 | Self::G60 => [192, 96, 48],
        }
    }

    /// The threshold of high, in % of what is kept free, where the two differ: then there is a state
    /// between high and soft. 400 % is Epping's number for 6.0; another source has 300 % and quotes him
    /// for it.
    pub(super) const fn high_percent(self) -> Option<u32> {
        match self {
            Self::G2002 | Self::G41 | Self::G50 => None,
            Self::G60 => Some(400),
        }
    }
}

/// [`Generation::parts`] are divided by this.
pub(super) const WHOLE: u64 = 300;

/// The least that is kept free. The daemon keeps a few pages in reserve however small the host is, and soft
/// has to begin above the reserve: otherwise guests would wait for memory that nobody frees.
const LEAST: Pages = Pages(32);

/// What is kept free until 4.1, in % of memory.
const FIXED_PERCENT: u32 = 6;

/// The steps of the sliding scale: the next 4, 8 and 16 GiB, in pages, and what is kept free of each, in %.
const SCALE: [(u64, u32); 3] = [(1 << 20, 6), (2 << 20, 4), (4 << 20, 2)];
/// What is kept free of everything beyond, in %.
const SCALE_REST_PERCENT: u32 = 1;

/// 6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16, and 1 % of the rest.
fn sliding_scale(budget: Pages) -> Pages {
    let mut rest = budget;
    let mut kept = Pages(0);
    for (pages, percent) in SCALE {
        let part = rest.min(Pages(pages));
        kept.0 += percent_of(part, percent).0;
        rest = rest.saturating_sub(part);
    }
    Pages(kept.0 + percent_of(rest, SCALE_REST_PERCENT).0)
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Generation {
    type Err = UnknownGeneration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|one| one.name() == text);
        named.ok_or_else(|| UnknownGeneration(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sliding_scale_keeps_the_published_amounts() {
        // 61.44, 245.76, 573.44, 901.12, 1597.44 and 1925.12 MiB.
        for (gib, kept) in [
            (1, 15_728),
            (4, 62_914),
            (12, 146_800),
            (28, 230_686),
            (96, 408_943),
            (128, 492_830),
        ] {
            let pages = Generation::G50.min_free(Pages(gib << 18), 0);
            assert_eq!(pages, Pages(kept), "{gib} GiB");
        }
    }

    #[test]
    fn setting_replaces_what_the_generation_keeps() {
        for generation in Generation::ALL {
            assert_eq!(generation.min_free(Pages(1000), 10), Pages(100));
            assert_eq!(generation.min_free(Pages(1000), 0), Pages(60));
        }
        let large = Pages(100 << 20);
        assert_eq!(Generation::G41.min_free(large, 0), Pages(6 << 20));
        assert!(Generation::G60.min_free(large, 0) < Pages(2 << 20));
    }

    #[test]
    fn names_are_read_and_printed_alike_and_others_are_refused() {
        for generation in Generation::ALL {
            assert_eq!(generation.to_string().parse(), Ok(generation));
            let json = serde_json::to_string(&generation).expect("plain data");
            assert_eq!(json, format!("\"{generation}\""));
            assert_eq!(
                serde_json::from_str::<Generation>(&json).ok(),
                Some(generation)
            );
        }
        let error = "7.0".parse::<Generation>().expect_err("not known");
        assert_eq!(
            error.to_string(),
            "`7.0` is no generation of ESX: 2002, 4.1, 5.0 and 6.0 are allowed"
        );
    }
}
