//! Hints between a real kernel and the host's side of the protocol, step by step, in every order.
//!
//! The known corruption of free page hinting: a guest hints a page, uses it again, and then the host drops it. It is
//! shown to happen where the host drops what it is told of, and not to happen in two phases.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use memvisor_guest_agent::kernel::{Kernel, KernelOptions};
use memvisor_guest_agent::shim::Memory;
use memvisor_wire::Doorbell;
use memvisor_wire::balloon::{FreeMap, MAX_RANGES, PageState, PageStatus, Wanted, map_words};
use memvisor_wire::claims::Words;

use super::*;
use crate::balloon::{BalloonCounters, GuestStats};
use crate::units::{GfnRun, PAGE_SIZE, VmId};

const PAGES: u32 = 64;
/// What the workload of the guest holds, and where it writes more.
const HELD: u32 = 8;
const MORE: u32 = 20;

/// RAM that host and guest share.
struct TestRam(Vec<Mutex<[u8; PAGE_SIZE]>>);

impl TestRam {
    fn new() -> Arc<Self> {
        let page = || Mutex::new([0xa5; PAGE_SIZE]);
        Arc::new(Self((0..PAGES).map(|_| page()).collect()))
    }

    fn page(&self, gfn: Gfn) -> std::sync::MutexGuard<'_, [u8; PAGE_SIZE]> {
        self.0[gfn.index()]
            .lock()
            .expect("no test panics with a page")
    }
}

impl Memory for TestRam {
    fn pages(&self) -> u32 {
        PAGES
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.page(gfn)[at..at + into.len()]);
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        self.page(gfn)[at..at + from.len()].copy_from_slice(from);
    }
}

/// A VM whose pages are dropped when its balloon takes them.
struct TestVm {
    ram: Arc<TestRam>,
    balloon: RefCell<BTreeSet<u32>>,
    target: Cell<u64>,
    doorbell: Doorbell,
    counters: BalloonCounters,
}

impl TestVm {
    fn new(ram: &Arc<TestRam>, target: u64) -> Self {
        Self {
            ram: Arc::clone(ram),
            balloon: RefCell::default(),
            target: Cell::new(target),
            doorbell: Doorbell::new().expect("a descriptor"),
            counters: BalloonCounters::default(),
        }
    }

    fn each(runs: &[GfnRun], act: impl Fn(Gfn) -> PageStatus) -> Vec<StatusRun> {
        let pages = runs.iter().flat_map(|run| run.iter());
        let part = |gfn| StatusRun {
            run: GfnRun::single(gfn),
            status: act(gfn),
        };
        pages.map(part).collect()
    }
}

impl BalloonVm for TestVm {
    fn id(&self) -> VmId {
        VmId(1)
    }
    fn total_pages(&self) -> u64 {
        PAGES.into()
    }
    fn balloon_max(&self) -> u64 {
        PAGES.into()
    }
    fn target(&self) -> u64 {
        self.target.get()
    }
    fn locked(&self) -> u64 {
        self.balloon.borrow().len() as u64
    }
    fn holds(&self, gfn: Gfn) -> bool {
        self.balloon.borrow().contains(&gfn.0)
    }
    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        Self::each(runs, |gfn| {
            self.ram.page(gfn).fill(0);
            if self.balloon.borrow_mut().insert(gfn.0) {
                PageStatus::Ok
            } else {
                PageStatus::AlreadyLocked
            }
        })
    }
    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        Self::each(runs, |gfn| {
            if self.balloon.borrow_mut().remove(&gfn.0) {
                PageStatus::Ok
            } else {
                PageStatus::NotLocked
            }
        })
    }
    fn release_all(&self) {
        self.balloon.borrow_mut().clear();
    }
    fn take_reset(&self) -> bool {
        false
    }
    fn is_closing(&self) -> bool {
        false
    }
    fn report(&self, _stats: &GuestStats) {}
    fn relief(&self, _pages: u64) {}
    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
    fn counters(&self) -> &BalloonCounters {
        &self.counters
    }
}

