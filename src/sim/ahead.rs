//! Pages that come with the one that was asked for: how many come, that damage to one of them is no loss, and that
//! they do not count as touched.

use std::time::Duration;

use super::scenario::{KINDS, SWAP, ZIP, each, noise, small};
use super::{Guest, Host, Op, Spec, View};
use crate::engine::EngineKind;
use crate::fault::{Ended, FaultError};
use crate::units::{Gfn, PageBuf};
use crate::vm::Means;

const PAGES: u32 = 64;
/// The period of sampling.
const PERIOD: Duration = Duration::from_millis(50);

fn spec(kind: EngineKind) -> Spec {
    Spec::of(kind, PAGES)
}

/// A way to have a guest read a page.
type Read = fn(&mut Guest, u32);

/// Has all pages of a guest evicted by these means. A guest that serves itself gets a credit for each page.
fn leave(guest: &mut Guest, means: Means, content: fn(u32) -> PageBuf) {
    guest.write_and_evict(means, content);
    guest.vm.take_back_credits();
    guest.vm.grant_credits(PAGES);
}

/// Runs `story` with each of these guests once all its pages have been evicted, for each of these means.
fn evicted(
    specs: &[Spec],
    means: &[Means],
    content: fn(u32) -> PageBuf,
    story: impl Fn(&mut Guest),
) {
    for means in means {
        each(specs.iter().copied(), |_, guest| {
            leave(guest, *means, content);
            story(guest);
        });
    }
}

/// Runs `story` with a guest that serves itself and has all its pages in its cache.
fn compressed(story: impl Fn(&mut Guest)) {
    evicted(&[Spec::inline(PAGES)], &[ZIP], small, story);
}

