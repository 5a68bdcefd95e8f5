//! Failures around the core: of disks, memory, VMAs, guests. Each costs what it must and no more.

use memvisor_wire::balloon::PageStatus;
use memvisor_wire::memory::Fault;
use nix::errno::Errno;

use super::scenario::{self, KINDS, RESERVE, SWAP, ZIP, alone, noise, small};
use super::worker::PAUSE;
use super::{Countdown, Guest, Host, Op, Spec, View};
use crate::balloon;
use crate::compress::{ZipCache, ZipError, samples};
use crate::engine::{EngineError, EngineKind, Reply};
use crate::fault::{Access, Ended, Event, FaultError, Outcome, complete, resolve};
use crate::page::{Home, Urgency};
use crate::swap::SwapError;
use crate::units::{FrameId, Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages};
use crate::vm::{Blocked, Means};

const PAGES: u32 = 64;

/// A guest that gets the page it asks for and none ahead.
fn spec(kind: EngineKind) -> Spec {
    Spec {
        ahead: 0,
        ..Spec::of(kind, PAGES)
    }
}

/// Runs `story` with a guest of each engine.
fn each(story: impl Fn(&Host, &mut Guest)) {
    scenario::each(KINDS.map(spec), story);
}

/// A page that takes half an arena page once it is compressed.
fn half(seed: u32) -> PageBuf {
    samples::mixed(seed.into(), 1900)
}

/// Writes pages and has them evicted to the cache one at a time; the pages in the order in which they left.
fn fill_cache(guest: &mut Guest, pages: u32, content: fn(u32) -> PageBuf) -> Vec<Gfn> {
    (0..pages).for_each(|gfn| guest.write(gfn, content(gfn)));
    (0..pages).for_each(|_| assert_eq!(guest.evict(1), 1));
    let zip = guest.vm.zip.lock();
    zip.by_age().map(|(gfn, _)| gfn).collect()
}

/// Pages of which none is the neighbour of another.
fn apart() -> impl Iterator<Item = u32> {
    (0..16).step_by(2)
}

#[test]
fn damaged_page_ends_the_guest_and_loses_nothing_else() {
    for means in [ZIP, SWAP] {
        each(|host, guest| {
            (0..8).for_each(|gfn| guest.write(gfn, small(gfn)));
            assert_eq!(guest.evict_by(64, means), 8);
            guest.damage(3);
            let (home, used) = (guest.home(3), host.budget.used());
            let error = resolve(&guest.vm, Gfn(3), Access::Any, 0).expect_err("damaged");
            let told = match &error {
                FaultError::Zip(ZipError::Corrupt { slot, .. }) => Home::Compressed(*slot),
                FaultError::Swap(SwapError::Corrupt { slot, .. }) => Home::Swapped(*slot),
                _ => panic!("{error:?}"),
            };
            assert_eq!(told, home);
            assert_eq!(host.budget.used(), used);
            (0..3).chain(4..8).for_each(|gfn| guest.read(gfn));
            assert_eq!(guest.home(3), home, "it can be looked at");
            guest.damage(3);
        });
    }
}

#[test]
fn damaged_zip_slot_is_not_spilled_as_if_it_were_whole() {
    each(|_, guest| {
        (0..2).for_each(|gfn| guest.write(gfn, half(gfn)));
        assert_eq!(guest.evict(64), 2);
        let damaged = guest.home(0);
        guest.damage(0);
        guest.vm.zip.lock().set_max_pages(1);
        guest.write(2, half(2));
        assert_eq!(guest.evict_by(64, ZIP), 0, "it is full");
        assert_eq!(guest.vm.stats.spilled.get(), 0);
        assert_eq!(guest.evict(64), 1);
        assert_eq!(guest.vm.stats.spilled.get(), 1);
        assert!(matches!(guest.home(1), Home::Swapped(_)));
        assert_eq!(guest.home(0), damaged);
        guest.damage(0);
    });
}

