//! Fair parts: how many pages each VM may hold of those that are available.
//!
//! Every VM has a least and a most. In between it is given pages by its shares, but some pages are dearer than
//! others. The policy says which ([`Worth`]); ESX's makes idle pages dear: with a tax of 75 %, an idle page costs as
//! much as four in use. There is one *level*, a cost per share, and every VM holds what `level * shares` buys, but no
//! less than its least and no more than its most (`level`). That is the fixed point that ESX reaches page by page,
//! taking each from the VM with the fewest shares per page (min-funding revocation with an idle memory tax).
//!
//! The most is not the size of a VM but its *demand*: what it holds, and some of what its balloon
//! took. A VM whose demand is below its entitlement does not keep the difference from others. A balloon
//! counts as demand only by one step of headroom, so that a guest which no longer wants its pages does
//! not keep them from others for ever. What its balloon holds beyond that comes back step by step.
//!
//! A VM without shares buys nothing at any level: it holds its reservation and no more, even if memory
//! is free. In all that follows, its reservation counts as its limit.
//!
//! With resource pools that is done level by level. A pool asks for what those in it ask for together (`claim`), and
//! what it is given is divided among them as what is available is among all VMs of a host that has no pools. The tax
//! is on the idle pages of VMs: the pages of a pool that count in full are those of its VMs.
//!
//! With the flat tax, a balloon takes no more than the shares alone would: what the tax takes beyond
//! that is paged out. So there are two divisions, with and without the tax, and the balloon follows the one
//! that leaves the VM more. If it always followed the one without, it would take from a busy VM what the tax is
//! to bring it.

use super::claim::{Claim, Claims};
use super::level::{Bid, Level, level};
use super::policies::Policy;
use super::resource_pool::{Child, Tree};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, IdleTaxType, percent_of, total};
use crate::units::Pages;

/// What one VM may hold of what is available.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allotment {
    /// At least its reservation, at most the lesser of size and limit; shared pages count in full.
    pub target: Pages,
    /// What it could hold at the same level if its demand were larger: at least the target. More
    /// than the target only when memory is short and the VM does not use its fair part.
    pub entitled: Pages,
    /// How much of what the VMs around it want can be met; the same for each VM of a pool.
    pub satisfied: Satisfied,
}

/// How far what is available goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Satisfied {
    /// Demands are not satisfied, in the pool or in one around it: some VM is above its target or about to be.
    Short,
    /// The demands of all VMs are met, headroom included.
    Demands,
    /// Every VM could have its whole balloon back and fill it, together with the room it has already.
    Balloons,
}

/// The pages that a VM can still fill while its balloon stays: those it never touched. Zero pages cost nothing
/// either, but the guest has them in use. If they counted as room, a guest whose memory is all zeroes would
/// seem to need none of its balloon back, while it pages.
pub(super) const fn room(vm: &VmSnapshot) -> Pages {
    vm.untouched
}

/// The pages beyond its allocation that a VM with a balloon is presumed to want at once. The number stays the
/// same while the balloon shrinks, since the guest's room grows by what the balloon loses.
pub(super) fn headroom(vm: &VmSnapshot, config: &Config) -> Pages {
    // Without a balloon its demand is what it holds; and a guest that does not answer would not take more.
    if vm.ballooned == Pages(0) || vm.mute {
        return Pages(0);
    }
    percent_of(vm.size, config.headroom_percent).min(total([vm.ballooned, room(vm)]))
}

/// The guest pages a VM holds or is presumed to want at once.
pub(super) fn demand(vm: &VmSnapshot, config: &Config) -> Pages {
    total([vm.allocation(), headroom(vm, config)])
}

/// What each VM and each pool may hold.
#[derive(Debug)]
pub(super) struct Division {
    /// In the order of the snapshot.
    pub vms: Vec<Allotment>,
    /// In the order of the list, the root first.
    pub pools: Vec<PoolPart>,
}

/// What one pool may hold, and how it is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolPart {
    pub allotment: Allotment,
    /// What those in it hold or are presumed to want at once.
    pub demand: Pages,
    /// What it counts beside its siblings.
    pub shares: u32,
    /// The shares of all that is directly in it.
    pub inner_shares: u64,
    /// How many pages in use a share buys in it. None where all that they want is met.
    pub price: Option<f64>,
}

