//! What fields of messages hold: capabilities, statuses, codes, tags.

use super::declare::{Carried, Limit};
use crate::DecodeError;
use bitflags::bitflags;

bitflags! {
    /// What an agent can do. The host answers with the capabilities that it will use.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Capabilities: u32 {
        /// More than one range in a `LOCK` or `UNLOCK`.
        const BATCHED = 1;
        /// The host may send `TARGET` and `RESET` at any time. Without this capability the host
        /// speaks only when asked, and a `RESET` takes the place of the next reply.
        const DOORBELL = 1 << 1;
        /// The agent sends `STATS`.
        const STATS = 1 << 2;
        /// The agent sends `RELIEF` when its guest is short of memory.
        const RELIEF = 1 << 3;
        /// Pages are named in lists of single pages, each with a status of its own.
        const PAGE_LISTS = 1 << 4;
        /// Pages are named in arrays of page numbers, without statuses.
        const PFN_ARRAYS = 1 << 5;
        /// With `PFN_ARRAYS`: the guest uses a page again only after the host has answered `DEFLATE`.
        const MUST_TELL_HOST = 1 << 6;
        /// With `PFN_ARRAYS`: the guest deflates by itself when it is out of memory.
        const DEFLATE_ON_OOM = 1 << 7;
        /// The guest reports pages that it does not use.
        const REPORTING = 1 << 8;
        /// The guest offers pages that it does not use, and gives those that the host wants.
        const HINTS = 1 << 9;
        /// Guest and host share a map of free pages.
        const BITMAP = 1 << 10;
    }
}

impl Capabilities {
    /// Those that have nothing to do with how pages are named.
    pub const COMMON: Self = Self::BATCHED
        .union(Self::DOORBELL)
        .union(Self::STATS)
        .union(Self::RELIEF);
}

codes! {
    /// What became of one page of a batch.
    pub enum PageStatus: u32 {
        /// The page was locked or unlocked, as the request asked.
        Ok = 0,
        /// The page is not in the RAM of this VM.
        Invalid = 1,
        /// `LOCK`: the page is in the balloon already.
        AlreadyLocked = 2,
        /// `UNLOCK`: the page is not in the balloon, so the guest may use it.
        NotLocked = 3,
        /// The host is using the page just now. The agent may offer it again later.
        Busy = 4,
        /// `LOCK`: the balloon is large enough without this page.
        NotNeeded = 5,
    }
}

codes! {
    /// Why the host ended a connection. There is one code for each way in which an agent can react.
    pub enum ErrorCode: u16 {
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
}

/// What a statistic is about. The tags are those of virtio-balloon (VIRTIO 1.3, 5.5.6.4), so that an
/// agent can pass on what its kernel counts. Tags from 0x8000 on are ours. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatTag(pub u16);

impl StatTag {
    /// Bytes the guest has read from its own swap device since it booted.
    pub const SWAP_IN: Self = Self(0);
    /// Bytes the guest has written to its own swap device since it booted.
    pub const SWAP_OUT: Self = Self(1);
    /// Page faults that needed I/O, since boot.
    pub const MAJOR_FAULTS: Self = Self(2);
    /// Page faults that needed no I/O, since boot.
    pub const MINOR_FAULTS: Self = Self(3);
    /// Bytes that hold nothing.
    pub const FREE_MEMORY: Self = Self(4);
    /// Bytes that the guest can use at all, without those in the balloon.
    pub const TOTAL_MEMORY: Self = Self(5);
    /// Bytes that the guest could make free without swapping.
    pub const AVAILABLE_MEMORY: Self = Self(6);
    /// Bytes of file cache.
    pub const DISK_CACHES: Self = Self(7);
    /// Times the guest killed a process for want of memory, since boot.
    pub const OOM_KILLS: Self = Self(10);
    /// Microseconds that threads of the guest waited for its own swap device, summed over the threads, since boot. Not
    /// a tag of virtio-balloon.
    pub const SWAP_WAIT: Self = Self(0x8000);
}

impl Carried for Capabilities {
    type By = u32;

    fn pack(&self) -> u32 {
        self.bits()
    }

    fn unpack(bits: u32) -> Result<Self, DecodeError> {
        Ok(Self::from_bits_truncate(bits))
    }
}

impl Carried for StatTag {
    type By = u16;

    fn pack(&self) -> u16 {
        self.0
    }

    fn unpack(number: u16) -> Result<Self, DecodeError> {
        Ok(Self(number))
    }
}