/// The cap or the limit falls while the cache is full: its oldest pages move on to swap, and their memory is given back
/// to the budget. Only pages that a limit pushed out are ghosts, which count when they return.
#[test]
fn lowered_cap_or_limit_trims_the_oldest_pages_of_the_cache() {
    type Lower = fn(&mut ZipCache, u32);
    let limit = |zip: &mut ZipCache, pages| zip.set_limit(Some(pages));
    let lowered: [(Lower, u64); 2] = [(ZipCache::set_max_pages, 0), (limit, 32)];
    let spec = |kind| Spec {
        zip_pages: PAGES / 2,
        ..spec(kind)
    };
    for (lower, ghosts) in lowered {
        scenario::each(KINDS.map(spec), |host, guest| {
            let by_age = fill_cache(guest, PAGES, half);
            let zip = &guest.vm.zip;
            assert_eq!((by_age.len(), zip.lock().pages_used()), (64, 32));
            let used = host.budget.used().0;
            guest.disk.set_failing(Some(Errno::ENOSPC));
            lower(&mut zip.lock(), 16);
            guest.worker.wait(PAUSE);
            assert_eq!(guest.vm.stats.spilled.get(), 0);
            host.check(&[guest]);
            guest.disk.set_failing(None);
            guest.worker.wait(PAUSE);
            assert_eq!(guest.vm.stats.spilled.get(), 32);
            assert_eq!(guest.vm.zip.lock().pages_used(), 16);
            assert_eq!(host.budget.used().0, used - 16);
            for (at, gfn) in by_age.iter().enumerate() {
                let is_swapped = matches!(guest.home(gfn.0), Home::Swapped(_));
                assert_eq!(is_swapped, at < 32, "the oldest go first");
            }
            guest.read_all();
            assert_eq!(guest.vm.ghosts.returned(), ghosts);
        });
    }
}

/// No page is mapped, the cache holds all of them, and the host has no page left: the oldest pages of the
/// cache go to swap.
#[test]
fn guest_whose_pages_are_all_compressed_is_evicted_from_its_cache() {
    each(|host, guest| {
        let oldest = fill_cache(guest, 32, half)[0];
        let rest = host.budget.free().0;
        assert!(host.budget.take(rest, Urgency::Reclaim));
        assert_eq!(guest.evict_by(64, ZIP), 0, "they are compressed");
        assert_eq!(guest.evict(8), 8);
        assert!(matches!(guest.home(oldest.0), Home::Swapped(_)));
        assert_eq!(host.budget.free(), Pages(4), "two to a page");
        while guest.evict(64) > 0 {}
        guest.vm.give_back_emptied();
        assert_eq!(host.budget.free(), Pages(16));
        host.budget.give(rest);
    });
}

/// The cache is full. What leaves it empties arena pages of blocks that are still in use. A compressed page of
/// another length cannot be stored there, but the emptied pages pay for the arena page that it takes.
#[test]
fn pages_emptied_in_a_block_pay_for_a_page_of_another() {
    each(|host, guest| {
        // Evicted again, the oldest page becomes the youngest. It keeps the first block in use: it is in its first slot
        // and the last to leave.
        let first = fill_cache(guest, 52, |gfn| samples::mixed(gfn.into(), 1200))[0];
        guest.read(first.0);
        assert_eq!(guest.evict(1), 1);
        let zip = |guest: &Guest| {
            let zip = guest.vm.zip.lock();
            (zip.stored(), zip.pages_used())
        };
        assert_eq!(zip(guest), (Pages(52), 16));
        guest.write(52, samples::mixed(52, 900));
        let used = host.budget.used().0;
        assert_eq!(guest.evict(1), 1);
        assert!(matches!(guest.home(52), Home::Compressed(_)));
        assert_eq!(guest.vm.stats.spilled.get(), 32);
        // One page of the first block, six of the second, and one of the new block.
        assert_eq!(zip(guest), (Pages(21), 8));
        assert_eq!(host.budget.used().0, used - 1 - 16 + 8);
    });
}

