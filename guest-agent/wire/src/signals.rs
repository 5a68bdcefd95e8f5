//! Signals that a thread can wait for, together with a timer and a keyboard.
//!
//! A handler may do next to nothing, and it interrupts any line of the program. So the signals are blocked
//! and let through only while the program waits for them; a handler then notes which signal came. Threads
//! inherit the blocking, so it must happen before any thread is started. Child processes inherit it too, so
//! each of our own begins with [`unblock_all`].
//!
//! A `signalfd` would need no handler. But a thread that polls one is woken by *every* signal of the process,
//! and a guest that serves its own faults gets a signal for each of them: tens of thousands of wake-ups a
//! second for nothing.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigAction, SigSet, SigmaskHow, Signal};
use nix::sys::time::TimeSpec;

use crate::sys::signals::{note_signal, restore_signal, take_noted};

/// The signals that ask a program to end: Ctrl-C, kill, and a terminal that closes.
pub const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A set of blocked signals that can be waited for.
#[derive(Debug)]
pub struct Signals {
    set: SigSet,
    /// The signals that were blocked before.
    before: SigSet,
}

/// Each signal that is noted, the number of [`Signals`] that contain it, and its previous action.
static NOTED: Mutex<Vec<(Signal, u32, SigAction)>> = Mutex::new(Vec::new());

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
    /// What `sigaction(2)` says about a signal that cannot be caught.
    pub fn block(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let set: SigSet = signals.into_iter().collect();
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        set.iter().try_for_each(begin_noting)?;
        Ok(Self { set, before })
    }

    /// Waits until `deadline` for a signal or for `other` to become readable, signals first.
    ///
    /// # Errors
    /// What ppoll(2) says.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, deadline: Instant) -> io::Result<Event> {
        let mut fds: Vec<_> = other
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .into_iter()
            .collect();
        // Without descriptors: a pending signal comes first even if `other` is readable.
        self.let_through(&mut [], Duration::ZERO)?;
        loop {
            if let Some(signal) = take_noted(&self.set) {
                return Ok(Event::Signal(signal));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.let_through(&mut fds, left)? {
                Some(0) => return Ok(Event::Timeout),
                Some(_) => return Ok(Event::Readable),
                None => {}
            }
        }
    }

    /// Polls while the signals are let through; `None` when a signal came.
    fn let_through(&self, fds: &mut [PollFd<'_>], time: Duration) -> io::Result<Option<i32>> {
        let blocked = SigSet::thread_get_mask()?;
        // Only our signals are let through: others that this thread blocks are for other threads.
        let others = blocked.iter().filter(|signal| !self.set.contains(*signal));
        match ppoll(fds, Some(TimeSpec::from(time)), Some(others.collect())) {
            Ok(ready) => Ok(Some(ready)),
            Err(Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn begin_noting(signal: Signal) -> io::Result<()> {
    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    match noted.iter_mut().find(|(other, ..)| *other == signal) {
        Some((_, sets, _)) => *sets += 1,
        None => noted.push((signal, 1, note_signal(signal)?)),
    }
    Ok(())
}

fn end_noting(signal: Signal) {
    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    noted.retain_mut(|(other, sets, before)| {
        // Counted, because several parts of a program can wait for the same signal.
        *sets -= u32::from(*other == signal);
        if *sets == 0 {
            restore_signal(signal, before);
        }
        *sets > 0
    });
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Pending signals are noted and forgotten, not delivered to the previous handler: they were meant
        // for the work that is now over.
        while matches!(self.let_through(&mut [], Duration::ZERO), Ok(None)) {}
        // A note that stays would end the next wait for its signal at once.
        while take_noted(&self.set).is_some() {}
        self.set.iter().for_each(end_noting);
        let _ = self.before.thread_set_mask();
    }
}

/// Makes a write beyond the limit of file sizes (`RLIMIT_FSIZE`) an error, `EFBIG`, for this thread
/// and those it starts. Otherwise SIGXFSZ would end the process, and a swap file that reaches the limit
/// must not end all guests.
///
/// # Errors
/// What the kernel says; no reason for a failure is known.
pub fn report_file_size_limit() -> io::Result<()> {
    let set: SigSet = [Signal::SIGXFSZ].into_iter().collect();
    Ok(set.thread_block()?)
}

/// Lets every signal through to this thread, whatever the parent process had blocked.
pub fn unblock_all() {
    let _ = SigSet::empty().thread_set_mask();
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

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
