//! Turns what guests reported into the rows of a report.

use std::collections::BTreeMap;
use std::fmt;

use memvisor_guest_agent::guest::GuestReport;
use memvisor_guest_agent::workload::Sequence;

use super::super::Bench;
use super::super::report::{Case, Report};
use super::{FleetGuest, Overcommit, Part, Ran};

const MIB: f64 = 1024.0 * 1024.0;

/// What the guests run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    /// A memvisor host.
    Ours,
    /// The kernel with the same memory.
    Kernel,
    /// The kernel with all the memory there is.
    Bare,
    /// A memvisor host with another setting, which is its name.
    With(&'static str),
}

impl Side {
    pub(super) const fn peer(self) -> Option<&'static str> {
        match self {
            Self::Ours => None,
            Self::Kernel => Some("kernel"),
            Self::Bare => Some("bare"),
            Self::With(setting) => Some(setting),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.peer().unwrap_or("memvisor"))
    }
}

/// Notes a run of one side.
pub(super) fn note(report: &Report, part: &Part<'_>, ran: &Ran, means: &mut Means) {
    let at = format!("{} at {}x", part.fleet.name, part.overcommit);
    for (guest, said) in part.fleet.guests.iter().zip(&ran.reports) {
        note_guest(report, part.side, &format!("{at}, {}", guest.name), said);
    }
    let put = |case: Case, value| report.note(&case, part.side.peer(), value);
    let all = format!("{at}, all guests");
    let busy = busy(&part.fleet.guests, &ran.reports);
    if !busy.is_empty() {
        let mean = geometric_mean(&busy);
        means.push(part.side, part.round, mean);
        put(
            Case::more(Bench::Guests, &all, "operations, geometric mean", "ops"),
            mean,
        );
    }
    if part.fleet.is_equal() {
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        let worst = busy.iter().copied().fold(f64::INFINITY, f64::min);
        let case = Case::more(
            Bench::Guests,
            &all,
            "operations of the worst",
            "% of the mean",
        );
        put(case, worst / mean.max(1.0) * 100.0);
    }
    let memory = ran.memory as f64 / MIB;
    put(
        Case::less(Bench::Guests, &all, "memory in use at most", "MiB"),
        memory,
    );
    // Without pressure nothing of the kernel serves the guests.
    if part.side != Side::Bare {
        let cpu = ran.cpu.as_secs_f64();
        put(
            Case::less(Bench::Guests, &all, "processor time of host or ksmd", "s"),
            cpu,
        );
    }
    if part.side == Side::Ours {
        let own = ran.own as f64 / MIB;
        put(
            Case::less(Bench::Guests, &all, "memory of the daemon itself", "MiB"),
            own,
        );
    }
}

fn note_guest(report: &Report, side: Side, on: &str, said: &GuestReport) {
    let more = |metric, unit| Case::more(Bench::Guests, &on, metric, unit);
    let less = |metric, unit| Case::less(Bench::Guests, &on, metric, unit);
    let put = |case: Case, value| report.note(&case, side.peer(), value);
    put(more("operations", "ops"), operations(said));
    // A guest without operations has no latency. It is idle, or so starved that its operations say enough.
    if operations(said) > 0.0 {
        let worst = |of: fn(&memvisor_guest_agent::workload::Latency) -> f64| {
            let each = said.workloads.iter().map(|workload| of(&workload.latency));
            each.fold(0.0, f64::max)
        };
        put(
            less("an operation, p50", "us"),
            worst(|latency| latency.p50_us),
        );
        put(
            less("an operation, p99", "us"),
            worst(|latency| latency.p99_us),
        );
        put(
            less("an operation, longest", "us"),
            worst(|latency| latency.max_us),
        );
    }
    if let Some(least) = least_second(said) {
        put(more("done in the worst second", "pages, ops"), least);
    }
    let loaded = said
        .workloads
        .iter()
        .map(|workload| workload.loading_seconds);
    put(
        less("until its memory is filled", "s"),
        loaded.fold(0.0, f64::max),
    );
    put(less("processor time", "s"), said.cpu_ms as f64 / 1000.0);
    put(
        less("memory of its process at most", "MiB"),
        said.peak_bytes as f64 / MIB,
    );
}

fn operations(report: &GuestReport) -> f64 {
    let each = report.workloads.iter().map(|workload| workload.operations);
    each.sum::<u64>() as f64
}

/// What a guest got done in its worst second; `None` if it did not run for a second.
fn least_second(report: &GuestReport) -> Option<f64> {
    let seconds = report.workloads.iter().map(|one| one.each_second.len());
    let seconds = seconds.max().unwrap_or(0);
    let sum = |second: usize| {
        let each = report.workloads.iter();
        let done = each.filter_map(|one| one.each_second.get(second).copied());
        done.map(f64::from).sum::<f64>()
    };
    (0..seconds).map(sum).reduce(f64::min)
}

