//! What the demo has seen, and what it says at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use memvisor_guest_agent::guest::GuestReport;
use ratatui::buffer::Buffer;
use serde::Serialize;

use super::{DemoError, DemoOptions};
use crate::telemetry::{HostStatus, Rates, Savings, VmStatus, overcommit};
use crate::top::{Screen, draw, summary};
use crate::units::{Bytes, Pages, VmId};

/// What is kept of the snapshots of a demo so far.
#[derive(Debug)]
pub(super) struct Watch {
    configured: Pages,
    latest: HostStatus,
    rates: Option<Rates>,
    fullest: HostStatus,
    fullest_rates: Option<Rates>,
    peak: Savings,
    most_used: Pages,
    /// Each VM as it was last seen, because its counters are gone when it ends.
    last_seen: BTreeMap<VmId, VmStatus>,
}

/// What moved during the whole demo, up to the last snapshot of each guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Traffic {
    /// Faults served.
    pub faults: u64,
    /// Shared pages broken by a write.
    pub cow_breaks: u64,
    /// Pages compressed.
    pub compressed: u64,
    /// Pages brought back from compression.
    pub decompressed: u64,
    /// Bytes written to swap files.
    pub swapped_out_bytes: Bytes,
    /// Bytes read from swap files.
    pub swapped_in_bytes: Bytes,
}

/// The result of a demo that ended well.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct DemoOutcome {
    /// The engine of the host.
    pub engine: String,
    /// The budget of the host.
    pub budget_pages: Pages,
    /// The configured memory of all guests.
    pub configured_pages: Pages,
    /// Configured guest memory divided by the budget, minus 1, as esxtop counts it.
    pub overcommit: f64,
    /// The most of the budget that was seen in use.
    pub most_used_pages: Pages,
    /// What the mechanisms saved at the moment at which they saved most together.
    pub fullest: Savings,
    /// When that was, in milliseconds since the host started.
    pub fullest_at_ms: u64,
    /// The most that each mechanism saved at any time.
    pub peak: Savings,
    /// What was moved.
    pub traffic: Traffic,
    /// Pages whose content the guests compared with what they had written.
    pub pages_verified: u64,
    /// Pages that differed; always 0, since the demo fails otherwise.
    pub mismatches: u64,
    /// How long the demo took, in milliseconds.
    pub duration_ms: u64,
    /// The report of each guest.
    pub guests: Vec<GuestReport>,
}

impl Watch {
    /// Begins with a status of the host before it had a guest.
    pub(super) fn new(options: &DemoOptions, first: HostStatus) -> Self {
        let guests = u64::from(options.guests);
        Self {
            configured: Pages(options.guest_memory.pages().0 * guests),
            latest: first.clone(),
            rates: None,
            fullest: first,
            fullest_rates: None,
            peak: Savings::default(),
            most_used: Pages(0),
            last_seen: BTreeMap::new(),
        }
    }

    /// Takes in the next snapshot.
    pub(super) fn see(&mut self, status: HostStatus) {
        let savings = Savings::of(&status);
        self.rates = Some(Rates::between(&self.latest, &status));
        if savings.total() > Savings::of(&self.fullest).total() {
            (self.fullest, self.fullest_rates) = (status.clone(), self.rates.clone());
        }
        self.peak = self.peak.max_each(savings);
        self.most_used = self.most_used.max(status.used_pages);
        let seen = status.vms.iter().map(|vm| (vm.id, vm.clone()));
        self.last_seen.extend(seen);
        self.latest = status;
    }

    /// The latest snapshot as a screen.
    pub(super) fn screen(&self, screen: Screen) -> Buffer {
        draw(&self.latest, self.rates.as_ref(), screen)
    }

    /// The snapshot that saved most as a screen.
    pub(super) fn fullest_screen(&self, screen: Screen) -> Buffer {
        draw(&self.fullest, self.fullest_rates.as_ref(), screen)
    }

    /// The latest snapshot as a line.
    pub(super) fn line(&self) -> String {
        let seconds = self.latest.uptime_ms / 1000;
        format!("{seconds:>3} s: {}", summary(&self.latest))
    }

    /// The outcome, from the snapshots and the reports of the guests.
    ///
    /// # Errors
    /// [`DemoError::NothingVerified`].
    pub(super) fn outcome(
        self,
        guests: Vec<GuestReport>,
        took: Duration,
    ) -> Result<DemoOutcome, DemoError> {
        let pages_verified = guests.iter().map(|guest| guest.pages_verified).sum();
        if pages_verified == 0 {
            return Err(DemoError::NothingVerified);
        }
        Ok(DemoOutcome {
            engine: self.latest.engine,
            budget_pages: self.latest.budget_pages,
            configured_pages: self.configured,
            overcommit: overcommit(self.configured, self.latest.budget_pages),
            most_used_pages: self.most_used,
            fullest: Savings::of(&self.fullest),
            fullest_at_ms: self.fullest.uptime_ms,
            peak: self.peak,
            traffic: Traffic::of(self.last_seen.values()),
            pages_verified,
            mismatches: guests.iter().map(|guest| guest.mismatches).sum(),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            guests,
        })
    }
}

