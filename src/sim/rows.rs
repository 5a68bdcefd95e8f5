//! Pages that are touched in a row come ahead.

use super::{Guest, Host, Op, Spec, View};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::units::{Gfn, VmId};
use crate::vm::Means;

const PAGES: u32 = 64;

const KINDS: [EngineKind; 2] = [EngineKind::Uffd, EngineKind::Mprotect];

/// A guest that has touched nothing.
fn fresh(kind: EngineKind) -> (Host, Guest) {
    let host = Host::new(400, 4, 1, 128);
    let spec = Spec {
        kind,
        pages: PAGES,
        salt: 0,
        swap_slots: PAGES,
        zip_pages: 16,
        vma_budget: 100,
        threads: 1,
        inline: false,
    };
    let mut guest = host.power_on(VmId(1), spec).expect("there is memory");
    guest.faults.give_ahead();
    (host, guest)
}

/// A guest all of whose pages are in its swap file.
fn swapped(kind: EngineKind) -> (Host, Guest) {
    let (host, mut guest) = fresh(kind);
    for gfn in 0..PAGES {
        let page = samples::mixed(gfn.into(), 4096);
        guest.threads[0].begin(Gfn(gfn), Op::Write(Box::new(page)));
        assert!(guest.drive(0), "there is memory");
    }
    let means = Means {
        compress: false,
        swap: true,
    };
    while guest.vm.table.count(Home::Resident) > 0 {
        assert!(guest.evict_by(32, means) > 0);
    }
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
        let (host, mut guest) = fresh(kind);
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
    let (host, mut guest) = fresh(EngineKind::Mprotect);
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

#[test]
fn damaged_page_in_a_row_is_the_loss_of_who_asks_for_it() {
    for kind in KINDS {
        let (host, mut guest) = swapped(kind);
        let Home::Swapped(slot) = guest.vm.table.entry(Gfn(13)).home() else {
            panic!("all are swapped");
        };
        guest.disk.damage(slot);
        for gfn in (0..13).chain(14..PAGES) {
            assert!(read(&mut guest, gfn), "{gfn} is whole");
        }
        assert_eq!(guest.vm.table.entry(Gfn(13)).home(), Home::Swapped(slot));
        guest.disk.damage(slot);
        assert!(read(&mut guest, 13), "whole again");
        end(&host, guest);
    }
}
