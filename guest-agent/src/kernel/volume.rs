//! Volumes: disks with files that the guest creates, reads, writes and deletes through its page cache.
//!
//! The page cache of a real guest is what its host squeezes first, because taking a clean page costs the
//! guest nothing at that moment. What it costs later, a read from a disk, is what a measurement must see.
//! So a file has a slot on a disk for each page that was ever written, and RAM caches it: a page comes in
//! when it is read, and leaves when reclaim takes it. A page that was written is dirty until it is written
//! back, which [`DiskFile::flush`] or reclaim does. To overwrite a whole page needs no read; to overwrite a
//! part of it needs the rest.
//!
//! A slot is taken when a page becomes dirty for the first time, and not when it is written back: reclaim
//! must not find out that the disk is full. A file that is deleted gives back pages and slots at once, and
//! what was dirty is never written.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memvisor_wire::{Gfn, PAGE_SIZE};

use super::disk::{Disk, Slot};
use super::object::{Eviction, Object};
use super::pages::{Owner, PageUse};
use super::{Bounce, Kernel, KernelError, ZEROES, by_page, lock, try_lock};

/// Where one page of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Never written: it reads as zeroes.
    #[default]
    Nowhere,
    /// On the disk only.
    Disk(Slot),
    /// In RAM, and on the disk with the same bytes unless it is dirty.
    Cached {
        gfn: Gfn,
        slot: Slot,
        is_dirty: bool,
    },
}

struct DiskMap {
    places: Box<[Mutex<Place>]>,
    disk: Arc<Disk>,
}

impl DiskMap {
    /// Writes a page in RAM to its slot.
    fn write_back(&self, kernel: &Kernel, gfn: Gfn, slot: Slot) -> std::io::Result<()> {
        let mut bounce = Bounce::zeroed();
        kernel.memory.read(gfn, 0, &mut bounce.0);
        self.disk.write_to(slot, &bounce)?;
        kernel.counters.written_back.add(1);
        Ok(())
    }
}

impl Object for DiskMap {
    fn evict(&self, kernel: &Kernel, page: u32, gfn: Gfn) -> Eviction {
        let Some(mut place) = self.places.get(page as usize).and_then(try_lock) else {
            return Eviction::Busy;
        };
        let Place::Cached {
            gfn: cached,
            slot,
            is_dirty,
        } = *place
        else {
            return Eviction::Busy;
        };
        if cached != gfn {
            return Eviction::Busy;
        }
        if is_dirty && self.write_back(kernel, gfn, slot).is_err() {
            kernel.counters.swap_errors.add(1);
            return Eviction::Kept;
        }
        *place = Place::Disk(slot);
        kernel.pages.release(gfn, PageUse::Cache);
        Eviction::Freed {
            wrote: Duration::ZERO,
        }
    }
}

/// A disk for files.
#[derive(Debug)]
pub struct Volume {
    kernel: Arc<Kernel>,
    disk: Arc<Disk>,
}

impl Kernel {
    /// A disk of `pages` pages for files, empty at first. To read or write a page of it takes `latency` at least.
    ///
    /// # Errors
    /// [`KernelError::DiskCreate`].
    pub fn volume(self: &Arc<Self>, pages: u32, latency: Duration) -> Result<Volume, KernelError> {
        let disk = Disk::create("disk for files", &self.disk_directory, pages, latency)?;
        Ok(Volume {
            kernel: Arc::clone(self),
            disk: Arc::new(disk),
        })
    }
}

impl Volume {
    /// Creates a file of up to `pages` pages, none of which takes room until it is written.
    #[must_use]
    pub fn create(&self, pages: u32) -> DiskFile {
        let map = Arc::new(DiskMap {
            places: (0..pages).map(|_| Mutex::default()).collect(),
            disk: Arc::clone(&self.disk),
        });
        DiskFile {
            kernel: Arc::clone(&self.kernel),
            object: self.kernel.objects.add(Arc::clone(&map) as Arc<dyn Object>),
            map,
        }
    }

    /// Pages of the disk that hold a part of a file.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.disk.used()
    }
}

/// A file on a [`Volume`]. Dropping it deletes it.
///
/// Threads may use it at once. An access within one page is atomic; one that crosses pages is atomic page by page.
pub struct DiskFile {
    kernel: Arc<Kernel>,
    map: Arc<DiskMap>,
    object: u32,
}

impl fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskFile")
            .field("object", &self.object)
            .field("pages", &self.pages())
            .finish_non_exhaustive()
    }
}

