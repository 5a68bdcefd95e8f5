use std::collections::BTreeMap;
use std::fs::{File, read_dir};
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::compress::samples;
use crate::swap::faulty::{Fault, FaultyStorage};
use crate::swap::place::bytes;
use crate::sync::model;
use crate::units::Bytes;

/// A file of `slots` slots that can have twice as many; its storage has room for these.
fn faulty(slots: u32) -> (SwapFile, Arc<FaultyStorage>) {
    let storage = Arc::new(FaultyStorage::of(slots, slots));
    let file = SwapFile::over(Arc::new(Arc::clone(&storage)), slots, 2 * slots);
    (file, storage)
}

/// Begins a move to a storage as long as the file, with room for twice as much. The file holds the only
/// reference to what it is given, so that it can be closed.
fn begin_move(file: &SwapFile) -> Arc<FaultyStorage> {
    let len = file.slots.lock().len();
    let storage = Arc::new(FaultyStorage::of(len, len));
    file.begin_move_to(Arc::new(Arc::clone(&storage)));
    storage
}

/// Goes on until the move has ended, and returns the number of steps.
fn finish(file: &SwapFile, pages: u32) -> Result<u32, SwapError> {
    let mut steps = 1;
    while file.step_move(pages)? != Progress::Done {
        steps += 1;
        assert!(steps < 10_000, "the move does not end");
    }
    Ok(steps)
}

fn digests(pages: &[PageBuf]) -> Vec<u64> {
    pages.iter().map(digest).collect()
}

/// Allocates and writes all pages; they must fit in one run.
fn put(file: &SwapFile, pages: &[PageBuf]) -> Result<SlotRun, SwapError> {
    let runs = file.allocate(pages.len() as u32);
    assert_eq!(runs.len(), 1);
    file.write(runs[0], pages, &digests(pages))
        .map(|()| runs[0])
}

fn contents() -> Vec<PageBuf> {
    vec![
        PageBuf::zeroed(),
        samples::text(1),
        samples::code(1),
        samples::random(1),
    ]
}

#[test]
fn read_every_class_of_content_on_disk_returns_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = SwapFile::create(dir.path(), "vm", 64, 64).unwrap();
    assert_eq!(read_dir(dir.path()).unwrap().count(), 0, "it has a name");
    let run = put(&file, &contents()).unwrap();
    let mut page = PageBuf::zeroed();
    for (slot, content) in run.slots().zip(contents()) {
        file.read(slot, &mut page).unwrap();
        assert!(page == content);
    }
    let expected = SwapStats {
        slots: Pages(64),
        used: Pages(4),
        read: Pages(4),
        written: Pages(4),
        clusters: 1,
    };
    assert_eq!(file.stats(), expected);
}

#[test]
fn create_larger_than_the_disk_names_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    match SwapFile::create(dir.path(), "big", u32::MAX, u32::MAX) {
        Err(SwapError::NoSpace {
            vm,
            dir: named,
            len,
            wanted,
            available,
        }) => {
            assert_eq!((vm.as_str(), named.as_path()), ("big", dir.path()));
            assert_eq!((len, wanted), (bytes(u32::MAX), bytes(u32::MAX)));
            assert!(available < wanted);
        }
        other => panic!("16 TiB of swap: {other:?}"),
    }
}

