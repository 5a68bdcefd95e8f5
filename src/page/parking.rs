//! Where faults wait without holding a thread.

use std::os::fd::{AsFd, BorrowedFd};

use crossbeam::queue::SegQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sync::{AtomicU32, Ordering, fence};
use crate::units::Gfn;

/// Pages whose waiting faults shall be served again, and the bell that calls the fault thread.
#[derive(Debug)]
pub struct Parking {
    unlocked: SegQueue<Gfn>,
    starved: AtomicU32,
    bell: Option<EventFd>,
}

impl Parking {
    /// A parking with a bell that an epoll can watch.
    ///
    /// # Errors
    /// What `eventfd(2)` says.
    pub fn new() -> nix::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            bell: Some(bell),
            ..Self::without_event()
        })
    }

    /// A parking that nobody waits at; whoever serves the faults looks by itself.
    #[must_use]
    pub fn without_event() -> Self {
        Self {
            unlocked: SegQueue::new(),
            starved: AtomicU32::new(0),
            bell: None,
        }
    }

    /// The descriptor that becomes readable when the fault thread shall look.
    #[must_use]
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }

    /// Calls the fault thread.
    pub fn ring(&self) {
        if let Some(bell) = &self.bell {
            // It can fail only when 2^64 rings are unanswered; then the bell is ringing anyway.
            let _ = bell.write(1);
        }
    }

    /// Silences the bell before the fault thread looks.
    pub fn answer(&self) {
        if let Some(bell) = &self.bell {
            // Failing means that it was not ringing.
            let _ = bell.read();
        }
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

    /// Notes whether faults of this VM wait for memory. Who says that they do must try once more: the fences
    /// here and in [`is_starved`](Self::is_starved) make sure of one of two, that the try sees what came free,
    /// or that who freed it sees that somebody waits.
    pub fn set_starved(&self, starved: bool) {
        self.starved.store(u32::from(starved), Ordering::Relaxed);
        // SeqCst: between this store and the loads of the next try. Pairs with the fence of `is_starved`, and
        // with that of `Budget::give`.
        fence(Ordering::SeqCst);
    }

    /// Whether faults of this VM wait for memory. Who asks because memory came free has said so before.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        // SeqCst: between what the caller gave back and this load. Pairs with the fence of `set_starved`.
        fence(Ordering::SeqCst);
        self.says_starved()
    }

    /// The same for the thread that says it.
    pub(super) fn says_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) != 0
    }
}
