//! The map of free pages between a guest that allocates and frees and a host that takes pages and gives them back: no
//! page is used by the one and given up by the other at once.
//!
//! Each rule of the protocol is broken once, to see that the model misses it: how a change orders memory, that it
//! compares, that a host says MOVING before it drops a page, and that a guest looks once more.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use memvisor_models::sys::{Mapping, Memfd};
use memvisor_models::units::{Gfn, GfnRun, PageBuf};
use memvisor_models::{explore, join, spawn};
use memvisor_wire::balloon::{FreeMap, PageState};
use memvisor_wire::claims::Words;

/// Neighbours in one word, so that a change of one fails now and then for the sake of the other.
const PAGES: u32 = 2;
const ALL: GfnRun = GfnRun {
    start: Gfn(0),
    count: PAGES,
};

/// What a model may break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// A change orders memory in this way only.
    Orders(Ordering),
    /// A change writes what it has seen before, whatever is there now.
    Compares,
    /// The host has a page at once.
    Moving,
    /// A guest that takes pages back looks for FREE and then for TAKEN, and not again.
    LooksAgain,
}

/// The word of the map. That loads order nothing is enough: whoever uses or drops a page has moved it before.
#[derive(Debug)]
struct Word {
    word: AtomicU32,
    broken: Broken,
}

impl Words for Word {
    fn load(&self, _: u32) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    fn store(&self, _: u32, _: u32) {
        unreachable!("nobody writes the map without a look at it");
    }

    fn compare_exchange(&self, _: u32, from: u32, to: u32) -> Result<u32, u32> {
        let order = match self.broken {
            Broken::Orders(order) => order,
            _ => Ordering::AcqRel,
        };
        if self.broken == Broken::Compares {
            return Ok(self.word.swap(to, order));
        }
        self.word
            .compare_exchange(from, to, order, Ordering::Relaxed)
    }
}

/// A guest's RAM and the map of it.
#[derive(Debug)]
struct Scene {
    map: FreeMap<Word>,
    ram: Mapping,
    file: Memfd,
    broken: Broken,
}

impl Scene {
    /// All pages are in this state.
    fn new(state: PageState, broken: Broken) -> Arc<Self> {
        let word = Word {
            word: AtomicU32::new(0),
            broken,
        };
        let file = Memfd::publish("ram", PAGES).expect("a model");
        let scene = Self {
            map: FreeMap::new(word, PAGES),
            ram: Mapping::read_write(&file).expect("a model"),
            file,
            broken,
        };
        if state != PageState::Used {
            assert_eq!(scene.map.change_run(ALL, PageState::Used, state), PAGES);
        }
        Arc::new(scene)
    }

    /// The guest writes a page that is its own, and reads it again.
    fn uses(&self, gfn: Gfn) {
        let (mut page, mut again) = (PageBuf::zeroed(), PageBuf::zeroed());
        page.0[0] = 42;
        self.ram.write(gfn.0, &page);
        self.ram.read(gfn.0, &mut again);
        assert_eq!(again.0[0], 42, "somebody gave {gfn} up meanwhile");
    }

    /// The guest allocates a page if it is free, uses it and frees it.
    fn allocates_and_frees(&self, gfn: Gfn) {
        if self.map.change(gfn, PageState::Free, PageState::Used) {
            self.uses(gfn);
            let freed = self.map.change(gfn, PageState::Used, PageState::Free);
            assert!(freed, "nobody else moves a page that is used");
        }
    }

    /// The host takes the free pages that it finds.
    fn takes(&self) {
        let Some(run) = self.map.next_free(Gfn(0), PAGES) else {
            return;
        };
        let first = match self.broken {
            Broken::Moving => PageState::Taken,
            _ => PageState::Moving,
        };
        let count = self.map.change_run(run, PageState::Free, first);
        self.file.punch(run.start.0, count).expect("a model");
        let run = GfnRun::new(run.start, count);
        if first == PageState::Moving && count > 0 {
            let has = self
                .map
                .change_run(run, PageState::Moving, PageState::Taken);
            assert_eq!(has, count, "nobody else moves a page that is moving");
        }
    }

