//! Swapped pages that come back without being asked for.

use std::num::NonZeroU32;
use std::time::Duration;

use super::scenario::{self, KINDS, SWAP, noise};
use super::{Guest, Host, Spec};
use crate::page::{Home, Urgency};
use crate::units::{Pages, SlotId};
use crate::vm::Stalled;

const PAGES: u32 = 64;
/// Pages a second.
const RATE: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Runs `story` with a guest of each engine, all of whose pages are in the swap file.
fn each(story: impl Fn(&Host, &mut Guest)) {
    let spec = |kind| Spec {
        ahead: 0,
        swap_slots: PAGES,
        ..Spec::of(kind, PAGES)
    };
    scenario::each(KINDS.map(spec), |host, guest| {
        guest.write_and_evict(SWAP, noise);
        assert_eq!(swapped(guest), u64::from(PAGES));
        story(host, guest);
    });
}

fn swapped(guest: &Guest) -> u64 {
    guest.vm.table.count(Home::Swapped(SlotId(0)))
}

/// Lets seconds pass, in steps in which nothing that is due waits for long.
fn wait(guest: &mut Guest, seconds: u32) {
    (0..seconds * 20).for_each(|_| guest.worker.wait(SECOND / 20));
}

fn order(guest: &Guest, rate: u32) {
    guest.vm.orders.set_unswap(NonZeroU32::new(rate));
}

fn stalled(guest: &Guest) -> Stalled {
    guest.vm.stalls.so_far(None, guest.space.line.clock.now())
}

#[test]
fn ordered_pages_come_back_at_their_rate_and_the_order_ends_with_the_last() {
    each(|_, guest| {
        let served = guest.vm.stats.served();
        order(guest, RATE);
        wait(guest, 3);
        let came = u64::from(PAGES) - swapped(guest);
        let expected = u64::from(3 * RATE - 3)..=u64::from(3 * RATE + 3);
        assert!(expected.contains(&came), "{came} pages in 3 s");
        wait(guest, 10);
        assert_eq!(swapped(guest), 0);
        assert_eq!(guest.vm.orders.unswap(), None);
        assert_eq!(guest.vm.stats.unswapped.get(), u64::from(PAGES));
        let (refills, stalls) = (guest.vm.stats.refill_swap.get(), stalled(guest).any);
        assert_eq!((refills, stalls), (0, Duration::ZERO), "nobody asked");
        assert_eq!(guest.vm.stats.served(), served);
    });
}

#[test]
fn pages_come_by_themselves_only_after_memory_was_free_for_a_while() {
    each(|host, guest| {
        let all = host.budget.free();
        guest.worker.handle.change(|it| it.unswap_rate = RATE);
        wait(guest, 9);
        assert_eq!(swapped(guest), u64::from(PAGES), "not yet");
        // Short for a moment, and then for as long again not.
        host.budget.set_marks(Pages(0), all, Pages(0));
        wait(guest, 2);
        host.budget.set_marks(Pages(0), Pages(0), Pages(0));
        wait(guest, 9);
        assert_eq!(swapped(guest), u64::from(PAGES), "not yet again");
        wait(guest, 12);
        assert_eq!(swapped(guest), 0);
    });
}

#[test]
fn nothing_comes_while_memory_is_short_and_the_order_stays() {
    each(|host, guest| {
        let all = host.budget.free().0 - 8;
        assert!(host.budget.take(all, Urgency::Reclaim));
        order(guest, RATE);
        wait(guest, 20);
        let came = u64::from(PAGES) - swapped(guest);
        assert!(came < 8, "{came} pages came into the last free ones");
        assert!(guest.vm.orders.unswap().is_some());
        host.budget.give(all);
        wait(guest, 20);
        assert_eq!(swapped(guest), 0);
    });
}

#[test]
fn nothing_comes_to_a_guest_at_its_ceiling() {
    each(|_, guest| {
        guest.vm.orders.set_ceiling(Some(Pages(20)));
        order(guest, RATE);
        wait(guest, 20);
        let held = guest.vm.held().0;
        assert!(held < 20, "{held} pages");
        guest.vm.orders.set_ceiling(None);
    });
}

#[test]
fn damaged_page_stays_and_keeps_no_order_alive() {
    each(|_, guest| {
        guest.damage(5);
        order(guest, RATE);
        wait(guest, 20);
        assert_eq!(swapped(guest), 1);
        wait(guest, 220);
        assert_eq!((swapped(guest), guest.vm.orders.unswap()), (1, None));
        assert!(matches!(guest.home(5), Home::Swapped(_)));
        guest.damage(5);
        guest.read(5);
    });
}
