//! The fault channels: a few socket pairs that faulting threads take in turn.
//!
//! A signal handler may not lock, allocate or look up its thread, so one atomic bitmap holds the free
//! channels: a thread takes a bit, talks, and puts the bit back. When no channel is free, faulting
//! threads sleep on a futex until one comes back.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use memvisor_wire::memory::{Fault, MAX_CHANNELS, REPLY_BYTES, Reply};
use rustix::thread::futex;

use memvisor_wire::{Received, SeqPacket};

/// The shim's ends of all fault channels.
#[derive(Debug)]
pub(super) struct Channels {
    sockets: Vec<SeqPacket>,
    /// Bit N is set while channel N is free.
    free: AtomicU32,
}

impl Channels {
    /// Takes over the ends that came from the daemon; `None` if they are not [`MAX_CHANNELS`].
    pub(super) fn over(fds: Vec<OwnedFd>) -> Option<Self> {
        (fds.len() == MAX_CHANNELS).then(|| Self {
            sockets: fds.into_iter().map(SeqPacket::from).collect(),
            free: AtomicU32::new((1 << MAX_CHANNELS) - 1),
        })
    }

    /// Takes a free channel; sleeps while there is none. Async-signal-safe.
    pub(super) fn take(&self) -> Channel<'_> {
        let without_lowest = |free: u32| (free != 0).then(|| free & (free - 1));
        loop {
            // Acquire pairs with the Release of the thread that gave this channel back, after it had read its answer.
            let taken =
                self.free
                    .fetch_update(Ordering::Acquire, Ordering::Relaxed, without_lowest);
            match taken {
                Ok(free) => {
                    return Channel {
                        channels: self,
                        index: free.trailing_zeros(),
                    };
                }
                Err(none) => futex_wait(&self.free, none),
            }
        }
    }
}

/// One channel, held by one thread.
#[derive(Debug)]
pub(super) struct Channel<'a> {
    channels: &'a Channels,
    index: u32,
}

impl Channel<'_> {
    fn socket(&self) -> &SeqPacket {
        &self.channels.sockets[self.index as usize]
    }

    /// Sends a message; `false` when the daemon is gone. Async-signal-safe.
    pub(super) fn send(&self, fault: Fault) -> bool {
        // The daemon needs the id to serve faults on the processor on which this thread runs.
        let thread = nix::unistd::gettid().as_raw().unsigned_abs();
        self.socket().send(&fault.encode(thread)).is_ok()
    }

    /// Asks, and waits for the answer; `None` when the daemon is gone or the answer cannot be decoded.
    /// Async-signal-safe.
    pub(super) fn ask(&self, question: Fault) -> Option<Reply> {
        let mut bytes = [0; REPLY_BYTES];
        Reply::decode(self.ask_into(question, &mut bytes)?).ok()
    }

    /// As [`ask`](Self::ask), for an answer of any kind that fits.
    pub(super) fn ask_into<'a>(&self, question: Fault, into: &'a mut [u8]) -> Option<&'a [u8]> {
        if !self.send(question) {
            return None;
        }
        match self.socket().recv(into) {
            Ok(Received::Message { len }) => into.get(..len),
            _ => None,
        }
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of `take`.
        let before = self
            .channels
            .free
            .fetch_or(1 << self.index, Ordering::Release);
        // Threads sleep only while no channel is free, so only the first that comes back has anybody to wake.
        if before == 0 {
            futex_wake(&self.channels.free);
        }
    }
}

/// The largest number of threads that the kernel lets a futex call wake.
const ALL: u32 = i32::MAX.unsigned_abs();

/// Sleeps while `word` is `expected`; may return for no reason. Async-signal-safe.
pub(super) fn futex_wait(word: &AtomicU32, expected: u32) {
    // Errors are ignored: the caller looks again for whatever reason the wait ended.
    let _ = futex::wait(word, futex::Flags::PRIVATE, expected, None);
}

/// Wakes all threads of this process that sleep on `word`. Async-signal-safe.
pub(super) fn futex_wake(word: &AtomicU32) {
    // All are woken, because what they wait for may be there several times. The call cannot fail for an aligned word.
    let _ = futex::wake(word, futex::Flags::PRIVATE, ALL);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn channels_are_exclusive_and_waiters_get_the_next_free_one() {
        let pairs = (0..MAX_CHANNELS).map(|_| SeqPacket::pair().unwrap());
        let (ours, _theirs): (Vec<_>, Vec<_>) = pairs.unzip();
        let fds = |some: &[SeqPacket]| {
            let copy = |socket: &SeqPacket| socket.as_fd().try_clone_to_owned().unwrap();
            some.iter().map(copy).collect()
        };
        assert!(Channels::over(fds(&ours[1..])).is_none());
        let channels = Channels::over(fds(&ours)).unwrap();
        let mut held: Vec<_> = (0..MAX_CHANNELS).map(|_| channels.take()).collect();
        let mut indices: Vec<_> = held.iter().map(|channel| channel.index).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), MAX_CHANNELS);
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| channels.take().index))
                .collect();
            let freed = held.pop().expect("all are held").index;
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), freed);
            }
        });
    }
}