#[test]
fn failing_swap_file_leaves_pages_where_they_are() {
    each(|host, guest| {
        let fail = |guest: &mut Guest, errno| {
            let homes = Vec::from_iter(guest.homes());
            guest.disk.set_failing(Some(errno));
            assert_eq!(guest.evict(64), 0);
            assert!(guest.vm.is_swap_failing());
            assert_eq!(Vec::from_iter(guest.homes()), homes);
            host.check(&[guest]);
            guest.read_all();
        };
        (8..12).for_each(|gfn| guest.write(gfn, noise(99)));
        assert_eq!(guest.scan(), 4);
        fail(guest, Errno::EIO);
        // The shared pages are victims only once these have left.
        (0..8).for_each(|gfn| guest.write(gfn, noise(gfn)));
        fail(guest, Errno::ENOSPC);
        fail(guest, Errno::EIO);
        assert_eq!(guest.vm.stats.evict_failed.get(), 4 + 16);
        guest.disk.set_failing(None);
        assert_eq!(guest.evict(8), 8);
        assert!(!guest.vm.is_swap_failing());
    });
}

/// Where the first 13 pages of a guest are, one letter for each.
fn places(guest: &Guest) -> String {
    let letter = |(_, home)| match home {
        Home::Resident => 'R',
        Home::Compressed(_) => 'C',
        Home::Swapped(_) => 'W',
        Home::Shared(_) => 'S',
        Home::Zero => '0',
        Home::Untouched | Home::Ballooned => '-',
    };
    guest.homes().take(13).map(letter).collect()
}

/// Four pages compress, four do not, two are zero and three are equal. Two of the three are shared beforehand, so the
/// third can leave by any means: it joins their frame. Zero pages can leave by any means, too.
#[test]
fn eviction_keeps_to_its_means() {
    const NEITHER: Means = Means {
        compress: false,
        swap: false,
    };
    for (means, first, then) in [
        (ZIP, (7, "CCCCRRRR00SSS"), (0, "CCCCRRRR00SSS")),
        (SWAP, (11, "WWWWWWWW00SSS"), (3, "WWWWWWWW00WWW")),
        (NEITHER, (3, "RRRRRRRR00SSS"), (0, "RRRRRRRR00SSS")),
    ] {
        each(|_, guest| {
            (10..12).for_each(|gfn| guest.write(gfn, noise(99)));
            assert_eq!(guest.scan(), 2);
            (0..4).for_each(|gfn| guest.write(gfn, small(gfn)));
            (4..8).for_each(|gfn| guest.write(gfn, noise(gfn)));
            (8..10).for_each(|gfn| guest.write(gfn, PageBuf::zeroed()));
            guest.write(12, noise(99));
            let mut failed = 0;
            for (count, left) in [first, then] {
                assert_eq!(guest.evict_by(64, means), count);
                assert_eq!(places(guest), left);
                failed += left.matches('R').count() as u64;
                assert_eq!(guest.vm.stats.evict_failed.get(), failed);
            }
            (0..8).for_each(|gfn| guest.write(gfn, PageBuf::zeroed()));
            assert_eq!(guest.evict_by(64, means), 8);
            assert_eq!(guest.evict_by(64, means), 0, "shared pages stay");
        });
    }
}

#[test]
fn refused_freeze_leaves_pages_to_their_guest() {
    alone(spec(EngineKind::Mprotect), |host, guest| {
        // Each page is a run of its own, so that three runs freeze before one is refused.
        apart().for_each(|gfn| guest.write(gfn, noise(7)));
        guest.space.accepts.set(3);
        assert_eq!(guest.evict(64), 0);
        host.check(&[guest]);
        guest.read_all();
        guest.space.accepts.set(3);
        assert_eq!(guest.scan(), 0);
        let statuses = balloon::inflate(&guest.vm, &[GfnRun::new(Gfn(0), 1)]).expect("it lives");
        assert_eq!(statuses[0].status, PageStatus::Busy);
        guest.space.accepts.set(Countdown::NEVER);
        apart().for_each(|gfn| assert_eq!(guest.home(gfn), Home::Resident));
    });
}

