//! The budget: a VM that waits for memory is called when there is memory for it.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use memvisor_models::page::{Budget, Home, Need, PageTable, Parking, Urgency};
use memvisor_models::units::{Gfn, Pages, SlotId};
use memvisor_models::{explore, join, spawn};

/// Whether the fault thread of the VM would wake.
fn rang(parking: &Parking) -> bool {
    nix::unistd::read(parking.bell(), &mut [0; 8]).is_ok()
}

/// One first touch.
const TOUCH: Need = Need {
    refill: 0,
    touch: 1,
};

/// The parkings of two VMs.
fn parkings() -> [Arc<Parking>; 2] {
    [(); 2].map(|()| Arc::new(Parking::new().expect("an eventfd")))
}

/// Has the VM wait in turn for one first touch.
fn wait(budget: &Budget, parking: &Arc<Parking>) {
    budget.wait(parking, TOUCH, false, false);
}

/// A VM begins to wait while another gives its page back. The waiting VM must be granted the page, and called.
#[test]
fn waiting_vm_is_granted_the_page_that_comes_free() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(1), Pages(0)));
        let [parking, _] = parkings();
        assert!(budget.take(1, Urgency::Touch));
        let giver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.give(1))
        };
        wait(&budget, &parking);
        join(giver);
        assert!(rang(&parking), "it starves beside a free page");
        assert_eq!(budget.collect(&parking), TOUCH);
        budget.leave(&parking);
        budget.give(1);
        assert_eq!((budget.used(), budget.starving()), (Pages(0), 0));
    });
}

/// Two VMs wait, and the first dies with or without a grant. The page must go to the other.
#[test]
fn grant_of_a_vm_that_leaves_goes_to_the_next() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(1), Pages(0)));
        let [first, second] = parkings();
        assert!(budget.take(1, Urgency::Touch));
        wait(&budget, &first);
        let giver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.give(1))
        };
        let leaver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.leave(&first))
        };
        wait(&budget, &second);
        join(giver);
        join(leaver);
        assert!(rang(&second), "it starves beside a free page");
        assert_eq!(budget.collect(&second), TOUCH);
        assert_eq!(budget.used(), Pages(1));
    });
}

/// A VM is barred while memory is scarce. Either it sees that memory is no longer scarce, or it must be called.
#[test]
fn barred_vm_is_called_when_memory_is_scarce_no_more() {
    explore(|| {
        let budget = Arc::new(Budget::new(Pages(3), Pages(0)));
        let [parking, _] = parkings();
        budget.set_marks(Pages(0), Pages(0), Pages(2));
        assert!(budget.take(2, Urgency::Touch));
        let giver = {
            let budget = Arc::clone(&budget);
            spawn(move || budget.give(1))
        };
        budget.wait(&parking, Need::default(), true, false);
        let is_scarce = budget.is_scarce();
        join(giver);
        assert!(!is_scarce || rang(&parking), "it waits for nothing");
    });
}

/// A VM at its ceiling waits. When it loses a page it may go on, even if that page gives no memory back to the budget,
/// so it must be called.
#[test]
fn vm_at_its_ceiling_is_called_when_it_holds_less() {
    explore(|| {
        let budget = Budget::new(Pages(1), Pages(0));
        let [parking, _] = parkings();
        let table = Arc::new(PageTable::new(1, Arc::clone(&parking)).expect("memory"));
        let page = table.try_lock(Gfn(0)).expect("free");
        page.set_home(Home::Resident);
        drop(page);
        let worker = {
            let (table, parking) = (Arc::clone(&table), Arc::clone(&parking));
            spawn(move || {
                let page = table.try_lock(Gfn(0)).expect("nobody else locks");
                page.set_home(Home::Swapped(SlotId(1)));
                if parking.is_barred() {
                    parking.ring();
                }
            })
        };
        budget.wait(&parking, Need::default(), true, false);
        let is_below = table.count(Home::Resident) == 0;
        join(worker);
        assert!(is_below || rang(&parking), "it starves below its ceiling");
    });
}

/// Whoever takes a page that was given back takes it after the kernel has it back.
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