/// Divides what all VMs together may hold: from the root down, each pool what it is given.
///
/// The targets add up to no more than `available`, except for reservations. A target includes the whole
/// reservation, though what is not used of it is lent to others; and the reservations together can exceed what
/// is available if they were admitted on a larger budget.
pub(super) fn divide<P: Policy + ?Sized>(
    policy: &P,
    host: &HostSnapshot,
    available: Pages,
    config: &Config,
) -> Division {
    let demand = |vm: &VmSnapshot| demand(vm, config);
    let claims = Claims::of(policy, host, config, demand, true);
    let tree = Tree::of(host);
    let whole = Allotment {
        target: available,
        entitled: available,
        satisfied: Satisfied::Balloons,
    };
    let mut vms = vec![whole; host.vms.len()];
    let mut given = vec![whole; host.pools()];
    let mut pools = Vec::with_capacity(given.len());
    for (pool, claim) in claims.pools.iter().enumerate() {
        let inner: Vec<&Claim> = claims.all(tree.of_pool(pool)).collect();
        let (parts, level) = share_out(&inner, given[pool]);
        for (child, part) in tree.of_pool(pool).iter().zip(parts) {
            match *child {
                Child::Vm(at) => vms[at] = part,
                Child::Pool(at) => given[at] = part,
            }
        }
        pools.push(PoolPart {
            allotment: given[pool],
            demand: claim.now.cap,
            shares: claim.now.shares,
            inner_shares: inner.iter().map(|it| u64::from(it.now.shares)).sum(),
            price: level.map(Level::price),
        });
    }
    Division { vms, pools }
}

/// Divides what a pool is given among those directly in it; and the level at which that is, if their demands are more.
pub(super) fn share_out(claims: &[&Claim], given: Allotment) -> (Vec<Allotment>, Option<Level>) {
    let bids: Vec<Bid> = claims.iter().map(|claim| claim.now).collect();
    // No level: all demands fit, and what is left over is spread.
    let Some(level) = level(&bids, given.target) else {
        return (spread(claims, given), None);
    };
    let part = |claim: &&Claim| Allotment {
        // No less than its reservation, even if it wants less now: that is never taken for others.
        target: claim.now.at(level).max(claim.promised),
        entitled: claim.whole.at(level),
        satisfied: Satisfied::Short,
    };
    (claims.iter().map(part).collect(), Some(level))
}

/// Allotments when all demands are satisfied: the rest is spread, again by shares, as room to grow.
fn spread(claims: &[&Claim], given: Allotment) -> Vec<Allotment> {
    let room = |claim: &&Claim| Bid {
        floor: claim.now.cap.max(claim.promised),
        ..claim.whole
    };
    let rooms: Vec<Bid> = claims.iter().map(room).collect();
    let filled = total(claims.iter().map(|claim| claim.filled));
    let satisfied = match given.satisfied {
        Satisfied::Balloons if filled > given.target => Satisfied::Demands,
        as_around => as_around,
    };
    let among = |pages: Pages| -> Vec<Pages> {
        let level = level(&rooms, pages);
        let part = |room: &Bid| level.map_or(room.cap, |level| room.at(level));
        rooms.iter().map(part).collect()
    };
    let targets = among(given.target);
    // They differ only in a pool that does not use its part while memory is short.
    let entitled = (given.entitled != given.target).then(|| among(given.entitled));
    let entitled = entitled.as_ref().unwrap_or(&targets);
    (targets.iter().zip(entitled))
        .map(|(target, entitled)| Allotment {
            target: *target,
            entitled: *entitled.max(target),
            satisfied,
        })
        .collect()
}

/// The division that balloons follow: the taxed one, but with the flat tax whichever leaves a VM more.
pub(super) fn for_balloons<P: Policy + ?Sized>(
    policy: &P,
    host: &HostSnapshot,
    available: Pages,
    config: &Config,
    taxed: &[Allotment],
) -> Vec<Allotment> {
    // One division is enough: balloons may take all that the tax takes.
    if config.idle_tax_type == IdleTaxType::Variable {
        return taxed.to_vec();
    }
    let untaxed = Config {
        idle_tax_percent: 0,
        ..*config
    };
    let untaxed = divide(policy, host, available, &untaxed);
    (taxed.iter().zip(untaxed.vms))
        .map(|(taxed, untaxed)| Allotment {
            target: taxed.target.max(untaxed.target),
            entitled: taxed.entitled.max(untaxed.entitled),
            satisfied: taxed.satisfied,
        })
        .collect()
}
