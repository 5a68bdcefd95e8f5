//! What the fault core is told, and what it has done: its line to whoever drives it.

use std::time::Instant;

use memvisor_guest_agent::protocol::memory::Fault;

use super::ended::Ended;
use crate::engine::Reply;
use crate::units::Gfn;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A thread accessed this page and waits in the kernel.
    Userfault(Gfn),
    /// A thread of the guest says this over the fault channel of this number.
    Message(usize, Fault),
    /// The bell of the VM rang. Whoever hears it answers it first
    /// ([`Parking::answer`](crate::page::Parking::answer)).
    Bell,
}

/// Who answers the guest, at once: its thread waits.
pub trait Driver {
    /// The time: what the core does after an event was read takes some too.
    fn now(&self) -> Instant;

    /// Answers what came over a channel.
    ///
    /// # Errors
    /// [`Ended`]: the guest cannot be told.
    fn reply(&mut self, channel: usize, reply: Reply) -> Result<(), Ended>;

    /// Tells the homes that a page has had, in at most
    /// [`MAX_REPORT`](memvisor_guest_agent::protocol::memory::MAX_REPORT) bytes.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    fn history(&mut self, channel: usize, text: &str) -> Result<(), Ended>;
}
