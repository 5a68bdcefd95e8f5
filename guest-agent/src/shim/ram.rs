//! Guest RAM as this process maps it, and the ways to remap and to protect a part of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use crate::protocol::memory::{Engine, Op, Remap};
use crate::protocol::{Gfn, GfnRun, PAGE_SIZE};

use super::mapping::Mapping;
use super::uffd::{self, Userfault};

/// The one linear mapping of guest RAM, and what is needed to remap parts of it.
///
/// It is never unmapped: threads of the guest may be inside it until the process ends.
#[derive(Debug)]
pub(super) struct RamMap {
    base: usize,
    pages: u32,
    pool_frames: u32,
    ram: OwnedFd,
    /// Only the memory thread uses it.
    pool: Mutex<OwnedFd>,
    uffd: Option<Userfault>,
}

/// Maps the first `len` bytes of a file, shared; where.
pub(super) fn map_file(file: BorrowedFd<'_>, len: usize, protection: i32) -> io::Result<usize> {
    // SAFETY: a null hint lets the kernel choose free address space, so no existing mapping is
    // touched; the descriptor is open; offset 0 is page aligned.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base as usize)
}

impl RamMap {
    /// Maps RAM so that every access waits for the daemon: with a userfaultfd by registering it,
    /// without one by allowing no access.
    pub(super) fn new(
        pages: u32,
        pool_frames: u32,
        ram: OwnedFd,
        pool: OwnedFd,
        uffd: Option<Userfault>,
    ) -> io::Result<Self> {
        let len = pages as usize * PAGE_SIZE;
        let protection = if uffd.is_some() {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_NONE
        };
        let base = map_file(ram.as_fd(), len, protection)?;
        let map = Self {
            base,
            pages,
            pool_frames,
            ram,
            pool: Mutex::new(pool),
            uffd,
        };
        map.register(GfnRun::new(Gfn(0), pages))
            .map_err(io::Error::from_raw_os_error)?;
        Ok(map)
    }

    pub(super) const fn base(&self) -> usize {
        self.base
    }

    pub(super) fn uffd(&self) -> Option<BorrowedFd<'_>> {
        self.uffd.as_ref().map(AsFd::as_fd)
    }

    pub(super) const fn engine(&self) -> Engine {
        if self.uffd.is_some() {
            Engine::Uffd
        } else {
            Engine::Mprotect
        }
    }

    /// The address of a page.
    pub(super) const fn address(&self, gfn: Gfn) -> usize {
        self.base + gfn.index() * PAGE_SIZE
    }

    /// The page behind an address, or `None` outside RAM.
    pub(super) fn gfn_of(&self, address: usize) -> Option<Gfn> {
        let page = address.checked_sub(self.base)? / PAGE_SIZE;
        let gfn = u32::try_from(page).ok()?;
        (gfn < self.pages).then_some(Gfn(gfn))
    }

    /// The address range of a run, or EINVAL if it leaves RAM.
    fn range(&self, run: GfnRun) -> Result<(*mut libc::c_void, usize), i32> {
        if run.count == 0 || run.end() > u64::from(self.pages) {
            return Err(libc::EINVAL);
        }
        let address = self.address(run.start);
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
        check(unsafe { libc::madvise(address, len, libc::MADV_DONTNEED) })
    }

    fn protect(&self, run: GfnRun, protection: i32) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which belongs to the shim.
        // An access by the guest that is not allowed raises SIGSEGV, which our handler serves; the daemon
        // allows only what is in place.
        check(unsafe { libc::mprotect(address, len, protection) })
    }

    /// Maps frames of the share pool, read-only, over RAM pages.
    fn map_shared(&self, run: GfnRun, frame: u32) -> Result<(), i32> {
        if u64::from(frame) + u64::from(run.count) > u64::from(self.pool_frames) {
            return Err(libc::EINVAL);
        }
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        self.map(run, libc::PROT_READ, 0, pool.as_fd(), frame)
    }

    /// Maps RAM back over a run so that accesses fault to the daemon first.
    fn map_private(&self, run: GfnRun) -> Result<(), i32> {
        // Closed first: between mapping and registering, an access would allocate a page behind the
        // daemon's back. Without access it raises SIGSEGV, and the handler's question waits at the locked
        // page.
        self.map(run, libc::PROT_NONE, 0, self.ram.as_fd(), run.start.0)?;
        if self.uffd.is_none() {
            return Ok(());
        }
        self.register(run)?;
        self.protect(run, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Has faults on a run that was mapped anew reported again, where there is a userfaultfd.
    fn register(&self, run: GfnRun) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        let register = |uffd: &Userfault| uffd.register(address as usize, len);
        self.uffd.as_ref().map_or(Ok(()), register)
    }

    /// Maps a part of a file over a run, shared, with these flags beside.
    fn map(
        &self,
        run: GfnRun,
        protection: i32,
        flags: i32,
        file: BorrowedFd<'_>,
        page: u32,
    ) -> Result<(), i32> {
        let (address, len) = self.range(run)?;
        let offset = i64::from(page) * PAGE_SIZE as i64;
        let flags = flags | libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range is page aligned and inside the RAM mapping (`range`), which only the
        // shim manages, so MAP_FIXED replaces nothing else; the file is open and at least as long
        // as offset + len (RAM: same page numbers; pool: checked by `map_shared`).
        let mapped =
            unsafe { libc::mmap(address, len, protection, flags, file.as_raw_fd(), offset) };
        check(if mapped == libc::MAP_FAILED { -1 } else { 0 })
    }

    fn byte(&self, gfn: Gfn, at: usize, len: usize) -> *mut u8 {
        assert!(
            gfn.0 < self.pages,
            "{gfn} of a guest with {} pages",
            self.pages
        );
        assert!(at + len <= PAGE_SIZE, "bytes {at}+{len} leave the page");
        (self.address(gfn) + at) as *mut u8
    }
}

