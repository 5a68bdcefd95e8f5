//! Guests that wait for their disk, and are placed where a processor is idle.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use memvisor::telemetry::VmStatus;

use super::rig::{Host, eventually};
use super::{PATIENCE, end, filled};

in_one_engine!(guests_that_are_placed_use_one_processor_until_they_are_freed);

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// A guest is placed within a second or two, where the disk's interrupts crowd guests; elsewhere, never.
const LOOKS: Duration = Duration::from_secs(10);

/// The processors that the threads of a process may use, as the kernel writes them.
fn allowed(pid: u32) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let each = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(allowed.trim().to_owned())
    };
    tasks.filter_map(each).collect()
}

/// Checks that a VM's threads may use no more than the status says, if it says the same before and after.
fn agrees(host: &Host, vm: &VmStatus) -> bool {
    let threads = allowed(vm.pid);
    let Some(on) = vm.placed_on else { return false };
    if host.vm(&vm.name).placed_on != Some(on) {
        return false;
    }
    assert_eq!(threads, BTreeSet::from([on.to_string()]), "{}", vm.name);
    true
}

fn guests_that_are_placed_use_one_processor_until_they_are_freed(engine: &str) {
    let host = Host::start(engine, "64M", &["--profile", "throughput"]);
    let words = "--memory 32M --no-agent --workload toucher,size=30M,active=30M,content=random";
    let guests = NAMES.map(|name| host.guest(name, words));
    NAMES.iter().for_each(|name| filled(&host, name, 30));
    let since = Instant::now();
    let seen = eventually("guests are placed, or it is time", 2 * LOOKS, || {
        let vms = host.status().vms;
        let seen = vms.iter().filter(|vm| agrees(&host, vm)).count();
        (seen > 0 || since.elapsed() >= LOOKS).then_some(seen)
    });
    eprintln!(
        "{engine}: {seen} guests were placed after {:.1?}",
        since.elapsed()
    );
    host.set("Memvisor.PlaceGuests", "0");
    let own = allowed(std::process::id());
    eventually(
        "all are free to use what this test may use",
        PATIENCE,
        || {
            let vms = host.status().vms;
            let free = |vm: &VmStatus| vm.placed_on.is_none() && allowed(vm.pid) == own;
            vms.iter().all(free).then_some(())
        },
    );
    end(host, guests, &[]);
}
