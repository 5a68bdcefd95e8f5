//! The balloon protocol between the agent inside a guest and the daemon. `docs/balloon-protocol.md`
//! has the byte tables, which a test writes, and the state machines. A message is declared once, in
//! `messages.rs`.
//!
//! The agent asks, the host answers. A request carries a sequence number that its reply repeats.
//! A message that the host sends unasked ([`ToAgent::Target`] as a doorbell, [`ToAgent::Reset`],
//! [`ToAgent::Error`]) carries 0. Each direction has a type of its own, so that neither side can be
//! made to handle a message that only this side may send.
//!
//! [`ToHost::Start`] and [`ToAgent::Error`] have the header version 0 and keep their layout in all
//! versions of the protocol, so that two sides without a common version can still tell each other.

use std::borrow::Cow;

use crate::DecodeError;

#[macro_use]
mod declare;
mod free_map;
mod list;
mod messages;
mod protocol;
mod ranges;
mod values;

pub use free_map::{FreeMap, PAGES_PER_WORD, PageState, map_words};
pub use list::{ListedPage, PAGE_NOT_ANSWERED};
pub use messages::{BatchResult, Listed, Start, Started, Stat, StatusRun, ToAgent, ToHost, Wanted};
pub use protocol::Protocol;
pub use ranges::{RangeBatch, covers, push_status};
pub use values::{Capabilities, ErrorCode, PageStatus, StatTag};

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
/// Pages in one list: a 4 KiB page of 8-byte entries, as VMware's balloon driver has it.
pub const MAX_LISTED: usize = 512;
/// Page numbers in one array, as virtio-balloon has it: 1 MiB.
pub const MAX_PFNS: usize = 256;
/// Statistics in one message. Virtio defines 16 tags; the other half is room for an agent's own.
pub const MAX_STATS: usize = 32;
/// Bytes of the name of a guest: what fits a column of `memvisor top` with room to spare.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of the text of an error: a sentence or two.
pub const MAX_ERROR_BYTES: usize = 512;

const _: () = assert!(HEADER_BYTES + 12 + MAX_BATCH_PAGES as usize * 12 <= MAX_MESSAGE_BYTES);
const _: () = assert!(HEADER_BYTES + 4 + MAX_RANGES * 8 <= MAX_MESSAGE_BYTES);

/// The error for a datagram of `len` bytes, which is more than [`MAX_MESSAGE_BYTES`].
#[must_use]
pub const fn oversized(len: usize) -> DecodeError {
    DecodeError::Value {
        field: "message length",
        value: len as u64,
        allowed: Cow::Borrowed("8 to 65536 bytes"),
    }
}

#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
