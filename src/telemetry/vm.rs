//! What one VM looks like from outside.

use serde::{Deserialize, Serialize};

use super::balloon::BalloonSessionStatus;
use super::health::Health;
use super::model::VmRates;
use super::sharing::{LargeStatus, ScanStatus, SharingStatus};
use super::swap::SwapStatus;
use crate::units::{Bytes, Pages, VmId};

/// How many pages of a VM have each home; the seven numbers add up to the configured size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Homes {
    /// Never written: zeroes that cost nothing.
    pub untouched_pages: Pages,
    /// Written and later found to be all zero: cost nothing.
    pub zero_pages: Pages,
    /// In the VM's own RAM, one host page each.
    pub resident_pages: Pages,
    /// Mapped onto a frame of the share pool.
    pub shared_pages: Pages,
    /// In the compression cache.
    pub compressed_pages: Pages,
    /// In the swap file.
    pub swapped_pages: Pages,
    /// Given up by the guest to its balloon.
    pub ballooned_pages: Pages,
}

impl Homes {
    /// All pages, which is the configured size of the VM.
    #[must_use]
    pub fn total(&self) -> Pages {
        Pages(self.each().iter().map(|(_, pages)| pages.0).sum())
    }

    /// Every home's name and count, those that cost memory first.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, Pages); 7] {
        [
            ("resident", self.resident_pages),
            ("shared", self.shared_pages),
            ("compressed", self.compressed_pages),
            ("zero", self.zero_pages),
            ("swapped", self.swapped_pages),
            ("ballooned", self.ballooned_pages),
            ("untouched", self.untouched_pages),
        ]
    }

    /// Adds another VM's pages, home by home.
    pub(super) fn add(&mut self, other: &Self) {
        self.untouched_pages.0 += other.untouched_pages.0;
        self.zero_pages.0 += other.zero_pages.0;
        self.resident_pages.0 += other.resident_pages.0;
        self.shared_pages.0 += other.shared_pages.0;
        self.compressed_pages.0 += other.compressed_pages.0;
        self.swapped_pages.0 += other.swapped_pages.0;
        self.ballooned_pages.0 += other.ballooned_pages.0;
    }
}

/// What the VM may have by its settings, and what the policy wants it to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocationStatus {
    /// Memory the VM is guaranteed (ESX: AMIN).
    pub reservation_pages: Pages,
    /// Memory the VM never exceeds; `None` means its configured size (ESX: AMAX).
    pub limit_pages: Option<Pages>,
    /// Its weight when memory is divided (ESX: ASHRS).
    pub shares: u64,
    /// Memory the policy wants it to have now (ESX: SZTGT).
    pub target_pages: Pages,
    /// Memory it could have now if it wanted more: at least the target (vCenter: entitlement).
    pub entitlement_pages: Pages,
}

/// How much of its memory a VM is estimated to use. Percentages are of its configured size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActivityStatus {
    /// The estimate; `None` until the first period of sampling has ended (ESX: TCHD).
    pub active_pages: Option<Pages>,
    /// The estimate (ESX: %ACTV).
    pub active_percent: u32,
    /// The slow average (ESX: %ACTVS).
    pub slow_percent: u32,
    /// The fast average (ESX: %ACTVF).
    pub fast_percent: u32,
    /// The fast average with the unfinished period (ESX: %ACTVN).
    pub next_percent: u32,
    /// Memory of the guest's process that its page tables say was accessed in the latest period; `None`
    /// unless somebody looked in the period before.
    pub referenced_pages: Option<Pages>,
}

/// The balloon of one VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BalloonStatus {
    /// Whether a balloon agent is connected (ESX: MCTL?).
    pub agent: bool,
    /// Whether the policy counts on it: it is at its target, or has come closer within the last polls.
    pub waited_for: bool,
    /// Pages in the balloon now (ESX: MCTLSZ).
    pub size_pages: Pages,
    /// Size the agent is asked to reach; without an agent, the size it has (ESX: MCTLTGT).
    pub target_pages: Pages,
    /// The most the balloon may take: nothing of the reservation (ESX: MCTLMAX).
    pub max_pages: Pages,
    /// The target an operator set by hand; `None` while the policy decides.
    pub manual_pages: Option<Pages>,
    /// Pages so far that the guest gave up just after the host had brought them back from a store:
    /// both paged the same page.
    pub double_paged: u64,
    /// What the sessions with its agents have seen.
    pub session: BalloonSessionStatus,
}

