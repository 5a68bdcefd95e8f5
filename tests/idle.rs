//! A host whose guests do nothing does next to nothing.

mod common;

use std::time::{Duration, Instant};

use common::{TestHost, cpu_time, engines};

/// How long guests may take to load, and the host to find all there is to share.
const SETTLE: Duration = Duration::from_secs(60);
/// How long processor time is measured.
const MEASURE: Duration = Duration::from_secs(10);

#[test]
fn idle_host_and_guests_use_less_than_1_percent_of_a_processor() {
    engines(|engine| {
        let host = TestHost::start(&["--memory", "256M", "--engine", engine]);
        let names = ["a", "b", "c", "d"];
        let guests = names.map(|name| host.guest(name, "48M", &["idle,size=40M"], &[]));
        host.rest(&names, SETTLE);
        let used = || -> Vec<Duration> {
            let pids = std::iter::once(host.pid()).chain(guests.iter().map(|guest| guest.pid()));
            pids.map(cpu_time).collect()
        };
        let (before, start) = (used(), Instant::now());
        // The one thing that is waited for here is time itself.
        std::thread::sleep(MEASURE);
        let (after, elapsed) = (used(), start.elapsed());
        let spent: Vec<Duration> = after.iter().zip(&before).map(|(a, b)| *a - *b).collect();
        println!("{engine}: host and guests used {spent:?} in {elapsed:?}");
        for spent in spent {
            assert!(
                spent * 100 < elapsed,
                "{spent:?} of processor time in {elapsed:?}"
            );
        }
        for guest in guests {
            guest.stop(SETTLE);
        }
        host.stop(&[]);
    });
}
