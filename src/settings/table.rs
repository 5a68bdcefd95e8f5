//! The host settings: the one place that knows their names, ranges, defaults and effects.
//!
//! Each has one entry in [`host_settings!`], from which its [`Key`], its [`Spec`] and its field of [`HostSettings`]
//! follow. The command line, the API, `get` and docs/settings.md are made of these.

use std::time::Duration;

use super::choice::{BalloonTakes, CacheKeeps, FaultsWait, ForceSalting};
use super::spec::{Departure, Spec};
use super::value::{FromValue, Kind, Value};
use crate::policy::{Generation, IdleTaxType, Law, law};
use crate::reclaim::victims;
use crate::units::Pages;

/// Declares the host settings. An entry is
///
/// ```text
/// /// What it does.
/// Mem.Name => field: type of the field { group, kind, default of esx, ... }
/// ```
///
/// and the defaults of `lab` and `throughput`, with the reason, where they are others.
macro_rules! host_settings {
    ($(
        $(#[doc = $effect:literal])+
        $prefix:ident.$key:ident => $field:ident: $type:ty {
            group: $group:literal,
            kind: $kind:expr,
            esx: $esx:expr,
            $(lab: $lab:expr => $why_lab:literal,)?
            $(throughput: $throughput:expr => $why_throughput:literal,)?
            $(deviation: $deviation:literal,)?
        }
    )+) => {
        /// A host setting.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Key {
            $($(#[doc = $effect])+ $key,)+
        }

        /// All host settings, in the order of [`Key`].
        pub const TABLE: [Spec; [$(Key::$key),+].len()] = [$(Spec {
            key: Key::$key,
            name: concat!(stringify!($prefix), ".", stringify!($key)),
            group: $group,
            kind: $kind,
            esx: $esx,
            lab: host_settings!(@departure $($lab, $why_lab)?),
            throughput: host_settings!(@departure $($throughput, $why_throughput)?),
            effect: concat!($($effect),+).trim_ascii(),
            deviation: concat!($($deviation)?),
        },)+];

        /// The values of all host settings at one moment. Their units and ranges are those of [`TABLE`].
        #[derive(Clone, Copy, PartialEq, Debug)]
        pub struct HostSettings {
            $(
                #[doc = concat!("`", stringify!($prefix), ".", stringify!($key), "`:")]
                $(#[doc = $effect])+
                pub $field: $type,
            )+
        }

        impl HostSettings {
            /// The settings, each with the value that `value` returns for it.
            ///
            /// # Panics
            /// If a value is not of its setting's kind and range; [`Key::read`] returns no such value.
            #[must_use]
            pub fn of(value: impl Fn(Key) -> Value) -> Self {
                Self { $($field: typed(Key::$key, value(Key::$key)),)+ }
            }
        }
    };
    (@departure) => { None };
    (@departure $value:expr, $why:literal) => {
        Some(Departure { value: $value, why: $why })
    };
}

// Names, defaults and ranges of `Mem.` settings are those that the advanced options of ESXi 6 and later show.
host_settings! {
    /// time in which a whole VM is scanned once for pages to share
    Mem.ShareScanTime => share_scan_time: Duration {
        group: "sharing",
        kind: Kind::time("min", 120, 36_000_000),
        esx: millis(3_600_000),
        lab: millis(3000) => "one wants to see sharing within seconds, not an hour",
        deviation: "ESX allows 10 to 600 min",
    }
    /// the most that is scanned of all VMs together, by the clock of the host's processors; 0 turns scanning off
    Mem.ShareScanGHz => share_scan_ghz: u32 {
        group: "sharing",
        kind: Kind::whole("MB/s per GHz", 0, 32),
        esx: Value::Whole(4),
        lab: Value::Whole(32) => "`Mem.ShareScanTime` alone decides how fast is scanned",
    }
    /// the most that is scanned of one VM; 0 turns scanning off
    Mem.ShareRateMax => share_rate_max: u32 {
        group: "sharing",
        kind: Kind::whole("pages/s", 0, 32_768),
        esx: Value::Whole(1024),
        lab: Value::Whole(32_768) => "`Mem.ShareScanTime` alone decides how fast is scanned",
    }
    /// who shares with whom. 0: all VMs; 1: VMs of the same salt, and those without one; 2: VMs of the same salt, one
    /// without only within itself
    Mem.ShareForceSalting => share_force_salting: ForceSalting {
        group: "sharing",
        kind: Kind::whole("", 0, 2),
        esx: Value::Whole(2),
        lab: Value::Whole(1) => "guests of one owner, who wants to see them share; VMs of different owners need 2",
    }
    /// whether memory of guests is in large pages while the host is high; 0: those that there are, are broken
    Mem.AllocGuestLargePage => alloc_guest_large_page: bool {
        group: "sharing",
        kind: Kind::whole("", 0, 1),
        esx: Value::Whole(1),
        lab: Value::Whole(0) => "nothing is shared of a large page, and most experiments begin with memory to spare and \
            want to see it shared",
        deviation: "large pages are made of small ones that are there, not at the first touch; what is not touched costs \
            nothing",
    }
    /// the largest part of the pages a VM holds and does not use that others may take; 0: only shares count
    Mem.IdleTax => idle_tax: u32 {
        group: "allocation",
        kind: Kind::whole("%", 0, 99),
        esx: Value::Whole(75),
    }
    /// how idle memory is taken. 0: flat, by paging; 1: variable, by the balloon
    Mem.IdleTaxType => idle_tax_type: IdleTaxType {
        group: "allocation",
        kind: Kind::whole("", 0, 1),
        esx: Value::Whole(1),
        deviation: "ESX publishes the names flat and variable only",
    }
    /// time in which the active memory of a VM is sampled once; 0 turns sampling off
    Mem.SamplePeriod => sample_period: Duration {
        group: "allocation",
        kind: Kind::time("s", 0, 180_000),
        esx: millis(60_000),
        lab: millis(2000) => "idle memory is noticed within seconds",
        throughput: millis(500) => "a guest that has gone idle keeps what it has as long as it counts as active: for \
            several periods",
        deviation: "ESX counts whole seconds",
    }
    /// the least part of a VM that counts as active
    Mem.SampleActivePctMin => sample_active_pct_min: u32 {
        group: "allocation",
        kind: Kind::whole("%", 0, 10),
        esx: Value::Whole(1),
    }
    /// time after which memory is divided anew if nothing else gives cause
    Mem.BalancePeriod => balance_period: Duration {
        group: "allocation",
        kind: Kind::time("s", 100, 180_000),
        esx: millis(15_000),
        lab: millis(1000) => "idle memory is noticed within seconds",
        deviation: "ESX publishes no range",
    }
    /// the most of a VM's size that its balloon may take; 0 turns ballooning off
    Mem.CtlMaxPercent => ctl_max_percent: u32 {
        group: "balloon",
        kind: Kind::whole("%", 0, 99),
        esx: Value::Whole(65),
    }
    /// the part of the host's memory that is kept free; 0: as `Memvisor.FreeStates` has it
    Mem.MemMinFreePct => mem_min_free_pct: u32 {
        group: "free memory",
        kind: Kind::whole("%", 0, 50),
        esx: Value::Whole(0),
    }
    /// 1: a page that is to be swapped is compressed if it can be; 0: it is swapped
    Mem.MemZipEnable => mem_zip_enable: bool {
        group: "compression",
        kind: Kind::whole("", 0, 1),
        esx: Value::Whole(1),
    }
    /// the most of a VM's size that its compression cache may take
    Mem.MemZipMaxPct => mem_zip_max_pct: u32 {
        group: "compression",
        kind: Kind::whole("%", 5, 100),
        esx: Value::Whole(10),
        throughput: Value::Whole(50) => "a compressed page comes back sooner than a swapped one",
    }
    /// the most of a VM's allocated memory that its compression cache may take
    Mem.MemZipMaxAllocPct => mem_zip_max_alloc_pct: u32 {
        group: "compression",
        kind: Kind::whole("%", 5, 100),
        esx: Value::Whole(50),
        throughput: Value::Whole(80) => "a compressed page comes back sooner than a swapped one",
    }
    /// the free-memory states and their thresholds, by the version of ESX that had them (2002: the paper)
    Memvisor.FreeStates => free_states: Generation {
        group: "free memory",
        kind: Kind::Choice(&Generation::NAMES),
        esx: Value::Choice(Generation::G60.name()),
        lab: Value::Choice(Generation::G50.name()) => "a budget of some hundred MiB would be 24 % idle: 6.0 acts below \
            4 times what 5.0 keeps free, on a small host a quarter of it",
        deviation: "no setting in ESX",
    }
    /// the part of what sharing saves that is kept free besides, for guests that write their shared pages: all of them
    /// written at once would need all of it
    Memvisor.ShareReserve => share_reserve: u32 {
        group: "free memory",
        kind: Kind::whole("%", 0, 100),
        esx: Value::Whole(0),
        deviation: "no setting in ESX, which keeps nothing for that",
    }
    /// how far free memory must exceed a threshold before the state improves, of the gap to the threshold below it
    Memvisor.StateMargin => state_margin: u32 {
        group: "free memory",
        kind: Kind::whole("%", 10, 25),
        esx: Value::Whole(20),
        deviation: "no setting in ESX, which does not publish its margin",
    }
    /// how much of its balloon a VM is presumed to want back in one step, of its size
    Memvisor.Headroom => headroom: u32 {
        group: "balloon",
        kind: Kind::whole("%", 1, 100),
        esx: Value::Whole(10),
        deviation: "no setting in ESX, which does not publish its headroom",
    }
    /// the most that is ordered to be evicted at once, of all VMs together
    Memvisor.EvictRound => evict_round: Pages {
        group: "eviction",
        kind: Kind::whole("pages", 1, 1 << 20),
        esx: Value::Whole(4096),
        deviation: "no setting in ESX",
    }
    /// what balloons take. all: as much as memory is to be had, whatever the guest must page out for it; free: no more
    /// than the guest has free, by its own statistics
    Memvisor.BalloonTakes => balloon_takes: BalloonTakes {
        group: "balloon",
        kind: Kind::Choice(BalloonTakes::NAMES),
        esx: BalloonTakes::All.value(),
        throughput: BalloonTakes::Free.value() => "a guest that pages for its balloon waits for its disk, where the host \
            could compress the same page",
        deviation: "no setting in ESX, whose balloons take all",
    }
    /// how balloons are led. esx: to what the VM may hold, at once; pid: by what is missing; senpai: a little of every guest
    /// until its threads wait
    Memvisor.BalloonLaw => balloon_law: &'static dyn Law {
        group: "balloon",
        kind: Kind::Choice(law::NAMES),
        esx: Value::Choice(law::NAMES[0]),
        deviation: "no setting in ESX",
    }
    /// law pid: how much of what is missing is added to the target
    Memvisor.PidProportional => pid_proportional: u32 {
        group: "balloon",
        kind: Kind::whole("%", 0, 1000),
        esx: Value::Whole(100),
        deviation: "no setting in ESX",
    }
    /// law pid: how much of what is missing is added to the target in each second
    Memvisor.PidIntegral => pid_integral: u32 {
        group: "balloon",
        kind: Kind::whole("%", 0, 1000),
        esx: Value::Whole(100),
        deviation: "no setting in ESX",
    }
    /// law pid: how much of what more will be missing in a second is added to the target
    Memvisor.PidDerivative => pid_derivative: u32 {
        group: "balloon",
        kind: Kind::whole("%", 0, 1000),
        esx: Value::Whole(25),
        deviation: "no setting in ESX",
    }
    /// law senpai: for how long the threads of a guest may wait for memory in a second
    Memvisor.SenpaiStall => senpai_stall: u32 {
        group: "balloon",
        kind: Kind::whole("us", 1, 1_000_000),
        esx: Value::Whole(1667),
        deviation: "no setting in ESX",
    }
    /// law senpai: time between two probes
    Memvisor.SenpaiInterval => senpai_interval: Duration {
        group: "balloon",
        kind: Kind::time("s", 1000, 600_000),
        esx: millis(6000),
        deviation: "no setting in ESX",
    }
    /// law senpai: the most that a probe takes of what a VM has without its balloon
    Memvisor.SenpaiProbe => senpai_probe: u32 {
        group: "balloon",
        kind: Kind::whole("%", 1, 50),
        esx: Value::Whole(1),
        deviation: "no setting in ESX",
    }
    /// which pages a compression cache keeps. all: those that its cap has room for; paying: of these, those whose
    /// memory would save no more time as RAM
    Memvisor.CacheKeeps => cache_keeps: CacheKeeps {
        group: "compression",
        kind: Kind::Choice(CacheKeeps::NAMES),
        esx: CacheKeeps::All.value(),
        throughput: CacheKeeps::Paying.value() => "pages that a guest wrote once and never reads again take memory that \
            its other pages need",
        deviation: "no setting in ESX, where a cache keeps all",
    }
    /// when guests that ask for memory faster than it is reclaimed wait for what is freed. low: in low, if they are
    /// above their targets; hard: all, so that low is not reached
    Memvisor.FaultsWait => faults_wait: FaultsWait {
        group: "eviction",
        kind: Kind::Choice(FaultsWait::NAMES),
        esx: FaultsWait::Low.value(),
        throughput: FaultsWait::Hard.value() => "a guest that waits for the next freed pages waits less than one that is \
            blocked until it is below its target",
        deviation: "no setting in ESX, where guests wait in low",
    }
    /// the part of their rate at which VMs are scanned while the host is high or clear and has all free memory that it
    /// wants
    Memvisor.ScanAtRest => scan_at_rest: u32 {
        group: "sharing",
        kind: Kind::whole("%", 1, 100),
        esx: Value::Whole(100),
        throughput: Value::Whole(5) => "what is shared or dropped as zero and written again costs its guest a fault, for \
            memory that nobody needs",
        deviation: "no setting in ESX, which scans at the same rate in every state",
    }
    /// which pages are evicted: any, or those that nobody wanted back while they were frozen
    Memvisor.Victims => victims: victims::Choice {
        group: "eviction",
        kind: Kind::Choice(&victims::NAMES),
        esx: Value::Choice(victims::RANDOM),
        throughput: Value::Choice(victims::SECOND_CHANCE) => "a page in use that is evicted is wanted back at once",
        deviation: "no setting in ESX, which takes random ones",
    }
    /// how many swapped pages of each VM come back by themselves once memory has stayed free for 10 s; 0 leaves them
    /// until their guest wants them
    Memvisor.UnswapRate => unswap_rate: u32 {
        group: "eviction",
        kind: Kind::whole("MiB/s", 0, 1024),
        esx: Value::Whole(0),
        deviation: "no setting in ESX, where an operator asks for it",
    }
    /// how much of the directory `--swap-cache` the swapped pages of all VMs together may take; 0: nothing
    Memvisor.SwapCacheSize => swap_cache_size: u32 {
        group: "eviction",
        kind: Kind::whole("MiB", 0, 16_777_216),
        esx: Value::Whole(0),
        deviation: "no setting in ESX, where the host cache has a size on each datastore",
    }
    /// by how much longer than its disk each read and write of a swap file takes, for experiments with slow disks; the
    /// host cache is not slowed
    Memvisor.SwapDelay => swap_delay: Duration {
        group: "eviction",
        kind: Kind::time("ms", 0, 1000),
        esx: Value::Time(Duration::ZERO),
        deviation: "no setting in ESX",
    }
    /// whether a guest that waits for its disk, and for a processor while another is idle, is confined to the idle one
    Memvisor.PlaceGuests => place_guests: bool {
        group: "eviction",
        kind: Kind::whole("", 0, 1),
        esx: Value::Whole(0),
        throughput: Value::Whole(1) => "the kernel wakes threads where the disk interrupts, and guests that read much gather \
            there",
        deviation: "no setting in ESX, whose scheduler places all guests; here the kernel's does",
    }
    /// for how long a guest has not touched a page that is taken from it though nobody is short of memory; 0: none is
    Memvisor.ColdAge => cold_age: Duration {
        group: "eviction",
        kind: Kind::time("s", 0, 86_400_000),
        esx: Value::Time(Duration::ZERO),
        deviation: "no setting in ESX, which takes pages when memory is short",
    }
    /// how many of the pages taken for their age may be wanted back in an hour, of those that the VM holds: as more
    /// are, fewer are taken
    Memvisor.ColdRefaults => cold_refaults: u32 {
        group: "eviction",
        kind: Kind::whole("%/h", 1, 6000),
        esx: Value::Whole(12),
        deviation: "no setting in ESX",
    }
}

const fn millis(millis: u64) -> Value {
    Value::Time(Duration::from_millis(millis))
}

fn typed<T: FromValue>(key: Key, value: Value) -> T {
    T::from_value(value).unwrap_or_else(|| panic!("{value:?} is no value of {key:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_departures_differ() {
        for spec in &TABLE {
            let departures = [spec.lab, spec.throughput].map(|it| it.map(|it| it.value));
            let [lab, throughput] = departures.map(|value| value.unwrap_or(spec.esx));
            for default in [spec.esx, lab, throughput] {
                let text = spec.kind.scalar(default).to_string();
                assert_eq!(spec.key.read(&text), Ok(default), "{} {text}", spec.name);
            }
            assert!(spec.lab.is_none() || lab != spec.esx, "{}", spec.name);
            assert!(
                spec.throughput.is_none() || throughput != lab,
                "{}",
                spec.name
            );
            let is_ours = spec.name.starts_with("Memvisor.");
            assert!(!is_ours || !spec.deviation.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn unknown_names_get_the_nearest_ones() {
        assert_eq!(Key::find("mem.idletax"), Ok(Key::IdleTax));
        for (name, near) in [
            ("Mem.IdelTax", "Mem.IdleTax"),
            ("IdleTax", "Mem.IdleTax"),
            ("Mem.ShareScanGhzz", "Mem.ShareScanGHz"),
            ("FreeStates", "Memvisor.FreeStates"),
        ] {
            let error = Key::find(name).expect_err(name).to_string();
            assert!(error.contains(&format!("near: {near}")), "{error}");
            assert!(error.contains("`memvisor get --all` lists them"), "{error}");
        }
        let error = Key::find("Mem.X").expect_err("none").to_string();
        assert!(!error.contains("near"), "{error}");
        let error = Key::find("bananas\n").expect_err("none").to_string();
        assert!(error.contains("`bananas\\n`; `memvisor get"), "{error}");
    }

    #[test]
    fn wrong_values_name_setting_value_and_what_is_allowed() {
        for (key, text, parts) in [
            (Key::IdleTax, "50s", ["Mem.IdleTax", "`50s`", "0 to 99 %"]),
            (
                Key::SamplePeriod,
                "10%",
                ["Mem.SamplePeriod", "`10%`", "0 to 180 s"],
            ),
            (
                Key::FreeStates,
                "7.0",
                ["FreeStates", "`7.0`", "one of 2002, 4.1, 5.0, 6.0"],
            ),
        ] {
            let error = key.read(text).expect_err(text).to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
