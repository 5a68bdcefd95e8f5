//! Pages that leave because their guest has not touched them for long.

use std::num::NonZeroU32;
use std::time::Duration;

use super::scenario::{KINDS, each, noise, small};
use super::{Guest, Spec};
use crate::page::{Home, Urgency};
use crate::reclaim::Cold;
use crate::units::{Pages, SlotId};

const PAGES: u32 = 64;
const AGE: Duration = Duration::from_secs(4);
/// As many as there are may come back in each second.
const ALL: u32 = 360_000;
/// The pages that a guest uses.
const USED: u32 = 6;

impl Guest {
    /// From now on, pages leave that were not touched for `age`, as long as no more than `refaults` percent of the VM
    /// come back in an hour.
    pub(super) fn cold(&mut self, age: Duration, refaults: u32) {
        let cold = Cold {
            age,
            refaults,
            compress: true,
        };
        self.worker.handle.change(|it| it.cold = cold);
    }
}

fn specs() -> [Spec; 3] {
    Spec::all(PAGES).map(|spec| Spec {
        ahead: 0,
        swap_slots: PAGES,
        ..spec
    })
}

/// Lets seconds pass, in which the guest reads its first pages again and again.
fn use_some(guest: &mut Guest, seconds: u32, used: u32) {
    for _ in 0..seconds * 10 {
        guest.worker.wait(Duration::from_millis(100));
        (0..used).for_each(|gfn| guest.read(gfn));
    }
}

fn stored(guest: &Guest) -> u64 {
    let count = |home| guest.vm.table.count(home);
    count(Home::Compressed(SlotId(0))) + count(Home::Swapped(SlotId(0)))
}

#[test]
fn what_is_not_touched_leaves_and_what_is_used_stays() {
    for content in [small, noise] {
        each(specs(), |_, guest| {
            guest.write_all(content);
            guest.cold(AGE, ALL);
            use_some(guest, 3 * 4, USED);
            let expected: Vec<u32> = (0..USED).collect();
            assert_eq!(guest.resident(), expected);
            assert_eq!(guest.vm.stats.cold.get(), u64::from(PAGES - USED));
            assert_eq!(guest.vm.stats.cold_back.get(), 0);
            guest.read(40);
            guest.resident();
            assert_eq!(guest.vm.stats.cold_back.get(), 1);
        });
    }
}

#[test]
fn no_page_leaves_before_its_age_and_none_without_one() {
    each(specs(), |_, guest| {
        guest.write_all(small);
        guest.cold(Duration::ZERO, ALL);
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), 0);
        guest.cold(AGE, ALL);
        // The first round only watches.
        use_some(guest, 3, 0);
        (0..PAGES).for_each(|gfn| guest.read(gfn));
        // Each page was touched at most this long ago.
        use_some(guest, 3, 0);
        assert_eq!(stored(guest), 0);
        use_some(guest, 3 * 4, 0);
        assert_eq!(stored(guest), u64::from(PAGES));
    });
}

#[test]
fn fewer_are_taken_when_those_that_were_taken_come_back() {
    // Percent of what the VM holds that may come back in an hour, so that one page may in six seconds.
    const BOUND: u32 = 938;
    each(specs(), |_, guest| {
        guest.write_all(noise);
        guest.cold(AGE, BOUND);
        // Each page is touched after it has been cold for a while.
        let (seconds, apart) = (1200, 9);
        for second in 0..seconds {
            use_some(guest, 1, 0);
            if second % apart == 0 {
                guest.read_all();
            }
        }
        guest.resident();
        let (taken, back) = (guest.vm.stats.cold.get(), guest.vm.stats.cold_back.get());
        println!("{taken} taken, {back} came back in {seconds} s");
        assert!(back <= u64::from(seconds / 6), "{back} came back");
        assert!(back >= u64::from(seconds / 6 / 4), "it goes on: {back}");
        // All pages, each time that the guest touches them.
        let unbounded = u64::from(seconds / apart * PAGES);
        assert!(back * 10 < unbounded);
    });
}

#[test]
fn nothing_is_taken_of_what_is_promised_or_while_memory_is_short() {
    each(specs(), |host, guest| {
        guest.write_all(small);
        guest.vm.orders.set_promised(Pages(50));
        guest.cold(AGE, ALL);
        use_some(guest, 60, 0);
        // With the credits of a guest that serves itself.
        assert_eq!(guest.vm.held(), Pages(50));
        let before = stored(guest);
        guest.vm.orders.set_promised(Pages(0));
        // Everything that is free is less than reclaim aims at.
        let free = host.budget.free();
        host.budget.set_marks(Pages(0), free, Pages(0));
        assert!(host.budget.take(8, Urgency::Reclaim));
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), before);
        host.budget.give(8);
        host.budget.set_marks(Pages(0), Pages(0), Pages(0));
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), u64::from(PAGES));
    });
}

#[test]
fn cold_pages_come_back_by_an_order_and_not_by_themselves() {
    let specs = KINDS.map(|kind| Spec {
        zip_pages: 0,
        swap_slots: PAGES,
        ..Spec::of(kind, PAGES)
    });
    each(specs, |_, guest| {
        guest.write_all(noise);
        guest.cold(AGE, ALL);
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), u64::from(PAGES));
        guest.cold(Duration::ZERO, ALL);
        guest.worker.handle.change(|it| it.unswap_rate = 1000);
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), u64::from(PAGES));
        guest.vm.orders.set_unswap(NonZeroU32::new(1000));
        use_some(guest, 60, 0);
        assert_eq!(stored(guest), 0);
        assert_eq!(guest.vm.stats.cold_back.get(), 0, "nobody wanted them");
    });
}

#[test]
fn full_stores_are_not_tried_with_page_after_page() {
    let specs = specs().map(|spec| Spec {
        swap_slots: 4,
        ..spec
    });
    each(specs, |_, guest| {
        guest.write_all(noise);
        guest.cold(AGE, ALL);
        use_some(guest, 40, 0);
        assert_eq!(stored(guest), 4);
        let tried = guest.vm.stats.evict_failed.get();
        // A slice a round.
        assert!((8..=8 * 10).contains(&tried), "{tried} pages were tried");
    });
}
