//! Every number that `top` knows, as plain data: where the status has it, what it is called on the screen and in a
//! recording, how it is written, and what it means. The screen, the chooser of fields, sorting, help, recordings and
//! docs/top.md follow from these tables. Tests hold them to the status.
//!
//! Names are esxtop's where esxtop has the quantity, on the screen ([`Field::name`]) and in recordings
//! ([`Field::counter`]).

use crate::settings::BALLOON_LAWS;
use crate::telemetry::{FreeState, HostStatus, Reading, VmRates, VmStatus};
use crate::units::Pages;

use Unit::{Count, Latency, Memory, Percent, Seconds, Speed, Stall, Word};

/// The readings of health, from the best.
pub(super) const READINGS: &[&str] = &["awesome", "good", "hmm", "oops"];

/// The states of the host, from plenty to none.
pub(super) const STATES: &[&str] = &["high", "clear", "soft", "hard", "low"];

const YES_NO: &[&str] = &["N", "Y"];

/// A number for each field of a table; `None` where there is none.
pub(super) type Numbers = Vec<Option<f64>>;

/// What a number counts, and so how it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// MiB; the status counts pages.
    Memory,
    /// MiB a second; the status counts bytes a second.
    Speed,
    /// Whole percent.
    Percent,
    /// Percent with one decimal.
    Latency,
    /// Seconds; the status counts milliseconds.
    Seconds,
    /// A ratio; the status counts percent.
    Ratio,
    /// Milliseconds a second.
    Stall,
    /// Things, or events a second.
    Count,
    /// One of some words; the number is its place among them.
    Word(&'static [&'static str]),
}

/// A number of each VM, or of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Field {
    /// The heading of its column; in the header of the host, the word behind it.
    pub(super) name: &'static str,
    /// Characters of its column.
    pub(super) width: usize,
    /// What it counts.
    pub(super) unit: Unit,
    /// Where it is, by names of fields from `vm`, `host`, or `rates`: those of the interval that is shown. Of several
    /// places, the first less the others.
    pub(super) paths: &'static [&'static [&'static str]],
    /// Its counter in a recording.
    pub(super) counter: &'static str,
    /// What it means.
    pub(super) about: &'static str,
}

impl Unit {
    /// A number of the status in this unit.
    const fn scaled(self, number: f64) -> f64 {
        match self {
            Memory => number / 256.0,
            Speed => number / 1_048_576.0,
            Seconds => number / 1000.0,
            Self::Ratio => number / 100.0,
            _ => number,
        }
    }

    /// How a number is written; `-` where there is none.
    pub(super) fn write(self, number: Option<f64>) -> String {
        let Some(number) = number else {
            return "-".to_owned();
        };
        match self {
            // One decimal as long as that fits into six characters.
            Memory if number < 9999.95 => format!("{number:.1}"),
            Memory | Percent | Seconds | Stall | Count => format!("{number:.0}"),
            Speed | Self::Ratio => format!("{number:.2}"),
            Latency => format!("{number:.1}"),
            Word(words) => self.word(Some(number), words).to_owned(),
        }
    }

    fn word(self, number: Option<f64>, words: &'static [&'static str]) -> &'static str {
        let place = |number: f64| {
            words
                .iter()
                .zip(0_u8..)
                .find(|(_, at)| f64::from(*at) == number)
        };
        number.and_then(place).map_or("?", |(word, _)| word)
    }

    /// Whether a recording may hold this number.
    pub(super) fn allows(self, number: f64) -> bool {
        match self {
            Word(words) => self.word(Some(number), words) != "?",
            _ => number.is_finite() && number >= 0.0,
        }
    }

    /// What a recording may hold, for a message.
    pub(super) fn allowed(self) -> String {
        match self {
            Word(words) => format!("a whole number from 0 to {}", words.len() - 1),
            _ => "a number from 0 on, or nothing".to_owned(),
        }
    }

    /// What it counts, for the document.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Memory => "MiB",
            Speed => "MiB/s",
            Percent | Latency => "%",
            Seconds => "s",
            Stall => "ms/s",
            Self::Ratio | Count | Word(_) => "",
        }
    }
}

/// What the status says of something, as a number in a unit.
pub(super) trait Shown {
    /// The number, if there is one.
    fn shown(&self, unit: Unit) -> Option<f64>;
}

/// Declares how types of the status become numbers.
macro_rules! shown {
    ($($type:ty: |$value:ident| $number:expr;)+) => {$(
        impl Shown for $type {
            fn shown(&self, unit: Unit) -> Option<f64> {
                let $value = *self;
                Some(unit.scaled($number))
            }
        }
    )+};
}

