//! Signals as something to wait for, beside a timer and a keyboard.
//!
//! A handler may do next to nothing, and what it interrupts is any line of the program. So the signals
//! are blocked and read from a descriptor where the program is ready for them. Blocking is inherited:
//! by threads, so it must happen before any is started, and by child processes, so each of our own
//! begins with [`unblock_all`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that ask a program to end: Ctrl-C, kill, and a terminal that closes.
pub const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A set of blocked signals that can be waited for.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

/// What a wait ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A signal arrived.
    Signal(Signal),
    /// The other descriptor can be read.
    Readable,
    /// The time is over.
    Timeout,
}

impl Signals {
    /// Blocks `signals` for this thread and those it starts.
    ///
    /// # Errors
    /// What the kernel says if there is no descriptor left.
    pub fn block(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let set: SigSet = signals.into_iter().collect();
        let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd, before })
    }

    /// Waits until `deadline` for a signal or for `other` to become readable, signals first.
    ///
    /// # Errors
    /// What poll(2) or read(2) says; interruptions are retried.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<Event> {
        loop {
            if let Some(signal) = self.pending()? {
                return Ok(Event::Signal(signal));
            }
            let mut fds = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout_until(deadline)) {
                Ok(0) => return Ok(Event::Timeout),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) if fds[0].any().unwrap_or(false) => {}
                Ok(_) => return Ok(Event::Readable),
            }
        }
    }

    fn pending(&self) -> io::Result<Option<Signal>> {
        let info = self.fd.read_signal()?;
        Ok(info.and_then(|info| {
            let number = i32::try_from(info.ssi_signo).ok()?;
            Signal::try_from(number).ok()
        }))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A signal that came meanwhile is read, not delivered: it was for the work that is now over.
        while matches!(self.pending(), Ok(Some(_))) {}
        let _ = self.before.thread_set_mask();
    }
}

/// Makes a write beyond the limit of file sizes (`RLIMIT_FSIZE`) an error, `EFBIG`, for this thread
/// and those it starts. Otherwise SIGXFSZ ends the process, and what a full swap file must not do is
/// take all guests with it.
///
/// # Errors
/// What the kernel says; there is no reason known.
pub fn report_file_size_limit() -> io::Result<()> {
    let set: SigSet = [Signal::SIGXFSZ].into_iter().collect();
    Ok(set.thread_block()?)
}

/// Lets every signal through to this thread, whatever the parent process had blocked.
pub fn unblock_all() {
    let _ = SigSet::empty().thread_set_mask();
}

fn timeout_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: a wait that ends a moment early would spin until the deadline is there.
    let left = left + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::signal::raise;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(5)
    }

    #[test]
    fn wait_returns_a_blocked_signal_once() {
        let signals = Signals::block([Signal::SIGUSR1]).expect("block");
        raise(Signal::SIGUSR1).expect("raise");
        let event = signals.wait(None, soon()).expect("wait");
        assert_eq!(event, Event::Signal(Signal::SIGUSR1));
        assert_eq!(signals.wait(None, soon()).expect("wait"), Event::Timeout);
    }

    #[test]
    fn wait_sees_the_other_descriptor_but_a_signal_comes_first() {
        let signals = Signals::block([Signal::SIGUSR2]).expect("block");
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        writer.write_all(b"q").expect("room");
        let wait = || signals.wait(Some(reader.as_fd()), soon()).expect("wait");
        assert_eq!(wait(), Event::Readable);
        raise(Signal::SIGUSR2).expect("raise");
        assert_eq!(wait(), Event::Signal(Signal::SIGUSR2));
    }

    #[test]
    fn drop_restores_the_mask() {
        let before = SigSet::thread_get_mask().expect("mask");
        drop(Signals::block(ENDING).expect("block"));
        assert_eq!(SigSet::thread_get_mask().expect("mask"), before);
    }
}
