//! Everything that is derived from snapshots: rates and savings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::host::HostStatus;
use super::vm::VmStatus;
use crate::units::{PAGE_SIZE, Pages, VmId};

/// How fast the counters of one VM, or of all, moved between two snapshots.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmRates {
    /// Faults of every kind, per second.
    pub faults_per_s: f64,
    /// Shared pages broken by a write, per second.
    pub breaks_per_s: f64,
    /// Pages the sharing scanner scanned, per second.
    pub scanned_per_s: f64,
    /// Pages shared per second: by the scanner, when they were evicted, or because their guest asked for it.
    pub merged_per_s: f64,
    /// Guest memory compressed, in bytes a second (ESX: ZIP/s).
    pub zip_bytes_per_s: f64,
    /// Guest memory decompressed on a fault, in bytes a second (ESX: UNZIP/s).
    pub unzip_bytes_per_s: f64,
    /// Read from swap files, in bytes a second (ESX: SWR/s).
    pub swap_in_bytes_per_s: f64,
    /// Written to swap files, in bytes a second (ESX: SWW/s).
    pub swap_out_bytes_per_s: f64,
    /// Bytes read from the host cache.
    pub cache_in_bytes_per_s: f64,
    /// Bytes written to the host cache.
    pub cache_out_bytes_per_s: f64,
    /// Time in which at least one thread stood still because of the host, in percent; at most 100 for one VM.
    pub stalled_percent: f64,
    /// For how long threads stood still, by cause.
    pub stalls: StallRates,
}

/// For how long threads stood still, in milliseconds per second. The times of all threads are added up.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StallRates {
    /// They were given pages of zeroes.
    pub first_touch_ms_per_s: f64,
    /// Pages were brought back from compression caches.
    pub refill_zip_ms_per_s: f64,
    /// Pages were brought back from swap files.
    pub refill_swap_ms_per_s: f64,
    /// Shared pages were copied.
    pub cow_break_ms_per_s: f64,
    /// Pages that were resident were opened, or were being moved.
    pub moved_ms_per_s: f64,
    /// The state of the host, or a limit, made them wait.
    pub blocked_ms_per_s: f64,
    /// No page of the host was free.
    pub memory_ms_per_s: f64,
    /// They waited for the swap devices of their guests, as the guests say.
    pub guest_swap_ms_per_s: f64,
}

impl StallRates {
    fn between(old: &VmStatus, new: &VmStatus, interval_ms: u64) -> Self {
        let rate = |counter: fn(&VmStatus) -> u64| {
            per_second(counter(new).saturating_sub(counter(old)), interval_ms) / 1000.0
        };
        // The first value that a guest reports counts since its boot, so it is no rate.
        let said = (old.guest.swap_wait_us, new.guest.swap_wait_us);
        let guest_swap = match said {
            (Some(old), Some(new)) => per_second(new.saturating_sub(old), interval_ms) / 1000.0,
            _ => 0.0,
        };
        Self {
            first_touch_ms_per_s: rate(|vm| vm.stalls.first_touch_us),
            refill_zip_ms_per_s: rate(|vm| vm.stalls.refill_zip_us),
            refill_swap_ms_per_s: rate(|vm| vm.stalls.refill_swap_us),
            cow_break_ms_per_s: rate(|vm| vm.stalls.cow_break_us),
            moved_ms_per_s: rate(|vm| vm.stalls.open_us + vm.stalls.busy_us),
            blocked_ms_per_s: rate(|vm| vm.stalls.blocked_us),
            memory_ms_per_s: rate(|vm| vm.stalls.memory_us),
            guest_swap_ms_per_s: guest_swap,
        }
    }

    fn add(&mut self, other: &Self) {
        self.first_touch_ms_per_s += other.first_touch_ms_per_s;
        self.refill_zip_ms_per_s += other.refill_zip_ms_per_s;
        self.refill_swap_ms_per_s += other.refill_swap_ms_per_s;
        self.cow_break_ms_per_s += other.cow_break_ms_per_s;
        self.moved_ms_per_s += other.moved_ms_per_s;
        self.blocked_ms_per_s += other.blocked_ms_per_s;
        self.memory_ms_per_s += other.memory_ms_per_s;
        self.guest_swap_ms_per_s += other.guest_swap_ms_per_s;
    }
}

/// The time over which the daemon measures rates itself; see [`VmStatus::rates`].
const TOLD_MS: u64 = 5000;

/// The rates between two snapshots of one daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Rates {
    /// Time between the snapshots in milliseconds; 0 if they cannot be compared.
    pub interval_ms: u64,
    /// Sums over the VMs below.
    pub total: VmRates,
    /// Each VM that is in both snapshots.
    pub vms: BTreeMap<VmId, VmRates>,
}

impl Rates {
    /// The rates that the daemon measured over its latest five seconds, as `status` has them.
    #[must_use]
    pub fn told(status: &HostStatus) -> Self {
        let mut rates = Self {
            interval_ms: TOLD_MS,
            ..Self::default()
        };
        for vm in &status.vms {
            rates.total.add(&vm.rates);
            rates.vms.insert(vm.id, vm.rates);
        }
        rates
    }

