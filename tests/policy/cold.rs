//! Memory that comes back without pressure: what a guest has not touched for long leaves, and little of it is wanted back.

use std::time::{Duration, Instant};

use super::rig::eventually;
use super::{PATIENCE, end, filled, host, mib, shown};

in_both_engines!(
    guest_that_uses_little_keeps_little_where_cold_pages_are_taken,
    no_more_cold_pages_come_back_than_the_bound_says,
);

/// 57 MiB of 64 are filled, and 7 % of them used from then on. Much more is free than anybody needs.
fn guest_that_uses_little_keeps_little_where_cold_pages_are_taken(engine: &str) {
    let host = host(engine, "256M", &["Memvisor.ColdRefaults=600"]);
    let words = "--memory 64M --no-agent \
                 --workload toucher,size=57M,active=4M,rate=40M,content=random";
    let guest = host.guest("g", words);
    filled(&host, "g", 57);
    let kept = host.vm("g");
    assert!(kept.consumed_pages >= mib(57), "no age is set: {kept:#?}");
    // Twice what the guest needs to touch all that it uses on a machine that has much else to do: it has to ask for each
    // page that is watched.
    host.set("Memvisor.ColdAge", "2");
    let since = Instant::now();
    let vm = eventually("what is not used is taken", 3 * PATIENCE, || {
        let vm = host.vm("g");
        (vm.consumed_pages <= mib(12)).then_some(vm)
    });
    let (taken, back) = (vm.evict.cold, vm.evict.cold_back);
    eprintln!(
        "{engine}: {:.1} of 64 MiB are left after {:.1?}; {taken} pages were taken, {back} came back",
        shown(vm.consumed_pages),
        since.elapsed(),
    );
    assert!(taken >= mib(45).0, "{vm:#?}");
    assert!(back < taken / 20, "{vm:#?}");
    // It reads all 57 MiB, and finds what it wrote.
    end(host, [guest], &[]);
}

/// A guest that touches each of its pages again a few seconds after it was cold.
fn no_more_cold_pages_come_back_than_the_bound_says(engine: &str) {
    let settings = ["Memvisor.ColdAge=1", "Memvisor.ColdRefaults=100"];
    let host = host(engine, "128M", &settings);
    // The hand needs 2 s for 32 MiB. Each page is touched about every 4 s, in no order, so most are cold at any time.
    let words = "--memory 32M --no-agent \
                 --workload toucher,size=24M,active=24M,rate=6M,content=random";
    let guest = host.guest("g", words);
    filled(&host, "g", 24);
    host.await_vm("g", "pages were taken", |vm| vm.evict.cold_back > 10);
    let measured = |time: Duration| {
        let (before, since) = (host.vm("g").evict.cold_back, Instant::now());
        eventually("time has passed", 2 * time, || {
            (since.elapsed() >= time).then_some(())
        });
        let back = host.vm("g").evict.cold_back - before;
        (back, since.elapsed().as_secs_f64())
    };
    // Twice what the VM holds at most in two hours: 8192 pages an hour, and what was on its way.
    let (back, seconds) = measured(Duration::from_secs(20));
    let bound = 8192.0 / 3600.0 * seconds;
    eprintln!("{engine}: {back} pages came back in {seconds:.1} s, where {bound:.0} may");
    let back = u32::try_from(back).map_or(f64::MAX, f64::from);
    assert!(back <= 2.0 * bound + 64.0, "{back} of {bound}");
    // It is the bound that holds them back.
    host.set("Memvisor.ColdRefaults", "6000");
    let before = host.vm("g").evict.cold_back;
    host.await_vm("g", "many more come back", |vm| {
        vm.evict.cold_back - before > 1000
    });
    host.set("Memvisor.ColdAge", "0");
    end(host, [guest], &[]);
}
