//! Anonymous memory: mappings whose pages come and go.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};

use super::disk::Slot;
use super::object::{Eviction, Object};
use super::pages::{Owner, PageUse};
use super::{Bounce, Kernel, KernelError, ZEROES, by_page, lock, try_lock};

/// Where one page of a mapping is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// Never written: it reads as zeroes.
    #[default]
    Nowhere,
    Ram(Gfn),
    Disk(Slot),
}

struct AnonMap {
    places: Box<[Mutex<Place>]>,
}

impl Object for AnonMap {
    fn evict(&self, kernel: &Kernel, page: u32, gfn: Gfn) -> Eviction {
        // Asked before the page lock: a page with no place to go is not worth waiting for, so it must
        // count as kept and not as busy.
        if kernel.swap.used() == kernel.swap.pages() {
            return Eviction::Kept;
        }
        let Some(place) = self.places.get(page as usize) else {
            return Eviction::Busy;
        };
        let Some(mut place) = try_lock(place) else {
            return Eviction::Busy;
        };
        if *place != Place::Ram(gfn) {
            return Eviction::Busy;
        }
        let mut bounce = Bounce::zeroed();
        kernel.memory.read(gfn, 0, &mut bounce.0);
        let began = Instant::now();
        match kernel.swap.write(&bounce) {
            Ok(Some(slot)) => {
                let wrote = began.elapsed();
                *place = Place::Disk(slot);
                kernel.counters.swap_out.add(1);
                kernel.pages.release(gfn, PageUse::Anon);
                Eviction::Freed { wrote }
            }
            Ok(None) => Eviction::Kept,
            Err(_) => {
                kernel.counters.swap_errors.add(1);
                Eviction::Kept
            }
        }
    }
}

/// A mapping of anonymous memory: zeroes until written. Dropping it unmaps it.
///
/// Threads may access it at once. An access within one page is atomic; one that crosses pages is
/// atomic page by page.
pub struct AnonRegion {
    kernel: Arc<Kernel>,
    map: Arc<AnonMap>,
    object: u32,
}

impl fmt::Debug for AnonRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnonRegion")
            .field("object", &self.object)
            .field("pages", &self.pages())
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Maps `pages` pages of anonymous memory. They cost RAM only once they are written, so a mapping
    /// does not guarantee memory: compare its size with [`Self::capacity`] to be on the safe side.
    #[must_use]
    pub fn map_anon(self: &Arc<Self>, pages: u32) -> AnonRegion {
        let map = Arc::new(AnonMap {
            places: (0..pages).map(|_| Mutex::default()).collect(),
        });
        AnonRegion {
            kernel: Arc::clone(self),
            object: self.objects.add(Arc::clone(&map) as Arc<dyn Object>),
            map,
        }
    }
}

