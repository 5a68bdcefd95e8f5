//! What the sessions of a balloon look like from outside.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Pages};

/// What the sessions with the balloon agents of one VM have seen so far. A guest can drive each of these numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BalloonSessionStatus {
    /// Pages taken into the balloon.
    pub inflated_pages: Pages,
    /// Pages that the agent took back.
    pub deflated_pages: Pages,
    /// Pages that were to go in or out and were refused.
    pub refused_pages: Pages,
    /// Pages outside RAM that the agent named: it lies or is broken.
    pub invalid_pages: Pages,
    /// Times the agent was told that its balloon is void, because the guest had touched a page of it.
    pub resets: u64,
    /// Times the agent asked for pages back before their time.
    pub reliefs: u64,
    /// Times the agent's idea of its memory or balloon was another than the page table's.
    pub mismatches: u64,
    /// Times the agent was left to wait, because it had asked for too much at once.
    pub throttles: u64,
    /// Free pages that the guest reported and the host dropped.
    pub reported_pages: Pages,
    /// Messages of both sides.
    pub messages: u64,
    /// Bytes of these messages.
    pub message_bytes: Bytes,
}
