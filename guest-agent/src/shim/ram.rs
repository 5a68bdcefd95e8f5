//! Guest RAM as this process maps it, and the ways to remap and to protect parts of it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use memvisor_wire::memory::{Op, Remap};
use memvisor_wire::sys::uffd::{self, Userfault};
use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect};

use super::Memory;
use super::linear::Linear;
use super::mapping::Mapping;

/// The access that the guest has to a private page.
pub(super) const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// The one linear mapping of guest RAM, and what is needed to remap parts of it.
///
/// It is never unmapped: threads of the guest may be inside it until the process ends.
#[derive(Debug)]
pub(super) struct RamMap {
    pub(super) linear: Linear,
    pool_frames: u32,
    ram: OwnedFd,
    /// Only the memory thread locks it, so the lock is never contended.
    pool: Mutex<OwnedFd>,
    uffd: Option<Userfault>,
}

/// Maps the first `len` bytes of a file, shared. Returns the address.
pub(super) fn map_file(file: BorrowedFd<'_>, len: usize, access: ProtFlags) -> io::Result<usize> {
    let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
    // SAFETY: the kernel chooses free address space, so no existing mapping is touched; the descriptor is open; offset
    // 0 is page aligned.
    let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, file, 0) }?;
    Ok(base.addr().get())
}

/// What a large page of the processor maps, and what an address must be a multiple of to have one.
const LARGE: usize = 2 << 20;
/// Half of that, in pages.
const HALF: u32 = (LARGE / PAGE_SIZE / 2) as u32;

/// As [`map_file`], at an address at which the file's large pages can be mapped.
fn map_aligned(file: BorrowedFd<'_>, len: usize, access: ProtFlags) -> io::Result<usize> {
    let room =
        NonZeroUsize::new(len.checked_add(LARGE).ok_or(Errno::ENOMEM)?).ok_or(Errno::EINVAL)?;
    let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: the kernel chooses free address space, so no existing mapping is touched.
    let reserved = unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, flags) }?;
    let start = reserved.addr().get();
    let base = NonZeroUsize::new(start.next_multiple_of(LARGE)).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    // SAFETY: the range is inside the one just reserved, which nobody else knows; the descriptor is open; offset 0 is
    // page aligned. What is left of the reservation at either side costs no memory, and stays.
    unsafe { mmap(Some(base), len, access, flags, file, 0) }?;
    Ok(base.get())
}

impl RamMap {
    /// Maps RAM so that every access waits for the daemon: if there is a userfaultfd, by registering RAM
    /// with it, else by allowing no access.
    pub(super) fn new(
        pages: u32,
        pool_frames: u32,
        ram: OwnedFd,
        pool: OwnedFd,
        uffd: Option<Userfault>,
    ) -> io::Result<Self> {
        let len = pages as usize * PAGE_SIZE;
        // With access at once: no thread of the guest runs yet that could touch a page before it is registered.
        let access = uffd.as_ref().map_or(ProtFlags::empty(), |_| READ_WRITE);
        let base = map_aligned(ram.as_fd(), len, access)?;
        // SAFETY: just mapped, that long, and never unmapped; the handler or the daemon resolves its faults.
        let linear = unsafe { Linear::at(base, pages) };
        let map = Self {
            linear,
            pool_frames,
            ram,
            pool: Mutex::new(pool),
            uffd,
        };
        map.register(GfnRun::new(Gfn(0), pages))?;
        Ok(map)
    }

