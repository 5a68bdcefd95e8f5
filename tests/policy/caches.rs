//! Compression caches that may hold all there is: what is in them must not be out of reach.

use std::time::Instant;

use memvisor::telemetry::VmStatus;
use memvisor::units::Pages;

use super::common::{TestGuest, eventually};
use super::{PATIENCE, check, end, host, line, mib, of, touched};

in_both_engines!(host_whose_memory_is_all_in_caches_goes_on);

/// More than the host has even if all of it is compressed to a half, and nobody can be asked for any.
fn host_whose_memory_is_all_in_caches_goes_on(engine: &str) {
    let all = ["Mem.MemZipMaxPct=100", "Mem.MemZipMaxAllocPct=100"];
    let host = host(engine, "64M", &all);
    let names = ["a", "b", "c", "d"];
    let workload = ["kv,size=40M,content=text"];
    let guest = |(name, seed)| host.guest(name, "48M", &workload, &["--no-agent", "--seed", seed]);
    let seeds = ["1", "2", "3", "4"];
    let guests: Vec<TestGuest> = names.into_iter().zip(seeds).map(guest).collect();
    let since = Instant::now();
    let once_all = |have: &dyn Fn(&VmStatus) -> bool| {
        let status = host.status();
        check(&status);
        let done = names.iter().all(|name| of(&status, name).is_some_and(have));
        done.then_some(status)
    };
    let what = "all have filled their memory";
    let status = eventually(what, PATIENCE, || once_all(&|vm| touched(vm) >= mib(40)));
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    assert!(
        status.totals.homes.compressed_pages > Pages(0),
        "{status:#?}"
    );
    let before: u64 = status
        .vms
        .iter()
        .map(|vm| vm.faults.served())
        .max()
        .unwrap_or(0);
    let what = "each goes on";
    let status = eventually(what, PATIENCE, || {
        once_all(&|vm| vm.faults.served() > before + 1000)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(host, guests, &["wait for memory"]);
}
