//! What the host looks like from outside.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::health::Health;
use super::sharing::SharingStatus;
use super::swap::SwapCacheStatus;
use super::vm::{Homes, VmStatus};
use crate::units::{Bytes, Pages};

/// How short of free memory the host is, from plenty to none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FreeState {
    /// Enough: only background sharing runs.
    High,
    /// As high, but less than four times what is to be kept is free. In generation 6.0 only.
    Clear,
    /// Balloons are inflated.
    Soft,
    /// Pages are compressed and swapped.
    Hard,
    /// As hard, and VMs above their target are blocked.
    Low,
}

impl fmt::Display for FreeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Clear => "clear",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

/// Free memory below which each state is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Thresholds {
    /// Free memory the host aims to keep (ESX: VMKMEM minfree).
    pub min_free_pages: Pages,
    /// At this or above, the state is high: what is to be kept, in generation 6.0 four times as much.
    pub high_pages: Pages,
    /// Below this, soft.
    pub soft_pages: Pages,
    /// Below this, hard.
    pub hard_pages: Pages,
    /// Below this, low.
    pub low_pages: Pages,
}

/// Page sharing over all VMs and salts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShareStatus {
    /// Guest pages mapped onto shared frames (ESX: PSHARE shared).
    pub shared_pages: Pages,
    /// Distinct frames behind them (ESX: PSHARE common).
    pub frames: Pages,
    /// Memory saved: `shared_pages` less `frames` (ESX: PSHARE saving).
    pub saved_pages: Pages,
    /// Host pages that it would take if all shared pages were written: each of them but one of each frame, so as many as
    /// are saved.
    pub break_cost_pages: Pages,
    /// What of that is kept free (`Memvisor.ShareReserve`).
    pub reserve_pages: Pages,
    /// Pages seen once, waiting for one of equal content (ESX: COWH).
    pub hints: u64,
    /// Host pages of the pool as the kernel counts them; equals `frames` when idle.
    pub pool_pages: Pages,
    /// VMs in which nothing is left to be shared: [`ScanStatus::settled`](super::ScanStatus::settled).
    pub settled_vms: u64,
    /// Whether all VMs are settled, and there are some.
    pub settled: bool,
}

/// How much more memory the running VMs are configured with than the host may use: their sizes by the
/// budget, less 1; 0 where they fit (ESX: MEM overcommit avg).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Overcommit {
    /// Now.
    pub now_percent: u64,
    /// On average over the latest minute.
    pub one_minute_percent: u64,
    /// On average over the latest five minutes.
    pub five_minutes_percent: u64,
    /// On average over the latest fifteen minutes.
    pub fifteen_minutes_percent: u64,
}

/// Sums over the running VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Configured sizes.
    pub configured_pages: Pages,
    /// Homes of all pages.
    pub homes: Homes,
    /// Where all pages stand with sharing.
    pub sharing: SharingStatus,
    /// Granted memory.
    pub granted_pages: Pages,
    /// Consumed memory.
    pub consumed_pages: Pages,
    /// Host pages of the compression caches.
    pub zip_pages: Pages,
    /// Pages that inline guests hold in advance.
    pub credit_pages: Pages,
    /// Balloon targets.
    pub balloon_target_pages: Pages,
    /// Balloon maxima.
    pub balloon_max_pages: Pages,
    /// Swap targets.
    pub swap_target_pages: Pages,
}

impl Totals {
    /// Adds up the VMs.
    #[must_use]
    pub fn of(vms: &[VmStatus]) -> Self {
        let mut sum = Self::default();
        for vm in vms {
            sum.homes.add(&vm.homes);
            sum.sharing.add(&vm.sharing);
            sum.configured_pages.0 += vm.configured_pages.0;
            sum.granted_pages.0 += vm.granted_pages.0;
            sum.consumed_pages.0 += vm.consumed_pages.0;
            sum.zip_pages.0 += vm.zip_pages.0;
            sum.credit_pages.0 += vm.credit_pages.0;
            sum.balloon_target_pages.0 += vm.balloon.target_pages.0;
            sum.balloon_max_pages.0 += vm.balloon.max_pages.0;
            sum.swap_target_pages.0 += vm.swap.target_pages.0;
        }
        sum
    }
}

