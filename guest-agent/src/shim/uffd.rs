//! The guest's half of userfaultfd: open, negotiate, register. The daemon resolves the faults.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general::{self as kernel, uffdio_range};
use nix::errno::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::protocol::PAGE_SIZE;

/// The features that the engine needs. The id of the faulting thread is one of them because every kernel that has
/// the other two has it too.
const NEEDED: u32 = kernel::UFFD_FEATURE_MISSING_SHMEM
    | kernel::UFFD_FEATURE_MINOR_SHMEM
    | kernel::UFFD_FEATURE_THREAD_ID;
/// With these features (Linux 6.7), the kernel notes which pages were written. No write ever waits for that.
const TRACKING: u32 = kernel::UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | kernel::UFFD_FEATURE_WP_UNPOPULATED
    | kernel::UFFD_FEATURE_WP_ASYNC;

/// Each call reads and writes exactly one structure.
mod call {
    use linux_raw_sys::general::*;

    nix::ioctl_readwrite!(register, UFFDIO, _UFFDIO_REGISTER, uffdio_register);
    nix::ioctl_readwrite!(copy, UFFDIO, _UFFDIO_COPY, uffdio_copy);
    nix::ioctl_readwrite!(map_present, UFFDIO, _UFFDIO_CONTINUE, uffdio_continue);
    nix::ioctl_readwrite!(api, UFFDIO, _UFFDIO_API, uffdio_api);
}

/// A userfaultfd of this process.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    tracks_writes: bool,
}

/// Opens a userfaultfd with the features the engine needs, and those that it can use.
///
/// # Errors
/// `ENOSYS` or `EPERM` where the kernel has or allows none, `EINVAL` where it lacks a feature
/// (minor faults of shared memory came with Linux 5.14).
pub fn open() -> io::Result<Userfault> {
    open_with(NEEDED)
}

/// Opens a userfaultfd whose faults are signals to the faulting threads.
///
/// # Errors
/// As [`open`].
pub fn open_for_signals() -> io::Result<Userfault> {
    open_with(NEEDED | kernel::UFFD_FEATURE_SIGBUS)
}

fn open_with(features: u32) -> io::Result<Userfault> {
    // Faults of user code only, which is the only kind that needs no privilege. A guest causes no other,
    // because it never passes its RAM to a system call.
    let user_mode = UserfaultfdFlags::from_bits_retain(kernel::UFFD_USER_MODE_ONLY);
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | user_mode;
    // SAFETY: the call touches no memory. Each use of the descriptor says why that use is safe.
    let fd = unsafe { userfaultfd(flags) }?;
    // A refused negotiation leaves the descriptor as new, so it can be tried again.
    let tracks_writes = negotiate(&fd, features | TRACKING).is_ok();
    if !tracks_writes {
        negotiate(&fd, features)?;
    }
    Ok(Userfault { fd, tracks_writes })
}

fn negotiate(uffd: &OwnedFd, features: u32) -> io::Result<()> {
    let mut api = kernel::uffdio_api {
        api: kernel::UFFD_API.into(),
        features: features.into(),
        ioctls: 0,
    };
    // SAFETY: `uffd` is open, and `api` outlives the call.
    unsafe { call::api(uffd.as_raw_fd(), &raw mut api) }?;
    Ok(())
}

const fn range(start: usize, len: usize) -> uffdio_range {
    let (start, len) = (start as u64, len as u64);
    uffdio_range { start, len }
}

impl Userfault {
    /// Whether the kernel notes which pages of a registered range are written.
    #[must_use]
    pub const fn tracks_writes(&self) -> bool {
        self.tracks_writes
    }

    /// Registers `len` bytes at `start`: from now on, accesses to absent and unmapped pages wait for the daemon.
    ///
    /// Safe to call from a signal handler.
    ///
    /// # Errors
    /// The errno: `EINVAL` when the range is not mapped, or not of shared memory.
    pub fn register(&self, start: usize, len: usize) -> Result<(), i32> {
        let tracking = if self.tracks_writes {
            kernel::UFFDIO_REGISTER_MODE_WP
        } else {
            0
        };
        let absent = kernel::UFFDIO_REGISTER_MODE_MISSING | kernel::UFFDIO_REGISTER_MODE_MINOR;
        let mut register = kernel::uffdio_register {
            range: range(start, len),
            mode: (absent | tracking).into(),
            ioctls: 0,
        };
        // SAFETY: the descriptor is open as long as `self` lives, and `register` outlives the call. The kernel checks
        // the range itself; registering changes when accesses wait, never what they read.
        let done = unsafe { call::register(self.fd.as_raw_fd(), &raw mut register) };
        done.map(drop).map_err(|errno| errno as i32)
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How often to try to put a page into a hole before EEXIST is believed.
///
/// The kernel says EEXIST not only for a page that is there. The call also fails so if a page table is freed
/// between its allocation and its use, and since Linux 6.14 the `madvise(DONTNEED)` of our freezes frees
/// the page tables that it empties.
pub const ATTEMPTS: u32 = 100;

/// Puts a copy of `page` at `address`, where there is a hole.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// The errno: `EEXIST` when there is no hole.
pub fn copy(uffd: BorrowedFd<'_>, address: usize, page: &[u8; PAGE_SIZE]) -> Result<(), i32> {
    let mut last = Errno::EEXIST;
    for _ in 0..ATTEMPTS {
        let mut copy = kernel::uffdio_copy {
            dst: address as u64,
            src: page.as_ptr() as u64,
            len: PAGE_SIZE as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `copy` outlives the call, which also reads the
        // live `page`. The call fills an absent page and never changes one that is there; the kernel checks the
        // address.
        match unsafe { call::copy(uffd.as_raw_fd(), &raw mut copy) } {
            Ok(_) => return Ok(()),
            Err(errno @ (Errno::EEXIST | Errno::EAGAIN)) => last = errno,
            Err(errno) => return Err(errno as i32),
        }
        std::thread::yield_now();
    }
    Err(last as i32)
}

/// Maps the page that the file holds for `address`.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// The errno: `EFAULT` when the file has a hole there. A page that is mapped already is no error.
pub fn map_present(uffd: BorrowedFd<'_>, address: usize) -> Result<(), i32> {
    let mut range = kernel::uffdio_continue {
        range: range(address, PAGE_SIZE),
        mode: 0,
        mapped: 0,
    };
    // SAFETY: `uffd` is open for the life of the borrow, and `range` outlives the call. The call maps what the file
    // holds and changes no byte; the kernel checks the address.
    match unsafe { call::map_present(uffd.as_raw_fd(), &raw mut range) } {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno as i32),
    }
}