/// What the guest says about itself; `None` where it has not said. Sizes are clamped to the RAM of the VM,
/// and to the total that it claims; counters are since its boot and cannot be checked. Nothing is decided
/// by any of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GuestClaims {
    /// Memory the guest can use, without its balloon.
    pub total_bytes: Option<Bytes>,
    /// Memory that holds nothing.
    pub free_bytes: Option<Bytes>,
    /// Memory that could be had without paging.
    pub available_bytes: Option<Bytes>,
    /// Its file cache.
    pub cache_bytes: Option<Bytes>,
    /// Read from its own swap device.
    pub swap_in_bytes: Option<Bytes>,
    /// Written to its own swap device.
    pub swap_out_bytes: Option<Bytes>,
    /// Its page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Its page faults that did not.
    pub minor_faults: Option<u64>,
    /// Its processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Microseconds that its threads waited for its own swap device.
    pub swap_wait_us: Option<u64>,
}

/// How large the compression cache of one VM may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ZipStatus {
    /// The most host pages that the settings let it have.
    pub cap_pages: Pages,
    /// The host pages above which its oldest pages move on to the swap file (ESX: CACHESZ).
    pub limit_pages: Pages,
    /// Microseconds of standing still that a MiB of the cache saves its VM each second if it holds the oldest pages, or
    /// pages that have left; 0 unless the cache keeps only pages that pay.
    pub oldest_save_us: u64,
    /// The same of a MiB of RAM for pages that are in the cache. The cache shrinks while this is more than twice as much.
    pub ram_saves_us: u64,
}

/// How long faults of one VM took, from their arrival at the daemon to the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LatencyStatus {
    /// Half of the faults took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 % of the faults took no longer, in microseconds.
    pub p99_us: u64,
}

/// Faults of one VM so far, by what had to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FaultStatus {
    /// First accesses to pages that were untouched or zero.
    pub first_touch: u64,
    /// Pages brought back from the compression cache.
    pub refill_zip: u64,
    /// Pages brought back from the swap file.
    pub refill_swap: u64,
    /// Shared pages copied because the guest wrote to them.
    pub cow_break: u64,
    /// Those of `first_touch`, `refill_zip`, `refill_swap` and `cow_break` that the guest served itself.
    pub inline: u64,
    /// Accesses to ballooned pages, each of which popped the balloon.
    pub pop: u64,
    /// Faults that had to wait: for a frozen page, for memory, or because the VM was blocked.
    pub parked: u64,
    /// Latency since the VM started; `None` before the first fault.
    pub latency: Option<LatencyStatus>,
}

impl FaultStatus {
    /// All faults that were answered; parked ones are among them already.
    #[must_use]
    pub const fn served(&self) -> u64 {
        self.first_touch + self.refill_zip + self.refill_swap + self.cow_break + self.pop
    }
}

/// For how long threads of one VM stood still so far because of the host: microseconds of all threads, each by itself,
/// of stalls under way too.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StallStatus {
    /// They were given pages of zeroes.
    pub first_touch_us: u64,
    /// Pages were brought back from the compression cache.
    pub refill_zip_us: u64,
    /// Pages were brought back from the swap file.
    pub refill_swap_us: u64,
    /// Shared pages were copied.
    pub cow_break_us: u64,
    /// Pages were opened that were there: closed to sample them, or for a move that was given up.
    pub open_us: u64,
    /// The state of the host, or the limit of the VM, had them wait.
    pub blocked_us: u64,
    /// No page of the host was free.
    pub memory_us: u64,
    /// Their pages were being moved.
    pub busy_us: u64,
    /// Time in which at least one of them stood still: never more than has passed.
    pub stalled_us: u64,
    /// `stalled_us` in percent of the latest five seconds (vCenter: memory latency).
    pub latency_percent: f64,
    /// The same on average over the latest minute.
    pub latency_minute_percent: f64,
}

impl StallStatus {
    /// Every cause's name and time.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, u64); 8] {
        [
            ("first touch", self.first_touch_us),
            ("from zip", self.refill_zip_us),
            ("from swap", self.refill_swap_us),
            ("copy-on-write", self.cow_break_us),
            ("opened", self.open_us),
            ("blocked", self.blocked_us),
            ("no memory", self.memory_us),
            ("busy", self.busy_us),
        ]
    }
}

