//! What the fault core is told, and what it has done: its line to whoever drives it.

use std::time::{Duration, Instant};

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

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing more: a userfault is served, and the kernel has woken its threads.
    Woken {
        /// For how long after it was read.
        took: Duration,
    },
    /// Answer a fault.
    Answer {
        /// On which channel.
        channel: usize,
        /// With what.
        reply: Reply,
        /// How long after it was read.
        took: Duration,
    },
    /// Say how many of the pages that a thread asked for are attached.
    Attached {
        /// On which channel.
        channel: usize,
        /// How many, from the first on.
        count: u32,
    },
    /// Tell the homes that a page has had.
    History {
        /// On which channel.
        channel: usize,
        /// The text, at most [`MAX_REPORT`](memvisor_guest_agent::protocol::memory::MAX_REPORT) bytes.
        text: String,
    },
}

/// Who carries actions out.
pub trait Driver {
    /// The time: what the core does after an event was read takes some too.
    fn now(&self) -> Instant;

    /// Does it at once: the thread of the guest waits.
    ///
    /// # Errors
    /// [`Ended`]: the guest cannot be told.
    fn act(&mut self, action: Action) -> Result<(), Ended>;
}
