//! What it costs a guest that its active memory is sampled.
//!
//! Sampling costs less than the difference in a guest's speed from one run to the next. So it is switched off and on
//! for a few seconds each while one guest runs without pressure, and what the guest got done is compared within that
//! run. Pages are marked when a period begins, so whole numbers of periods are compared. Sharing is off because it
//! closes pages too: this way, all the time for which threads wait for closed pages is due to sampling. That time is
//! shown as well. It leaves out the way into the kernel and back, but differs less from run to run. The host is asked
//! for its state only at the start and at the end, because each such question makes it walk page tables as well for
//! ten seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::report::{Case, Report};
use super::super::{Bench, BenchError, Setup};
use super::{Overcommit, Part, fleet, ours};
use crate::settings::Key;
use crate::telemetry::GuestReport;
use crate::units::Bytes;

/// The host has twice the memory that is wanted.
const NO_PRESSURE: Overcommit = Overcommit(50);
/// The shortest default period of all profiles, which costs most.
const PERIOD: u64 = 2;
/// Seconds for which sampling stays on or off: whole periods.
const SLICE: u64 = 2 * PERIOD;
/// Seconds that a guest has to fill its memory. Sampling is first on a slice later, when the walk of page tables that
/// the look at the start caused is over.
const FILLING: u64 = 8;
/// The guest wants this part of the size, like one of the four guests of a fleet.
const PART: u64 = 4;
const OFF: &str = "off";

pub(in super::super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let options = &setup.options.guests;
    let dir = setup.subdirectory("guests")?;
    let wants = Bytes(options.size.0 / PART).pages().bytes();
    let fleet = fleet::stores("zipf", 1, wants, "0.99");
    let mut settings = options.settings.clone();
    for key in [Key::SamplePeriod, Key::ShareRateMax] {
        settings.push((key, "0".to_owned()));
    }
    for round in 1..=options.rounds {
        let part = Part {
            settings: &settings,
            time: options.sample_time,
            ..Part::of_ours(setup, Bench::Sample, (&fleet, NO_PRESSURE), round)
        };
        let (said, waited) = switched(setup, &part, &dir)?;
        let Some((on, off)) = said.first().and_then(means) else {
            report.remark(format!(
                "not measured: round {round}: --time {:?} has no room for {FILLING} s to fill memory, then {SLICE} s with \
                 sampling and {SLICE} s without",
                part.time
            ));
            continue;
        };
        let on_what = format!("{} without pressure, sampled each {PERIOD} s", fleet.name);
        let case = Case::more(Bench::Sample, &on_what, "operations", "ops/s");
        report.ours(&case, on);
        report.peer(&case, OFF, off);
        let case = Case::less(Bench::Sample, &on_what, "what sampling takes", "%");
        report.ours(&case, (1.0 - on / off) * 100.0);
        let metric = "threads wait for closed pages";
        let case = Case::less(Bench::Sample, &on_what, metric, "% of the time");
        report.ours(&case, waited * 100.0);
    }
    Ok(())
}

/// Whether sampling is on in a second. Slices go off, on, on, off and so on, so that a guest that gets steadily slower
/// or faster does so for both. `None` while memory is filled.
fn is_on(second: u64) -> Option<bool> {
    let slice = second.checked_sub(FILLING)? / SLICE;
    Some(matches!(slice % 4, 1 | 2))
}

/// Runs the guest while sampling is switched on and off; its report, and the part of the sampled time for which threads
/// waited for closed pages.
fn switched(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
) -> Result<(Vec<GuestReport>, f64), BenchError> {
    let (mut began, mut is_sampled, mut waited) = (None, false, None);
    let last = part.time.as_secs().saturating_sub(1);
    let (reports, _) = ours::serve(setup, part, dir, |client, _| {
        let Some(began) = began else {
            let status = client.status()?;
            let uptime = status
                .vms
                .first()
                .map(|vm| Duration::from_millis(vm.uptime_ms));
            began = uptime.and_then(|uptime| Instant::now().checked_sub(uptime));
            return Ok(());
        };
        let second = began.elapsed().as_secs();
        if second >= last && waited.is_none() {
            let status = client.status()?;
            waited = status.vms.first().map(|vm| vm.stalls.open_us as f64);
        }
        let wanted = is_on(second).unwrap_or(false);
        if wanted != is_sampled {
            let period = if wanted { PERIOD } else { 0 };
            client.set_setting(Key::SamplePeriod, &period.to_string())?;
            is_sampled = wanted;
        }
        Ok(())
    })?;
    let sampled = (0..last).filter(|second| is_on(*second) == Some(true));
    let sampled = sampled.count().max(1) as f64;
    Ok((reports, waited.unwrap_or(0.0) / (sampled * 1e6)))
}

/// Operations a second with sampling and without, over equal numbers of slices; `None` if there was no time for one
/// slice of each.
fn means(said: &GuestReport) -> Option<(f64, f64)> {
    let workload = said.workloads.first()?;
    let skipped = FILLING as usize;
    let seconds = workload.each_second.get(skipped..)?;
    let pairs = seconds.len() / (2 * SLICE as usize);
    if pairs == 0 || workload.loading_seconds > FILLING as f64 {
        return None;
    }
    let (mut on, mut off) = (0.0, 0.0);
    for (second, operations) in (FILLING..).zip(&seconds[..pairs * 2 * SLICE as usize]) {
        let sum = if is_on(second)? { &mut on } else { &mut off };
        *sum += f64::from(*operations);
    }
    let each = (pairs as u64 * SLICE) as f64;
    Some((on / each, off / each)).filter(|(_, off)| *off > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Profile, Value};
    use crate::telemetry::WorkloadReport;

    #[test]
    fn period_is_the_shortest_default() {
        let default = Profile::Lab.default_of(Key::SamplePeriod.spec());
        assert_eq!(default, Value::Time(Duration::from_secs(PERIOD)));
    }

    #[test]
    fn slices_alternate_and_only_pairs_of_them_count() {
        let on: String = (0..28)
            .map(|second| match is_on(second) {
                None => '-',
                Some(true) => '1',
                Some(false) => '0',
            })
            .collect();
        assert_eq!(on, "--------00001111111100000000");
        let said = |each_second: Vec<u32>| GuestReport {
            workloads: vec![WorkloadReport {
                loading_seconds: 1.0,
                each_second,
                ..WorkloadReport::default()
            }],
            ..GuestReport::default()
        };
        let mut seconds = vec![1; 8];
        seconds.extend([10; 4]);
        seconds.extend([8; 4]);
        assert_eq!(means(&said(seconds.clone())), Some((8.0, 10.0)));
        assert_eq!(means(&said(seconds[..15].to_vec())), None);
        // The third slice has no partner yet.
        seconds.extend([80; 4]);
        assert_eq!(means(&said(seconds.clone())), Some((8.0, 10.0)));
        seconds.extend([20; 4]);
        assert_eq!(means(&said(seconds)), Some((44.0, 15.0)));
    }
}
