//! How long real guests stand still, and for what cause.

mod rig;

use std::collections::BTreeMap;
use std::path::Path;

use memvisor::telemetry::{StallStatus, VmStatus};
use memvisor::units::Bytes;
use rig::{Host, Process, engines, image};

/// The time by cause, and the time in which at least one thread stood still. None of them may ever fall.
fn counters(stalls: &StallStatus) -> BTreeMap<&'static str, u64> {
    let any = ("at least one thread", stalls.stalled_us);
    stalls.each().into_iter().chain([any]).collect()
}

/// The most threads that the guest has had.
struct Threads(u64);

impl Threads {
    fn see(&mut self, guest: &Process) -> u64 {
        let tasks = format!("/proc/{}/task", guest.pid());
        let now = Path::new(&tasks).read_dir().map_or(0, Iterator::count);
        self.0 = self.0.max(now as u64);
        self.0
    }
}

/// Checks that no thread has stood still for longer than it has lived.
#[track_caller]
fn check(vm: &VmStatus, threads: u64) {
    // The uptime is in whole milliseconds, and is read a moment before the stalls.
    let uptime = (vm.uptime_ms + 50) * 1000;
    let stalls = &vm.stalls;
    let sum: u64 = stalls.each().iter().map(|(_, time)| time).sum();
    assert!(stalls.stalled_us <= uptime, "{stalls:?} in {uptime} us");
    // Each cause is rounded down by up to a microsecond.
    assert!(stalls.stalled_us <= sum + 8, "{stalls:?}");
    assert!(
        sum <= threads * uptime,
        "{stalls:?}, {threads} threads in {uptime} us"
    );
    for percent in [stalls.latency_percent, stalls.latency_minute_percent] {
        assert!((0.0..=100.0).contains(&percent), "{stalls:?}");
    }
}

#[test]
fn guests_stand_still_for_what_they_are_short_of() {
    for engine in engines() {
        let host = Host::quiet(engine, "64M", &["--share-scan-time", "1s"]);
        // The limit keeps half of its memory in the cache and the swap file, whatever comes free elsewhere.
        let words = "--no-agent --memory 48M --limit 12M --workload kv,size=24M,write=30";
        let short = host.guest("short", words);
        let roomy = host.guest("roomy", "--no-agent --memory 12M --workload kv,size=4M");
        // Its pages of the image are shared from the start. Its kernel drops some and hands them to the toucher, whose
        // writes break them.
        let boot = host.path().join("boot.img");
        image(&boot, 2048, 0xb007);
        let words = format!(
            "--no-agent --memory 12M --workload image:{} --workload toucher,size=8M,write=80",
            boot.display()
        );
        let boots = host.guest("boots", &words);
        let (mut threads, mut before) = (Threads(0), BTreeMap::new());
        host.await_vm("short", "stands still for all there is", |vm| {
            check(vm, threads.see(&short));
            let now = counters(&vm.stalls);
            for (cause, time) in &before {
                assert!(now[cause] >= *time, "{cause} was {time} us: {now:?}");
            }
            before = now;
            let stalls = &vm.stalls;
            let short_of = [
                stalls.first_touch_us,
                stalls.refill_zip_us,
                stalls.refill_swap_us,
                stalls.blocked_us,
            ];
            short_of.iter().all(|time| *time > 0) && stalls.latency_minute_percent > 0.0
        });
        let breaks = |vm: &VmStatus| vm.stalls.cow_break_us > 0;
        host.await_vm("boots", "writes what is shared", breaks);
        let other = host.vm("roomy");
        check(&other, Threads(0).see(&roomy));
        let waits = &other.stalls;
        assert!(waits.first_touch_us > 0, "{engine}: {waits:?}");
        assert_eq!(
            (waits.refill_swap_us, waits.refill_zip_us),
            (0, 0),
            "{engine}"
        );
        for guest in [short, roomy, boots] {
            guest.stop();
        }
        host.stop();
    }
}

#[test]
fn guest_that_pages_by_itself_says_for_how_long_it_waited() {
    let engine = engines()[0];
    let host = Host::quiet(engine, "64M", &[]);
    let words = "--memory 24M --workload kv,size=20M";
    let guest = host.guest("pages", words);
    host.await_vm("pages", "has its memory", |vm| vm.faults.first_touch > 2000);
    host.client()
        .set_balloon("pages", Some(Bytes::from_mib(12)))
        .expect("it has an agent");
    host.await_vm("pages", "waits for its own disk", |vm| {
        vm.guest.swap_wait_us.is_some_and(|time| time > 1000)
    });
    guest.stop();
    host.stop();
}
