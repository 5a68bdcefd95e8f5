//! The estimate of active memory by sampling, compared with guests that use known parts of theirs and are kept waiting.
//!
//! A guest that waits for memory touches less of it in a second than it otherwise would, but it does not use less. So a
//! period of sampling is measured in running time: time in which the guest stood still does not count, except that a
//! quarter of all time always counts. In such a period the guest touches what it has time for. It picks pages of its
//! active set at random, so the part that it touched follows from the number of touches. The estimate is held to that
//! part. Where no guest waits, it is nearly the whole set.

use std::time::Duration;

use memvisor::telemetry::VmStatus;
use memvisor_guest_agent::guest::GuestReport;

use super::rig::{Host, Process, eventually};
use super::{check, ended, filled};

in_both_engines!(
    estimates_hold_under_pressure_in_lab,
    estimates_hold_under_pressure_in_throughput,
    estimates_are_the_active_sets_without_pressure,
);

/// A guest's memory, and how much of it it writes, in MiB.
const SIZE: u64 = 32;
const WRITTEN: u64 = 30;
/// Name, active set in MiB, and how it is used. At 2x, two guests want most of the memory and wait for it most of the
/// time. The other two use little, at a rate at which they touch all of it in a period.
const FLEET: [(&str, u64, &str); 4] = [
    ("wants-1", 28, "threads=4"),
    ("wants-2", 28, "threads=4"),
    ("has-1", 8, "rate=60M"),
    ("has-2", 8, "rate=60M"),
];
/// `Mem.SamplePeriod`, in seconds.
const PERIOD: f64 = 1.0;
/// Periods that are left out because their averages still hold older ones, and periods that are looked at.
const LEFT_OUT: usize = 1;
const LOOKED_AT: usize = 4;
/// How far the mean of the periods may be off, in percent of the VM: 4 standard deviations of 400 samples.
const POINTS: f64 = 10.0;
/// Long, because a guest that waits all the time needs four times as long for a period.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was seen of a VM when a period of sampling had just ended.
#[derive(Clone, Copy, Debug)]
struct End {
    averages: (u32, u32),
    uptime: f64,
    stalled: f64,
}

impl End {
    fn of(vm: &VmStatus) -> Self {
        let activity = &vm.activity;
        Self {
            averages: (activity.slow_percent, activity.fast_percent),
            uptime: Duration::from_millis(vm.uptime_ms).as_secs_f64(),
            stalled: Duration::from_micros(vm.stalls.stalled_us).as_secs_f64(),
        }
    }
}

/// Waits until enough periods of each guest have ended after its memory was filled. A period is seen to end when the
/// averages change, so two that end with the same averages look like one.
fn periods(host: &Host) -> [Vec<End>; 4] {
    let mut ends: [Vec<End>; 4] = Default::default();
    eventually("periods of sampling end", PATIENCE, || {
        let status = host.status();
        check(&status);
        for ((name, ..), ends) in FLEET.iter().zip(&mut ends) {
            let vm = status.vms.iter().find(|vm| vm.name == *name)?;
            let now = End::of(vm);
            if ends.last().is_none_or(|last| last.averages != now.averages) {
                ends.push(now);
            }
        }
        let enough = |ends: &Vec<End>| ends.len() > 1 + LEFT_OUT + LOOKED_AT;
        ends.iter().all(enough).then_some(())
    });
    // The first was taken at some moment within a period, not at its end.
    ends.map(|ends| ends[1 + LEFT_OUT..].to_vec())
}

/// What was found for one guest, and what had to be found.
#[derive(Debug)]
struct Judged {
    /// The mean of what the periods found, and the range that it has to be in, in percent of the VM.
    found: f64,
    expected: (f64, f64),
    /// The part of the time in which the VM was stalled.
    stalled: f64,
}

