//! Reclaim under pressure: when a worker carries its orders out, and which pages it takes.

use nix::errno::Errno;

use super::scenario::{alone, each, noise, order, small};
use super::worker::PAUSE;
use super::{Countdown, Guest, Host, Op, Spec};
use crate::engine::EngineKind;
use crate::page::Urgency;
use crate::reclaim::victims::{self, Choice};
use crate::units::Pages;
use crate::vm::{Eviction, Means};

const PAGES: u32 = 64;

/// Orders the worker to evict this many pages from now on, and lets it do what it can at once.
fn reclaim(guest: &mut Guest, pages: u64) {
    order(&guest.vm, pages);
    guest.worker.wait(PAUSE);
}

/// Has the worker take victims of this choice.
fn choose(guest: &Guest, name: &str) {
    let choice = Choice::named(name).expect("it is registered");
    guest.worker.handle.change(|it| it.victims = choice);
}

/// Has a fault wait for memory at a floor that leaves none to faults.
fn wait_at_the_floor(host: &Host, guest: &mut Guest) {
    guest.vm.take_back_credits();
    host.budget.set_floor(host.budget.free());
    // The last page, which did not come ahead with another one.
    let write = Op::Write(Box::new(small(1)));
    let is_served = guest.attempt(0, PAGES - 1, write);
    assert!(!is_served, "nothing is free for faults");
}

#[test]
fn order_is_carried_out_while_less_is_free_than_the_aim_and_no_further() {
    each(Spec::all(PAGES), |host, guest| {
        guest.write_all(small);
        let eviction = Eviction {
            pages: Pages(60),
            means: Means::ALL,
            always: false,
        };
        guest.vm.orders.set_evict(eviction);
        guest.worker.wait(PAUSE);
        assert_eq!(guest.resident().len(), 64, "no aim is set");
        let aim = host.budget.free();
        host.budget.set_marks(Pages(0), aim, Pages(0));
        assert!(host.budget.take(8, Urgency::Reclaim));
        guest.worker.wait(PAUSE);
        // The order is for one batch, and frees more than the pages of the cache cost.
        assert!(host.budget.free() >= aim);
        assert!(!host.budget.is_below_aim());
        let resident = guest.resident();
        guest.worker.wait(PAUSE);
        assert_eq!(guest.resident(), resident, "the aim is reached");
        host.budget.give(8);
    });
}

/// Faults wait for evicted pages though memory is left, because the floor keeps it from them. A guest that serves
/// itself is given some of the evicted pages as credits.
#[test]
fn faults_wait_at_the_floor_and_go_on_with_what_is_evicted() {
    each(Spec::all(PAGES), |host, guest| {
        (0..PAGES / 2).for_each(|gfn| guest.write(gfn, small(gfn)));
        wait_at_the_floor(host, guest);
        let floor = host.budget.free();
        reclaim(guest, 16);
        assert!(guest.drive(0), "it waits though pages were evicted");
        assert!(host.budget.free() >= floor, "the floor is left");
        if let Some(claims) = guest.vm.table.claims() {
            assert!(claims.held() > 1, "it must ask for each page");
        }
        host.budget.set_floor(Pages(0));
    });
}

/// Whatever a choice prefers, all that is ordered leaves and comes back as it was. Guests check what they read.
#[test]
fn every_choice_of_victims_takes_all_pages_in_the_end() {
    for name in victims::NAMES {
        each(Spec::all(PAGES), |_, guest| {
            guest.write_all(small);
            choose(guest, name);
            for _ in 0..2 {
                for _ in 0..8 {
                    reclaim(guest, PAGES.into());
                }
                assert!(
                    guest.resident().is_empty(),
                    "{name}: {:?}",
                    guest.resident()
                );
                guest.read_all();
            }
        });
    }
}

#[test]
fn page_that_is_wanted_back_while_it_is_frozen_stays() {
    each(Spec::all(PAGES), |_, guest| {
        guest.write_all(small);
        choose(guest, victims::SECOND_CHANCE);
        reclaim(guest, 16);
        let behind = Vec::from_iter(16..PAGES);
        assert_eq!(guest.resident(), behind, "the first of the hand");
        (16..24).for_each(|gfn| guest.read(gfn));
        reclaim(guest, 8);
        let others = (16..24).chain(32..PAGES);
        assert_eq!(guest.resident(), Vec::from_iter(others));
    });
}

