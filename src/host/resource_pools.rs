//! The resource pools of this host: which there are, and where that is said.
//!
//! As with the settings of VMs, a pool is written in the configuration file, at run time, or both, and what is set at
//! run time is above the file. So a reload changes no more than the file has changed. A pool that was added at run time
//! lasts until the host ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::policy::{ROOT, ResourcePool};
use crate::settings::{
    PoolPatch, PoolSettingsError, ROOT_POOL, UnknownPool, VmSettings, pool_tree,
};
use crate::units::Pages;

/// What a guest needs to run, in pages (1 MiB).
const LEAST_CEILING: Pages = Pages(256);

/// The pools and where they are said to be.
#[derive(Clone, Debug)]
pub(super) struct PoolLayers {
    file: BTreeMap<String, PoolPatch>,
    by_hand: BTreeMap<String, PoolPatch>,
    list: Vec<ResourcePool>,
}

impl PoolLayers {
    /// Makes the list of pools anew.
    fn listed(mut self) -> Result<Self, (String, PoolSettingsError)> {
        let mut all = self.file.clone();
        for (name, by_hand) in &self.by_hand {
            let below = all.entry(name.clone()).or_default();
            *below = by_hand.over(below);
        }
        self.list = pool_tree(&all)?;
        Ok(self)
    }

    /// The list, the root first and each pool after its parent.
    pub(super) fn list(&self) -> &[ResourcePool] {
        &self.list
    }

    /// The names of all pools.
    pub(super) fn names(&self) -> Vec<String> {
        self.list.iter().map(|pool| pool.name.clone()).collect()
    }

    /// Whether the configuration file says that there is this pool.
    pub(super) fn is_in_file(&self, name: &str) -> bool {
        self.file.contains_key(name)
    }

    /// The same with settings of a pool set by hand. One that is not there yet is added.
    pub(super) fn with(&self, name: &str, patch: &PoolPatch) -> Result<Self, PoolSettingsError> {
        let mut new = self.clone();
        let own = new.by_hand.entry(name.to_owned()).or_default();
        *own = patch.over(own);
        new.listed().map_err(|(_, error)| error)
    }

    /// The same without a pool that was added by hand, and in which no pool stands.
    pub(super) fn without(&self, name: &str) -> Self {
        let mut new = self.clone();
        new.by_hand.remove(name);
        let place = new.list.iter().position(|pool| pool.name == name);
        if place.is_some() {
            // It was the parent of none, so what is left is a tree.
            new = new.listed().unwrap_or_else(|_| self.clone());
        }
        new
    }

    /// The same with another file.
    pub(super) fn with_file(
        &self,
        file: BTreeMap<String, PoolPatch>,
    ) -> Result<Self, (String, PoolSettingsError)> {
        let mut new = self.clone();
        // What was set by hand of a pool that only the file made goes with it.
        new.by_hand
            .retain(|name, _| !self.file.contains_key(name) || file.contains_key(name));
        new.file = file;
        new.listed()
    }
}

