//! What the host says it uses is what the kernel counts, and it stays within the budget.

mod rig;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use memvisor::telemetry::{HostStatus, Totals};
use memvisor::units::{Bytes, PAGE_SIZE, Pages};
use nix::fcntl::{FallocateFlags, fallocate};
use rig::raw::{RawGuest, hello};
use rig::{Blocks, Host, Process, engines, eventually, modes, private_bytes};

/// How long guests may take to load and to settle on an overcommitted host.
const SETTLE: Duration = Duration::from_secs(60);
/// For how long samples of a busy host are taken.
const BUSY: Duration = Duration::from_secs(8);
/// What the host may use for itself, beside a tenth of the budget for tables and indexes.
const HOST_OWN: Bytes = Bytes::from_mib(16);
/// How many pages may be in use beyond the budget by the kernel's count: none. A page is charged before the
/// kernel is asked for it, and given back after it is punched.
const SLACK: Pages = Pages(0);

/// Checks numbers that a status tells twice, which must agree at any time: the homes of each VM add up to its
/// size, and the totals of the host are the sums over its VMs.
fn check_sums(status: &HostStatus) {
    for vm in &status.vms {
        let homes = &vm.homes;
        assert_eq!(homes.total(), vm.configured_pages, "{vm:#?}");
        let granted = [homes.resident_pages, homes.shared_pages, homes.zero_pages];
        let granted = Pages(granted.iter().map(|pages| pages.0).sum());
        assert_eq!(vm.granted_pages, granted, "{vm:#?}");
        assert_eq!(vm.balloon.size_pages, homes.ballooned_pages, "{vm:#?}");
        let credits = vm.zip_pages.0 + vm.credit_pages.0;
        let all = homes.resident_pages.0 + homes.shared_pages.0 + credits;
        assert_eq!(vm.consumed_pages.0 + vm.saved_pages.0, all, "{vm:#?}");
    }
    assert_eq!(status.totals, Totals::of(&status.vms));
    assert_eq!(
        status.used_pages.0 + status.free_pages.0,
        status.budget_pages.0
    );
    let share = &status.share;
    assert_eq!(share.shared_pages, status.totals.homes.shared_pages);
    assert_eq!(share.frames.0 + share.saved_pages.0, share.shared_pages.0);
}

/// How many equal looks count as quiet. One is not enough: the pages of a large batch are given back only after all are
/// punched, which takes longer than one look.
const STILL: u32 = 10;

/// Waits until nothing moves: the numbers of the host and of the kernel stay the same for [`STILL`] looks, and no guest
/// holds credits, which are charged before the kernel gives out their pages.
fn quiescent(host: &Host) -> (HostStatus, Blocks) {
    let mut last = None;
    let mut still = 0;
    eventually("nothing moves", SETTLE, || {
        let status = host.status();
        check_sums(&status);
        let blocks = host.blocks_at_once();
        let homes: Vec<_> = status.vms.iter().map(|vm| vm.homes.each()).collect();
        let seen = Some((status.used_pages, homes, blocks.total()));
        still = if seen == last { still + 1 } else { 0 };
        last = seen;
        let is_still = still >= STILL && status.totals.credit_pages == Pages(0);
        is_still.then_some((status, blocks))
    })
}

/// Waits until each guest has touched this many pages.
fn loaded(host: &Host, names: &[&str], pages: u64) {
    for name in names {
        eventually("the guest has filled its memory", SETTLE, || {
            let vm = host.vm(name);
            let touched = vm.configured_pages.0 - vm.homes.untouched_pages.0;
            (touched >= pages).then_some(())
        });
    }
}

fn check_within_1_percent(host: &Host) {
    let (status, blocks) = quiescent(host);
    let counted = blocks.total().0 + status.metadata_pages.0;
    let said = status.used_pages.0;
    println!(
        "{}: said {said} pages, counted {counted}: {blocks:?}",
        status.engine
    );
    assert!(
        said.abs_diff(counted) * 100 <= counted,
        "said {said} pages, the kernel counts {counted}: {blocks:?}\n{status:#?}"
    );
    assert!(counted <= status.budget_pages.0, "{blocks:?}");
    let private = private_bytes(host.pid());
    let allowed = HOST_OWN.0 + status.budget_pages.bytes().0 / 10;
    println!(
        "{}: the host's own memory: {}",
        status.engine,
        Bytes(private)
    );
    assert!(private < allowed, "{} of its own", Bytes(private));
}

