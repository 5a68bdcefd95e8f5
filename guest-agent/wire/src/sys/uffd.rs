//! The guest's half of userfaultfd: open, negotiate, register. The daemon resolves the faults.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general::{self as kernel, uffdio_range};
use nix::errno::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::PAGE_SIZE;

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

/// How often a call that gives a page is tried before its error is believed.
///
/// A page table can be freed between its allocation and its use: since Linux 6.14 the `madvise(DONTNEED)` of our
/// freezes frees the page tables that it empties. The call then fails with EAGAIN, or with EEXIST as if a page were
/// there. One freeze makes up to 256 such calls on one page table, one after the other, so there are more attempts.
const ATTEMPTS: u32 = 1000;
/// What the kernel says for a moment of a hole that can be filled.
pub const FILLING: [Errno; 2] = [Errno::EEXIST, Errno::EAGAIN];
/// What it says for a moment of a page that can be mapped.
pub const MAPPING: [Errno; 1] = [Errno::EAGAIN];

/// Makes `call` again while it fails with one of the errors that are `passing`.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// What the last call failed with.
pub fn retry<T>(passing: &[Errno], mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    for _ in 1..ATTEMPTS {
        match call() {
            // Whoever frees the page table may need this processor to go on.
            Err(errno) if passing.contains(&errno) => std::thread::yield_now(),
            done => return done,
        }
    }
    call()
}

/// Puts a copy of `page` at `address`, where there is a hole.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// The errno: `EEXIST` when there is no hole.
pub fn copy(uffd: BorrowedFd<'_>, address: usize, page: &[u8; PAGE_SIZE]) -> Result<(), i32> {
    let copied = retry(&FILLING, || {
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
        unsafe { call::copy(uffd.as_raw_fd(), &raw mut copy) }
    });
    copied.map(drop).map_err(|errno| errno as i32)
}

/// Maps the page that the file holds for `address`.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// The errno: `EFAULT` when the file has a hole there. A page that is mapped already is no error.
pub fn map_present(uffd: BorrowedFd<'_>, address: usize) -> Result<(), i32> {
    let mapped = retry(&MAPPING, || {
        let mut range = kernel::uffdio_continue {
            range: range(address, PAGE_SIZE),
            mode: 0,
            mapped: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `range` outlives the call. The call maps what the
        // file holds and changes no byte; the kernel checks the address.
        unsafe { call::map_present(uffd.as_raw_fd(), &raw mut range) }
    });
    match mapped {
        // EEXIST: another thread that faulted has mapped it.
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno as i32),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

    use super::*;

    /// What one page table maps.
    const TABLE: usize = 2 << 20;
    /// Enough for some of them to meet a freed page table on a kernel that frees them.
    const PAGES: usize = 50_000;

    /// A freeze of neighbours frees the page table that the only other page of it is just being mapped by.
    #[test]
    fn page_is_given_while_its_page_table_is_freed() {
        let Ok(uffd) = open() else {
            eprintln!("SKIPPED: no userfaultfd");
            return;
        };
        let file = File::from(memfd_create("table", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(2 * TABLE as u64).unwrap();
        let (anywhere, access) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a null hint lets the kernel choose free address space; the file is open, and the offset page aligned.
        let base = unsafe { mmap(anywhere, 2 * TABLE, access, MapFlags::SHARED, &file, 0) };
        let base = base.unwrap() as usize;
        let table = base.next_multiple_of(TABLE);
        let offset = (table - base) as u64;
        uffd.register(table, TABLE).unwrap();
        let page = [7; PAGE_SIZE];
        let begun = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            // Frees the table once while a page is given. A thread that is late does not make up for it: where tables
            // are freed without pause, no page is ever given.
            scope.spawn(|| {
                let mut seen = 0;
                while seen < PAGES {
                    let now = begun.load(Ordering::Relaxed);
                    if now == seen {
                        std::hint::spin_loop();
                        continue;
                    }
                    seen = now;
                    // SAFETY: the range is inside the mapping, which only this test has. Its pages stay in the file.
                    unsafe { madvise(table as *mut _, TABLE, Advice::LinuxDontNeed) }.unwrap();
                }
            });
            let give = |number| -> Result<(), i32> {
                begun.store(number + 1, Ordering::Relaxed);
                if number % 2 == 0 {
                    return map_present(uffd.as_fd(), table);
                }
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, hole, offset, PAGE_SIZE as u64).unwrap();
                copy(uffd.as_fd(), table, &page)
            };
            file.write_all_at(&page, offset).unwrap();
            let given: Vec<_> = (0..PAGES).map(give).collect();
            let failed = given.iter().filter(|given| given.is_err()).count();
            assert_eq!(
                failed,
                0,
                "of {PAGES}, as {:?}",
                given.iter().find(|it| it.is_err())
            );
        });
    }
}