    /// The rates from `old` to `new`.
    ///
    /// They are empty where the two cannot be compared: they are of different daemons, or there is no time between
    /// them. A VM that is only in one snapshot has no rates, and a counter that went back has the rate 0.
    #[must_use]
    pub fn between(old: &HostStatus, new: &HostStatus) -> Self {
        let interval_ms = new.uptime_ms.saturating_sub(old.uptime_ms);
        if old.pid != new.pid || interval_ms == 0 {
            return Self::default();
        }
        let before: BTreeMap<VmId, &VmStatus> = old.vms.iter().map(|vm| (vm.id, vm)).collect();
        let mut rates = Self {
            interval_ms,
            ..Self::default()
        };
        for vm in &new.vms {
            if let Some(earlier) = before.get(&vm.id) {
                let moved = VmRates::between(earlier, vm, interval_ms);
                rates.total.add(&moved);
                rates.vms.insert(vm.id, moved);
            }
        }
        rates
    }
}

impl VmRates {
    /// The rates of one VM from `old` to `new`, between which are `interval_ms`.
    #[must_use]
    pub fn between(old: &VmStatus, new: &VmStatus, interval_ms: u64) -> Self {
        let rate = |counter: fn(&VmStatus) -> u64| {
            per_second(counter(new).saturating_sub(counter(old)), interval_ms)
        };
        let page = PAGE_SIZE as f64;
        Self {
            faults_per_s: rate(|vm| vm.faults.served()),
            breaks_per_s: rate(|vm| vm.faults.cow_break),
            scanned_per_s: rate(|vm| vm.scan.pages_scanned),
            merged_per_s: rate(|vm| vm.scan.merged + vm.scan.attached + vm.evict.to_shared),
            zip_bytes_per_s: rate(|vm| vm.evict.to_zip) * page,
            unzip_bytes_per_s: rate(|vm| vm.faults.refill_zip) * page,
            swap_in_bytes_per_s: rate(|vm| vm.swap.in_bytes.0),
            swap_out_bytes_per_s: rate(|vm| vm.swap.out_bytes.0),
            cache_in_bytes_per_s: rate(|vm| vm.swap.cache_in_bytes.0),
            cache_out_bytes_per_s: rate(|vm| vm.swap.cache_out_bytes.0),
            // A percent of a second is 10 000 microseconds.
            stalled_percent: rate(|vm| vm.stalls.stalled_us) / 10_000.0,
            stalls: StallRates::between(old, new, interval_ms),
        }
    }

    fn add(&mut self, other: &Self) {
        self.faults_per_s += other.faults_per_s;
        self.breaks_per_s += other.breaks_per_s;
        self.scanned_per_s += other.scanned_per_s;
        self.merged_per_s += other.merged_per_s;
        self.zip_bytes_per_s += other.zip_bytes_per_s;
        self.unzip_bytes_per_s += other.unzip_bytes_per_s;
        self.swap_in_bytes_per_s += other.swap_in_bytes_per_s;
        self.swap_out_bytes_per_s += other.swap_out_bytes_per_s;
        self.cache_in_bytes_per_s += other.cache_in_bytes_per_s;
        self.cache_out_bytes_per_s += other.cache_out_bytes_per_s;
        self.stalled_percent += other.stalled_percent;
        self.stalls.add(&other.stalls);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is read by people; 53 bits are plenty"
)]
fn per_second(count: u64, interval_ms: u64) -> f64 {
    count as f64 * 1000.0 / interval_ms.max(1) as f64
}

/// Host memory each mechanism saves at the moment of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Savings {
    /// Shared guest pages less the frames behind them.
    pub sharing_pages: Pages,
    /// Pages that hold zeroes and need no memory for it.
    pub zero_pages: Pages,
    /// Compressed pages less the memory of the caches.
    pub compression_pages: Pages,
    /// Pages in swap files.
    pub swap_pages: Pages,
    /// Pages the guests gave up.
    pub balloon_pages: Pages,
}

impl Savings {
    /// What the mechanisms save in `status`.
    #[must_use]
    pub const fn of(status: &HostStatus) -> Self {
        let homes = &status.totals.homes;
        Self {
            sharing_pages: status.share.saved_pages,
            zero_pages: homes.zero_pages,
            compression_pages: homes
                .compressed_pages
                .saturating_sub(status.totals.zip_pages),
            swap_pages: homes.swapped_pages,
            balloon_pages: homes.ballooned_pages,
        }
    }

    /// The larger saving of the two, mechanism by mechanism.
    #[must_use]
    pub fn max_each(self, other: Self) -> Self {
        Self {
            sharing_pages: self.sharing_pages.max(other.sharing_pages),
            zero_pages: self.zero_pages.max(other.zero_pages),
            compression_pages: self.compression_pages.max(other.compression_pages),
            swap_pages: self.swap_pages.max(other.swap_pages),
            balloon_pages: self.balloon_pages.max(other.balloon_pages),
        }
    }

