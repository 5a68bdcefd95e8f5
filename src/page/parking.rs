//! Where faults wait without holding a thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crossbeam::queue::SegQueue;
use memvisor_guest_agent::shim::Doorbell;

use crate::sync::{AtomicU32, Ordering, fence};
use crate::units::Gfn;

/// What faults of a VM wait for, as far as that is memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Waits {
    /// None does.
    Not = 0,
    /// Their turn.
    Queued = 1,
    /// Some of them for an order of the policy, others perhaps for their turn.
    Barred = 2,
}

/// Pages whose waiting faults shall be served again, and the bell that calls the fault thread.
#[derive(Debug)]
pub struct Parking {
    unlocked: SegQueue<Gfn>,
    waits: AtomicU32,
    bell: Doorbell,
}

impl Parking {
    /// A parking where nobody waits yet.
    ///
    /// # Errors
    /// What `eventfd(2)` says.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            unlocked: SegQueue::new(),
            waits: AtomicU32::new(Waits::Not as u32),
            bell: Doorbell::new()?,
        })
    }

    /// The descriptor that becomes readable when the fault thread shall look.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Calls the fault thread.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Silences the bell before the fault thread looks.
    pub fn answer(&self) {
        // A bell that is not silenced has the thread look once more.
        let _ = self.bell.silence();
    }

    /// The page was unlocked and a fault waits for it.
    pub fn unpark(&self, gfn: Gfn) {
        self.unlocked.push(gfn);
        self.ring();
    }

    /// The next page whose faults shall be served again.
    pub fn pop(&self) -> Option<Gfn> {
        self.unlocked.pop()
    }

    /// Notes what faults of this VM wait for. Who says that they wait must look once more whether they have to: the fences
    /// here and in [`is_barred`](Self::is_barred) make sure of one of two, that the look sees what has changed,
    /// or that who changed it sees that somebody waits.
    pub(super) fn set_waits(&self, waits: Waits) {
        self.waits.store(waits as u32, Ordering::Relaxed);
        // SeqCst: between this store and the loads of the next look. Pairs with the fence of `is_barred`, and
        // with that of `Budget::give`.
        fence(Ordering::SeqCst);
    }

    /// What the thread that serves the faults has noted.
    pub(super) fn waits(&self) -> Waits {
        match self.waits.load(Ordering::Relaxed) {
            0 => Waits::Not,
            1 => Waits::Queued,
            _ => Waits::Barred,
        }
    }

    /// Whether faults of this VM wait for memory, or for an order to have it.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.waits() != Waits::Not
    }

    /// Whether faults of this VM wait until it may have memory. Who asks because it may now has done before what allows it.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        // SeqCst: between what the caller did and this load. Pairs with the fence of `set_waits`.
        fence(Ordering::SeqCst);
        self.waits() == Waits::Barred
    }
}