impl Mapping for RamMap {
    fn pages(&self) -> u32 {
        self.pages
    }

    fn remap(&self, op: Op, Remap { run, frame }: Remap) -> Result<(), i32> {
        match (op, self.engine()) {
            (Op::Freeze, Engine::Uffd) => self.drop_entries(run),
            (Op::Freeze, Engine::Mprotect) | (Op::Close, _) => self.protect(run, libc::PROT_NONE),
            (Op::Open, _) => self.protect(run, libc::PROT_READ | libc::PROT_WRITE),
            (Op::Reveal, _) => self.protect(run, libc::PROT_READ),
            (Op::MapShared, _) => self.map_shared(run, frame),
            (Op::MapPrivate, _) => self.map_private(run),
        }
    }

    fn map_present(&self, run: GfnRun) -> Result<(), i32> {
        // Present pages are mapped at once, which saves a minor fault for each.
        let (flags, protection) = (libc::MAP_POPULATE, libc::PROT_READ | libc::PROT_WRITE);
        self.map(run, protection, flags, self.ram.as_fd(), run.start.0)?;
        self.register(run)
    }

    fn install(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) -> Result<(), i32> {
        let uffd = self.uffd().ok_or(libc::ENOTTY)?;
        uffd::copy(uffd, self.address(gfn), page)
    }

    fn open(&self, gfn: Gfn) -> Result<(), i32> {
        let uffd = self.uffd().ok_or(libc::ENOTTY)?;
        uffd::map_present(uffd, self.address(gfn))
    }

    fn copy_to_ram(&self, gfn: Gfn) -> Result<(), i32> {
        let (address, len) = self.range(GfnRun::single(gfn))?;
        let offset = i64::try_from(gfn.offset()).map_err(|_| libc::EINVAL)?;
        // SAFETY: the range is one page inside the RAM mapping (`range`), from which the kernel reads on
        // its own: a page that cannot be read is EFAULT. The file is open; nobody maps its hole.
        let written = unsafe { libc::pwrite(self.ram.as_raw_fd(), address, len, offset) };
        match usize::try_from(written) {
            Ok(written) if written == len => Ok(()),
            Ok(_) => Err(libc::EIO),
            Err(_) => Err(nix::errno::Errno::last_raw()),
        }
    }

    fn punch(&self, run: GfnRun) -> Result<(), i32> {
        let (_, len) = self.range(run)?;
        let offset = i64::try_from(run.start.offset()).map_err(|_| libc::EINVAL)?;
        let len = i64::try_from(len).map_err(|_| libc::EINVAL)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call takes its arguments by value and touches no memory of this process but the
        // mappings of these pages, which the caller has to itself.
        check(unsafe { libc::fallocate(self.ram.as_raw_fd(), mode, offset, len) })
    }
}

fn check(returned: i32) -> Result<(), i32> {
    if returned == 0 {
        Ok(())
    } else {
        Err(nix::errno::Errno::last_raw())
    }
}

/// Guest RAM as the kernel sees it, see [`Memory`](super::Memory).
impl RamMap {
    pub(super) fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        let from = self.byte(gfn, at, into.len()).cast_const();
        // SAFETY: `byte` checked that the range lies in one page of the RAM mapping, which is never
        // unmapped; an access that is not allowed raises a fault that the handler or the daemon
        // resolves before the load is retried; `into` is private memory and does not overlap RAM.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    pub(super) fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        let into = self.byte(gfn, at, from.len());
        // SAFETY: as for `read`; the trait's contract keeps two threads from writing the same bytes.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
    }
}
