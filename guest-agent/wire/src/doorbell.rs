//! Waking a thread that waits for a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A bell that any thread can ring. One thread waits for it, together with a socket (see
/// [`wait_readable`](crate::wait_readable)). Ringing twice before that thread looks is ringing once,
/// because the bell does not say what is new: the thread must look for itself.
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
        // Writing one word to an eventfd fails only if its counter is full, and then the bell rings already.
        let _ = self.0.write(1);
    }

    /// Silences the bell. Look for what is new after this call: a ring between the look and the call would be lost.
    ///
    /// # Errors
    /// What `read(2)` says. Silencing a silent bell is no error.
    pub fn silence(&self) -> io::Result<()> {
        match self.0.read() {
            // EAGAIN: somebody has silenced it already, or it did not ring.
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
    use crate::wait_readable;

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