shown! {
    Pages: |pages| pages.0 as f64;
    u64: |number| number as f64;
    u32: |number| f64::from(number);
    f64: |number| number;
    bool: |truth| f64::from(u8::from(truth));
    Reading: |reading| f64::from(reading as u8);
    FreeState: |state| f64::from(state as u8);
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self, unit: Unit) -> Option<f64> {
        self.as_ref()?.shown(unit)
    }
}

impl Shown for String {
    fn shown(&self, unit: Unit) -> Option<f64> {
        let Word(words) = unit else {
            return None;
        };
        let at = words.iter().position(|word| word == self)?;
        Some(at as f64)
    }
}

/// The first number less the others, which is at least 0.
fn less(numbers: &[Option<f64>]) -> Option<f64> {
    let (first, others) = numbers.split_first()?;
    let less: f64 = others.iter().flatten().sum();
    Some(((*first)? - less).max(0.0))
}

/// The place of the field of this name in a table; an unknown name does not compile in a constant.
pub(super) const fn place(table: &[Field], name: &str) -> usize {
    let mut at = 0;
    while !equal(table[at].name, name) {
        at += 1;
    }
    at
}

const fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// A place in a status, as a number in a unit. What stands behind `?` is in something that may not be there.
macro_rules! number {
    ($unit:expr, $($path:ident).+) => {
        $($path).+.shown($unit)
    };
    ($unit:expr, $($path:ident).+, $($inner:ident).+) => {
        $($path).+.as_ref().and_then(|inside| inside.$($inner).+.shown($unit))
    };
}

