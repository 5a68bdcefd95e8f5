//! Pages that come with the one that was asked for: how many do, what is wrong with them is no loss, and nobody has
//! touched them.

use std::time::Duration;

use super::scenario::{KINDS, SWAP, ZIP, alone, each};
use super::{Guest, Host, Op, Spec, View};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::fault::{Ended, FaultError};
use crate::units::{Gfn, PageBuf};
use crate::vm::Means;

const PAGES: u32 = 64;
/// Of sampling.
const PERIOD: Duration = Duration::from_millis(50);

fn spec(kind: EngineKind) -> Spec {
    Spec::of(kind, PAGES)
}

fn dense(gfn: u32) -> PageBuf {
    samples::mixed(gfn.into(), 4096)
}

fn small(gfn: u32) -> PageBuf {
    samples::mixed(gfn.into(), 500)
}

/// Has guests of these kinds live through something, all of whose pages have left by each of these means.
fn evicted(
    kinds: &[EngineKind],
    means: &[Means],
    content: fn(u32) -> PageBuf,
    story: impl Fn(&mut Guest),
) {
    for means in means {
        each(kinds.iter().copied().map(spec), |_, guest| {
            guest.write_and_evict(*means, content);
            story(guest);
        });
    }
}

/// A guest that serves itself, all of whose pages are in its cache, and that has so many credits.
fn compressed(host: &Host, credits: u32) -> Guest {
    inline(host, ZIP, small, credits)
}

/// The same, all of whose pages are in its swap file.
fn swapped(host: &Host, credits: u32) -> Guest {
    inline(host, SWAP, dense, credits)
}

fn inline(host: &Host, means: Means, content: fn(u32) -> PageBuf, credits: u32) -> Guest {
    let spec = Spec {
        inline: true,
        ..spec(EngineKind::Uffd)
    };
    let mut guest = host.start(1, spec);
    guest.write_and_evict(means, content);
    guest.vm.take_back_credits();
    guest.vm.grant_credits(credits);
    guest
}

#[test]
fn first_touches_in_a_row_bring_more_and_more_pages() {
    each(KINDS.map(spec), |_, guest| {
        let kind = guest.vm.engine.kind();
        for (gfn, touched) in [(0, 1), (1, 3), (3, 7), (7, 15), (15, 31)] {
            guest.read(gfn);
            assert_eq!(guest.vm.stats.first_touch.get(), touched);
        }
        assert_eq!(guest.resident(), Vec::from_iter(0..31));
        for gfn in (0..31).map(Gfn) {
            let is_open = guest.space.view(gfn) == View::Open;
            assert!(is_open || kind == EngineKind::Uffd, "{gfn}");
        }
        // Touched one by one, they need no more.
        (0..31).for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.vm.stats.first_touch.get(), 31);
    });
}

#[test]
fn row_of_an_mprotect_guest_ends_at_pages_that_are_there_and_at_the_end_of_ram() {
    alone(spec(EngineKind::Mprotect), |_, guest| {
        [5, 0, 1, 3].into_iter().for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.vm.stats.first_touch.get(), 6);
        assert_eq!(guest.space.view(Gfn(6)), View::Closed);
        let last = [PAGES - 4, PAGES - 3, PAGES - 1];
        last.into_iter().for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.vm.stats.first_touch.get(), 10);
    });
}

#[test]
fn swapped_pages_read_in_a_row_come_with_few_reads_of_the_disk() {
    evicted(&KINDS, &[SWAP], dense, |guest| {
        guest.read_all();
        assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES));
        let reads = guest.disk.reads();
        assert!(reads <= PAGES / 3, "{reads} reads for {PAGES} pages");
    });
}

#[test]
fn swapped_pages_read_here_and_there_come_one_by_one() {
    evicted(&KINDS, &[SWAP], dense, |guest| {
        let scattered = (0..PAGES).step_by(2).rev();
        scattered.for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.vm.stats.refill_swap.get(), u64::from(PAGES / 2));
        assert_eq!(guest.disk.reads(), PAGES / 2);
    });
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

/// Reads pages without the daemon, after each of which all pages up to another one are there.
fn bring_rows(guest: &mut Guest, rows: &[(u32, u32)]) {
    for (gfn, next) in rows {
        assert!(read_alone(guest, *gfn));
        assert_eq!(guest.resident(), Vec::from_iter(0..*next));
    }
}

#[test]
fn row_that_a_guest_serves_itself_brings_pages_ahead_and_scattered_ones_do_not() {
    let host = Host::roomy();
    let mut guest = compressed(&host, 64);
    bring_rows(&mut guest, &[(0, 1), (1, 3), (3, 7), (7, 15), (15, 23)]);
    assert!(read_alone(&mut guest, 50) && read_alone(&mut guest, 40));
    assert_eq!(guest.resident(), Vec::from_iter((0..23).chain([40, 50])));
    host.end([guest]);
}

#[test]
fn row_that_a_guest_serves_itself_ends_at_what_is_not_offered_and_at_the_end_of_ram() {
    let host = Host::roomy();
    let mut guest = compressed(&host, 64);
    for gfn in [5, 0, 1, 3] {
        assert!(read_alone(&mut guest, gfn));
    }
    assert_eq!(guest.resident(), Vec::from_iter(0..6));
    for gfn in [60, 61, 63] {
        assert!(read_alone(&mut guest, gfn));
    }
    assert_eq!(guest.resident(), Vec::from_iter((0..6).chain(60..64)));
    host.end([guest]);
}

