//! The share pools, one for each sharing domain for as long as a VM uses it, and the hints that all share.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::page::{Budget, Urgency};
use crate::pool::{Hints, Pool};
use crate::settings::Domain;
use crate::units::{Pages, VmId};

/// Frames of a pool for each page of the budget: extents need room behind each start, and unused
/// frames cost nothing.
const FRAMES_PER_PAGE: u64 = 4;
/// A small pool would have no room for extents of 4096 frames.
const MIN_FRAMES: u64 = 1 << 16;
/// The pool must fit the address space of every guest: 1 TiB of frames.
const MAX_FRAMES: u64 = 1 << 28;

/// The pools by their domain. Their lock is never held together with another.
#[derive(Debug)]
pub(super) struct Pools {
    total: Pages,
    hints: Arc<Hints>,
    domains: Mutex<HashMap<Domain, Weak<Pool>>>,
}

impl Pools {
    /// No pools yet. The table of hints is charged to `budget`, which must be unused.
    ///
    /// # Errors
    /// When there is no memory for that table.
    pub(super) fn new(budget: &Budget) -> io::Result<Self> {
        let total = budget.total();
        let hints = Arc::new(Hints::new(total)?);
        // It cannot fail: the table is a quarter of a percent of a budget that is unused.
        let _ = budget.take(Hints::metadata(total).0, Urgency::Reclaim);
        Ok(Self {
            total,
            hints,
            domains: Mutex::default(),
        })
    }

    /// The pool of a sharing domain. A VM that does not share has a pool of its own, which stays empty.
    ///
    /// # Errors
    /// When the kernel refuses another memfd, or there is no memory for the pool's tables.
    pub(super) fn get(&self, id: VmId, domain: &Domain) -> io::Result<Arc<Pool>> {
        // Held while a pool is made: two VMs of one domain must not get two.
        let mut domains = self.domains();
        domains.retain(|_, pool| pool.strong_count() > 0);
        let key = match domain {
            Domain::None => Domain::Own(id),
            shared => shared.clone(),
        };
        if let Some(pool) = domains.get(&key).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(Pool::new("memvisor-pool", self.frames(), &self.hints)?);
        // Weakly: the VMs hold their pool, and the last one takes it along.
        domains.insert(key, Arc::downgrade(&pool));
        Ok(pool)
    }

    /// Frames of every pool, holes included.
    pub(super) fn frames(&self) -> u32 {
        let frames = self.total.0.saturating_mul(FRAMES_PER_PAGE);
        u32::try_from(frames.clamp(MIN_FRAMES, MAX_FRAMES)).unwrap_or(u32::MAX)
    }

    /// The memory that is charged to no VM: the hints.
    pub(super) fn metadata(&self) -> Pages {
        Hints::metadata(self.total)
    }

    /// The pools that are in use.
    pub(super) fn all(&self) -> Vec<Arc<Pool>> {
        self.domains().values().filter_map(Weak::upgrade).collect()
    }

    /// What sharing saves.
    pub(super) fn saved(&self) -> Pages {
        Pages(self.all().iter().map(|pool| pool.counts().saved().0).sum())
    }

    fn domains(&self) -> MutexGuard<'_, HashMap<Domain, Weak<Pool>>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(total: u64) -> Pools {
        Pools::new(&Budget::new(Pages(total), Pages(0))).expect("memory")
    }

    #[test]
    fn domain_has_one_pool_as_long_as_a_vm_uses_it() {
        let pools = pools(1024);
        let salt = Domain::Salt("red".to_owned());
        let first = pools.get(VmId(1), &salt).expect("a memfd");
        let second = pools.get(VmId(2), &salt).expect("the same");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(pools.all().len(), 1);
        drop((first, second));
        assert!(pools.all().is_empty());
    }

    #[test]
    fn vms_that_share_with_nobody_have_pools_of_their_own() {
        let pools = pools(1024);
        let [first, second] = [1, 2].map(|id| pools.get(VmId(id), &Domain::None).expect("a memfd"));
        assert!(!Arc::ptr_eq(&first, &second));
        let again = pools.get(VmId(1), &Domain::Own(VmId(1))).expect("its own");
        assert!(Arc::ptr_eq(&first, &again));
    }

    #[test]
    fn hints_are_charged_and_frames_are_within_what_a_guest_can_map() {
        let budget = Budget::new(Pages(1 << 20), Pages(0));
        let pools = Pools::new(&budget).expect("memory");
        assert_eq!(budget.used(), pools.metadata());
        assert_eq!(pools.frames(), 4 << 20);
        assert_eq!(self::pools(1024).frames(), 1 << 16);
    }
}