#[test]
fn create_in_a_missing_directory_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let error = SwapFile::create(&missing, "vm", 1, 1).expect_err("no directory");
    assert!(
        error.to_string().contains(missing.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn file_of_no_slots_allocates_nothing_until_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let file = SwapFile::create(dir.path(), "reserved", 0, 8).unwrap();
    assert_eq!(file.allocate(1), []);
    file.resize(4).unwrap();
    let run = put(&file, &contents()).unwrap();
    let mut page = PageBuf::zeroed();
    file.read(SlotId(run.start.0 + 3), &mut page).unwrap();
    assert!(page == contents()[3]);
}

#[test]
fn write_without_room_is_full_and_other_errors_are_not() {
    for (errno, full) in [
        (Errno::ENOSPC, true),
        (Errno::EDQUOT, true),
        (Errno::EFBIG, true),
        (Errno::EIO, false),
    ] {
        let (file, storage) = faulty(8);
        storage.fail_next(Fault::Fail(errno));
        match put(&file, &contents()) {
            Err(SwapError::Full { .. }) => assert!(full, "{errno}"),
            Err(SwapError::Write { .. }) => assert!(!full, "{errno}"),
            other => panic!("{errno}: {other:?}"),
        }
        assert_eq!(file.stats().written, Pages(0));
    }
}

#[test]
fn write_after_a_failed_one_to_the_same_slots_holds() {
    let (file, storage) = faulty(4);
    storage.fail_next(Fault::Fail(Errno::ENOSPC));
    put(&file, &contents()).expect_err("full");
    for slot in 0..4 {
        file.free(SlotId(slot));
    }
    put(&file, &contents()).unwrap();
    let mut page = PageBuf::zeroed();
    file.read(SlotId(3), &mut page).unwrap();
    assert!(page == contents()[3]);
}

#[test]
fn read_of_wrong_bytes_is_corrupt_and_names_the_slot() {
    for at_write in [Some(Fault::Flip(PAGE_SIZE + 77)), Some(Fault::Lost), None] {
        let (file, storage) = faulty(8);
        if let Some(fault) = at_write {
            storage.fail_next(fault);
        }
        let run = put(&file, &contents()).unwrap();
        let text = SlotId(run.start.0 + 1);
        if at_write.is_none() {
            storage.fail_next(Fault::Flip(4095));
        }
        match file.read(text, &mut PageBuf::zeroed()) {
            Err(SwapError::Corrupt {
                slot,
                expected,
                found,
            }) => {
                assert_eq!((slot, expected), (text, digest(&contents()[1])));
                assert_ne!(found, expected);
            }
            other => panic!("{at_write:?}: {other:?}"),
        }
        assert_eq!(file.stats().read, Pages(0));
    }
}

#[test]
fn read_that_fails_names_the_slot() {
    let (file, storage) = faulty(8);
    let run = put(&file, &contents()).unwrap();
    storage.fail_next(Fault::Fail(Errno::EIO));
    let error = file.read(run.start, &mut PageBuf::zeroed());
    assert!(matches!(error, Err(SwapError::Read { slot, .. }) if slot == run.start));
}

#[test]
fn read_of_a_freed_slot_is_not_its_old_page() {
    let (file, _) = faulty(8);
    let run = put(&file, &contents()).unwrap();
    file.free(run.start);
    let error = file.read(run.start, &mut PageBuf::zeroed());
    assert!(matches!(error, Err(SwapError::Corrupt { .. })));
}

#[test]
#[should_panic(expected = "swap slot 2 was freed twice")]
fn free_twice_panics() {
    let (file, _) = faulty(8);
    put(&file, &contents()).unwrap();
    file.free(SlotId(2));
    file.free(SlotId(2));
}

#[test]
fn resize_that_does_not_fit_names_the_sums_and_changes_nothing() {
    let (file, storage) = faulty(4);
    put(&file, &contents()).unwrap();
    for (fault, wanted) in [(None, 5), (Some(Fault::Fail(Errno::ENOSPC)), 4)] {
        if let Some(fault) = fault {
            storage.fail_next(fault);
        }
        let most = SwapFile::over(Arc::new(Arc::clone(&storage)), 4, 9);
        match most.resize(4 + wanted) {
            Err(SwapError::NoSpace {
                len,
                wanted: it,
                available,
                ..
            }) => {
                assert_eq!((len, it), (bytes(4 + wanted), bytes(wanted)));
                assert_eq!(available, bytes(4));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((most.stats().slots, storage.pages()), (Pages(4), 4));
    }
    storage.fail_next(Fault::Fail(Errno::EIO));
    let error = file.resize(5).expect_err("the disk fails");
    assert!(error.to_string().contains("20.0 KiB long"), "{error}");
    assert_eq!(file.stats().slots, Pages(4));
}

#[test]
fn slots_behind_a_lowered_end_stay_readable_and_are_not_given_out_again() {
    let (file, storage) = faulty(8);
    let run = put(&file, &[contents(), contents()].concat()).unwrap();
    (1..6).for_each(|slot| file.free(SlotId(slot)));
    file.resize(4).unwrap();
    assert_eq!(storage.pages(), 8, "the last slot is in use");
    let stats = file.stats();
    assert_eq!((stats.slots, stats.used), (Pages(4), Pages(3)));
    let mut page = PageBuf::zeroed();
    for (slot, content) in run.slots().zip([contents(), contents()].concat()) {
        if [0, 6, 7].contains(&slot.0) {
            file.read(slot, &mut page).unwrap();
            assert!(page == content);
        }
    }
    let more = file.allocate(8);
    assert_eq!(
        more.iter().map(|run| run.len).sum::<u32>(),
        1,
        "3 of 4 are in use"
    );
    assert!(more[0].end() <= 4);
    file.free(SlotId(7));
    file.trim().unwrap();
    assert_eq!(storage.pages(), 7);
    file.free(SlotId(6));
    file.trim().unwrap();
    assert_eq!(storage.pages(), 4);
    file.resize(8).unwrap();
    assert_eq!(storage.pages(), 8);
}

#[test]
fn trim_that_fails_says_so_and_keeps_its_books() {
    let (file, storage) = faulty(8);
    storage.fail_next(Fault::Fail(Errno::EIO));
    assert!(matches!(file.resize(2), Err(SwapError::Resize { .. })));
    assert_eq!((file.stats().slots, storage.pages()), (Pages(2), 8));
    file.trim().unwrap();
    assert_eq!(storage.pages(), 2);
}

#[test]
fn move_between_directories_on_disk_loses_no_page() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = SwapFile::create(from.path(), "vm", 64, 64).unwrap();
    let pages: Vec<_> = (0..60).map(samples::random).collect();
    let run = put(&file, &pages).unwrap();
    (20..30).for_each(|slot| file.free(SlotId(slot)));
    let mut page = PageBuf::zeroed();
    let guests = File::from(file.read_only_fd().unwrap());
    guests.read_exact_at(&mut page.0, 7 * 4096).unwrap();
    assert!(page == pages[7]);
    file.begin_move(to.path()).unwrap();
    file.begin_move(to.path()).unwrap();
    assert_eq!(
        file.step_move(7).unwrap(),
        Progress::Moving { left: Pages(57) }
    );
    assert_eq!(file.dir(), from.path());
    assert_eq!(
        finish(&file, 7).unwrap(),
        7,
        "43 pages are left, and the switch"
    );
    assert_eq!(file.step_move(7).unwrap(), Progress::Idle);
    assert_eq!(file.dir(), to.path());
    assert_eq!(read_dir(to.path()).unwrap().count(), 0, "it has a name");
    let left = guests.metadata().unwrap().len();
    assert_eq!(left, 0, "its space is free, whoever has it open");
    drop(from);
    for (slot, content) in run.slots().zip(&pages) {
        if !(20..30).contains(&slot.0) {
            file.read(slot, &mut page).unwrap();
            assert!(page == *content);
        }
    }
}

#[test]
fn begin_move_that_cannot_be_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = SwapFile::create(dir.path(), "vm", 8, 8).unwrap();
    let run = put(&file, &contents()).unwrap();
    let none = dir.path().join("none");
    assert!(matches!(
        file.begin_move(&none),
        Err(SwapError::Create { .. })
    ));
    match file.begin_move(Path::new("/proc")) {
        Err(SwapError::NoSpace {
            wanted, available, ..
        }) => {
            assert_eq!((wanted, available), (bytes(8), bytes(0)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(file.step_move(8).unwrap(), Progress::Idle);
    assert_eq!(file.dir(), dir.path());
    file.read(run.start, &mut PageBuf::zeroed()).unwrap();
}

#[test]
fn move_back_to_where_the_file_is_ends_a_move() {
    let (file, storage) = faulty(8);
    put(&file, &contents()).unwrap();
    let target = begin_move(&file);
    file.step_move(2).unwrap();
    file.begin_move(&file.dir()).unwrap();
    assert_eq!(Arc::strong_count(&target), 1, "the new file is closed");
    assert_eq!(file.step_move(9).unwrap(), Progress::Idle);
    assert_eq!(Arc::strong_count(&storage), 2);
}

#[test]
fn move_that_meets_a_fault_keeps_the_old_file() {
    // The copy of 4 pages reads them, writes them, and reads them back.
    let eio = Fault::Fail(Errno::EIO);
    let source = [(0, eio), (3, Fault::Flip(9))].map(|fault| (true, fault));
    let target = [
        (0, eio),
        (0, Fault::Fail(Errno::ENOSPC)),
        (0, Fault::Flip(4 * PAGE_SIZE - 1)),
        (0, Fault::Lost),
        (2, eio),
        (4, Fault::Flip(0)),
    ]
    .map(|fault| (false, fault));
    for (at_source, fault) in source.into_iter().chain(target) {
        let old = Arc::new(FaultyStorage::of(8, 0));
        let file = SwapFile::over(Arc::new(Arc::clone(&old)), 8, 8);
        let run = put(&file, &contents()).unwrap();
        let new = Arc::new(FaultyStorage::of(8, 0));
        file.begin_move_to(Arc::new(Arc::clone(&new)));
        let (call, fault) = fault;
        if at_source {
            old.fail_at(old.calls() + call, fault);
        } else {
            new.fail_at(call, fault);
        }
        file.step_move(8).expect_err("it is found");
        assert_eq!(Arc::strong_count(&new), 1, "the new file is closed");
        assert_eq!(file.step_move(8).unwrap(), Progress::Idle);
        let mut page = PageBuf::zeroed();
        for (slot, content) in run.slots().zip(contents()) {
            file.read(slot, &mut page).unwrap();
            assert!(page == content);
        }
    }
}

#[test]
fn page_written_behind_a_move_that_cannot_be_copied_ends_the_move_and_not_the_write() {
    let (file, _) = faulty(8);
    put(&file, &contents()).unwrap();
    let target = begin_move(&file);
    file.step_move(2).unwrap();
    file.free(SlotId(0));
    target.fail_next(Fault::Fail(Errno::ENOSPC));
    let run = put(&file, &contents()[1..2]).unwrap();
    assert_eq!(run.start, SlotId(0));
    let error = file.step_move(2).expect_err("the new disk is full");
    assert!(matches!(error, SwapError::Full { run: it, .. } if it == run));
    let mut page = PageBuf::zeroed();
    file.read(run.start, &mut page).unwrap();
    assert!(page == contents()[1]);
}

#[test]
fn resize_during_a_move_changes_both_files_or_none() {
    let (file, storage) = faulty(8);
    put(&file, &contents()).unwrap();
    let target = Arc::new(FaultyStorage::of(8, 4));
    file.begin_move_to(Arc::new(Arc::clone(&target)));
    file.step_move(2).unwrap();
    assert!(matches!(file.resize(13), Err(SwapError::NoSpace { .. })));
    assert_eq!((storage.pages(), target.pages()), (8, 8));
    file.resize(12).unwrap();
    assert_eq!((storage.pages(), target.pages()), (12, 12));
    file.resize(2).unwrap();
    assert_eq!((storage.pages(), target.pages()), (4, 4));
    finish(&file, 2).unwrap();
    (0..4).for_each(|slot| file.read(SlotId(slot), &mut PageBuf::zeroed()).unwrap());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate(u32),
    Write {
        pick: usize,
        seed: u64,
        fault: Option<Fault>,
        target_fault: Option<Fault>,
    },
    Read(usize),
    Free(usize),
    Resize(u32),
    Trim,
    BeginMove(u32),
    Copy {
        pages: u32,
        fault: Option<Fault>,
        target_fault: Option<Fault>,
    },
}

/// What a call says about itself.
fn honest() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..5 * PAGE_SIZE).prop_map(Fault::Short),
        Just(Fault::Fail(Errno::EIO)),
        Just(Fault::Fail(Errno::ENOSPC)),
        Just(Fault::Fail(Errno::EINTR)),
    ]
}

/// Anything.
fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        1 => honest(),
        1 => (0..PAGE_SIZE).prop_map(Fault::Flip),
        1 => Just(Fault::Lost),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rare = || prop::option::weighted(0.15, honest());
    let write = (any::<usize>(), any::<u64>(), rare(), rare());
    let any_fault = || prop::option::weighted(0.05, fault());
    let step_move = (0..6u32, any_fault(), any_fault());
    let step = prop_oneof![
        4 => (0..6u32).prop_map(Step::Allocate),
        5 => write.prop_map(|(pick, seed, fault, target_fault)| {
            Step::Write { pick, seed, fault, target_fault }
        }),
        3 => any::<usize>().prop_map(Step::Read),
        5 => any::<usize>().prop_map(Step::Free),
        2 => (0..=MAX_SLOTS).prop_map(Step::Resize),
        1 => Just(Step::Trim),
        1 => (0..MAX_SLOTS).prop_map(Step::BeginMove),
        8 => step_move.prop_map(|(pages, fault, target_fault)| {
            Step::Copy { pages, fault, target_fault }
        }),
    ];
    prop::collection::vec(step, 0..120)
}

const MAX_SLOTS: u32 = 32;

/// A file, its storages, and what it should hold.
struct World {
    file: SwapFile,
    current: Arc<FaultyStorage>,
    target: Option<Arc<FaultyStorage>>,
    limit: u32,
    pages: BTreeMap<SlotId, PageBuf>,
    /// Allocated, not written yet.
    claimed: Vec<SlotRun>,
    moves: u32,
}

impl World {
    fn new() -> Self {
        let current = Arc::new(FaultyStorage::of(16, 8));
        Self {
            file: SwapFile::over(Arc::new(Arc::clone(&current)), 16, MAX_SLOTS),
            current,
            target: None,
            limit: 16,
            pages: BTreeMap::new(),
            claimed: Vec::new(),
            moves: 0,
        }
    }

    fn used(&self) -> u32 {
        let claimed: u32 = self.claimed.iter().map(|run| run.len).sum();
        self.pages.len() as u32 + claimed
    }

    /// The number behind the last slot in use.
    fn end(&self) -> u32 {
        let claimed = self.claimed.iter().map(|run| run.end()).max();
        let written = self.pages.keys().next_back().map(|slot| slot.0 + 1);
        claimed.max(written).unwrap_or(0)
    }

    fn pick(&self, at: usize) -> Option<SlotId> {
        self.pages.keys().copied().nth(at % self.pages.len().max(1))
    }

    fn inject(&self, fault: Option<Fault>, target_fault: Option<Fault>) {
        let target = self.target.iter().zip(target_fault);
        fault
            .into_iter()
            .for_each(|fault| self.current.fail_next(fault));
        target.for_each(|(target, fault)| target.fail_next(fault));
    }

    fn heal(&self) {
        self.current.heal();
        self.target.iter().for_each(|target| target.heal());
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Allocate(count) => self.allocate(count),
            Step::Write {
                pick,
                seed,
                fault,
                target_fault,
            } => {
                self.inject(fault, target_fault);
                self.write(pick, seed);
            }
            Step::Read(at) => self.pick(at).into_iter().for_each(|slot| self.read(slot)),
            Step::Free(at) => {
                if let Some(slot) = self.pick(at) {
                    self.file.free(slot);
                    self.pages.remove(&slot);
                }
            }
            Step::Resize(slots) => self.resize(slots),
            Step::Trim => {
                self.file.trim().unwrap();
                assert_eq!(self.current.pages(), self.end().max(self.limit));
            }
            Step::BeginMove(available) => {
                let len = self.current.pages();
                let target = Arc::new(FaultyStorage::of(len, available));
                self.file.begin_move_to(Arc::new(Arc::clone(&target)));
                self.target = Some(target);
            }
            Step::Copy {
                pages,
                fault,
                target_fault,
            } => {
                self.inject(fault, target_fault);
                self.step_move(pages);
            }
        }
        self.heal();
        let stats = self.file.stats();
        assert_eq!(stats.used, Pages(u64::from(self.used())));
        assert_eq!(stats.slots, Pages(u64::from(self.limit)));
        assert!(self.current.pages() >= self.end().max(self.limit));
    }

    fn allocate(&mut self, count: u32) {
        let expected = count.min(self.limit.saturating_sub(self.used()));
        let runs = self.file.allocate(count);
        assert_eq!(runs.iter().map(|run| run.len).sum::<u32>(), expected);
        for run in runs {
            assert!(run.end() <= self.limit);
            for slot in run.slots() {
                let taken = self.pages.contains_key(&slot);
                let claimed = self.claimed.iter().flat_map(|run| run.slots());
                assert!(!taken && !claimed.into_iter().any(|it| it == slot));
            }
            self.claimed.push(run);
        }
    }

    fn write(&mut self, pick: usize, seed: u64) {
        if self.claimed.is_empty() {
            return;
        }
        let run = self.claimed.swap_remove(pick % self.claimed.len());
        let seeds = (seed..).take(run.len as usize);
        let pages: Vec<_> = seeds.map(samples::random).collect();
        match self.file.write(run, &pages, &digests(&pages)) {
            Ok(()) => self.pages.extend(run.slots().zip(pages)),
            Err(_) => run.slots().for_each(|slot| self.file.free(slot)),
        }
    }

    fn read(&self, slot: SlotId) {
        let mut page = PageBuf::zeroed();
        self.file.read(slot, &mut page).unwrap();
        assert!(page == self.pages[&slot]);
    }

    fn resize(&mut self, slots: u32) {
        let before = self.current.pages();
        match self.file.resize(slots) {
            Ok(()) => self.limit = slots,
            Err(SwapError::NoSpace { .. }) => {
                assert!(slots > before);
                let target = self.target.iter().map(|target| target.pages());
                assert!(
                    target
                        .chain([self.current.pages()])
                        .all(|len| len == before)
                );
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn step_move(&mut self, pages: u32) {
        match self.file.step_move(pages) {
            Ok(Progress::Moving { .. }) => assert!(self.target.is_some()),
            Ok(Progress::Idle) => assert!(self.target.is_none()),
            Ok(Progress::Done) => {
                assert_eq!(
                    Arc::strong_count(&self.current),
                    1,
                    "the old file is closed"
                );
                self.current = self.target.take().expect("there was a move");
                self.moves += 1;
            }
            Err(_) => {
                let target = self.target.take().expect("there was a move");
                assert_eq!(Arc::strong_count(&target), 1, "the new file is closed");
            }
        }
    }

    fn end_of_all(mut self) -> u32 {
        while self.target.is_some() {
            self.step_move(MAX_SLOTS);
        }
        self.pages.keys().for_each(|slot| self.read(*slot));
        let claimed = self.claimed.iter().flat_map(|run| run.slots());
        claimed
            .chain(self.pages.keys().copied())
            .for_each(|slot| self.file.free(slot));
        self.file.resize(0).unwrap();
        assert_eq!(
            (self.current.pages(), self.file.stats().used),
            (0, Pages(0))
        );
        self.moves
    }
}

/// Against a map of slots to pages: slots that come and go while the file grows, shrinks and moves
/// over disks that fail at any call.
#[test]
fn file_any_steps_agree_with_the_model() {
    let moves = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(96)
    });
    let result = runner.run(&steps(), |steps| {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        moves.set(moves.get() + world.end_of_all());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(moves.get() > 96, "only {} moves ended well", moves.get());
}

/// A storage that only the task which made it may close.
#[derive(Debug)]
struct ClosedBy(Arc<FaultyStorage>, shuttle::thread::ThreadId);

impl Drop for ClosedBy {
    fn drop(&mut self) {
        let here = shuttle::thread::current().id();
        assert!(
            here == self.1 || std::thread::panicking(),
            "closed by a reader"
        );
    }
}

impl Storage for ClosedBy {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        self.0.write_at(pages, offset)
    }
    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        self.0.read_at(pages, offset)
    }
    fn read_only(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.0.read_only()
    }
    fn available(&self) -> io::Result<Bytes> {
        self.0.available()
    }
    fn extend(&self, from: Bytes, to: Bytes) -> io::Result<()> {
        self.0.extend(from, to)
    }
    fn truncate(&self, len: Bytes) -> io::Result<()> {
        self.0.truncate(len)
    }
}

/// An entry of a page table: the slot and the content of a page that is swapped out.
type Entry = Mutex<Option<(SlotId, u8)>>;

/// As a fault does it: with its page locked, read, then free.
fn refill(file: &SwapFile, entry: &Entry) {
    let mut entry = entry.lock();
    if let Some((slot, byte)) = *entry {
        let mut page = PageBuf::zeroed();
        file.read(slot, &mut page).unwrap();
        assert!(page.0 == [byte; PAGE_SIZE], "{slot:?}");
        file.free(slot);
        *entry = None;
    }
}

/// As a worker does it: with the page locked, allocate, write, name the slot.
fn evict(file: &SwapFile, entry: &Entry, byte: u8) {
    let mut entry = entry.lock();
    if entry.is_none()
        && let Some(run) = file.allocate(1).first()
    {
        let page = vec![PageBuf([byte; PAGE_SIZE])];
        file.write(*run, &page, &digests(&page)).unwrap();
        *entry = Some((run.start, byte));
    }
}

/// A fault thread reads and frees pages while the worker writes others, moves the file, shortens it
/// and lets it grow: every read has the page's bytes, and no reader closes a file.
#[test]
fn readers_during_a_move_see_every_page_and_close_no_file() {
    model(1_000, || {
        let here = shuttle::thread::current().id();
        let storage = |len| {
            let storage = Arc::new(FaultyStorage::of(len, 8));
            Arc::new(ClosedBy(storage, here)) as Arc<dyn Storage>
        };
        let file = Arc::new(SwapFile::over(storage(4), 4, 4));
        let entries: Arc<[Entry; 4]> = Arc::default();
        (0..3).for_each(|at| evict(&file, &entries[at], at as u8 + 1));
        let reader = shuttle::thread::spawn({
            let (file, entries) = (Arc::clone(&file), Arc::clone(&entries));
            move || {
                for at in [2, 0, 3, 1, 0] {
                    refill(&file, &entries[at]);
                }
            }
        });
        file.begin_move_to(storage(4));
        let mut byte = 10;
        let mut steps = 0;
        while file.step_move(1).unwrap() != Progress::Done {
            evict(&file, &entries[byte as usize % 4], byte);
            byte += 1;
            steps += 1;
            match steps {
                1 => file.resize(3).unwrap(),
                2 => file.resize(4).unwrap(),
                _ => file.trim().unwrap(),
            }
            shuttle::thread::yield_now();
        }
        evict(&file, &entries[0], 99);
        reader.join().expect("the task ends");
        entries.iter().for_each(|entry| refill(&file, entry));
        assert_eq!(file.stats().used, Pages(0));
    });
}

/// Two writers and their own readers race for few slots: nobody is given a slot that somebody
/// else holds, so everybody reads what it wrote.
#[test]
fn tasks_that_race_for_slots_read_their_own_pages() {
    model(300, || {
        let (file, _) = faulty(3);
        let file = Arc::new(file);
        let tasks = [1, 2].map(|byte| {
            let file = Arc::clone(&file);
            shuttle::thread::spawn(move || {
                let pages = vec![PageBuf([byte; PAGE_SIZE]); 2];
                for run in file.allocate(2) {
                    let pages = &pages[..run.len as usize];
                    file.write(run, pages, &digests(pages)).unwrap();
                    for slot in run.slots() {
                        let mut page = PageBuf::zeroed();
                        file.read(slot, &mut page).unwrap();
                        assert!(page == pages[0]);
                        file.free(slot);
                    }
                }
            })
        });
        for task in tasks {
            task.join().expect("the task ends");
        }
        assert_eq!(file.stats().used, Pages(0));
    });
}