/// Compares what sampling found with the known active set.
fn judge((name, active, _): (&str, u64, &str), ends: &[End], said: &GuestReport) -> Judged {
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    let (passed, stalled) = (last.uptime - first.uptime, last.stalled - first.stalled);
    // The bounds of the running time. Each look at the clock counts at least a quarter of the time since the last one:
    // a quarter of all time if stalls spread evenly over the looks, a quarter of the stalls if they fill whole looks.
    let running = (
        (passed - stalled).max(passed / 4.0),
        passed - stalled * 0.75,
    );
    let periods = (ends.len() - 1) as f64;
    assert!(
        periods * PERIOD <= running.1 + PERIOD / 4.0,
        "{name}: {periods} periods of {PERIOD} s of running time in {running:.1?} of {passed:.1} s"
    );
    // The fast average has three quarters of the latest period.
    let fast = |end: &End| f64::from(end.averages.1);
    let found = |pair: &[End]| (fast(&pair[1]) - fast(&pair[0]) * 0.25) / 0.75;
    let found: f64 = ends.windows(2).map(found).sum::<f64>() / periods;
    let each_second = &said.workloads[0].each_second;
    // The seconds of the report begin a moment after the power-on.
    let end = each_second.len().min(last.uptime.floor() as usize);
    let seconds = first.uptime.ceil() as usize..end;
    let touches: u32 = each_second[seconds.clone()].iter().sum();
    let rate = f64::from(touches) / seconds.len() as f64;
    let pages = (active * 256) as f64;
    let expected = |running: f64| {
        let touches = rate * PERIOD * passed / running;
        (1.0 - (-touches / pages).exp()) * active as f64 / SIZE as f64 * 100.0
    };
    let judged = Judged {
        found,
        expected: (expected(running.1), expected(running.0)),
        stalled: stalled / passed,
    };
    let known = active as f64 / SIZE as f64 * 100.0;
    eprintln!("{name}: {known:.1} % are used; {periods} periods in {passed:.1} s: {judged:.2?}");
    let (low, high) = judged.expected;
    assert!(
        (low - POINTS..=high + POINTS).contains(&found),
        "{name}: {judged:?}"
    );
    judged
}

/// Runs the fleet on a host with `memory` MiB until its estimates are known.
fn judged(engine: &str, profile: &str, memory: u64) -> [Judged; 4] {
    let memory = format!("{memory}M");
    let mut args = vec!["--profile", profile];
    for setting in ["Mem.ShareRateMax=0", "Mem.SamplePeriod=1"] {
        args.extend(["--set", setting]);
    }
    let host = Host::start(engine, &memory, &args);
    let guests: Vec<Process> = FLEET
        .iter()
        .map(|(name, active, how)| {
            let words = format!(
                "--memory {SIZE}M --no-agent \
                 --workload toucher,size={WRITTEN}M,active={active}M,write=20,content=random,{how}"
            );
            // With an agent the guest would page to its own disk, and use other pages than its workload names.
            host.guest(name, &words)
        })
        .collect();
    FLEET
        .iter()
        .for_each(|(name, ..)| filled(&host, name, WRITTEN));
    let ends = periods(&host);
    let reports = ended(host, guests, &[]);
    let mut all = FLEET.iter().zip(ends.iter().zip(&reports));
    std::array::from_fn(|_| {
        let (guest, (ends, said)) = all.next().expect("four each");
        judge(*guest, ends, said)
    })
}

fn pressed(engine: &str, profile: &str) {
    // Half of what the guests have together.
    let all = judged(engine, profile, SIZE * FLEET.len() as u64 / 2);
    for (wants, has) in [(&all[0], &all[2]), (&all[1], &all[3])] {
        assert!(wants.stalled > 0.5, "there was no pressure: {all:?}");
        assert!(wants.found > has.found, "who waits looks idle: {all:?}");
    }
}

fn estimates_hold_under_pressure_in_lab(engine: &str) {
    pressed(engine, "lab");
}

fn estimates_hold_under_pressure_in_throughput(engine: &str) {
    pressed(engine, "throughput");
}

fn estimates_are_the_active_sets_without_pressure(engine: &str) {
    let all = judged(engine, "lab", SIZE * FLEET.len() as u64 * 3 / 2);
    for (judged, (name, active, _)) in all.iter().zip(FLEET) {
        let known = active as f64 / SIZE as f64 * 100.0;
        assert!((judged.found - known).abs() <= POINTS, "{name}: {judged:?}");
    }
}
