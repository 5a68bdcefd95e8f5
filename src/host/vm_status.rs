//! The status of one VM, for [`crate::telemetry`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::caches;
use super::member::Member;
use super::snapshot::sharing_saved;
use crate::balloon::BalloonCounters;
use crate::page::Claims;
use crate::settings::VmSettings;
use crate::swap::CacheFile;
use crate::telemetry::{
    ActivityStatus, AllocationStatus, BalloonSessionStatus, BalloonStatus, EvictStatus,
    FaultStatus, GuestClaims, Health, Homes, LargeStatus, LatencyStatus, ScanStatus, SharingStatus,
    StallStatus, SwapStatus, VmStatus,
};
use crate::units::{Bytes, Pages};
use crate::vm::{Cause, Stalled, Vm};

/// The status of a VM, of which sampling says that it uses at least `floor_percent`, without where its pages stand with
/// sharing: who asks for that has all pages counted.
pub(super) fn vm_status(member: &Member, floor_percent: u32) -> VmStatus {
    let vm = &member.vm;
    // Read before the homes, so that whatever a counter has counted is already in the homes.
    let (faults, scan, evict) = (faults(vm), scan(vm), evict(vm));
    let homes = homes(vm);
    let zip = vm.zip.lock();
    let zip_pages = Pages(u64::from(zip.pages_used()));
    drop(zip);
    let credits = vm.table.claims().map_or(0, Claims::held);
    let consumed = homes.resident_pages.0 + homes.shared_pages.0 + zip_pages.0 + credits;
    let saved = sharing_saved(member);
    let settings = member.settings();
    let (rates, process_bytes, placed_on) = {
        let recent = member.recent();
        (recent.rates(), recent.process(), recent.placed_on())
    };
    let mut status = VmStatus {
        id: vm.id,
        name: vm.params.name.clone(),
        pid: u32::try_from(member.process.pid()).unwrap_or(0),
        engine: vm.engine.kind().name().to_owned(),
        workload: vm.params.workload.clone(),
        uptime_ms: millis(vm.since),
        health: Health::default(),
        rates,
        configured_pages: Pages(u64::from(vm.params.pages)),
        granted_pages: Pages(homes.resident_pages.0 + homes.shared_pages.0 + homes.zero_pages.0),
        consumed_pages: Pages(consumed).saturating_sub(saved),
        saved_pages: saved,
        break_cost_pages: Pages(0),
        sharing: SharingStatus::default(),
        hinted_pages: vm.membership().hinted(),
        overhead_pages: vm.params.metadata(),
        zip_pages,
        zip: caches::status(member),
        credit_pages: Pages(credits),
        kernel_pages: kernel(member, homes.resident_pages, zip_pages),
        process_bytes,
        placed_on: placed_on.and_then(|on| u32::try_from(on).ok()),
        allocation: allocation(member, &settings),
        activity: activity(member, floor_percent),
        balloon: balloon(member, homes.ballooned_pages),
        guest: guest(member),
        swap: swap(vm),
        faults,
        stalls: stalls(&member.stalled()),
        scan,
        evict,
        large: large(vm),
        vmas: u64::from(vm.vmas.upper_bound()),
        vma_budget: u64::from(vm.vmas.budget()),
        blocked: vm.is_blocked(),
        salt_set: settings.salt.is_some(),
        pool: settings.pool,
        homes,
    };
    status.health = Health::of_vm(&status);
    status
}

/// What the kernel counts for its RAM and its cache; where it does not tell, these pages.
fn kernel(member: &Member, ram: Pages, zip: Pages) -> Pages {
    let now = Instant::now();
    // Not in one expression with what follows: that takes the lock again.
    let known = member.recent().kernel(now);
    known.unwrap_or_else(|| {
        let ram = member.ram.allocated().unwrap_or(ram);
        let zip = member.vm.zip.lock().allocated().unwrap_or(zip);
        let pages = Pages(ram.0 + zip.0);
        member.recent().note_kernel(now, pages);
        pages
    })
}

/// Ends the interval of a VM if it is over; to be called at each plan.
pub(super) fn note_rates(member: &Member, floor_percent: u32, now: Instant) {
    if member.recent().is_over(now) {
        // Not under the lock, which the status takes too.
        let status = vm_status(member, floor_percent);
        let process = member.process.memory().ok();
        member.recent().end(now, status, process);
    }
}

/// Milliseconds since then.
pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
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

fn allocation(member: &Member, settings: &VmSettings) -> AllocationStatus {
    let size = u64::from(member.vm.params.pages);
    AllocationStatus {
        reservation_pages: settings.reservation,
        limit_pages: settings.limit.filter(|limit| limit.0 < size),
        shares: u64::from(settings.shares.count(size)),
        target_pages: member.vm.orders.allocation_target(),
        entitlement_pages: member.vm.orders.entitlement(),
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
        session: session_counts(&member.balloon.counters),
    }
}

