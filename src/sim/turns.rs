//! Guests that wait for memory: which of them gets a page that comes free, and whose fault thread is called for it.

use super::scenario::{KINDS, RESERVE, alone};
use super::{Guest, Host, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::{Home, Urgency};
use crate::units::Pages;
use crate::vm::Blocked;

const PAGES: u32 = 64;

/// A guest that serves itself, but is given nothing ahead.
const ITSELF: Spec = Spec {
    ahead: 0,
    ..Spec::inline(PAGES)
};

/// A guest that is given nothing ahead.
const fn spec(kind: EngineKind, threads: usize) -> Spec {
    Spec {
        ahead: 0,
        threads,
        ..Spec::of(kind, PAGES)
    }
}

/// Runs `story` with guests on a host that has no memory left for first touches.
fn scarce<const N: usize>(specs: [Spec; N], story: impl Fn(&Host, &mut [Guest; N])) {
    let host = Host::roomy();
    let mut ids = 1..;
    let mut guests = specs.map(|spec| {
        let id = ids.next().expect("as many as one likes");
        let guest = host.start(id, spec);
        guest.vm.take_back_credits();
        guest
    });
    let taken = host.budget.free().0 - RESERVE;
    assert!(host.budget.take(taken, Urgency::Touch));
    story(&host, &mut guests);
    // Gives back all that the test itself took, so that every guest can end what it waits for.
    let theirs: u64 = guests.iter().map(Guest::charged).sum();
    host.budget.give(host.budget.used().0 - theirs);
    for guest in &mut guests {
        let mut threads = 0..guest.threads.len();
        assert!(threads.all(|thread| guest.drive(thread)));
        guest.read_all();
    }
    host.end(guests);
}

/// The same with guests of each engine; `threads` says how many threads each guest has.
fn short<const N: usize>(threads: [usize; N], story: impl Fn(&Host, &mut [Guest; N])) {
    for kind in KINDS {
        scarce(threads.map(|threads| spec(kind, threads)), &story);
    }
}

/// A thread touches a page for the first time, and waits.
fn wait(guest: &mut Guest, thread: usize, gfn: u32) {
    assert!(!guest.attempt(thread, gfn, Op::Read), "there is memory");
}

/// Drives the first thread of each guest, in this order; whether that thread waited and now has what it waited for.
fn served<const N: usize>(guests: &mut [Guest; N]) -> [bool; N] {
    std::array::from_fn(|at| guests[at].threads[0].at().is_some() && guests[at].drive(0))
}

/// The test runs the fault threads in the same order each time, so one of them always has the chance to be first. A
/// fault thread that is woken for nothing takes processor time from guests.
#[test]
fn equal_guests_are_served_in_turn_and_none_is_woken_for_nothing() {
    short([1; 4], |host, guests| {
        let mut counts = [0_u32; 4];
        guests.iter_mut().for_each(|guest| wait(guest, 0, 0));
        for page in 1..=40 {
            host.budget.give(1);
            let woken = guests.iter().filter(|guest| guest.faults.is_woken());
            assert_eq!(woken.count(), 1, "for one page");
            for (guest, count) in guests.iter_mut().zip(&mut counts) {
                if guest.drive(0) {
                    *count += 1;
                    wait(guest, 0, *count);
                }
            }
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(most <= least.map(|least| least + 1).as_ref(), "{counts:?}");
            let served: u32 = counts.iter().sum();
            assert_eq!(served, page, "one page serves one fault");
        }
    });
}

#[test]
fn fault_that_comes_later_does_not_take_what_is_granted() {
    short([1; 2], |host, [first, second]| {
        wait(first, 0, 0);
        host.budget.give(1);
        wait(second, 0, 0);
        assert!(first.drive(0));
        host.budget.give(1);
        assert!(second.drive(0));
    });
}

/// The guest had one waiting thread when it took its place in the queue, so this place is good for one page. The
/// threads that came later are served at its next place.
#[test]
fn guest_of_many_threads_does_not_stay_at_the_front() {
    short([4, 1], |host, [many, one]| {
        wait(many, 0, 0);
        wait(one, 0, 0);
        (1..4).for_each(|thread| wait(many, thread, thread as u32));
        host.budget.give(1);
        assert!(many.drive(0));
        host.budget.give(1);
        assert!((1..4).all(|it| !many.drive(it)), "it is not its turn");
        assert!(one.drive(0));
        host.budget.give(3);
        assert!((1..4).all(|it| many.drive(it)), "three waited before");
    });
}

#[test]
fn guest_that_dies_with_a_grant_gives_it_back() {
    short([1], |host, [other]| {
        let table = other.vm.params.metadata().0;
        host.budget.give(table);
        let mut doomed = host.start(2, spec(other.vm.engine.kind(), 1));
        wait(&mut doomed, 0, 0);
        host.budget.give(1);
        host.bury(doomed);
        // Its death also frees its page table. Taken here, so that one page is left: the one that was granted.
        assert!(host.budget.take(table, Urgency::Touch));
        assert!(other.attempt(0, 0, Op::Read), "the page is lost");
        wait(other, 0, 1);
    });
}

#[test]
fn guest_that_is_blocked_is_passed_over_and_gives_back_what_it_was_granted() {
    short([1; 3], |host, guests| {
        guests.iter_mut().for_each(|guest| wait(guest, 0, 0));
        host.budget.give(1);
        guests[0].block(Blocked::All);
        // With the page that had been granted to the first.
        assert_eq!(served(guests), [false, true, false]);
        wait(&mut guests[1], 0, 1);
        host.budget.give(2);
        assert_eq!(served(guests), [false, true, true]);
        guests[0].block(Blocked::No);
        host.budget.give(1);
        assert_eq!(served(guests), [true, false, false]);
    });
}

/// The first guest is at its ceiling when it is granted a page, so the page goes to the next guest. The first is served
/// once it holds a page less.
#[test]
fn grant_above_a_ceiling_goes_to_the_next() {
    short([2, 1], |host, [first, second]| {
        (0..2).for_each(|thread| wait(first, thread, thread as u32));
        // Its place is good for one page, because one thread waited when it was taken.
        host.budget.give(1);
        assert!(first.drive(0));
        wait(second, 0, 0);
        first.vm.orders.set_ceiling(Some(Pages(1)));
        host.budget.give(1);
        assert!(!first.drive(1), "it is at its ceiling");
        assert!(second.drive(0));
        host.budget.give(2);
        assert!(!first.drive(1));
        assert_eq!(first.evict(1), 1);
        assert!(first.drive(1), "it holds less, and is not called");
        first.vm.orders.set_ceiling(None);
    });
}

/// Both threads wait for the same gfn, so one of the two pages that are granted is left over.
#[test]
fn grant_that_is_not_used_goes_to_the_next() {
    short([2, 1], |host, [first, second]| {
        (0..2).for_each(|thread| wait(first, thread, 5));
        wait(second, 0, 0);
        host.budget.give(2);
        assert!((0..2).all(|thread| first.drive(thread)));
        // With userfaultfd the kernel wakes both threads, and only one page was asked for. With mprotect the second
        // thread is served next.
        while !second.drive(0) {
            assert!(host.budget.spare() > Pages(0), "nothing is left over");
        }
    });
}

#[test]
fn lower_floor_serves_those_who_wait() {
    short([1; 2], |host, guests| {
        host.budget.give(2);
        host.budget.set_floor(host.budget.free());
        guests.iter_mut().for_each(|guest| wait(guest, 0, 0));
        host.budget.set_floor(Pages(RESERVE + 1));
        assert_eq!(served(guests), [true, false]);
        host.budget.set_floor(Pages(0));
        assert_eq!(served(guests), [false, true]);
    });
}

#[test]
fn guest_below_its_reservation_comes_first() {
    short([1; 3], |host, guests| {
        guests[2].vm.orders.set_promised(Pages(1));
        guests.iter_mut().for_each(|guest| wait(guest, 0, 0));
        host.budget.give(1);
        assert_eq!(served(guests), [false, false, true]);
        wait(&mut guests[2], 0, 1);
        host.budget.give(2);
        // The third already has what it was promised.
        assert_eq!(served(guests), [true, true, false]);
    });
}

/// Half of the reserve is for refills alone, so no touch is ahead of a refill there. With a floor above the reserve,
/// nothing is for refills alone, and they wait in turn with touches.
#[test]
fn refill_waits_behind_touches_only_for_what_they_could_have() {
    short([1; 2], |host, [first, second]| {
        host.budget.give(1);
        second.write(0, samples::mixed(1, 500));
        assert_eq!(second.evict(1), 1);
        let more = host.budget.spare().0;
        assert!(host.budget.take(more, Urgency::Touch));
        wait(first, 0, 0);
        second.read(0);
        assert_eq!(second.home(0), Home::Resident, "from the reserve");
        host.budget.give(1);
        assert_eq!(second.evict(1), 1);
        assert!(first.drive(0));
        host.budget.set_floor(host.budget.free());
        wait(first, 0, 1);
        host.budget.give(1);
        wait(second, 0, 0);
        assert!(first.drive(0));
        host.budget.give(1);
        assert!(second.drive(0));
        host.budget.set_floor(Pages(0));
    });
}

/// The guest is blocked only while memory is scarce, and the grant itself makes memory scarce.
#[test]
fn grant_that_makes_memory_scarce_is_used_up_to_there() {
    alone(ITSELF, |host, guest| {
        guest.vm.take_back_credits();
        let free = host.budget.free();
        host.budget.set_floor(free);
        let low = free.saturating_sub(Pages(4));
        host.budget.set_marks(Pages(0), Pages(0), low);
        guest.vm.orders.set_blocked(Blocked::All);
        wait(guest, 0, 0);
        host.budget.set_floor(Pages(0));
        assert!(guest.drive(0), "it may have four pages");
        assert_eq!(host.budget.starving(), 0);
        guest.vm.orders.set_blocked(Blocked::No);
    });
}

/// Its turn covers the page of its fault and the 16 credits with which it goes on. The eighteenth page is the other
/// guest's.
#[test]
fn guest_that_serves_itself_is_granted_credits_in_its_turn() {
    scarce(
        [ITSELF, spec(EngineKind::Uffd, 1)],
        |host, [itself, other]| {
            wait(itself, 0, 0);
            wait(other, 0, 0);
            host.budget.give(18);
            assert!(itself.drive(0));
            let held = itself.vm.table.claims().map(|claims| claims.held());
            assert_eq!(held, Some(16));
            assert!(other.drive(0));
            wait(other, 0, 1);
        },
    );
}