/// The owner of the pools. Whoever changes them holds the lock of promises.
#[derive(Debug)]
pub(super) struct ResourcePools {
    held: Mutex<PoolLayers>,
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ResourcePools {
    /// Those of a configuration file, which was checked when it was read.
    pub(super) fn new(file: BTreeMap<String, PoolPatch>) -> Self {
        let nothing = PoolLayers {
            file: BTreeMap::new(),
            by_hand: BTreeMap::new(),
            list: vec![ResourcePool {
                name: ROOT_POOL.to_owned(),
                ..ResourcePool::default()
            }],
        };
        let held = nothing.with_file(file).unwrap_or(nothing);
        Self {
            held: Mutex::new(held),
        }
    }

    /// The list, the root first and each pool after its parent.
    pub(super) fn list(&self) -> Vec<ResourcePool> {
        lock(&self.held).list.clone()
    }

    /// The pools and where they are said to be.
    pub(super) fn layers(&self) -> PoolLayers {
        lock(&self.held).clone()
    }

    /// Puts other pools in force; returns the names of those that have changed, came or went.
    pub(super) fn replace(&self, new: PoolLayers) -> Vec<String> {
        let mut held = lock(&self.held);
        let settings = |pools: &PoolLayers| -> BTreeMap<String, (String, ResourcePool)> {
            let parent = |pool: &ResourcePool| pools.list[pool.parent].name.clone();
            let pools = pools.list.iter();
            let alone = |pool: &ResourcePool| ResourcePool {
                parent: ROOT,
                ..pool.clone()
            };
            pools
                .map(|pool| (pool.name.clone(), (parent(pool), alone(pool))))
                .collect()
        };
        let (before, after) = (settings(&held), settings(&new));
        *held = new;
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let changed = names.into_iter();
        let changed = changed.filter(|name| before.get(*name) != after.get(*name));
        changed.cloned().collect()
    }
}

/// The most that a VM with these settings may hold until the policy has seen it: in a pool with a limit no more than is
/// promised to it, or what a guest needs to run.
pub(crate) fn first_ceiling(list: &[ResourcePool], vm: &VmSettings) -> Option<Pages> {
    let mut at = place(list, &vm.pool);
    while at != ROOT {
        if list[at].limit.is_some() || list[at].shares == 0 {
            let least = vm.reservation.max(LEAST_CEILING);
            return Some(vm.limit.map_or(least, |limit| limit.min(least)));
        }
        at = list[at].parent;
    }
    vm.limit
}

/// The place of a pool in the list; that of the root if there is none of that name.
pub(crate) fn place(list: &[ResourcePool], name: &str) -> usize {
    // Between two looks a VM may have moved to a pool that has just been added: it counts from the next one on.
    let found = list.iter().position(|pool| pool.name == name);
    found.unwrap_or(ROOT)
}

/// The place of a pool in the list.
///
/// # Errors
/// There is none of that name.
pub(super) fn find(list: &[ResourcePool], name: &str) -> Result<usize, UnknownPool> {
    let found = list.iter().position(|pool| pool.name == name);
    found.ok_or_else(|| UnknownPool {
        name: name.to_owned(),
        known: list.iter().map(|pool| pool.name.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pools: &[(&str, &str)]) -> BTreeMap<String, PoolPatch> {
        let read = |(name, words): &(&str, &str)| {
            let patch = PoolPatch::from_words(words.split_whitespace()).expect("valid");
            ((*name).to_owned(), patch)
        };
        pools.iter().map(read).collect()
    }

    fn patch(words: &str) -> PoolPatch {
        PoolPatch::from_words(words.split_whitespace()).expect("valid")
    }

    #[test]
    fn what_is_set_by_hand_is_above_the_file_and_outlives_a_reload() {
        let pools = ResourcePools::new(file(&[("a", "shares=1 limit=1M"), ("b", "")]));
        let set = pools.layers().with("a", &patch("shares=2")).expect("good");
        assert_eq!(pools.replace(set), ["a"]);
        let added = pools.layers().with("c", &patch("parent=b")).expect("good");
        assert_eq!(pools.replace(added), ["c"]);
        let reloaded = file(&[("a", "shares=3 limit=2M"), ("b", "")]);
        let reloaded = pools.layers().with_file(reloaded).expect("good");
        assert_eq!(pools.replace(reloaded), ["a"]);
        let list = pools.list();
        let a = &list[find(&list, "a").expect("there")];
        assert_eq!((a.shares, a.limit), (2, Some(Pages(512))));
        assert_eq!(
            list[find(&list, "c").expect("there")].parent,
            place(&list, "b")
        );
        let error = pools
            .layers()
            .with_file(file(&[("a", "")]))
            .expect_err("c is in b");
        assert!(
            error.1.in_full().contains("no resource pool `b`"),
            "{error:?}"
        );
        let without = pools.layers().without("c");
        assert_eq!(pools.replace(without), ["c"]);
        let gone = pools.layers().with_file(file(&[])).expect("good");
        assert_eq!(pools.replace(gone), ["a", "b"]);
        assert_eq!(pools.layers().names(), ["root"]);
    }

    #[test]
    fn vm_in_a_pool_with_a_limit_begins_with_no_more_than_it_is_promised() {
        let pools = ResourcePools::new(file(&[("a", "limit=64M"), ("b", "parent=a"), ("c", "")]));
        let first = |pool: &str, reservation, limit| {
            let (pool, reservation) = (pool.to_owned(), Pages(reservation));
            let settings = VmSettings {
                pool,
                reservation,
                limit,
                ..VmSettings::default()
            };
            first_ceiling(&pools.list(), &settings)
        };
        assert_eq!(first("c", 0, None), None);
        assert_eq!(first("c", 0, Some(Pages(900))), Some(Pages(900)));
        assert_eq!(first("b", 0, None), Some(Pages(256)));
        assert_eq!(first("a", 1000, None), Some(Pages(1000)));
        assert_eq!(first("a", 0, Some(Pages(100))), Some(Pages(100)));
    }

    #[test]
    fn circle_by_hand_is_refused() {
        let pools = ResourcePools::new(file(&[("a", ""), ("b", "parent=a")]));
        let error = pools
            .layers()
            .with("a", &patch("parent=b"))
            .expect_err("a circle");
        assert!(error.to_string().contains("circle"), "{error}");
    }
}
