//! The balloon protocol between the agent inside a guest and the daemon. `docs/balloon-protocol.md`
//! has the byte tables and the state machines; a test decodes its worked example.
//!
//! The agent asks, the host answers. A request carries a sequence number that its reply repeats.
//! A message that the host sends unasked ([`ToAgent::Target`] as a doorbell, [`ToAgent::Reset`],
//! [`ToAgent::Error`]) carries 0. Each direction has a type of its own, so that neither side can be
//! made to handle a message that only this side may send.
//!
//! [`ToHost::Start`] and [`ToAgent::Error`] have the header version 0 and keep their layout in all
//! versions of the protocol, so that two sides without a common version can still tell each other.

use crate::{DecodeError, Reader, Writer};

mod handshake;
mod ranges;
mod stats;

pub use handshake::{Capabilities, Start, Started};
pub use ranges::{PageStatus, RangeBatch, StatusRun, covers};
pub use stats::{Stat, StatTag};

/// The version this build speaks.
pub const VERSION: u16 = 1;
/// The header version of `START` and `ERROR`, whose layout never changes.
pub const HANDSHAKE_VERSION: u16 = 0;
/// Bytes of the header: version, type, sequence number.
pub const HEADER_BYTES: usize = 8;
/// The longest message of either side. The largest one is the answer to a batch in which no two
/// neighbouring pages have the same status; Linux takes datagrams of this size by default.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Ranges in one batch: a 4 KiB page of 8-byte entries, as ESX has it.
pub const MAX_RANGES: usize = 512;
/// Pages in one batch, 16 MiB: bounds how long the host works on one request, and the answer's size.
pub const MAX_BATCH_PAGES: u32 = 4096;
/// Statistics in one message. Virtio defines 16 tags; the other half is room for an agent's own.
pub const MAX_STATS: usize = 32;
/// Bytes of the name of a guest: what fits a column of `memvisor top` with room to spare.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of the text of an error: a sentence or two.
pub const MAX_ERROR_BYTES: usize = 512;

const START: u16 = 1;
const GET_TARGET: u16 = 2;
const LOCK: u16 = 3;
const UNLOCK: u16 = 4;
const STATS: u16 = 5;
const RELIEF: u16 = 6;
const STOP: u16 = 7;
const STARTED: u16 = 0x8001;
const TARGET: u16 = 0x8002;
const LOCK_RESULT: u16 = 0x8003;
const UNLOCK_RESULT: u16 = 0x8004;
const STOPPED: u16 = 0x8007;
const RESET: u16 = 0x8008;
const ERROR: u16 = 0x80ff;

const _: () = assert!(
    HEADER_BYTES + 12 + MAX_BATCH_PAGES as usize * ranges::STATUS_RUN_BYTES <= MAX_MESSAGE_BYTES
);
const _: () = assert!(HEADER_BYTES + 4 + MAX_RANGES * ranges::RANGE_BYTES <= MAX_MESSAGE_BYTES);

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The agent is here and its balloon is empty. Reply: `STARTED`.
    Start(Start),
    /// The agent asks how large the balloon shall be. Reply: `TARGET`.
    GetTarget {
        /// How many pages of RAM the guest sees now.
        total_pages: u64,
        /// How many pages the agent believes to be in the balloon.
        balloon_pages: u64,
    },
    /// The guest has pinned these pages and will not touch them. Reply: `LOCK_RESULT`.
    Lock(RangeBatch),
    /// The guest wants these pages back. Reply: `UNLOCK_RESULT`.
    Unlock(RangeBatch),
    /// How the guest is doing. No reply.
    Stats(Vec<Stat>),
    /// The guest is short of memory. Reply: `TARGET`, lower than before if the host can afford it.
    Relief {
        /// How many pages would help.
        pages: u64,
    },
    /// The agent leaves. Reply: `STOPPED`, after which the guest may use the pages again.
    Stop,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    /// Reply to `START`.
    Started(Started),
    /// The size the balloon shall have, in pages. With sequence number 0 it is a doorbell, else a reply.
    Target {
        /// The size in pages.
        pages: u64,
    },
    /// Reply to `LOCK`.
    LockResult(BatchResult),
    /// Reply to `UNLOCK`.
    UnlockResult(BatchResult),
    /// Host and guest disagree about the balloon. The agent frees all its pages without unlocking
    /// them and sends `START` again; for the host the balloon is empty already.
    Reset,
    /// Reply to `STOP`, and the end of the connection.
    Stopped,
    /// Why the host ends the connection.
    Error {
        /// What kind of reason: tells the agent whether to come back.
        code: ErrorCode,
        /// The reason, for people; at most [`MAX_ERROR_BYTES`] bytes.
        text: String,
    },
}

