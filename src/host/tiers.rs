//! How the host cache is divided among the VMs.
//!
//! As long as there is room, a VM takes what it needs: a rule that kept a part for everybody would leave most of a fast
//! disk to VMs that do not swap. When there is hardly any left, the VMs are capped so that those that swap have equal
//! parts, and one that needs less than that leaves the rest to the others. A VM above its cap demotes its oldest pages.

use std::collections::HashMap;
use std::sync::Arc;

use super::member::Member;
use crate::reclaim::Job;
use crate::settings::HostSettings;
use crate::swap::HostCache;
use crate::telemetry::SwapCacheStatus;
use crate::units::VmId;

/// The part of the cache, one page in so many, that is so little that the VMs are capped.
const SHORT_PART: u64 = 16;
/// The part by which a VM that swaps may grow until the cache is divided again.
const GROWTH_PART: u64 = 8;

/// What is remembered from one division to the next: how many pages each VM had swapped.
#[derive(Debug, Default)]
pub(super) struct Division {
    swapped: HashMap<VmId, u64>,
}

impl Division {
    /// Applies the settings of swapping, and divides the cache.
    pub(super) fn apply(
        &mut self,
        cache: Option<&HostCache>,
        settings: &HostSettings,
        members: &[Arc<Member>],
    ) {
        for member in members {
            member.vm.swap.file.set_delay(settings.swap_delay);
        }
        let Some(cache) = cache else { return };
        cache.set_size(settings.swap_cache_pages());
        let growth = cache.size().0 / GROWTH_PART;
        let before = std::mem::take(&mut self.swapped);
        let wants = |member: &Arc<Member>| {
            let (id, stats) = (member.vm.id, &member.vm.stats);
            let swapped = stats.evict_swap.get() + stats.spilled.get();
            self.swapped.insert(id, swapped);
            let swaps = before.get(&id).is_some_and(|before| swapped > *before);
            let own = member.vm.swap.cache.as_ref();
            let used = own.map_or(0, |own| own.stats().used.0);
            used + if swaps { growth } else { 0 }
        };
        let wants: Vec<u64> = members.iter().map(wants).collect();
        let is_short = cache.free().0 <= cache.size().0 / SHORT_PART;
        let cap = match is_short {
            true => u32::try_from(level(cache.size().0, wants)).unwrap_or(u32::MAX),
            false => u32::MAX,
        };
        for member in members {
            let Some(own) = &member.vm.swap.cache else {
                continue;
            };
            own.set_cap(cap);
            if own.is_beyond_cap() {
                member.worker.suggest(Job::Wake);
            }
        }
    }

    /// What the host's status shows of it.
    pub(super) fn status(cache: Option<&HostCache>) -> SwapCacheStatus {
        cache.map_or_else(Default::default, |cache| SwapCacheStatus {
            size_pages: cache.size(),
            taken_pages: cache.taken(),
        })
    }
}

/// The most that each may have, so that all together have no more than `size`, if each has no more than it wants.
fn level(size: u64, mut wants: Vec<u64>) -> u64 {
    wants.sort_unstable();
    let (mut left, mut others) = (size, wants.len() as u64);
    for want in wants {
        if want > left / others {
            return left / others;
        }
        left -= want;
        others -= 1;
    }
    size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn level_leaves_to_others_what_one_does_not_want() {
        assert_eq!(level(100, vec![]), 100);
        assert_eq!(level(100, vec![40, 30]), 100, "enough for all");
        assert_eq!(level(100, vec![500, 10, 0]), 90);
        assert_eq!(level(100, vec![500, 10, 80]), 45);
        assert_eq!(level(0, vec![5, 5]), 0);
    }

    proptest! {
        #[test]
        fn level_is_the_highest_that_fits(size in 0..1000u64, wants in prop::collection::vec(0..500u64, 1..9)) {
            let sum = |level: u64| wants.iter().map(|want| *want.min(&level)).sum::<u64>();
            let level = level(size, wants.clone());
            prop_assert!(sum(level) <= size);
            prop_assert!(level == size || sum(level + 1) > size);
        }
    }
}
