//! The part of the host cache that one VM has.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::ages::Ages;
use super::error::SwapError;
use super::file::{SwapFile, SwapStats};
use super::host_cache::HostCache;
use super::slots::SlotRun;
#[cfg(test)]
use super::storage::Storage;
use crate::sync::{AtomicU8, AtomicU32, Mutex, Ordering};
use crate::units::{Gfn, PageBuf, Pages, SlotId};

/// Pages by which the file grows at least, a MiB, while there are so many.
const CHUNK: u32 = 256;
/// The part of a file that cannot grow, one page in so many, that is kept free by demoting pages, and the most of it:
/// 4 MiB.
const SLACK_PART: u32 = 8;
const MOST_SLACK: u32 = 1024;

/// What keeps the file from taking pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing.
    None = 0,
    /// The disk has no room for a longer file.
    Full = 1,
    /// The file could not be made, or a write failed.
    Failing = 2,
}

/// A page that is to be demoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// The page.
    pub gfn: Gfn,
    /// Where it is.
    pub slot: SlotId,
}

/// The pages of one VM that are in the host cache.
///
/// The file is a [`SwapFile`] that begins empty, and is made when the first page comes. It grows by what it takes of the
/// host's bound, up to its cap, and gives back what it is cut by. Slots that leave this type are marked as
/// [cached](SlotId::cached).
#[derive(Debug)]
pub struct CacheFile {
    vm: String,
    host: Arc<HostCache>,
    most: u32,
    file: OnceLock<SwapFile>,
    ages: Mutex<Ages>,
    /// How long the file may be, by what other VMs need.
    cap: AtomicU32,
    /// Pages taken of the host's bound: the length of the file. Only the worker changes it, and the tear-down.
    taken: AtomicU32,
    trouble: AtomicU8,
    /// Whether the log says that it fails.
    is_said: AtomicU8,
}

impl CacheFile {
    /// The part of `host` that the VM `vm` has; at most `most` pages.
    ///
    /// # Errors
    /// [`SwapError::Digests`] when there is no memory for its table.
    pub fn new(host: &Arc<HostCache>, vm: &str, most: u32) -> Result<Self, SwapError> {
        let ages = Ages::new(most).map_err(|source| SwapError::Digests {
            vm: vm.to_owned(),
            source,
        })?;
        Ok(Self {
            vm: vm.to_owned(),
            host: Arc::clone(host),
            most,
            file: OnceLock::new(),
            ages: Mutex::new(ages),
            cap: AtomicU32::new(u32::MAX),
            taken: AtomicU32::new(0),
            trouble: AtomicU8::new(Trouble::None as u8),
            is_said: AtomicU8::new(0),
        })
    }

    /// The same over an empty storage.
    #[cfg(test)]
    pub(crate) fn over(host: &Arc<HostCache>, storage: Arc<dyn Storage>, most: u32) -> Self {
        let this = Self::new(host, "simulated", most).expect("memory");
        let file = SwapFile::over(storage, 0, most);
        this.file.set(file).expect("it has none");
        this
    }

    /// The directory of the file.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    /// What it holds and has done.
    #[must_use]
    pub fn stats(&self) -> SwapStats {
        self.file.get().map(SwapFile::stats).unwrap_or_default()
    }

