//! Guests with equal memory share it soon, guests that must not share never do, and sharing keeps to its
//! budget of mappings.

mod rig;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use memvisor::telemetry::{ShareEstimate, VmShareEstimate};
use memvisor::units::Pages;
use memvisor_wire::sys::uffd;
use rig::{Host, Process, engines, eventually, image, mappings};

/// How long after its boot a guest may take to share what it has in common with others, with default
/// settings.
const CONVERGE: Duration = Duration::from_secs(15);
/// Mappings of a guest that shares an image: a twentieth of what Linux allows a process.
const FEW_MAPPINGS: usize = 65_530 / 20;
/// Pages of the image: 24 MiB.
const IMAGE: u32 = 6144;

fn with_image(host: &Host) -> String {
    let path = host.path().join("boot.img");
    image(&path, IMAGE, 0xb007);
    // Copied and not attached, because the scanner must find what is equal.
    format!("--memory 40M --workload image:{},attach=no", path.display())
}

#[test]
fn guests_of_one_image_share_it_within_seconds_of_boot() {
    for engine in engines() {
        let host = Host::start(engine, "192M", &[]);
        let words = with_image(&host);
        let booted = Instant::now();
        let guests: Vec<Process> = ["a", "b", "c", "d"]
            .map(|name| host.guest(name, &words))
            .into();
        // Every guest but the first has only duplicates of what the first has.
        let duplicates = u64::from(IMAGE) * (guests.len() as u64 - 1);
        let saved = eventually("four fifths of the duplicates are shared", CONVERGE, || {
            let saved = host.status().share.saved_pages;
            (saved.0 * 5 > duplicates * 4).then_some(saved)
        });
        println!(
            "{engine}: saved {saved:?} of {duplicates} after {:?}",
            booted.elapsed()
        );
        for guest in &guests {
            let mapped = mappings(guest.pid()).len();
            println!("{engine}: {mapped} mappings");
            assert!(mapped < FEW_MAPPINGS, "{mapped} mappings");
        }
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

/// The estimate for a VM. They stand in the order in which they were powered on, which is nobody's.
fn of_vm<'a>(estimate: &'a ShareEstimate, name: &str) -> &'a VmShareEstimate {
    let found = estimate.vms.iter().find(|vm| vm.name == name);
    found.unwrap_or_else(|| panic!("no {name}: {estimate:#?}"))
}