impl AnonRegion {
    /// The size of the region in pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.map.places.len() as u32
    }

    /// Copies `into.len()` bytes from byte `offset` of the region.
    ///
    /// # Errors
    /// [`KernelError::OutOfRange`] before anything is read; [`KernelError::OutOfMemory`] or
    /// [`KernelError::DiskRead`] when a page cannot be brought back, after the pages before it were read.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), KernelError> {
        by_page(self.pages(), offset, into.len(), |piece| {
            self.read_page(piece.page, piece.at, &mut into[piece.range])
        })
    }

    /// Copies `from` to byte `offset` of the region.
    ///
    /// # Errors
    /// As [`Self::read`]. The pages before the failing one are written; the failing page and those after
    /// it are unchanged.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), KernelError> {
        by_page(self.pages(), offset, from.len(), |piece| {
            self.write_page(piece.page, piece.at, &from[piece.range])
        })
    }

    /// The physical page behind page `page` of the region, if it is in RAM at this moment. It can change
    /// at any time, so use it for messages only. Waits for an access to the page to end.
    #[must_use]
    pub fn gfn_of(&self, page: u32) -> Option<Gfn> {
        match *lock(self.map.places.get(page as usize)?) {
            Place::Ram(gfn) => Some(gfn),
            Place::Nowhere | Place::Disk(_) => None,
        }
    }

    /// Puts a run of physical pages behind the `count` pages from `first` on, up to the first page that was
    /// ever written. `fill` fills the run first, and returns how many of its pages it has filled. Returns how
    /// many pages, counted from `first`, have a filled page now; `None` when there is no such run of free pages.
    pub(super) fn adopt(
        &self,
        first: u32,
        count: u32,
        fill: impl FnOnce(GfnRun) -> u32,
    ) -> Option<u32> {
        let allocator = &self.kernel.pages;
        let places = &self.map.places[first as usize..][..count as usize];
        let empty = |place: &&Mutex<Place>| *lock(place) == Place::Nowhere;
        // Up to the first page that holds something, because the answer is one number.
        let count = places.iter().take_while(empty).count() as u32;
        if count == 0 {
            return Some(0);
        }
        let owner = Owner {
            object: self.object,
            page: first,
        };
        let run = allocator.take_run(count, Some(owner), PageUse::Anon)?;
        let filled = fill(run);
        let (mut adopted, mut whole) = (0, true);
        for ((at, gfn), place) in (0..).zip(run.iter()).zip(places) {
            let mut place = lock(place);
            // Another thread may have written the page meanwhile, and then its bytes are the newer ones.
            if at < filled && *place == Place::Nowhere {
                *place = Place::Ram(gfn);
                adopted += u32::from(whole);
            } else {
                whole = false;
                allocator.release(gfn, PageUse::Anon);
            }
        }
        Some(adopted)
    }

    fn read_page(&self, page: u32, at: usize, into: &mut [u8]) -> Result<(), KernelError> {
        let mut place = lock(&self.map.places[page as usize]);
        let gfn = match *place {
            Place::Nowhere => {
                into.fill(0);
                return Ok(());
            }
            Place::Ram(gfn) => gfn,
            Place::Disk(slot) => self.swap_in(&mut place, page, slot)?,
        };
        self.kernel.pages.mark_referenced(gfn);
        self.kernel.memory.read(gfn, at, into);
        Ok(())
    }

    fn write_page(&self, page: u32, at: usize, from: &[u8]) -> Result<(), KernelError> {
        let mut place = lock(&self.map.places[page as usize]);
        let whole = from.len() == PAGE_SIZE;
        let gfn = match *place {
            Place::Ram(gfn) => gfn,
            Place::Nowhere => {
                let gfn = self.allocate(page)?;
                // A new page holds whatever its last owner left, so what is not written here must be cleared.
                if !whole {
                    self.kernel.memory.write(gfn, 0, &ZEROES);
                }
                self.kernel.counters.minor_faults.add(1);
                gfn
            }
            // A write of the whole page replaces the old bytes, so the disk need not be read.
            Place::Disk(slot) if whole => {
                let gfn = self.allocate(page)?;
                self.kernel.swap.free(slot);
                self.kernel.counters.minor_faults.add(1);
                gfn
            }
            Place::Disk(slot) => self.swap_in(&mut place, page, slot)?,
        };
        *place = Place::Ram(gfn);
        self.kernel.pages.mark_referenced(gfn);
        self.kernel.memory.write(gfn, at, from);
        Ok(())
    }

    fn swap_in(&self, place: &mut Place, page: u32, slot: Slot) -> Result<Gfn, KernelError> {
        let kernel = &self.kernel;
        let mut bounce = Bounce::zeroed();
        let began = Instant::now();
        kernel.swap.read(slot, &mut bounce)?;
        kernel.counters.swap_wait_us.add_time(began.elapsed());
        // The slot is freed last: if no page can be had, the bytes stay on the disk.
        let gfn = self.allocate(page)?;
        kernel.write_page(gfn, &bounce);
        *place = Place::Ram(gfn);
        kernel.swap.free(slot);
        kernel.counters.swap_in.add(1);
        kernel.counters.major_faults.add(1);
        Ok(gfn)
    }

    fn allocate(&self, page: u32) -> Result<Gfn, KernelError> {
        let owner = Owner {
            object: self.object,
            page,
        };
        self.kernel.allocate(owner, PageUse::Anon)
    }
}

impl Drop for AnonRegion {
    fn drop(&mut self) {
        for place in &self.map.places {
            match std::mem::take(&mut *lock(place)) {
                Place::Nowhere => {}
                Place::Ram(gfn) => self.kernel.pages.release(gfn, PageUse::Anon),
                Place::Disk(slot) => self.kernel.swap.free(slot),
            }
        }
        self.kernel.objects.remove(self.object);
    }
}
