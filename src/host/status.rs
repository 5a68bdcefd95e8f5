//! The status of the daemon, for [`crate::telemetry`].

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::caches;
use super::daemon::Host;
use super::member::Member;
use super::snapshot::sharing_saved;
use crate::page::Claims;
use crate::policy;
use crate::telemetry::{
    ActivityStatus, AllocationStatus, BalloonStatus, EvictStatus, FaultStatus, FreeState,
    GuestClaims, Homes, HostStatus, LatencyStatus, ScanStatus, ShareStatus, StallStatus,
    SwapStatus, Thresholds, Totals, VmStatus,
};
use crate::units::Pages;
use crate::vm::{Cause, Stalled, Vm};

impl Host {
    pub(super) fn host_status(&self) -> HostStatus {
        let members = self.members.all();
        let vms: Vec<VmStatus> = members
            .iter()
            .map(|member| self.vm_status(member))
            .collect();
        let tables = members.iter().map(|member| member.vm.params.metadata().0);
        let metadata = self.pools.metadata().0 + tables.sum::<u64>();
        let thresholds =
            policy::Thresholds::of(self.budget.total(), &self.configuration.settings().policy());
        let totals = Totals::of(&vms);
        // Read only once, because two numbers are derived from it that must agree: pages move while they are counted.
        let used = self.budget.used();
        HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            engine: self.engines.first.name().to_owned(),
            policy: self.configuration.policy.name().to_owned(),
            uptime_ms: millis(self.since),
            budget_pages: self.budget.total(),
            used_pages: used,
            free_pages: self.budget.total().saturating_sub(used),
            metadata_pages: Pages(metadata),
            free_state: free_state(self.governor.state()),
            thresholds: Thresholds {
                high_pages: thresholds.high,
                soft_pages: thresholds.soft,
                hard_pages: thresholds.hard,
                low_pages: thresholds.low,
            },
            overcommit: self.governor.overcommit(),
            share: self.share_status(&vms, totals.homes.shared_pages),
            totals,
            vms,
        }
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
        let vm = &member.vm;
        // Read before the homes, so that whatever a counter has counted is already in the homes.
        let (faults, scan, evict) = (faults(vm), scan(vm), evict(vm));
        let homes = homes(vm);
        let zip = vm.zip.lock();
        let zip_pages = Pages(u64::from(zip.pages_used()));
        let zip_allocated = zip.allocated().unwrap_or(zip_pages);
        drop(zip);
        let credits = vm.table.claims().map_or(0, Claims::held);
        let consumed = homes.resident_pages.0 + homes.shared_pages.0 + zip_pages.0 + credits;
        let ram = member.ram.allocated().unwrap_or(homes.resident_pages);
        VmStatus {
            id: vm.id,
            name: vm.params.name.clone(),
            pid: u32::try_from(member.process.pid()).unwrap_or(0),
            engine: vm.engine.kind().name().to_owned(),
            workload: vm.params.workload.clone(),
            uptime_ms: millis(vm.since),
            configured_pages: Pages(u64::from(vm.params.pages)),
            granted_pages: Pages(
                homes.resident_pages.0 + homes.shared_pages.0 + homes.zero_pages.0,
            ),
            consumed_pages: Pages(consumed).saturating_sub(sharing_saved(member)),
            zip_pages,
            zip: caches::status(member),
            credit_pages: Pages(credits),
            kernel_pages: Pages(ram.0 + zip_allocated.0),
            allocation: allocation(member),
            activity: activity(member, self.configuration.settings().sample_active_pct_min),
            balloon: balloon(member, homes.ballooned_pages),
            guest: guest(member),
            swap: swap(vm),
            faults,
            stalls: stalls(&member.stalled()),
            scan,
            evict,
            vmas: u64::from(vm.vmas.upper_bound()),
            vma_budget: u64::from(vm.vmas.budget()),
            blocked: vm.is_blocked(),
            salt_set: member.settings().salt.is_some(),
            homes,
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
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

fn homes(vm: &Vm) -> Homes {
    let [
        untouched,
        zero,
        resident,
        shared,
        compressed,
        swapped,
        ballooned,
    ] = vm.table.counts().map(Pages);
    Homes {
        untouched_pages: untouched,
        zero_pages: zero,
        resident_pages: resident,
        shared_pages: shared,
        compressed_pages: compressed,
        swapped_pages: swapped,
        ballooned_pages: ballooned,
    }
}

fn allocation(member: &Member) -> AllocationStatus {
    let settings = member.settings();
    let size = u64::from(member.vm.params.pages);
    AllocationStatus {
        reservation_pages: settings.reservation,
        limit_pages: settings.limit.filter(|limit| limit.0 < size),
        shares: u64::from(settings.shares.count(size)),
        target_pages: member.vm.orders.allocation_target(),
    }
}

fn activity(member: &Member, floor_percent: u32) -> ActivityStatus {
    let activity = &member.vm.activity;
    let referenced_pages = activity.referenced();
    let Some(estimate) = activity.estimate() else {
        return ActivityStatus {
            referenced_pages,
            ..ActivityStatus::default()
        };
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a fraction from 0 to 1"
    )]
    let percent = |fraction: f64| (fraction * 100.0).round() as u32;
    ActivityStatus {
        active_pages: member.active(floor_percent),
        active_percent: percent(estimate.active()),
        slow_percent: percent(estimate.slow),
        fast_percent: percent(estimate.fast),
        next_percent: percent(estimate.next),
        referenced_pages,
    }
}

fn balloon(member: &Member, size: Pages) -> BalloonStatus {
    let agent = member.balloon.connected.load(Ordering::Relaxed);
    BalloonStatus {
        agent,
        waited_for: member.balloon.is_waited_for(),
        size_pages: size,
        // An agent that has just left takes its target with it; the orders show that only with the next plan.
        target_pages: if agent { member.balloon_target() } else { size },
        max_pages: member.balloon.max(),
        manual_pages: member.vm.orders.manual(),
        double_paged: member.vm.stats.double_paged.get(),
    }
}

fn guest(member: &Member) -> GuestClaims {
    let stats = member.balloon.stats();
    GuestClaims {
        total_bytes: stats.total,
        free_bytes: stats.free,
        available_bytes: stats.available,
        cache_bytes: stats.caches,
        swap_in_bytes: stats.swap_in,
        swap_out_bytes: stats.swap_out,
        major_faults: stats.major_faults,
        minor_faults: stats.minor_faults,
        oom_kills: stats.oom_kills,
        swap_wait_us: stats.swap_wait_us,
    }
}

fn swap(vm: &Vm) -> SwapStatus {
    let stats = vm.swap.stats();
    SwapStatus {
        slots: stats.used.0,
        target_pages: vm.orders.swap_target(),
        reads: stats.read.0,
        writes: stats.written.0,
        in_bytes: stats.read.bytes(),
        out_bytes: stats.written.bytes(),
        errors: vm.stats.swap_errors.get(),
    }
}

fn faults(vm: &Vm) -> FaultStatus {
    let stats = &vm.stats;
    FaultStatus {
        first_touch: stats.first_touch.get(),
        refill_zip: stats.refill_zip.get(),
        refill_swap: stats.refill_swap.get(),
        cow_break: stats.breaks.get(),
        inline: stats.inline(),
        pop: stats.pops.get(),
        parked: stats.parked.get() + stats.starved.get(),
        latency: vm.latency().map(|latency| LatencyStatus {
            p50_us: latency.p50_us,
            p99_us: latency.p99_us,
        }),
    }
}

fn stalls(stalled: &Stalled) -> StallStatus {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let of = |cause| micros(stalled.threads[cause]);
    let percent = |share: f64| (share * 10_000.0).round() / 100.0;
    StallStatus {
        first_touch_us: of(Cause::FirstTouch),
        refill_zip_us: of(Cause::RefillZip),
        refill_swap_us: of(Cause::RefillSwap),
        cow_break_us: of(Cause::Break),
        open_us: of(Cause::Open),
        blocked_us: of(Cause::Blocked),
        memory_us: of(Cause::Memory),
        busy_us: of(Cause::Busy),
        stalled_us: micros(stalled.any),
        latency_percent: percent(stalled.latest),
        latency_minute_percent: percent(stalled.minute),
    }
}

fn scan(vm: &Vm) -> ScanStatus {
    let stats = &vm.stats;
    ScanStatus {
        pages_scanned: stats.scanned.get(),
        merged: stats.merged.get(),
        attached: stats.attached.get(),
        zero_found: stats.zeroed.get(),
        volatile: stats.volatile.get(),
        passes: stats.passes.get(),
        settled: vm.settled.is(stats.served()),
    }
}

fn evict(vm: &Vm) -> EvictStatus {
    let stats = &vm.stats;
    EvictStatus {
        to_zero: stats.evict_zero.get(),
        to_shared: stats.evict_shared.get(),
        to_zip: stats.evict_zip.get(),
        to_swap: stats.evict_swap.get(),
        incompressible: stats.incompressible.get(),
        spilled: stats.spilled.get(),
        given_up: stats.evict_failed.get(),
    }
}
