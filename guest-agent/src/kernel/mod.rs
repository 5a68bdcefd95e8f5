//! The toy guest kernel: physical pages, anonymous memory, page cache, reclaim, disks of its own.
//!
//! The host takes memory from a guest whose own memory management keeps going: the guest decides
//! which of its pages it can spare, pushes others to its own disk, and must notice when it is
//! squeezed too hard. A guest that merely fills a buffer does none of this, so this kernel has the
//! parts of a real kernel that matter to its host, and nothing else.
//!
//! Every access to guest RAM can block for as long as the host needs to bring the page back. Hence
//! the rule that shapes everything here: **no lock that a second page needs is held while RAM is
//! touched**. Each page of a mapping has its own lock, and an access holds only that lock. The free
//! list, the slots of a disk and the object table have short locks of their own, under which
//! no access, no system call and no other of these locks happens.
//!
//! - [`AnonRegion`]: anonymous memory; a page is empty (reads as zeroes), in RAM, or on the swap
//!   disk. The bytes of a newly allocated page are undefined: its last owner or the host left them
//!   there. Whoever maps a page overwrites all of it first.
//! - [`CachedFile`]: pages of real files, clean and read-only, shared by everybody who opens the file.
//! - [`Volume`]: a disk with files that the guest writes. A page of a [`DiskFile`] that was changed is dirty
//!   until it is written back, at the latest when reclaim takes it.
//! - [`Stage`]: pages from which the host attaches others, so that these are shared from the start.
//! - Reclaim is a clock over all physical pages: it skips pages that were accessed since the hand
//!   last came by. It takes page cache first, down to a part that stays useful: clean pages are dropped,
//!   dirty ones are written back. Then it also writes anonymous pages to the swap disk. It only *tries*
//!   the lock of a page, because the reclaiming thread may hold the lock of another page.
//! - The balloon pins free pages in long runs. It leaves free pages up to the high watermark alone, so
//!   it cannot drive the guest out of memory. When the guest has nothing left to reclaim, the kernel
//!   asks the [`PressureHook`] for relief before it lets an allocation fail. A host that is short of
//!   memory itself gives no relief. The kernel goes on asking for ten seconds and no longer, because a
//!   guest must not hang.
//!
//! Lock order: the page lock of a mapping or a file, then one of the allocator's books, the slots of a
//! disk or the object table. All file I/O goes through bounce buffers: a system call into guest RAM could fail.

mod anon;
mod balloon;
mod cache;
mod disk;
mod object;
mod pages;
#[cfg(test)]
pub(crate) mod ram;
mod reclaim;
mod runs;
mod stage;
mod stats;
#[cfg(test)]
mod tests;
mod volume;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use thiserror::Error;

pub use anon::AnonRegion;
pub use balloon::BALLOON_RECLAIM_PAGES;
pub use cache::CachedFile;
pub use reclaim::{PressureHook, RELIEF_PAGES};
pub use stage::Stage;
pub use stats::KernelStats;
pub use volume::{DiskFile, Volume};

use crate::shim::Memory;
use cache::{FileKey, FileMap};
use disk::Disk;
use memvisor_wire::{Gfn, PAGE_SIZE};
use object::Objects;
use pages::PageAllocator;
use stats::Counters;

/// The fewest pages a guest can have: the kernel's own, those up to the high watermark, and a few to work with.
pub const MIN_PAGES: u32 = 16;

/// Why the kernel could not do what it was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// RAM is too small to run in.
    #[error("guest RAM has {pages} pages; at least {MIN_PAGES} are needed")]
    TooSmall {
        /// How many pages there are.
        pages: u32,
    },
    /// A disk could not be made.
    #[error("cannot create a {disk} in `{}`", directory.display())]
    DiskCreate {
        /// What the disk is for.
        disk: &'static str,
        /// Where it should be.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A page could not be read back from a disk. It stays there.
    #[error("cannot read slot {slot} of the {disk}")]
    DiskRead {
        /// What the disk is for.
        disk: &'static str,
        /// The slot.
        slot: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A page of a file could not be written back. It stays in the cache, and dirty.
    #[error("cannot write to the {disk}")]
    DiskWrite {
        /// What the disk is for.
        disk: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A page was to be added to a file, but the disk has no slot left.
    #[error("all {slots} slots of the {disk} are in use")]
    DiskFull {
        /// What the disk is for.
        disk: &'static str,
        /// How many slots the disk has.
        slots: u32,
    },
    /// Nothing is free, nothing can be reclaimed, and nobody gave relief.
    #[error(
        "guest is out of memory: {anon} pages are in use, {balloon} in the balloon, and {swap_free} slots of the swap disk are free"
    )]
    OutOfMemory {
        /// Anonymous pages in RAM.
        anon: u32,
        /// Pages in the balloon.
        balloon: u32,
        /// Free slots of the swap disk.
        swap_free: u32,
    },
    /// An access leaves its region or file.
    #[error("bytes {offset}+{len} are outside a region of {size} bytes")]
    OutOfRange {
        /// Where the access starts.
        offset: u64,
        /// How long it is.
        len: usize,
        /// The size of the region.
        size: u64,
    },
    /// A page that is not in the balloon cannot leave it.
    #[error("{gfn} is not in the balloon, or is named twice")]
    NotBallooned {
        /// The page.
        gfn: Gfn,
    },
    /// A file could not be opened or read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a kernel boots with.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The size of the swap disk in pages; 0 for none.
    pub swap_pages: u32,
    /// The directory of the files behind the disks, which have no names. Do not use a file system in
    /// memory such as tmpfs: what the guest writes to a disk would only move within the host's memory.
    pub disk_directory: PathBuf,
}