    /// Every mechanism's name and saving, in the order in which the host prefers them.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, Pages); 5] {
        [
            ("sharing", self.sharing_pages),
            ("zero pages", self.zero_pages),
            ("balloon", self.balloon_pages),
            ("compression", self.compression_pages),
            ("swap", self.swap_pages),
        ]
    }

    /// All mechanisms together.
    #[must_use]
    pub fn total(&self) -> Pages {
        Pages(self.each().iter().map(|(_, pages)| pages.0).sum())
    }
}

/// How far a host is overcommitted, as esxtop counts it: configured guest memory divided by the budget, less 1;
/// 0 where the guests fit.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio is read by people; 53 bits are plenty"
)]
pub fn overcommit(configured: Pages, budget: Pages) -> f64 {
    (configured.0 as f64 / budget.0.max(1) as f64 - 1.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::units::Bytes;

    #[test]
    fn rates_of_two_snapshots_are_differences_by_time() {
        let mut old = fixture::host();
        old.vms[1].guest.swap_wait_us = Some(1_000);
        let mut new = old.clone();
        new.uptime_ms += 2000;
        new.vms[0].guest.swap_wait_us = Some(9_000);
        new.vms[0].faults.cow_break += 10;
        new.vms[0].faults.first_touch += 30;
        new.vms[1].swap.in_bytes.0 += 8192;
        new.vms[1].evict.to_zip += 4;
        new.vms[0].stalls.stalled_us += 500_000;
        new.vms[1].stalls.stalled_us += 1_000_000;
        new.vms[0].stalls.blocked_us += 600_000;
        new.vms[0].stalls.busy_us += 2_000;
        new.vms[1].guest.swap_wait_us = Some(5_000);
        let rates = Rates::between(&old, &new);
        assert_eq!(rates.interval_ms, 2000);
        assert_eq!(rates.vms[&VmId(1)].faults_per_s, 20.0);
        assert_eq!(rates.vms[&VmId(1)].breaks_per_s, 5.0);
        assert_eq!(rates.total.swap_in_bytes_per_s, 4096.0);
        assert_eq!(rates.total.zip_bytes_per_s, 8192.0);
        assert_eq!(rates.total.faults_per_s, 20.0);
        assert_eq!(rates.vms[&VmId(1)].stalled_percent, 25.0);
        assert_eq!(rates.total.stalled_percent, 75.0);
        let stalls = rates.total.stalls;
        assert_eq!(stalls.blocked_ms_per_s, 300.0);
        assert_eq!(stalls.moved_ms_per_s, 1.0);
        assert_eq!(stalls.guest_swap_ms_per_s, 2.0);
    }

    #[test]
    fn rates_of_a_new_vm_or_a_counter_that_fell_are_zero() {
        let mut old = fixture::host();
        let mut new = old.clone();
        new.uptime_ms += 1000;
        old.vms.remove(1);
        old.vms[0].swap.out_bytes = Bytes(u64::MAX);
        let rates = Rates::between(&old, &new);
        assert_eq!(rates.vms.len(), 1);
        assert_eq!(rates.total, VmRates::default());
    }

    #[test]
    fn rates_across_a_restart_or_without_time_are_empty() {
        let old = fixture::host();
        let mut restarted = old.clone();
        restarted.pid += 1;
        restarted.uptime_ms += 1000;
        assert_eq!(Rates::between(&old, &restarted), Rates::default());
        assert_eq!(Rates::between(&old, &old), Rates::default());
    }

    #[test]
    fn savings_of_the_fixture_add_up_by_hand() {
        let status = fixture::host();
        let savings = Savings::of(&status);
        assert_eq!(savings.sharing_pages, Pages(11_904));
        assert_eq!(savings.zero_pages, Pages(5_120));
        assert_eq!(savings.compression_pages, Pages(1_280));
        assert_eq!(savings.swap_pages, Pages(1_024));
        assert_eq!(savings.balloon_pages, Pages(25_600));
        assert_eq!(savings.total(), Pages(44_928));
        let totals = &status.totals;
        assert_eq!(
            overcommit(totals.configured_pages, status.budget_pages),
            0.5
        );
        assert_eq!(
            overcommit(status.budget_pages, totals.configured_pages),
            0.0
        );
    }

    #[test]
    fn totals_of_homes_equal_configured() {
        let status = fixture::host();
        assert_eq!(status.totals.homes.total(), status.totals.configured_pages);
        for vm in &status.vms {
            assert_eq!(vm.homes.total(), vm.configured_pages, "{}", vm.name);
        }
    }

    #[test]
    fn status_survives_json() {
        let status = fixture::host();
        let json = serde_json::to_string(&status).expect("plain data");
        let back: HostStatus = serde_json::from_str(&json).expect("own output");
        assert_eq!(back, status);
        assert!(json.contains(r#""free_state":"soft""#), "{json}");
    }
}