/// The answer to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchResult {
    /// The size the balloon shall have, in pages, as in `TARGET`.
    pub target: u64,
    /// What became of each page of the request: no other pages, in the order of the request.
    pub runs: Vec<StatusRun>,
}

/// Why the host ended a connection. There is one code for each way in which an agent can react.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The two sides have no common version. Coming back is useless until one side is replaced.
    Version = 1,
    /// The message breaks the format or a limit. The agent has a bug.
    Malformed = 2,
    /// The message is not allowed in this state of the connection. The agent has a bug.
    Order = 3,
    /// The host does not want this agent: token unknown, ballooning disabled, VM already has one.
    Refused = 4,
    /// The VM or the daemon is going away. An agent that outlives it may come back.
    Closing = 5,
}

impl ErrorCode {
    const ALL: [Self; 5] = [
        Self::Version,
        Self::Malformed,
        Self::Order,
        Self::Refused,
        Self::Closing,
    ];
}

impl ToHost {
    /// The name the protocol gives this message.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "START",
            Self::GetTarget { .. } => "GET_TARGET",
            Self::Lock(_) => "LOCK",
            Self::Unlock(_) => "UNLOCK",
            Self::Stats(_) => "STATS",
            Self::Relief { .. } => "RELIEF",
            Self::Stop => "STOP",
        }
    }

    /// The datagram of this message. The agent chooses `seq`, which must not be 0.
    #[must_use]
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let mut to = Writer::new();
        match self {
            Self::Start(start) => start.write(header(&mut to, HANDSHAKE_VERSION, START, seq)),
            Self::GetTarget {
                total_pages,
                balloon_pages,
            } => {
                header(&mut to, VERSION, GET_TARGET, seq)
                    .u64(*total_pages)
                    .u64(*balloon_pages);
            }
            Self::Lock(batch) => batch.write(header(&mut to, VERSION, LOCK, seq)),
            Self::Unlock(batch) => batch.write(header(&mut to, VERSION, UNLOCK, seq)),
            Self::Stats(all) => stats::write(all, header(&mut to, VERSION, STATS, seq)),
            Self::Relief { pages } => {
                header(&mut to, VERSION, RELIEF, seq).u64(*pages);
            }
            Self::Stop => {
                header(&mut to, VERSION, STOP, seq);
            }
        }
        to.finish()
    }

    /// The sequence number and the message in a datagram.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field that breaks the format or a limit.
    pub fn decode(datagram: &[u8]) -> Result<(u32, Self), DecodeError> {
        let mut from = body(datagram)?;
        let (version, kind) = (from.u16("version")?, from.u16("type")?);
        let seq = from.u32("seq")?;
        check_version(version, kind == START)?;
        if seq == 0 {
            return Err(value(
                "seq",
                0_u32,
                "1 and up; 0 is for what the host says unasked",
            ));
        }
        let message = match kind {
            START => Self::Start(Start::read(&mut from)?),
            GET_TARGET => Self::GetTarget {
                total_pages: from.u64("total_pages")?,
                balloon_pages: from.u64("balloon_pages")?,
            },
            LOCK => Self::Lock(RangeBatch::read(&mut from)?),
            UNLOCK => Self::Unlock(RangeBatch::read(&mut from)?),
            STATS => Self::Stats(stats::read(&mut from)?),
            RELIEF => Self::Relief {
                pages: from.u64("pages")?,
            },
            STOP => Self::Stop,
            other => return Err(value("type", other, "a message of the agent, 1 to 7")),
        };
        from.end()?;
        Ok((seq, message))
    }
}

