//! Where faults wait without holding a thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crossbeam::queue::SegQueue;
use memvisor_wire::Doorbell;

use crate::sync::{AtomicU32, Ordering, fence};
use crate::units::Gfn;

/// What the faults of a VM that have no memory wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Waits {
    /// No fault waits for memory.
    Not = 0,
    /// All of them wait for their turn.
    Queued = 1,
    /// Some wait for an order of the policy, others perhaps for their turn.
    Barred = 2,
}

/// Pages whose waiting faults are to be served again, and the bell that calls the fault thread.
#[derive(Debug)]
pub struct Parking {
    unlocked: SegQueue<Gfn>,
    waits: AtomicU32,
    bell: Doorbell,
}

impl Parking {
    /// A parking in which no fault waits yet.
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

    /// The descriptor that becomes readable when the bell rings.
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
        // A bell that could not be silenced only makes the thread look once more.
        let _ = self.bell.silence();
    }

    /// Has the faults that wait for this page served again, now that it is unlocked.
    pub fn unpark(&self, gfn: Gfn) {
        self.unlocked.push(gfn);
        self.ring();
    }

    /// The next page whose faults are to be served again.
    pub fn pop(&self) -> Option<Gfn> {
        self.unlocked.pop()
    }

    /// Notes what faults of this VM wait for. A caller that says they wait must then check once more that they have
    /// to. The fences here and in [`is_barred`](Self::is_barred) guarantee one of two things: the check sees what has
    /// changed, or the thread that changed it sees that faults wait.
    pub(super) fn set_waits(&self, waits: Waits) {
        self.waits.store(waits as u32, Ordering::Relaxed);
        // SeqCst: between this store and the loads of the caller's check. Pairs with the fences of `is_barred` and
        // `Budget::give`.
        fence(Ordering::SeqCst);
    }

    /// What the fault thread has noted.
    pub(super) fn waits(&self) -> Waits {
        match self.waits.load(Ordering::Relaxed) {
            0 => Waits::Not,
            1 => Waits::Queued,
            _ => Waits::Barred,
        }
    }

    /// Whether faults of this VM wait for memory, or for an order that lets them have it.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.waits() != Waits::Not
    }

    /// Whether faults of this VM wait until an order lets it have memory. A caller that has just made that possible has
    /// stored its change before it asks.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        // SeqCst: between the caller's change and this load. Pairs with the fence of `set_waits`.
        fence(Ordering::SeqCst);
        self.waits() == Waits::Barred
    }
}
