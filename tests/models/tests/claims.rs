//! The claim table between the threads of an honest guest and those of the daemon: no page, credit or wake-up is
//! lost, and the guest is not taken for a liar.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use memvisor_models::page::{Attempt, Home, PageTable, Parking};
use memvisor_models::units::{Gfn, SlotId};
use memvisor_models::{explore, join, spawn};
use memvisor_wire::claims::{
    Attempt as Claimed, CREDITS, Claimer, FIRST_CREDIT, Place, ROW_WORDS, State, Words, row,
};

const PAGE: Gfn = Gfn(0);
/// Credits that a model may use. The words of the other credits are never written.
const FEW: u32 = 2;

/// The words of one page and of a few credits.
#[derive(Debug, Default)]
struct Table {
    header: [AtomicU32; (FIRST_CREDIT + FEW) as usize],
    row: [AtomicU32; ROW_WORDS as usize],
}

impl Table {
    fn word(&self, at: u32) -> Option<&AtomicU32> {
        match at.checked_sub(row(PAGE)) {
            Some(at) => self.row.get(at as usize),
            None => self.header.get(at as usize),
        }
    }

    fn of(&self, at: u32) -> &AtomicU32 {
        self.word(at).expect("no model writes others")
    }
}

impl Words for Table {
    fn load(&self, at: u32) -> u32 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, at: u32, word: u32) {
        self.of(at).store(word, Ordering::Release);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        self.of(at)
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// One page and what moves it.
#[derive(Debug)]
struct Host {
    table: PageTable,
    words: Arc<Table>,
    parking: Arc<Parking>,
    /// Stands for the bytes of the page in RAM. Only the protocol orders accesses to it.
    ram: AtomicU64,
    /// Pages that are charged.
    charged: AtomicU64,
}

const PLACE: Place = Place {
    page: 5,
    at: 64,
    len: 99,
    sum: 7,
};
/// The bytes that the guest brings.
const BROUGHT: u64 = 42;

impl Host {
    /// A host with one page that is compressed and offered, and this many credits.
    fn new(credits: u32) -> Arc<Self> {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let words = Arc::new(Table::default());
        let table = PageTable::new(1, Arc::clone(&parking))
            .expect("memory")
            .offering(Arc::clone(&words) as _);
        let host = Self {
            table,
            words,
            parking,
            ram: AtomicU64::new(0),
            charged: AtomicU64::new(0),
        };
        host.grant(credits);
        let page = host.table.try_lock(PAGE).expect("free");
        page.set_home(Home::Resident);
        page.set_home(Home::Compressed(SlotId(1)));
        host.claims().describe(PAGE, PLACE);
        drop(page);
        Arc::new(host)
    }

    fn claims(&self) -> &memvisor_models::page::Claims {
        self.table.claims().expect("it has some")
    }

    fn grant(&self, credits: u32) {
        self.claims().grant(credits, || {
            self.charged.fetch_add(1, Ordering::Relaxed);
            true
        });
    }

    fn take_back(&self) {
        let pages = self.claims().take_back();
        self.charged.fetch_sub(pages, Ordering::Relaxed);
    }

    /// A thread of the guest faults on the page. `Some` if it claimed the page: whether it must wake others.
    fn fault(&self, gives_up: bool) -> Option<bool> {
        let claimer = Claimer::new(&*self.words);
        if claimer.state(PAGE) != State::Zip {
            return None;
        }
        let Claimed::Claimed(claim) = claimer.claim(PAGE, State::Zip) else {
            return None;
        };
        assert_eq!(claimer.place(&claim), PLACE, "it would read other bytes");
        if gives_up {
            return Some(claimer.give_up(claim));
        }
        self.ram.store(BROUGHT, Ordering::Relaxed);
        Some(claimer.done(claim))
    }

    /// The daemon moves the page to swap. If its guest has brought it, RAM must have the bytes that were brought.
    fn evict(&self) {
        let page = match self.table.attempt(PAGE) {
            Attempt::Locked(page) => page,
            Attempt::Busy | Attempt::Claimed => return,
            Attempt::Done(page) => {
                let page = page.settle().expect("it had the credit");
                page.set_home(Home::Resident);
                assert_eq!(self.ram.load(Ordering::Relaxed), BROUGHT, "stale bytes");
                page
            }
        };
        if matches!(page.home(), Home::Compressed(_)) {
            page.set_home(Home::Swapped(SlotId(2)));
            assert_eq!(
                self.ram.load(Ordering::Relaxed),
                0,
                "the guest brings it too"
            );
        }
    }

    /// Checks, once all is quiet, that every charged page is a credit or a page of RAM.
    fn verify(&self) {
        self.evict();
        assert_eq!(self.claims().violation(), None);
        let resident = self.table.recount()[Home::Resident.kind()];
        assert_eq!(
            self.charged.load(Ordering::Relaxed),
            resident + self.claims().held()
        );
        self.take_back();
        self.claims().find_forged();
        assert_eq!(self.claims().violation(), None);
        assert_eq!(self.claims().held(), 0);
        assert!(self.parking.pop().is_none(), "nobody has parked");
    }
}

#[test]
fn page_is_brought_by_its_guest_or_moved_by_the_daemon() {
    for gives_up in [false, true] {
        explore(move || {
            let host = Host::new(1);
            let guest = {
                let host = Arc::clone(&host);
                spawn(move || host.fault(gives_up))
            };
            host.evict();
            host.evict();
            join(guest);
            host.verify();
        });
    }
}

/// The worker settles what the guest brings while the fault thread grants, takes back and looks for forgery.
#[test]
fn credits_are_counted_once_and_honest_guests_are_believed() {
    explore(|| {
        let host = Host::new(1);
        let guest = {
            let host = Arc::clone(&host);
            spawn(move || host.fault(false))
        };
        let worker = {
            let host = Arc::clone(&host);
            spawn(move || host.evict())
        };
        host.take_back();
        host.claims().find_forged();
        host.grant(1);
        join(guest);
        join(worker);
        host.verify();
    });
}

/// A credit that one thread uses up and another grants again is not taken for forged.
#[test]
fn credit_that_is_granted_again_is_a_new_one() {
    explore(|| {
        let host = Host::new(2);
        let guest = {
            let host = Arc::clone(&host);
            spawn(move || host.fault(false))
        };
        let worker = {
            let host = Arc::clone(&host);
            spawn(move || {
                host.evict();
                host.take_back();
            })
        };
        host.grant(2);
        host.claims().find_forged();
        join(guest);
        join(worker);
        host.verify();
    });
}

/// A page may be compressed anew, to another place, before a thread claims it. The thread must read the new place.
#[test]
fn place_is_that_of_the_offer_that_was_claimed() {
    const NEW: Place = Place { page: 6, ..PLACE };
    explore(|| {
        let host = Host::new(1);
        let guest = {
            let host = Arc::clone(&host);
            spawn(move || {
                let claimer = Claimer::new(&*host.words);
                let Claimed::Claimed(claim) = claimer.claim(PAGE, State::Zip) else {
                    return None;
                };
                let place = claimer.place(&claim);
                claimer.done(claim);
                Some(place)
            })
        };
        let again = host.table.try_lock(PAGE).map(|page| {
            page.set_home(Home::Resident);
            page.set_home(Home::Compressed(SlotId(2)));
            host.claims().describe(PAGE, NEW);
        });
        if let Some(place) = join(guest) {
            assert_eq!(place, if again.is_some() { NEW } else { PLACE });
        }
    });
}

/// Two threads of the guest fault on one page. The one that waits for the other is woken, or finds the word changed.
#[test]
fn thread_that_waits_for_a_claim_is_woken() {
    explore(|| {
        let host = Host::new(1);
        let other = {
            let host = Arc::clone(&host);
            spawn(move || host.fault(false))
        };
        let waits = Claimer::new(&*host.words).wait_word(PAGE);
        let woken = join(other);
        assert_eq!(
            woken,
            Some(waits.is_some()),
            "who waits is woken, others are not"
        );
        host.verify();
    });
}

/// Exactly one of all threads is told to report that credits run low.
#[test]
fn one_thread_tells_that_credits_run_low() {
    explore(|| {
        let host = Host::new(1);
        let tell = |host: &Host| {
            let claimer = Claimer::new(&*host.words);
            match claimer.claim(PAGE, State::Zip) {
                Claimed::Claimed(claim) => {
                    let told = claimer.should_report(&claim);
                    claimer.give_up(claim);
                    u32::from(told)
                }
                Claimed::NoCredit | Claimed::Changed => 0,
            }
        };
        let other = {
            let host = Arc::clone(&host);
            spawn(move || tell(&host))
        };
        let told = tell(&host) + join(other);
        assert_eq!(told, 1, "the mark is at the first credit");
        host.verify();
    });
}

const _: () = assert!(FEW < CREDITS);
