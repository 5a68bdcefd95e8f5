//! The fair split: memory that is divided by shares once and for all.
//!
//! Who gets more than it needs leaves the rest to the others beside it. With resource pools that happens level by level,
//! as the policies do it: a pool stands for all that is in it, and needs what they need, up to its limit. Reservations
//! do not count, and neither does what VMs need at one time and not at another: that is what policies are for.

use super::story::Story;
use crate::host::place_of_pool;
use crate::policy::{NORMAL_POOL_SHARES, ROOT, ResourcePool};
use crate::units::Pages;

/// Somebody among whom memory is divided.
#[derive(Clone, Copy, Debug)]
struct Claim {
    shares: u64,
    /// Pages that it can use.
    wants: u64,
}

/// A VM, and the place of its pool in the list.
type Member = (usize, Claim);

/// The part of each VM of a story, which touches so many pages. Settings and pools are those at the end of the story.
pub(super) fn fair_split(story: &Story, memory: Pages, footprints: &[u64]) -> Vec<u64> {
    let pools = story.pools.last().map_or(&[][..], Vec::as_slice);
    let vms = story.vms.iter().zip(footprints);
    let members: Vec<Member> = vms
        .map(|(vm, &touched)| {
            let facts = vm.changes.last().unwrap_or(&vm.facts);
            let limit = facts.limit.map_or(u64::MAX, |limit| limit.0);
            let claim = Claim {
                shares: facts.shares.into(),
                wants: touched.min(limit),
            };
            (place_of_pool(pools, &facts.pool), claim)
        })
        .collect();
    split(memory, &members, pools)
}

/// The parts of VMs in pools.
fn split(memory: Pages, members: &[Member], pools: &[ResourcePool]) -> Vec<u64> {
    let claims = claims(members, pools);
    let mut given = vec![0; claims.len()];
    given[ROOT] = memory.0;
    let mut parts = vec![0; members.len()];
    // Each pool comes after its parent, so it knows what it has when its turn comes.
    for pool in 0..claims.len() {
        let vms = (0..members.len()).filter(|vm| members[*vm].0 == pool);
        let vms: Vec<usize> = vms.collect();
        let inner = (1..claims.len()).filter(|inner| pools[*inner].parent == pool);
        let inner: Vec<usize> = inner.collect();
        let of_vms = vms.iter().map(|vm| members[*vm].1);
        let all: Vec<Claim> = of_vms.chain(inner.iter().map(|it| claims[*it])).collect();
        let found = divide(given[pool], &all);
        for (vm, part) in vms.iter().zip(&found) {
            parts[*vm] = *part;
        }
        for (inner, part) in inner.iter().zip(&found[vms.len()..]) {
            given[*inner] = *part;
        }
    }
    parts
}

/// What each pool asks for: what is in it needs, up to its limit.
fn claims(members: &[Member], pools: &[ResourcePool]) -> Vec<Claim> {
    let nothing = Claim {
        shares: 0,
        wants: 0,
    };
    let mut sums = vec![nothing; pools.len().max(1)];
    let add = |sum: &mut Claim, claim: Claim| {
        sum.shares += claim.shares;
        sum.wants += claim.wants;
    };
    for (pool, claim) in members {
        add(&mut sums[*pool], *claim);
    }
    for at in (1..pools.len()).rev() {
        let pool = &pools[at];
        let own = u64::from(pool.shares);
        let shares = if pools[pool.parent].scalable {
            own * sums[at].shares / u64::from(NORMAL_POOL_SHARES)
        } else {
            own
        };
        let limit = pool.limit.map_or(u64::MAX, |limit| limit.0);
        let wants = sums[at].wants.min(limit);
        sums[at] = Claim { shares, wants };
        let claim = sums[at];
        add(&mut sums[pool.parent], claim);
    }
    sums
}

