//! Claims: what each VM and each resource pool asks for when memory is divided.
//!
//! A pool asks as if it were one VM made of all that is in it. Its demand, its pages in use and what it must be given
//! are the sums over its children, and its own reservation is a floor below the whole. Its idle pages cost as much as
//! theirs do on average. So one rule divides at each level, and a pool around all VMs changes nothing.

use super::Config;
use super::level::Bid;
use super::policies::{Policy, Worth};
use super::resource_pool::{Child, NORMAL_POOL_SHARES, Tree};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{fair, total};
use crate::units::Pages;

/// What a VM or a pool asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// For what it wants now.
    pub now: Bid,
    /// As if it wanted all that it may hold.
    pub whole: Bid,
    /// Its own reservation, as far as it can be used.
    pub promised: Pages,
    /// What it would hold if it had its whole balloon back and filled it.
    pub filled: Pages,
}

/// The claims of all VMs and pools.
#[derive(Debug)]
pub(super) struct Claims {
    vms: Vec<Claim>,
    /// In the order of the list. That of the root is the sum of what is in it.
    pub pools: Vec<Claim>,
}

impl Claims {
    /// The claims, where each VM wants what `demand` says. If `lends`, reserved memory that is not used is for others.
    pub(super) fn of<P: Policy + ?Sized>(
        policy: &P,
        host: &HostSnapshot,
        config: &Config,
        demand: impl Fn(&VmSnapshot) -> Pages,
        lends: bool,
    ) -> Self {
        let claim = |(vm, worth): (&VmSnapshot, Worth)| {
            let claim = of_vm(vm, worth, demand(vm));
            if lends { claim } else { claim.kept() }
        };
        let worths = policy.worths(host, config);
        let nothing = Sum::default().claim(host, 0);
        let mut claims = Self {
            vms: host.vms.iter().zip(worths).map(claim).collect(),
            pools: vec![nothing; host.pools()],
        };
        let tree = Tree::of(host);
        // From the end of the list: what is in a pool comes after it.
        for pool in (0..host.pools()).rev() {
            let children = claims.all(tree.of_pool(pool));
            let claim = children.fold(Sum::default(), Sum::plus).claim(host, pool);
            claims.pools[pool] = if lends { claim } else { claim.kept() };
        }
        claims
    }

    /// The claims of these.
    pub(super) fn all<'a>(&'a self, of: &'a [Child]) -> impl Iterator<Item = &'a Claim> {
        of.iter().map(|child| match *child {
            Child::Vm(at) => &self.vms[at],
            Child::Pool(at) => &self.pools[at],
        })
    }
}

impl Claim {
    /// The same with its whole reservation as a part of its demand.
    fn kept(self) -> Self {
        let floor = self.now.floor.max(self.whole.floor);
        let now = Bid {
            floor,
            cap: self.now.cap.max(floor),
            ..self.now
        };
        Self { now, ..self }
    }
}

/// What a VM must be given of its demand, and what it can be given.
fn of_vm(vm: &VmSnapshot, worth: Worth, demand: Pages) -> Claim {
    let cap = demand.min(vm.max());
    let now = Bid {
        shares: worth.shares,
        // No page can be taken from a guest that does not answer, so all it holds is its floor.
        floor: if vm.mute { cap } else { vm.min().min(cap) },
        cap,
        active: worth.in_use,
        untaxed: worth.untaxed(),
    };
    // The room of a VM counts as well as its balloon, or the sum would change as the balloon shrinks.
    let more = match vm.ballooned {
        Pages(0) => Pages(0),
        ballooned => total([ballooned, fair::room(vm)]),
    };
    Claim {
        now,
        whole: Bid {
            floor: vm.min(),
            cap: vm.max(),
            ..now
        },
        promised: vm.min(),
        filled: total([vm.allocation(), more]).min(vm.max()),
    }
}

/// The claims of all that is directly in a pool, added up.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    now: SumOfBids,
    whole: SumOfBids,
    filled: Pages,
}

#[derive(Clone, Copy, Debug, Default)]
struct SumOfBids {
    shares: u64,
    floor: Pages,
    cap: Pages,
    active: Pages,
    idle: u128,
    /// Idle pages times the part of each that the tax leaves.
    untaxed: u128,
}

impl SumOfBids {
    fn plus(self, bid: &Bid) -> Self {
        let active = bid.active.min(bid.cap);
        let idle = u128::from(bid.cap.saturating_sub(active).0);
        Self {
            shares: self.shares + u64::from(bid.shares),
            floor: total([self.floor, bid.floor]),
            cap: total([self.cap, bid.cap]),
            active: total([self.active, active]),
            idle: self.idle + idle,
            untaxed: self.untaxed + idle * u128::from(bid.untaxed),
        }
    }

    /// As one bid, of which `reserved` pages are no part of what others may take.
    fn bid(&self, shares: u32, reserved: Pages) -> Bid {
        // Without idle pages no page is taxed.
        let untaxed = self.untaxed.checked_div(self.idle).unwrap_or(100);
        Bid {
            shares,
            floor: self.floor.max(reserved.min(self.cap)),
            cap: self.cap,
            active: self.active,
            untaxed: u32::try_from(untaxed).unwrap_or(100).max(1),
        }
    }
}

impl Sum {
    fn plus(self, claim: &Claim) -> Self {
        Self {
            now: self.now.plus(&claim.now),
            whole: self.whole.plus(&claim.whole),
            filled: total([self.filled, claim.filled]),
        }
    }

    /// The claim of a pool with these in it.
    fn claim(&self, host: &HostSnapshot, at: usize) -> Claim {
        let pool = host.resource_pools.get(at).filter(|_| at > 0);
        let reserved = pool.map_or(Pages(0), |pool| pool.min());
        let shares = pool.map_or(0, |pool| {
            if host.is_scalable(pool.parent) {
                scaled(pool.shares, self.now.shares)
            } else {
                pool.shares
            }
        });
        Claim {
            now: self.now.bid(shares, reserved),
            whole: self.whole.bid(shares, reserved),
            promised: reserved.min(self.whole.cap),
            filled: self.filled,
        }
    }
}

/// The shares of a pool that grow with those of what is in it: of a normal pool, they are as many.
fn scaled(shares: u32, inner: u64) -> u32 {
    let scaled = u128::from(inner) * u128::from(shares) / u128::from(NORMAL_POOL_SHARES);
    // Few shares are not none: a pool without shares gets its reservation and no more.
    let least = u128::from(shares.min(1)) * u128::from(inner.min(1));
    u32::try_from(scaled.max(least)).unwrap_or(u32::MAX)
}
