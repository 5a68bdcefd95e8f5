//! What the policy decides about a scenario, with the numbers that decide it. Field names say their units.

use serde::Serialize;

use super::Scenario;
use crate::policy::{
    self, FreeState, Generation, HostSnapshot, Means, Mechanisms, Plan, PoolPlan, ResourcePool,
    Stuck, Thresholds, VmPlan, VmSnapshot, Why,
};
use crate::settings::Profile;
use crate::units::Pages;

/// A plan for people and programs. All sizes are pages of 4096 bytes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// The set of defaults.
    pub profile: Profile,
    /// The name of the policy.
    pub policy: &'static str,
    /// The generation of ESX whose free-memory states are followed.
    pub generation: Generation,
    /// The state that the scenario begins in.
    pub state_before: FreeState,
    /// The state that the plan comes to.
    pub state: FreeState,
    /// What that state does to every VM above its target.
    pub mechanisms: Mechanisms,
    /// Where the states begin, in pages.
    pub thresholds_pages: Thresholds,
    /// The host's memory.
    pub memory_pages: Pages,
    /// How much of it is in use.
    pub used_pages: Pages,
    /// How much of it is not in use.
    pub free_pages: Pages,
    /// How much of it is in use but charged to no VM.
    pub overhead_pages: Pages,
    /// What sharing saves.
    pub sharing_saved_pages: Pages,
    /// What the VMs hold beyond the host's memory, see [`Scenario::beyond`].
    pub beyond_pages: Pages,
    /// What all VMs together may hold.
    pub available_pages: Pages,
    /// What eviction must free to leave the state.
    pub shortfall_pages: Pages,
    /// How many pages in use a share buys; `null` while there is enough for all demands.
    pub price_pages_per_share: Option<f64>,
    /// Why nothing can be done about missing pages, if that is so.
    pub stuck: Option<Stuck>,
    /// The resource pools, the root first and each after its parent.
    pub pools: Vec<PoolReport>,
    /// The VMs in the order of the file.
    pub vms: Vec<VmReport>,
}

/// One resource pool of a [`Report`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// The pool that it stands in; `null` for the root.
    pub parent: Option<String>,
    /// What it counts beside its siblings: its shares, or what they have grown to.
    pub shares: u32,
    /// The shares of all that is directly in it.
    pub inner_shares: u64,
    /// Its reservation.
    pub reservation_pages: Pages,
    /// Its limit; `null`: none.
    pub limit_pages: Option<Pages>,
    /// What those in it hold, shared pages counted in full.
    pub allocation_pages: Pages,
    /// What they want, as far as limits allow.
    pub demand_pages: Pages,
    /// What they may hold.
    pub target_pages: Pages,
    /// How many pages in use a share buys in it; `null` while all demands in it are met.
    pub price_pages_per_share: Option<f64>,
    /// Whether a limit keeps them from what they want.
    pub limited: bool,
}

/// One VM of a [`Report`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct VmReport {
    /// Its name.
    pub name: String,
    /// The resource pool that it is in.
    pub pool: String,
    /// Its weight.
    pub shares: u32,
    /// Its configured memory.
    pub size_pages: Pages,
    /// Its reservation.
    pub reservation_pages: Pages,
    /// Its limit; `null`: its size.
    pub limit_pages: Option<Pages>,
    /// What it uses; `null`: not known.
    pub active_pages: Option<Pages>,
    /// What it holds, for the budget: host pages.
    pub consumed_pages: Pages,
    /// What it holds, for fairness: shared pages count in full.
    pub allocation_pages: Pages,
    /// Shares for each MiB it holds, where idle memory counts as the tax says; `null`: it holds nothing.
    pub shares_per_mib: Option<f64>,
    /// What it may hold.
    pub target_pages: Pages,
    /// What its balloon holds.
    pub balloon_pages: Pages,
    /// What its balloon is to hold.
    pub balloon_target_pages: Pages,
    /// How much of it is compressed or swapped.
    pub swap_pages: Pages,
    /// How much is to be compressed or swapped, see [`VmPlan::swap_target`](crate::policy::VmPlan::swap_target).
    pub swap_target_pages: Pages,
    /// What is evicted from it now.
    pub evict_pages: Pages,
    /// The means of eviction besides sharing.
    pub evict_by: Means,
    /// Whether its faults wait.
    pub blocked: bool,
    /// Why all that is so.
    pub why: Why,
}

