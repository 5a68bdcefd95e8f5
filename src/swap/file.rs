//! The swap file of one VM.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::slice::from_mut;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::error::SwapError;
use super::moving::{Moving, Progress};
use super::place::Place;
use super::slots::{SlotRun, Slots};
use super::storage::{Storage, read_whole, write_whole};
use crate::digest::digest;
use crate::sync::{AtomicU64, Mutex, Ordering, zeroes};
use crate::units::{PAGE_SIZE, PageBuf, Pages, SlotId};

/// The digest of a slot that holds no page: the zero with which [`zeroes`] fills tables. A page that has this digest is
/// given [`ZERO`] instead.
const EMPTY: u64 = 0;
const ZERO: u64 = 1;

/// What a swap file holds and has done. The parts are read one after the other, not in one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SwapStats {
    /// Slots that may be in use.
    pub slots: Pages,
    /// Slots that are allocated; for a while more than `slots`, after `slots` has fallen.
    pub used: Pages,
    /// Pages read and verified for the guest since power-on.
    pub read: Pages,
    /// Pages written since power-on, not counting those that were copied to another directory.
    pub written: Pages,
    /// Clusters written since power-on; `written / clusters` is the mean length of a write.
    pub clusters: u64,
}

/// The swapped pages of one VM.
#[derive(Debug)]
pub struct SwapFile {
    pub(super) vm: String,
    /// The file in use. Readers take a reference and read without the lock.
    pub(super) place: Mutex<Place>,
    pub(super) slots: Mutex<Slots>,
    /// Held across each write by whoever writes: the copying of a move, the writes of pages and changes of
    /// the length must not overlap. No reader takes it.
    pub(super) writer: Mutex<Moving>,
    /// The digest of each slot's page, or [`EMPTY`]. Relaxed is enough: whoever reads a slot has learnt of
    /// it from the page table, whose entry was published after the digest.
    pub(super) digests: Box<[AtomicU64]>,
    read: AtomicU64,
    written: AtomicU64,
    clusters: AtomicU64,
    /// For how long each read and write waits, in microseconds.
    delay: AtomicU64,
    /// Whether its disk space is kept for the next power-on.
    pub(super) is_kept: AtomicBool,
}