impl ToAgent {
    /// The datagram of this message. `seq` is that of the request, or 0 if nobody asked.
    #[must_use]
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let mut to = Writer::new();
        match self {
            Self::Started(started) => started.write(header(&mut to, VERSION, STARTED, seq)),
            Self::Target { pages } => {
                header(&mut to, VERSION, TARGET, seq).u64(*pages);
            }
            Self::LockResult(result) => result.write(header(&mut to, VERSION, LOCK_RESULT, seq)),
            Self::UnlockResult(result) => {
                result.write(header(&mut to, VERSION, UNLOCK_RESULT, seq));
            }
            Self::Reset => {
                header(&mut to, VERSION, RESET, seq);
            }
            Self::Stopped => {
                header(&mut to, VERSION, STOPPED, seq);
            }
            Self::Error { code, text } => {
                header(&mut to, HANDSHAKE_VERSION, ERROR, seq)
                    .u16(*code as u16)
                    .text(cut(text, MAX_ERROR_BYTES));
            }
        }
        to.finish()
    }

    /// The sequence number and the message in a datagram.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field that breaks the format or a limit.
    pub fn decode(datagram: &[u8]) -> Result<(u32, Self), DecodeError> {
        let mut from = body(datagram)?;
        let (version, kind) = (from.u16("version")?, from.u16("type")?);
        let seq = from.u32("seq")?;
        check_version(version, kind == ERROR)?;
        let message = match kind {
            STARTED => Self::Started(Started::read(&mut from)?),
            TARGET => Self::Target {
                pages: from.u64("pages")?,
            },
            LOCK_RESULT => Self::LockResult(BatchResult::read(&mut from)?),
            UNLOCK_RESULT => Self::UnlockResult(BatchResult::read(&mut from)?),
            RESET => Self::Reset,
            STOPPED => Self::Stopped,
            ERROR => read_error(&mut from)?,
            other => {
                return Err(value(
                    "type",
                    other,
                    "a message of the host, see the protocol",
                ));
            }
        };
        from.end()?;
        Ok((seq, message))
    }
}

impl BatchResult {
    fn write(&self, to: &mut Writer) {
        to.u64(self.target);
        ranges::write_statuses(&self.runs, to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            target: from.u64("target")?,
            runs: ranges::read_statuses(from)?,
        })
    }
}

fn read_error(from: &mut Reader<'_>) -> Result<ToAgent, DecodeError> {
    let number = from.u16("code")?;
    let code = ErrorCode::ALL
        .into_iter()
        .find(|code| *code as u16 == number)
        .ok_or_else(|| value("code", number, "1 to 5"))?;
    let text = from.text("text", MAX_ERROR_BYTES)?.to_owned();
    Ok(ToAgent::Error { code, text })
}

fn header(to: &mut Writer, version: u16, kind: u16, seq: u32) -> &mut Writer {
    to.u16(version).u16(kind).u32(seq)
}

fn body(datagram: &[u8]) -> Result<Reader<'_>, DecodeError> {
    if datagram.len() > MAX_MESSAGE_BYTES {
        return Err(oversized(datagram.len()));
    }
    Ok(Reader::new(datagram))
}

/// The error for a datagram of `len` bytes, which is more than [`MAX_MESSAGE_BYTES`].
#[must_use]
pub const fn oversized(len: usize) -> DecodeError {
    DecodeError::Value {
        field: "message length",
        value: len as u64,
        allowed: "8 to 65536 bytes",
    }
}

const fn check_version(theirs: u16, handshake: bool) -> Result<(), DecodeError> {
    let ours = if handshake {
        HANDSHAKE_VERSION
    } else {
        VERSION
    };
    if theirs == ours {
        return Ok(());
    }
    Err(DecodeError::Version {
        protocol: "balloon",
        theirs,
        ours,
    })
}

fn value(field: &'static str, number: impl Into<u64>, allowed: &'static str) -> DecodeError {
    DecodeError::Value {
        field,
        value: number.into(),
        allowed,
    }
}

fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