/// The kernel of one guest.
pub struct Kernel {
    memory: Arc<dyn Memory>,
    pages: PageAllocator,
    objects: Objects,
    files: Mutex<HashMap<FileKey, (u32, Arc<FileMap>)>>,
    swap: Disk,
    disk_directory: PathBuf,
    hand: AtomicU32,
    counters: Counters,
    hook: RwLock<Option<Weak<dyn PressureHook>>>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Boots a kernel on `memory`. The kernel owns all of it from now on, but touches none of it yet.
    ///
    /// # Errors
    /// [`KernelError::TooSmall`] and [`KernelError::DiskCreate`].
    pub fn new(memory: Arc<dyn Memory>, options: &KernelOptions) -> Result<Arc<Self>, KernelError> {
        let pages = memory.pages();
        if pages < MIN_PAGES {
            return Err(KernelError::TooSmall { pages });
        }
        Ok(Arc::new(Self {
            memory,
            pages: PageAllocator::new(pages),
            objects: Objects::default(),
            files: Mutex::default(),
            swap: Disk::create(
                "swap disk",
                &options.disk_directory,
                options.swap_pages,
                Duration::ZERO,
            )?,
            disk_directory: options.disk_directory.clone(),
            hand: AtomicU32::new(0),
            counters: Counters::default(),
            hook: RwLock::new(None),
        }))
    }

    /// The most pages of anonymous memory that fit in RAM and on the swap disk together, when the
    /// balloon is empty. The kernel's own pages and those up to the high watermark do not count.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.ram_capacity()) + u64::from(self.swap.pages())
    }

    /// The part of [`Self::capacity`] that is RAM.
    #[must_use]
    pub fn ram_capacity(&self) -> u32 {
        let kept = pages::KERNEL_PAGES + self.pages.high_watermark();
        self.pages.pages().saturating_sub(kept)
    }

    fn write_page(&self, gfn: Gfn, page: &Bounce) {
        self.memory.write(gfn, 0, &page.0);
    }
}

/// A page in the kernel's own memory, between a disk and guest RAM. Direct I/O needs the alignment.
#[repr(C, align(4096))]
struct Bounce([u8; PAGE_SIZE]);

static ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

impl Bounce {
    const fn zeroed() -> Self {
        Self([0; PAGE_SIZE])
    }
}

/// The part of an access that lies in one page: the page, its first byte, and the range of the caller's buffer.
struct Piece {
    page: u32,
    at: usize,
    range: std::ops::Range<usize>,
}

/// Cuts an access of `len` bytes at `offset` at the page boundaries. The caller has checked that
/// it stays inside an object of at most 2^32 pages.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = offset + done as u64;
        let at = (from % PAGE_SIZE as u64) as usize;
        let range = done..len.min(done + PAGE_SIZE - at);
        done = range.end;
        (!range.is_empty()).then_some(Piece {
            page: (from / PAGE_SIZE as u64) as u32,
            at,
            range,
        })
    })
}

/// Accesses `len` bytes at `offset` of an object of `pages` pages, page by page, up to the first that fails.
fn by_page(
    pages: u32,
    offset: u64,
    len: usize,
    access: impl FnMut(Piece) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    check_range(pages, offset, len)?;
    pieces(offset, len).try_for_each(access)
}

/// Whether an access of `len` bytes at `offset` stays inside an object of `pages` pages.
fn check_range(pages: u32, offset: u64, len: usize) -> Result<(), KernelError> {
    let size = u64::from(pages) * PAGE_SIZE as u64;
    let end = offset.checked_add(len as u64);
    if end.is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(KernelError::OutOfRange { offset, len, size })
}

/// Locks, even after a panic of another thread: each change is one step, so no book is half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks unless somebody else holds the lock.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(error)) => Some(error.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}
