//! A host with two VMs for tests. Its numbers differ enough to be told apart in a table.

use super::*;
use crate::units::{Bytes, Pages, VmId};

/// MiB as pages.
const fn mib(mib: u64) -> Pages {
    Bytes::from_mib(mib).pages()
}

fn activity() -> ActivityStatus {
    ActivityStatus {
        active_pages: Some(mib(31)),
        active_percent: 12,
        slow_percent: 12,
        fast_percent: 8,
        next_percent: 9,
        referenced_pages: Some(mib(35)),
    }
}

fn faults() -> FaultStatus {
    FaultStatus {
        first_touch: 30_000,
        refill_zip: 100,
        refill_swap: 3,
        cow_break: 17,
        inline: 3,
        pop: 0,
        parked: 4,
        latency: Some(LatencyStatus {
            p50_us: 11,
            p99_us: 240,
        }),
    }
}

fn stalls() -> StallStatus {
    StallStatus {
        first_touch_us: 331_000,
        refill_zip_us: 4_200,
        refill_swap_us: 390,
        cow_break_us: 1_040,
        open_us: 77,
        blocked_us: 2_500_000,
        memory_us: 61_000,
        busy_us: 820,
        stalled_us: 2_800_000,
        latency_percent: 12.34,
        latency_minute_percent: 5.06,
    }
}

fn balloon(id: u32, homes: &Homes) -> BalloonStatus {
    BalloonStatus {
        agent: id == 1,
        waited_for: id == 1,
        size_pages: homes.ballooned_pages,
        target_pages: Pages(homes.ballooned_pages.0 + if id == 1 { 2560 } else { 0 }),
        max_pages: mib(166),
        manual_pages: None,
        double_paged: 6,
        session: BalloonSessionStatus {
            inflated_pages: Pages(26_000),
            deflated_pages: Pages(400),
            refused_pages: Pages(12),
            invalid_pages: Pages(1),
            resets: 2,
            reliefs: 5,
            mismatches: 3,
            throttles: 7,
            reported_pages: Pages(90),
            messages: 400,
            message_bytes: Bytes(9000),
        },
    }
}

fn sharing(homes: &Homes) -> SharingStatus {
    let resident = homes.resident_pages.0;
    SharingStatus {
        shared_pages: homes.shared_pages,
        zero_pages: homes.zero_pages,
        untouched_pages: homes.untouched_pages,
        ballooned_pages: homes.ballooned_pages,
        compressed_pages: homes.compressed_pages,
        swapped_pages: homes.swapped_pages,
        unscanned_pages: Pages(200),
        volatile_pages: Pages(310),
        unique_pages: Pages(resident - 200 - 310 - 40 - 30 - 20 - 1024 - 1),
        other_salt_pages: Pages(40),
        vma_budget_pages: Pages(30),
        no_memory_pages: Pages(20),
        large_pages: Pages(1024),
        moving_pages: Pages(1),
        off_pages: Pages(0),
    }
}

fn swap(homes: &Homes) -> SwapStatus {
    SwapStatus {
        slots: homes.swapped_pages.0,
        target_pages: mib(5),
        reads: 3,
        writes: 9,
        in_bytes: Bytes(3 << 12),
        out_bytes: Bytes::from_mib(4),
        errors: 2,
        cached_pages: Pages(300),
        cache_in_bytes: Bytes(5 << 12),
        cache_out_bytes: Bytes::from_mib(2),
        cache_errors: 1,
        demoted: 200,
        unswapped: 4,
        unswap_rate: 256,
    }
}

fn evict() -> EvictStatus {
    EvictStatus {
        to_zip: 2_000,
        to_swap: 1_000,
        incompressible: 900,
        spilled: 100,
        cold: 1_400,
        cold_back: 30,
        early_refaults: 80,
        ..EvictStatus::default()
    }
}

fn vm(id: u32, name: &str, homes: Homes) -> VmStatus {
    let mut vm = VmStatus {
        id: VmId(id),
        name: name.to_owned(),
        pid: 4000 + id,
        engine: "uffd".to_owned(),
        workload: "kv".to_owned(),
        uptime_ms: 60_000,
        health: Health::default(),
        rates: VmRates {
            swap_out_bytes_per_s: 524_288.0,
            ..VmRates::default()
        },
        configured_pages: homes.total(),
        granted_pages: Pages(homes.resident_pages.0 + homes.shared_pages.0 + homes.zero_pages.0),
        consumed_pages: homes.resident_pages,
        saved_pages: Pages(homes.shared_pages.0 * 3 / 4),
        break_cost_pages: Pages(homes.shared_pages.0 - 900),
        sharing: sharing(&homes),
        hinted_pages: Pages(300 + u64::from(id) * 70),
        overhead_pages: mib(1),
        zip_pages: Pages(homes.compressed_pages.0 / 2),
        zip: ZipStatus {
            cap_pages: mib(64),
            limit_pages: mib(12),
            oldest_save_us: 4,
            ram_saves_us: 920,
        },
        credit_pages: Pages(0),
        kernel_pages: homes.resident_pages,
        process_bytes: Some(Bytes::from_mib(3)),
        placed_on: Some(1),
        homes,
        pool: if id == 1 { "prod" } else { "root" }.to_owned(),
        allocation: AllocationStatus {
            reservation_pages: mib(16),
            limit_pages: None,
            shares: 2560,
            target_pages: mib(120),
            entitlement_pages: mib(130),
        },
        activity: activity(),
        balloon: balloon(id, &homes),
        guest: GuestClaims::default(),
        swap: swap(&homes),
        faults: faults(),
        stalls: stalls(),
        scan: ScanStatus {
            pages_scanned: 70_000,
            merged: 9_000,
            attached: 600,
            zero_found: 2_000,
            volatile: 120,
            passes: 41,
            settled: id == 1,
        },
        evict: evict(),
        large: LargeStatus {
            pages: Pages(1024),
            made: 9,
            broken: 7,
        },
        vmas: 120,
        vma_budget: 8_000,
        blocked: id == 2,
        salt_set: false,
    };
    vm.health = Health::of_vm(&vm);
    vm
}

