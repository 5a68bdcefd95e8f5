//! Limits, which bind on a host that has plenty as well.

use std::time::Instant;

use memvisor::telemetry::{FreeState, HostStatus, VmStatus};
use memvisor::units::Pages;

use super::common::{TestHost, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib};

in_both_engines!(limit_of_a_guest_with_a_balloon_binds_in_the_high_state);

/// The VM, from a host that has not been short for a moment.
fn of_a_high_host(host: &TestHost) -> Option<(HostStatus, VmStatus)> {
    let status = host.status();
    check(&status);
    assert_eq!(status.free_state, FreeState::High, "{status:#?}");
    let vm = super::of(&status, "g")?.clone();
    Some((status, vm))
}

/// Waits until the VM holds no more than `most`; says how long that took.
fn comes_down(host: &TestHost, engine: &str, most: Pages) -> VmStatus {
    let since = Instant::now();
    let what = format!("{engine}: down to the limit of {}", most.bytes());
    let (status, vm) = eventually(&what, PATIENCE, || {
        let (status, vm) = of_a_high_host(host)?;
        (vm.consumed_pages <= most).then_some((status, vm))
    });
    eprintln!("{what} after {:.1?}: {}", since.elapsed(), line(&status));
    vm
}

/// Takes the limit away and waits until the guest holds more than `least`.
fn gets_back(host: &TestHost, engine: &str, least: Pages) {
    host.set_vm("g", "limit=none");
    let since = Instant::now();
    let what = format!("{engine}: without a limit more than {}", least.bytes());
    let status = eventually(&what, PATIENCE, || {
        let (status, vm) = of_a_high_host(host)?;
        let has = vm.consumed_pages > least && vm.balloon.size_pages == Pages(0);
        has.then_some(status)
    });
    eprintln!("{what} after {:.1?}: {}", since.elapsed(), line(&status));
}

/// It fills more than its limit, and touches all of it slowly and half of it often.
const WORKLOADS: [&str; 2] = [
    "toucher,size=28M,rate=40M,content=text",
    "toucher,size=28M,rate=12M,content=random",
];

fn limit_of_a_guest_with_a_balloon_binds_in_the_high_state(engine: &str) {
    let host = host(engine, "128M", &[]);
    let guest = host.guest("g", "64M", &WORKLOADS, &["--limit", "44M"]);
    filled(&host, "g", 56);
    let vm = comes_down(&host, engine, mib(44));
    assert!(vm.balloon.size_pages >= mib(12), "{vm:#?}");
    gets_back(&host, engine, mib(50));
    host.set_vm("g", "limit=36M");
    let vm = comes_down(&host, engine, mib(36));
    assert!(vm.balloon.size_pages >= mib(16), "{vm:#?}");
    end(host, [guest], &[]);
}
