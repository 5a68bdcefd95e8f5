//! The swap file of one VM.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::slots::{FreeSlots, SlotRun};
use super::storage::{Storage, read_whole, write_whole};
use crate::digest::digest;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::sys::{DirectFile, Filesystem};
use crate::units::{Bytes, PAGE_SIZE, PageBuf, Pages, SlotId};

/// What can go wrong with a swap file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SwapError {
    /// The file could not be made.
    #[error("VM `{vm}`: cannot create a swap file in {}", dir.display())]
    Create {
        /// The VM it was for.
        vm: String,
        /// Where it was to be.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The disk has not enough room for the whole file: the VM cannot be powered on.
    #[error(
        "VM `{vm}`: a swap file of {wanted} does not fit into {}, which has {available} available",
        dir.display()
    )]
    NoSpace {
        /// The VM it was for.
        vm: String,
        /// Where it was to be.
        dir: PathBuf,
        /// The length of the file: configured memory - reservation.
        wanted: Bytes,
        /// What the filesystem had left.
        available: Bytes,
    },
    /// A write found the disk, the quota or the file at its limit. The pages stay where they were;
    /// trying again helps only after room was made.
    #[error("swap slots {run}: no room on the disk")]
    Full {
        /// What was being written.
        run: SlotRun,
        /// What the kernel said.
        source: io::Error,
    },
    /// A write failed. The pages stay where they were.
    #[error("swap slots {run}: write failed")]
    Write {
        /// What was being written.
        run: SlotRun,
        /// What the kernel said.
        source: io::Error,
    },
    /// A read failed: the page cannot be had.
    #[error("swap slot {}: read failed", slot.0)]
    Read {
        /// What was being read.
        slot: SlotId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The disk returned other bytes than were written, or the slot was never written or is free.
    #[error("swap slot {} is corrupt: its digest is {found:#018x}, not {expected:#018x}", slot.0)]
    Corrupt {
        /// What was being read.
        slot: SlotId,
        /// The digest of what was written.
        expected: u64,
        /// The digest of what came back.
        found: u64,
    },
}

/// What a swap file holds and did. The parts are read one after the other, not in one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SwapStats {
    /// Slots in all.
    pub slots: Pages,
    /// Slots that are allocated.
    pub used: Pages,
    /// Pages read and verified since power-on.
    pub read: Pages,
    /// Pages written since power-on.
    pub written: Pages,
    /// Clusters written since power-on; `written / clusters` is the mean length of a write.
    pub clusters: u64,
}

/// The swapped pages of one VM.
#[derive(Debug)]
pub struct SwapFile {
    storage: Box<dyn Storage>,
    free: Mutex<FreeSlots>,
    /// The digest of each slot's page. Relaxed is enough: who reads a slot learnt of it from the
    /// page table, whose entry was published after the digest.
    digests: Box<[AtomicU64]>,
    read: AtomicU64,
    written: AtomicU64,
    clusters: AtomicU64,
}