impl DiskFile {
    /// How many pages the file can have.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.map.places.len() as u32
    }

    /// Copies `into.len()` bytes from byte `offset` of the file. What was never written reads as zeroes.
    ///
    /// # Errors
    /// [`KernelError::OutOfRange`]; [`KernelError::DiskRead`] and [`KernelError::OutOfMemory`], after the pages
    /// before the failing one were read.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), KernelError> {
        by_page(self.pages(), offset, into.len(), |piece| {
            self.read_page(piece.page, piece.at, &mut into[piece.range])
        })
    }

    /// Copies `from` to byte `offset` of the file, into the page cache.
    ///
    /// # Errors
    /// As [`Self::read`], and [`KernelError::DiskFull`]. The pages before the failing one are written; the failing
    /// page and those after it are unchanged.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), KernelError> {
        by_page(self.pages(), offset, from.len(), |piece| {
            self.write_page(piece.page, piece.at, &from[piece.range])
        })
    }

    /// Writes all dirty pages back. They stay cached.
    ///
    /// # Errors
    /// [`KernelError::DiskWrite`], after the pages before the failing one were written.
    pub fn flush(&self) -> Result<(), KernelError> {
        for place in &self.map.places {
            let mut place = lock(place);
            if let Place::Cached {
                gfn,
                slot,
                is_dirty: is_dirty @ true,
            } = &mut *place
            {
                let written = self.map.write_back(&self.kernel, *gfn, *slot);
                written.map_err(|source| KernelError::DiskWrite {
                    disk: self.map.disk.name(),
                    source,
                })?;
                *is_dirty = false;
            }
        }
        Ok(())
    }

    /// The physical page that caches page `page` of the file at this moment. It can change at any time,
    /// so use it for messages only. Waits for an access to the page to end.
    #[must_use]
    pub fn gfn_of(&self, page: u32) -> Option<Gfn> {
        match *lock(self.map.places.get(page as usize)?) {
            Place::Cached { gfn, .. } => Some(gfn),
            Place::Nowhere | Place::Disk(_) => None,
        }
    }

    fn read_page(&self, page: u32, at: usize, into: &mut [u8]) -> Result<(), KernelError> {
        let mut place = lock(&self.map.places[page as usize]);
        let gfn = match *place {
            Place::Nowhere => {
                into.fill(0);
                return Ok(());
            }
            Place::Cached { gfn, .. } => gfn,
            Place::Disk(slot) => self.fill(&mut place, page, slot)?,
        };
        self.kernel.pages.mark_referenced(gfn);
        self.kernel.memory.read(gfn, at, into);
        Ok(())
    }

    fn write_page(&self, page: u32, at: usize, from: &[u8]) -> Result<(), KernelError> {
        let mut place = lock(&self.map.places[page as usize]);
        let whole = from.len() == PAGE_SIZE;
        let (gfn, slot) = match *place {
            Place::Cached { gfn, slot, .. } => (gfn, slot),
            // A write of the whole page replaces the old bytes, so the disk need not be read.
            Place::Disk(slot) if whole => (self.allocate(page)?, slot),
            Place::Disk(slot) => (self.fill(&mut place, page, slot)?, slot),
            Place::Nowhere => self.add(page, whole)?,
        };
        *place = Place::Cached {
            gfn,
            slot,
            is_dirty: true,
        };
        self.kernel.pages.mark_referenced(gfn);
        self.kernel.memory.write(gfn, at, from);
        Ok(())
    }

    /// A page in RAM and a slot on the disk for a page that had neither.
    fn add(&self, page: u32, whole: bool) -> Result<(Gfn, Slot), KernelError> {
        let disk = &self.map.disk;
        let slot = disk.take().ok_or_else(|| KernelError::DiskFull {
            disk: disk.name(),
            slots: disk.pages(),
        })?;
        let gfn = self.allocate(page).inspect_err(|_| disk.free(slot))?;
        // A new page holds whatever its last owner left, so what is not written must be cleared.
        if !whole {
            self.kernel.memory.write(gfn, 0, &ZEROES);
        }
        Ok((gfn, slot))
    }

    /// Brings a page in from the disk.
    fn fill(&self, place: &mut Place, page: u32, slot: Slot) -> Result<Gfn, KernelError> {
        // Read before the allocation: a read that fails then has no page to give back.
        let mut bounce = Bounce::zeroed();
        self.map.disk.read(slot, &mut bounce)?;
        let gfn = self.allocate(page)?;
        self.kernel.write_page(gfn, &bounce);
        self.kernel.counters.major_faults.add(1);
        *place = Place::Cached {
            gfn,
            slot,
            is_dirty: false,
        };
        Ok(gfn)
    }

    fn allocate(&self, page: u32) -> Result<Gfn, KernelError> {
        let owner = Owner {
            object: self.object,
            page,
        };
        self.kernel.allocate(owner, PageUse::Cache)
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        for place in &self.map.places {
            match std::mem::take(&mut *lock(place)) {
                Place::Nowhere => {}
                Place::Disk(slot) => self.map.disk.free(slot),
                Place::Cached { gfn, slot, .. } => {
                    self.kernel.pages.release(gfn, PageUse::Cache);
                    self.map.disk.free(slot);
                }
            }
        }
        self.kernel.objects.remove(self.object);
    }
}
