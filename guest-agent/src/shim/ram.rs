//! Guest RAM as this process maps it, and the ways to remap and to protect parts of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use memvisor_wire::memory::{Op, Remap};
use memvisor_wire::sys::uffd::{self, Userfault};
use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect};

use super::Memory;
use super::linear::Linear;
use super::mapping::Mapping;

/// The access that the guest has to a private page.
const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

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
    // SAFETY: a null hint lets the kernel choose free address space, so no existing mapping is
    // touched; the descriptor is open; offset 0 is page aligned.
    let base = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }?;
    Ok(base as usize)
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
        let base = map_file(ram.as_fd(), len, access)?;
        // SAFETY: just mapped, that long, and never unmapped; the handler or the daemon resolves its faults.
        let linear = unsafe { Linear::at(base, pages) };
        let map = Self {
            linear,
            pool_frames,
            ram,
            pool: Mutex::new(pool),
            uffd,
        };
        map.register(GfnRun::new(Gfn(0), pages))
            .map_err(io::Error::from_raw_os_error)?;
        Ok(map)
    }

    pub(super) fn uffd(&self) -> Option<BorrowedFd<'_>> {
        self.uffd.as_ref().map(AsFd::as_fd)
    }

    /// The address range of a run, or EINVAL if it leaves RAM.
    fn range(&self, run: GfnRun) -> Result<(*mut libc::c_void, usize), i32> {
        if run.count == 0 || run.end() > u64::from(self.linear.pages()) {
            return Err(libc::EINVAL);
        }
        let address = self.linear.address(run.start);
        Ok((address as *mut libc::c_void, run.count as usize * PAGE_SIZE))
    }

    /// Takes frames from another pool from now on.
    pub(super) fn set_pool(&self, pool: OwnedFd) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool;
    }

    fn drop_entries(&self, run: GfnRun) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`). On a shared mapping this
        // drops page-table entries only; the content stays in the memfd, and the next access is a minor
        // fault that waits for the daemon.
        let dropped = unsafe { madvise(address, len, Advice::LinuxDontNeed) };
        dropped.map_err(Errno::raw_os_error)
    }

    fn protect(&self, run: GfnRun, access: MprotectFlags) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which belongs to the shim.
        // An access by the guest that is not allowed raises SIGSEGV, which our handler serves; the daemon
        // allows only what is in place.
        let protected = unsafe { mprotect(address, len, access) };
        protected.map_err(Errno::raw_os_error)
    }

    /// Maps frames of the share pool, read-only, over RAM pages.
    fn map_shared(&self, run: GfnRun, frame: u32) -> Result<(), i32> {
        if u64::from(frame) + u64::from(run.count) > u64::from(self.pool_frames) {
            return Err(libc::EINVAL);
        }
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        self.map(run, ProtFlags::READ, MapFlags::empty(), pool.as_fd(), frame)
    }

    /// Maps RAM back over a run so that accesses fault to the daemon first.
    fn map_private(&self, run: GfnRun) -> Result<(), i32> {
        // Mapped without access first: an access between mapping and registering would otherwise allocate
        // a page behind the daemon's back. Now it raises SIGSEGV, and the handler's question waits, because
        // the daemon holds the lock of the page.
        let (access, flags) = (ProtFlags::empty(), MapFlags::empty());
        self.map(run, access, flags, self.ram.as_fd(), run.start.0)?;
        if self.uffd.is_none() {
            return Ok(());
        }
        self.register(run)?;
        self.protect(run, MprotectFlags::READ | MprotectFlags::WRITE)
    }

    /// Registers a newly mapped run with the userfaultfd, if there is one: a new mapping is not registered.
    fn register(&self, run: GfnRun) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        let register = |uffd: &Userfault| uffd.register(address as usize, len);
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
    ) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        let offset = u64::from(page) * PAGE_SIZE as u64;
        let flags = flags | MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which only the
        // shim manages, so MAP_FIXED replaces nothing else; the file is open and at least as long
        // as offset + len (RAM: same page numbers; pool: checked by `map_shared`).
        let mapped = unsafe { mmap(address, len, access, flags, file, offset) };
        mapped.map(drop).map_err(Errno::raw_os_error)
    }
}

impl Mapping for RamMap {
    fn pages(&self) -> u32 {
        self.linear.pages()
    }

    fn remap(&self, op: Op, Remap { run, frame }: Remap) -> Result<(), i32> {
        match (op, &self.uffd) {
            (Op::Freeze, Some(_)) => self.drop_entries(run),
            (Op::Freeze, None) | (Op::Close, _) => self.protect(run, MprotectFlags::empty()),
            (Op::Open, _) => self.protect(run, MprotectFlags::READ | MprotectFlags::WRITE),
            (Op::Reveal, _) => self.protect(run, MprotectFlags::READ),
            (Op::MapShared, _) => self.map_shared(run, frame),
            (Op::MapPrivate, _) => self.map_private(run),
        }
    }

    fn map_present(&self, run: GfnRun) -> Result<(), i32> {
        // POPULATE maps the present pages at once, which saves a minor fault for each.
        let (file, page) = (self.ram.as_fd(), run.start.0);
        // With access before it is registered, unlike `map_private`: all of the run is present, so nothing is
        // allocated.
        self.map(run, READ_WRITE, MapFlags::POPULATE, file, page)?;
        self.register(run)
    }

    fn install(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) -> Result<(), i32> {
        let uffd = self.uffd().ok_or(libc::ENOTTY)?;
        uffd::copy(uffd, self.linear.address(gfn), page)
    }

    fn open(&self, gfn: Gfn) -> Result<(), i32> {
        let uffd = self.uffd().ok_or(libc::ENOTTY)?;
        uffd::map_present(uffd, self.linear.address(gfn))
    }

    fn copy_to_ram(&self, gfn: Gfn) -> Result<(), i32> {
        let (address, len) = self.range(GfnRun::single(gfn))?;
        // Through the file, because at the page's own address the guest still reads the frame.
        let offset = i64::try_from(gfn.offset()).map_err(|_| libc::EINVAL)?;
        // SAFETY: the range is one page inside the RAM mapping (`range`). The kernel reads it by itself, so a page that
        // cannot be read gives EFAULT. The file is open, and the hole that is written is mapped by nobody.
        let written = unsafe { libc::pwrite(self.ram.as_raw_fd(), address, len, offset) };
        match usize::try_from(written) {
            Ok(written) if written == len => Ok(()),
            Ok(_) => Err(libc::EIO),
            Err(_) => Err(nix::errno::Errno::last_raw()),
        }
    }

    fn punch(&self, run: GfnRun) -> Result<(), i32> {
        let (_, len) = self.range(run)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = fallocate(&self.ram, hole, run.start.offset(), len as u64);
        punched.map_err(Errno::raw_os_error)
    }
}