/// Divides memory by shares. Nobody gets more than it wants, and the rest goes to the others.
fn divide(memory: u64, claims: &[Claim]) -> Vec<u64> {
    let mut parts = vec![0; claims.len()];
    let mut left = memory;
    let mut open: Vec<usize> = (0..claims.len()).collect();
    loop {
        let all: u64 = open.iter().map(|at| claims[*at].shares.max(1)).sum();
        let part = |at: usize| {
            let shares = u128::from(claims[at].shares.max(1));
            let part = u128::from(left) * shares / u128::from(all.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let (full, hungry): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|at| claims[**at].wants <= part(**at));
        if full.is_empty() {
            open.iter().for_each(|at| parts[*at] = part(*at));
            return parts;
        }
        for at in full {
            parts[at] = claims[at].wants;
            left -= claims[at].wants;
        }
        open = hungry;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(shares: u64, wants: u64) -> Claim {
        Claim { shares, wants }
    }

    fn pool(parent: usize, shares: u32, limit: Option<u64>) -> ResourcePool {
        ResourcePool {
            parent,
            shares,
            limit: limit.map(Pages),
            ..ResourcePool::default()
        }
    }

    #[test]
    fn pools_divide_among_themselves_first_and_then_in_them() {
        let pools = [pool(0, 0, None), pool(0, 3000, None), pool(0, 1000, None)];
        let hungry = claim(500, 10_000);
        let members = [(1, hungry), (1, hungry), (2, hungry), (2, claim(1500, 100))];
        assert_eq!(split(Pages(4000), &members, &pools), [1500, 1500, 900, 100]);
        // A pool that cannot use its part leaves it to the pool beside it.
        let pools = [
            pool(0, 0, None),
            pool(0, 3000, Some(1000)),
            pool(0, 1000, None),
        ];
        assert_eq!(split(Pages(4000), &members, &pools), [500, 500, 2900, 100]);
    }

    #[test]
    fn shares_of_pools_grow_with_what_is_in_them_where_that_is_asked_for() {
        let mut pools = [
            pool(0, 0, None),
            pool(0, NORMAL_POOL_SHARES, None),
            pool(0, NORMAL_POOL_SHARES, None),
        ];
        let hungry = claim(1000, 10_000);
        let members = [(1, hungry), (1, hungry), (1, hungry), (2, hungry)];
        assert_eq!(split(Pages(2400), &members, &pools), [400, 400, 400, 1200]);
        pools[0].scalable = true;
        assert_eq!(split(Pages(2400), &members, &pools), [600; 4]);
    }

    fn trees() -> impl Strategy<Value = (Vec<ResourcePool>, Vec<Member>)> {
        let one = (
            any::<prop::sample::Index>(),
            0_u32..4000,
            prop::option::of(0_u64..5000),
        );
        let pools = prop::collection::vec(one, 0..5).prop_map(|pools| {
            let mut list = vec![pool(0, 0, None)];
            for (parent, shares, limit) in pools {
                list.push(pool(parent.index(list.len()), shares, limit));
            }
            list
        });
        let vm = (any::<prop::sample::Index>(), 0_u64..4000, 0_u64..5000);
        let vms = prop::collection::vec(vm, 1..7);
        (pools, vms).prop_map(|(pools, vms)| {
            let place = |at: prop::sample::Index| at.index(pools.len());
            let vms = vms.into_iter();
            let members = vms.map(|(at, shares, wants)| (place(at), claim(shares, wants)));
            let members = members.collect();
            (pools, members)
        })
    }

    proptest! {
        /// Nobody gets more than there is, than it wants, and than the pools around it may have.
        #[test]
        fn split_keeps_all_bounds(memory in 0_u64..10_000, tree in trees()) {
            let (pools, members) = tree;
            let parts = split(Pages(memory), &members, &pools);
            prop_assert!(parts.iter().zip(&members).all(|(part, (_, claim))| *part <= claim.wants));
            let mut sums = vec![0; pools.len()];
            for (part, (pool, _)) in parts.iter().zip(&members) {
                sums[*pool] += part;
            }
            for at in (1..pools.len()).rev() {
                let limit = pools[at].limit.map_or(u64::MAX, |limit| limit.0);
                prop_assert!(sums[at] <= limit, "pool {at}: {} of {limit}", sums[at]);
                let sum = sums[at];
                sums[pools[at].parent] += sum;
            }
            prop_assert!(sums[ROOT] <= memory);
            // What is left is wanted by nobody, but for what rounding leaves at each level.
            let could = claims(&members, &pools)[ROOT].wants.min(memory);
            let most = (members.len() * pools.len()) as u64;
            prop_assert!(sums[ROOT] + most >= could, "{} of {could}", sums[ROOT]);
        }
    }
}
