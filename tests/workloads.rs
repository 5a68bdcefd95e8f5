//! Guests whose work depends on memory in the way that published experiments need: a page cache, short-lived
//! processes, a boot that zeroes memory, and one after the other.

mod rig;

use memvisor::telemetry::VmStatus;
use memvisor::units::Bytes;
use rig::{Host, engines};

fn mib(bytes: Option<Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.0 >> 20)
}

fn cache(vm: &VmStatus) -> u64 {
    mib(vm.guest.cache_bytes)
}

/// A balloon takes free pages, then page cache, and only then makes the guest swap. What the guest tells of its cache
/// and of the memory that it could have without swapping is true meanwhile.
#[test]
fn balloon_costs_a_file_server_its_page_cache_and_no_swapping() {
    for engine in engines() {
        let host = Host::quiet(engine, "96M", &[]);
        let words =
            "--memory 64M --workload dbench,size=60M,zipf=0.5,threads=2 --workload idle,size=16M";
        let guest = host.guest("files", words);
        host.await_vm("files", "has cached what fits", |vm| cache(vm) >= 40);
        let squeeze = |size: Option<u64>| {
            let target = size.map(Bytes::from_mib);
            let set = host.client().set_balloon("files", target);
            set.expect("it has an agent");
        };
        squeeze(Some(28));
        let small = host.await_vm("files", "gives its cache to the balloon", |vm| {
            vm.balloon.size_pages.bytes() == Bytes::from_mib(28) && mib(vm.guest.total_bytes) == 36
        });
        assert!((8..20).contains(&cache(&small)), "{engine}: {small:#?}");
        let available = mib(small.guest.available_bytes);
        assert!((8..20).contains(&available), "{engine}: {small:#?}");
        squeeze(Some(8));
        let large = host.await_vm("files", "caches more again", |vm| cache(vm) >= 30);
        assert_eq!(large.guest.swap_out_bytes, Some(Bytes(0)), "{engine}");
        let report = guest.stop();
        assert!(report.workloads[0].operations > 0, "{engine}: {report:?}");
        host.stop();
    }
}

/// Two guests on too little memory, of which one has no balloon, so that the host must take its pages.
#[test]
fn workloads_in_a_row_keep_every_byte_on_a_host_that_is_too_small() {
    for engine in engines() {
        let host = Host::start(engine, "40M", &["--share-scan-time", "1s"]);
        let row =
            "boot;compile,size=12M,threads=2,inputs=4M,for=2s;dbench,size=48M,write=30,threads=2";
        let names = ["first", "second"];
        let guests =
            ["", "--no-agent"].map(|agent| format!("{agent} --memory 32M --workload {row}"));
        let guests: Vec<_> = (0..)
            .zip(names.iter().zip(guests))
            .map(|(seed, (name, words))| host.guest(name, &format!("--seed {seed} {words}")))
            .collect();
        let moved = |vm: &VmStatus| vm.homes.compressed_pages.0 + vm.homes.swapped_pages.0;
        host.await_vm("second", "is pressed", |vm| moved(vm) > 0);
        // After the inputs of its compilations, which are freed before its next workload begins.
        let files = host.await_vm("first", "has come to its files", |vm| cache(vm) >= 6);
        let faults = |vm: &VmStatus| vm.guest.major_faults.unwrap_or(0);
        let loaded = faults(&files);
        // To fill a file takes no reads.
        host.await_vm("first", "reads its files", |vm| faults(vm) > loaded + 200);
        for guest in guests {
            let name = guest.name().to_owned();
            let report = guest.stop();
            assert_eq!(report.workloads.len(), 3, "{report:?}");
            let boot = &report.workloads[0];
            assert_eq!(boot.workload, "boot", "{report:?}");
            assert!(boot.operations > 7000, "{engine} {name}: {report:?}");
            let done = report.workloads.iter().filter(|one| one.operations > 0);
            let least = if name == "first" { 3 } else { 1 };
            assert!(done.count() >= least, "{engine} {name}: {report:?}");
        }
        host.stop();
    }
}

/// Zeroed memory costs a host next to nothing once it has been looked at.
#[test]
fn host_gets_back_what_a_booting_guest_has_zeroed() {
    for engine in engines() {
        let host = Host::start(engine, "64M", &["--share-scan-time", "1s"]);
        let guest = host.guest("windows", "--memory 32M --workload boot,check=1;idle");
        let boots = host.await_vm("windows", "zeroes its memory", |vm| {
            vm.faults.first_touch > 7000
        });
        assert_eq!(boots.configured_pages.0, 8192);
        host.await_vm("windows", "has nothing but zeroes", |vm| {
            vm.homes.zero_pages.0 > 7000 && vm.consumed_pages.0 < 1000
        });
        let report = guest.stop();
        assert!(
            report.workloads[0].operations > 7000,
            "{engine}: {report:?}"
        );
        host.stop();
    }
}
