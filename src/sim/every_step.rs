//! One story of a host with two guests, told again and again, in which something fails at each step in turn: the guest
//! dies, or the disk under its swap file takes a write no more.

use nix::errno::Errno;

use super::{Guest, Host, Op, Spec};
use crate::balloon;
use crate::compress::samples;
use crate::engine::{EngineError, EngineKind};
use crate::reclaim::trim_cache;
use crate::share::{self, AttachRequest, Leaver};
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::Means;

const KINDS: [EngineKind; 2] = [EngineKind::Uffd, EngineKind::Mprotect];
const PAGES: u32 = 24;
/// More steps than the story has; the tests say how many there were.
const ENDLESS: u32 = 1000;

/// A host on which both guests have written all their pages: some zero, some equal to others, some that compress and some
/// that do not.
fn prologue(kind: EngineKind) -> (Host, [Guest; 2]) {
    let host = Host::new(400, 4, 1, 128);
    let guests = [1, 2].map(|id| {
        let spec = Spec {
            kind,
            pages: PAGES,
            salt: 0,
            swap_slots: PAGES,
            zip_pages: 3,
            vma_budget: 1000,
            threads: 1,
            inline: false,
            ahead: 15,
        };
        let mut guest = host.power_on(VmId(id), spec).expect("there is memory");
        for gfn in 0..PAGES {
            let page = match gfn {
                0..4 => PageBuf::zeroed(),
                4..12 => PageBuf([gfn as u8; PAGE_SIZE]),
                12..18 => samples::mixed(u64::from(gfn + id * PAGES), 1800),
                _ => samples::random(u64::from(gfn + id * PAGES)),
            };
            write(&mut guest, gfn, page);
        }
        guest
    });
    let [first, mut second] = guests;
    // It leaves hints, so that the other finds pages like its own.
    for _ in 0..2 {
        let found = second.scanner.scan(&second.vm, &*host.peers, PAGES);
        found.expect("it lives");
    }
    (host, [first, second])
}

fn write(guest: &mut Guest, gfn: u32, page: PageBuf) {
    guest.threads[0].begin(Gfn(gfn), Op::Write(Box::new(page)));
    assert!(guest.drive(0), "there is memory");
}

/// All that a worker does with its guest.
fn story(host: &Host, guest: &mut Guest) -> Result<(), EngineError> {
    let vm = std::sync::Arc::clone(&guest.vm);
    for _ in 0..3 {
        guest.scanner.scan(&vm, &*host.peers, PAGES)?;
        let nudged = host.peers.nudged(vm.id);
        guest.scanner.follow(&vm, &*host.peers, nudged)?;
    }
    guest.sampler.next_period(&vm)?;
    for _ in 0..8 {
        guest.evictor.evict(&vm, Pages(3), Means::ALL)?;
    }
    guest.sampler.next_period(&vm)?;
    let (pages, source) = (GfnRun::new(Gfn(0), 3), Gfn(12));
    guest.space.set_attaching(true);
    let attached = share::attach(&vm, &*host.peers, AttachRequest { pages, source });
    guest.space.set_attaching(false);
    let attached = pages.iter().take(attached? as usize);
    attached.for_each(|gfn| guest.memory.copy(Gfn(gfn.0 + source.0), gfn));
    for run in [GfnRun::new(Gfn(3), 3), GfnRun::new(Gfn(16), 4)] {
        guest.space.set_giving_up(true);
        let given_up = balloon::inflate(&vm, &[run]);
        guest.space.set_giving_up(false);
        given_up?;
        run.iter().for_each(|gfn| guest.memory.forget(gfn));
    }
    let _ = balloon::deflate(&vm, &[GfnRun::new(Gfn(3), 2)]);
    vm.zip.lock().set_max_pages(1);
    trim_cache(&vm, 8);
    Leaver::default().step(&vm)?;
    guest.evictor.evict(&vm, Pages(8), Means::ALL)?;
    Ok(())
}

fn read_all(guest: &mut Guest) {
    for gfn in (0..PAGES).map(Gfn) {
        guest.threads[0].begin(gfn, Op::Read);
        assert!(guest.drive(0), "{gfn} cannot be read");
    }
}

/// A guest that dies after so many steps leaves nothing, and the other keeps every byte. Whether it died.
pub(super) fn die_after(kind: EngineKind, steps: u32) -> bool {
    let (host, [mut doomed, mut other]) = prologue(kind);
    doomed.space.die_after(steps);
    let told = story(&host, &mut doomed);
    let is_dead = doomed.space.is_dead();
    assert!(is_dead || told.is_ok(), "{told:?}");
    host.bury(doomed);
    host.check(&[&other]);
    story(&host, &mut other).expect("it lives");
    read_all(&mut other);
    host.check(&[&other]);
    host.bury(other);
    host.check_empty();
    is_dead
}

#[test]
fn guest_that_dies_at_any_step_leaves_nothing_and_takes_nothing_along() {
    for kind in KINDS {
        let lived = (0..ENDLESS).find(|steps| !die_after(kind, *steps));
        let steps = lived.expect("the story ends");
        assert!(steps > 10, "only {steps} steps in {kind:?}");
    }
}

/// The disk takes so many writes and then fails for `writes` of them. Whether it failed at all.
fn fail_after(kind: EngineKind, steps: u32, writes: u32, errno: Errno) -> bool {
    let (host, [mut guest, other]) = prologue(kind);
    guest.disk.fail_after(steps, writes, errno);
    story(&host, &mut guest).expect("a disk is no guest");
    host.check(&[&guest, &other]);
    read_all(&mut guest);
    let has_failed = guest.vm.stats.swap_errors.get() > 0;
    host.check(&[&guest, &other]);
    [guest, other]
        .into_iter()
        .for_each(|guest| host.bury(guest));
    host.check_empty();
    has_failed
}

#[test]
fn swap_that_fails_at_any_write_loses_no_byte() {
    for kind in KINDS {
        for (writes, errno) in [(1, Errno::EIO), (1, Errno::ENOSPC), (ENDLESS, Errno::EIO)] {
            let whole = (0..ENDLESS).find(|step| !fail_after(kind, *step, writes, errno));
            let steps = whole.expect("the story ends");
            assert!(steps > 2, "only {steps} writes in {kind:?}");
        }
    }
}
