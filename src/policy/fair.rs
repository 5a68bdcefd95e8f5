//! Fair parts: how many pages each VM may hold of those that are available.
//!
//! Every VM has a least and a most. In between it is given pages by its shares, but idle pages are
//! dearer than used ones: with a tax of 75 %, an idle page costs four. There is one *level*, a cost
//! a share, and everybody holds what `level * shares` buys, but no less than the least and no more
//! than the most (`level`). That is the fixed point that ESX reaches page by page, taking each
//! from the VM with the fewest shares a page (min-funding revocation with an idle memory tax).
//!
//! The most is not the size of a VM but its *demand*: what it holds, and some of what its balloon
//! took. A VM is not asked to leave pages idle for another's entitlement, and a balloon is part of
//! the demand only by one step of headroom, so that a guest which no longer wants its pages does
//! not keep them from others for ever. What its balloon holds beyond that comes back step by step.
//!
//! A VM without shares buys nothing at any level: it holds its reservation and no more, even if memory
//! is free. For all that follows, its reservation is its limit.
//!
//! With the flat tax, a balloon takes no more than the shares alone would: what the tax takes
//! beyond is paged out. So there are two divisions then, and of both the balloon follows the one that
//! leaves the VM more; else it would take back from a busy VM what the tax is to bring it.

use super::level::{Claim, Level, level};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, IdleTaxType, percent_of, total};
use crate::units::Pages;

/// What one VM may hold of what is available.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allotment {
    /// At least its reservation, at most the lesser of size and limit; shared pages count in full.
    pub target: Pages,
    /// What it could hold at the same level if its demand were larger: at least the target. More
    /// than the target only when memory is short and it does not use its fair part.
    pub entitled: Pages,
    /// How much of what all VMs want can be met; the same for each.
    pub met: Met,
}

/// How far what is available goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Met {
    /// Demands are not met: somebody is above its target or about to be.
    Short,
    /// The demands of all VMs are met, headroom included.
    Demands,
    /// Every VM could have its whole balloon back, and use it and the room it has already.
    Balloons,
}

/// The pages that a VM can still fill without its balloon: those it never touched. Zero pages cost nothing
/// either, but its guest has them in use. Counted as room, they would say of a guest whose memory is
/// all zeroes that it needs none of its balloon back, while it pages.
pub(super) const fn room(vm: &VmSnapshot) -> Pages {
    vm.untouched
}

/// The pages beyond its allocation that a VM with a balloon is presumed to want at once. As long as its
/// balloon shrinks it stays the same, since the guest's room grows by what the balloon loses.
pub(super) fn headroom(vm: &VmSnapshot, config: &Config) -> Pages {
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
/// The targets add up to no more than `available`, except for reservations: one that is not used is
/// lent to others, and all of them together can exceed what is available if they were admitted on a
/// larger budget.
pub(super) fn divide(host: &HostSnapshot, available: Pages, config: &Config) -> Vec<Allotment> {
    let claims: Vec<Claim> = host.vms.iter().map(|vm| claim(vm, config)).collect();
    let Some(level) = level(&claims, available) else {
        return spread(host, &claims, available);
    };
    (host.vms.iter().zip(claims))
        .map(|(vm, claim)| {
            let whole = Claim {
                floor: vm.min(),
                cap: vm.max(),
                ..claim
            };
            Allotment {
                target: claim.at(level).max(vm.min()),
                entitled: whole.at(level),
                met: Met::Short,
            }
        })
        .collect()
}

/// The price of a page in use, in pages a share, when VMs may hold `available` together; None where all
/// demands are met, so that nobody pays.
#[must_use]
pub fn price(host: &HostSnapshot, available: Pages, config: &Config) -> Option<f64> {
    let claims: Vec<Claim> = host.vms.iter().map(|vm| claim(vm, config)).collect();
    level(&claims, available).map(Level::price)
}

/// What the balloons follow: the same division but for the flat tax.
pub(super) fn for_balloons(
    host: &HostSnapshot,
    available: Pages,
    config: &Config,
    taxed: &[Allotment],
) -> Vec<Allotment> {
    if config.idle_tax_type == IdleTaxType::Variable {
        return taxed.to_vec();
    }
    let untaxed = Config {
        idle_tax_percent: 0,
        ..*config
    };
    let untaxed = divide(host, available, &untaxed);
    (taxed.iter().zip(untaxed))
        .map(|(taxed, untaxed)| Allotment {
            target: taxed.target.max(untaxed.target),
            entitled: taxed.entitled.max(untaxed.entitled),
            met: taxed.met,
        })
        .collect()
}

/// The part of an idle page that the tax leaves, in %: an idle page costs `100 / untaxed` times as much
/// as one in use.
pub(super) fn untaxed(config: &Config) -> u32 {
    100_u32.saturating_sub(config.idle_tax_percent).max(1)
}

/// What a VM must and can be given of its demand.
fn claim(vm: &VmSnapshot, config: &Config) -> Claim {
    let cap = demand(vm, config).min(vm.max());
    // What a guest that does not answer holds, nobody can have.
    let floor = if vm.mute { cap } else { vm.min().min(cap) };
    Claim {
        shares: vm.shares,
        floor,
        cap,
        // Until it is known what a VM uses, nothing of it counts as idle.
        active: vm.active.unwrap_or(vm.size),
        untaxed: untaxed(config),
    }
}

/// Allotments when all demands are met: the rest is spread, again by shares, as room to grow.
fn spread(host: &HostSnapshot, claims: &[Claim], available: Pages) -> Vec<Allotment> {
    let rooms: Vec<Claim> = (host.vms.iter().zip(claims))
        .map(|(vm, met)| Claim {
            floor: met.cap.max(vm.min()),
            cap: vm.max(),
            ..*met
        })
        .collect();
    let level = level(&rooms, available);
    // Its room counts with its balloon, or the sum would change as the balloon shrinks.
    let whole = |vm: &VmSnapshot| {
        let more = match vm.ballooned {
            Pages(0) => Pages(0),
            ballooned => total([ballooned, room(vm)]),
        };
        total([vm.allocation(), more]).min(vm.max())
    };
    let met = if total(host.vms.iter().map(whole)) <= available {
        Met::Balloons
    } else {
        Met::Demands
    };
    let targets = rooms
        .iter()
        .map(|room| level.map_or(room.cap, |level| room.at(level)));
    targets
        .map(|target| Allotment {
            target,
            entitled: target,
            met,
        })
        .collect()
}
