//! userfaultfd: a guest opens, negotiates and registers; whoever has the descriptor resolves the faults, which
//! is the daemon, or in an inline guest the faulting thread as well.

use std::io;
use std::mem::offset_of;
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

/// Each call reads exactly one structure, and writes no other memory of this process.
mod call {
    use linux_raw_sys::general::*;

    nix::ioctl_readwrite!(register, UFFDIO, _UFFDIO_REGISTER, uffdio_register);
    nix::ioctl_read!(unregister, UFFDIO, _UFFDIO_UNREGISTER, uffdio_range);
    nix::ioctl_read!(wake, UFFDIO, _UFFDIO_WAKE, uffdio_range);
    nix::ioctl_readwrite!(copy, UFFDIO, _UFFDIO_COPY, uffdio_copy);
    nix::ioctl_readwrite!(zero, UFFDIO, _UFFDIO_ZEROPAGE, uffdio_zeropage);
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

/// The page at `start`.
const fn page_at(start: u64) -> uffdio_range {
    let len = PAGE_SIZE as u64;
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
    /// `EINVAL` when the range is not mapped, or not of shared memory.
    pub fn register(&self, start: usize, len: usize) -> nix::Result<()> {
        let tracking = if self.tracks_writes {
            kernel::UFFDIO_REGISTER_MODE_WP
        } else {
            0
        };
        self.register_with(start, len, tracking)
    }

    /// As [`register`](Self::register), but the kernel does not note which pages are written. So it may map large pages
    /// as such. The range must not be registered.
    ///
    /// # Errors
    /// As [`register`](Self::register).
    pub fn register_untracked(&self, start: usize, len: usize) -> nix::Result<()> {
        self.register_with(start, len, 0)
    }

    /// Ends the registration of `len` bytes at `start`. Until they are registered again, an access to an absent page
    /// gets a page of zeroes, so no page may be absent.
    ///
    /// # Errors
    /// `EINVAL` when the range is not mapped, `ENOMEM` at the limit of VMAs.
    pub fn unregister(&self, start: usize, len: usize) -> nix::Result<()> {
        let (start, len) = (start as u64, len as u64);
        let mut range = uffdio_range { start, len };
        // SAFETY: the descriptor is open as long as `self` lives, and `range` outlives the call, which writes no
        // memory of this process.
        unsafe { call::unregister(self.fd.as_raw_fd(), &raw mut range) }.map(drop)
    }

    fn register_with(&self, start: usize, len: usize, tracking: u32) -> nix::Result<()> {
        let (start, len) = (start as u64, len as u64);
        let absent = kernel::UFFDIO_REGISTER_MODE_MISSING | kernel::UFFDIO_REGISTER_MODE_MINOR;
        let mut register = kernel::uffdio_register {
            range: uffdio_range { start, len },
            mode: (absent | tracking).into(),
            ioctls: 0,
        };
        // SAFETY: the descriptor is open as long as `self` lives, and `register` outlives the call. The kernel checks
        // the range itself; registering changes when accesses wait, never what they read.
        let done = unsafe { call::register(self.fd.as_raw_fd(), &raw mut register) };
        done.map(drop)
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
const FILLING: [Errno; 2] = [Errno::EEXIST, Errno::EAGAIN];
/// What it says for a moment of a page that can be mapped.
const MAPPING: [Errno; 1] = [Errno::EAGAIN];

/// Makes `call` again while it fails with one of the errors that are `passing`.
///
/// Safe to call from a signal handler.
fn retry(passing: &[Errno], mut call: impl FnMut() -> nix::Result<i32>) -> nix::Result<()> {
    for _ in 1..ATTEMPTS {
        match call() {
            // Whoever frees the page table may need this processor to go on.
            Err(errno) if passing.contains(&errno) => std::thread::yield_now(),
            done => return done.map(drop),
        }
    }
    call().map(drop)
}

/// Puts a copy of `page` at `address`, where there is a hole, and wakes the threads that wait for it.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// `EEXIST` when there is no hole; `ESRCH` when the address space is gone, `ENOENT` when nothing is registered there.
pub fn copy(uffd: BorrowedFd<'_>, address: u64, page: &[u8; PAGE_SIZE]) -> nix::Result<()> {
    retry(&FILLING, || {
        let mut copy = kernel::uffdio_copy {
            dst: address,
            src: page.as_ptr() as u64,
            len: PAGE_SIZE as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `copy` outlives the call, which also reads the
        // live `page`. The call fills an absent page and never changes one that is there; the kernel checks the
        // address.
        unsafe { call::copy(uffd.as_raw_fd(), &raw mut copy) }
    })
}

/// Puts a page of zeroes at `address`, as [`copy`] does.
///
/// # Errors
/// As [`copy`].
pub fn zero(uffd: BorrowedFd<'_>, address: u64) -> nix::Result<()> {
    retry(&FILLING, || {
        let mut zero = kernel::uffdio_zeropage {
            range: page_at(address),
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `zero` outlives the call. The call fills an absent
        // page and never changes one that is there; the kernel checks the address.
        unsafe { call::zero(uffd.as_raw_fd(), &raw mut zero) }
    })
}

/// Maps the page that the file holds for `address`, and wakes the threads that wait for it.
///
/// Safe to call from a signal handler.
///
/// # Errors
/// `EEXIST` when a page is mapped already, `EFAULT` when the file has a hole there; otherwise as [`copy`].
pub fn map_present(uffd: BorrowedFd<'_>, address: u64) -> nix::Result<()> {
    retry(&MAPPING, || {
        let mut present = kernel::uffdio_continue {
            range: page_at(address),
            mode: 0,
            mapped: 0,
        };
        // SAFETY: `uffd` is open for the life of the borrow, and `present` outlives the call. The call maps what the
        // file holds and changes no byte; the kernel checks the address.
        unsafe { call::map_present(uffd.as_raw_fd(), &raw mut present) }
    })
}

/// Wakes the threads that wait for the pages from `address` on; they access them again.
///
/// # Errors
/// As [`copy`], but for `EEXIST`.
pub fn wake(uffd: BorrowedFd<'_>, address: u64, pages: u32) -> nix::Result<()> {
    let mut range = uffdio_range {
        start: address,
        len: u64::from(pages) * PAGE_SIZE as u64,
    };
    // SAFETY: `uffd` is open for the life of the borrow, and `range` outlives the call, which writes nothing.
    unsafe { call::wake(uffd.as_raw_fd(), &raw mut range) }.map(drop)
}

/// What a read of a userfaultfd returns is a sequence of messages of this length.
pub const MESSAGE_BYTES: usize = size_of::<kernel::uffd_msg>();

/// An access that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFault {
    /// What is accessed.
    pub address: u64,
    /// The accessing thread, by its number in its own process; 0 where the guest did not ask the kernel for it.
    pub thread: u32,
}

impl UserFault {
    /// Decodes a message.
    ///
    /// # Errors
    /// The number of the event, if it is no fault.
    pub fn decode(message: &[u8; MESSAGE_BYTES]) -> Result<Self, u8> {
        const ADDRESS: usize = offset_of!(kernel::uffd_msg, arg.pagefault.address);
        const THREAD: usize = offset_of!(kernel::uffd_msg, arg.pagefault.feat.ptid);
        if u32::from(message[0]) != kernel::UFFD_EVENT_PAGEFAULT {
            return Err(message[0]);
        }
        let address = message[ADDRESS..].first_chunk().expect("a field of it");
        let thread = message[THREAD..].first_chunk().expect("a field of it");
        Ok(Self {
            address: u64::from_ne_bytes(*address),
            thread: u32::from_ne_bytes(*thread),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use std::num::NonZeroUsize;
    use std::ptr::NonNull;

    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};

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
        let file = File::from(memfd_create("table", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(2 * TABLE as u64).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(2 * TABLE).unwrap();
        // SAFETY: the kernel chooses free address space; the file is open, and the offset page aligned.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) };
        let base = base.unwrap().addr().get();
        let table = base.next_multiple_of(TABLE);
        let offset = (table - base) as i64;
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
                    let start = NonNull::new(table as *mut _).unwrap();
                    // SAFETY: the range is inside the mapping, which only this test has. Its pages stay in the file.
                    unsafe { madvise(start, TABLE, MmapAdvise::MADV_DONTNEED) }.unwrap();
                }
            });
            let give = |number| {
                begun.store(number + 1, Ordering::Relaxed);
                if number % 2 == 0 {
                    return match map_present(uffd.as_fd(), table as u64) {
                        Err(Errno::EEXIST) => Ok(()),
                        mapped => mapped,
                    };
                }
                let hole =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, hole, offset, PAGE_SIZE as i64).unwrap();
                copy(uffd.as_fd(), table as u64, &page)
            };
            file.write_all_at(&page, offset as u64).unwrap();
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
