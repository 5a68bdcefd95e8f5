//! What the policy wants of one VM: written by the policy, carried out by the VM's own threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::units::Pages;

/// The latest orders.
#[derive(Debug, Default)]
pub struct Orders {
    evict: AtomicU64,
    blocked: AtomicBool,
    balloon_target: AtomicU64,
    allocation_target: AtomicU64,
    manual_balloon: AtomicU64,
    manual: AtomicBool,
}

impl Orders {
    /// Sets how many pages the worker shall evict from now on.
    pub fn set_evict(&self, pages: Pages) {
        self.evict.store(pages.0, Ordering::Relaxed);
    }

    /// How many pages are still to be evicted.
    #[must_use]
    pub fn evict(&self) -> Pages {
        Pages(self.evict.load(Ordering::Relaxed))
    }

    /// Notes that `pages` were freed, or that no more can be.
    pub fn evicted(&self, pages: Pages) {
        let less = |left: u64| Some(left.saturating_sub(pages.0));
        let _ = self
            .evict
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Blocks or unblocks allocations; whether that changed.
    pub fn set_blocked(&self, blocked: bool) -> bool {
        self.blocked.swap(blocked, Ordering::SeqCst) != blocked
    }

    /// Whether the VM may not take memory now.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }

    /// Sets the size the policy wants the balloon to have, and the allocation behind it.
    pub fn set_targets(&self, balloon: Pages, allocation: Pages) {
        self.balloon_target.store(balloon.0, Ordering::Relaxed);
        self.allocation_target
            .store(allocation.0, Ordering::Relaxed);
    }

    /// Fixes the balloon's target by hand, or gives it back to the policy.
    pub fn set_manual(&self, target: Option<Pages>) {
        if let Some(target) = target {
            self.manual_balloon.store(target.0, Ordering::Relaxed);
        }
        self.manual.store(target.is_some(), Ordering::Release);
    }

    /// The target set by hand, if there is one.
    #[must_use]
    pub fn manual(&self) -> Option<Pages> {
        let manual = self.manual.load(Ordering::Acquire);
        manual.then(|| Pages(self.manual_balloon.load(Ordering::Relaxed)))
    }

    /// The size the balloon shall have.
    #[must_use]
    pub fn balloon_target(&self) -> Pages {
        self.manual()
            .unwrap_or_else(|| Pages(self.balloon_target.load(Ordering::Relaxed)))
    }

    /// The memory the policy thinks the VM should have.
    #[must_use]
    pub fn allocation_target(&self) -> Pages {
        Pages(self.allocation_target.load(Ordering::Relaxed))
    }
}
