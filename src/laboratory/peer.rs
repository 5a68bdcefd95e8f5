//! One end of a connection, driven step by step, with ears that hear all that is said on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::MAX_MESSAGE_BYTES;
use memvisor_wire::{Received, SeqPacket, wait_readable};

use super::tape::{Heard, Side};

/// How long the other side may leave messages unread.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is told what is said.
pub type Ears = Box<dyn FnMut(&Heard) + Send>;

/// One end of a connection.
pub struct Peer {
    socket: SeqPacket,
    side: Side,
    ears: Ears,
    began: Instant,
    buffer: Vec<u8>,
    /// What came with the latest datagram.
    descriptors: Vec<OwnedFd>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").finish_non_exhaustive()
    }
}

/// What came from the other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Came {
    /// A datagram.
    Datagram(Vec<u8>),
    /// The connection has ended.
    Closed,
    /// Nothing, in the time given.
    Nothing,
}

impl Peer {
    /// The end of `side`.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub fn new(socket: SeqPacket, side: Side, ears: Ears) -> io::Result<Self> {
        socket.set_send_timeout(SEND_TIMEOUT)?;
        Ok(Self {
            socket,
            side,
            ears,
            began: Instant::now(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
            descriptors: Vec::new(),
        })
    }

    /// The agent's end of a new connection.
    ///
    /// # Errors
    /// When nobody listens at `path`.
    pub fn dial(path: &Path, ears: Ears) -> io::Result<Self> {
        Self::new(SeqPacket::connect(path)?, Side::Agent, ears)
    }

    /// Says `datagram`, whatever it is.
    ///
    /// # Errors
    /// When the other side is gone or does not read.
    pub fn say(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.hears(self.side, datagram);
        self.socket.send(datagram)
    }

    /// Says `datagram` with a descriptor.
    ///
    /// # Errors
    /// As for [`say`](Self::say).
    pub fn hand(&mut self, datagram: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.hears(self.side, datagram);
        self.socket.send_with_fds(datagram, &[descriptor])
    }

    /// The descriptors that came with the latest datagram.
    pub fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// What the other side says next, if it does within `timeout`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn hear(&mut self, timeout: Duration) -> io::Result<Came> {
        if wait_readable([self.socket.as_fd()], Some(timeout))? == [false] {
            return Ok(Came::Nothing);
        }
        let (received, descriptors) = self.socket.recv_with_fds(&mut self.buffer)?;
        let len = match received {
            Received::Closed => return Ok(Came::Closed),
            Received::Message { len } => len.min(self.buffer.len()),
        };
        self.descriptors = descriptors;
        let datagram = self.buffer[..len].to_vec();
        let other = match self.side {
            Side::Agent => Side::Host,
            Side::Host => Side::Agent,
        };
        self.hears(other, &datagram);
        Ok(Came::Datagram(datagram))
    }

    fn hears(&mut self, by: Side, bytes: &[u8]) {
        (self.ears)(&Heard {
            at: self.began.elapsed(),
            by,
            bytes: bytes.to_vec(),
        });
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
