//! The policy with real hosts and guests: which guest is given memory, from which it is taken and how, and
//! that no guest reads a wrong byte while settings change under load. Published experiments are repeated on a
//! small scale; what was measured is printed (`cargo test --test policy -- --nocapture`).
//!
//! Guests touch memory at bounded rates, so that two processors are enough. Most write random bytes, which
//! neither compress nor equal others, so that each page costs a whole page.

/// Makes a test for each engine out of each function, which takes the engine's name. The tests can run side by side.
macro_rules! in_both_engines {
    ($($scenario:ident),+ $(,)?) => {
        mod uffd {
            $(#[test]
            fn $scenario() {
                crate::with_engine("uffd", super::$scenario);
            })+
        }
        mod mprotect {
            $(#[test]
            fn $scenario() {
                crate::with_engine("mprotect", super::$scenario);
            })+
        }
    };
}

/// The same in the first engine that works here, for scenarios that are about the division of memory alone, which knows of
/// no engine. Where pages are sampled, frozen, evicted or brought back, engines differ.
macro_rules! in_one_engine {
    ($($scenario:ident),+ $(,)?) => {
        mod one_engine {
            $(#[test]
            fn $scenario() {
                super::$scenario(crate::rig::engines()[0]);
            })+
        }
    };
}

#[path = "../rig/mod.rs"]
mod rig;

mod active;
mod agents;
mod balloons;
mod boot;
mod caches;
mod changes;
mod cold;
mod laws;
mod limits;
mod placement;
mod pools;
mod pressed;
mod reports;
mod stall;
mod storm;
mod tax;
mod unswap;

use memvisor::telemetry::{HostStatus, VmStatus};
use memvisor::units::Pages;
use memvisor_guest_agent::guest::GuestReport;
use rig::{Host, PATIENCE, Process, engines, eventually};

/// Not a test: the process that stands for a scripted guest, see [`rig::raw`].
#[test]
#[ignore = "started by other tests"]
fn connector() {
    rig::raw::connector();
}

/// Runs a test with one engine, if it works here.
fn with_engine(wanted: &str, test: fn(&str)) {
    if engines().contains(&wanted) {
        test(wanted);
    }
}

/// A host that shares nothing, and samples and balances so often that tests need not wait long for it.
fn host(engine: &str, memory: &str, settings: &[&str]) -> Host {
    let mut args = Vec::new();
    let quick = [
        "Mem.ShareRateMax=0",
        "Mem.SamplePeriod=1",
        "Mem.BalancePeriod=0.5",
    ];
    for setting in quick.iter().chain(settings) {
        args.extend(["--set", setting]);
    }
    Host::start(engine, memory, &args)
}

/// A VM of a status.
fn of<'a>(status: &'a HostStatus, name: &str) -> Option<&'a VmStatus> {
    status.vms.iter().find(|vm| vm.name == name)
}

/// Both VMs of a status.
fn pair<'a>(status: &'a HostStatus, names: [&str; 2]) -> Option<[&'a VmStatus; 2]> {
    Some([of(status, names[0])?, of(status, names[1])?])
}

/// Pages that the VM has touched so far, wherever they are now.
fn touched(vm: &VmStatus) -> Pages {
    vm.configured_pages.saturating_sub(vm.homes.untouched_pages)
}

/// Waits until a guest has touched `size` MiB.
fn filled(host: &Host, name: &str, size: u64) {
    eventually(&format!("{name} has filled its memory"), PATIENCE, || {
        let vm = host.client().vm(name).ok()?;
        (touched(&vm) >= mib(size)).then_some(())
    });
}

const fn mib(mib: u64) -> Pages {
    Pages(mib * 256)
}

/// Pages in MiB.
fn shown(pages: Pages) -> f64 {
    f64::from(u32::try_from(pages.0).unwrap_or(u32::MAX)) / 256.0
}

/// Whether two numbers of pages differ by at most `percent` of their mean.
fn are_about_equal(one: Pages, other: Pages, percent: u64) -> bool {
    one.0.abs_diff(other.0) * 200 <= percent * (one.0 + other.0)
}

/// Checks what must hold at any moment.
fn check(status: &HostStatus) {
    for vm in &status.vms {
        assert_eq!(vm.homes.total(), vm.configured_pages, "{vm:#?}");
    }
    assert!(status.used_pages <= status.budget_pages, "{status:#?}");
}

/// Ends guests, which verify all that they own, and then the host, which must have nothing left.
fn end(host: Host, guests: impl IntoIterator<Item = Process>, expected: &[&str]) {
    ended(host, guests, expected);
}

/// The same; the reports of the guests.
fn ended(
    host: Host,
    guests: impl IntoIterator<Item = Process>,
    expected: &[&str],
) -> Vec<GuestReport> {
    check(&host.status());
    let mut guests: Vec<Process> = guests.into_iter().collect();
    // Told to end all at once, because each of them verifies for a while.
    guests.iter().for_each(Process::terminate);
    let reports = guests.iter_mut().map(|guest| guest.reports(130)).collect();
    host.is_empty(PATIENCE);
    host.stop_quietly(expected);
    reports
}

/// The state of a host and its VMs in one line.
fn line(status: &HostStatus) -> String {
    let vms = status.vms.iter().map(|vm| {
        format!(
            "{}: {:.1} consumed, {:.1} target, {:.1} active, {:.1} balloon, {:.1} swapped",
            vm.name,
            shown(vm.consumed_pages),
            shown(vm.allocation.target_pages),
            shown(vm.activity.active_pages.unwrap_or_default()),
            shown(vm.balloon.size_pages),
            shown(vm.homes.swapped_pages),
        )
    });
    let vms: Vec<String> = vms.collect();
    format!(
        "{}, {:.1} MiB free; {}",
        status.free_state,
        shown(status.free_pages),
        vms.join("; ")
    )
}
