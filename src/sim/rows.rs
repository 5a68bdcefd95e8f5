//! Pages that are touched in a row come ahead.

use super::{Guest, Host, Op, Spec, View};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::fault::{Ended, FaultError};
use crate::page::Home;
use crate::units::{Gfn, VmId};
use crate::vm::Means;

const PAGES: u32 = 64;

const KINDS: [EngineKind; 2] = [EngineKind::Uffd, EngineKind::Mprotect];

/// A guest that has touched nothing.
fn fresh(kind: EngineKind, inline: bool) -> (Host, Guest) {
    let host = Host::new(400, 4, 1, 128);
    let spec = Spec {
        kind,
        pages: PAGES,
        salt: 0,
        swap_slots: PAGES,
        zip_pages: 16,
        vma_budget: 100,
        threads: 1,
        inline,
        ahead: 15,
    };
    let guest = host.power_on(VmId(1), spec).expect("there is memory");
    (host, guest)
}

/// The same, all of whose pages were written and left by these means.
fn evicted(kind: EngineKind, inline: bool, means: Means, bytes: usize) -> (Host, Guest) {
    let (host, mut guest) = fresh(kind, inline);
    for gfn in 0..PAGES {
        let page = samples::mixed(gfn.into(), bytes);
        guest.threads[0].begin(Gfn(gfn), Op::Write(Box::new(page)));
        assert!(guest.drive(0), "there is memory");
    }
    while guest.vm.table.count(Home::Resident) > 0 {
        assert!(guest.evict_by(32, means) > 0);
    }
    (host, guest)
}

/// A guest all of whose pages are in its swap file.
fn swapped(kind: EngineKind) -> (Host, Guest) {
    let means = Means {
        compress: false,
        swap: true,
    };
    evicted(kind, false, means, 4096)
}

/// A guest that serves itself, all of whose pages are in its cache, and that has so many credits.
fn compressed(credits: u32) -> (Host, Guest) {
    let means = Means {
        compress: true,
        swap: false,
    };
    let (host, guest) = evicted(EngineKind::Uffd, true, means, 500);
    guest.vm.take_back_credits();
    guest.vm.grant_credits(credits);
    (host, guest)
}

fn read(guest: &mut Guest, gfn: u32) -> bool {
    guest.threads[0].begin(Gfn(gfn), Op::Read);
    guest.drive(0)
}

fn end(host: &Host, guest: Guest) {
    host.check(&[&guest]);
    host.bury(guest);
    host.check_empty();
}

#[test]
fn first_touches_in_a_row_bring_more_and_more_pages() {
    for kind in KINDS {
        let (host, mut guest) = fresh(kind, false);
        let mut touched = Vec::new();
        for gfn in [0, 1, 3, 7, 15] {
            assert!(read(&mut guest, gfn));
            touched.push(guest.vm.stats.first_touch.get());
        }
        assert_eq!(touched, [1, 3, 7, 15, 31], "{kind:?}");
        for gfn in (0..31).map(Gfn) {
            assert_eq!(guest.vm.table.entry(gfn).home(), Home::Resident);
            let is_open = guest.space.view(gfn) == View::Open;
            assert!(is_open || kind == EngineKind::Uffd, "{gfn} of {kind:?}");
        }
        // Touched one by one, they need no more.
        for gfn in 0..31 {
            assert!(read(&mut guest, gfn));
        }
        assert_eq!(guest.vm.stats.first_touch.get(), 31);
        end(&host, guest);
    }
}

#[test]
fn row_of_an_mprotect_guest_ends_at_pages_that_are_there_and_at_the_end_of_ram() {
    let (host, mut guest) = fresh(EngineKind::Mprotect, false);
    assert!(read(&mut guest, 5));
    for gfn in [0, 1, 3] {
        assert!(read(&mut guest, gfn));
    }
    assert_eq!(guest.vm.stats.first_touch.get(), 6);
    assert_eq!(guest.space.view(Gfn(6)), View::Closed);
    for gfn in [PAGES - 4, PAGES - 3, PAGES - 1] {
        assert!(read(&mut guest, gfn));
    }
    assert_eq!(guest.vm.stats.first_touch.get(), 10);
    end(&host, guest);
}

