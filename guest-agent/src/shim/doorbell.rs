//! Waking a thread that waits for a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A bell that any thread can ring and one thread waits for, together with a socket (see
/// [`wait_readable`](super::wait_readable)). Ringing twice before that thread looks is ringing
/// once: it looks what is new, it is not told.
#[derive(Debug)]
pub struct Doorbell(EventFd);

impl Doorbell {
    /// A silent bell.
    ///
    /// # Errors
    /// What `eventfd(2)` says: no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    /// Wakes the waiting thread. Never blocks.
    pub fn ring(&self) {
        // The only failure of a one-word write to an eventfd is a full counter: it is ringing.
        let _ = self.0.write(1);
    }

    /// Silences the bell; what is new must be looked up after this, not before.
    ///
    /// # Errors
    /// What `read(2)` says. A silent bell is no error.
    pub fn silence(&self) -> io::Result<()> {
        match self.0.read() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::shim::wait_readable;

    #[test]
    fn ringing_twice_is_silenced_once() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        bell.ring();
        assert_eq!(wait_readable([bell.as_fd()], None).unwrap(), [true]);
        bell.silence().unwrap();
        bell.silence().unwrap();
        let now = Some(Duration::ZERO);
        assert_eq!(wait_readable([bell.as_fd()], now).unwrap(), [false]);
    }
}
