//! Why one VM is treated as it is: every number behind its target, and what would change it.
//!
//! A bare target is not believed: the owner of a VM that is ballooned wants to know by which rule, from
//! which numbers, and what to do about it. A description of the rules cannot say that, because the rest of the
//! host decides. So the numbers are those of the plan itself, and what would change the target is found by
//! planning again with one thing different. What makes no difference to this VM is left out.

mod changes;

use serde::{Deserialize, Serialize};

pub use self::changes::{Change, Input};
use super::balloon::{self, BalloonBound};
use super::fair;
use super::plan::{Plan, PoolPlan, Stuck, VmPlan};
use super::policies::{Policy, Worth};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, FreeState, Generation, IdleTaxType, Mechanisms, Thresholds, pool_limit};
use crate::units::{Pages, VmId};

/// Why one VM is treated as it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// What is to happen to it, and the reason in a word.
    pub plan: VmPlan,
    /// What holds for all VMs.
    pub host: HostPart,
    /// Where its memory is.
    pub memory: MemoryPart,
    /// What it is worth.
    pub fairness: FairPart,
    /// The resource pools around it, from its own to the root.
    pub levels: Vec<LevelPart>,
    /// What its balloon can do.
    pub balloon: BalloonPart,
    /// What would change it.
    pub changes: Vec<Change>,
}

/// The host, as far as it decides about each of its VMs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostPart {
    /// The name of the policy that is followed.
    pub policy: String,
    /// The generation of ESX that is followed.
    pub generation: Generation,
    /// The free-memory state.
    pub state: FreeState,
    /// What that state does to every VM above its target.
    pub mechanisms: Mechanisms,
    /// Where the states begin; `min_free` is what the host wants to keep free.
    pub thresholds: Thresholds,
    /// All the host pages the daemon may use.
    pub budget: Pages,
    /// The host pages that are not in use.
    pub free: Pages,
    /// The host pages that no VM is charged with.
    pub overhead: Pages,
    /// The host pages that sharing saves: they are available once more.
    pub sharing_saved: Pages,
    /// The guest pages that all VMs together may hold.
    pub available: Pages,
    /// The host pages that eviction must free to leave the state.
    pub shortfall: Pages,
    /// Why nothing can be done about missing pages, if that is so.
    pub stuck: Option<Stuck>,
    /// How many pages in use a share buys: `v` in the formula of the fair part (`docs/policy.md`). None while there
    /// is enough for all demands.
    pub price: Option<f64>,
}

/// Where the guest pages of a VM are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemoryPart {
    /// Its configured memory.
    pub size: Pages,
    /// Its reservation, as far as size and limit allow.
    pub min: Pages,
    /// The most it may ever hold: the lesser of size and limit; without shares its reservation.
    pub max: Pages,
    /// What it holds, for fairness: `resident`, `shared`, and the host pages of its cache.
    pub allocation: Pages,
    /// What it holds, for the budget: `allocation` less what sharing saves.
    pub backing: Pages,
    /// In its own RAM.
    pub resident: Pages,
    /// On shared frames, each counted in full.
    pub shared: Pages,
    /// Zeroes that cost nothing.
    pub zero: Pages,
    /// In its compression cache.
    pub compressed: Pages,
    /// The host pages of that cache.
    pub zip_pages: Pages,
    /// In its swap file.
    pub swapped: Pages,
    /// In its balloon.
    pub ballooned: Pages,
    /// Never written.
    pub untouched: Pages,
}

/// What a VM is worth when memory is divided.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FairPart {
    /// Its weight.
    pub shares: u32,
    /// Of what it holds, the pages that count in full.
    pub in_use: Pages,
    /// The others: what the tax applies to.
    pub idle: Pages,
    /// From which numbers the policy has that, in words.
    pub because: String,
    /// The tax in %, at most 99.
    pub tax_percent: u32,
    /// By which means the tax is taken.
    pub tax_type: IdleTaxType,
    /// Adjusted shares per page, `S / (P * (f + k * (1 - f)))`, f being the part in use: the VM with the
    /// fewest is taken from first. For a VM at its target and between its bounds it is `1 / price`. None: it holds
    /// nothing.
    pub shares_per_page: Option<f64>,
    /// What it is presumed to want beyond its allocation, because it has a balloon.
    pub headroom: Pages,
    /// `allocation + headroom`: it is given no more than that while others want memory.
    pub demand: Pages,
    /// What it could hold at the same price if its demand were larger.
    pub entitled: Pages,
}

/// A resource pool around a VM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LevelPart {
    /// Its name.
    pub pool: String,
    /// Its reservation.
    pub reservation: Pages,
    /// Its limit.
    pub limit: Option<Pages>,
    /// Whether the pools directly in it grow with what is in them.
    pub scalable: bool,
    /// How many VMs are in it, or in pools in it.
    pub vms: usize,
    /// What it is given.
    pub plan: PoolPlan,
}