    /// How long the file is, in slots.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.file.get().map_or(0, SwapFile::len)
    }

    /// Whether it holds no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stats().used.0 == 0
    }

    /// Caps the length of the file; `u32::MAX`: there is enough for all VMs. The worker demotes what is beyond.
    pub fn set_cap(&self, slots: u32) {
        self.cap.store(slots, Ordering::Relaxed);
    }

    /// What keeps it from taking pages.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self.trouble.load(Ordering::Relaxed) {
            0 => Trouble::None,
            1 => Trouble::Full,
            _ => Trouble::Failing,
        }
    }

    /// Notes what keeps it from taking pages.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.trouble.store(trouble as u8, Ordering::Relaxed);
    }

    /// Whether the next page may be stored here.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let stats = self.stats();
        let can_grow = self.trouble() == Trouble::None && self.host.free() > Pages(0);
        self.target() > 0 && (stats.used < stats.slots || can_grow && self.len() < self.target())
    }

    /// Notes whether it refuses pages, and returns whether that is a change.
    pub fn note_failing(&self, failing: bool) -> bool {
        self.is_said.swap(failing.into(), Ordering::Relaxed) != u8::from(failing)
    }

    /// Whether the worker has something to do here though no page comes: to demote pages, or to give room back.
    #[must_use]
    pub fn is_beyond_cap(&self) -> bool {
        self.len() > self.target()
    }

    /// Stores pages, at most `most`, and returns the slots of the first ones, which it took. The rest finds no room
    /// here; of a file that fails, the error says why.
    pub(super) fn store(
        &self,
        most: u32,
        gfns: &[Gfn],
        pages: &[PageBuf],
        digests: &[u64],
    ) -> (Vec<SlotId>, Result<(), SwapError>) {
        let mut stored = Vec::new();
        let count = u32::try_from(pages.len()).unwrap_or(u32::MAX).min(most);
        if count == 0 || self.target() == 0 {
            return (stored, Ok(()));
        }
        let file = match self.open() {
            Ok(file) => file,
            Err(error) => return (stored, Err(error)),
        };
        // A file that cannot grow still takes what it has room for.
        let mut failed = self.grow(file, count);
        for run in file.allocate(count) {
            if self.trouble() == Trouble::Failing {
                run.slots().for_each(|slot| file.free(slot));
                continue;
            }
            let range = stored.len()..stored.len() + run.len as usize;
            match file.write(run, &pages[range.clone()], &digests[range.clone()]) {
                Ok(()) => {
                    let mut ages = self.ages.lock();
                    for (slot, gfn) in run.slots().zip(&gfns[range]) {
                        ages.push(slot, *gfn);
                        stored.push(slot.cached());
                    }
                }
                Err(error) => {
                    run.slots().for_each(|slot| file.free(slot));
                    self.set_trouble(Trouble::Failing);
                    failed = Err(self.named(error));
                }
            }
        }
        (stored, failed)
    }

    /// Reads neighbouring slots back for the guest, and verifies them.
    pub(super) fn read_run(&self, run: SlotRun, into: &mut [PageBuf]) -> Result<(), SwapError> {
        let read = self.the_file().read_run(in_file(run), into);
        read.map_err(|error| self.named(error))
    }

    /// Reads neighbouring slots, each of which may be freed at any time. What `into` holds for one that was freed means
    /// nothing.
    ///
    /// # Errors
    /// As [`SwapFile::read`], for a slot that is still in use.
    pub fn read_held(&self, run: SlotRun, into: &mut [PageBuf]) -> Result<(), SwapError> {
        let read = self.the_file().read_held(in_file(run), into);
        read.map_err(|error| self.named(error))
    }

    /// Frees a slot.
    pub(super) fn free(&self, slot: SlotId) {
        let slot = slot.in_file();
        // Before the slot is freed: from then on it may be somebody else's.
        self.ages.lock().remove(slot);
        self.the_file().free(slot);
    }

    /// Up to `most` pages that are to be demoted now: those behind the end that the file shall have, then the oldest of
    /// a file that is nearly full and cannot grow.
    #[must_use]
    pub fn victims(&self, most: u32) -> Vec<Victim> {
        let Some(file) = self.file.get() else {
            return Vec::new();
        };
        let (limit, len) = (file.limit(), file.len());
        let behind = file.next_run(limit..len, most);
        let slots: Vec<SlotId> = match behind {
            Some(run) => run.slots().collect(),
            None => {
                let most = most.min(self.surplus(file)) as usize;
                self.ages.lock().by_age().take(most).collect()
            }
        };
        let ages = self.ages.lock();
        let victim = |slot: SlotId| Victim {
            // A slot that was freed meanwhile names the page that it held last, which is no harm: it is elsewhere.
            gfn: ages.gfn(slot),
            slot: slot.cached(),
        };
        slots.into_iter().map(victim).collect()
    }

    /// Makes pages that could not be demoted the newest, so that others come before them.
    pub fn renew(&self, victims: &[Victim]) {
        let mut ages = self.ages.lock();
        for Victim { gfn, slot } in victims {
            let slot = slot.in_file();
            // It may have been freed meanwhile, but has no other page: only the worker, which calls this, stores any.
            if ages.has(slot) {
                ages.remove(slot);
                ages.push(slot, *gfn);
            }
        }
    }

    /// Has the file give up what is beyond its cap, as far as it is free, and gives that back to the host.
    ///
    /// # Errors
    /// [`SwapError::Resize`]: the disk space is given back later.
    pub fn fit(&self) -> Result<(), SwapError> {
        let Some(file) = self.file.get() else {
            return Ok(());
        };
        let target = self.target();
        let cut = if file.limit() > target {
            file.resize(target)
        } else {
            file.trim()
        };
        self.settle(file);
        cut.map_err(|error| self.named(error))
    }

    /// Gives the file's space back. Nobody may read or write it any more.
    pub(super) fn give_back(&self) -> Result<(), SwapError> {
        let Some(file) = self.file.get() else {
            return Ok(());
        };
        let cut = file.give_back();
        self.host.give(self.taken.swap(0, Ordering::Relaxed));
        cut.map_err(|error| self.named(error))
    }

    fn the_file(&self) -> &SwapFile {
        self.file.get().expect("a page is in it")
    }

    /// How long the file may be now.
    fn target(&self) -> u32 {
        if self.trouble() == Trouble::Failing || self.host.size().0 == 0 {
            return 0;
        }
        self.cap.load(Ordering::Relaxed).min(self.most)
    }

    fn open(&self) -> Result<&SwapFile, SwapError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let made = SwapFile::create(self.dir(), &self.vm, 0, self.most);
        let made = made.map_err(|error| {
            self.set_trouble(Trouble::Failing);
            self.named(error)
        })?;
        Ok(self.file.get_or_init(|| made))
    }

    /// Makes room for `count` more pages, as far as there is any.
    fn grow(&self, file: &SwapFile, count: u32) -> Result<(), SwapError> {
        let stats = file.stats();
        let free = stats.slots.saturating_sub(stats.used).0;
        let (limit, len) = (file.limit(), file.len());
        let room = self.target().saturating_sub(limit);
        let is_enough = free >= u64::from(count);
        if is_enough || room == 0 || self.trouble() != Trouble::None {
            return Ok(());
        }
        let wanted = count.next_multiple_of(CHUNK).min(room);
        // Slots behind the limit, if any, are in the file already.
        let got = self.host.take((limit + wanted).saturating_sub(len));
        self.taken.fetch_add(got, Ordering::Relaxed);
        let grown = file.resize((len + got).min(limit + wanted).max(limit));
        self.settle(file);
        grown.map_err(|error| {
            self.set_trouble(Trouble::Full);
            self.named(error)
        })
    }

    /// Gives back to the host what was taken and is not in the file.
    fn settle(&self, file: &SwapFile) {
        let len = file.len();
        let taken = self.taken.swap(len, Ordering::Relaxed);
        self.host.give(taken - len);
    }

    /// How many pages a file holds too many to have room for those that come next.
    fn surplus(&self, file: &SwapFile) -> u32 {
        let limit = file.limit();
        let can_grow = self.trouble() == Trouble::None
            && limit < self.target()
            && self.host.free().0 >= u64::from(CHUNK);
        if can_grow {
            return 0;
        }
        let slack = (limit / SLACK_PART).min(MOST_SLACK);
        let used = u32::try_from(file.stats().used.0).unwrap_or(u32::MAX);
        used.saturating_sub(limit - slack)
    }

    fn named(&self, error: SwapError) -> SwapError {
        SwapError::Cache {
            dir: self.dir().to_owned(),
            source: Box::new(error),
        }
    }
}

fn in_file(run: SlotRun) -> SlotRun {
    SlotRun {
        start: run.start.in_file(),
        len: run.len,
    }
}
