//! Resource pools: a tree whose leaves are the VMs.
//!
//! A pool has shares, a reservation and a limit as a VM has, and stands for all that is in it. Its shares count among
//! the VMs and pools beside it; what it gets by them, those in it divide by their own. The tree is a list in which each
//! pool comes after its parent. So there can be no circle, sums over what is in a pool are one walk from the end of the
//! list, and a division level by level is one walk from its beginning.
//!
//! The first pool of the list is the *root*, which has what the host has. A host without a list has a root and no more.

use serde::{Deserialize, Serialize};

use super::snapshot::HostSnapshot;
use super::total;
use crate::units::Pages;

/// The shares of a normal pool: those of a VM of 16 GiB, as in vSphere. A low one has half of them, a high one twice.
pub const NORMAL_POOL_SHARES: u32 = 163_840;

/// The root's place in the list.
pub const ROOT: usize = 0;

/// A resource pool. Of the root, only `scalable` counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourcePool {
    /// Its name, for people.
    pub name: String,
    /// The place of its parent in the list, which is before its own.
    pub parent: usize,
    /// Its weight against the VMs and pools beside it. Without shares it is held to its reservation.
    pub shares: u32,
    /// What those in it are guaranteed together, in guest pages.
    pub reservation: Pages,
    /// The most guest pages that those in it hold together. None: what the parent has.
    pub limit: Option<Pages>,
    /// Whether reservations in it that exceed its own are taken from what its parent has left.
    pub expandable: bool,
    /// Whether the shares of the pools directly in it grow with what is in these: such a pool counts as its shares
    /// times the shares of all in it, divided by [`NORMAL_POOL_SHARES`].
    pub scalable: bool,
}

impl ResourcePool {
    /// What those in it may hold together, by its own settings alone.
    pub(super) fn max(&self) -> Option<Pages> {
        match self.shares {
            0 => Some(self.min()),
            _ => self.limit,
        }
    }

    /// What is reserved for those in it. A limit below it wins, as with a VM.
    pub(super) fn min(&self) -> Pages {
        self.reservation.min(self.limit.unwrap_or(self.reservation))
    }
}

/// What is directly in a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Child {
    /// A VM, by its place in the snapshot.
    Vm(usize),
    /// A pool, by its place in the list.
    Pool(usize),
}

/// Who is directly in which pool.
#[derive(Debug)]
pub(super) struct Tree {
    children: Vec<Child>,
    /// Where the children of each pool begin, and where the last ones end.
    begins: Vec<usize>,
}

impl Tree {
    /// That of a host with believable numbers.
    pub(super) fn of(host: &HostSnapshot) -> Self {
        let mut begins = vec![0; host.pools() + 1];
        let parents = || {
            let vms = host.vms.iter().map(|vm| vm.resource_pool);
            let pools = host.resource_pools.iter().skip(1).map(|pool| pool.parent);
            vms.chain(pools)
        };
        for parent in parents() {
            begins[parent + 1] += 1;
        }
        for pool in 0..host.pools() {
            begins[pool + 1] += begins[pool];
        }
        let mut next = begins.clone();
        let vms = (0..host.vms.len()).map(Child::Vm);
        let pools = (1..host.resource_pools.len()).map(Child::Pool);
        let mut children = vec![Child::Vm(0); begins[host.pools()]];
        for (parent, child) in parents().zip(vms.chain(pools)) {
            children[next[parent]] = child;
            next[parent] += 1;
        }
        Self { children, begins }
    }

    /// What is directly in a pool: its VMs, then its pools.
    pub(super) fn of_pool(&self, pool: usize) -> &[Child] {
        &self.children[self.begins[pool]..self.begins[pool + 1]]
    }
}

impl HostSnapshot {
    /// How many pools there are, with the root.
    pub(super) fn pools(&self) -> usize {
        self.resource_pools.len().max(1)
    }

    /// Whether pools that grow stand directly in this one.
    pub(super) fn is_scalable(&self, pool: usize) -> bool {
        (self.resource_pools.get(pool)).is_some_and(|pool| pool.scalable)
    }

    /// Whether each pool comes after its parent, and each VM is in a pool of the list.
    pub(super) fn is_tree(&self) -> bool {
        let mut pools = self.resource_pools.iter().enumerate().skip(1);
        pools.all(|(at, pool)| pool.parent < at)
            && self.vms.iter().all(|vm| vm.resource_pool < self.pools())
    }

    /// The pool list as it can be: a pool whose parent is not before it stands at the root.
    pub(super) fn believable_pools(&self) -> Vec<ResourcePool> {
        let pools = self.resource_pools.iter().cloned().enumerate();
        let right = |(at, pool): (usize, ResourcePool)| ResourcePool {
            parent: if pool.parent < at { pool.parent } else { ROOT },
            ..pool
        };
        pools.map(right).collect()
    }

    /// The sums of a number of each VM over all that is in each pool.
    #[must_use]
    pub fn by_pool(&self, numbers: impl IntoIterator<Item = Pages>) -> Vec<Pages> {
        let mut sums = vec![Pages(0); self.pools()];
        for (vm, number) in self.vms.iter().zip(numbers) {
            let sum = &mut sums[vm.resource_pool];
            *sum = total([*sum, number]);
        }
        for (at, pool) in self.resource_pools.iter().enumerate().skip(1).rev() {
            sums[pool.parent] = total([sums[pool.parent], sums[at]]);
        }
        sums
    }

    /// The pools around a VM, from its own to the root.
    pub(super) fn pools_around(&self, vm: usize) -> impl Iterator<Item = usize> {
        let parent = |at: &usize| (*at != ROOT).then(|| self.resource_pools[*at].parent);
        std::iter::successors(Some(self.vms[vm].resource_pool), parent)
    }
}
