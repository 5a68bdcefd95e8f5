//! Large pages of real guests: they are made while memory is plentiful, broken when it is not, and cost no byte.

mod rig;

use std::fs;
use std::time::Duration;

use memvisor::sys::large_pages;
use rig::{Host, eventually, modes};

/// How long guests may take to fill their memory, and the host to make large pages of it or to break them.
const SETTLE: Duration = Duration::from_secs(120);

/// KiB that a process maps by large pages of files in memory; `None` where we may not look.
fn mapped_large(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("ShmemPmdMapped:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn memory_is_in_large_pages_while_it_is_plentiful_and_in_small_ones_when_it_is_not() {
    if let Err(why) = large_pages() {
        println!("SKIPPED: no large pages: {why}");
        return;
    }
    for (engine, mode) in modes() {
        let host = Host::start(engine, "192M", &["--share-scan-time", "10s"]);
        host.set("Mem.AllocGuestLargePage", "1");
        let first = host.guest(
            "first",
            &format!(
                "--memory 64M --workload kv,size=48M,threads=2,content=random --seed 1 {mode}"
            ),
        );
        eventually("much of the first is in large pages", SETTLE, || {
            let large = host.vm("first").large;
            (large.pages.0 >= 16 * 512).then_some(())
        });
        if let Some(kib) = mapped_large(first.pid()) {
            println!("{engine} `{mode}`: {kib} KiB are mapped by large pages");
            assert!(kib >= 8 * 2048, "{kib} KiB");
        }
        let vm = host.vm("first");
        assert_eq!(vm.sharing.total(), vm.configured_pages);
        // Two more want what is free, and more than there is.
        let others = ["second", "third"].map(|name| {
            let workload = "--memory 96M --workload toucher,size=88M,content=text";
            host.guest(name, &format!("{workload} {mode}"))
        });
        eventually("large pages are broken", SETTLE, || {
            let vm = host.vm("first");
            let evicted = vm.evict.to_zip + vm.evict.to_swap + vm.balloon.size_pages.0;
            (vm.large.broken > 0 && evicted > 0).then_some(())
        });
        host.set("Mem.AllocGuestLargePage", "0");
        eventually("none is left", SETTLE, || {
            let large = host.vm("first").large;
            (large.pages.0 == 0 && large.made == large.broken).then_some(())
        });
        for guest in others.into_iter().chain([first]) {
            let report = guest.stop();
            assert!(report.pages_verified > 1000, "{report:#?}");
        }
        host.stop_quietly(&[]);
    }
}
