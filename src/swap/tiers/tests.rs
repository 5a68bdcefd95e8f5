use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::digest::digest;
use crate::swap::faulty::FaultyStorage;
use crate::swap::{HostCache, Trouble};
use crate::units::PAGE_SIZE;

/// Slots that either file can have at most.
const SLOTS: u32 = 40;

/// Both stores on disks that fail when told to, and what must be in each slot.
struct Model {
    host: Arc<HostCache>,
    disks: [Arc<FaultyStorage>; 2],
    tiers: Tiers,
    held: HashMap<SlotId, (Gfn, PageBuf)>,
    written: u32,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Swaps pages out: to the cache, and what it does not take to the file.
    Store(u32),
    Free(usize),
    Demote(u32),
    Cap(u32),
    Size(u64),
    /// Slots that may be in use, as a reservation changes.
    Limit(u32),
    Fail(usize, Option<Errno>),
    /// The cache is tried again.
    TryAgain,
    Fit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let errno = prop::sample::select(vec![None, Some(Errno::EIO), Some(Errno::ENOSPC)]);
    let step = prop_oneof![
        6 => (1..12u32).prop_map(Step::Store),
        9 => any::<usize>().prop_map(Step::Free),
        5 => (1..12u32).prop_map(Step::Demote),
        1 => prop::sample::select(vec![0, 5, 20, u32::MAX]).prop_map(Step::Cap),
        1 => (0..60u64).prop_map(Step::Size),
        1 => (0..=SLOTS).prop_map(Step::Limit),
        1 => (0..2usize, errno).prop_map(|(disk, errno)| Step::Fail(disk, errno)),
        1 => Just(Step::TryAgain),
        2 => Just(Step::Fit),
    ];
    prop::collection::vec(step, 1..200)
}

fn page(number: u32) -> PageBuf {
    PageBuf(std::array::from_fn(|at| (number >> (at % 4 * 8)) as u8))
}

impl Model {
    fn new(size: u64) -> Self {
        let host = Arc::new(HostCache::new(Path::new("cache")));
        host.set_size(Pages(size));
        let disks = [
            FaultyStorage::of(SLOTS, u32::MAX),
            FaultyStorage::of(0, u32::MAX),
        ]
        .map(Arc::new);
        let [file, cache] = disks.each_ref().map(|disk| Arc::new(Arc::clone(disk)));
        let tiers = Tiers {
            file: SwapFile::over(file, SLOTS, SLOTS),
            cache: Some(CacheFile::over(&host, cache, SLOTS)),
        };
        Self {
            host,
            disks,
            tiers,
            held: HashMap::new(),
            written: 0,
        }
    }

    fn cache(&self) -> &CacheFile {
        self.tiers.cache.as_ref().expect("it was made with one")
    }

    fn cached(&self) -> u64 {
        self.cache().stats().used.0
    }

    /// Swaps `count` new pages out, and returns the slots of those that were taken.
    fn store(&mut self, count: u32) -> Vec<SlotId> {
        let first = self.written;
        self.written += count;
        let gfns: Vec<Gfn> = (first..self.written).map(Gfn).collect();
        let pages: Vec<PageBuf> = gfns.iter().map(|gfn| page(gfn.0)).collect();
        let digests: Vec<u64> = pages.iter().map(digest).collect();
        let room = self.tiers.room();
        let (mut slots, _) = self.tiers.store_cached(&gfns, &pages, &digests);
        assert!(slots.iter().all(|slot| slot.is_cached()));
        let mut at = slots.len();
        let known = |slots: &[SlotId], from: usize| {
            let pages = (from..).map(|at| (gfns[at], pages[at].clone()));
            slots.iter().copied().zip(pages).collect::<Vec<_>>()
        };
        self.held.extend(known(&slots, 0));
        for run in self.tiers.allocate(count - at as u32) {
            let range = at..at + run.len as usize;
            at = range.end;
            let written =
                self.tiers
                    .file
                    .write(run, &pages[range.clone()], &digests[range.clone()]);
            let run: Vec<SlotId> = run.slots().collect();
            if written.is_err() {
                run.iter().for_each(|slot| self.tiers.free(*slot));
                continue;
            }
            self.held.extend(known(&run, range.start));
            slots.extend(run);
        }
        assert!(slots.len() as u64 <= room.0, "no more than may be swapped");
        slots
    }