/// The queue of frozen victims holds pages that their guest has opened since and that could not be frozen again. If one
/// of them were evicted, what the guest writes meanwhile would be lost.
#[test]
fn page_that_a_guest_refused_to_freeze_is_not_taken_for_frozen() {
    alone(Spec::of(EngineKind::Mprotect, PAGES), |_, guest| {
        guest.write_all(small);
        choose(guest, victims::SECOND_CHANCE);
        reclaim(guest, 16);
        assert_eq!(guest.resident().len(), 48);
        guest.read_all();
        choose(guest, victims::RANDOM);
        guest.space.accepts.set(0);
        reclaim(guest, PAGES.into());
        assert_eq!(guest.resident().len(), 64, "no page could be frozen");
        assert!(guest.vm.stats.vma_refused.get() > 0);
        guest.space.accepts.set(Countdown::NEVER);
        choose(guest, victims::SECOND_CHANCE);
        reclaim(guest, 16);
        assert_eq!(guest.resident().len(), 48);
    });
}

/// In the first round of the hand, the worker tries to compress each page and frees none of those that do not compress.
/// While a fault waits, such pages go to swap at once instead.
#[test]
fn pages_that_do_not_compress_go_at_once_while_a_fault_waits_and_nothing_else_goes() {
    each(Spec::all(PAGES), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        (0..PAGES / 2).for_each(|gfn| guest.write(gfn, noise(gfn)));
        choose(guest, victims::SECOND_CHANCE);
        wait_at_the_floor(host, guest);
        reclaim(guest, 2);
        let stats = &guest.vm.stats;
        let (gone, tried) = (stats.evict_swap.get(), stats.incompressible.get());
        assert_eq!((gone, tried), (2, 2), "others were tried first");
        assert!(guest.drive(0), "it waits though pages were evicted");
        host.budget.set_floor(Pages(0));
    });
}

/// Pages that the guest brings back itself count as well, once the page table knows of them.
#[test]
fn refault_is_early_if_the_page_has_just_left() {
    each(Spec::all(PAGES), |_, guest| {
        guest.write_all(small);
        reclaim(guest, 8);
        let gone = u64::from(PAGES) - guest.resident().len() as u64;
        assert!(gone >= 8 && guest.vm.refaults.early() == 0);
        guest.read_all();
        guest.vm.settle_done();
        assert_eq!(guest.vm.refaults.early(), gone.min(16));
        reclaim(guest, PAGES.into());
        assert!(guest.resident().is_empty());
        let left = guest.vm.refaults.remembered();
        assert!(left < Pages(16), "{left:?} of {PAGES}");
        let before = guest.vm.refaults.early();
        guest.read_all();
        guest.vm.settle_done();
        assert_eq!(guest.vm.refaults.early(), before + left.0);
    });
}

/// What did not compress is known until it is swapped.
#[test]
fn page_that_did_not_compress_is_not_tried_again_while_it_stays() {
    each(Spec::all(PAGES), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        guest.write_all(|gfn| match gfn % 4 {
            0 => noise(gfn),
            _ => small(gfn),
        });
        choose(guest, victims::SECOND_CHANCE);
        for _ in 0..64 {
            reclaim(guest, 8);
            guest.read_all();
        }
        let stats = &guest.vm.stats;
        let (tried, swapped) = (stats.incompressible.get(), stats.evict_swap.get());
        assert!(tried > 0, "none was a victim");
        assert!(tried <= u64::from(PAGES / 4) + swapped, "{tried} {swapped}");
    });
}

#[test]
fn page_that_does_not_compress_goes_when_nothing_else_does() {
    each(Spec::all(PAGES), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        guest.write_all(|gfn| match gfn % 4 {
            0 => noise(gfn),
            _ => small(gfn),
        });
        choose(guest, victims::SECOND_CHANCE);
        for _ in 0..3 {
            reclaim(guest, 8);
        }
        let left = guest.resident();
        assert_eq!(left.len(), 40);
        let mut noise = (0..PAGES).step_by(4);
        assert!(noise.all(|gfn| left.contains(&gfn)), "{left:?}");
        assert_eq!(guest.vm.stats.evict_swap.get(), 0);
        reclaim(guest, 40);
        assert!(guest.resident().is_empty());
        assert_eq!(guest.vm.stats.evict_swap.get(), u64::from(PAGES / 4));
    });
}

/// Pages that waited as victims of one choice (second chance) do not count as work at hand for the other (random).
#[test]
fn worker_that_finds_nothing_rests_after_the_choice_of_victims_has_changed() {
    each(Spec::all(PAGES), |host, guest| {
        host.budget.set_marks(Pages(0), Pages(0), Pages(1));
        guest.write_all(noise);
        choose(guest, victims::SECOND_CHANCE);
        reclaim(guest, 8);
        assert_eq!(guest.resident().len(), 56);
        choose(guest, victims::RANDOM);
        guest.disk.set_failing(Some(Errno::EIO));
        reclaim(guest, 8);
        assert_eq!(guest.resident().len(), 56);
        guest.disk.set_failing(None);
        order(&guest.vm, 0);
    });
}