impl SwapFile {
    /// Creates the file of `slots` pages for the VM `vm` in `dir`, without a name. It can be
    /// [resized](Self::resize) to at most `max_slots`, for each of which 8 bytes of memory are set aside.
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] when the file does not fit, [`SwapError::Digests`] when there is no memory for the
    /// digests, else [`SwapError::Create`].
    pub fn create(dir: &Path, vm: &str, slots: u32, max_slots: u32) -> Result<Self, SwapError> {
        let place = Place::create(dir, vm, slots)?;
        Self::at(place, vm, slots, max_slots)
    }

    /// A swap file of `slots` pages on any storage of this length.
    ///
    /// # Errors
    /// [`SwapError::Digests`] when there is no memory for the digests.
    pub fn on(storage: Arc<dyn Storage>, slots: u32, max_slots: u32) -> Result<Self, SwapError> {
        let dir = PathBuf::from("first");
        Self::at(Place { dir, storage }, "simulated", slots, max_slots)
    }

    /// The same for tests, which have the memory.
    #[cfg(test)]
    pub(crate) fn over(storage: Arc<dyn Storage>, slots: u32, max_slots: u32) -> Self {
        Self::on(storage, slots, max_slots).expect("memory")
    }

    pub(super) fn at(
        place: Place,
        vm: &str,
        slots: u32,
        max_slots: u32,
    ) -> Result<Self, SwapError> {
        let vm = vm.to_owned();
        let digests = match zeroes(max_slots as usize) {
            Ok(digests) => digests,
            Err(source) => return Err(SwapError::Digests { vm, source }),
        };
        Ok(Self {
            vm,
            place: Mutex::new(place),
            slots: Mutex::new(Slots::new(slots)),
            writer: Mutex::default(),
            digests,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            clusters: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            is_kept: AtomicBool::new(false),
        })
    }

    /// Has each read and write wait so much longer than the disk takes, for experiments with slow disks.
    pub fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay.store(micros, Ordering::Relaxed);
    }

    /// Whether it has been told to be slow.
    #[must_use]
    pub fn is_slowed(&self) -> bool {
        self.delay.load(Ordering::Relaxed) > 0
    }

    /// The directory of the file in use.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.place.lock().dir.clone()
    }

    /// The file as it is now, for a guest that reads its pages itself. After the file has moved, what the guest reads
    /// here may be wrong.
    ///
    /// # Errors
    /// What opening it again says.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        self.storage().read_only()
    }

    /// Notes that the guest has read a page itself.
    pub fn note_read(&self) {
        self.read.fetch_add(1, Ordering::Relaxed);
    }

    /// Allocates `count` slots in as few runs as possible; fewer slots when fewer are free.
    #[must_use]
    pub fn allocate(&self, count: u32) -> Vec<SlotRun> {
        self.slots.lock().take(count)
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
        let mut moving = self.writer.lock();
        self.wait_as_long_as_a_slow_disk();
        write_whole(&*self.storage(), pages, offset(run.start))
            .map_err(|source| SwapError::write(run, source))?;
        // After the bytes: a slot whose write failed still counts as empty.
        for (slot, &digest) in run.slots().zip(digests) {
            self.digest_of(slot).store(mark(digest), Ordering::Relaxed);
        }
        moving.written(run, pages);
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
        self.read_run(
            SlotRun {
                start: slot,
                len: 1,
            },
            from_mut(into),
        )
    }

    /// The same for neighbouring slots, with one system call. The error is that of the first slot that fails;
    /// then all of them count as not read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// When the run and the pages are not equally many.
    pub fn read_run(&self, run: SlotRun, into: &mut [PageBuf]) -> Result<(), SwapError> {
        assert_eq!(run.len as usize, into.len(), "a page a slot");
        self.read_from(&*self.storage(), run, into)?;
        self.read.fetch_add(u64::from(run.len), Ordering::Relaxed);
        Ok(())
    }

    /// Frees a slot.
    ///
    /// # Panics
    /// When it is free already: the page table named one slot twice.
    pub fn free(&self, slot: SlotId) {
        // Before the slot is freed: from the next line on it may be somebody else's.
        self.digest_of(slot).store(EMPTY, Ordering::Relaxed);
        let freed = self.slots.lock().give(slot);
        assert!(freed, "swap slot {} was freed twice", slot.0);
    }

    /// Begins to move the file to `dir`; [`step_move`](Self::step_move) goes on with the move. Nothing
    /// happens if the file is there or on its way there already. A move to another directory that was
    /// under way is given up.
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] or [`SwapError::Create`]; nothing has changed.
    pub fn begin_move(&self, dir: &Path) -> Result<(), SwapError> {
        let mut moving = self.writer.lock();
        if self.dir() == dir {
            moving.cancel();
        } else if !moving.is_to(dir) {
            let len = self.slots.lock().len();
            moving.begin(Place::create(dir, &self.vm, len)?);
        }
        Ok(())
    }

    /// Begins a move to any storage of the file's length.
    #[cfg(test)]
    pub(super) fn begin_move_to(&self, storage: Arc<dyn Storage>) {
        let dir = PathBuf::from("second");
        self.writer.lock().begin(Place { dir, storage });
    }

    /// Copies up to `pages` pages to the new directory. When all pages are there, the new file is in use.
    /// Readers go on meanwhile.
    ///
    /// # Errors
    /// The read or write that failed: the move is given up and the file stays where it was.
    pub fn step_move(&self, pages: u32) -> Result<Progress, SwapError> {
        let mut moving = self.writer.lock();
        let len = self.slots.lock().len();
        moving.step(self, len, pages)
    }

    /// What the file holds and has done.
    #[must_use]
    pub fn stats(&self) -> SwapStats {
        let (limit, used) = {
            let slots = self.slots.lock();
            (slots.limit(), slots.used())
        };
        SwapStats {
            slots: Pages(u64::from(limit)),
            used: Pages(u64::from(used)),
            read: Pages(self.read.load(Ordering::Relaxed)),
            written: Pages(self.written.load(Ordering::Relaxed)),
            clusters: self.clusters.load(Ordering::Relaxed),
        }
    }

    /// The storage in use.
    pub(super) fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.place.lock().storage)
    }

    /// Reads and verifies a slot that may be freed at any time. If it was freed, that is no error, and `into` means
    /// nothing.
    pub(super) fn read_if_held(
        &self,
        from: &dyn Storage,
        slot: SlotId,
        into: &mut PageBuf,
    ) -> Result<(), SwapError> {
        let run = SlotRun {
            start: slot,
            len: 1,
        };
        self.read_from(from, run, from_mut(into)).or_else(|error| {
            if self.holds(slot) {
                return Err(error);
            }
            Ok(())
        })
    }

    /// The first run in `slots` of slots that hold a page; at most `most` slots.
    pub(super) fn next_run(&self, slots: Range<u32>, most: u32) -> Option<SlotRun> {
        let mut slots = slots.map(SlotId);
        let start = slots.find(|slot| self.holds(*slot))?;
        let mut len = 1;
        while len < most && slots.next().is_some_and(|slot| self.holds(slot)) {
            len += 1;
        }
        Some(SlotRun { start, len })
    }

    /// Reads and verifies neighbouring slots, each of which may be freed at any time, and counts no read. What `into`
    /// holds for one that was freed means nothing.
    pub(super) fn read_held(&self, run: SlotRun, into: &mut [PageBuf]) -> Result<(), SwapError> {
        let slot = run.start;
        let storage = self.storage();
        self.wait_as_long_as_a_slow_disk();
        let failed = |source| SwapError::Read { slot, source };
        read_whole(&*storage, into, offset(slot)).map_err(failed)?;
        for (slot, page) in run.slots().zip(into) {
            match self.verify(slot, page) {
                Err(error) if self.holds(slot) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How many slots the file has.
    pub(super) fn len(&self) -> u32 {
        self.slots.lock().len()
    }

    /// How many slots may be in use.
    pub(super) fn limit(&self) -> u32 {
        self.slots.lock().limit()
    }

    pub(super) fn holds(&self, slot: SlotId) -> bool {
        self.digest_of(slot).load(Ordering::Relaxed) != EMPTY
    }

    fn read_from(
        &self,
        storage: &dyn Storage,
        run: SlotRun,
        into: &mut [PageBuf],
    ) -> Result<(), SwapError> {
        let slot = run.start;
        let failed = |source| SwapError::Read { slot, source };
        self.wait_as_long_as_a_slow_disk();
        read_whole(storage, into, offset(slot)).map_err(failed)?;
        let mut pages = run.slots().zip(into);
        pages.try_for_each(|(slot, page)| self.verify(slot, page))
    }

    fn verify(&self, slot: SlotId, page: &PageBuf) -> Result<(), SwapError> {
        let expected = self.digest_of(slot).load(Ordering::Relaxed);
        let found = mark(digest(page));
        if found == expected {
            return Ok(());
        }
        Err(SwapError::Corrupt {
            slot,
            expected,
            found,
        })
    }

    fn wait_as_long_as_a_slow_disk(&self) {
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            thread::sleep(Duration::from_micros(delay));
        }
    }

    fn digest_of(&self, slot: SlotId) -> &AtomicU64 {
        let slots = self.digests.len();
        let digest = self.digests.get(slot.0 as usize);
        digest.unwrap_or_else(|| panic!("swap slot {} of a file of {slots} slots", slot.0))
    }
}

/// The digest as it is kept for a page that is there.
const fn mark(digest: u64) -> u64 {
    if digest == EMPTY { ZERO } else { digest }
}

/// The byte at which a slot begins.
pub(super) fn offset(slot: SlotId) -> u64 {
    u64::from(slot.0) * PAGE_SIZE as u64
}

#[cfg(test)]
mod tests;
