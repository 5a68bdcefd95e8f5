//! How fast a VM is scanned.
//!
//! ESX's settings bound the rate three ways: the time in which a whole VM is scanned, a rate for each
//! VM, and a rate for the host by its clock. Below that, a VM that does not change is scanned ever
//! more slowly, so that an idle host is idle; anything that happens in the VM brings the full
//! rate back.

use std::fs;
use std::time::Duration;

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
}

/// Slices a second at full rate.
const SLICES: u32 = 10;
/// The least pages of a slice: below, waking up costs more than looking.
const MIN_SLICE: u32 = 256;
/// A settled VM is scanned down to this much slower.
const MAX_SLOWDOWN: u32 = 64;
/// A pass that finds at most one page in so many changed is a quiet one.
const QUIET: u32 = 512;
/// So many faults since the last slice, as a part of the VM, end the quiet: one page in so many.
const ACTIVE: u32 = 256;

impl ScanSettings {
    /// Pages a second for a VM of `pages` on a host of so many GHz (all cores) and VMs; zero when
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
        let rate = rate.round() as u32;
        if self.rate_max == 0 || self.scan_ghz == 0 {
            0
        } else {
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
    if mhz > 0.0 { mhz / 1000.0 } else { 1.0 }
}

/// The pace of one VM's scanner.
#[derive(Debug)]
pub(super) struct Pace {
    slowdown: u32,
    pass_changed: u64,
    faults: u64,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self {
            slowdown: 1,
            pass_changed: 0,
            faults: 0,
        }
    }

    /// Pages of the next slice and the time until it, for a rate that is not zero.
    pub(super) fn slice(&self, rate: u32) -> (u32, Duration) {
        let pages = (rate / SLICES).max(MIN_SLICE);
        let every = Duration::from_secs(1) * pages / rate.max(1);
        (pages, every * self.slowdown)
    }

    /// Notes what a slice found, and how many faults the VM has had so far.
    pub(super) fn note(&mut self, found: Found, faults: u64, pages: u32) {
        self.pass_changed += u64::from(found.changed) + found.shared;
        let new_faults = faults.saturating_sub(self.faults);
        self.faults = faults;
        if new_faults > u64::from(pages / ACTIVE) {
            self.slowdown = 1;
        }
        if found.pass_ended {
            let quiet = self.pass_changed <= u64::from(pages / QUIET);
            self.slowdown = if quiet {
                (self.slowdown * 2).min(MAX_SLOWDOWN)
            } else {
                1
            };
            self.pass_changed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESX: ScanSettings = ScanSettings {
        scan_time: Duration::from_secs(3600),
        scan_ghz: 4,
        rate_max: 1024,
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
    }

    #[test]
    fn pace_slows_down_when_quiet_and_recovers_by_faults_or_changes() {
        let mut pace = Pace::new();
        let quiet = Found {
            pass_ended: true,
            ..Found::default()
        };
        let (pages, every) = pace.slice(10_000);
        assert_eq!((pages, every), (1000, Duration::from_millis(100)));
        for _ in 0..10 {
            pace.note(quiet, 0, 65_536);
        }
        assert_eq!(pace.slice(10_000).1, Duration::from_millis(6400));
        pace.note(
            Found {
                pass_ended: false,
                ..quiet
            },
            1000,
            65_536,
        );
        assert_eq!(pace.slice(10_000).1, every);
        pace.note(quiet, 1000, 65_536);
        pace.note(
            Found {
                changed: 1000,
                ..quiet
            },
            1000,
            65_536,
        );
        assert_eq!(pace.slice(10_000).1, every);
    }
}
