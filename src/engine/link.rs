//! The daemon's end of a guest's memory socket: remap commands to the shim's memory thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use memvisor_wire::memory::{Ack, Command, MAX_MESSAGE, Message, Op, Remap};
use memvisor_wire::{Received, SeqPacket};
use nix::sys::socket::{Shutdown, shutdown};

use super::EngineError;
use crate::sync::{AtomicU32, Mutex, Ordering};

/// Commands go out one at a time: only the worker of the VM sends them, and it waits for each answer.
#[derive(Debug)]
pub struct Link {
    socket: SeqPacket,
    seq: AtomicU32,
    /// Since when the worker has waited for an answer.
    waiting: Mutex<Option<Instant>>,
    /// When the guest was told to end.
    ended: Mutex<Option<Instant>>,
}

impl Link {
    /// A link over the socket of a finished handshake.
    #[must_use]
    pub fn new(socket: SeqPacket) -> Self {
        Self {
            socket,
            seq: AtomicU32::new(0),
            waiting: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    /// For how long the guest has owed the answer to a command; zero when it owes none. A guest that is
    /// stopped, or swapped out by its own kernel, may owe it without limit.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let waiting = *self.waiting.lock();
        waiting.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Has `runs` remapped, at most [`MAX_RUNS`](memvisor_wire::memory::MAX_RUNS), and waits
    /// for the memory thread.
    ///
    /// # Errors
    /// [`EngineError::Gone`] or [`EngineError::Protocol`]; the session is over.
    pub fn command(&self, op: Op, runs: &[Remap]) -> Result<Ack, EngineError> {
        // Relaxed: only the worker counts. The number is atomic because other threads hold the link too.
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let runs = runs.to_vec();
        let command = Message::Command(Command { seq, op, runs });
        self.socket
            .send(&command.encode())
            .map_err(|_| EngineError::Gone)?;
        self.receive(seq)
    }

    /// Has the shim map frames from another pool from now on. No page may be mapped from the pool that it
    /// has.
    ///
    /// # Errors
    /// [`EngineError::Gone`] or [`EngineError::Protocol`]; the session is over.
    pub fn set_pool(&self, pool: BorrowedFd<'_>) -> Result<(), EngineError> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        self.socket
            .send_with_fds(&Message::Pool { seq }.encode(), &[pool])
            .map_err(|_| EngineError::Gone)?;
        match self.receive(seq)? {
            ack if ack == Ack::of(seq) => Ok(()),
            ack => Err(EngineError::Protocol {
                got: format!("{ack:?}"),
                seq,
            }),
        }
    }

    fn receive(&self, seq: u32) -> Result<Ack, EngineError> {
        let mut buffer = [0; MAX_MESSAGE];
        *self.waiting.lock() = Some(Instant::now());
        let received = self.socket.recv(&mut buffer);
        *self.waiting.lock() = None;
        let received = received.map_err(|_| EngineError::Gone)?;
        let Received::Message { len } = received else {
            return Err(EngineError::Gone);
        };
        // `len` is what the guest sent: a message that was cut is longer than the buffer, and decoding what is there
        // says so.
        match Message::decode(&buffer[..len.min(MAX_MESSAGE)]) {
            Ok(Message::Ack(ack)) if ack.seq == seq => Ok(ack),
            Ok(Message::Ack(ack)) => Err(EngineError::Protocol {
                got: format!("{ack:?}"),
                seq,
            }),
            Ok(other) => Err(EngineError::Protocol {
                got: other.name().to_owned(),
                seq,
            }),
            Err(error) => Err(EngineError::Protocol {
                got: error.to_string(),
                seq,
            }),
        }
    }

    /// Lets the guest run, and gives it its ends of the fault channels. `false`: it could not be told.
    #[must_use]
    pub fn go(&self, channels: &[SeqPacket]) -> bool {
        let fds: Vec<_> = channels.iter().map(AsFd::as_fd).collect();
        let go = Message::Go.encode();
        self.socket.send_with_fds(&go, &fds).is_ok()
    }

    /// When the guest was first told to [end](Self::end), if it was.
    #[must_use]
    pub fn ended(&self) -> Option<Instant> {
        *self.ended.lock()
    }

    /// Tells the guest why its session ends and hangs up, which also frees a worker that waits for
    /// an answer.
    pub fn end(&self, why: &str) {
        // The first time stands: the watchdog measures from it how long the guest overstays.
        self.ended.lock().get_or_insert_with(Instant::now);
        // Failures are ignored: the guest may be gone, or not read. Never waits, so that ending a VM does not depend
        // on it.
        let _ = self
            .socket
            .try_send(&Message::Error(why.to_owned()).encode());
        let _ = shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use memvisor_wire::SeqPacket;

    use super::*;

    #[test]
    fn silence_lasts_from_a_command_to_its_answer() {
        let (socket, guest) = SeqPacket::pair().expect("a pair");
        let link = Link::new(socket);
        assert_eq!(link.silence(), Duration::ZERO);
        std::thread::scope(|scope| {
            let command = scope.spawn(|| link.command(Op::Freeze, &[]));
            let mut buffer = [0; MAX_MESSAGE];
            let received = guest.recv(&mut buffer).expect("receive");
            assert!(matches!(received, Received::Message { .. }));
            while link.silence() == Duration::ZERO {
                std::thread::yield_now();
            }
            let before = link.silence();
            while link.silence() == before {
                std::thread::yield_now();
            }
            let ack = Message::Ack(Ack::of(0));
            guest.send(&ack.encode()).expect("send");
            command.join().expect("no panic").expect("all is done");
        });
        assert_eq!(link.silence(), Duration::ZERO);
    }
}