/// The root, and a pool with one of the VMs.
fn pools() -> Vec<PoolStatus> {
    let root = PoolStatus {
        name: "root".to_owned(),
        inner_shares: 165_120,
        vms: 2,
        allocated_pages: mib(150),
        target_pages: mib(200),
        promised_pages: mib(32),
        unreserved_pages: mib(205),
        ..PoolStatus::default()
    };
    let prod = PoolStatus {
        name: "prod".to_owned(),
        parent: Some("root".to_owned()),
        shares: 163_840,
        counted_shares: 163_840,
        inner_shares: 2560,
        reservation_pages: mib(24),
        limit_pages: Some(mib(192)),
        expandable: true,
        scalable_shares: false,
        vms: 1,
        allocated_pages: mib(115),
        target_pages: mib(140),
        promised_pages: mib(16),
        unreserved_pages: mib(176),
        limited: false,
    };
    vec![root, prod]
}

fn machine() -> MachineStatus {
    MachineStatus {
        budget: "auto".to_owned(),
        memory_bytes: Some(Bytes::from_mib(8192)),
        limit_bytes: Some(Bytes::from_mib(352)),
        cgroup: Some("/sys/fs/cgroup/memvisor".to_owned()),
        overhead_bytes: Bytes::from_mib(96),
        daemon_bytes: Some(Bytes::from_mib(14)),
        guests_bytes: Bytes::from_mib(6),
        pressure: Some(PressureStatus {
            cgroup: None,
            some: PressureLevel {
                ten_seconds_percent: 1.5,
                minute_percent: 0.25,
                total_us: 83_000,
            },
            full: PressureLevel {
                ten_seconds_percent: 0.5,
                minute_percent: 0.1,
                total_us: 55_000,
            },
        }),
    }
}

/// A host of 256 MiB with two guests, of 256 and 128 MiB, in the soft state.
pub(crate) fn host() -> HostStatus {
    let first = Homes {
        untouched_pages: mib(16),
        zero_pages: mib(20),
        resident_pages: mib(70),
        shared_pages: mib(40),
        compressed_pages: mib(10),
        swapped_pages: Pages(0),
        ballooned_pages: mib(100),
    };
    let second = Homes {
        untouched_pages: mib(84),
        resident_pages: mib(18),
        shared_pages: Pages(5_632),
        swapped_pages: mib(4),
        ..Homes::default()
    };
    let vms = vec![vm(1, "web", first), vm(2, "database-primary-01", second)];
    let mut host = HostStatus {
        version: "0.1.0".to_owned(),
        pid: 4000,
        engine: "uffd".to_owned(),
        policy: "esx".to_owned(),
        balloon_law: "esx".to_owned(),
        uptime_ms: 3_725_000,
        health: Health::default(),
        budget_pages: mib(256),
        used_pages: mib(211),
        free_pages: mib(45),
        metadata_pages: mib(3),
        reserved_pages: mib(32),
        unreserved_pages: mib(205),
        free_state: FreeState::Soft,
        thresholds: Thresholds {
            min_free_pages: mib(15),
            high_pages: mib(15),
            soft_pages: mib(10),
            hard_pages: mib(5),
            low_pages: mib(2),
        },
        overcommit: Overcommit {
            now_percent: 50,
            one_minute_percent: 48,
            five_minutes_percent: 31,
            fifteen_minutes_percent: 12,
        },
        share: ShareStatus {
            shared_pages: Pages(15_872),
            frames: Pages(3_968),
            saved_pages: Pages(11_904),
            break_cost_pages: Pages(11_904),
            reserve_pages: Pages(1_190),
            hints: 812,
            pool_pages: Pages(3_968),
            settled_vms: 1,
            settled: false,
        },
        swap_cache: SwapCacheStatus {
            size_pages: mib(64),
            taken_pages: mib(3),
        },
        totals: Totals::of(&vms),
        machine: machine(),
        pools: pools(),
        vms,
    };
    host.health = Health::of_host(&host);
    host
}
