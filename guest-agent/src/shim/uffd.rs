//! The guest's half of userfaultfd: open, negotiate, register. The daemon resolves the faults.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::protocol::PAGE_SIZE;

/// Faults of user code only: the one kind that needs no privilege, and all that a guest which never
/// passes its RAM to a system call can cause.
const UFFD_USER_MODE_ONLY: libc::c_int = 1;

const UFFD_API: u64 = 0xaa;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
/// A fault raises SIGBUS on its thread instead of waiting for whoever reads the descriptor.
const FEATURE_SIGBUS: u64 = 1 << 7;
/// The daemon is told which thread faults.
const FEATURE_THREAD_ID: u64 = 1 << 8;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
/// What the engine cannot do without, and what every kernel has that has these.
const NEEDED: u64 = FEATURE_MISSING_SHMEM | FEATURE_MINOR_SHMEM | FEATURE_THREAD_ID;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// With these, Linux 6.7, the kernel notes which pages were written. No write ever waits for that.
const TRACKING: u64 = FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;
const REGISTER_MODE_MINOR: u64 = 1 << 2;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct UffdioContinue {
    start: u64,
    len: u64,
    mode: u64,
    mapped: i64,
}

// A wrong size would make another call of it.
const _: () = assert!(size_of::<UffdioApi>() == 24);
const _: () = assert!(size_of::<UffdioRegister>() == 32);
const _: () = assert!(size_of::<UffdioCopy>() == 40);
const _: () = assert!(size_of::<UffdioContinue>() == 32);

/// Each call reads and writes exactly one structure.
mod call {
    use super::{UffdioApi, UffdioContinue, UffdioCopy, UffdioRegister};

    nix::ioctl_readwrite!(register, 0xaa, 0x00, UffdioRegister);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, UffdioCopy);
    nix::ioctl_readwrite!(map_present, 0xaa, 0x07, UffdioContinue);
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, UffdioApi);
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

/// Opens one whose faults are signals to the threads that fault.
///
/// # Errors
/// As [`open`].
pub fn open_for_signals() -> io::Result<Userfault> {
    open_with(NEEDED | FEATURE_SIGBUS)
}

fn open_with(features: u64) -> io::Result<Userfault> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
    // SAFETY: the system call takes flags by value and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above just returned this descriptor, so it is open and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // After a refusal the descriptor is as new.
    let tracks_writes = negotiate(&fd, features | TRACKING).is_ok();
    if !tracks_writes {
        negotiate(&fd, features)?;
    }
    Ok(Userfault { fd, tracks_writes })
}

fn negotiate(uffd: &OwnedFd, features: u64) -> io::Result<()> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: `uffd` is open, and `api` outlives the call.
    unsafe { call::api(uffd.as_raw_fd(), &raw mut api) }?;
    Ok(())
}

impl Userfault {
    /// Whether the kernel notes which pages of a registered range are written.
    #[must_use]
    pub const fn tracks_writes(&self) -> bool {
        self.tracks_writes
    }

    /// Registers `len` bytes at `start`: absent and unmapped pages wait for the daemon from now on.
    ///
    /// Safe to call from a signal handler.
    ///
    /// # Errors
    /// The errno: `EINVAL` when the range is not mapped, or not of shared memory.
    pub fn register(&self, start: usize, len: usize) -> Result<(), i32> {
        let tracking = if self.tracks_writes {
            REGISTER_MODE_WP
        } else {
            0
        };
        let mode = REGISTER_MODE_MISSING | REGISTER_MODE_MINOR | tracking;
        let mut register = UffdioRegister {
            start: start as u64,
            len: len as u64,
            mode,
            ioctls: 0,
        };
        // SAFETY: the descriptor is open as long as `self`, and `register` outlives the call. The kernel checks
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

/// How often a page is put into a hole before it counts as no hole.
///
/// The kernel may say EEXIST not only for a page that is there: a page table that is freed between its
/// allocation and its use makes the call fail in the same way, and since Linux 6.14
/// the `madvise(DONTNEED)` of our freezes frees page tables that it empties.
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
        let mut copy = UffdioCopy {
            dst: address as u64,
            src: page.as_ptr() as u64,
            len: PAGE_SIZE as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `copy` outlives the call, which also reads the
        // live `page`. It fills a page that is absent and never changes one that is there; the kernel checks the
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

/// Maps the page of the file that is at `address`.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// The errno: `EFAULT` when the file has a hole there. A page that is mapped already is none.
pub fn map_present(uffd: BorrowedFd<'_>, address: usize) -> Result<(), i32> {
    let mut range = UffdioContinue {
        start: address as u64,
        len: PAGE_SIZE as u64,
        mode: 0,
        mapped: 0,
    };
    // SAFETY: `uffd` is open for the life of the borrow, and `range` outlives the call. It maps what the file holds and
    // changes no byte; the kernel checks the address.
    match unsafe { call::map_present(uffd.as_raw_fd(), &raw mut range) } {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno as i32),
    }
}