    pub(super) fn uffd(&self) -> Option<BorrowedFd<'_>> {
        self.uffd.as_ref().map(AsFd::as_fd)
    }

    /// The address range of a run, or EINVAL if it leaves RAM.
    fn range(&self, run: GfnRun) -> nix::Result<(NonNull<libc::c_void>, NonZeroUsize)> {
        let address = NonNull::new(self.linear.address(run.start) as *mut _);
        let len = NonZeroUsize::new(run.count as usize * PAGE_SIZE);
        let fits = run.end() <= u64::from(self.linear.pages());
        address.zip(len).filter(|_| fits).ok_or(Errno::EINVAL)
    }

    /// Takes frames from another pool from now on.
    pub(super) fn set_pool(&self, pool: OwnedFd) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool;
    }

    fn drop_entries(&self, run: GfnRun) -> nix::Result<()> {
        let (address, len) = self.range(run)?;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`). On a shared mapping this
        // drops page-table entries only; the content stays in the memfd, and the next access is a minor
        // fault that waits for the daemon.
        unsafe { madvise(address, len.get(), MmapAdvise::MADV_DONTNEED) }
    }

    fn protect(&self, run: GfnRun, access: ProtFlags) -> nix::Result<()> {
        let (address, len) = self.range(run)?;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which belongs to the shim.
        // An access by the guest that is not allowed raises SIGSEGV, which our handler serves; the daemon
        // allows only what is in place.
        unsafe { mprotect(address, len.get(), access) }
    }

    /// Maps a run whose pages are all present, page by page: the kernel maps no part of it that is smaller than a large
    /// page as one.
    fn map_small(&self, run: GfnRun) -> nix::Result<()> {
        let mut rest = run;
        while rest.count > 0 {
            let count = (HALF - rest.start.0 % HALF).min(rest.count);
            self.map_present(GfnRun::new(rest.start, count))?;
            rest = GfnRun::new(Gfn(rest.start.0 + count), rest.count - count);
        }
        Ok(())
    }

    /// Backs a run whose pages are all present by a large page, and maps it as such.
    fn enlarge(&self, run: GfnRun) -> nix::Result<()> {
        let (address, len) = self.range(run)?;
        let (start, len) = (address.addr().get(), len.get());
        // Where writes are tracked, the kernel maps no large page.
        if let Some(uffd) = &self.uffd {
            uffd.unregister(start, len)?;
        }
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`). The advice changes no byte of pages
        // that are present. It would fill holes with zeroes; the daemon holds all pages of the run locked and resident.
        let done = unsafe { libc::madvise(address.as_ptr(), len, libc::MADV_COLLAPSE) };
        let enlarged = Errno::result(done).map(drop);
        let registered = match &self.uffd {
            Some(uffd) if enlarged.is_ok() => uffd.register_untracked(start, len),
            _ => self.register(run),
        };
        // A run that is not registered must not stay accessible: holes in it would fill behind the daemon's back.
        registered.or_else(|_| self.map_private(run))?;
        enlarged
    }

    /// Maps frames of the share pool, read-only, over RAM pages.
    fn map_shared(&self, run: GfnRun, frame: u32) -> nix::Result<()> {
        if u64::from(frame) + u64::from(run.count) > u64::from(self.pool_frames) {
            return Err(Errno::EINVAL);
        }
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let (access, flags) = (ProtFlags::PROT_READ, MapFlags::empty());
        self.map(run, access, flags, pool.as_fd(), frame)
    }

    /// Maps RAM back over a run so that accesses fault to the daemon first.
    fn map_private(&self, run: GfnRun) -> nix::Result<()> {
        // Mapped without access first: an access between mapping and registering would otherwise allocate
        // a page behind the daemon's back. Now it raises SIGSEGV, and the handler's question waits, because
        // the daemon holds the lock of the page.
        let (access, flags) = (ProtFlags::empty(), MapFlags::empty());
        self.map(run, access, flags, self.ram.as_fd(), run.start.0)?;
        if self.uffd.is_none() {
            return Ok(());
        }
        self.register(run)?;
        self.protect(run, READ_WRITE)
    }

    /// Registers a newly mapped run with the userfaultfd, if there is one: a new mapping is not registered.
    fn register(&self, run: GfnRun) -> nix::Result<()> {
        let (address, len) = self.range(run)?;
        let register = |uffd: &Userfault| uffd.register(address.addr().get(), len.get());
        self.uffd.as_ref().map_or(Ok(()), register)
    }

    /// Maps a part of a file over a run, shared, with additional `flags`.
    fn map(
        &self,
        run: GfnRun,
        access: ProtFlags,
        flags: MapFlags,
        file: BorrowedFd<'_>,
        page: u32,
    ) -> nix::Result<()> {
        let (address, len) = self.range(run)?;
        let offset = i64::from(page) * PAGE_SIZE as i64;
        let flags = flags | MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which only the
        // shim manages, so MAP_FIXED replaces nothing else; the file is open and at least as long
        // as offset + len (RAM: same page numbers; pool: checked by `map_shared`).
        unsafe { mmap(Some(address.addr()), len, access, flags, file, offset) }.map(drop)
    }
}

impl Mapping for RamMap {
    fn pages(&self) -> u32 {
        self.linear.pages()
    }

    fn remap(&self, op: Op, Remap { run, frame }: Remap) -> nix::Result<()> {
        match (op, &self.uffd) {
            (Op::Freeze, Some(_)) => self.drop_entries(run),
            (Op::Freeze, None) | (Op::Close, _) => self.protect(run, ProtFlags::PROT_NONE),
            (Op::Open, Some(_)) => self.map_small(run),
            (Op::Open, None) => self.protect(run, READ_WRITE),
            (Op::Enlarge, _) => self.enlarge(run),
            (Op::Reveal, _) => self.protect(run, ProtFlags::PROT_READ),
            (Op::MapShared, _) => self.map_shared(run, frame),
            (Op::MapPrivate, _) => self.map_private(run),
        }
    }

    fn map_present(&self, run: GfnRun) -> nix::Result<()> {
        // POPULATE maps the present pages at once, which saves a minor fault for each.
        let (file, page) = (self.ram.as_fd(), run.start.0);
        // With access before it is registered, unlike `map_private`: all of the run is present, so nothing is
        // allocated.
        self.map(run, READ_WRITE, MapFlags::MAP_POPULATE, file, page)?;
        self.register(run)
    }

    fn install(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) -> nix::Result<()> {
        let uffd = self.uffd().ok_or(Errno::ENOTTY)?;
        uffd::copy(uffd, self.linear.address(gfn) as u64, page)
    }

    fn open(&self, gfn: Gfn) -> nix::Result<()> {
        let uffd = self.uffd().ok_or(Errno::ENOTTY)?;
        match uffd::map_present(uffd, self.linear.address(gfn) as u64) {
            // Another thread was faster.
            Err(Errno::EEXIST) => Ok(()),
            mapped => mapped,
        }
    }

    fn copy_to_ram(&self, gfn: Gfn) -> nix::Result<()> {
        let (address, len) = self.range(GfnRun::single(gfn))?;
        // Through the file, because at the page's own address the guest still reads the frame.
        let (from, len, offset) = (address.as_ptr(), len.get(), gfn.offset() as i64);
        // SAFETY: the range is one page inside the RAM mapping (`range`). The kernel reads it by itself, so a page that
        // cannot be read gives EFAULT. The file is open, and the hole that is written is mapped by nobody.
        let written = unsafe { libc::pwrite(self.ram.as_raw_fd(), from, len, offset) };
        let is_whole = Errno::result(written)? as usize == len;
        is_whole.then_some(()).ok_or(Errno::EIO)
    }

    fn punch(&self, run: GfnRun) -> nix::Result<()> {
        let (_, len) = self.range(run)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.ram, hole, run.start.offset() as i64, len.get() as i64)
    }
}
