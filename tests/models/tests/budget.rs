//! The budget: a VM that starves is called when memory comes free.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use memvisor_models::page::{Budget, Home, PageTable, Parking, Urgency};
use memvisor_models::units::{Gfn, Pages, SlotId};
use memvisor_models::{explore, join, spawn};

/// Whether the fault thread of the VM would wake.
fn rang(parking: &Parking) -> bool {
    let bell = parking.bell().expect("it has one");
    nix::unistd::read(bell, &mut [0; 8]).is_ok()
}

/// One VM says that it starves and tries once more, as the fault thread does, while another gives the page back:
/// the first gets it, or its bell rings.
#[test]
fn starving_vm_gets_the_page_that_comes_free_or_is_called() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(1), Pages(0)));
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        budget.register(&parking);
        assert!(budget.take(1, Urgency::Touch));
        let giver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.give(1))
        };
        budget.starve(&parking, true);
        let taken = budget.take(1, Urgency::Touch);
        join(giver);
        assert!(taken || rang(&parking), "it starves beside a free page");
    });
}

/// Two VMs starve at once; neither stops the call of the other when it has what it wanted.
#[test]
fn vm_that_no_longer_starves_does_not_hide_another() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(2), Pages(0)));
        let [first, second] = [(); 2].map(|()| Arc::new(Parking::new().expect("an eventfd")));
        budget.register(&first);
        budget.register(&second);
        assert!(budget.take(2, Urgency::Touch));
        budget.starve(&second, true);
        let giver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.give(1))
        };
        let served = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.starve(&second, false))
        };
        budget.starve(&first, true);
        let taken = budget.take(1, Urgency::Touch);
        join(giver);
        join(served);
        assert!(taken || rang(&first), "it starves beside a free page");
    });
}

/// A VM at its ceiling starves; what makes it smaller gives no memory back, but calls it.
#[test]
fn vm_at_its_ceiling_is_called_when_it_holds_less() {
    explore(|| {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let table = Arc::new(PageTable::new(1, Arc::clone(&parking)).expect("memory"));
        let page = table.try_lock(Gfn(0)).expect("free");
        page.set_home(Home::Resident);
        drop(page);
        let worker = {
            let (table, parking) = (Arc::clone(&table), Arc::clone(&parking));
            spawn(move || {
                let page = table.try_lock(Gfn(0)).expect("nobody else locks");
                page.set_home(Home::Swapped(SlotId(1)));
                if parking.is_starved() {
                    parking.ring();
                }
            })
        };
        parking.set_starved(true);
        let is_below = table.count(Home::Resident) == 0;
        join(worker);
        assert!(is_below || rang(&parking), "it starves below its ceiling");
    });
}

/// Who takes a page that was given back does so after the kernel has it back.
#[test]
fn page_is_taken_after_it_was_freed() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(1), Pages(0)));
        let is_freed = Arc::new(AtomicBool::new(false));
        assert!(budget.take(1, Urgency::Touch));
        let giver = {
            let (budget, is_freed) = (Arc::clone(&budget), Arc::clone(&is_freed));
            spawn(move || {
                is_freed.store(true, Ordering::Relaxed);
                budget.give(1);
            })
        };
        if budget.take(1, Urgency::Touch) {
            assert!(is_freed.load(Ordering::Relaxed), "it is used twice");
        }
        join(giver);
    });
}