/// A kernel with something in memory and much free, and the host's side of it.
struct Scene {
    kernel: Arc<Kernel>,
    region: memvisor_guest_agent::kernel::AnonRegion,
    vm: TestVm,
}

impl Scene {
    fn new() -> Self {
        let ram = TestRam::new();
        let options = KernelOptions {
            swap_pages: 0,
            disk_directory: "/nowhere".into(),
        };
        let memory: Arc<dyn Memory> = Arc::<TestRam>::clone(&ram);
        let kernel = Kernel::new(memory, &options).expect("it boots");
        let region = kernel.map_anon(HELD + MORE);
        let scene = Self {
            vm: TestVm::new(&ram, 30),
            kernel,
            region,
        };
        scene.write(0, HELD);
        scene
    }

    /// The guest's workload writes pages, which takes free ones.
    fn write(&self, first: u32, pages: u32) {
        for page in first..first + pages {
            let bytes = [page as u8 + 1; PAGE_SIZE];
            let at = u64::from(page) * PAGE_SIZE as u64;
            self.region.write(at, &bytes).expect("there are free pages");
        }
    }

    /// How many of the pages that it has written hold something else.
    fn wrong(&self) -> usize {
        let is_wrong = |page: &u32| {
            let mut found = [0; PAGE_SIZE];
            let at = u64::from(*page) * PAGE_SIZE as u64;
            self.region.read(at, &mut found).expect("in RAM");
            found != [*page as u8 + 1; PAGE_SIZE]
        };
        (0..HELD + MORE).filter(is_wrong).count()
    }

    fn free(&self) -> RangeBatch {
        let (free, end) = self.kernel.free_pages(Gfn(0), u32::MAX, false);
        assert_eq!(end, None);
        RangeBatch::split(free, MAX_RANGES as u32).remove(0)
    }
}

/// Runs `steps` in their order, and has the workload write before the step with the number `when`.
fn interleaved(scene: &Scene, when: usize, steps: &mut [&mut dyn FnMut()]) {
    for (number, step) in steps.iter_mut().enumerate() {
        if number == when {
            scene.write(HELD, MORE);
        }
        step();
    }
    if when >= steps.len() {
        scene.write(HELD, MORE);
    }
}

/// The host drops the pages of a hint, and the guest may use them meanwhile.
fn naive(when: usize) -> usize {
    let scene = Scene::new();
    let hint = RefCell::new(None);
    interleaved(
        &scene,
        when,
        &mut [&mut || *hint.borrow_mut() = Some(scene.free()), &mut || {
            let hint = hint.borrow_mut().take().expect("it was given before");
            scene.vm.lock(hint.runs());
        }],
    );
    scene.wrong()
}

/// The same by `OFFER` and `GIVE`, with the kernel's and the host's own code.
fn two_phases(when: usize) -> (usize, u64) {
    let scene = Scene::new();
    let hints = RefCell::new(Hints::default());
    let ask = |message: &ToHost| hints.borrow_mut().answer(&scene.vm, message);
    let offer = RefCell::new(None);
    let wanted = RefCell::new(Wanted {
        epoch: 0,
        missing: 0,
        ranges: Vec::new(),
    });
    let pinned = RefCell::new(Vec::new());
    interleaved(
        &scene,
        when,
        &mut [
            &mut || *offer.borrow_mut() = Some(scene.free()),
            &mut || {
                let offer = ToHost::Offer(offer.borrow_mut().take().expect("it was made before"));
                let Some(ToAgent::Wanted(answer)) = ask(&offer) else {
                    panic!("no WANTED");
                };
                *wanted.borrow_mut() = answer;
            },
            &mut || *pinned.borrow_mut() = scene.kernel.pin_free(&wanted.borrow().ranges),
            &mut || {
                for ranges in RangeBatch::split(pinned.borrow().clone(), MAX_RANGES as u32) {
                    let epoch = wanted.borrow().epoch;
                    let given = ask(&ToHost::Give { epoch, ranges });
                    assert!(matches!(given, Some(ToAgent::Given(_))), "{given:?}");
                }
            },
            &mut || {
                scene
                    .kernel
                    .balloon_free(&pinned.borrow())
                    .expect("they are pinned");
            },
        ],
    );
    (scene.wrong(), scene.vm.locked())
}

