//! The status of the daemon, for [`crate::telemetry`].

use std::sync::Arc;

use super::census::Counts;
use super::daemon::Host;
use super::member::Member;
use super::tiers::Division;
use super::vm_status::{millis, vm_status};
use crate::policy::{self, HostSnapshot, Ledger, ROOT, ResourcePool, VmSnapshot};
use crate::telemetry::{
    FreeState, Health, HostStatus, PoolStatus, ShareStatus, Thresholds, Totals, VmStatus,
};
use crate::units::Pages;

impl Host {
    pub(super) fn host_status(&self) -> HostStatus {
        let members = self.members.all();
        let vms = self.vm_statuses(&members);
        let tables = members.iter().map(|member| member.vm.params.metadata().0);
        let metadata = self.pools.metadata().0 + tables.sum::<u64>();
        let settings = self.configuration.settings();
        let saved = self.pools.saved();
        let thresholds =
            policy::Thresholds::sharing(self.budget.total(), saved, &settings.policy());
        let totals = Totals::of(&vms);
        let (ledger, promising) = self.admission.promises();
        let promises = ledger.host();
        // Read only once, because two numbers are derived from it that must agree: pages move while they are counted.
        let used = self.budget.used();
        let mut status = HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            engine: self.engines.first.name().to_owned(),
            policy: self.configuration.policy.name().to_owned(),
            balloon_law: settings.balloon_law.name().to_owned(),
            uptime_ms: millis(self.since),
            health: Health::default(),
            budget_pages: self.budget.total(),
            used_pages: used,
            free_pages: self.budget.total().saturating_sub(used),
            metadata_pages: Pages(metadata),
            reserved_pages: promises.reserved,
            unreserved_pages: promises.unreserved,
            free_state: free_state(self.governor.state()),
            thresholds: Thresholds {
                min_free_pages: thresholds.min_free,
                high_pages: thresholds.high,
                soft_pages: thresholds.soft,
                hard_pages: thresholds.hard,
                low_pages: thresholds.low,
            },
            overcommit: self.governor.overcommit(),
            share: ShareStatus {
                reserve_pages: thresholds.share_reserve,
                ..self.share_status(&vms, totals.homes.shared_pages)
            },
            swap_cache: Division::status(self.configuration.swap_cache.as_deref()),
            totals,
            machine: self.surroundings.status(&vms),
            pools: self.pool_statuses(&ledger, &promising),
            vms,
        };
        status.health = Health::of_host(&status);
        status
    }

    /// The resource pools of `host`, whose promises are in `ledger`.
    pub(super) fn pool_statuses(&self, ledger: &Ledger, host: &HostSnapshot) -> Vec<PoolStatus> {
        let decision = self.governor.latest();
        let plan = |name: &str| {
            let decision = decision.as_ref()?;
            let mut pools = decision.snapshot.resource_pools.iter();
            let at = pools.position(|pool| pool.name == name)?;
            decision.plan.pools.get(at).copied()
        };
        let vms = host.by_pool(host.vms.iter().map(|_| Pages(1)));
        let allocated = host.by_pool(host.vms.iter().map(VmSnapshot::allocation));
        let status = |(at, pool): (usize, &ResourcePool)| {
            // A pool that has just been added is not in the latest plan, but will be in the next.
            let plan = plan(&pool.name);
            let parent = &host.resource_pools[pool.parent].name;
            PoolStatus {
                name: pool.name.clone(),
                parent: (at != ROOT).then(|| parent.clone()),
                shares: pool.shares,
                counted_shares: plan.map_or(pool.shares, |plan| plan.shares),
                inner_shares: plan.map_or(0, |plan| plan.inner_shares),
                reservation_pages: pool.reservation,
                limit_pages: pool.limit,
                expandable: pool.expandable,
                scalable_shares: pool.scalable,
                vms: vms[at].0,
                allocated_pages: allocated[at],
                target_pages: plan.map_or(Pages(0), |plan| plan.target),
                promised_pages: ledger.promised(at),
                unreserved_pages: ledger.unreserved(host, at),
                limited: plan.is_some_and(|plan| plan.limited),
            }
        };
        (host.resource_pools.iter().enumerate())
            .map(status)
            .collect()
    }

    /// `shared` is the number of shared pages of all VMs, as their status has it.
    fn share_status(&self, vms: &[VmStatus], shared: Pages) -> ShareStatus {
        let settled = vms.iter().filter(|vm| vm.scan.settled).count();
        let mut sum = ShareStatus {
            settled_vms: settled as u64,
            settled: settled > 0 && settled == vms.len(),
            shared_pages: shared,
            hints: vms.iter().map(|vm| vm.hinted_pages.0).sum(),
            ..ShareStatus::default()
        };
        for pool in self.pools.all() {
            let counts = pool.counts();
            sum.frames.0 += counts.frames.0;
            // A pool that the kernel does not report on counts as what its frames should take.
            sum.pool_pages.0 += pool.allocated().unwrap_or(counts.frames).0;
        }
        // A frame that is being filled has no page yet.
        sum.frames = sum.frames.min(shared);
        sum.saved_pages = shared.saturating_sub(sum.frames);
        // Each page but one of each frame.
        sum.break_cost_pages = sum.saved_pages;
        sum
    }

    pub(super) fn vm_status(&self, member: &Arc<Member>) -> VmStatus {
        // Of all VMs: what keeps a page from being shared may be which VM has an equal one.
        let counts = self.census.of(&self.members.all());
        let floor = self.configuration.settings().sample_active_pct_min;
        counted_status(member, &counts, floor)
    }

    fn vm_statuses(&self, members: &[Arc<Member>]) -> Vec<VmStatus> {
        let counts = self.census.of(members);
        let floor = self.configuration.settings().sample_active_pct_min;
        let status = |member: &Arc<Member>| counted_status(member, &counts, floor);
        members.iter().map(status).collect()
    }
}

/// The status of a VM, which uses at least `floor` percent of its size, with what was counted of its pages.
fn counted_status(member: &Member, counts: &Counts, floor: u32) -> VmStatus {
    // One that has just left the registry is counted no more.
    let counted = counts.get(&member.vm.id).copied().unwrap_or_default();
    VmStatus {
        sharing: counted.sharing,
        break_cost_pages: counted.break_cost,
        ..vm_status(member, floor)
    }
}

const fn free_state(state: policy::FreeState) -> FreeState {
    match state {
        policy::FreeState::High => FreeState::High,
        policy::FreeState::Clear => FreeState::Clear,
        policy::FreeState::Soft => FreeState::Soft,
        policy::FreeState::Hard => FreeState::Hard,
        policy::FreeState::Low => FreeState::Low,
    }
}
