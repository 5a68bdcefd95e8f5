//! Free memory of a guest that comes back without pressure, because the guest reports it.

use super::rig::{Host, eventually};
use super::{PATIENCE, end, host, mib, shown};

in_both_engines!(
    memory_that_a_guest_frees_comes_back_if_it_reports,
    reported_memory_is_used_again_without_asking,
);

/// Fills 40 MiB, frees them, and does nothing from then on.
const FREES: &str = "--memory 64M --workload toucher,size=40M,content=random,for=1s;idle";

/// Waits until the guest says that it has nearly all of its memory free.
fn has_freed(host: &Host, name: &str) {
    host.await_vm(name, "the guest has freed its memory", |vm| {
        vm.guest.free_bytes.is_some_and(|free| free.0 >= 50 << 20)
            && vm.faults.first_touch >= mib(40).0
    });
}

fn memory_that_a_guest_frees_comes_back_if_it_reports(engine: &str) {
    let host = host(engine, "256M", &[]);
    let keeps = host.guest("keeps", FREES);
    let reports = host.guest("reports", &format!("{FREES} --balloon-protocol reporting"));
    has_freed(&host, "keeps");
    has_freed(&host, "reports");
    let vm = eventually("what was reported has come back", PATIENCE, || {
        let vm = host.vm("reports");
        // A page that is being dropped is in the balloon for a moment.
        let is_done = vm.consumed_pages <= mib(16) && vm.homes.ballooned_pages.0 == 0;
        is_done.then_some(vm)
    });
    let kept = host.vm("keeps").consumed_pages;
    eprintln!(
        "{engine}: {:.1} MiB are left of a guest that reports, {:.1} of one that does not; {} pages were reported",
        shown(vm.consumed_pages),
        shown(kept),
        vm.balloon.session.reported_pages.0,
    );
    assert!(kept >= mib(40), "nobody has asked it for memory");
    assert!(vm.balloon.session.reported_pages >= mib(30), "{vm:#?}");
    // Dropped: in no balloon and in no store.
    let elsewhere =
        vm.homes.ballooned_pages.0 + vm.homes.swapped_pages.0 + vm.homes.compressed_pages.0;
    assert_eq!(elsewhere, 0, "{vm:#?}");
    end(host, [keeps, reports], &[]);
}

/// A guest that allocates and frees all the time, and verifies what it has.
fn reported_memory_is_used_again_without_asking(engine: &str) {
    let host = host(engine, "128M", &[]);
    let words = "--memory 32M --balloon-protocol reporting --workload churn,size=24M,threads=2,content=random";
    let guest = host.guest("g", words);
    let vm = host.await_vm(
        "g",
        "pages were reported again after their guest had used them",
        |vm| vm.balloon.session.reported_pages >= mib(64) && vm.faults.first_touch >= mib(64).0,
    );
    let session = &vm.balloon.session;
    assert_eq!((session.resets, session.refused_pages.0), (0, 0), "{vm:#?}");
    end(host, [guest], &[]);
}
