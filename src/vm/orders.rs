//! What the policy wants of one VM. The policy writes these orders, and the VM's own threads carry them out.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::units::Pages;

/// By which means pages may be evicted, besides being shared or found zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Means {
    /// Into the compression cache.
    pub compress: bool,
    /// Into the swap file. This includes moving pages there from the compression cache, to make room in it.
    pub swap: bool,
}

impl Means {
    /// All means there are.
    pub const ALL: Self = Self {
        compress: true,
        swap: true,
    };
}

/// An order to evict: how many pages, by what, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eviction {
    /// How many pages.
    pub pages: Pages,
    /// By which means.
    pub means: Means,
    /// Evict however much memory is free, because the VM's own limit asks for it. Otherwise evict only while less is
    /// free than the policy aims at.
    pub always: bool,
}

impl Eviction {
    /// An order to evict `pages`, however much memory is free.
    #[must_use]
    pub const fn at_once(pages: Pages, means: Means) -> Self {
        Self {
            pages,
            means,
            always: true,
        }
    }
}

/// The lowest bits of an order to evict say how. They share a word with the number of pages, so that pages are never
/// evicted by the means of another order.
const COMPRESS: u64 = 1;
const SWAP: u64 = 2;
const ALWAYS: u64 = 4;
const PAGES_SHIFT: u32 = 3;
const HOW: u64 = (1 << PAGES_SHIFT) - 1;

/// Which faults of a VM must wait while memory is scarce.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Blocked {
    /// None.
    #[default]
    No,
    /// First touches, which make the VM larger. Nothing can be taken from any VM now, so this one must run on with
    /// what it has: otherwise its balloon agent could not help.
    Touches,
    /// All.
    All,
}

/// The latest orders.
#[derive(Debug)]
pub struct Orders {
    evict: AtomicU64,
    blocked: AtomicU8,
    ceiling: AtomicU64,
    promised: AtomicU64,
    balloon_target: AtomicU64,
    allocation_target: AtomicU64,
    entitlement: AtomicU64,
    swap_target: AtomicU64,
    /// Pages a second; 0: nothing was ordered.
    unswap: AtomicU32,
    manual_balloon: AtomicU64,
    manual: AtomicBool,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            evict: AtomicU64::new(0),
            blocked: AtomicU8::new(Blocked::No as u8),
            ceiling: AtomicU64::new(u64::MAX),
            promised: AtomicU64::new(0),
            balloon_target: AtomicU64::new(0),
            allocation_target: AtomicU64::new(0),
            entitlement: AtomicU64::new(0),
            swap_target: AtomicU64::new(0),
            unswap: AtomicU32::new(0),
            manual_balloon: AtomicU64::new(0),
            manual: AtomicBool::new(false),
        }
    }
}

impl Orders {
    /// Sets what the worker is to evict from now on.
    pub fn set_evict(&self, eviction: Eviction) {
        let Eviction {
            pages,
            means,
            always,
        } = eviction;
        let how = [
            (means.compress, COMPRESS),
            (means.swap, SWAP),
            (always, ALWAYS),
        ];
        let how: u64 = how.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        self.evict
            .store(pages.0 << PAGES_SHIFT | how, Ordering::Relaxed);
    }

    /// What is still to be evicted.
    #[must_use]
    pub fn evict(&self) -> Eviction {
        let order = self.evict.load(Ordering::Relaxed);
        Eviction {
            pages: Pages(order >> PAGES_SHIFT),
            means: Means {
                compress: order & COMPRESS != 0,
                swap: order & SWAP != 0,
            },
            always: order & ALWAYS != 0,
        }
    }

    /// Notes that `pages` were freed.
    pub fn evicted(&self, pages: Pages) {
        let less = |order: u64| {
            let left = (order >> PAGES_SHIFT).saturating_sub(pages.0);
            Some(left << PAGES_SHIFT | order & HOW)
        };
        // It cannot fail: `less` has an answer for every order.
        let _ = self
            .evict
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Blocks or unblocks allocations, and returns whether that is a change. A caller that unblocks then rings the VM's
    /// bell; that is a system call, which orders the two, so the fault thread that is called sees the change.
    pub fn set_blocked(&self, blocked: Blocked) -> bool {
        self.blocked.swap(blocked as u8, Ordering::Relaxed) != blocked as u8
    }

    /// Whether some faults of the VM must wait while memory is scarce.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != Blocked::No as u8
    }