#[test]
fn row_that_a_guest_serves_itself_ends_where_credits_are_low_and_without_any_the_daemon_is_asked() {
    let host = Host::roomy();
    let mut guest = compressed(&host, 12);
    // The mark is at three quarters.
    bring_rows(&mut guest, &[(0, 1), (1, 3), (3, 7), (7, 10), (10, 12)]);
    assert!(!read_alone(&mut guest, 12), "no credit is left");
    assert!(guest.drive(0));
    let stats = &guest.vm.stats;
    let refills = (stats.refill_zip.get(), stats.inline_refills.get());
    assert_eq!(refills, (13, 12));
    host.end([guest]);
}

#[test]
fn swapped_pages_here_and_there_are_read_by_the_guest_itself() {
    let host = Host::roomy();
    let mut guest = swapped(&host, 64);
    for gfn in (0..PAGES).step_by(2).rev() {
        assert!(read_alone(&mut guest, gfn), "{gfn}");
    }
    guest.vm.settle_done();
    let stats = &guest.vm.stats;
    let refills = (stats.refill_swap.get(), stats.inline_swap_ins.get());
    let all = u64::from(PAGES / 2);
    assert_eq!(refills, (all, all));
    assert_eq!(
        (guest.vm.swap.stats().read.0, guest.disk.reads()),
        (all, PAGES / 2)
    );
    host.end([guest]);
}

#[test]
fn swapped_pages_in_a_row_are_asked_for_and_come_with_few_reads_of_the_disk() {
    let host = Host::roomy();
    let mut guest = swapped(&host, 64);
    guest.read_all();
    let stats = &guest.vm.stats;
    assert_eq!(stats.refill_swap.get(), u64::from(PAGES));
    assert!(stats.inline_swap_ins.get() <= 2, "{stats:?}");
    let reads = guest.disk.reads();
    assert!(reads <= PAGES / 3, "{reads} reads for {PAGES} pages");
    host.end([guest]);
}

/// As it is when its swap file has moved, and the one that the guest reads holds something else.
#[test]
fn swapped_page_that_reads_otherwise_is_given_up_by_its_guest_and_asked_for() {
    let host = Host::roomy();
    let mut guest = swapped(&host, 64);
    guest.damage(4);
    assert!(!read_alone(&mut guest, 4));
    let claims = guest.space.claims.as_ref().expect("it serves itself");
    assert_eq!(claims.table().given_up(), 1);
    guest.damage(4);
    assert!(guest.drive(0), "the daemon reads it where it is whole");
    let stats = &guest.vm.stats;
    let refills = (stats.refill_swap.get(), stats.inline_swap_ins.get());
    assert_eq!(refills, (1, 0));
    host.bury(guest);
    host.check_empty();
}

#[test]
fn damaged_page_is_given_up_by_its_guest_and_ends_it_only_when_it_is_asked_for() {
    let host = Host::roomy();
    let mut guest = compressed(&host, 64);
    guest.damage(4);
    for gfn in [0, 1, 3] {
        assert!(read_alone(&mut guest, gfn), "{gfn} is whole");
    }
    assert_eq!(guest.resident(), Vec::from_iter(0..4));
    assert!(!read_alone(&mut guest, 4));
    let claims = guest.space.claims.as_ref().expect("it serves itself");
    assert_eq!(claims.table().given_up(), 2);
    assert_eq!(guest.vm.take_back_credits(), 60, "none is lost");
    let error = guest.faults.turn().expect_err("it is damaged");
    assert!(matches!(
        error,
        Ended::Fault {
            gfn: Gfn(4),
            source: FaultError::Zip(_)
        }
    ));
    host.bury(guest);
    host.check_empty();
}

#[test]
fn damaged_page_in_a_row_ends_nothing_until_somebody_asks_for_it() {
    evicted(&KINDS, &[ZIP, SWAP], small, |guest| {
        guest.damage(13);
        let home = guest.home(13);
        (0..13).chain(14..PAGES).for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.home(13), home);
        guest.damage(13);
        guest.read(13);
    });
}

#[test]
fn damaged_page_in_a_block_ends_nothing_until_somebody_asks_for_it() {
    evicted(&[EngineKind::Mprotect], &[ZIP, SWAP], small, |guest| {
        guest.vm.vmas.set_budget(1);
        [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
        guest.read(5);
        assert_eq!(
            guest.resident(),
            [4, 5, 6],
            "the block as far as it is whole"
        );
        [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
    });
}

#[test]
fn sampled_page_waits_for_its_own_access() {
    evicted(&KINDS, &[ZIP, SWAP], small, |guest| {
        // The whole guest is smaller than a sample.
        guest.worker.handle.change(|it| it.sample_period = PERIOD);
        guest.worker.wait(PERIOD);
        let is_sampled = |guest: &Guest, gfn| guest.vm.table.entry(Gfn(gfn)).is_sampled();
        for gfn in 0..PAGES {
            assert!(is_sampled(guest, gfn), "{gfn} was not touched");
            guest.read(gfn);
            assert!(!is_sampled(guest, gfn), "{gfn} was touched");
        }
    });
}