    /// The host gives the pages back that it has.
    fn gives_back(&self) {
        for gfn in ALL.iter() {
            let _ = self.map.change(gfn, PageState::Taken, PageState::Free);
        }
    }

    /// The guest stops sharing the map, as far as the host lets it; whether it has this page now.
    fn takes_back(&self, gfn: Gfn) -> bool {
        let moved = |from| self.map.change(gfn, from, PageState::Used);
        let is_back = match self.broken {
            Broken::LooksAgain => moved(PageState::Free) || moved(PageState::Taken),
            _ => self.map.take_back(gfn),
        };
        if is_back {
            self.uses(gfn);
        }
        is_back
    }
}

fn guest_uses_pages_while_the_host_takes_them(broken: Broken) {
    explore(move || {
        let scene = Scene::new(PageState::Free, broken);
        let host = {
            let scene = Arc::clone(&scene);
            spawn(move || {
                scene.takes();
                scene.gives_back();
            })
        };
        ALL.iter().for_each(|gfn| scene.allocates_and_frees(gfn));
        join(host);
        // All is quiet: every page is free, and holds what its last user wrote or nothing.
        for gfn in ALL.iter() {
            assert_eq!(scene.map.state(gfn), PageState::Free);
            scene.allocates_and_frees(gfn);
        }
    });
}

fn guest_takes_all_back_while_the_host_takes(broken: Broken) {
    explore(move || {
        let scene = Scene::new(PageState::Free, broken);
        let host = {
            let scene = Arc::clone(&scene);
            spawn(move || scene.takes())
        };
        let moving: Vec<Gfn> = ALL.iter().filter(|gfn| !scene.takes_back(*gfn)).collect();
        join(host);
        for gfn in moving {
            assert!(scene.takes_back(gfn), "the host has done with {gfn}");
        }
    });
}

fn guest_takes_all_back_while_the_host_gives_back(broken: Broken) {
    explore(move || {
        let scene = Scene::new(PageState::Taken, broken);
        let host = {
            let scene = Arc::clone(&scene);
            spawn(move || scene.gives_back())
        };
        for gfn in ALL.iter() {
            assert!(scene.takes_back(gfn), "nobody is taking {gfn}");
        }
        join(host);
    });
}

#[test]
fn page_is_used_by_the_guest_or_given_up_by_the_host() {
    guest_uses_pages_while_the_host_takes_them(Broken::Nothing);
}

#[test]
fn guest_that_stops_sharing_has_each_page_that_the_host_is_not_taking() {
    guest_takes_all_back_while_the_host_takes(Broken::Nothing);
    guest_takes_all_back_while_the_host_gives_back(Broken::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn change_without_any_order_is_found() {
    guest_uses_pages_while_the_host_takes_them(Broken::Orders(Ordering::Relaxed));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn change_that_does_not_acquire_is_found() {
    guest_uses_pages_while_the_host_takes_them(Broken::Orders(Ordering::Release));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn change_that_does_not_release_is_found() {
    guest_uses_pages_while_the_host_takes_them(Broken::Orders(Ordering::Acquire));
}

#[test]
#[should_panic]
fn change_that_does_not_compare_is_found() {
    guest_uses_pages_while_the_host_takes_them(Broken::Compares);
}

#[test]
#[should_panic]
fn host_that_drops_pages_before_it_says_so_is_found() {
    guest_takes_all_back_while_the_host_takes(Broken::Moving);
}

#[test]
#[should_panic(expected = "nobody is taking")]
fn guest_that_does_not_look_again_is_found() {
    guest_takes_all_back_while_the_host_gives_back(Broken::LooksAgain);
}
