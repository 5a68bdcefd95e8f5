//! The fault channels: what a thread that faulted says, and what the daemon tells it to do.
//!
//! Messages have fixed sizes and encode without allocation, because a signal handler sends them.

use super::VERSION;
use crate::{DecodeError, Gfn, GfnRun, Reader};

/// What a guest thread asks over a fault channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The thread read a page that it may not read.
    Read(Gfn),
    /// The thread wrote a page that it may not write.
    Write(Gfn),
    /// The thread has done what the last reply told it, or failed with this errno.
    Done(u32),
    /// Not a fault: the guest found wrong bytes and asks for the homes that the page has had.
    History(Gfn),
    /// Not a fault: the guest has used up most of its credits ([`claims`](crate::claims)). There
    /// is no answer.
    Credits,
    /// Not a fault: `pages`, which hold nothing, shall get the same bytes as an equally long run from
    /// `source` on, and share them with all pages of the same content. The answer is [`Reply::Attached`].
    Attach {
        /// The pages that get bytes; at most [`MAX_ATTACH`](super::MAX_ATTACH).
        pages: GfnRun,
        /// The first of the pages whose bytes they get.
        source: Gfn,
    },
}

/// Bytes of an encoded [`Fault`].
pub const FAULT_BYTES: usize = 24;
/// Bytes of an encoded [`Reply`].
pub const REPLY_BYTES: usize = 16;

impl Fault {
    /// The message of the thread with this id, encoded without allocating. The id 0 leaves the thread unknown.
    #[must_use]
    pub fn encode(self, thread: u32) -> [u8; FAULT_BYTES] {
        let [kind, value, count, source] = match self {
            Self::Read(gfn) => [1, gfn.0, 0, 0],
            Self::Write(gfn) => [2, gfn.0, 0, 0],
            Self::Done(errno) => [3, errno, 0, 0],
            Self::History(gfn) => [4, gfn.0, 0, 0],
            Self::Credits => [5, 0, 0, 0],
            Self::Attach { pages, source } => [6, pages.start.0, pages.count, source.0],
        };
        let words: [u32; FAULT_BYTES / 4] =
            [u32::from(VERSION), kind, value, count, source, thread];
        let mut bytes = [0; FAULT_BYTES];
        for (into, word) in bytes.chunks_exact_mut(4).zip(words) {
            into.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a message, and the id of the thread that sent it.
    ///
    /// # Errors
    /// [`DecodeError`] for another version, kind or length.
    pub fn decode(datagram: &[u8]) -> Result<(Self, u32), DecodeError> {
        let mut r = Reader::new(datagram);
        channel_version(&mut r)?;
        let kind = r.u32("kind")?;
        let value = r.u32("value")?;
        let count = r.u32("count")?;
        let source = Gfn(r.u32("source")?);
        let thread = r.u32("thread")?;
        r.end()?;
        let fault = match kind {
            1 => Self::Read(Gfn(value)),
            2 => Self::Write(Gfn(value)),
            3 => Self::Done(value),
            4 => Self::History(Gfn(value)),
            5 => Self::Credits,
            6 => Self::Attach {
                pages: GfnRun::new(Gfn(value), count),
                source,
            },
            _ => {
                return Err(DecodeError::Value {
                    field: "kind",
                    value: u64::from(kind),
                    allowed:
                        "1 (read), 2 (write), 3 (done), 4 (history), 5 (credits) or 6 (attach)"
                            .into(),
                });
            }
        };
        Ok((fault, thread))
    }
}

/// What the faulting thread shall do, or the answer to another question of that thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Nothing: the page is ready, access it again.
    Retry,
    /// Allow reading and writing of these RAM pages, then say [`Fault::Done`].
    Open(GfnRun),
    /// Map RAM back over these pages, readable and writable, then say [`Fault::Done`].
    Private(GfnRun),
    /// Allow reading of these mapped frames of the pool, then say [`Fault::Done`].
    Reveal(GfnRun),
    /// How many of the pages of [`Fault::Attach`], counted from the first, have their bytes.
    Attached(u32),
}

impl Reply {
    /// The message, without allocating.
    #[must_use]
    pub fn encode(self) -> [u8; REPLY_BYTES] {
        let (kind, run): (u32, GfnRun) = match self {
            Self::Retry => (1, GfnRun::new(Gfn(0), 0)),
            Self::Open(run) => (2, run),
            Self::Private(run) => (3, run),
            Self::Reveal(run) => (4, run),
            Self::Attached(count) => (5, GfnRun::new(Gfn(0), count)),
        };
        let mut bytes = [0; REPLY_BYTES];
        bytes[..4].copy_from_slice(&u32::from(VERSION).to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&run.start.0.to_le_bytes());
        bytes[12..].copy_from_slice(&run.count.to_le_bytes());
        bytes
    }

    /// Reads a message, without allocating.
    ///
    /// # Errors
    /// [`DecodeError`] for another version, kind or length.
    pub fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(datagram);
        channel_version(&mut r)?;
        let kind = r.u32("kind")?;
        let run = GfnRun::new(Gfn(r.u32("start")?), r.u32("count")?);
        r.end()?;
        match kind {
            1 => Ok(Self::Retry),
            2 => Ok(Self::Open(run)),
            3 => Ok(Self::Private(run)),
            4 => Ok(Self::Reveal(run)),
            5 => Ok(Self::Attached(run.count)),
            _ => Err(DecodeError::Value {
                field: "kind",
                value: u64::from(kind),
                allowed: "1 (retry), 2 (open), 3 (private), 4 (reveal) or 5 (attached)".into(),
            }),
        }
    }
}

fn channel_version(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    let version = r.u32("version")?;
    if version == u32::from(VERSION) {
        return Ok(());
    }
    let theirs = u16::try_from(version).unwrap_or(u16::MAX);
    Err(DecodeError::Version {
        protocol: "memory",
        theirs,
        ours: VERSION,
    })
}