impl Traffic {
    fn of<'a>(vms: impl Iterator<Item = &'a VmStatus>) -> Self {
        let mut sum = Self::default();
        for vm in vms {
            sum.faults += vm.faults.served();
            sum.cow_breaks += vm.faults.cow_break;
            sum.compressed += vm.evict.to_zip;
            sum.decompressed += vm.faults.refill_zip;
            sum.swapped_out_bytes.0 += vm.swap.out_bytes.0;
            sum.swapped_in_bytes.0 += vm.swap.in_bytes.0;
        }
        sum
    }
}

impl fmt::Display for DemoOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} guests of together {} ran in {} (at most {} used): overcommit {:.2}",
            self.guests.len(),
            self.configured_pages.bytes(),
            self.budget_pages.bytes(),
            self.most_used_pages.bytes(),
            self.overcommit,
        )?;
        let at = format!("at {} s", self.fullest_at_ms / 1000);
        writeln!(
            f,
            "{:<12} {at:>12} {:>12} {:>12}",
            "saved by", "pages", "at most"
        )?;
        let total = ("together", self.fullest.total());
        let then = self.fullest.each().into_iter().chain([total]);
        let most = self.peak.each().map(|(_, pages)| pages.bytes().to_string());
        for ((name, pages), most) in then.zip(most.into_iter().chain([String::new()])) {
            let row = format!(
                "{name:<12} {:>12} {:>12} {most:>12}",
                pages.bytes(),
                pages.0
            );
            writeln!(f, "{}", row.trim_end())?;
        }
        let traffic = &self.traffic;
        writeln!(
            f,
            "{} faults, {} copy-on-write; {} pages compressed, {} decompressed; {} swapped out, {} in",
            traffic.faults,
            traffic.cow_breaks,
            traffic.compressed,
            traffic.decompressed,
            traffic.swapped_out_bytes,
            traffic.swapped_in_bytes,
        )?;
        writeln!(
            f,
            "{} pages verified, {} corrupt",
            self.pages_verified, self.mismatches
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::tests::options;
    use crate::telemetry::fixture;
    use crate::top::PICTURE;

    /// Three snapshots: the fixture, then one with other counters and homes, then the same with only the second VM.
    fn watch() -> Watch {
        let mut first = fixture::host();
        first.vms.clear();
        first.totals = crate::telemetry::Totals::default();
        first.share = crate::telemetry::ShareStatus::default();
        let mut watch = Watch::new(&options("/bin/false"), first);
        watch.see(fixture::host());
        let mut later = fixture::host();
        later.uptime_ms += 1000;
        later.used_pages.0 += 1;
        later.vms[0].swap.in_bytes.0 += 4096;
        later.totals.homes.zero_pages = Pages(6000);
        later.totals.homes.ballooned_pages = Pages(0);
        watch.see(later.clone());
        later.vms.remove(0);
        watch.see(later);
        watch
    }

    fn report(pages_verified: u64) -> GuestReport {
        GuestReport {
            pages_verified,
            ..GuestReport::default()
        }
    }

    #[test]
    fn outcome_shows_the_fullest_snapshot_the_peaks_and_all_traffic() {
        let took = Duration::from_secs(31);
        let outcome = watch()
            .outcome(vec![report(40), report(2)], took)
            .expect("verified");
        assert_eq!(outcome.fullest, Savings::of(&fixture::host()));
        assert_eq!(outcome.peak.zero_pages, Pages(6000));
        assert_eq!(outcome.peak.balloon_pages, Pages(25_600));
        assert_eq!(outcome.traffic.swapped_in_bytes, Bytes(6 * 4096 + 4096));
        assert_eq!(outcome.traffic.cow_breaks, 34);
        assert_eq!(outcome.overcommit, 5.0);
        assert_eq!(outcome.most_used_pages, Pages(211 * 256 + 1));
        assert_eq!(outcome.to_string(), include_str!("snapshots/outcome.txt"));
    }

    #[test]
    fn picture_shows_the_fullest_snapshot() {
        let watch = watch();
        assert_ne!(watch.fullest.uptime_ms, watch.latest.uptime_ms);
        let expected = draw(&fixture::host(), watch.fullest_rates.as_ref(), PICTURE);
        assert_eq!(watch.fullest_screen(PICTURE), expected);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("demo.svg");
        crate::demo::draw(&watch, &path).expect("there is room");
        let svg = std::fs::read_to_string(&path).expect("a picture");
        for part in [
            "<svg",
            "PSHARE",
            "database-p",
            "46.5",
            "ballooned",
            "</svg>",
        ] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        let error = crate::demo::draw(&watch, dir.path()).expect_err("a directory");
        assert!(
            error
                .to_string()
                .ends_with(&dir.path().display().to_string()),
            "{error}"
        );
    }

    #[test]
    fn outcome_without_a_verified_page_is_a_failure() {
        let outcome = watch().outcome(vec![report(0)], Duration::ZERO);
        assert!(matches!(outcome, Err(DemoError::NothingVerified)));
    }
}