/// Where reclaimed pages of one VM went so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvictStatus {
    /// Found all zero: dropped.
    pub to_zero: u64,
    /// Found equal to a shared frame: shared.
    pub to_shared: u64,
    /// Compressed.
    pub to_zip: u64,
    /// Written to the swap file.
    pub to_swap: u64,
    /// Pages that did not compress to half a page or less.
    pub incompressible: u64,
    /// Old compressed pages moved on to the swap file because the cache was full or too large.
    pub spilled: u64,
    /// Pages that stayed because the guest touched them meanwhile or storing them failed.
    pub given_up: u64,
    /// Of the evicted pages, those that left because their guest had not touched them for long.
    pub cold: u64,
    /// Pages that left for that and went to a store, and that the guest wanted back.
    pub cold_back: u64,
    /// Pages that the guest wanted back when they had just left: among the latest that left RAM for a store, an eighth
    /// to a quarter as many as the VM holds.
    pub early_refaults: u64,
}

/// One VM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmStatus {
    /// The number of the VM, unique in the life of the daemon.
    pub id: VmId,
    /// Its name, unique among running VMs.
    pub name: String,
    /// The process id of the guest.
    pub pid: u32,
    /// The engine that handles its faults: `uffd` or `mprotect`.
    pub engine: String,
    /// What it runs, as it said at its power-on.
    pub workload: String,
    /// Milliseconds since its power-on.
    pub uptime_ms: u64,
    /// How well it is, by what follows.
    pub health: Health,
    /// How fast its counters moved over the latest five seconds that have ended; all 0 before.
    pub rates: VmRates,
    /// Its configured size (ESX: MEMSZ).
    pub configured_pages: Pages,
    /// Where its pages are.
    pub homes: Homes,
    /// Guest pages that can be read without a refill: resident, shared and zero (ESX: GRANT).
    pub granted_pages: Pages,
    /// Host memory it costs: resident, its part of shared frames, compression cache, credits (ESX: CNSM).
    pub consumed_pages: Pages,
    /// What sharing saves, its part: the pages that it shares less its part of the frames (ESX: SHRDSVD).
    pub saved_pages: Pages,
    /// Host pages that it would take if it wrote all its shared pages: one for each, less the frames that nobody else uses.
    pub break_cost_pages: Pages,
    /// Where its pages stand with sharing: why those that are not shared are not.
    pub sharing: SharingStatus,
    /// Its pages that wait as hints for one of equal content (ESX: COWH).
    pub hinted_pages: Pages,
    /// Host memory for its page table and the like, beside what it consumes (ESX: OVHD).
    pub overhead_pages: Pages,
    /// Host pages of its compression cache (ESX: CACHEUSD).
    pub zip_pages: Pages,
    /// How large that may be.
    pub zip: ZipStatus,
    /// Pages that an inline guest holds in advance, for faults that it serves itself.
    pub credit_pages: Pages,
    /// Pages of its RAM and compression cache as the kernel counted them within the latest second; equals
    /// `homes.resident_pages` and `zip_pages` together when idle.
    pub kernel_pages: Pages,
    /// What the guest's process takes beside its RAM: its heap and stacks, and the kernel's page tables for it, looked at
    /// every five seconds. The budget does not count it. `null` where the kernel does not tell, and before the first look.
    pub process_bytes: Option<Bytes>,
    /// The processor to which the host has confined the guest's threads (`Memvisor.PlaceGuests`); `null`: to none.
    pub placed_on: Option<u32>,
    /// The resource pool that it is in.
    pub pool: String,
    /// Reservation, limit, shares and target.
    pub allocation: AllocationStatus,
    /// How much of it is used.
    pub activity: ActivityStatus,
    /// Its balloon.
    pub balloon: BalloonStatus,
    /// What it says about itself.
    pub guest: GuestClaims,
    /// Its swap file.
    pub swap: SwapStatus,
    /// Its faults.
    pub faults: FaultStatus,
    /// For how long they had its threads stand still.
    pub stalls: StallStatus,
    /// How its pages came to be shared, and what the sharing scanner did.
    pub scan: ScanStatus,
    /// Where its reclaimed pages went.
    pub evict: EvictStatus,
    /// Its large pages.
    pub large: LargeStatus,
    /// Mappings of the guest process that sharing has cost so far, of `vma_budget`.
    pub vmas: u64,
    /// The most mappings sharing may cost this guest.
    pub vma_budget: u64,
    /// Whether it is stopped at its next fault because the host is in the low state.
    pub blocked: bool,
    /// Whether it has a salt, so that it shares only with VMs of the same salt.
    pub salt_set: bool,
}
