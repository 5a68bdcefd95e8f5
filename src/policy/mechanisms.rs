//! What runs in which state: the table of the generations of ESX.
//!
//! The published tables differ, from generation to generation and from source to source. They agree on
//! the order: nothing, then the balloon, which is slow but lets the guest choose, then what
//! the host can do alone, and at last waiting. Where they differ, this is the reading here:
//!
//! - The balloon already grows in high (in clear, where there is one), once less than `minFree` is free: a
//!   guest needs time, and VMware's description of *early ballooning* names that band. In OSDI 2002
//!   nothing is reclaimed in high.
//! - Compression came with 4.1, so 2002 has none. In 4.1 it already runs in soft, beside the balloon.
//! - 5.0 compresses in hard and swaps in low. The guide of that time lists swap in hard as well.
//! - 6.0 stops balloons in hard. That is read as *no more inflation*: to deflate while the host is
//!   short would be absurd, and no generation does it.
//! - For 4.1 in low, one source lists swap alone. All others try to compress a page before it is swapped,
//!   so compression is on.
//!
//! The table says what is done to every VM that is above its target. Three rules hold whatever the table
//! says, so that no host gets stuck for want of a means: a limit binds in every state, by any means; a VM
//! whose balloon cannot bring what is due is evicted from in every state from soft on, by any means;
//! and where pages are missing and none can be evicted, balloons grow.

use serde::{Deserialize, Serialize};

use super::{Config, FreeState, Generation};

/// What the host does in a state to the VMs above their targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mechanisms {
    /// Balloons grow. Without it they stand still: they do not deflate for want of it.
    pub inflate: bool,
    /// Pages are compressed, whether a balloon would bring them or not.
    pub compress: bool,
    /// Pages are swapped, whether a balloon would bring them or not.
    pub swap: bool,
    /// The faults of VMs above their targets wait.
    pub block: bool,
}

/// What may be done with the pages that are evicted from one VM. Sharing is always tried first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Means {
    /// They may be compressed.
    pub compress: bool,
    /// They may be swapped.
    pub swap: bool,
}

impl Mechanisms {
    /// What the host does in a state.
    #[must_use]
    pub fn of(state: FreeState, config: &Config) -> Self {
        let [inflate, compress, swap, block] = row(config.generation, state);
        Self {
            inflate,
            compress: compress && Means::all(config).compress,
            swap,
            block,
        }
    }
}

/// What holds for every VM in one plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub state: FreeState,
    pub mechanisms: Mechanisms,
    /// [`Means::all`].
    pub all: Means,
    /// Whether faults wait for what eviction frees ([`Config::faults_wait_early`]).
    faults_wait: bool,
}

impl Rules {
    pub(super) fn of(state: FreeState, config: &Config) -> Self {
        Self {
            state,
            mechanisms: Mechanisms::of(state, config),
            all: Means::all(config),
            faults_wait: config.faults_wait_early && state >= FreeState::Hard,
        }
    }

    /// Whether the host still has something to give: balloons may shrink, and a guest that asked for relief
    /// is pressed no further.
    pub(super) fn gives(&self) -> bool {
        self.state <= FreeState::Soft
    }

    /// Whether the host waits for what balloons are to bring. It does not while faults wait for eviction: a balloon may
    /// take memory that its guest has never used, and so bring nothing.
    pub(super) const fn waits(&self) -> bool {
        !self.mechanisms.swap && !self.faults_wait
    }
}

/// Inflate, compress, swap, block.
const fn row(generation: Generation, state: FreeState) -> [bool; 4] {
    use FreeState::{Clear, Hard, High, Low, Soft};
    use Generation::{G41, G50, G60, G2002};
    const X: bool = true;
    const O: bool = false;
    match (generation, state) {
        (_, High | Clear) => [X, O, O, O],

        (G2002, Soft) => [X, O, O, O],
        (G2002, Hard) => [X, O, X, O],
        (G2002, Low) => [X, O, X, X],

        (G41, Soft) => [X, X, O, O],
        (G41, Hard) => [X, X, X, O],
        (G41, Low) => [O, X, X, X],

        (G50, Soft) => [X, O, O, O],
        (G50, Hard) => [X, X, O, O],
        (G50, Low) => [X, X, X, X],

        (G60, Soft) => [X, O, O, O],
        (G60, Hard) => [O, X, X, O],
        (G60, Low) => [O, X, X, X],
    }
}

impl Means {
    /// All means that this host has: those that enforce a limit, and take from a VM whose balloon cannot give.
    #[must_use]
    pub const fn all(config: &Config) -> Self {
        Self {
            compress: config.zip_enabled && !matches!(config.generation, Generation::G2002),
            swap: true,
        }
    }

    /// The means of a state.
    #[must_use]
    pub const fn of(mechanisms: Mechanisms) -> Self {
        Self {
            compress: mechanisms.compress,
            swap: mechanisms.swap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(generation: Generation) -> Config {
        Config {
            generation,
            ..Config::default()
        }
    }

    /// A worse state may stop balloons, but no other mechanism.
    #[test]
    fn shorter_state_takes_by_no_fewer_means() {
        for generation in Generation::ALL {
            for states in FreeState::ALL.windows(2) {
                let [before, after] = [0, 1].map(|at| row(generation, states[at]));
                for means in 1..4 {
                    assert!(!before[means] || after[means], "{generation} {}", states[1]);
                }
            }
        }
    }

    #[test]
    fn low_swaps_and_blocks_in_every_generation() {
        for generation in Generation::ALL {
            let low = Mechanisms::of(FreeState::Low, &config(generation));
            assert!(low.swap && low.block, "{generation}");
        }
    }

    #[test]
    fn nothing_compresses_in_2002_or_when_it_is_turned_off() {
        let off = |generation| Config {
            zip_enabled: false,
            ..config(generation)
        };
        let configs = [config(Generation::G2002)].into_iter();
        for config in configs.chain(Generation::ALL.map(off)) {
            assert!(!Means::all(&config).compress);
            for state in FreeState::ALL {
                assert!(!Mechanisms::of(state, &config).compress);
            }
        }
    }

    #[test]
    fn balloons_stop_in_hard_since_6_0_only() {
        for generation in Generation::ALL {
            let hard = Mechanisms::of(FreeState::Hard, &config(generation));
            assert_eq!(hard.inflate, generation != Generation::G60);
        }
    }
}
