//! What guests do once their memory is filled, and what the host counts in the same time.
//!
//! A guest reports its operations once it has ended, second by second. The host shows its counters while the guest
//! runs, at moments that do not fall on those seconds. While a guest fills its memory, and while it verifies it at the
//! end, it faults but makes no operations. So only the second half of each guest's time counts, in whole seconds and
//! without the last one. At both ends of that range, counters are interpolated between the samples before and after.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use memvisor_guest_agent::guest::GuestReport;

use super::super::report::Report;
use super::super::{BenchError, Setup};
use super::{Part, ours};
use crate::telemetry::{HostStatus, VmStatus};

/// Counters of a VM.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Counts {
    /// Faults that were answered, by the daemon or by the guest.
    pub(super) faults: f64,
    /// The faults that the guest answered itself.
    pub(super) inline: f64,
    /// Microseconds for which threads waited for resident pages to be opened.
    pub(super) open_us: f64,
    /// Microseconds in which the VM was stalled.
    pub(super) stalled_us: f64,
}

impl Counts {
    fn of(vm: &VmStatus) -> Self {
        Self {
            faults: vm.faults.served() as f64,
            inline: vm.faults.inline as f64,
            open_us: vm.stalls.open_us as f64,
            stalled_us: vm.stalls.stalled_us as f64,
        }
    }

    fn with(self, other: Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            faults: of(self.faults, other.faults),
            inline: of(self.inline, other.inline),
            open_us: of(self.open_us, other.open_us),
            stalled_us: of(self.stalled_us, other.stalled_us),
        }
    }

    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        self.with(other, |one, two| one + two)
    }
}

/// What one guest did.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Did {
    pub(super) seconds: f64,
    pub(super) operations: f64,
    pub(super) counts: Counts,
}

/// Runs the fleet on a memvisor host; what each guest did. `None`, with a remark, if a guest had not filled its memory
/// in half of its time, or if the time was too short.
pub(super) fn run(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    report: &Report,
) -> Result<Option<Vec<Did>>, BenchError> {
    let mut samples = BTreeMap::<String, Vec<(Duration, Counts)>>::new();
    let ran = ours::run(setup, part, dir, |status: &HostStatus| {
        for vm in &status.vms {
            let sample = (Duration::from_millis(vm.uptime_ms), Counts::of(vm));
            samples.entry(vm.name.clone()).or_default().push(sample);
        }
    })?;
    let second_half = second_half(part.time);
    let guests = part.fleet.guests.iter().zip(&ran.reports);
    let did = guests.map(|(guest, said)| {
        let samples = samples.get(&guest.name).map_or(&[][..], Vec::as_slice);
        did(said, samples, second_half.clone())
    });
    let did: Option<Vec<Did>> = did.collect();
    if did.is_none() {
        report.remark(format!(
            "not measured: {} at {}x, round {}: a guest had not filled its memory by half of its time, {:?}",
            part.fleet.name, part.overcommit, part.round, part.time,
        ));
    }
    Ok(did)
}

/// The second half of `time`, in whole seconds and without the last one.
fn second_half(time: Duration) -> Range<u64> {
    time.as_millis().div_ceil(2000) as u64..time.as_secs().saturating_sub(1)
}

fn did(said: &GuestReport, samples: &[(Duration, Counts)], seconds: Range<u64>) -> Option<Did> {
    let is_filled = |at: f64| said.workloads.iter().all(|one| one.loading_seconds <= at);
    if seconds.is_empty() || !is_filled(seconds.start as f64) {
        return None;
    }
    let range = seconds.start as usize..seconds.end as usize;
    let each = said.workloads.iter();
    let operations = each.filter_map(|one| one.each_second.get(range.clone()));
    let counts = |second| at(samples, Duration::from_secs(second));
    let (before, after) = (counts(seconds.start)?, counts(seconds.end)?);
    Some(Did {
        seconds: (seconds.end - seconds.start) as f64,
        operations: operations.flatten().copied().map(f64::from).sum(),
        counts: after.with(before, |after, before| after - before),
    })
}

/// The counters at some time after the power-on; `None` if there was no later sample.
fn at(samples: &[(Duration, Counts)], time: Duration) -> Option<Counts> {
    let later = samples.partition_point(|(at, _)| *at < time);
    let (end, after) = *samples.get(later)?;
    let (begin, before) = match later.checked_sub(1) {
        Some(earlier) => samples[earlier],
        None => (Duration::ZERO, Counts::default()),
    };
    let part = (time - begin).div_duration_f64((end - begin).max(Duration::from_nanos(1)));
    Some(after.with(before, |after, before| {
        (after - before).mul_add(part, before)
    }))
}

#[cfg(test)]
mod tests {
    use memvisor_guest_agent::guest::WorkloadReport;

    use super::*;

    fn sample(millis: u64, faults: f64) -> (Duration, Counts) {
        let counts = Counts {
            faults,
            ..Counts::default()
        };
        (Duration::from_millis(millis), counts)
    }

    #[test]
    fn faults_and_operations_are_of_the_same_seconds() {
        assert_eq!(second_half(Duration::from_secs(8)), 4..7);
        assert_eq!(second_half(Duration::from_millis(5100)), 3..4);
        let workload = WorkloadReport {
            loading_seconds: 1.5,
            each_second: vec![900, 40, 5, 6, 900],
            ..WorkloadReport::default()
        };
        let said = GuestReport {
            workloads: vec![workload],
            ..GuestReport::default()
        };
        // 100 a second until 2.5 s, from then on 20.
        let samples = [sample(500, 50.0), sample(2500, 250.0), sample(4500, 290.0)];
        let seen = did(&said, &samples, 2..4).expect("it ran for long enough");
        assert_eq!((seen.seconds, seen.operations), (2.0, 11.0));
        assert!((seen.counts.faults - 80.0).abs() < 1e-9, "{seen:?}");
        let first = did(&said, &samples, 2..3).expect("it ran for long enough");
        assert!((first.counts.faults - 60.0).abs() < 1e-9, "{first:?}");
        assert_eq!(did(&said, &samples, 1..4), None, "memory is not filled");
        assert_eq!(did(&said, &samples, 3..5), None, "nobody sampled after 5 s");
        assert_eq!(did(&said, &samples, 3..3), None, "no time at all");
    }
}