    fn free(&mut self, slot: SlotId) {
        self.held.remove(&slot).expect("it is held");
        self.tiers.free(slot);
    }

    /// Moves up to `most` pages on, as the worker does; the pages that were to leave.
    fn demote(&mut self, most: u32) -> Vec<Gfn> {
        let victims = self.cache().victims(most);
        let mut stuck = Vec::new();
        for victim in &victims {
            let (gfn, page) = self.held[&victim.slot].clone();
            assert_eq!(gfn, victim.gfn);
            let mut read = PageBuf::zeroed();
            let one = |start| SlotRun { start, len: 1 };
            let slot = one(victim.slot);
            self.cache()
                .read_held(slot, from_mut(&mut read))
                .expect("the disk reads");
            assert!(read == page, "{gfn} is as it was written");
            let [to] = *self.tiers.file.allocate(1) else {
                stuck.push(*victim);
                continue;
            };
            let digests = [digest(&read)];
            match self.tiers.file.write(to, &[read], &digests) {
                Ok(()) => {
                    self.free(victim.slot);
                    self.held.insert(to.start, (gfn, page));
                }
                Err(_) => {
                    self.tiers.free(to.start);
                    stuck.push(*victim);
                }
            }
        }
        self.cache().renew(&stuck);
        victims.iter().map(|victim| victim.gfn).collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Store(count) => drop(self.store(count)),
            Step::Free(pick) => {
                let mut slots: Vec<SlotId> = self.held.keys().copied().collect();
                slots.sort_unstable();
                if !slots.is_empty() {
                    self.free(slots[pick % slots.len()]);
                }
            }
            Step::Demote(most) => drop(self.demote(most)),
            Step::Cap(slots) => self.cache().set_cap(slots),
            Step::Size(pages) => self.host.set_size(Pages(pages)),
            Step::Limit(slots) => self.tiers.file.resize(slots).expect("a disk with room"),
            Step::Fail(disk, errno) => self.disks[disk].set_failing(errno),
            Step::TryAgain => self.cache().set_trouble(Trouble::None),
            Step::Fit => self.cache().fit().expect("the disk is cut"),
        }
    }

    fn check(&self) {
        for (slot, (gfn, page)) in &self.held {
            let mut read = PageBuf::zeroed();
            self.tiers.read(*slot, &mut read).expect("nothing is lost");
            assert!(read == *page, "{gfn} in {slot:?}");
        }
        assert_eq!(self.tiers.used().0, self.held.len() as u64);
        let cached = self.held.keys().filter(|slot| slot.is_cached());
        assert_eq!(self.cached(), cached.count() as u64);
        let len = self.cache().len();
        assert_eq!(self.host.taken().0, u64::from(len));
        assert_eq!(self.disks[1].pages(), len, "as long as it says");
    }
}

proptest! {
    /// Whatever fails, fills or changes its size: each page reads as it was written, and what is taken of the host's
    /// bound is what the file has.
    #[test]
    fn tiers_any_steps_lose_no_page(size in 0..40u64, steps in steps()) {
        let mut model = Model::new(size);
        for step in steps {
            model.step(step);
            model.check();
        }
        // Where both disks work and every page has a place, all can leave the cache.
        model.disks.iter().for_each(|disk| disk.set_failing(None));
        model.tiers.file.resize(SLOTS).expect("a disk with room");
        model.host.set_size(Pages(0));
        model.cache().fit().expect("the disk is cut");
        while !model.demote(SLOTS).is_empty() {
            model.cache().fit().expect("the disk is cut");
        }
        model.check();
        prop_assert_eq!((model.cached(), model.host.taken()), (0, Pages(0)));
    }
}