/// Declares a table and the function that reads its numbers from a status and the rates of the same; an entry is
/// `name width unit, places, counter, meaning`.
macro_rules! fields {
    ($(#[$about:meta])* $table:ident, $read:ident($status:ident: &$of:ty, $rates:ident: &$speed:ty):
        $($name:literal $width:literal $unit:expr, [$($($path:ident).+ $(? $($inner:ident).+)?),+], $counter:literal, $meaning:literal;)+) => {
        $(#[$about])*
        pub(super) const $table: &[Field] = &[$(Field {
            name: $name,
            width: $width,
            unit: $unit,
            paths: &[$(&[$(stringify!($path)),+ $(, $(stringify!($inner)),+)?]),+],
            counter: $counter,
            about: $meaning,
        },)+];

        #[doc = concat!("A number for each of [`", stringify!($table), "`].")]
        pub(super) fn $read($status: &$of, $rates: &$speed) -> Numbers {
            vec![$(less(&[$(number!($unit, $($path).+ $(, $($inner).+)?)),+])),+]
        }
    };
}

/// How many of [`VM`] are shown unless others are chosen: the first ones.
pub(super) const SHOWN_AT_FIRST: usize = 18;

fields! {
    /// The fields of a VM.
    VM, of_vm(vm: &VmStatus, rates: &VmRates):
    "HEALTH" 8 Word(READINGS), [vm.health.reading], "Health", "how well the VM is, in four words";
    "MEMSZ" 7 Memory, [vm.configured_pages], "Memory Size MBytes", "its size";
    "GRANT" 7 Memory, [vm.granted_pages], "Memory Granted Size MBytes", "what it can read without a refill: resident, shared and zero pages";
    "CNSM" 7 Memory, [vm.consumed_pages], "Memory Consumed Size MBytes", "host memory that it costs";
    "SHRD" 7 Memory, [vm.homes.shared_pages], "Shared MBytes", "its pages on shared frames";
    "ZIP" 7 Memory, [vm.homes.compressed_pages], "Compressed Memory MBytes", "its pages in the compression cache";
    "SWCUR" 7 Memory, [vm.homes.swapped_pages], "Swapped MBytes", "its swapped pages, in the swap file and the host cache";
    "MCTLSZ" 7 Memory, [vm.balloon.size_pages], "Memctl MBytes", "its pages in the balloon";
    "%ACTV" 7 Percent, [vm.activity.active_percent], "% Active Estimate", "the part of its size that it is estimated to use; 0 until it was sampled";
    "%LAT" 7 Latency, [rates.stalled_percent], "% Memory Latency", "the part of the time in which one of its threads or more stood still because of the host";
    "MCTLTGT" 8 Memory, [vm.balloon.target_pages], "Memctl Target MBytes", "the size that its balloon shall have";
    "FLT/s" 7 Count, [rates.faults_per_s], "Faults/sec", "faults of every kind";
    "SZTGT" 7 Memory, [vm.allocation.target_pages], "Target Size MBytes", "host memory that the policy wants it to have";
    "COW/s" 7 Count, [rates.breaks_per_s], "Copy On Write Breaks/sec", "shared pages copied because it wrote to them";
    "SWR/s" 7 Speed, [rates.swap_in_bytes_per_s], "Swap Read MBytes/sec", "read from its swap file";
    "SWW/s" 7 Speed, [rates.swap_out_bytes_per_s], "Swap Written MBytes/sec", "written to its swap file";
    "ZIP/s" 7 Speed, [rates.zip_bytes_per_s], "Compression MBytes/sec", "compressed";
    "UNZIP/s" 8 Speed, [rates.unzip_bytes_per_s], "Decompression MBytes/sec", "decompressed on faults";
    "ZERO" 7 Memory, [vm.homes.zero_pages], "Zero MBytes", "its pages that hold zeroes and cost nothing";
    "RSDNT" 7 Memory, [vm.homes.resident_pages], "Resident MBytes", "its pages in RAM of its own";
    "UNTCH" 7 Memory, [vm.homes.untouched_pages], "Untouched MBytes", "its pages that were never written";
    "SHRDSVD" 8 Memory, [vm.saved_pages], "Shared Saved MBytes", "its part of what sharing saves";
    "COWH" 7 Memory, [vm.hinted_pages], "Copy On Write Hint MBytes", "its pages that are hints: seen once, waiting for one of equal content";
    "TCHD" 7 Memory, [vm.activity.active_pages], "Touched MBytes", "memory that it is estimated to use; none until it was sampled";
    "%ACTVS" 7 Percent, [vm.activity.slow_percent], "% Active Slow Estimate", "the slow average of that";
    "%ACTVF" 7 Percent, [vm.activity.fast_percent], "% Active Fast Estimate", "the fast average of that";
    "%ACTVN" 7 Percent, [vm.activity.next_percent], "% Active Next Estimate", "the fast average with the period that has not ended";
    "MCTL?" 6 Word(YES_NO), [vm.balloon.agent], "Memctl?", "whether a balloon agent is connected";
    "MCTLMAX" 8 Memory, [vm.balloon.max_pages], "Memctl Max MBytes", "the most that its balloon may take";
    "SWTGT" 7 Memory, [vm.swap.target_pages], "Swap Target MBytes", "what the policy wants in its compression cache and its swap file";
    "LLSWR/s" 8 Speed, [rates.cache_in_bytes_per_s], "Host Cache Read MBytes/sec", "read from the host cache";
    "LLSWW/s" 8 Speed, [rates.cache_out_bytes_per_s], "Host Cache Written MBytes/sec", "written to the host cache";
    "LLSWUSED" 9 Memory, [vm.swap.cached_pages], "Host Cache Used MBytes", "its swapped pages that are in the host cache";
    "CACHESZ" 8 Memory, [vm.zip.limit_pages], "Cache Size MBytes", "host memory that its compression cache may have now";
    "CACHEUSD" 9 Memory, [vm.zip_pages], "Cache Used MBytes", "host memory of its compression cache";
    "OVHD" 7 Memory, [vm.overhead_pages], "Overhead MBytes", "host memory for its page table and the like, beside what it consumes";
    "AMIN" 7 Memory, [vm.allocation.reservation_pages], "Reservation MBytes", "its reservation";
    "AMAX" 7 Memory, [vm.allocation.limit_pages], "Limit MBytes", "its limit; none if that is its size";
    "ASHRS" 7 Count, [vm.allocation.shares], "Shares", "its shares";
    "ENTL" 7 Memory, [vm.allocation.entitlement_pages], "Entitlement MBytes", "host memory that it could have now if it wanted more";
    "BLK?" 6 Word(YES_NO), [vm.blocked], "Blocked?", "whether it must wait with its next page of memory";
    "TOUCHms" 8 Stall, [rates.stalls.first_touch_ms_per_s], "Stalled For Zeroes MilliSec/sec", "time that its threads waited for pages of zeroes";
    "ZIPms" 7 Stall, [rates.stalls.refill_zip_ms_per_s], "Stalled For Compressed MilliSec/sec", "time that its threads waited for the compression cache";
    "SWAPms" 7 Stall, [rates.stalls.refill_swap_ms_per_s], "Stalled For Swapped MilliSec/sec", "time that its threads waited for the swap file";
    "COWms" 7 Stall, [rates.stalls.cow_break_ms_per_s], "Stalled For Copies MilliSec/sec", "time that its threads waited for copies of shared pages";
    "MOVEms" 7 Stall, [rates.stalls.moved_ms_per_s], "Stalled By Moves MilliSec/sec", "time that its threads waited for pages that were moved or sampled";
    "BLKms" 7 Stall, [rates.stalls.blocked_ms_per_s], "Stalled By State MilliSec/sec", "time that the state of the host, or its limit, had its threads wait";
    "MEMms" 7 Stall, [rates.stalls.memory_ms_per_s], "Stalled For Memory MilliSec/sec", "time that its threads waited for a free page";
    "OWNms" 7 Stall, [rates.stalls.guest_swap_ms_per_s], "Guest Swap Wait MilliSec/sec", "time that its threads waited for the swap device of its guest, as the guest says";
    "SCAN/s" 7 Count, [rates.scanned_per_s], "Scanned Pages/sec", "pages that the sharing scanner scanned";
    "MERGE/s" 8 Count, [rates.merged_per_s], "Merged Pages/sec", "pages that were shared";
    "UNIQ" 7 Memory, [vm.sharing.unique_pages], "Not Shared Unique MBytes", "not shared: no page is known to be equal";
    "VOLTL" 7 Memory, [vm.sharing.volatile_pages], "Not Shared Volatile MBytes", "not shared: it changes, or what is beside it does";
    "UNSCN" 7 Memory, [vm.sharing.unscanned_pages], "Not Shared Unscanned MBytes", "not shared: not scanned since it became resident or was written";
    "NOVMA" 7 Memory, [vm.sharing.vma_budget_pages], "Not Shared VMA Budget MBytes", "not shared: its guest has no mapping left for it";
    "OSALT" 7 Memory, [vm.sharing.other_salt_pages], "Not Shared Other Salt MBytes", "not shared: only VMs of other salts have equal pages";
    "NOMEM" 7 Memory, [vm.sharing.no_memory_pages], "Not Shared No Memory MBytes", "not shared: there was no memory for a frame";
}

fields! {
    /// The numbers of the host.
    HOST, of_host(host: &HostStatus, rates: &VmRates):
    "up" 0 Seconds, [host.uptime_ms], "Uptime Seconds", "time since the daemon started";
    "health" 0 Word(READINGS), [host.health.reading], "Health", "how well the host and its VMs are";
    "1 min" 0 Unit::Ratio, [host.overcommit.one_minute_percent], "Memory Overcommit (1 Minute Avg)", "sizes of the VMs by the budget, less 1, on average";
    "5 min" 0 Unit::Ratio, [host.overcommit.five_minutes_percent], "Memory Overcommit (5 Minute Avg)", "the same over five minutes";
    "15 min" 0 Unit::Ratio, [host.overcommit.fifteen_minutes_percent], "Memory Overcommit (15 Minute Avg)", "the same over fifteen minutes";
    "total" 0 Memory, [host.budget_pages], "Machine MBytes", "the budget";
    "vmk" 0 Memory, [host.metadata_pages], "Kernel MBytes", "used for page tables, indexes and the like";
    "other" 0 Memory, [host.used_pages, host.metadata_pages], "NonKernel MBytes", "used for VMs";
    "free" 0 Memory, [host.free_pages], "Free MBytes", "not used";
    "managed" 0 Memory, [host.budget_pages, host.metadata_pages], "Kernel Managed MBytes", "the budget without page tables, indexes and the like";
    "minfree" 0 Memory, [host.thresholds.min_free_pages], "Kernel MinFree MBytes", "free memory that the host aims to keep";
    "rsvd" 0 Memory, [host.reserved_pages], "Kernel Reserved MBytes", "promised to VMs";
    "ursvd" 0 Memory, [host.unreserved_pages], "Kernel Unreserved MBytes", "can still be promised";
    "state" 0 Word(STATES), [host.free_state], "Kernel State", "how short of free memory the host is";
    "shared" 0 Memory, [host.share.shared_pages], "PShare Shared MBytes", "guest memory on shared frames";
    "common" 0 Memory, [host.share.frames], "PShare Common MBytes", "the frames";
    "saving" 0 Memory, [host.share.saved_pages], "PShare Savings MBytes", "what sharing saves";
    "zero" 0 Memory, [host.totals.homes.zero_pages], "Zero MBytes", "pages that hold zeroes and cost nothing";
    "curr" 0 Memory, [host.totals.homes.swapped_pages], "Swap Used MBytes", "in swap files";
    "rclmtgt" 0 Memory, [host.totals.swap_target_pages], "Swap Target MBytes", "what shall be in compression caches and swap files";
    "r/s" 0 Speed, [rates.swap_in_bytes_per_s], "Swap MBytes Read/sec", "read from swap files";
    "w/s" 0 Speed, [rates.swap_out_bytes_per_s], "Swap MBytes Write/sec", "written to swap files";
    "zipped" 0 Memory, [host.totals.homes.compressed_pages], "Zipped MBytes", "guest memory in compression caches";
    "saved" 0 Memory, [host.totals.homes.compressed_pages, host.totals.zip_pages], "Zip Saved MBytes", "that less the memory of the caches";
    "zip/s" 0 Speed, [rates.zip_bytes_per_s], "Zip MBytes/sec", "compressed";
    "unzip/s" 0 Speed, [rates.unzip_bytes_per_s], "Unzip MBytes/sec", "decompressed on faults";
    "ballooned" 0 Memory, [host.totals.homes.ballooned_pages], "Memctl Current MBytes", "in balloons";
    "target" 0 Memory, [host.totals.balloon_target_pages], "Memctl Target MBytes", "the sizes that balloons shall have";
    "max" 0 Memory, [host.totals.balloon_max_pages], "Memctl Max MBytes", "the most that balloons may take";
    "law" 0 Word(BALLOON_LAWS), [host.balloon_law], "Memctl Law", "the control law by which balloons are led";
    "high" 0 Memory, [host.thresholds.high_pages], "State High MBytes", "with as much free, the state is high";
    "soft" 0 Memory, [host.thresholds.soft_pages], "State Soft MBytes", "with less free, it is soft";
    "hard" 0 Memory, [host.thresholds.hard_pages], "State Hard MBytes", "with less free, it is hard";
    "low" 0 Memory, [host.thresholds.low_pages], "State Low MBytes", "with less free, it is low";
    "some" 0 Latency, [host.machine.pressure ? some.ten_seconds_percent], "PSI Some (10 Sec Avg) %", "pressure on the machine's memory, or that of the daemon's cgroup: the part of the latest ten seconds in which a task waited for it";
    "some 1m" 0 Latency, [host.machine.pressure ? some.minute_percent], "PSI Some (1 Min Avg) %", "the same of the latest minute";
    "full" 0 Latency, [host.machine.pressure ? full.ten_seconds_percent], "PSI Full (10 Sec Avg) %", "the part of the latest ten seconds in which all tasks waited that were not idle";
    "full 1m" 0 Latency, [host.machine.pressure ? full.minute_percent], "PSI Full (1 Min Avg) %", "the same of the latest minute";
    "faults" 0 Count, [rates.faults_per_s], "Faults/sec", "faults of every kind";
    "scanned" 0 Count, [rates.scanned_per_s], "Scanned Pages/sec", "pages that were scanned for sharing";
    "merged" 0 Count, [rates.merged_per_s], "Merged Pages/sec", "pages that were shared";
    "broken" 0 Count, [rates.breaks_per_s], "Copy On Write Breaks/sec", "shared pages that were copied for a write";
    "touch" 0 Stall, [rates.stalls.first_touch_ms_per_s], "Stalled For Zeroes MilliSec/sec", "time that threads of all VMs waited for pages of zeroes";
    "zip" 0 Stall, [rates.stalls.refill_zip_ms_per_s], "Stalled For Compressed MilliSec/sec", "for compression caches";
    "swap" 0 Stall, [rates.stalls.refill_swap_ms_per_s], "Stalled For Swapped MilliSec/sec", "for swap files";
    "copy" 0 Stall, [rates.stalls.cow_break_ms_per_s], "Stalled For Copies MilliSec/sec", "for copies of shared pages";
    "blocked" 0 Stall, [rates.stalls.blocked_ms_per_s], "Stalled By State MilliSec/sec", "because of the state of the host, or of a limit";
    "memory" 0 Stall, [rates.stalls.memory_ms_per_s], "Stalled For Memory MilliSec/sec", "for a free page";
    "moved" 0 Stall, [rates.stalls.moved_ms_per_s], "Stalled By Moves MilliSec/sec", "for pages that were moved or sampled";
    "own swap" 0 Stall, [rates.stalls.guest_swap_ms_per_s], "Guest Swap Wait MilliSec/sec", "for the swap devices of guests, as these say";
}