pub(super) fn of(scenario: &Scenario, plan: &Plan) -> Report {
    let Scenario {
        policy,
        host,
        config,
        ..
    } = scenario;
    let vms = scenario.names.iter().zip(&host.vms).zip(&plan.vms);
    Report {
        profile: scenario.profile,
        policy: policy.name(),
        generation: config.generation,
        state_before: host.state,
        state: plan.state,
        mechanisms: plan.mechanisms,
        thresholds_pages: Thresholds::of_host(host, config),
        memory_pages: host.budget,
        used_pages: host.used.min(host.budget),
        free_pages: host.free(),
        overhead_pages: host.overhead(),
        sharing_saved_pages: host.sharing_saved(),
        beyond_pages: scenario.beyond(),
        available_pages: plan.available,
        shortfall_pages: plan.shortfall,
        price_pages_per_share: plan.pools.first().and_then(|root| root.price),
        stuck: plan.stuck,
        pools: pool_reports(host, plan),
        vms: vms
            .map(|((name, vm), plan)| {
                let per_page = policy::shares_per_page(vm, policy.worth(vm, host, config));
                let pool = host.resource_pools.get(vm.resource_pool);
                let pool = pool.map(|pool| pool.name.clone()).unwrap_or_default();
                vm_report((name, pool), vm, plan, per_page)
            })
            .collect(),
    }
}

fn pool_reports(host: &HostSnapshot, plan: &Plan) -> Vec<PoolReport> {
    let held = host.by_pool(host.vms.iter().map(VmSnapshot::allocation));
    let pools = host.resource_pools.iter().zip(&plan.pools).zip(held);
    let report = |((pool, plan), held): ((&ResourcePool, &PoolPlan), Pages)| PoolReport {
        name: pool.name.clone(),
        parent: None,
        shares: plan.shares,
        inner_shares: plan.inner_shares,
        reservation_pages: pool.reservation,
        limit_pages: pool.limit,
        allocation_pages: held,
        demand_pages: plan.demand,
        target_pages: plan.target,
        price_pages_per_share: plan.price,
        limited: plan.limited,
    };
    let mut reports: Vec<PoolReport> = pools.map(report).collect();
    for (report, pool) in reports.iter_mut().zip(&host.resource_pools).skip(1) {
        report.parent = Some(host.resource_pools[pool.parent].name.clone());
    }
    reports
}

fn vm_report(
    (name, pool): (&str, String),
    vm: &VmSnapshot,
    plan: &VmPlan,
    per_page: Option<f64>,
) -> VmReport {
    const PAGES_PER_MIB: f64 = 256.0;
    VmReport {
        name: name.to_owned(),
        pool,
        shares: vm.shares,
        size_pages: vm.size,
        reservation_pages: vm.reservation,
        limit_pages: vm.limit,
        active_pages: vm.active,
        consumed_pages: vm.backing(),
        allocation_pages: vm.allocation(),
        shares_per_mib: per_page.map(|shares| shares * PAGES_PER_MIB),
        target_pages: plan.target,
        balloon_pages: vm.ballooned,
        balloon_target_pages: plan.balloon_target,
        swap_pages: Pages(vm.compressed.0.saturating_add(vm.swapped.0)),
        swap_target_pages: plan.swap_target,
        evict_pages: plan.evict,
        evict_by: plan.means,
        blocked: plan.blocked,
        why: plan.why,
    }
}