#[test]
fn pages_go_to_the_cache_until_it_is_full_and_the_oldest_leave_first() {
    let mut model = Model::new(16);
    let slots = model.store(20);
    let cached: Vec<bool> = slots.iter().map(|slot| slot.is_cached()).collect();
    assert_eq!(cached, [[true; 16].as_slice(), &[false; 4]].concat());
    // The second page comes back to its guest, so it is not there to be demoted.
    model.free(slots[1]);
    assert_eq!(model.demote(10), [Gfn(0)], "an eighth is kept free");
    assert_eq!(model.demote(10), []);
    let again = model.store(3);
    assert_eq!(again.iter().filter(|slot| slot.is_cached()).count(), 2);
    assert_eq!(model.demote(10), [Gfn(2), Gfn(3)]);
    model.check();
}

#[test]
fn cache_adds_no_room_to_what_may_be_swapped() {
    let mut model = Model::new(16);
    model.tiers.file.resize(10).expect("a shorter file");
    assert_eq!(model.store(20).len(), 10);
    assert_eq!(model.tiers.room(), Pages(0));
    assert_eq!(model.cached(), 10);
    model.host.set_size(Pages(0));
    model.cache().fit().expect("the disk is cut");
    assert_eq!(
        model.demote(SLOTS).len(),
        10,
        "each page has its place in the file"
    );
    assert_eq!((model.cached(), model.held.len()), (0, 10));
    model.check();
}

#[test]
fn cache_on_a_full_disk_takes_what_it_has_room_for() {
    let mut model = Model::new(16);
    let disk = Arc::new(FaultyStorage::of(0, 5));
    let cache = Arc::new(Arc::clone(&disk));
    model.tiers.cache = Some(CacheFile::over(&model.host, cache, SLOTS));
    let pages = vec![page(1); 3];
    let digests = vec![digest(&pages[0]); 3];
    let gfns = [Gfn(0), Gfn(1), Gfn(2)];
    let (slots, result) = model.tiers.store_cached(&gfns, &pages, &digests);
    let error = result.expect_err("16 slots do not fit");
    assert!(matches!(error, SwapError::Cache { .. }), "{error:?}");
    assert_eq!((slots.len(), model.host.taken()), (0, Pages(0)));
    assert_eq!(model.cache().trouble(), Trouble::Full);
    assert!(!model.tiers.takes_cached());
    model.cache().set_trouble(Trouble::None);
    model.cache().set_cap(4);
    let (slots, result) = model.tiers.store_cached(&gfns, &pages, &digests);
    result.expect("4 slots fit");
    assert_eq!((slots.len(), model.host.taken()), (3, Pages(4)));
}

#[test]
fn cache_that_fails_gives_what_it_has_to_the_file_and_is_tried_again() {
    let mut model = Model::new(16);
    model.store(8);
    model.disks[1].set_failing(Some(Errno::EIO));
    let slots = model.store(4);
    assert_eq!(
        (slots.len(), slots.iter().any(|slot| slot.is_cached())),
        (4, false)
    );
    assert_eq!(model.cache().trouble(), Trouble::Failing);
    model.disks[1].set_failing(None);
    assert!(
        model.store(1).iter().all(|slot| !slot.is_cached()),
        "not before it is tried again"
    );
    model.cache().fit().expect("the disk is cut");
    assert_eq!(model.demote(SLOTS).len(), 8);
    model.cache().fit().expect("the disk is cut");
    assert_eq!(model.host.taken(), Pages(0));
    model.cache().set_trouble(Trouble::None);
    assert!(model.store(1)[0].is_cached());
    model.check();
}

#[test]
fn damaged_page_of_the_cache_is_no_page_and_the_error_says_where() {
    let mut model = Model::new(16);
    let slots = model.store(2);
    model.disks[1].damage(slots[0].in_file());
    let mut read = PageBuf([0; PAGE_SIZE]);
    let error = model.tiers.read(slots[0], &mut read).expect_err("damaged");
    let SwapError::Cache { dir, source } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(dir, Path::new("cache"));
    assert!(matches!(**source, SwapError::Corrupt { .. }), "{source}");
    model.tiers.read(slots[1], &mut read).expect("whole");
}
