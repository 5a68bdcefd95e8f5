//! The policies that a host can follow, and the seam between them and the planner.
//!
//! Which VM deserves memory is a question with many answers; how memory is taken is not. Free-memory states, balloon
//! targets, rounds of eviction, who waits, and that reservations and limits hold, are hard to get right and the same
//! under every policy. So a policy answers one question about each VM, in the words of ESX's own answer: which of its
//! pages count in full, and how much dearer the others are ([`Worth`]). The planner does the rest. Whatever a policy
//! answers, targets stay between reservation and limit and add up to no more than there is, and the explanation of a
//! plan shows the numbers that the policy gave.
//!
//! A new policy is a file beside `policies/esx.rs` and a line in [`ALL`]. The properties in `properties.rs` and the
//! simulations hold for each policy that is listed there.

mod equal;
mod esx;
mod stall;

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

pub use self::equal::Equal;
pub use self::esx::Esx;
pub use self::stall::Stall;
use super::Config;
use super::plan::{self, Plan};
use super::snapshot::{HostSnapshot, VmSnapshot};
use crate::units::Pages;

/// All policies. The first one is the default.
pub const ALL: &[&dyn Policy] = &[&Esx, &Equal, &Stall];

/// A rule by which memory is divided. Pure: it knows no clock, does no I/O and keeps nothing from plan to plan, so that
/// a plan can be made again with one thing different.
pub trait Policy: Sync {
    /// Its name, for options and status: one word.
    fn name(&self) -> &'static str;

    /// What it does, in a line.
    fn about(&self) -> &'static str;

    /// What the pages of `vm`, one of the VMs of `host`, are worth.
    fn worth(&self, vm: &VmSnapshot, host: &HostSnapshot, config: &Config) -> Worth;

    /// The same of all VMs of `host`, in their order. A policy that compares a VM with all of them adds these up once
    /// here, and not once for each VM.
    fn worths(&self, host: &HostSnapshot, config: &Config) -> Vec<Worth> {
        let worth = |vm| self.worth(vm, host, config);
        host.vms.iter().map(worth).collect()
    }

    /// From which of the VM's numbers that follows, for people.
    fn because(&self, vm: &VmSnapshot) -> String;

    /// Decides what is to happen, from a snapshot alone.
    #[must_use]
    fn plan(&self, host: &HostSnapshot, config: &Config) -> Plan {
        plan::plan(self, host, config)
    }
}

/// What the pages of a VM are worth when memory is short. Every VM that is between its bounds pays the same price a
/// share, so a VM with cheaper pages holds more of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Worth {
    /// Its weight. 0: it is given its reservation and no more.
    pub shares: u32,
    /// That many of its pages cost one each. May exceed its size.
    pub in_use: Pages,
    /// How much dearer its other pages are: they cost `100 / (100 - tax)` each. More than 99 counts as 99.
    pub tax_percent: u32,
}

impl Worth {
    /// The part of its dearer pages that the tax leaves, in %: such a page costs `100 / untaxed`.
    pub(super) fn untaxed(self) -> u32 {
        // At least 1, because a price is divided by it.
        100_u32.saturating_sub(self.tax_percent).max(1)
    }
}

/// A text that names no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no policy `{}`; allowed: {}", .0.escape_debug(), names())]
pub struct UnknownPolicy(String);

/// The names of all policies, for people.
#[must_use]
pub fn names() -> String {
    let names: Vec<_> = ALL.iter().map(|policy| policy.name()).collect();
    names.join(", ")
}

/// The policy of that name.
///
/// # Errors
/// [`UnknownPolicy`], with the names that exist.
pub fn named(name: &str) -> Result<&'static dyn Policy, UnknownPolicy> {
    let found = ALL.iter().find(|policy| policy.name() == name);
    found.copied().ok_or_else(|| UnknownPolicy(name.to_owned()))
}

impl Default for &'static dyn Policy {
    fn default() -> Self {
        ALL[0]
    }
}

impl<'de> Deserialize<'de> for &'static dyn Policy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        named(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl fmt::Debug for dyn Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Policy {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Policy {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_is_found_by_its_own_name_and_the_default_is_esx() {
        for policy in ALL {
            assert_eq!(named(policy.name()), Ok(*policy));
            assert!(!policy.about().is_empty(), "{policy:?}");
        }
        assert_eq!(<&dyn Policy>::default().name(), "esx");
        let error = named("esx\n").expect_err("none").to_string();
        assert!(error.contains("`esx\\n`; allowed: esx, "), "{error}");
    }
}