/// What sharing would save is known before it is on, and nothing comes of asking.
#[test]
fn what_sharing_would_save_is_estimated_before_it_is_on() {
    for engine in engines() {
        let host = Host::start(engine, "256M", &["--set", "Mem.ShareRateMax=0"]);
        let words = with_image(&host);
        let guest = |name, more| host.guest(name, &format!("{words} {more}"));
        let guests = [guest("a", ""), guest("b", ""), guest("red", "--salt r")];
        for name in ["a", "b", "red"] {
            host.await_vm(name, "has its image", |vm| {
                vm.homes.resident_pages.0 >= u64::from(IMAGE)
            });
        }
        let before = host.status();
        let estimate = host.client().estimate_sharing().expect("an estimate");
        println!("{engine}: {estimate:#?}");
        let after = host.status();
        let scanned: u64 = after.vms.iter().map(|vm| vm.scan.pages_scanned).sum();
        assert_eq!((scanned, after.share.hints), (0, 0), "nothing is scanned");
        assert_eq!(after.share.frames, Pages(0), "nothing is mapped");
        assert_eq!(after.totals.homes, before.totals.homes, "nothing is moved");
        for vm in &after.vms {
            assert_eq!(vm.sharing.total(), vm.configured_pages);
            assert_eq!(
                vm.sharing.off_pages, vm.homes.resident_pages,
                "{:?}",
                vm.sharing
            );
        }
        let near = |pages: Pages, expected: u64| pages.0.abs_diff(expected) < u64::from(IMAGE) / 20;
        let image = u64::from(IMAGE);
        assert!(
            near(estimate.would_save.pages, image),
            "one of the two of a domain: {estimate:#?}"
        );
        assert!(
            near(estimate.without_salts.pages, 2 * image),
            "two of all three: {estimate:#?}"
        );
        let [a, b, red] = ["a", "b", "red"].map(|name| of_vm(&estimate, name));
        assert!(near(a.would_save.pages, image / 2) && near(b.would_save.pages, image / 2));
        assert!(
            near(red.would_save.pages, 0) && estimate.missing.is_empty(),
            "{red:?}"
        );
        let said = host.command("share estimate").output().expect("it runs");
        let said = String::from_utf8(said.stdout).expect("text");
        assert!(
            said.contains("it would save") && said.contains("red"),
            "{said}"
        );

        host.set("Mem.ShareRateMax", "32768");
        host.set("Mem.ShareScanTime", "1s");
        let saved = host
            .rest(&["a", "b", "red"], 2 * CONVERGE)
            .share
            .saved_pages;
        assert!(
            near(saved, estimate.would_save.pages.0),
            "{saved:?} were saved: {estimate:#?}"
        );
        let again = host.client().estimate_sharing().expect("an estimate");
        assert!(
            near(again.would_save.pages, saved.0),
            "shared pages count: {again:#?}"
        );
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

#[test]
fn memory_that_a_guest_rewrites_says_that_it_changes_too_often() {
    for engine in engines() {
        let host = Host::start(engine, "96M", &["--share-scan-time", "1s"]);
        let guest = host.guest("a", "--memory 40M --workload stream,size=16M,rate=32M");
        let vm = host.await_vm("a", "most of what it rewrites is left alone", |vm| {
            assert_eq!(vm.sharing.total(), vm.configured_pages);
            vm.sharing.volatile_pages >= Pages(2048)
        });
        println!("{engine}: {:?}", vm.sharing);
        let why = host.command("why a").output().expect("it runs");
        let why = String::from_utf8(why.stdout).expect("text");
        assert!(why.contains("changes too often"), "{why}");
        guest.stop();
        host.stop_quietly(&[]);
    }
}

#[test]
fn sleeping_guest_is_passed_and_not_looked_at_again() {
    for engine in engines() {
        let tracked = engine == "uffd" && uffd::open().is_ok_and(|uffd| uffd.tracks_writes());
        if !tracked {
            println!("{engine}: nobody tells writes");
            continue;
        }
        let host = Host::start(engine, "96M", &["--share-scan-time", "1s"]);
        let guest = host.guest("a", "--memory 48M --workload idle,size=40M");
        host.rest(&["a"], 2 * CONVERGE);
        let before = host.vm("a").scan;
        let after = eventually("another pass", CONVERGE, || {
            let scan = host.vm("a").scan;
            (scan.passes > before.passes + 1).then_some(scan)
        });
        assert!(after.settled, "{after:?}");
        let looked = after.pages_scanned - before.pages_scanned;
        // Its working set is sampled meanwhile, which does not make the scanner look either.
        assert_eq!(looked, 0, "{before:?} then {after:?}");
        guest.stop();
        host.stop_quietly(&[]);
    }
}

#[test]
fn guests_of_different_salts_never_share() {
    for engine in engines() {
        let host = Host::start(engine, "192M", &["--share-scan-time", "1s"]);
        let words = with_image(&host);
        let guest = |name, salt| host.guest(name, &format!("{words} --salt {salt}"));
        let apart = [guest("red", "r"), guest("blue", "b")];
        let share = host.rest(&["red", "blue"], 2 * CONVERGE).share;
        // The scanner has left hints for the image in both guests, and yet nothing is shared.
        assert!(share.hints >= 2 * u64::from(IMAGE), "{share:?}");
        assert_eq!(share.saved_pages, Pages(0), "{share:?}");
        for vm in host.status().vms {
            // They say so: each page of the image is somewhere, and only the salt is in the way.
            let sharing = vm.sharing;
            assert_eq!(sharing.total(), vm.configured_pages, "{sharing:?}");
            let kept_apart = sharing.other_salt_pages.0;
            assert!(kept_apart.abs_diff(u64::from(IMAGE)) < 64, "{sharing:?}");
        }
        // Proof that only the salt kept them apart: a guest with the salt of the first shares with it.
        let same = guest("red2", "r");
        eventually("the two of one salt share", 2 * CONVERGE, || {
            let saved = host.status().share.saved_pages.0;
            assert!(
                saved <= u64::from(IMAGE),
                "only two can share: {saved} saved"
            );
            (saved * 5 > u64::from(IMAGE) * 4).then_some(())
        });
        assert!(host.vm("blue").salt_set);
        assert_eq!(host.vm("blue").homes.shared_pages, Pages(0));
        assert_eq!(pools(&apart[0]), pools(&same));
        assert_eq!(pools(&apart[0]).intersection(&pools(&apart[1])).count(), 0);
        for guest in apart.into_iter().chain([same]) {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

/// The passes of a settled guest are seconds apart. A change of domain must not wait for the next one, and must have
/// all pages looked at again.
#[test]
fn settled_guests_are_scanned_from_the_start_when_their_domains_change() {
    for engine in engines() {
        let fast = ["--share-scan-time", "1s", "--share-rate-max", "32768"];
        let host = Host::start(engine, "192M", &fast);
        let words = with_image(&host);
        let guest = |name, salt| host.guest(name, &format!("{words} --salt {salt}"));
        let guests = [guest("red", "r"), guest("blue", "b")];
        let names = ["red", "blue"];
        let share = host.rest(&names, 2 * CONVERGE).share;
        assert_eq!(share.saved_pages, Pages(0), "{share:?}");
        for name in names {
            let settled = host.vm(name).scan.passes;
            eventually("the passes are far apart", 2 * CONVERGE, || {
                (host.vm(name).scan.passes > settled).then_some(())
            });
        }
        let all = u64::from(IMAGE) / 5 * 4;
        host.set_vm("blue", "salt=r");
        let share = host.rest(&names, 2 * CONVERGE).share;
        assert!(share.saved_pages.0 > all, "one salt: {share:?}");
        host.set_vm("blue", "salt=b");
        let share = host.rest(&names, 2 * CONVERGE).share;
        assert_eq!(share.saved_pages, Pages(0), "two salts: {share:?}");
        host.set("Mem.ShareForceSalting", "0");
        let share = host.rest(&names, 2 * CONVERGE).share;
        assert!(share.saved_pages.0 > all, "salts ignored: {share:?}");
        for guest in guests {
            guest.stop();
        }
        host.stop_quietly(&[]);
    }
}

/// The share pools that a guest maps, by inode.
fn pools(guest: &Process) -> BTreeSet<u64> {
    let all = mappings(guest.pid()).into_iter();
    all.filter(|map| map.path.contains("pool"))
        .map(|map| map.inode)
        .collect()
}

/// Lets two guests share pages that are scattered over their memory. The mappings of each once the scanner
/// finds nothing new, and the pages saved.
fn scattered(engine: &str, budget: &str) -> (Vec<usize>, Pages) {
    let args = ["--share-scan-time", "1s", "--vma-budget", budget];
    let host = Host::start(engine, "160M", &args);
    // Runs of 8 pages in 100 are alike in all guests.
    let words = "--memory 48M --workload idle,size=40M --seed";
    let guests =
        [("a", 1), ("b", 2)].map(|(name, seed)| host.guest(name, &format!("{words} {seed}")));
    let saved = host.rest(&["a", "b"], 2 * CONVERGE).share.saved_pages;
    let lines: Vec<usize> = guests
        .iter()
        .map(|guest| mappings(guest.pid()).len())
        .collect();
    let said = ["a", "b"].map(|name| host.vm(name).vmas);
    let sharing = ["a", "b"].map(|name| {
        let vm = host.vm(name);
        assert_eq!(vm.sharing.total(), vm.configured_pages);
        vm.sharing
    });
    // Where a bound was in the way, pages say so: of two equal ones that whose scanner has found the other.
    let refused = sharing.iter().any(|vm| vm.vma_budget_pages > Pages(0));
    assert_eq!(refused, budget == "64", "{sharing:?}");
    println!("{engine}: budget {budget}: {lines:?} mappings, said {said:?}, saved {saved:?}");
    for (lines, said) in lines.iter().zip(said) {
        assert!(
            *lines as u64 <= said,
            "{lines} mappings, and {said} at most by status"
        );
    }
    for guest in guests {
        guest.stop();
    }
    host.stop_quietly(&[]);
    (lines, saved)
}

#[test]
fn vma_budget_bounds_the_mappings_of_guests() {
    for engine in engines() {
        let (free, all) = scattered(engine, "30000");
        let (bound, some) = scattered(engine, "64");
        assert!(
            free.iter().any(|lines| *lines > 128),
            "nothing to bound: {free:?}"
        );
        assert!(bound.iter().all(|lines| *lines <= 64), "{bound:?}");
        assert!(some < all, "{some:?} saved with, {all:?} without a bound");
    }
}