    /// Whether all its faults must wait then, refills and breaks too.
    #[must_use]
    pub fn is_blocked_wholly(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) == Blocked::All as u8
    }

    /// Sets how many pages the VM may hold in RAM, its own and shared ones; `None`: any number. Returns whether that is
    /// more than before.
    pub fn set_ceiling(&self, pages: Option<Pages>) -> bool {
        let pages = pages.map_or(u64::MAX, |pages| pages.0);
        self.ceiling.swap(pages, Ordering::Relaxed) < pages
    }

    /// How many pages the VM may hold in RAM.
    #[must_use]
    pub fn ceiling(&self) -> Pages {
        Pages(self.ceiling.load(Ordering::Relaxed))
    }

    /// Sets how many pages the VM is promised, its own and shared ones: its reservation, less what its compression
    /// cache takes.
    pub fn set_promised(&self, pages: Pages) {
        self.promised.store(pages.0, Ordering::Relaxed);
    }

    /// How many pages the VM is promised.
    #[must_use]
    pub fn promised(&self) -> Pages {
        Pages(self.promised.load(Ordering::Relaxed))
    }

    /// Sets what the policy wants: the size of the balloon, the allocation from which it follows, and the number of
    /// pages in the stores.
    pub fn set_targets(&self, balloon: Pages, allocation: Pages, swap: Pages) {
        self.swap_target.store(swap.0, Ordering::Relaxed);
        self.balloon_target.store(balloon.0, Ordering::Relaxed);
        self.allocation_target
            .store(allocation.0, Ordering::Relaxed);
    }

    /// Notes what the policy would let the VM have if it wanted more.
    pub fn set_entitlement(&self, pages: Pages) {
        self.entitlement.store(pages.0, Ordering::Relaxed);
    }

    /// What the policy would let the VM have if it wanted more.
    #[must_use]
    pub fn entitlement(&self) -> Pages {
        Pages(self.entitlement.load(Ordering::Relaxed))
    }

    /// Fixes the balloon's target by hand, or gives it back to the policy.
    pub fn set_manual(&self, target: Option<Pages>) {
        if let Some(target) = target {
            self.manual_balloon.store(target.0, Ordering::Relaxed);
        }
        // Release pairs with the Acquire of `manual`: whoever sees the flag sees the target.
        self.manual.store(target.is_some(), Ordering::Release);
    }

    /// The target set by hand, if there is one.
    #[must_use]
    pub fn manual(&self) -> Option<Pages> {
        // Acquire pairs with the Release of `set_manual`.
        let manual = self.manual.load(Ordering::Acquire);
        manual.then(|| Pages(self.manual_balloon.load(Ordering::Relaxed)))
    }

    /// The size that the balloon is to have.
    #[must_use]
    pub fn balloon_target(&self) -> Pages {
        self.manual()
            .unwrap_or_else(|| Pages(self.balloon_target.load(Ordering::Relaxed)))
    }

    /// The pages that the policy wants in the compression cache and the swap file.
    #[must_use]
    pub fn swap_target(&self) -> Pages {
        Pages(self.swap_target.load(Ordering::Relaxed))
    }

    /// Orders the VM's swapped pages to be brought back, so many pages a second, until none is left; `None`: no more.
    pub fn set_unswap(&self, rate: Option<NonZeroU32>) {
        let rate = rate.map_or(0, NonZeroU32::get);
        self.unswap.store(rate, Ordering::Relaxed);
    }

    /// Ends this order, as carried out. One that was given meanwhile stays.
    pub fn end_unswap(&self, order: Option<u32>) {
        if let Some(rate) = order {
            let relaxed = Ordering::Relaxed;
            // It fails if there is another order.
            let _ = self.unswap.compare_exchange(rate, 0, relaxed, relaxed);
        }
    }

    /// How many swapped pages are to be brought back in a second, if that was ordered.
    #[must_use]
    pub fn unswap(&self) -> Option<u32> {
        let rate = self.unswap.load(Ordering::Relaxed);
        (rate > 0).then_some(rate)
    }

    /// The memory that the policy thinks the VM should have.
    #[must_use]
    pub fn allocation_target(&self) -> Pages {
        Pages(self.allocation_target.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_to_evict_keeps_its_means_while_it_is_carried_out() {
        for means in [(true, false), (false, true), (false, false), (true, true)] {
            let (compress, swap) = means;
            let order = |pages| Eviction {
                pages: Pages(pages),
                means: Means { compress, swap },
                always: compress,
            };
            let orders = Orders::default();
            orders.set_evict(order(70));
            orders.evicted(Pages(64));
            assert_eq!(orders.evict(), order(6));
            orders.evicted(Pages(64));
            assert_eq!(orders.evict(), order(0));
        }
    }
}
