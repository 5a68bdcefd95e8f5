//! The estimate of active memory by sampling, against guests that use known parts of theirs and are kept waiting for it.
//!
//! A guest that waits for its memory touches less of it in a second than it would, which says nothing about what it uses.
//! So a period of sampling is running time: none in which the guest stood still, but a quarter of that in any case. In such a period
//! a guest touches what it has time for: of an active set from which it takes pages at random, all but a part that is known
//! from how many it took. That is what the estimate is held to, and where nobody waits it is nearly the whole set.

use std::time::Duration;

use memvisor::telemetry::{GuestReport, VmStatus};

use super::common::{TestGuest, TestHost, eventually};
use super::{check, ended, filled};

in_both_engines!(
    estimates_hold_under_pressure_in_lab,
    estimates_hold_under_pressure_in_throughput,
    estimates_are_the_active_sets_without_pressure,
);

/// A guest's memory, and how much of it it writes, in MiB.
const SIZE: u64 = 32;
const WRITTEN: u64 = 30;
/// Name, active set in MiB, and how it is used. Two want most of what there is at 2x and wait for it most of the time; two use
/// little, at a rate at which they touch all of that in a period.
const FLEET: [(&str, u64, &str); 4] = [
    ("wants-1", 28, "threads=4"),
    ("wants-2", 28, "threads=4"),
    ("has-1", 8, "rate=60M"),
    ("has-2", 8, "rate=60M"),
];
/// `Mem.SamplePeriod`, in seconds.
const PERIOD: f64 = 1.0;
/// Periods until what was before is forgotten, and periods that are looked at.
const LEFT_OUT: usize = 1;
const LOOKED_AT: usize = 4;
/// How far the mean of that many periods may be off, in percent of the VM: 4 standard deviations of 400 samples.
const POINTS: f64 = 10.0;
/// A period of a guest that waits takes up to four of another one.
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

/// Waits until enough periods of each guest have ended after its memory was filled. Where two periods end with the same averages
/// they look like one.
fn periods(host: &TestHost) -> [Vec<End>; 4] {
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
    // The first is of some moment within a period.
    ends.map(|ends| ends[1 + LEFT_OUT..].to_vec())
}

/// What came of it for one guest.
#[derive(Debug)]
struct Judged {
    /// What periods found on average, and what they have to find at least and at most, in percent of the VM.
    found: f64,
    expected: (f64, f64),
    /// Which part of the time the VM was stalled.
    stalled: f64,
}

/// Compares what sampling found with the known active set.
fn judge((name, active, _): (&str, u64, &str), ends: &[End], said: &GuestReport) -> Judged {
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    let (passed, stalled) = (last.uptime - first.uptime, last.stalled - first.stalled);
    // Each look at the clock counts a quarter of what has passed at least: of all, or of what the VM stood still in.
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
    // Its clock begins a moment after the power-on.
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

/// Runs the fleet on a host with so many MiB until its estimates are known.
fn judged(engine: &str, profile: &str, memory: u64) -> [Judged; 4] {
    let memory = format!("{memory}M");
    let mut args = vec![
        "--engine",
        engine,
        "--profile",
        profile,
        "--memory",
        &memory,
    ];
    for setting in ["Mem.ShareRateMax=0", "Mem.SamplePeriod=1"] {
        args.extend(["--set", setting]);
    }
    let host = TestHost::start(&args);
    let guests: Vec<TestGuest> = FLEET
        .iter()
        .map(|(name, active, how)| {
            let workload =
                format!("toucher,size={WRITTEN}M,active={active}M,write=20,content=random,{how}");
            // With an agent it would page to its own disk, and use other pages than it seems.
            host.guest(name, &format!("{SIZE}M"), &[&workload], &["--no-agent"])
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
    // Half of what guests have together.
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