/// What leads the balloon of a VM, and what it can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BalloonPart {
    /// The name of the control law that leads it.
    pub law: String,
    /// Microseconds in each second for which its threads wait for evicted pages, and for its guest's own swap device.
    pub stall_us_per_s: [u64; 2],
    /// Whether it has an agent.
    pub agent: bool,
    /// Whether its agent lives and moves.
    pub agent_alive: bool,
    /// The pages that its agent can be expected to bring in time; None: all that it is asked for.
    pub brings: Option<Pages>,
    /// The size that was set by hand.
    pub by_hand: Option<Pages>,
    /// The most it may hold.
    pub cap: Pages,
    /// What sets that bound.
    pub bound: BalloonBound,
    /// The most it is to hold while its guest has asked for relief.
    pub relief: Option<Pages>,
}

/// Explains the plan for one VM. None: it is not in the snapshot or not in the plan.
///
/// `plan` must be that of `policy` for this snapshot with these settings: the changes are differences from it.
#[must_use]
pub fn explain(
    policy: &dyn Policy,
    host: &HostSnapshot,
    config: &Config,
    plan: &Plan,
    id: VmId,
) -> Option<Explanation> {
    let given = host.believable();
    let limited = pool_limit::hand_down(policy, &given, config);
    let host = &*limited.host;
    let at = host.vms.iter().position(|vm| vm.id == id)?;
    // The plan must be that of this snapshot: two of different moments would explain nothing.
    let now = *plan.vms.get(at).filter(|plan| plan.id == id)?;
    let vm = &host.vms[at];
    let (cap, bound) = balloon::bound(vm, config);
    Some(Explanation {
        plan: now,
        host: host_part(policy, host, config, plan),
        memory: memory_part(vm),
        fairness: fair_part(policy, host, config, plan, at),
        levels: levels(host, plan, at),
        balloon: BalloonPart {
            law: config.law.name().to_owned(),
            stall_us_per_s: [vm.stall_us_per_s, vm.guest_stall_us_per_s],
            agent: vm.agent,
            agent_alive: vm.agent_alive,
            brings: vm.balloon_brings,
            by_hand: vm.balloon_by_hand,
            cap,
            bound,
            relief: vm.relief,
        },
        changes: changes::changes(policy, &given, config, plan, at),
    })
}

fn levels(host: &HostSnapshot, plan: &Plan, vm: usize) -> Vec<LevelPart> {
    let counts = host.by_pool(host.vms.iter().map(|_| Pages(1)));
    let level = |at: usize| {
        let pool = host.resource_pools.get(at).cloned().unwrap_or_default();
        Some(LevelPart {
            pool: pool.name,
            reservation: pool.reservation,
            limit: pool.limit,
            scalable: pool.scalable,
            vms: usize::try_from(counts[at].0).unwrap_or(usize::MAX),
            plan: *plan.pools.get(at)?,
        })
    };
    host.pools_around(vm).filter_map(level).collect()
}

fn host_part(policy: &dyn Policy, host: &HostSnapshot, config: &Config, plan: &Plan) -> HostPart {
    HostPart {
        policy: policy.name().to_owned(),
        generation: config.generation,
        state: plan.state,
        mechanisms: plan.mechanisms,
        thresholds: Thresholds::of_host(host, config),
        budget: host.budget,
        free: host.free(),
        overhead: host.overhead(),
        sharing_saved: host.sharing_saved(),
        available: plan.available,
        shortfall: plan.shortfall,
        stuck: plan.stuck,
        price: plan.pools.first().and_then(|root| root.price),
    }
}

fn memory_part(vm: &VmSnapshot) -> MemoryPart {
    MemoryPart {
        size: vm.size,
        min: vm.min(),
        max: vm.max(),
        allocation: vm.allocation(),
        backing: vm.backing(),
        resident: vm.resident,
        shared: vm.shared,
        zero: vm.zero,
        compressed: vm.compressed,
        zip_pages: vm.zip_pages,
        swapped: vm.swapped,
        ballooned: vm.ballooned,
        untouched: vm.untouched,
    }
}

fn fair_part(
    policy: &dyn Policy,
    host: &HostSnapshot,
    config: &Config,
    plan: &Plan,
    at: usize,
) -> FairPart {
    let vm = &host.vms[at];
    let worth = policy.worth(vm, host, config);
    let (in_use, idle) = divided(vm, worth);
    FairPart {
        shares: worth.shares,
        in_use,
        idle,
        because: policy.because(vm),
        tax_percent: 100 - worth.untaxed(),
        tax_type: config.idle_tax_type,
        shares_per_page: shares_per_page(vm, worth),
        headroom: fair::headroom(vm, config),
        demand: fair::demand(vm, config),
        entitled: plan.vms[at].entitled,
    }
}

/// What a VM holds: the pages that count in full, and the others.
fn divided(vm: &VmSnapshot, worth: Worth) -> (Pages, Pages) {
    let in_use = vm.allocation().min(worth.in_use);
    (in_use, vm.allocation().saturating_sub(in_use))
}

/// [`FairPart::shares_per_page`] of a VM. None: it holds nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a ratio is read by people")]
pub fn shares_per_page(vm: &VmSnapshot, worth: Worth) -> Option<f64> {
    let (in_use, idle) = divided(vm, worth);
    let idle_cost = 100.0 / f64::from(worth.untaxed());
    let cost = in_use.0 as f64 + idle_cost * idle.0 as f64;
    (cost > 0.0).then(|| f64::from(worth.shares) / cost)
}

#[cfg(test)]
mod tests;
