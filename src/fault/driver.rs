//! What goes into the fault core and what comes out of it: the interface to its driver.

use std::time::Instant;

use memvisor_wire::memory::Fault;

use super::ended::Ended;
use crate::engine::Reply;
use crate::units::Gfn;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A thread accessed this page and waits in the kernel.
    Userfault(Gfn),
    /// A thread of the guest sent this message over the fault channel with this number.
    Message(usize, Fault),
    /// The bell of the VM rang. The driver has silenced it before it hands this event over
    /// ([`Parking::answer`](crate::page::Parking::answer)).
    Bell,
}

/// What answers the guest. It must do so at once, because the guest's thread waits.
pub trait Driver {
    /// The time now. The core needs it beside the time of the event, because serving a fault takes time too.
    fn now(&self) -> Instant;

    /// Answers what came over a channel.
    ///
    /// # Errors
    /// [`Ended`]: the guest cannot be told.
    fn reply(&mut self, channel: usize, reply: Reply) -> Result<(), Ended>;

    /// Tells the guest which homes a page has had, in at most
    /// [`MAX_REPORT`](memvisor_wire::memory::MAX_REPORT) bytes.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    fn history(&mut self, channel: usize, text: &str) -> Result<(), Ended>;
}
