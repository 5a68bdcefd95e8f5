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
//! With the flat tax, a balloon takes no more than the shares alone would: what the tax takes beyond
//! that is paged out. So there are two divisions, with and without the tax, and the balloon follows the one
//! that leaves the VM more. If it always followed the one without, it would take from a busy VM what the tax is
//! to bring it.

use super::level::{Bid, Level, level};
use super::policies::{Policy, Worth};
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
    /// How much of what all VMs want can be met; the same for each VM.
    pub satisfied: Satisfied,
}

/// How far what is available goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Satisfied {
    /// Demands are not satisfied: some VM is above its target or about to be.
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

/// Divides what all VMs together may hold.
///
/// The targets add up to no more than `available`, except for reservations. A target includes the whole
/// reservation, though what is not used of it is lent to others; and the reservations together can exceed what
/// is available if they were admitted on a larger budget.
pub(super) fn divide<P: Policy + ?Sized>(
    policy: &P,
    host: &HostSnapshot,
    available: Pages,
    config: &Config,
) -> Vec<Allotment> {
    let bids = bids(policy, host, config);
    // No level: all demands fit, and what is left over is spread.
    let Some(level) = level(&bids, available) else {
        return spread(host, &bids, available);
    };
    (host.vms.iter().zip(bids))
        .map(|(vm, bid)| {
            let whole = Bid {
                floor: vm.min(),
                cap: vm.max(),
                ..bid
            };
            Allotment {
                // No less than its reservation, even if it wants less now: that is never taken for others.
                target: bid.at(level).max(vm.min()),
                entitled: whole.at(level),
                satisfied: Satisfied::Short,
            }
        })
        .collect()
}

/// How many pages in use a share buys when VMs may hold `available` together. None where all demands are met:
/// then no VM pays.
#[must_use]
pub fn price(
    policy: &dyn Policy,
    host: &HostSnapshot,
    available: Pages,
    config: &Config,
) -> Option<f64> {
    level(&bids(policy, host, config), available).map(Level::price)
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
    (taxed.iter().zip(untaxed))
        .map(|(taxed, untaxed)| Allotment {
            target: taxed.target.max(untaxed.target),
            entitled: taxed.entitled.max(untaxed.entitled),
            satisfied: taxed.satisfied,
        })
        .collect()
}

/// What a policy has each VM be given, in the order of the snapshot.
fn bids<P: Policy + ?Sized>(policy: &P, host: &HostSnapshot, config: &Config) -> Vec<Bid> {
    let bid = |vm| bid(vm, policy.worth(vm, host, config), config);
    host.vms.iter().map(bid).collect()
}

/// What a VM must be given of its demand, and what it can be given.
fn bid(vm: &VmSnapshot, worth: Worth, config: &Config) -> Bid {
    let cap = demand(vm, config).min(vm.max());
    // No page can be taken from a guest that does not answer, so all it holds is its floor.
    let floor = if vm.mute { cap } else { vm.min().min(cap) };
    Bid {
        shares: worth.shares,
        floor,
        cap,
        active: worth.in_use,
        untaxed: worth.untaxed(),
    }
}

/// Allotments when all demands are satisfied: the rest is spread, again by shares, as room to grow.
fn spread(host: &HostSnapshot, bids: &[Bid], available: Pages) -> Vec<Allotment> {
    let rooms: Vec<Bid> = (host.vms.iter().zip(bids))
        .map(|(vm, met)| Bid {
            floor: met.cap.max(vm.min()),
            cap: vm.max(),
            ..*met
        })
        .collect();
    let level = level(&rooms, available);
    // The room of a VM counts as well as its balloon, or the sum would change as the balloon shrinks.
    let whole = |vm: &VmSnapshot| {
        let more = match vm.ballooned {
            Pages(0) => Pages(0),
            ballooned => total([ballooned, room(vm)]),
        };
        total([vm.allocation(), more]).min(vm.max())
    };
    let satisfied = if total(host.vms.iter().map(whole)) <= available {
        Satisfied::Balloons
    } else {
        Satisfied::Demands
    };
    let targets = rooms
        .iter()
        .map(|room| level.map_or(room.cap, |level| room.at(level)));
    targets
        .map(|target| Allotment {
            target,
            entitled: target,
            satisfied,
        })
        .collect()
}
