//! The daemon's half of userfaultfd: read faults of a guest, resolve them in its address space.
//!
//! The guest opened, registered and passed the descriptor. No event features are enabled, so no
//! remove, remap or fork event ever comes and no ioctl waits for one to be read.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::units::{PAGE_SIZE, PageBuf};

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `UFFDIO_ZEROPAGE` and `UFFDIO_CONTINUE` have the same layout.
#[repr(C)]
struct Fill {
    start: u64,
    len: u64,
    mode: u64,
    filled: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    _reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    _reserved_too: u32,
}

/// `_IOWR(0xAA, number, size)`, or `_IOR` with direction 2, as the kernel's headers build them.
const fn ioc(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0xaa << 8) | number
}

const WAKE: u64 = ioc(2, 0x02, size_of::<Range>());
const COPY: u64 = ioc(3, 0x03, size_of::<Copy>());
const ZEROPAGE: u64 = ioc(3, 0x04, size_of::<Fill>());
const CONTINUE: u64 = ioc(3, 0x07, size_of::<Fill>());

const _: () = assert!(WAKE == 0x8010_aa02);
const _: () = assert!(COPY == 0xc028_aa03);
const _: () = assert!(ZEROPAGE == 0xc020_aa04);
const _: () = assert!(CONTINUE == 0xc020_aa07);
const _: () = assert!(size_of::<Message>() == 32);

const EVENT_PAGEFAULT: u8 = 0x12;
/// How often a page is put into a hole before it counts as no hole.
///
/// The kernel may say EEXIST not only for a page that is there: a page table that is freed between its
/// allocation and its use by `COPY` or `ZEROPAGE` makes them fail in the same way, and since Linux 6.14
/// the `madvise(DONTNEED)` of our freezes frees page tables that it empties.
const ATTEMPTS: u32 = 100;
/// Faults read by one system call; more would only delay the first of them.
const BATCH: usize = 32;

/// What became of an attempt to give the guest a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page is there and whoever waited for it runs.
    Done,
    /// It was there already, or was just being unmapped; nobody was woken.
    Present,
    /// The guest's process is gone.
    Gone,
}

/// An access that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFault {
    /// What is accessed.
    pub address: u64,
    /// By which thread, as its own process counts them; 0 where the guest did not ask to have that told.
    pub thread: u32,
}

/// The userfaultfd of one guest.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Takes over a descriptor that a guest sent.
    ///
    /// # Errors
    /// `InvalidInput` when it is something else; what `fcntl(2)` says: whatever the guest sent, it
    /// must not be able to block us.
    pub fn from_guest(fd: OwnedFd) -> io::Result<Self> {
        // Without /proc it cannot be told, and another kind of file harms only its own guest.
        if let Ok(kind) = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            && kind != Path::new("anon_inode:[userfaultfd]")
        {
            let error = format!("it is `{}`", kind.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(fd))
    }

    /// Appends the waiting faults to `faults`; none when none wait.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn read_faults(&self, faults: &mut Vec<UserFault>) -> io::Result<()> {
        let mut bytes = [0; BATCH * size_of::<Message>()];
        let len = match nix::unistd::read(&self.0, &mut bytes) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for message in bytes[..len].chunks_exact(size_of::<Message>()) {
            if message[0] == EVENT_PAGEFAULT {
                let (address, thread) = message[16..]
                    .split_first_chunk()
                    .expect("32 bytes, asserted");
                let (thread, _) = thread.split_first_chunk().expect("the same");
                faults.push(UserFault {
                    address: u64::from_ne_bytes(*address),
                    thread: u32::from_ne_bytes(*thread),
                });
            }
        }
        Ok(())
    }

    /// Puts a copy of `content` at the page at `address` and wakes who waits for it.
    ///
    /// # Errors
    /// An unexpected errno, such as ENOMEM when the machine itself is out of memory.
    pub fn copy(&self, address: u64, content: &PageBuf) -> io::Result<Filled> {
        into_hole(|| self.try_copy(address, content))
    }

    fn try_copy(&self, address: u64, content: &PageBuf) -> io::Result<Filled> {
        let src = content.0.as_ptr() as u64;
        let mut arg = Copy {
            dst: address,
            src,
            len: PAGE_SIZE as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: COPY reads and writes one `Copy` (size asserted above) which outlives the call, and
        // reads 4096 bytes at `src`, a live `PageBuf`. It writes only the guest's address space.
        let done = unsafe { libc::ioctl(self.raw(), COPY as libc::Ioctl, &raw mut arg) };
        filled(done)
    }

    /// Puts a page of zeroes at `address` and wakes who waits for it.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn zero(&self, address: u64) -> io::Result<Filled> {
        into_hole(|| self.fill(ZEROPAGE, address))
    }

    /// Maps the page that is in the file already at `address` and wakes who waits for it.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn map_present(&self, address: u64) -> io::Result<Filled> {
        self.fill(CONTINUE, address)
    }

    fn fill(&self, operation: u64, address: u64) -> io::Result<Filled> {
        let mut arg = Fill {
            start: address,
            len: PAGE_SIZE as u64,
            mode: 0,
            filled: 0,
        };
        // SAFETY: ZEROPAGE and CONTINUE read and write one `Fill` (size asserted above) which
        // outlives the call; they change only the guest's address space.
        let done = unsafe { libc::ioctl(self.raw(), operation as libc::Ioctl, &raw mut arg) };
        filled(done)
    }

    /// Wakes who waits for the pages from `address` on; they access again.
    ///
    /// # Errors
    /// What `ioctl(2)` says, except that the guest is gone.
    pub fn wake(&self, address: u64, pages: u32) -> io::Result<()> {
        let mut arg = Range {
            start: address,
            len: u64::from(pages) * PAGE_SIZE as u64,
        };
        // SAFETY: WAKE reads one `Range` (size asserted above) which outlives the call; it writes
        // nothing.
        let done = unsafe { libc::ioctl(self.raw(), WAKE as libc::Ioctl, &raw mut arg) };
        filled(done).map(drop)
    }

    fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Repeats what fills a hole while it is told, for a moment, that there is none.
fn into_hole(mut fill: impl FnMut() -> io::Result<Filled>) -> io::Result<Filled> {
    for _ in 1..ATTEMPTS {
        match fill()? {
            Filled::Present => std::thread::yield_now(),
            filled => return Ok(filled),
        }
    }
    fill()
}

fn filled(returned: i32) -> io::Result<Filled> {
    if returned == 0 {
        return Ok(Filled::Done);
    }
    match Errno::last() {
        Errno::EEXIST => Ok(Filled::Present),
        // ESRCH: the address space is being torn down. ENOENT: the range is no longer registered,
        // which an honest shim never causes under a page lock; a lying one harms its own guest.
        Errno::ESRCH | Errno::ENOENT => Ok(Filled::Gone),
        errno => Err(errno.into()),
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
