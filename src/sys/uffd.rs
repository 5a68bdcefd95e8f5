//! The daemon's half of userfaultfd: read faults of a guest, resolve them in its address space.
//!
//! The guest opened, registered and passed the descriptor. No event features are enabled, so no
//! remove, remap or fork event ever comes and no ioctl waits for one to be read.
//!
//! The guest keeps the descriptor, and with it the flags that both descriptors have in common: it may take
//! `O_NONBLOCK` away, and it may read the fault that woke us before we do. Then a plain read would sleep for as
//! long as the guest likes, and there is no way to set the flag for good. So each read says for itself that it
//! does not wait (`RWF_NOWAIT`, which userfaultfd knows since Linux 6.10), and on older kernels a read that
//! sleeps is interrupted ([`end_sleeps`]). A guest that is seen to have taken the flag away is ended: the kernel
//! reports such a descriptor as ready at each look, and the fault thread would never rest.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub use memvisor_wire::sys::uffd::UserFault;
use memvisor_wire::sys::uffd::{self, MESSAGE_BYTES};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::sleeps::end_sleeps;
use crate::units::PageBuf;

/// Faults read by one system call; more would only delay the first of them.
const BATCH: usize = 32;

/// What became of an attempt to give the guest a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page is there, and the threads that waited for it run.
    Done,
    /// The page was there already, or was just being unmapped; nothing was woken.
    Present,
    /// The guest's process is gone.
    Gone,
}

/// The userfaultfd of one guest.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Takes over a descriptor that a guest sent.
    ///
    /// # Errors
    /// `InvalidInput` when it is something else; what `fcntl(2)` says.
    pub fn from_guest(fd: OwnedFd) -> io::Result<Self> {
        // Without /proc the kind of file is not known, and one of another kind harms only its own guest.
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

    /// Appends the faults that wait, if any, to `faults`. Never waits for a fault, whatever the guest
    /// does; before Linux 6.10 a read that sleeps is interrupted after a second.
    ///
    /// # Errors
    /// `InvalidInput` when the guest has taken `O_NONBLOCK` away, `InvalidData` when it asked the kernel for other
    /// events than faults; otherwise what `read(2)` says.
    pub fn read_faults(&self, faults: &mut Vec<UserFault>) -> io::Result<()> {
        let mut bytes = [0; BATCH * MESSAGE_BYTES];
        let read = match self.read_now(&mut bytes) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.read_interrupted(&mut bytes),
            read => read,
        };
        let len = match read {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => return self.check_flags(),
            Err(errno) => return Err(errno.into()),
        };
        for message in bytes[..len].as_chunks().0 {
            // No other event was asked for: the guest has set up its descriptor differently.
            faults.push(UserFault::decode(message).map_err(|event| {
                let error = format!("event {event:#x}, which is no fault");
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?);
        }
        Ok(())
    }

    /// Reads without waiting, whatever flags the open file has.
    fn read_now(&self, into: &mut [u8]) -> nix::Result<usize> {
        let slice = libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        };
        // SAFETY: the call reads one iovec, which outlives it, and writes at most `iov_len` bytes at its base:
        // the whole of `into`, which is ours alone meanwhile. Offset -1 stands for none.
        let read = unsafe {
            libc::preadv2(
                self.0.as_raw_fd(),
                &raw const slice,
                1,
                -1,
                libc::RWF_NOWAIT,
            )
        };
        usize::try_from(Errno::result(read)?).map_err(|_| Errno::EINVAL)
    }

    /// Reads where the kernel does not know `RWF_NOWAIT` for this: a read that waits is interrupted.
    fn read_interrupted(&self, into: &mut [u8]) -> nix::Result<usize> {
        end_sleeps()?;
        nix::unistd::read(&self.0, into)
    }

    fn check_flags(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_truncate(fcntl(&self.0, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            return Ok(());
        }
        let error = "the guest has taken O_NONBLOCK from its userfaultfd, where nobody may wait";
        Err(io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    /// Puts a copy of `content` into the page at `address` and wakes the threads that wait for it.
    ///
    /// # Errors
    /// An unexpected errno, such as ENOMEM when the machine itself is out of memory.
    pub fn copy(&self, address: u64, content: &PageBuf) -> io::Result<Filled> {
        filled(uffd::copy(self.as_fd(), address, &content.0))
    }

    /// Puts a page of zeroes at `address` and wakes the threads that wait for it.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn zero(&self, address: u64) -> io::Result<Filled> {
        filled(uffd::zero(self.as_fd(), address))
    }

    /// Maps at `address` the page that is already in the file, and wakes the threads that wait for it.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn map_present(&self, address: u64) -> io::Result<Filled> {
        filled(uffd::map_present(self.as_fd(), address))
    }

    /// Wakes the threads that wait for the pages from `address` on; they access them again.
    ///
    /// # Errors
    /// What `ioctl(2)` says, except that the guest is gone, which is no error.
    pub fn wake(&self, address: u64, pages: u32) -> io::Result<()> {
        filled(uffd::wake(self.as_fd(), address, pages)).map(drop)
    }
}

fn filled(done: nix::Result<()>) -> io::Result<Filled> {
    match done {
        Ok(()) => Ok(Filled::Done),
        Err(Errno::EEXIST) => Ok(Filled::Present),
        // ESRCH: the address space is being torn down. ENOENT: the range is no longer registered,
        // which an honest shim never causes under a page lock; a lying one harms its own guest.
        Err(Errno::ESRCH | Errno::ENOENT) => Ok(Filled::Gone),
        Err(errno) => Err(errno.into()),
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// More than any machine needs for a read that does not wait.
    const PATIENCE: Duration = Duration::from_secs(60);

    type Read = fn(&Uffd) -> String;

    /// What a read says of a userfaultfd from which the guest has taken `O_NONBLOCK`, and no fault waits;
    /// `None` without userfaultfd. A read that sleeps is left behind, and fails the test.
    fn of_blocking(read: Read) -> Option<String> {
        let guest = uffd::open().ok()?;
        let ours = guest.as_fd().try_clone_to_owned().expect("a descriptor");
        let ours = Uffd::from_guest(ours).expect("a userfaultfd");
        fcntl(guest.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).expect("its own flags");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(read(&ours)));
        Some(told.recv_timeout(PATIENCE).expect("it waits for ever"))
    }

    #[test]
    fn read_of_a_userfaultfd_that_waits_does_not_and_says_whose_fault_it_is() {
        let read: Read = |uffd| format!("{:?}", uffd.read_faults(&mut Vec::new()));
        if let Some(said) = of_blocking(read) {
            assert!(said.contains("taken O_NONBLOCK"), "{said}");
        }
    }

    #[test]
    fn read_that_sleeps_on_an_older_kernel_is_interrupted() {
        let read: Read = |uffd| format!("{:?}", uffd.read_interrupted(&mut [0; 32]));
        if let Some(said) = of_blocking(read) {
            assert_eq!(said, "Err(EINTR)");
        }
    }

    #[test]
    fn read_without_a_fault_finds_none() {
        let Ok(guest) = uffd::open() else { return };
        let ours = guest.as_fd().try_clone_to_owned().expect("a descriptor");
        let ours = Uffd::from_guest(ours).expect("a userfaultfd");
        let mut faults = Vec::new();
        ours.read_faults(&mut faults).expect("nothing is wrong");
        assert_eq!(faults, []);
    }
}