#[test]
fn swapped_pages_read_in_a_row_come_with_few_reads_of_the_disk() {
    for kind in KINDS {
        let (host, mut guest) = swapped(kind);
        for gfn in 0..PAGES {
            assert!(read(&mut guest, gfn));
        }
        assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES));
        let reads = guest.disk.reads();
        assert!(reads <= PAGES / 3, "{reads} reads for {PAGES} pages");
        end(&host, guest);
    }
}

#[test]
fn swapped_pages_read_here_and_there_come_one_by_one() {
    for kind in KINDS {
        let (host, mut guest) = swapped(kind);
        for gfn in (0..PAGES).step_by(2).rev() {
            assert!(read(&mut guest, gfn));
        }
        assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES / 2));
        assert_eq!(guest.disk.reads(), PAGES / 2);
        end(&host, guest);
    }
}

/// The pages that have come back.
fn resident(guest: &Guest) -> Vec<u32> {
    guest.vm.settle_done();
    let homes = guest.homes().filter(|(_, home)| *home == Home::Resident);
    homes.map(|(gfn, _)| gfn.0).collect()
}

/// Lets the thread read a page without the daemon; whether it could.
fn read_alone(guest: &mut Guest, gfn: u32) -> bool {
    let thread = &mut guest.threads[0];
    thread.begin(Gfn(gfn), Op::Read);
    loop {
        let is_over = thread.poll();
        if is_over || !thread.can_go_on() {
            return is_over;
        }
    }
}

#[test]
fn row_that_a_guest_serves_itself_brings_pages_ahead_and_scattered_ones_do_not() {
    let (host, mut guest) = compressed(64);
    for (gfn, next) in [(0, 1), (1, 3), (3, 7), (7, 15), (15, 23)] {
        assert!(read_alone(&mut guest, gfn));
        assert_eq!(resident(&guest), Vec::from_iter(0..next));
    }
    assert!(read_alone(&mut guest, 50) && read_alone(&mut guest, 40));
    assert_eq!(resident(&guest), Vec::from_iter((0..23).chain([40, 50])));
    end(&host, guest);
}

#[test]
fn row_that_a_guest_serves_itself_ends_at_what_is_not_offered_and_at_the_end_of_ram() {
    let (host, mut guest) = compressed(64);
    for gfn in [5, 0, 1, 3] {
        assert!(read_alone(&mut guest, gfn));
    }
    assert_eq!(resident(&guest), Vec::from_iter(0..6));
    for gfn in [60, 61, 63] {
        assert!(read_alone(&mut guest, gfn));
    }
    assert_eq!(resident(&guest), Vec::from_iter((0..6).chain(60..64)));
    end(&host, guest);
}

#[test]
fn row_that_a_guest_serves_itself_ends_where_credits_are_low_and_without_any_the_daemon_is_asked() {
    let (host, mut guest) = compressed(12);
    // The mark is at three quarters.
    for (gfn, next) in [(0, 1), (1, 3), (3, 7), (7, 10), (10, 12)] {
        assert!(read_alone(&mut guest, gfn));
        assert_eq!(resident(&guest), Vec::from_iter(0..next));
    }
    assert!(!read_alone(&mut guest, 12), "no credit is left");
    assert!(guest.drive(0));
    let stats = &guest.vm.stats;
    let refills = (stats.refill_zip.get(), stats.inline_refills.get());
    assert_eq!(refills, (13, 12));
    end(&host, guest);
}

#[test]
fn damaged_page_is_given_up_by_its_guest_and_ends_it_only_when_it_is_asked_for() {
    let (host, mut guest) = compressed(64);
    let Home::Compressed(slot) = guest.vm.table.entry(Gfn(4)).home() else {
        panic!("all are compressed");
    };
    guest.vm.zip.lock().damage(slot);
    for gfn in [0, 1, 3] {
        assert!(read_alone(&mut guest, gfn), "{gfn} is whole");
    }
    assert_eq!(resident(&guest), Vec::from_iter(0..4));
    assert!(!read_alone(&mut guest, 4));
    let claims = guest.claims.as_ref().expect("it serves itself");
    assert_eq!(claims.table().given_up(), 2);
    assert_eq!(guest.vm.take_back_credits(), 60, "none is lost");
    let error = guest.faults.turn().expect_err("it is damaged");
    assert!(matches!(
        error,
        Ended::Fault(FaultError::Zip { gfn: Gfn(4), .. })
    ));
    host.bury(guest);
    host.check_empty();
}
