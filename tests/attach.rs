//! Guests that boot from an image attach to what others share, so that the image uses memory once from the start.

mod rig;

use std::time::Duration;

use memvisor::telemetry::VmStatus;
use memvisor::units::Pages;
use rig::{Host, Process, engines, eventually, image, mappings, modes};

/// How long a guest may take to boot on a machine that is busy with other tests.
const BOOT: Duration = Duration::from_secs(30);
/// How long guests may take to verify what they own.
const VERIFY: Duration = Duration::from_secs(30);
/// Pages of the image: 24 MiB.
const IMAGE: u32 = 6144;
/// Pages that a booted guest uses beside its image: its stage, and pages that were given ahead.
const BESIDE: u64 = 300;
/// The most mappings of guest memory: RAM before and behind the image, and the image in a few runs of frames.
const FEW_MAPPINGS: usize = 16;

/// A host without a scanner, so that all shared pages were attached.
fn host(engine: &str, memory: &str) -> Host {
    Host::quiet(engine, memory, &["--share-rate-max", "0"])
}

fn boot(host: &Host, name: &str, extra: &str) -> Process {
    let image = host.path().join("boot.img");
    let words = format!("--memory 40M --workload image:{} {extra}", image.display());
    host.guest(name, &words)
}

fn attaches(host: &Host, name: &str, pages: u32) -> VmStatus {
    eventually(&format!("{name} has booted"), BOOT, || {
        let vm = host.vm(name);
        (vm.scan.attached >= u64::from(pages)).then_some(vm)
    })
}

#[test]
fn guests_of_one_image_use_its_memory_once_and_few_mappings() {
    for (engine, extra) in modes() {
        let host = host(engine, "96M");
        let path = host.path().join("boot.img");
        image(&path, IMAGE, 0xb007);
        let mut guests = vec![boot(&host, "a", extra)];
        let first = attaches(&host, "a", IMAGE);
        assert_eq!(first.homes.shared_pages, Pages(IMAGE.into()));
        let used = host.status().used_pages.0;

        guests.push(boot(&host, "b", extra));
        let second = attaches(&host, "b", IMAGE);
        let status = host.status();
        assert_eq!(status.share.saved_pages, Pages(IMAGE.into()));
        assert!(
            second.homes.resident_pages.0 <= BESIDE,
            "{:?}",
            second.homes
        );
        let more = status.used_pages.0 - used;
        assert!(more < u64::from(IMAGE) / 8, "{more} pages more");
        for guest in &guests {
            let mapped = mappings(guest.pid()).len();
            assert!(mapped <= FEW_MAPPINGS, "{engine}: {mapped} mappings");
        }

        // The third guest boots from another file at the same path: half as long, and half of that is new.
        let bytes = std::fs::read(&path).expect("the image");
        let new = host.path().join("new.img");
        image(&new, IMAGE / 4, 0xb008);
        let half = [
            &std::fs::read(&new).expect("an image"),
            &bytes[..bytes.len() / 4],
        ]
        .concat();
        std::fs::write(&new, half).expect("write an image");
        std::fs::rename(&new, &path).expect("replace the image");
        guests.push(boot(&host, "c", extra));
        attaches(&host, "c", IMAGE / 2);
        let saved = u64::from(IMAGE) + u64::from(IMAGE) / 4;
        assert_eq!(host.status().share.saved_pages, Pages(saved));
        // The guest that brought the frames ends first. Its frames must stay as long as other guests map them.
        for guest in guests {
            guest.stop();
        }
        host.is_empty(VERIFY);
        host.stop_quietly(&[]);
    }
}

/// The guest kernels are short of memory: they reuse attached pages for other memory and write them.
#[test]
fn attached_pages_that_are_written_are_the_guests_own() {
    for (engine, extra) in modes() {
        let host = host(engine, "96M");
        image(&host.path().join("boot.img"), IMAGE, 0xb007);
        let own = format!("{extra} --workload toucher,size=30M,rate=80M,content=text --seed");
        let guests = [("a", 1), ("b", 2)]
            .map(|(name, seed)| (name, boot(&host, name, &format!("{own} {seed}"))));
        for (name, _) in &guests {
            eventually("attached pages are written", BOOT, || {
                let vm = host.vm(name);
                (vm.scan.attached > 1000 && vm.faults.cow_break > 500).then_some(())
            });
        }
        for (_, guest) in guests {
            guest.stop();
        }
        host.is_empty(VERIFY);
        host.stop_quietly(&[]);
    }
}

/// A guest whose attach is refused copies the image, and verifies all the same.
#[test]
fn guests_that_may_not_share_or_are_at_their_limit_copy() {
    for engine in engines() {
        let host = host(engine, "96M");
        image(&host.path().join("boot.img"), IMAGE, 0xb007);
        let alone = boot(&host, "alone", "--no-sharing");
        let bound = boot(&host, "bound", "--limit 16M");
        let copied = eventually("the guest that may not share has booted", BOOT, || {
            let vm = host.vm("alone");
            (vm.homes.resident_pages.0 >= u64::from(IMAGE)).then_some(vm)
        });
        assert_eq!(copied.scan.attached, 0);
        let some = attaches(&host, "bound", 1000);
        eventually("the guest at its limit has booted", BOOT, || {
            let vm = host.vm("bound");
            let held = vm.homes.resident_pages.0 + vm.homes.shared_pages.0;
            assert!(held <= (16 << 8) + BESIDE, "{:?}", vm.homes);
            (vm.homes.untouched_pages.0 < some.configured_pages.0 - u64::from(IMAGE)).then_some(())
        });
        alone.stop();
        bound.stop();
        host.is_empty(VERIFY);
        host.stop_quietly(&[]);
    }
}

#[test]
fn guests_of_different_salts_attach_to_frames_of_their_own() {
    for engine in engines() {
        let host = host(engine, "96M");
        image(&host.path().join("boot.img"), IMAGE, 0xb007);
        let apart = ["red", "blue"].map(|salt| boot(&host, salt, &format!("--salt {salt}")));
        for name in ["red", "blue"] {
            let vm = attaches(&host, name, IMAGE);
            assert_eq!(vm.homes.shared_pages, Pages(IMAGE.into()));
        }
        assert_eq!(host.status().share.saved_pages, Pages(0));
        for guest in apart {
            guest.stop();
        }
        host.is_empty(VERIFY);
        host.stop_quietly(&[]);
    }
}
