//! Compression caches: memory in them must stay within reach of reclaim, and what they keep must be worth its memory.

use std::time::Instant;

use memvisor::telemetry::VmStatus;
use memvisor::units::Pages;

use super::rig::{Host, Process, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib, of, shown, touched};

in_both_engines!(
    host_whose_memory_is_all_in_caches_goes_on,
    cold_pages_leave_the_cache_and_hot_ones_are_brought_back_less,
    cache_that_is_used_keeps_what_its_cap_has_room_for,
);

/// The guests need more than the host has even if every page compresses to half. They have no agents, so no balloon
/// can help.
fn host_whose_memory_is_all_in_caches_goes_on(engine: &str) {
    let all = ["Mem.MemZipMaxPct=100", "Mem.MemZipMaxAllocPct=100"];
    let host = host(engine, "64M", &all);
    let names = ["a", "b", "c", "d"];
    let words = "--memory 48M --no-agent --workload kv,size=40M,content=text --seed";
    let guest = |(name, seed)| host.guest(name, &format!("{words} {seed}"));
    let guests: Vec<Process> = names.into_iter().zip(1..).map(guest).collect();
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

/// Refills from cache and swap per second, between two statuses.
fn refills(before: &VmStatus, now: &VmStatus) -> f64 {
    let of = |vm: &VmStatus| vm.faults.refill_zip + vm.faults.refill_swap;
    let count = u32::try_from(of(now) - of(before)).expect("a few thousand");
    let millis = u32::try_from(now.uptime_ms - before.uptime_ms).expect("seconds");
    f64::from(count) * 1000.0 / f64::from(millis.max(1))
}

/// A guest of 128 MiB with a limit of 40 MiB, on a host whose caches keep only what pays.
fn guest_in_throughput(engine: &str, workloads: &str) -> (Host, Process) {
    let host = host(engine, "64M", &["Memvisor.CacheKeeps=paying"]);
    for (name, value) in [
        ("Mem.MemZipMaxPct", "50"),
        ("Mem.MemZipMaxAllocPct", "80"),
        ("Memvisor.Victims", "second-chance"),
    ] {
        host.set(name, value);
    }
    let words = format!("--memory 128M --no-agent --limit 40M --workload {workloads}");
    let guest = host.guest("g", &words);
    (host, guest)
}

/// Most of the guest's memory is written once and never used again. The set that it works on would fit beside a small
/// cache, but not beside one that keeps all those cold pages.
fn cold_pages_leave_the_cache_and_hot_ones_are_brought_back_less(engine: &str) {
    let works = "idle,size=64M,content=text toucher,size=26M,content=text,write=20,rate=24M";
    let (host, guest) = guest_in_throughput(engine, works);
    filled(&host, "g", 90);
    let mut before = host.vm("g");
    let (mut most, mut largest) = (0.0_f64, Pages(0));
    let what = "a quarter of the cache is gone, and two thirds of the refills";
    let small = eventually(what, PATIENCE, || {
        let now = host.vm("g");
        check(&host.status());
        if now.uptime_ms - before.uptime_ms < 2000 {
            return None;
        }
        let rate = refills(&before, &now);
        eprintln!(
            "{engine}: {rate:.0} refills/s, cache {:.1} MiB, {:?}",
            shown(now.zip_pages),
            now.zip
        );
        before = now.clone();
        most = most.max(rate);
        largest = largest.max(now.zip_pages);
        let is_small = now.zip_pages.0 * 4 < largest.0 * 3;
        (is_small && rate * 3.0 < most).then_some(now)
    });
    assert!(small.zip.limit_pages < small.zip.cap_pages, "{small:#?}");
    assert!(small.evict.spilled > mib(10).0, "{small:#?}");
    // With the setting off, the cache may grow to its cap again.
    host.set("Memvisor.CacheKeeps", "all");
    eventually("its limit is its cap", PATIENCE, || {
        let zip = host.vm("g").zip;
        (zip.limit_pages == zip.cap_pages).then_some(())
    });
    end(host, [guest], &[]);
}

/// All pages are used equally often, so the pages in the cache are worth as much as those in RAM.
fn cache_that_is_used_keeps_what_its_cap_has_room_for(engine: &str) {
    let works = "toucher,size=80M,content=text,write=20";
    let (host, guest) = guest_in_throughput(engine, works);
    filled(&host, "g", 80);
    let full = host.vm("g");
    eventually("it has been through its cache", PATIENCE, || {
        let now = host.vm("g");
        check(&host.status());
        assert_eq!(now.zip.limit_pages, now.zip.cap_pages, "{now:#?}");
        let count = |vm: &VmStatus| vm.faults.refill_zip;
        (count(&now) > count(&full) + 4 * mib(80).0 && now.zip.oldest_save_us > 0).then_some(())
    });
    end(host, [guest], &[]);
}
