//! Pages that are touched in a row come ahead.

use super::{Guest, Host, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::units::{Gfn, Pages, VmId};
use crate::vm::Means;

const PAGES: u32 = 64;

/// A guest all of whose pages are in its swap file.
fn swapped() -> (Host, Guest) {
    let host = Host::new(400, 4, 1, 128);
    let spec = Spec {
        kind: EngineKind::Uffd,
        pages: PAGES,
        salt: 0,
        swap_slots: PAGES,
        zip_pages: 16,
        vma_budget: 100,
        threads: 1,
        inline: false,
    };
    let mut guest = host.power_on(VmId(1), spec).expect("there is memory");
    for gfn in 0..PAGES {
        let page = samples::mixed(gfn.into(), 4096);
        guest.threads[0].begin(Gfn(gfn), Op::Write(Box::new(page)));
        assert!(guest.drive(0), "there is memory");
    }
    guest.faults.give_ahead();
    let means = Means {
        compress: false,
        swap: true,
    };
    while guest.vm.table.count(Home::Resident) > 0 {
        let evicted = guest.evictor.evict(&guest.vm, Pages(32), means);
        assert!(evicted.expect("the session lives") > Pages(0));
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
fn swapped_pages_read_in_a_row_come_with_few_reads_of_the_disk() {
    let (host, mut guest) = swapped();
    for gfn in 0..PAGES {
        assert!(read(&mut guest, gfn));
    }
    assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES));
    let reads = guest.disk.reads();
    assert!(reads <= PAGES / 3, "{reads} reads for {PAGES} pages");
    end(&host, guest);
}

#[test]
fn swapped_pages_read_here_and_there_come_one_by_one() {
    let (host, mut guest) = swapped();
    for gfn in (0..PAGES).step_by(2).rev() {
        assert!(read(&mut guest, gfn));
    }
    assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES / 2));
    assert_eq!(guest.disk.reads(), PAGES / 2);
    end(&host, guest);
}

#[test]
fn damaged_page_in_a_row_is_the_loss_of_who_asks_for_it() {
    let (host, mut guest) = swapped();
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
