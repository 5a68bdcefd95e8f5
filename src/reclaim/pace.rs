//! How fast a VM is scanned.
//!
//! ESX's settings bound the rate in three ways: the time in which a whole VM is scanned, a rate for each VM, and a
//! rate for the host by its clock. The rate counts pages that are scanned. One pass begins after another in the
//! time that a whole VM takes at that rate, but after some seconds at most. So a VM in which little is due sleeps
//! between its passes, and in a VM that is scanned slowly new pages do not wait for an hour until a pass begins. A
//! VM that does not change is passed ever more seldom; anything that happens in it brings the full pace back.

use std::fs;
use std::time::{Duration, Instant};

use crate::share::Found;

/// Settings of the scanner, named after ESX's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScanSettings {
    /// `Mem.ShareScanTime`: the time in which a whole VM is scanned. ESX: 60 minutes.
    pub scan_time: Duration,
    /// `Mem.ShareScanGHz`: MB/s to be scanned on this host for each GHz of its clock; 0 switches
    /// sharing off. ESX: 4.
    pub scan_ghz: u32,
    /// `Mem.ShareRateMax`: pages a second of one VM; 0 switches sharing off. ESX: 1024.
    pub rate_max: u32,
    /// The percentage of the rate within these bounds at which VMs are scanned now.
    pub part: u32,
}

/// Slices a second at full rate.
const SLICES: u32 = 10;
/// The fewest pages of a slice: with fewer, waking up costs more than scanning. In tests a slice is smaller, so that a
/// small VM has several.
const MIN_SLICE: u32 = if cfg!(test) { 5 } else { 256 };
/// The longest time from the start of one pass to the start of the next, for a VM that is not quiet.
/// The rate bounds what is looked at. To wait longer would only keep new pages waiting.
const MAX_APART: Duration = Duration::from_secs(3);
/// The passes of a quiet VM are up to this many times as far apart.
const MAX_SLOWDOWN: u32 = 8;
/// The same while pages wait that changed before. They wait for up to 31 passes: of the slowest, 12 minutes.
const MAX_WAITING_SLOWDOWN: u32 = 2;
/// A pass is quiet if it finds at most one page in so many new, changed or shared.
const QUIET: u32 = 512;
/// More faults since the last pass than one for so many pages of the VM end the quiet.
const ACTIVE: u32 = 256;

impl ScanSettings {
    /// Pages a second for a VM of `pages` on a host with `ghz` (all cores together) and `vms`; zero when
    /// sharing is off.
    #[must_use]
    pub fn rate(&self, pages: u32, ghz: f64, vms: u32) -> u32 {
        let whole = f64::from(pages) / self.scan_time.as_secs_f64().max(0.001);
        // 1 MB/s is 256 pages/s.
        let host = f64::from(self.scan_ghz) * ghz * 256.0 / f64::from(vms.max(1));
        let rate = whole.min(f64::from(self.rate_max)).min(host);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative and at most rate_max, a u32"
        )]
        let rate = (rate * f64::from(self.part) / 100.0).round() as u32;
        if self.rate_max == 0 || self.scan_ghz == 0 {
            0
        } else {
            // Rounding must not stop a scan that nobody has turned off.
            rate.max(1)
        }
    }
}

/// The clock of this host in GHz, all cores together, as ESX's `ShareScanGHz` counts it; 1 where the
/// kernel does not tell.
#[must_use]
pub fn host_ghz() -> f64 {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz: f64 = cpuinfo
        .lines()
        .filter(|line| line.starts_with("cpu MHz"))
        .filter_map(|line| line.rsplit(':').next()?.trim().parse::<f64>().ok())
        .sum();
    // Some machines tell no clock. The rate must not become zero there.
    if mhz > 0.0 { mhz / 1000.0 } else { 1.0 }
}

/// The pace of one VM's scanner.
#[derive(Debug)]
pub(super) struct Pace {
    pages: u32,
    slowdown: u32,
    pass_began: Instant,
    is_in_pass: bool,
    /// From when on another slice is within the rate.
    within_rate: Instant,
    /// Pages that this pass found new, changed or shared.
    news: u64,
    /// Pages that this pass left alone because they changed before or could not be merged.
    waiting: u64,
    /// Faults of the VM when its latest pass ended.
    faults: u64,
    /// Faults of the VM when this pass began. The pass may have walked past pages that were brought later.
    faults_before: u64,
}

impl Pace {
    /// The pace of a VM of `pages`.
    pub(super) const fn new(pages: u32, now: Instant) -> Self {
        Self {
            pages,
            slowdown: 1,
            pass_began: now,
            is_in_pass: true,
            within_rate: now,
            news: 0,
            waiting: 0,
            faults: 0,
            faults_before: 0,
        }
    }

    /// When to scan next at `rate`, which is not zero, if the VM has had `faults` so far.
    pub(super) fn due(&self, rate: u32, faults: u64) -> Instant {
        let apart = (Duration::from_secs(1) * self.pages / rate.max(1)).min(MAX_APART);
        let is_active = faults.saturating_sub(self.faults) > u64::from(self.pages / ACTIVE);
        let slowdown = if is_active { 1 } else { self.slowdown };
        let next_pass = self.pass_began + apart * slowdown;
        if self.is_in_pass {
            self.within_rate
        } else {
            self.within_rate.max(next_pass)
        }
    }

    /// Pages that the next slice scans.
    pub(super) fn slice(rate: u32) -> u32 {
        (rate / SLICES).max(MIN_SLICE)
    }

