//! First touches per second: a real guest fills memory that it never had, and a real host gives it page
//! after page. Prints a table; no speed is asserted.
//!
//! ```text
//! cargo bench --bench faults -- [--size MiB] [--rounds N]
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{TestHost, engines};
use memvisor::units::PAGE_SIZE;

/// How long a guest may take to fill its memory, and to verify it.
const LONG: Duration = Duration::from_secs(120);

/// One guest's first touches.
struct Round {
    touches: u64,
    time: Duration,
    p50_us: u64,
    p99_us: u64,
}

impl Round {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    fn rate(&self) -> f64 {
        self.touches as f64 / self.time.as_secs_f64()
    }
}

/// Starts a guest that fills `mib` MiB, and watches the host's counter from the first look at it until the
/// last touch.
fn round(host: &TestHost, number: u32, threads: u32, mib: u64) -> Round {
    let name = format!("g{number}-{threads}");
    let memory = format!("{}M", mib + 16);
    // Zeroes, because making any other content costs a guest more time than its faults.
    let workload = format!("stream,size={mib}M,content=zero,threads={threads},pause=1h");
    let guest = host.guest(&name, &memory, &[&workload], &[]);
    let wanted = mib * (1 << 20) / PAGE_SIZE as u64;
    let (mut first, start) = (None, Instant::now());
    loop {
        let faults = host.vm(&name).faults;
        let (touches, now) = (faults.first_touch, Instant::now());
        let (before, since) = *first.get_or_insert((touches, now));
        if touches >= wanted {
            let latency = faults.latency.expect("there were faults");
            guest.stop(LONG);
            return Round {
                touches: touches - before,
                time: now - since,
                p50_us: latency.p50_us,
                p99_us: latency.p99_us,
            };
        }
        assert!(
            start.elapsed() < LONG,
            "{touches} of {wanted} pages were touched"
        );
        // The loop itself must not compete with what it measures.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn option(name: &str, default: u64) -> u64 {
    let args: Vec<String> = std::env::args().collect();
    let value = args
        .iter()
        .position(|arg| arg == name)
        .and_then(|at| args.get(at + 1));
    value.map_or(default, |text| text.parse().expect("a number"))
}

fn main() {
    let (mib, rounds) = (option("--size", 256), option("--rounds", 5));
    println!("first touches of {mib} MiB, {rounds} rounds; rates in pages a second");
    println!(
        "{:<9} {:>7} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "engine", "threads", "least", "median", "most", "p50 us", "p99 us"
    );
    engines(|engine| {
        let budget = format!("{}M", mib + 128);
        // Without the scanner, which would take the zero pages away again during the measurement.
        let host = TestHost::start(&[
            "--memory",
            &budget,
            "--engine",
            engine,
            "--share-scan-ghz",
            "0",
        ]);
        for threads in [1, 2, 4] {
            let mut done: Vec<Round> = (0..rounds)
                .map(|number| round(&host, u32::try_from(number).expect("few"), threads, mib))
                .collect();
            done.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
            let (Some(least), Some(most)) = (done.first(), done.last()) else {
                return;
            };
            let median = &done[done.len() / 2];
            println!(
                "{engine:<9} {threads:>7} {:>9.0} {:>9.0} {:>9.0} {:>7} {:>7}",
                least.rate(),
                median.rate(),
                most.rate(),
                median.p50_us,
                median.p99_us
            );
        }
        host.stop(&[]);
    });
}