#[test]
fn frames_that_cannot_be_mapped_are_given_back() {
    each(|_, guest| {
        apart().for_each(|gfn| guest.write(gfn, noise(7)));
        // One page is the hint, and the other seven are candidates. Three of them can be mapped. With mprotect,
        // freezing each of the seven takes a VMA first.
        let freezes = match guest.vm.engine.kind() {
            EngineKind::Mprotect => 7,
            EngineKind::Uffd => 0,
        };
        guest.space.accepts.set(freezes + 3);
        let shared = guest.scan();
        guest.space.accepts.set(Countdown::NEVER);
        assert_eq!(shared, 3);
    });
}

/// The reserve: first touches stop before refills do, and nothing that waits is lost.
#[test]
fn exhausted_memory_makes_faults_wait_until_some_comes_free() {
    each(|host, guest| {
        guest.write(0, small(1));
        assert_eq!(guest.evict(64), 1);
        let taken = host.budget.free().0 - RESERVE;
        assert!(host.budget.take(taken, Urgency::Touch));
        let touched = resolve(&guest.vm, Gfn(1), Access::Any, 0).expect("not its fault");
        assert!(matches!(touched, Outcome::Starved));
        guest.read(0);
        assert_eq!(guest.home(0), Home::Resident);
        assert_eq!(guest.evict(64), 1);
        assert!(host.budget.take(RESERVE / 2, Urgency::Refill));
        let is_served = guest.attempt(0, 0, Op::Read);
        assert!(!is_served, "half of the reserve is for reclaim");
        assert_eq!(host.budget.starving(), 1);
        host.budget.give(taken + RESERVE / 2);
        assert!(guest.drive(0), "the bell rang");
        assert_eq!(host.budget.starving(), 0);
    });
}

/// First touches wait while the policy says so, though there is memory. Refills and breaks go on meanwhile: a guest
/// that stands still could not run its balloon agent, and where nothing can be evicted only the balloon helps.
#[test]
fn blocked_guest_waits_and_one_blocked_from_growing_still_gets_its_own_pages() {
    each(|_, guest| {
        (0..2).for_each(|gfn| guest.write(gfn, noise(gfn)));
        (2..4).for_each(|gfn| guest.write(gfn, noise(9)));
        assert_eq!(guest.scan(), 2);
        assert_eq!(guest.evict(2), 2);
        guest.vm.orders.set_blocked(Blocked::Touches);
        (0..2).for_each(|gfn| guest.read(gfn));
        guest.write(2, noise(3));
        for (gfn, blocked) in [(20, Blocked::Touches), (21, Blocked::All)] {
            guest.vm.orders.set_blocked(blocked);
            assert!(!guest.attempt(0, gfn, Op::Read));
            guest.block(Blocked::No);
            assert!(guest.drive(0));
        }
    });
}

/// Shares a run of `count` pages from page 10 on and writes to its fifth page; how many pages that
/// broke out.
fn broken_by_one_write(kind: EngineKind, count: u32, exceeded: bool) -> u64 {
    let host = Host::roomy();
    let run = 10..10 + count;
    // Two pages of each content, one in each guest: the second scan finds the frame that the first made.
    let [mut guest, mut other] = [1, 2].map(|id| {
        let mut guest = host.start(id, spec(kind));
        let bytes = |gfn| PageBuf([gfn as u8; PAGE_SIZE]);
        run.clone().for_each(|gfn| guest.write(gfn, bytes(gfn)));
        guest
    });
    guest.write(0, PageBuf::zeroed());
    other.scan();
    guest.scan();
    other.scan();
    let Home::Shared(first) = guest.home(10) else {
        panic!("gfn 10 is not shared")
    };
    for (gfn, frame) in run.zip(first.0..) {
        assert_eq!(guest.home(gfn), Home::Shared(FrameId(frame)));
    }
    if exceeded {
        guest.vm.vmas.set_budget(1);
        drop(guest.vm.vmas.change(1));
    }
    guest.write(14, noise(1));
    let broken = guest.vm.stats.breaks.get();
    for gfn in 14..14 + broken as u32 {
        assert_eq!(guest.space.view(Gfn(gfn)), View::Open);
        assert_eq!(guest.home(gfn), Home::Resident);
    }
    host.check(&[&guest, &other]);
    guest.read_all();
    host.end([guest, other]);
    broken
}