    /// Notes what a slice found. The slice began at `now`, when the VM had had `faults`. If the pass ends with this
    /// slice, found nothing new and left nothing to be scanned or merged, returns the faults that the VM had had
    /// when it began.
    pub(super) fn note(
        &mut self,
        now: Instant,
        found: Found,
        rate: u32,
        faults: u64,
    ) -> Option<u64> {
        if !self.is_in_pass {
            (self.pass_began, self.faults_before) = (now, faults);
        }
        self.news += u64::from(found.changed) + found.shared;
        self.waiting += u64::from(found.waiting);
        // By the pages that were scanned, so the wait after a slice that found few of them due is short.
        self.within_rate = now + Duration::from_secs(1) * found.scanned / rate.max(1);
        self.is_in_pass = !found.pass_ended;
        if !found.pass_ended {
            return None;
        }
        let quiet = self.news <= u64::from(self.pages / QUIET);
        let slowest = if self.waiting == 0 {
            MAX_SLOWDOWN
        } else {
            MAX_WAITING_SLOWDOWN
        };
        let slower = (self.slowdown * 2).min(slowest);
        // Slower step by step, but at full pace at once: one pass that finds something shows a VM at work.
        self.slowdown = if quiet { slower } else { 1 };
        let settled = (self.news == 0 && self.waiting == 0).then_some(self.faults_before);
        (self.news, self.waiting, self.faults) = (0, 0, faults);
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESX: ScanSettings = ScanSettings {
        scan_time: Duration::from_secs(3600),
        scan_ghz: 4,
        rate_max: 1024,
        part: 100,
    };

    #[test]
    fn rate_is_the_least_of_the_three_bounds() {
        // 4 GiB in an hour: 291 pages/s; from 14.06 GiB on ShareRateMax binds.
        assert_eq!(ESX.rate(1 << 20, 100.0, 1), 291);
        assert_eq!(ESX.rate(16 << 18, 100.0, 1), 1024);
        // 4 MB/s per GHz of 2 GHz = 2048 pages/s among 8 VMs.
        assert_eq!(ESX.rate(1 << 20, 2.0, 8), 256);
        assert_eq!(ScanSettings { rate_max: 0, ..ESX }.rate(1 << 20, 2.0, 1), 0);
        assert_eq!(ScanSettings { scan_ghz: 0, ..ESX }.rate(1 << 20, 2.0, 1), 0);
        // At the small part of the rate that is left at rest, scanning goes on, however slowly.
        assert_eq!(ScanSettings { part: 5, ..ESX }.rate(16 << 18, 100.0, 1), 51);
        assert_eq!(ScanSettings { part: 1, ..ESX }.rate(1 << 12, 100.0, 1), 1);
    }

    const PAGES: u32 = 65_536;
    const RATE: u32 = 10_000;
    /// A whole VM would take longer at this rate.
    const PASS: Duration = MAX_APART;
    const QUIET_PASS: Found = Found {
        scanned: 0,
        changed: 0,
        waiting: 0,
        shared: 0,
        pass_ended: true,
    };

    #[test]
    fn rate_bounds_what_is_scanned_and_passes_are_a_whole_vm_apart() {
        let start = Instant::now();
        let mut pace = Pace::new(PAGES, start);
        assert_eq!((Pace::slice(RATE), pace.due(RATE, 0)), (1000, start));
        let full = Found {
            scanned: 1000,
            changed: 1000,
            pass_ended: false,
            ..QUIET_PASS
        };
        assert_eq!(pace.note(start, full, RATE, 0), None);
        let second = start + Duration::from_millis(100);
        assert_eq!(pace.due(RATE, 0), second);
        let last = Found {
            scanned: 200,
            ..QUIET_PASS
        };
        assert_eq!(pace.note(second, last, RATE, 0), None);
        assert_eq!(pace.due(RATE, 0), start + PASS, "1000 pages were new");
        let fast = Duration::from_millis(500);
        assert_eq!(pace.due(2 * PAGES, 0), start + fast, "a whole VM");
        // One slice scans more than some settings allow in seconds.
        let slice = Found {
            scanned: 256,
            ..QUIET_PASS
        };
        pace.note(second, slice, 1, 0);
        assert_eq!(pace.due(1, 0), second + Duration::from_secs(256));
    }

    #[test]
    fn passes_are_further_apart_when_quiet_and_recover_by_faults_or_changes() {
        let mut pace = Pace::new(PAGES, Instant::now());
        let mut apart = |found, faults| {
            let now = Instant::now();
            pace.is_in_pass = false;
            let settled = pace.note(now, found, RATE, faults);
            let next = pace.due(RATE, faults).duration_since(now).as_nanos();
            (settled.is_some(), next / PASS.as_nanos())
        };
        let settled: Vec<_> = (0..5).map(|_| apart(QUIET_PASS, 0)).collect();
        assert_eq!(
            settled,
            [(true, 2), (true, 4), (true, 8), (true, 8), (true, 8)]
        );
        let changed = Found {
            changed: 1000,
            ..QUIET_PASS
        };
        assert_eq!(apart(changed, 0), (false, 1));
        let waiting = Found {
            waiting: 1,
            ..QUIET_PASS
        };
        assert_eq!(apart(waiting, 0), (false, 2));
        assert_eq!(apart(waiting, 0), (false, 2), "they wait for passes");
        let now = Instant::now();
        pace.is_in_pass = false;
        pace.note(now, QUIET_PASS, RATE, 5);
        assert_eq!(pace.due(RATE, 5 + 256), now + 4 * PASS);
        assert_eq!(pace.due(RATE, 5 + 257), now + PASS, "many faults since");
        let part = Found {
            pass_ended: false,
            ..QUIET_PASS
        };
        pace.is_in_pass = false;
        assert_eq!(pace.note(now, part, RATE, 7), None);
        let settled = pace.note(now, QUIET_PASS, RATE, 9);
        assert_eq!(settled, Some(7), "what came since may be unseen");
    }
}