#[test]
fn page_that_is_used_after_a_naive_hint_is_corrupted() {
    let wrong: Vec<usize> = (0..=2).map(naive).collect();
    // Before the hint the pages are not free; after the drop they are used as they are. In between they are lost.
    assert_eq!(wrong, [0, MORE as usize, 0]);
}

#[test]
fn page_that_is_used_at_any_time_of_the_two_phases_is_not() {
    let ends: Vec<(usize, u64)> = (0..=5).map(two_phases).collect();
    assert!(ends.iter().all(|(wrong, _)| *wrong == 0), "{ends:?}");
    // Not because nothing was taken.
    assert!(ends.iter().all(|(_, taken)| *taken > 0), "{ends:?}");
}

#[test]
fn give_of_another_epoch_or_of_other_pages_or_twice_takes_nothing() {
    let scene = Scene::new();
    let mut hints = Hints::default();
    let batch =
        |start, count| RangeBatch::new(vec![GfnRun::new(Gfn(start), count)]).expect("a batch");
    let give = |hints: &mut Hints, epoch, start, count| {
        let ranges = batch(start, count);
        hints.answer(&scene.vm, &ToHost::Give { epoch, ranges });
        scene.vm.locked()
    };
    let offer = ToHost::Offer(batch(20, 8));
    assert_eq!(give(&mut hints, 0, 20, 8), 0, "nothing was offered");
    hints.answer(&scene.vm, &offer);
    assert_eq!(give(&mut hints, 2, 20, 8), 0, "an epoch that has not begun");
    hints.answer(&scene.vm, &offer);
    assert_eq!(give(&mut hints, 1, 20, 8), 0, "an epoch that is over");
    hints.answer(&scene.vm, &offer);
    assert_eq!(give(&mut hints, 3, 27, 2), 0, "a page that was not wanted");
    hints.answer(&scene.vm, &offer);
    assert_eq!(give(&mut hints, 4, 22, 3), 3);
    assert_eq!(give(&mut hints, 4, 20, 1), 3, "given already");
}

/// The guest writes its workload while the host takes pages out of the map; each page goes to one of them.
#[test]
fn map_gives_no_page_to_both_sides() {
    let scene = Scene::new();
    let (_, capabilities) = choose(&scene.vm, Capabilities::COMMON | Capabilities::BITMAP);
    assert!(capabilities.contains(Capabilities::BITMAP));
    let mut bitmap = Bitmap::new(&scene.vm).expect("memory");
    let words: Arc<dyn Words> = Arc::<crate::sys::SharedWords>::clone(bitmap.map.words());
    scene.kernel.show_free(Arc::clone(&words));
    let mut page = HELD;
    while scene.vm.locked() < 20 {
        scene.write(page, 1);
        page += 1;
        scene.vm.target.set(scene.vm.locked() + 3);
        assert_eq!(bitmap.act(&scene.vm), 3);
    }
    let (taken, _) = scene.kernel.settle_free();
    assert_eq!(u64::from(taken), scene.vm.locked());
    scene.write(page, HELD + MORE - page);
    assert_eq!(scene.wrong(), 0);
    let map = FreeMap::new(words, PAGES);
    assert_eq!(map_words(PAGES), 4);
    let state = |wanted| {
        (0..PAGES)
            .filter(move |gfn| map.state(Gfn(*gfn)) == wanted)
            .count()
    };
    assert_eq!(state(PageState::Taken) as u64, scene.vm.locked());
    scene.kernel.hide_free();
    let (taken, shown) = scene.kernel.settle_free();
    assert_eq!((taken, shown), (0, 0), "all are the guest's again");
}