#[test]
fn break_over_the_budget_of_vmas_takes_the_rest_of_the_run() {
    for kind in KINDS {
        assert_eq!(broken_by_one_write(kind, 12, false), 1);
        assert_eq!(broken_by_one_write(kind, 12, true), 8);
        // A rest of more than 32 pages is worth its VMAs and stays shared: only the written page is broken out.
        assert_eq!(broken_by_one_write(kind, 36, true), 32);
        assert_eq!(broken_by_one_write(kind, 37, true), 1);
    }
}

#[test]
fn break_without_memory_for_the_whole_run_breaks_what_it_can() {
    each(|host, guest| {
        (10..18).for_each(|gfn| guest.write(gfn, noise(7)));
        assert_eq!(guest.scan(), 8);
        let taken = host.budget.free().0 - RESERVE / 2;
        assert!(host.budget.take(taken, Urgency::Refill));
        let broken = resolve(&guest.vm, Gfn(12), Access::Write, 0).expect("not its fault");
        assert!(matches!(broken, Outcome::Starved), "{broken:?}");
        assert!(!guest.vm.table.entry(Gfn(12)).is_locked());
        host.budget.give(taken);
    });
}

#[test]
fn guest_that_dies_in_a_fault_costs_nothing_afterwards() {
    each(|host, guest| {
        (0..4).for_each(|gfn| guest.write(gfn, noise(7)));
        assert_eq!(guest.scan(), 4);
        guest.write(5, noise(5));
        assert_eq!(guest.evict(1), 1);
        let used = host.budget.used();
        guest.space.life.set(0);
        for (at, access) in [(0, Access::Write), (5, Access::Any), (9, Access::Any)] {
            let error = resolve(&guest.vm, Gfn(at), access, 0).expect_err("it is dead");
            let is_told = matches!(error, FaultError::Engine(EngineError::Gone));
            assert!(is_told, "{error:?}");
        }
        assert_eq!(host.budget.used(), used);
        // `alone` reads its pages once more.
        guest.space.life.set(Countdown::NEVER);
    });
}

#[test]
fn second_fault_on_an_unconfirmed_page_waits_for_the_first() {
    each(|_, guest| {
        (0..4).for_each(|gfn| guest.write(gfn, noise(7)));
        assert_eq!(guest.scan(), 4);
        let first = resolve(&guest.vm, Gfn(2), Access::Write, 0).expect("it lives");
        let Outcome::Ask(reply, pending) = first else {
            panic!("{first:?}")
        };
        assert_eq!(reply, Reply::Private(GfnRun::new(Gfn(2), 1)));
        assert!(!guest.attempt(0, 2, Op::Write(Box::new(noise(8)))));
        assert_eq!(guest.space.obey(reply), Some(Fault::Done(0)));
        complete(&guest.vm, pending);
        assert!(guest.drive(0), "the bell rang");
    });
}

#[test]
fn fault_outside_ram_ends_the_guest() {
    each(|_, guest| {
        guest.space.line.send(Event::Userfault(Gfn(PAGES)));
        let ended = guest.faults.turn().expect_err("outside");
        let text = format!("a fault on {}, and it has {PAGES} pages", Gfn(PAGES));
        let is_told = matches!(&ended, Ended::Protocol(why) if *why == text);
        assert!(is_told, "{ended:?}");
    });
}