/// Operations of all guests that have something to do. A guest that made none counts with one operation, because with
/// zero the geometric mean would be zero whatever the others did.
fn busy(guests: &[FleetGuest], reports: &[GuestReport]) -> Vec<f64> {
    let is_busy = |guest: &FleetGuest| {
        let mut sequences = guest.workloads.iter().filter_map(|text| text.parse().ok());
        sequences.any(|sequence: Sequence| !sequence.is_idle())
    };
    let each = guests.iter().zip(reports);
    each.filter(|(guest, _)| is_busy(guest))
        .map(|(_, report)| operations(report).max(1.0))
        .collect()
}

fn geometric_mean(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (sum / values.len().max(1) as f64).exp()
}

/// The means of the fleets, for the mean over all fleets.
#[derive(Debug, Default)]
pub(super) struct Means(BTreeMap<(Side, u32), Vec<f64>>);

impl Means {
    fn push(&mut self, side: Side, round: u32, mean: f64) {
        self.0.entry((side, round)).or_default().push(mean);
    }

    /// Notes the mean over all fleets in each round, if there are several and all were compared.
    pub(super) fn note(&self, report: &Report, overcommit: Overcommit) {
        let fleets = self.0.values().map(Vec::len);
        let (least, most) = (fleets.clone().min(), fleets.max());
        if least != most || least.is_none_or(|fleets| fleets < 2) {
            return;
        }
        let all = format!("all fleets at {overcommit}x");
        let case = Case::more(Bench::Guests, &all, "operations, geometric mean", "ops");
        for ((side, _), means) in &self.0 {
            report.note(&case, side.peer(), geometric_mean(means));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memvisor_guest_agent::guest::WorkloadReport;

    use super::super::Builtin;
    use super::*;
    use crate::units::Bytes;

    fn said(operations: u64, each_second: &[u32]) -> GuestReport {
        let workload = WorkloadReport {
            operations,
            each_second: each_second.to_vec(),
            ..WorkloadReport::default()
        };
        GuestReport {
            workloads: vec![workload],
            ..GuestReport::default()
        }
    }

    fn value(report: &Report, case: &str, metric: &str) -> (f64, Option<f64>) {
        let entries = report.entries();
        let found = entries
            .iter()
            .find(|entry| entry.case == case && entry.metric == metric);
        let entry = found.unwrap_or_else(|| panic!("{case}, {metric}: {entries:#?}"));
        (entry.ours, entry.peer_value)
    }

    #[test]
    fn fleet_is_judged_by_its_mean_its_worst_guest_and_its_worst_second() {
        let place = std::path::Path::new("/x");
        let fleet = Builtin::Text.fleet(Bytes::from_mib(8), Duration::from_secs(2), place);
        let report = Report::default();
        let mut means = Means::default();
        for (side, factor) in [(Side::Ours, 1), (Side::Kernel, 10)] {
            let part = Part {
                bench: Bench::Guests,
                fleet: &fleet,
                overcommit: "2".parse().expect("a number"),
                budget: Bytes::from_mib(4),
                time: Duration::from_secs(2),
                round: 1,
                side,
                settings: &[],
            };
            let ran = Ran {
                reports: [0, 1000, 1000, 2000]
                    .map(|operations| said(operations * factor, &[7, 0, 9]))
                    .into(),
                memory: 5 << 20,
                cpu: Duration::from_secs(1),
                own: 1 << 20,
            };
            note(&report, &part, &ran, &mut means);
        }
        let all = "kv-text at 2x, all guests";
        let (ours, peer) = value(&report, all, "operations, geometric mean");
        assert!((ours - 2e9f64.powf(0.25)).abs() < 0.01, "{ours}");
        assert!(peer > Some(ours));
        let (worst, _) = value(&report, all, "operations of the worst");
        assert!(
            (worst - 0.1).abs() < 0.001,
            "1 of 1000.25 in the mean: {worst}"
        );
        let first = "kv-text at 2x, kv-1";
        assert_eq!(
            value(&report, first, "done in the worst second"),
            (0.0, Some(0.0))
        );
        assert_eq!(value(&report, first, "operations"), (0.0, Some(0.0)));
        assert_eq!(
            value(&report, all, "memory in use at most"),
            (5.0, Some(5.0))
        );
        // One fleet alone has no mean over all.
        means.note(&report, "2".parse().expect("a number"));
        assert!(!report.table().contains("all fleets"));
    }

    #[test]
    fn mean_of_all_fleets_is_of_those_that_both_sides_ran() {
        let report = Report::default();
        let mut means = Means::default();
        let two: Overcommit = "2".parse().expect("a number");
        for (side, mean) in [(Side::Ours, 4.0), (Side::Kernel, 2.0), (Side::Ours, 9.0)] {
            means.push(side, 1, mean);
        }
        means.note(&report, two);
        assert_eq!(report.entries(), [], "one fleet was not compared");
        means.push(Side::Kernel, 1, 8.0);
        means.note(&report, two);
        let found = value(&report, "all fleets at 2x", "operations, geometric mean");
        assert!(
            (found.0 - 6.0).abs() < 1e-9 && found.1 == Some(4.0),
            "{found:?}"
        );
    }
}