/// What the sessions of a balloon have counted.
pub(super) fn session_counts(counters: &BalloonCounters) -> BalloonSessionStatus {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    BalloonSessionStatus {
        inflated_pages: Pages(count(&counters.inflated_pages)),
        deflated_pages: Pages(count(&counters.deflated_pages)),
        refused_pages: Pages(count(&counters.refused_pages)),
        invalid_pages: Pages(count(&counters.invalid_pages)),
        resets: count(&counters.resets),
        reliefs: count(&counters.reliefs),
        mismatches: count(&counters.mismatches),
        throttles: count(&counters.throttles),
        reported_pages: Pages(count(&counters.reported_pages)),
        messages: count(&counters.messages_in) + count(&counters.messages_out),
        message_bytes: Bytes(count(&counters.bytes)),
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
    let stats = vm.swap.file.stats();
    let cache = vm.swap.cache.as_ref();
    let cached = cache.map(CacheFile::stats).unwrap_or_default();
    SwapStatus {
        slots: stats.used.0,
        target_pages: vm.orders.swap_target(),
        reads: stats.read.0,
        writes: stats.written.0,
        in_bytes: stats.read.bytes(),
        out_bytes: stats.written.bytes(),
        errors: vm.stats.swap_errors.get(),
        cached_pages: cached.used,
        cache_in_bytes: cached.read.bytes(),
        cache_out_bytes: cached.written.bytes(),
        cache_errors: vm.stats.cache_errors.get(),
        demoted: vm.stats.demoted.get(),
        unswapped: vm.stats.unswapped.get(),
        unswap_rate: vm.orders.unswap().unwrap_or(0),
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

fn large(vm: &Vm) -> LargeStatus {
    LargeStatus {
        pages: vm.large.pages(),
        made: vm.stats.enlarged.get(),
        broken: vm.stats.broken.get(),
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
        cold: stats.cold.get(),
        cold_back: stats.cold_back.get(),
        early_refaults: vm.refaults.early(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, hello};
    use super::*;
    use crate::policy;
    use crate::telemetry::{Reading, VmRates};

    /// Two VMs of 16 MiB on a host of 64 MiB.
    #[test]
    fn promises_and_overhead_of_a_host_are_those_worked_out_by_hand() {
        let rig = Rig::new(None);
        let mut reserving = hello("a", 4096);
        reserving.reservation = 1000;
        let (a, b) = (rig.run(&reserving), rig.run(&hello("b", 4096)));
        for vm in [&a, &b] {
            // 16 bytes for each of 4096 pages, and 64 KiB.
            assert_eq!(vm_status(vm, 0).overhead_pages, Pages(16 + 16));
        }
        let promises = rig.admission.promises().0.host();
        assert_eq!(promises.reserved, Pages(1000));
        let metadata = rig.pools.metadata().0 + 2 * 32;
        let aim = policy::Thresholds::of(Pages(16384), &policy::Config::default()).aim;
        let left = 16384 - 1000 - metadata - aim.0;
        assert_eq!(promises.unreserved, Pages(left));
        a.vm.orders.set_entitlement(Pages(77));
        let allocation = vm_status(&a, 0).allocation;
        assert_eq!(allocation.entitlement_pages, Pages(77));
        assert_eq!(allocation.reservation_pages, Pages(1000));
    }

    #[test]
    fn status_that_is_polled_has_no_page_tables_walked() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 4096));
        assert_eq!(vm_status(&vm, 1).activity.referenced_pages, None);
        assert!(!vm.vm.activity.is_watched());
        vm.vm.activity.watch();
        assert!(vm.vm.activity.is_watched());
    }

    #[test]
    fn status_shows_each_counter_of_the_balloon_session() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 4096));
        let counters = &vm.balloon.counters;
        let all = [
            &counters.inflated_pages,
            &counters.deflated_pages,
            &counters.refused_pages,
            &counters.invalid_pages,
            &counters.resets,
            &counters.reliefs,
            &counters.mismatches,
            &counters.throttles,
            &counters.reported_pages,
            &counters.messages_in,
            &counters.messages_out,
            &counters.bytes,
        ];
        for (number, counter) in (1..).zip(all) {
            counter.store(number, Ordering::Relaxed);
        }
        let expected = BalloonSessionStatus {
            inflated_pages: Pages(1),
            deflated_pages: Pages(2),
            refused_pages: Pages(3),
            invalid_pages: Pages(4),
            resets: 5,
            reliefs: 6,
            mismatches: 7,
            throttles: 8,
            reported_pages: Pages(9),
            messages: 10 + 11,
            message_bytes: Bytes(12),
        };
        assert_eq!(vm_status(&vm, 0).balloon.session, expected);
    }

    #[test]
    fn rates_are_those_of_the_latest_five_seconds_and_decide_the_health() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 4096));
        let start = Instant::now();
        let at = |seconds| {
            note_rates(&vm, 0, start + Duration::from_secs(seconds));
            vm_status(&vm, 0)
        };
        assert_eq!(at(0).rates, VmRates::default());
        vm.vm.stats.evict_zip.add(10);
        assert_eq!(at(4).rates.zip_bytes_per_s, 0.0, "the interval runs");
        let status = at(5);
        assert_eq!(status.rates.zip_bytes_per_s, 8192.0);
        assert_eq!(status.health.reading, Reading::Good, "{:?}", status.health);
        let status = at(10);
        assert_eq!(status.rates, VmRates::default());
        assert_eq!(
            status.health.reading,
            Reading::Awesome,
            "{:?}",
            status.health
        );
    }
}