/// Reads the first page of each pair. After each read, exactly the pages below the second of the pair are resident.
fn bring_streams(guest: &mut Guest, read: Read, pairs: &[(u32, u32)]) {
    for (gfn, next) in pairs {
        read(guest, *gfn);
        assert_eq!(guest.resident(), Vec::from_iter(0..*next));
    }
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

/// The guest must read the page without the daemon.
fn unaided(guest: &mut Guest, gfn: u32) {
    assert!(read_alone(guest, gfn), "{gfn}");
}

#[test]
fn sequential_first_touches_bring_more_and_more_pages() {
    each(KINDS.map(spec), |_, guest| {
        let pairs = [(0, 1), (1, 3), (3, 7), (7, 15), (15, 31)];
        bring_streams(guest, Guest::read, &pairs);
        for gfn in (0..31).map(Gfn) {
            assert_eq!(guest.space.view(gfn), View::Open, "{gfn}");
        }
        // Touching them one by one brings no fault.
        (0..31).for_each(|gfn| guest.read(gfn));
        assert_eq!(guest.vm.stats.first_touch.get(), 31);
    });
}

#[test]
fn stream_ends_at_pages_that_are_there_and_at_the_end_of_ram() {
    let story = |guest: &mut Guest, read: Read| {
        [5, 0, 1, 3].into_iter().for_each(|gfn| read(guest, gfn));
        assert_eq!(guest.resident(), Vec::from_iter(0..6));
        [60, 61, 63].into_iter().for_each(|gfn| read(guest, gfn));
        assert_eq!(guest.resident(), Vec::from_iter((0..6).chain(60..64)));
    };
    each(KINDS.map(spec), |_, guest| {
        story(guest, Guest::read);
        assert_eq!(guest.vm.stats.first_touch.get(), 10);
    });
    compressed(|guest| story(guest, unaided));
}

/// A guest that serves itself leaves streams of swapped pages to the daemon, which reads several with one read.
#[test]
fn swapped_pages_read_in_sequence_come_with_few_reads_of_the_disk() {
    evicted(&Spec::all(PAGES), &[SWAP], noise, |guest| {
        guest.read_all();
        let stats = &guest.vm.stats;
        assert_eq!(stats.refill_swap.get(), u64::from(PAGES));
        assert!(stats.inline_swap_ins.get() <= 2, "{stats:?}");
        let reads = guest.disk.reads();
        assert!(reads <= PAGES / 3, "{reads} reads for {PAGES} pages");
    });
}

#[test]
fn swapped_pages_read_here_and_there_come_one_by_one() {
    evicted(&Spec::all(PAGES), &[SWAP], noise, |guest| {
        let itself = guest.space.claims.is_some();
        for gfn in (0..PAGES).step_by(2).rev() {
            assert_eq!(read_alone(guest, gfn), itself, "{gfn}");
            assert!(guest.drive(0));
        }
        guest.vm.settle_done();
        let (all, stats) = (u64::from(PAGES / 2), &guest.vm.stats);
        let refills = (stats.refill_swap.get(), stats.inline_swap_ins.get());
        assert_eq!(refills, (all, if itself { all } else { 0 }));
        let reads = (guest.vm.swap.file.stats().read.0, guest.disk.reads());
        assert_eq!(reads, (all, PAGES / 2));
    });
}

#[test]
fn stream_that_a_guest_serves_itself_brings_pages_ahead_and_scattered_ones_do_not() {
    compressed(|guest| {
        bring_streams(guest, unaided, &[(0, 1), (1, 3), (3, 7), (7, 15), (15, 23)]);
        [50, 40].into_iter().for_each(|gfn| unaided(guest, gfn));
        assert_eq!(guest.resident(), Vec::from_iter((0..23).chain([40, 50])));
    });
}

#[test]
fn stream_that_a_guest_serves_itself_ends_where_credits_are_low_and_without_any_the_daemon_is_asked()
 {
    compressed(|guest| {
        guest.vm.take_back_credits();
        guest.vm.grant_credits(12);
        // Streams end at the mark of low credits, which is at three quarters of them.
        bring_streams(guest, unaided, &[(0, 1), (1, 3), (3, 7), (7, 10), (10, 12)]);
        assert!(!read_alone(guest, 12), "no credit is left");
        assert!(guest.drive(0));
        let stats = &guest.vm.stats;
        let refills = (stats.refill_zip.get(), stats.inline_refills.get());
        assert_eq!(refills, (13, 12));
    });
}

/// A guest that serves itself, with all its pages evicted by these means and page 4 damaged.
fn damaged(host: &Host, means: Means) -> Guest {
    let mut guest = host.start(1, Spec::inline(PAGES));
    leave(&mut guest, means, small);
    guest.damage(4);
    guest
}

/// This happens when the swap file has moved: the file that the guest still reads holds something else.
#[test]
fn swapped_page_that_reads_otherwise_is_given_up_by_its_guest_and_asked_for() {
    let host = Host::roomy();
    let mut guest = damaged(&host, SWAP);
    assert!(!read_alone(&mut guest, 4));
    assert_eq!(guest.space.given_up(), 1);
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
    let mut guest = damaged(&host, ZIP);
    bring_streams(&mut guest, unaided, &[(0, 1), (1, 3), (3, 4)]);
    assert!(!read_alone(&mut guest, 4));
    assert_eq!(guest.space.given_up(), 2);
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
fn damaged_page_in_a_stream_ends_nothing_until_somebody_asks_for_it() {
    evicted(&KINDS.map(spec), &[ZIP, SWAP], small, |guest| {
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
    let specs = [spec(EngineKind::Mprotect)];
    evicted(&specs, &[ZIP, SWAP], small, |guest| {
        guest.vm.vmas.set_budget(1);
        [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
        guest.read(5);
        // The block comes as far as its pages are whole.
        assert_eq!(guest.resident(), [4, 5, 6]);
        [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
    });
}

#[test]
fn sampled_page_waits_for_its_own_access() {
    evicted(&KINDS.map(spec), &[ZIP, SWAP], small, |guest| {
        // The guest is smaller than a sample, so all its pages are sampled.
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

/// Nobody has to ask the daemon to open a sampled page, and the access counts, at once or when the period ends.
#[test]
fn sampled_page_that_its_guest_opens_itself_counts_as_touched() {
    for heard in [true, false] {
        each([Spec::inline(PAGES)], |_, guest| {
            (0..PAGES).for_each(|gfn| guest.write(gfn, small(gfn)));
            guest.worker.handle.change(|it| it.sample_period = PERIOD);
            guest.worker.wait(PERIOD);
            for gfn in 0..PAGES / 2 {
                assert!(read_alone(guest, gfn), "{gfn}");
            }
            if heard {
                guest.worker.wait(PERIOD / 2);
                let now = guest.vm.activity.estimate().map(|it| it.next);
                assert_eq!(now, None, "no period has ended");
                let sampled = (0..PAGES).filter(|gfn| guest.vm.table.entry(Gfn(*gfn)).is_sampled());
                assert_eq!(sampled.count(), PAGES as usize / 2);
            }
            guest.worker.wait(PERIOD);
            let fast = guest.vm.activity.estimate().map(|it| it.fast);
            assert_eq!(fast, Some(0.5));
        });
    }
}