#[test]
fn quiet_overcommitted_host_reports_what_the_kernel_counts() {
    for (engine, mode) in modes() {
        // 192 MiB of guests on 96 MiB: shared, compressed, swapped and ballooned pages all exist.
        let host = Host::start(engine, "96M", &[]);
        let names = ["a", "b", "c"];
        let guests = names.map(|name| {
            // With a seed of its own, each guest has content that the others do not have.
            let seed = name.as_bytes()[0];
            let words = format!("{mode} --seed {seed} --memory 64M --workload idle,size=56M");
            host.guest(name, &words)
        });
        loaded(&host, &names, 56 * 256);
        // The scanner may have found nothing yet, and the balloons may have taken what it had found: then once more.
        eventually("shared and ballooned pages are counted", SETTLE, || {
            check_within_1_percent(&host);
            let homes = host.status().totals.homes;
            let is_both = homes.shared_pages > Pages(0) && homes.ballooned_pages > Pages(0);
            is_both.then_some(())
        });
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

#[test]
fn busy_overcommitted_host_stays_within_its_budget() {
    for (engine, mode) in modes() {
        let host = Host::start(engine, "64M", &["--share-scan-time", "1s"]);
        let start = |(name, workload)| {
            host.guest(name, &format!("{mode} --memory 64M --workload {workload}"))
        };
        let guests: Vec<Process> = [
            ("churn", "churn,size=48M,threads=2"),
            ("kv", "kv,size=48M,threads=2"),
            ("toucher", "toucher,size=48M"),
        ]
        .map(start)
        .into();
        loaded(&host, &["churn", "kv", "toucher"], 8 * 256);
        let end = Instant::now() + BUSY;
        let (mut samples, mut most) = (0, Pages(0));
        while Instant::now() < end {
            let status = host.status();
            check_sums(&status);
            assert!(status.used_pages <= status.budget_pages, "{status:#?}");
            let blocks = host.blocks_at_once();
            let used = Pages(blocks.total().0 + status.metadata_pages.0);
            assert!(
                used.saturating_sub(SLACK) <= status.budget_pages,
                "{used:?} of {:?}: {blocks:?}",
                status.budget_pages
            );
            (samples, most) = (samples + 1, most.max(used));
        }
        println!("{engine}: {samples} samples, at most {most:?} of 16384");
        assert!(most > Pages(14_000), "the host was never busy: {most:?}");
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

/// Not a test: the process that connects for a scripted guest, see [`rig::raw::connector`].
#[test]
#[ignore = "run by tests that script a guest"]
fn connector() {
    rig::raw::connector();
}

/// A guest has its RAM as a file, and could fill that file without asking anybody.
#[test]
fn guest_that_fills_memory_that_it_was_not_given_is_ended() {
    for engine in engines() {
        let host = Host::quiet(engine, "32M", &[]);
        let honest = host.guest("honest", "--memory 16M --workload kv,size=8M");
        host.await_vm("honest", "runs", |vm| vm.homes.resident_pages.0 > 1000);
        let pages = 24 << 8;
        for (name, how) in [("writes", 0), ("allocates", 1)] {
            let mut thief = RawGuest::connect(&host)
                .hello(hello(name, pages))
                .power_on();
            let bytes = u64::from(pages) * PAGE_SIZE as u64;
            match how {
                0 => thief
                    .ram
                    .write_all_at(&vec![7; bytes as usize], 0)
                    .expect("its RAM"),
                _ => {
                    let flags = FallocateFlags::empty();
                    fallocate(&thief.ram, flags, 0, bytes as i64).expect("its RAM");
                }
            }
            thief.guest.is_told(&format!("{pages} pages given 0"));
            thief.guest.is_killed();
            host.forgets(name, SETTLE);
            assert!(
                host.log().contains("VM takes more than it was given"),
                "{}",
                host.log()
            );
        }
        honest.stop();
        host.is_empty(SETTLE);
        host.stop();
    }
}
