//! Pages that come with the one that was asked for: what is wrong with them is no loss, and nobody has touched them.

use std::time::Duration;

use super::{Guest, Host, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::units::{Gfn, VmId};
use crate::vm::Means;

const PAGES: u32 = 32;
/// Of sampling.
const PERIOD: Duration = Duration::from_millis(50);
const KINDS: [EngineKind; 2] = [EngineKind::Uffd, EngineKind::Mprotect];

/// A guest that has written all its pages, which have left by these means.
fn evicted(kind: EngineKind, means: Means) -> (Host, Guest) {
    let host = Host::new(400, 4, 1, 128);
    let spec = Spec {
        kind,
        pages: PAGES,
        salt: 0,
        swap_slots: PAGES,
        zip_pages: PAGES,
        vma_budget: 1000,
        threads: 1,
        inline: false,
        ahead: 15,
    };
    let mut guest = host.power_on(VmId(1), spec).expect("there is memory");
    for gfn in 0..PAGES {
        let page = Box::new(samples::mixed(gfn.into(), 1800));
        guest.threads[0].begin(Gfn(gfn), Op::Write(page));
        assert!(guest.drive(0), "there is memory");
    }
    while guest.vm.table.count(Home::Resident) > 0 {
        assert!(guest.evict_by(8, means) > 0);
    }
    (host, guest)
}

const ZIP: Means = Means {
    compress: true,
    swap: false,
};
const SWAP: Means = Means {
    compress: false,
    swap: true,
};

fn read(guest: &mut Guest, gfn: u32) {
    guest.threads[0].begin(Gfn(gfn), Op::Read);
    assert!(guest.drive(0), "{gfn} cannot be read");
}

/// Damages a page in its store, or mends it again.
fn damage(guest: &Guest, gfn: u32) {
    match guest.vm.table.entry(Gfn(gfn)).home() {
        Home::Compressed(slot) => guest.vm.zip.lock().damage(slot),
        Home::Swapped(slot) => guest.disk.damage(slot),
        home => panic!("{gfn} is {home:?}"),
    }
}

fn end(host: &Host, guest: Guest) {
    host.check(&[&guest]);
    host.bury(guest);
    host.check_empty();
}

#[test]
fn damaged_page_in_a_row_ends_nothing_until_somebody_asks_for_it() {
    for (kind, means) in KINDS
        .into_iter()
        .flat_map(|kind| [(kind, ZIP), (kind, SWAP)])
    {
        let (host, mut guest) = evicted(kind, means);
        damage(&guest, 13);
        let home = guest.vm.table.entry(Gfn(13)).home();
        (0..13)
            .chain(14..PAGES)
            .for_each(|gfn| read(&mut guest, gfn));
        assert_eq!(guest.vm.table.entry(Gfn(13)).home(), home);
        damage(&guest, 13);
        read(&mut guest, 13);
        end(&host, guest);
    }
}

#[test]
fn damaged_page_in_a_block_ends_nothing_until_somebody_asks_for_it() {
    for means in [ZIP, SWAP] {
        let (host, mut guest) = evicted(EngineKind::Mprotect, means);
        guest.vm.vmas.set_budget(1);
        [3, 7].into_iter().for_each(|gfn| damage(&guest, gfn));
        read(&mut guest, 5);
        let is_resident = |gfn: &u32| guest.vm.table.entry(Gfn(*gfn)).home() == Home::Resident;
        let resident: Vec<u32> = (0..PAGES).filter(is_resident).collect();
        assert_eq!(resident, [4, 5, 6], "the block as far as it is whole");
        [3, 7].into_iter().for_each(|gfn| damage(&guest, gfn));
        end(&host, guest);
    }
}

#[test]
fn sampled_page_waits_for_its_own_access() {
    for (kind, means) in KINDS
        .into_iter()
        .flat_map(|kind| [(kind, ZIP), (kind, SWAP)])
    {
        let (host, mut guest) = evicted(kind, means);
        // The whole guest is smaller than a sample.
        guest.worker.handle.set_sample_period(PERIOD);
        guest.worker.wait(PERIOD);
        let is_sampled = |guest: &Guest, gfn| guest.vm.table.entry(Gfn(gfn)).is_sampled();
        for gfn in 0..PAGES {
            assert!(is_sampled(&guest, gfn), "{gfn} was not touched: {kind:?}");
            read(&mut guest, gfn);
            assert!(!is_sampled(&guest, gfn), "{gfn} was touched: {kind:?}");
        }
        end(&host, guest);
    }
}
