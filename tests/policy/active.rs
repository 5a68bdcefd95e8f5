//! The estimates of active memory, compared with a guest that uses a known part of its memory.

use std::time::{Duration, Instant};

use memvisor::telemetry::{ActivityStatus, VmStatus};
use memvisor::units::Pages;

use super::rig::eventually;
use super::{PATIENCE, end, filled, host, line, mib, shown};

in_both_engines!(estimates_of_active_memory_follow_what_a_guest_uses);

const SIZE: u64 = 64;
/// What the guest uses at first, in MiB: 60 % of its memory.
const MUCH: u64 = 38;
/// What it uses later: 10 %.
const LITTLE: u64 = 6;
/// The estimate by sampling may be wrong by this many percent of the VM.
const POINTS: f64 = 15.0;
/// MiB that the guest's own program uses: text, stacks and heap, which the page tables show as well.
const PROGRAM: f64 = 4.0;

/// Whether both estimates say that `used` MiB are in use. 100 samples are within 15 points in 99 of 100
/// periods. The page tables are exact, except that they also show what else was touched.
fn agree(activity: &ActivityStatus, used: u64) -> Option<bool> {
    let used = mib(used);
    let sampled = shown(activity.active_pages?) - shown(used);
    let referenced = shown(activity.referenced_pages?) - shown(used);
    let tenth = shown(used) * 0.1;
    let size = f64::from(u32::try_from(SIZE).expect("small"));
    Some(sampled.abs() * 100.0 <= POINTS * size && (-tenth..=tenth + PROGRAM).contains(&referenced))
}

fn estimates_of_active_memory_follow_what_a_guest_uses(engine: &str) {
    let host = host(engine, "96M", &[]);
    // After `time` seconds the guest uses less. A slow machine that had no estimate by then gets a second try with
    // more time.
    let done = [10, 40].into_iter().any(|time| {
        let words = format!(
            "--memory {SIZE}M --workload toucher,size=60M,active={MUCH}M,then={LITTLE}M@{time}s,rate=400M,write=10"
        );
        let name = format!("g{time}");
        let guest = host.guest(&name, &words);
        filled(&host, &name, 60);
        let (loaded, changes) = (Instant::now(), Duration::from_secs(time));
        let estimated = |what: &str, used: u64| {
            let since = loaded.elapsed();
            let vm: VmStatus = eventually(what, changes + PATIENCE, || {
                let vm = host.vm(&name);
                agree(&vm.activity, used)?.then_some(vm)
            });
            eprintln!(
                "{engine}: {what}: {used} MiB are used; {:.1} by sampling, {:.1} by page tables, {:.1?} \
                 after {since:.1?}",
                shown(vm.activity.active_pages.unwrap_or_default()),
                shown(vm.activity.referenced_pages.unwrap_or(Pages(0))),
                loaded.elapsed(),
            );
        };
        estimated("60 %", MUCH);
        let in_time = loaded.elapsed() < changes;
        estimated("10 %", LITTLE);
        eprintln!("{engine}: {}", line(&host.status()));
        guest.stop();
        in_time
    });
    assert!(done, "a period of sampling took longer than half a minute");
    end(host, [], &[]);
}
