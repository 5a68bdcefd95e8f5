//! Reclaim under pressure: when a worker carries its orders out, and which pages it takes.

use nix::errno::Errno;

use super::scenario::{KINDS, alone, each, order};
use super::worker::PAUSE;
use super::{Countdown, Guest, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::{Home, Urgency};
use crate::units::{Gfn, Pages};
use crate::vm::{Eviction, Means};

const PAGES: u32 = 64;

/// What guests there are: of each engine, and one that serves itself.
fn specs() -> impl Iterator<Item = Spec> {
    let itself = Spec {
        inline: true,
        ..Spec::of(KINDS[0], PAGES)
    };
    KINDS
        .map(|kind| Spec::of(kind, PAGES))
        .into_iter()
        .chain([itself])
}

/// Has the worker evict so many pages from now on, as far as it can at once.
fn reclaim(guest: &mut Guest, pages: u64) {
    order(&guest.vm, pages);
    guest.worker.wait(PAUSE);
}

fn fill(guest: &mut Guest, dense: impl Fn(u32) -> bool) {
    for gfn in 0..PAGES {
        let page = match dense(gfn) {
            true => samples::random(u64::from(gfn) + 1),
            false => samples::mixed(gfn.into(), 500),
        };
        guest.write(gfn, page);
    }
}

/// The pages that were evicted.
fn left(guest: &Guest) -> Vec<u32> {
    guest.vm.settle_done();
    let gone = |gfn: &u32| guest.home(*gfn) != Home::Resident;
    (0..PAGES).filter(gone).collect()
}

#[test]
fn order_is_carried_out_while_less_is_free_than_the_aim_and_no_further() {
    each(specs(), |host, guest| {
        fill(guest, |_| false);
        let eviction = Eviction {
            pages: Pages(60),
            means: Means::ALL,
            always: false,
        };
        guest.vm.orders.set_evict(eviction);
        guest.worker.wait(PAUSE);
        assert_eq!(left(guest), Vec::<u32>::new(), "no aim is set");
        let aim = host.budget.free();
        host.budget.set_marks(Pages(0), aim, Pages(0));
        assert!(host.budget.take(8, Urgency::Reclaim));
        guest.worker.wait(PAUSE);
        // The order is for one batch, and frees more than the pages of the cache cost.
        assert!(host.budget.free() >= aim);
        assert!(!host.budget.is_below_aim());
        let evicted = left(guest).len();
        guest.worker.wait(PAUSE);
        assert_eq!(left(guest).len(), evicted, "the aim is reached");
        host.budget.give(8);
    });
}

/// They wait for what is evicted, with memory left that is not theirs to take, and a guest that serves itself is given
/// some of that memory in advance.
#[test]
fn faults_wait_at_the_floor_and_go_on_with_what_is_evicted() {
    each(specs(), |host, guest| {
        (0..PAGES / 2).for_each(|gfn| guest.write(gfn, samples::mixed(gfn.into(), 500)));
        guest.vm.take_back_credits();
        let free = host.budget.free();
        host.budget.set_floor(free);
        let content = samples::mixed(1, 500);
        // None that came ahead.
        guest.threads[0].begin(Gfn(PAGES - 1), Op::Write(Box::new(content)));
        assert!(!guest.drive(0), "nothing is free for faults");
        reclaim(guest, 16);
        assert!(guest.drive(0), "it waits though pages were evicted");
        assert!(host.budget.free() >= free, "the floor is left");
        if let Some(claims) = guest.vm.table.claims() {
            assert!(claims.held() > 1, "it must ask for each page");
        }
        host.budget.set_floor(Pages(0));
    });
}

#[test]
fn page_that_is_wanted_back_while_it_is_frozen_stays() {
    each(specs(), |_, guest| {
        fill(guest, |_| false);
        guest.worker.handle.change(|it| it.second_chance = true);
        reclaim(guest, 16);
        assert_eq!(left(guest), Vec::from_iter(0..16), "the first of the hand");
        (16..24).for_each(|gfn| guest.read(gfn));
        reclaim(guest, 8);
        let others = (0..16).chain(24..32);
        assert_eq!(left(guest), Vec::from_iter(others));
    });
}

/// Its queue has pages that their guest has back, and that nothing froze since. Were one of them taken, what
/// the guest writes meanwhile would be lost.
#[test]
fn page_that_a_guest_refused_to_freeze_is_not_taken_for_frozen() {
    alone(Spec::of(EngineKind::Mprotect, PAGES), |_, guest| {
        fill(guest, |_| false);
        guest.worker.handle.change(|it| it.second_chance = true);
        reclaim(guest, 16);
        assert_eq!(left(guest).len(), 16);
        guest.read_all();
        guest.worker.handle.change(|it| it.second_chance = false);
        guest.space.accepts.set(0);
        reclaim(guest, PAGES.into());
        assert_eq!(left(guest), Vec::<u32>::new(), "no page could be frozen");
        assert!(guest.vm.stats.vma_refused.get() > 0);
        guest.space.accepts.set(Countdown::NEVER);
        guest.worker.handle.change(|it| it.second_chance = true);
        reclaim(guest, 16);
        assert_eq!(left(guest).len(), 16);
    });
}

/// The first round of the hand finds out of each page whether it compresses, and frees none. Who waits is not to wait for that.
#[test]
fn pages_that_do_not_compress_go_at_once_while_a_fault_waits_and_nothing_else_goes() {
    each(specs(), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        (0..PAGES / 2).for_each(|gfn| guest.write(gfn, samples::random(u64::from(gfn) + 1)));
        guest.worker.handle.change(|it| it.second_chance = true);
        guest.vm.take_back_credits();
        host.budget.set_floor(host.budget.free());
        let content = samples::mixed(1, 500);
        guest.threads[0].begin(Gfn(PAGES - 1), Op::Write(Box::new(content)));
        assert!(!guest.drive(0), "nothing is free for faults");
        reclaim(guest, 2);
        let stats = &guest.vm.stats;
        let (gone, tried) = (stats.evict_swap.get(), stats.incompressible.get());
        assert_eq!((gone, tried), (2, 2), "others were tried first");
        assert!(guest.drive(0), "it waits though pages were evicted");
        host.budget.set_floor(Pages(0));
    });
}

#[test]
fn page_that_does_not_compress_goes_when_nothing_else_does() {
    each(specs(), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        fill(guest, |gfn| gfn % 4 == 0);
        guest.worker.handle.change(|it| it.second_chance = true);
        for _ in 0..3 {
            reclaim(guest, 8);
        }
        assert_eq!(left(guest).len(), 24);
        let gone = left(guest);
        assert!(gone.iter().all(|gfn| gfn % 4 != 0), "{gone:?}");
        assert_eq!(guest.vm.stats.evict_swap.get(), 0);
        reclaim(guest, 40);
        assert_eq!(left(guest).len() as u32, PAGES);
        assert_eq!(guest.vm.stats.evict_swap.get(), u64::from(PAGES / 4));
    });
}

/// What waited by the one choice of victims is nothing to try at once by the other.
#[test]
fn worker_that_finds_nothing_rests_after_the_choice_of_victims_has_changed() {
    each(specs(), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        fill(guest, |_| true);
        guest.worker.handle.change(|it| it.second_chance = true);
        reclaim(guest, 8);
        assert_eq!(left(guest).len(), 8);
        guest.worker.handle.change(|it| it.second_chance = false);
        guest.disk.set_failing(Some(Errno::EIO));
        reclaim(guest, 8);
        assert_eq!(left(guest).len(), 8);
        guest.disk.set_failing(None);
        order(&guest.vm, 0);
    });
}
