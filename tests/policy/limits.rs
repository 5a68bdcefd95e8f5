//! Limits, which bind even on a host with plenty of memory.

use std::time::{Duration, Instant};

use memvisor::telemetry::{FreeState, HostStatus, VmStatus};
use memvisor::units::Pages;

use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib};

in_one_engine!(
    limit_of_a_guest_with_a_balloon_binds_in_the_high_state,
    limit_of_a_guest_without_an_agent_binds_in_the_high_state,
);

/// The host and its VM `g`; the host must be in the high state.
fn of_a_high_host(host: &Host) -> Option<(HostStatus, VmStatus)> {
    let status = host.status();
    check(&status);
    assert_eq!(status.free_state, FreeState::High, "{status:#?}");
    let vm = super::of(&status, "g")?.clone();
    Some((status, vm))
}

/// Waits until the VM holds no more than `most`, and prints how long that took.
fn comes_down(host: &Host, engine: &str, most: Pages) -> VmStatus {
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
fn gets_back(host: &Host, engine: &str, least: Pages) {
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

/// The guest fills more than its limit, then touches half of its memory slowly and half of it often.
const WORKLOADS: &str =
    "toucher,size=28M,rate=40M,content=text toucher,size=28M,rate=12M,content=random";

fn limit_of_a_guest_with_a_balloon_binds_in_the_high_state(engine: &str) {
    let host = host(engine, "128M", &[]);
    let guest = host.guest(
        "g",
        &format!("--memory 64M --limit 44M --workload {WORKLOADS}"),
    );
    filled(&host, "g", 56);
    let vm = comes_down(&host, engine, mib(44));
    assert!(vm.balloon.size_pages >= mib(12), "{vm:#?}");
    gets_back(&host, engine, mib(50));
    host.set_vm("g", "limit=36M");
    comes_down(&host, engine, mib(36));
    // For a balloon of that size the guest must page by itself, which takes longer.
    let since = Instant::now();
    let what = format!("{engine}: its balloon grows at the limit");
    let vm = eventually(&what, PATIENCE, || {
        let (_, vm) = of_a_high_host(&host)?;
        (vm.balloon.size_pages >= mib(12)).then_some(vm)
    });
    let size = vm.balloon.size_pages.bytes();
    eprintln!("{what}: {size} after {:.1?}", since.elapsed());
    end(host, [guest], &[]);
}

/// How far above its limit a guest may be seen: the pages of its compression cache are counted with a delay.
const SLACK: Pages = Pages(256);

/// How long the limit must be kept before it counts as reached. On the way down to a lower limit, a guest may take back
/// half of what it lost in a round. So it may be seen below the limit once, and above it again until the next plan.
const ROUNDS: Duration = Duration::from_secs(1);

/// The guest fills more than its limit, and goes on to use more than its limit faster than it is evicted.
fn limit_of_a_guest_without_an_agent_binds_in_the_high_state(engine: &str) {
    let host = host(engine, "128M", &[]);
    let words = "--memory 64M --limit 40M --no-agent \
                 --workload toucher,size=56M,active=48M,rate=40M,content=random";
    let guest = host.guest("g", words);
    filled(&host, "g", 56);
    stays(&host, engine, mib(40));
    gets_back(&host, engine, mib(41));
    host.set_vm("g", "limit=30M");
    comes_down(&host, engine, Pages(mib(30).0 + SLACK.0));
    let mut down = None;
    eventually("the new limit is reached and kept", PATIENCE, || {
        let (_, vm) = of_a_high_host(&host)?;
        let is_down = vm.consumed_pages.0 <= mib(30).0 + SLACK.0;
        down = is_down.then(|| down.unwrap_or_else(Instant::now));
        down.filter(|since| since.elapsed() > ROUNDS)
    });
    stays(&host, engine, mib(30));
    end(host, [guest], &[]);
}

/// Checks that the guest holds no more than its limit while, for some seconds, it touches more than fits.
fn stays(host: &Host, engine: &str, limit: Pages) {
    let since = Instant::now();
    let evicted = |vm: &VmStatus| vm.evict.to_zip + vm.evict.to_swap;
    let before = of_a_high_host(host).map(|(_, vm)| evicted(&vm));
    let mut most = Pages(0);
    let what = format!("{engine}: stays at its limit of {}", limit.bytes());
    let vm = eventually(&what, PATIENCE, || {
        let (_, vm) = of_a_high_host(host)?;
        most = most.max(vm.consumed_pages);
        (since.elapsed() > STAYS).then_some(vm)
    });
    let evicted = evicted(&vm) - before.unwrap_or_default();
    eprintln!("{what}: at most {}, {evicted} pages evicted", most.bytes());
    assert!(
        most.0 <= limit.0 + SLACK.0,
        "{} at {}",
        most.bytes(),
        limit.bytes()
    );
}

/// How long a guest is watched at its limit.
const STAYS: Duration = Duration::from_secs(3);