/// The machine that the host runs on, as far as memory goes, by a look that is a second old at most.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MachineStatus {
    /// The budget as it was given: a size, a part, or `auto`.
    pub budget: String,
    /// The memory of the machine; `null` where it is not known.
    pub memory_bytes: Option<Bytes>,
    /// The least limit of the daemon's cgroup and those around it; `null`: none that is below that.
    pub limit_bytes: Option<Bytes>,
    /// The cgroup that has that limit.
    pub cgroup: Option<String>,
    /// What a host with this budget may need beside it, and `auto` leaves.
    pub overhead_bytes: Bytes,
    /// The daemon's own memory: its heap and stacks, and the kernel's page tables for it.
    pub daemon_bytes: Option<Bytes>,
    /// The same of all guests' processes, their RAM apart.
    pub guests_bytes: Bytes,
    /// Pressure on memory as the kernel measures it (PSI); `null` where it does not.
    pub pressure: Option<PressureStatus>,
}

/// For how long tasks waited for memory of the machine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PressureStatus {
    /// The cgroup whose tasks are meant; `null`: all of the machine.
    pub cgroup: Option<String>,
    /// At least one task waited.
    pub some: PressureLevel,
    /// All tasks that were not idle waited at once.
    pub full: PressureLevel,
}

/// A part of the time, and the time.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PressureLevel {
    /// The part of the latest ten seconds.
    pub ten_seconds_percent: f64,
    /// The part of the latest minute.
    pub minute_percent: f64,
    /// All of it so far.
    pub total_us: u64,
}

/// The whole host at one moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostStatus {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The engine new guests get: `uffd` or `mprotect`.
    pub engine: String,
    /// The policy by which memory is divided.
    pub policy: String,
    /// The control law by which balloons are led.
    pub balloon_law: String,
    /// Milliseconds since the daemon started.
    pub uptime_ms: u64,
    /// How well the host and its VMs are.
    pub health: Health,
    /// Memory the daemon may use for guests.
    pub budget_pages: Pages,
    /// Memory in use, metadata included.
    pub used_pages: Pages,
    /// Budget less used, never below zero.
    pub free_pages: Pages,
    /// What of the used memory is page tables, indexes and the like.
    pub metadata_pages: Pages,
    /// Memory promised to VMs: the sum of their reservations (ESX: VMKMEM rsvd).
    pub reserved_pages: Pages,
    /// What can still be promised: not reserved, metadata, or to be kept free (ESX: VMKMEM ursvd).
    pub unreserved_pages: Pages,
    /// How short of memory the host is.
    pub free_state: FreeState,
    /// Where the states begin.
    pub thresholds: Thresholds,
    /// How much more was configured than there is.
    pub overcommit: Overcommit,
    /// Page sharing.
    pub share: ShareStatus,
    /// The host cache of swapped pages.
    pub swap_cache: SwapCacheStatus,
    /// Sums over `vms`.
    pub totals: Totals,
    /// The machine that it runs on.
    pub machine: MachineStatus,
    /// The resource pools, the root first and each after its parent.
    pub pools: Vec<PoolStatus>,
    /// The running VMs, in order of their ids.
    pub vms: Vec<VmStatus>,
}

/// A resource pool.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// The pool that it stands in; `null` for the root.
    pub parent: Option<String>,
    /// Its shares as they are set.
    pub shares: u32,
    /// What it counts beside its siblings now: its shares, or what they have grown to.
    pub counted_shares: u32,
    /// The shares of all VMs and pools directly in it.
    pub inner_shares: u64,
    /// What is guaranteed to those in it together.
    pub reservation_pages: Pages,
    /// What they never exceed together; `null`: no limit.
    pub limit_pages: Option<Pages>,
    /// Whether reservations in it that exceed its own are taken from its parent.
    pub expandable: bool,
    /// Whether the shares of the pools directly in it grow with what is in these.
    pub scalable_shares: bool,
    /// How many VMs are in it or in pools in it.
    pub vms: u64,
    /// Guest memory that those VMs hold, shared pages counted in full.
    pub allocated_pages: Pages,
    /// Guest memory that the policy wants them to have.
    pub target_pages: Pages,
    /// What those directly in it are promised.
    pub promised_pages: Pages,
    /// What can still be promised to a VM in it.
    pub unreserved_pages: Pages,
    /// Whether its limit, or one around it, is less than what they want.
    pub limited: bool,
}