impl SwapFile {
    /// Creates the file of `slots` pages for the VM `vm` in `dir`, without a name.
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] when it does not fit, else [`SwapError::Create`].
    pub fn create(dir: &Path, vm: &str, slots: u32) -> Result<Self, SwapError> {
        let wanted = Pages(u64::from(slots)).bytes();
        let failed = |source| SwapError::Create {
            vm: vm.to_owned(),
            dir: dir.to_owned(),
            source,
        };
        let no_space = |available| SwapError::NoSpace {
            vm: vm.to_owned(),
            dir: dir.to_owned(),
            wanted,
            available,
        };
        // Asked first, because a reservation that fails has filled the disk for a moment.
        let available = Filesystem::of(dir).map_err(failed)?.available;
        if wanted > available {
            return Err(no_space(available));
        }
        let file = DirectFile::create(dir, wanted).map_err(|error| {
            if is_full(&error) {
                no_space(available)
            } else {
                failed(error)
            }
        })?;
        Ok(Self::over(Box::new(file), slots))
    }

    /// A swap file of `slots` pages on any storage.
    #[must_use]
    pub fn over(storage: Box<dyn Storage>, slots: u32) -> Self {
        Self {
            storage,
            free: Mutex::new(FreeSlots::new(slots)),
            digests: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            clusters: AtomicU64::new(0),
        }
    }

    /// Allocates `count` slots in as few runs as possible; fewer when fewer are free.
    #[must_use]
    pub fn allocate(&self, count: u32) -> Vec<SlotRun> {
        self.free.lock().take(count)
    }

    /// Writes one page to each slot of an allocated run, in one call to the storage. `digests` are
    /// those of the pages as the caller took them from the guest.
    ///
    /// After an error the slots hold nothing; the caller frees them and keeps the pages.
    ///
    /// # Errors
    /// [`SwapError::Full`] or [`SwapError::Write`].
    ///
    /// # Panics
    /// When the run, the pages and the digests are not equally many.
    pub fn write(&self, run: SlotRun, pages: &[PageBuf], digests: &[u64]) -> Result<(), SwapError> {
        let counts = (run.len as usize, digests.len());
        assert_eq!(
            counts,
            (pages.len(), pages.len()),
            "a page and a digest a slot"
        );
        write_whole(&*self.storage, pages, offset(run.start)).map_err(|source| {
            if is_full(&source) {
                SwapError::Full { run, source }
            } else {
                SwapError::Write { run, source }
            }
        })?;
        for (slot, &digest) in run.slots().zip(digests) {
            self.digest_of(slot).store(digest, Ordering::Relaxed);
        }
        self.written
            .fetch_add(u64::from(run.len), Ordering::Relaxed);
        self.clusters.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads a slot back and verifies it. What `into` holds after an error means nothing.
    ///
    /// # Errors
    /// [`SwapError::Read`] or [`SwapError::Corrupt`]: the page is lost.
    pub fn read(&self, slot: SlotId, into: &mut PageBuf) -> Result<(), SwapError> {
        let failed = |source| SwapError::Read { slot, source };
        read_whole(&*self.storage, into, offset(slot)).map_err(failed)?;
        let expected = self.digest_of(slot).load(Ordering::Relaxed);
        let found = digest(into);
        if found != expected {
            return Err(SwapError::Corrupt {
                slot,
                expected,
                found,
            });
        }
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Frees a slot.
    ///
    /// # Panics
    /// When it is free already: the page table named one slot twice.
    pub fn free(&self, slot: SlotId) {
        // Inverted, so that a read of a freed slot is an error and not the page that was there.
        let digest = self.digest_of(slot);
        digest.store(!digest.load(Ordering::Relaxed), Ordering::Relaxed);
        let freed = self.free.lock().give(slot);
        assert!(freed, "swap slot {} was freed twice", slot.0);
    }

    /// What the file holds and did.
    #[must_use]
    pub fn stats(&self) -> SwapStats {
        let slots = self.digests.len() as u64;
        let free = u64::from(self.free.lock().len());
        SwapStats {
            slots: Pages(slots),
            used: Pages(slots - free),
            read: Pages(self.read.load(Ordering::Relaxed)),
            written: Pages(self.written.load(Ordering::Relaxed)),
            clusters: self.clusters.load(Ordering::Relaxed),
        }
    }

    fn digest_of(&self, slot: SlotId) -> &AtomicU64 {
        let slots = self.digests.len();
        let digest = self.digests.get(slot.0 as usize);
        digest.unwrap_or_else(|| panic!("swap slot {} of a file of {slots} slots", slot.0))
    }
}

fn offset(slot: SlotId) -> u64 {
    u64::from(slot.0) * PAGE_SIZE as u64
}

/// Whether a write failed for want of room, which is no fault of the disk.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::read_dir;
    use std::sync::Arc;

    use nix::errno::Errno;
    use proptest::prelude::*;

    use super::*;
    use crate::compress::samples;
    use crate::swap::faulty::{Fault, FaultyStorage};
    use crate::sync::model;

    impl Storage for Arc<FaultyStorage> {
        fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
            (**self).write_at(pages, offset)
        }

        fn read_at(&self, page: &mut PageBuf, offset: u64) -> io::Result<usize> {
            (**self).read_at(page, offset)
        }
    }

    fn faulty(slots: u32) -> (SwapFile, Arc<FaultyStorage>) {
        let storage = Arc::new(FaultyStorage::default());
        (
            SwapFile::over(Box::new(Arc::clone(&storage)), slots),
            storage,
        )
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
        let file = SwapFile::create(dir.path(), "vm", 64).unwrap();
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
        match SwapFile::create(dir.path(), "big", u32::MAX) {
            Err(SwapError::NoSpace {
                vm,
                dir: named,
                wanted,
                available,
            }) => {
                assert_eq!((vm.as_str(), named.as_path()), ("big", dir.path()));
                assert_eq!(wanted, Pages(u64::from(u32::MAX)).bytes());
                assert!(available < wanted);
            }
            other => panic!("16 TiB of swap: {other:?}"),
        }
    }

    #[test]
    fn create_in_a_missing_directory_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        let error = SwapFile::create(&missing, "vm", 1).expect_err("no directory");
        assert!(
            error.to_string().contains(missing.to_str().unwrap()),
            "{error}"
        );
    }

    #[test]
    fn file_of_no_slots_allocates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = SwapFile::create(dir.path(), "reserved", 0).unwrap();
        assert_eq!(file.allocate(1), []);
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

    #[derive(Clone, Debug)]
    enum Step {
        Write {
            count: u32,
            seed: u64,
            fault: Option<usize>,
        },
        Read(usize),
        Free(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let fault = prop::option::weighted(0.3, 0..5 * PAGE_SIZE);
        let write = (0..6u32, any::<u64>(), fault);
        let step = prop_oneof![
            1 => write.prop_map(|(count, seed, fault)| Step::Write { count, seed, fault }),
            1 => any::<usize>().prop_map(Step::Read),
            2 => any::<usize>().prop_map(Step::Free),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against a map of slots to pages, with writes that are cut short anywhere.
        #[test]
        fn file_any_steps_agree_with_the_model(steps in steps()) {
            const SLOTS: u32 = 24;
            let (file, storage) = faulty(SLOTS);
            let mut model: HashMap<SlotId, PageBuf> = HashMap::new();
            for step in steps {
                let pick = |at: usize| model.keys().copied().nth(at % model.len().max(1));
                match step {
                    Step::Write { count, seed, fault } => {
                        let mut seeds = seed..;
                        let mut taken = 0;
                        for run in file.allocate(count) {
                            let pages: Vec<_> =
                                seeds.by_ref().take(run.len as usize).map(samples::random).collect();
                            if let Some(len) = fault {
                                storage.fail_next(Fault::Short(len));
                            }
                            file.write(run, &pages, &digests(&pages)).unwrap();
                            for (slot, page) in run.slots().zip(pages) {
                                prop_assert!(model.insert(slot, page).is_none(), "given twice");
                                taken += 1;
                            }
                        }
                        let room = SLOTS - (model.len() as u32 - taken);
                        prop_assert_eq!(taken, count.min(room));
                    }
                    Step::Read(at) => {
                        if let Some(slot) = pick(at) {
                            let mut page = PageBuf::zeroed();
                            file.read(slot, &mut page).unwrap();
                            prop_assert!(page == model[&slot]);
                        }
                    }
                    Step::Free(at) => {
                        if let Some(slot) = pick(at) {
                            file.free(slot);
                            model.remove(&slot);
                        }
                    }
                }
                prop_assert_eq!(file.stats().used, Pages(model.len() as u64));
            }
        }
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
}
