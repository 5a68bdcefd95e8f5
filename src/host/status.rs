//! The status of the daemon, for [`crate::telemetry`].

use super::daemon::Host;
use super::member::Member;
use super::vm_status::{millis, vm_status};
use crate::policy;
use crate::telemetry::{FreeState, Health, HostStatus, ShareStatus, Thresholds, Totals, VmStatus};
use crate::units::Pages;

impl Host {
    pub(super) fn host_status(&self) -> HostStatus {
        let members = self.members.all();
        let vms: Vec<VmStatus> = members
            .iter()
            .map(|member| self.vm_status(member))
            .collect();
        let tables = members.iter().map(|member| member.vm.params.metadata().0);
        let metadata = self.pools.metadata().0 + tables.sum::<u64>();
        let settings = self.configuration.settings();
        let thresholds = policy::Thresholds::of(self.budget.total(), &settings.policy());
        let totals = Totals::of(&vms);
        let promises = self.admission.promises();
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
            share: self.share_status(&vms, totals.homes.shared_pages),
            totals,
            vms,
        };
        status.health = Health::of_host(&status);
        status
    }

    /// `shared` is the number of shared pages of all VMs, as their status has it.
    fn share_status(&self, vms: &[VmStatus], shared: Pages) -> ShareStatus {
        let settled = vms.iter().filter(|vm| vm.scan.settled).count();
        let mut sum = ShareStatus {
            settled_vms: settled as u64,
            settled: settled > 0 && settled == vms.len(),
            shared_pages: shared,
            ..ShareStatus::default()
        };
        for pool in self.pools.all() {
            let counts = pool.counts();
            sum.frames.0 += counts.frames.0;
            sum.hints += counts.hints.0;
            // A pool that the kernel does not report on counts as what its frames should take.
            sum.pool_pages.0 += pool.allocated().unwrap_or(counts.frames).0;
        }
        // A frame that is being filled has no page yet.
        sum.frames = sum.frames.min(shared);
        sum.saved_pages = shared.saturating_sub(sum.frames);
        sum
    }

    pub(super) fn vm_status(&self, member: &Member) -> VmStatus {
        vm_status(member, self.configuration.settings().sample_active_pct_min)
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
