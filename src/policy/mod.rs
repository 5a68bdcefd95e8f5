//! How much memory each VM may hold, and by which means the rest is taken back.
//!
//! # The problem
//!
//! The VMs of an overcommitted host want more pages than its budget has. Something must decide,
//! again and again, from whom pages are taken, how many, and how: by a balloon, which is slow but
//! lets the guest choose what to give up, or by eviction, which is sure but picks badly. The naive
//! answer reacts to what it sees: the host is short, so every balloon grows by a step; the host
//! has memory again, so they shrink. Balloons move with a delay, so that loop swings, and guests
//! that did nothing wrong swing with it.
//!
//! # The structure
//!
//! [`Policy::plan`] is a pure function of a [`HostSnapshot`] and a [`Config`]. It knows no clock, does no
//! I/O, takes no lock and draws no random number. Everything follows from three steps:
//!
//! 1. [`next_state`]: the free-memory state, with hysteresis (`states`), and what it does
//!    (`mechanisms`). Both follow the [`Generation`] of ESX that is chosen.
//! 2. Allocation targets: what is available is divided by shares, and by what the pages of each VM are worth, between
//!    the least and the most that it can hold (`fair`, `level`), in resource pools level by level (`resource_pool`,
//!    `claim`, `pool_limit`). What they are worth is all that a [`Policy`] says;
//!    ESX's goes by idleness (`policies`). Of what a balloon holds, only one bounded step counts as wanted,
//!    so at constant load the targets are constant.
//! 3. The means: balloon targets follow from the allocation targets by a control law (`law`, bounded by `balloon`), and
//!    what balloons cannot bring is evicted, in proportion and in bounded rounds (`evict`).
//!
//! [`explain()`] gives every number behind the target of one VM, and what would change it.
//! [`admit`] decides before a VM exists whether its reservation can be promised at all.
//!
//! The formulas, with worked numbers that a test reproduces, are in `docs/policy.md`.

mod admission;
mod balloon;
mod claim;
mod config;
mod evict;
mod explain;
mod fair;
mod generation;
pub mod law;
mod level;
mod mechanisms;
mod plan;
pub mod policies;
mod pool_limit;
mod resource_pool;
mod snapshot;
mod states;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod simulation;

pub use admission::{Asked, Ledger, PoolBound, Promises, Refusal, VmParams, admit};
pub use balloon::BalloonBound;
pub use config::{Config, ConfigError, IdleTaxType, UnknownTaxType};
pub use explain::{
    BalloonPart, Change, Explanation, FairPart, HostPart, Input, LevelPart, MemoryPart, explain,
    shares_per_page,
};
pub use generation::{Generation, UnknownGeneration};
pub use law::{Law, UnknownLaw};
pub use mechanisms::{Means, Mechanisms};
pub use plan::{Plan, PoolPlan, Stuck, VmPlan, Why};
pub use policies::{Esx, Policy, Stall, Worth};
pub use resource_pool::{NORMAL_POOL_SHARES, ROOT, ResourcePool};
pub use snapshot::{HostSnapshot, VmSnapshot};
pub use states::{FreeState, Thresholds, next_state};

use crate::units::Pages;

/// `percent` % of `pages`, rounded down.
fn percent_of(pages: Pages, percent: u32) -> Pages {
    let part = u128::from(pages.0) * u128::from(percent) / 100;
    Pages(u64::try_from(part).unwrap_or(u64::MAX))
}

/// The sum of page counts. It saturates, because snapshots are also read from files.
fn total(pages: impl IntoIterator<Item = Pages>) -> Pages {
    Pages(
        pages
            .into_iter()
            .fold(0, |sum, pages| pages.0.saturating_add(sum)),
    )
}
