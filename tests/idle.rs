//! A host whose guests do nothing does next to nothing.

mod rig;

use std::time::{Duration, Instant};

use rig::{Host, cpu_time, engines};

/// How long guests may take to load, and the host to look at what they have loaded.
const SETTLE: Duration = Duration::from_secs(60);
/// How long processor time is measured.
const MEASURE: Duration = Duration::from_secs(10);
/// The host must be idle in one of this many windows of that length.
const WINDOWS: u32 = 4;

#[test]
fn idle_host_and_guests_use_less_than_1_percent_of_a_processor() {
    for engine in engines() {
        let host = Host::start(engine, "256M", &[]);
        let names = ["a", "b", "c", "d"];
        let guests = names.map(|name| host.guest(name, "--memory 48M --workload idle,size=40M"));
        host.calm(&names, SETTLE);
        let pids = || std::iter::once(host.pid()).chain(guests.iter().map(|guest| guest.pid()));
        // In the first windows the scanner may still look at pages that changed.
        let idle = (1..=WINDOWS).any(|window| {
            let before: Vec<Duration> = pids().map(cpu_time).collect();
            let start = Instant::now();
            // Nothing but time is waited for, so there is no condition to poll.
            std::thread::sleep(MEASURE);
            let (after, elapsed) = (pids().map(cpu_time), start.elapsed());
            let spent: Vec<Duration> = after.zip(before).map(|(a, b)| a - b).collect();
            println!("{engine}: window {window}: host and guests used {spent:?} in {elapsed:?}");
            spent.iter().all(|spent| *spent * 100 < elapsed)
        });
        assert!(idle, "more than 1 % in each of {WINDOWS} times {MEASURE:?}");
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}
