//! Memory whose faults nobody answers, including faults of the kernel itself. A hostile shim hands such memory
//! to a system call, which then keeps its locks. It needs a privilege (`CAP_SYS_PTRACE`, or the sysctl
//! `vm.unprivileged_userfaultfd`); FUSE offers the same to whoever may mount it.
#![allow(unsafe_code, reason = "the kernel's interface to userfaultfd")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use memmap2::MmapMut;

const PAGE: u64 = 4096;
/// `UFFDIO_API` and its structure: version, features, ioctls.
const API: (u64, [u64; 3]) = (0xc018_aa3f, [0xaa, 0, 0]);
/// `UFFDIO_REGISTER`, whose structure is start, length, mode (1: missing pages), ioctls.
const REGISTER: u64 = 0xc020_aa00;

/// Reports the faults of a page made by [`unanswered`]. Dropping it lets them go on.
#[derive(Debug)]
pub(crate) struct Faults(OwnedFd);

impl AsFd for Faults {
    /// Readable while a fault waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A page whose accesses wait for as long as the [`Faults`] live; `EPERM` where only root may have one.
pub(crate) fn unanswered() -> io::Result<(Faults, MmapMut)> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the system call takes flags by value and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the call above just returned this descriptor, so it is open and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let page = MmapMut::map_anon(PAGE as usize)?;
    let (number, mut api) = API;
    call(&fd, number, &mut api)?;
    let mut register = [page.as_ptr() as u64, PAGE, 1, 0];
    call(&fd, REGISTER, &mut register)?;
    Ok((Faults(fd), page))
}

/// Makes one of the two calls above. `words` must be as long as the size that is part of its number.
fn call(fd: &OwnedFd, number: u64, words: &mut [u64]) -> io::Result<()> {
    assert_eq!((number >> 16) & 0x3fff, size_of_val(words) as u64);
    // SAFETY: `fd` is an open userfaultfd. The call reads and writes the number of bytes that is part of its number,
    // and `words` has that size, as just asserted. Registering a range changes when its accesses wait, not what they
    // find.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, words.as_mut_ptr()) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
