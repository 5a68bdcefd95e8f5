//! The plan: what is to happen to each VM until the next snapshot.
//!
//! Balloon targets follow from allocation targets, never from how far a balloon has come: a loop
//! that adds to what it finds swings with the delay of the guests. A VM that holds more than its
//! target is ballooned to `size - target`, because then the guest cannot hold more than its target
//! whichever pages it gives up first, also pages it never touched. A VM that is content is never
//! asked for more than its balloon already holds; that balloon shrinks as its target rises.
//!
//! When the demands of all VMs are met, the balloon of a content VM also shrinks by the headroom
//! that its demand includes, plan by plan. Those pages are accounted for, so the host stays out of
//! soft even if all guests use them at once; and a guest that does not use them gets the next.

use serde::{Deserialize, Serialize};

use super::fair::{self, Allotment};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::states::{FreeState, Thresholds, next_state};
use super::{Config, evict, percent_of, total};
use crate::units::{Pages, VmId};

/// What is to happen until the next snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The free-memory state from now on.
    pub state: FreeState,
    /// What all VMs together may hold, shared pages counted in full.
    pub available: Pages,
    /// The host pages that eviction must free to leave the state; balloons aim further. Zero in
    /// the high state.
    pub shortfall: Pages,
    /// One for each VM, in the order of the snapshot.
    pub vms: Vec<VmPlan>,
    /// Set when pages are missing but none can be evicted and no balloon is on its way. To be
    /// logged.
    ///
    /// Blocking a VM until it is below its target would then block it for ever. While this is
    /// set, a blocked VM waits only with faults that make it larger (first touches); refills and
    /// breaks go on, from the reserve if need be. So the guest runs on what it has, its balloon
    /// agent runs too, and ballooning is the way out.
    pub stuck: Option<Stuck>,
}

/// What is to happen to one VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmPlan {
    /// Its number.
    pub id: VmId,
    /// The guest pages it may hold, shared pages counted in full: at least its reservation, at
    /// most its size and limit.
    pub target: Pages,
    /// The guest pages its balloon is to hold.
    pub balloon_target: Pages,
    /// The guest pages to evict in this round, by share, compress and swap in that order. Resident
    /// pages come first: each frees a host page.
    pub evict: Pages,
    /// Whether its faults wait, because the state is low and it is above its target. See
    /// [`Plan::stuck`] for when only first touches do.
    pub blocked: bool,
    /// The reason, for people.
    pub why: Why,
}

/// Why a VM is treated as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It holds no more than its target; nothing is taken and nothing returned.
    Fits,
    /// It is above its own limit: its balloon grows, or it is evicted from, in every state.
    OverLimit,
    /// It is above its fair part: its balloon grows.
    OverFairPart,
    /// It is above its fair part and no balloon will bring the rest: it is evicted from.
    NoBalloon,
    /// The host is too short to wait for balloons: it is evicted from.
    HostShort,
    /// Its balloon stands where it is to stand.
    Ballooned,
    /// Its balloon shrinks.
    Deflating,
}

/// Why nothing can be done about missing pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stuck {
    /// VMs are above their targets, but their swap files are full or failing and their
    /// compression caches take no more.
    NoRoom,
    /// No VM is above its target: reservations and metadata take all there is.
    Reserved,
}

/// Decides what is to happen, from a snapshot alone.
#[must_use]
pub fn plan(host: &HostSnapshot, config: &Config) -> Plan {
    let thresholds = Thresholds::of(host.budget, config);
    let state = next_state(host.state, host.free(), &thresholds);
    let available = available(host, state, &thresholds);
    let shortfall = evict::shortfall(state, host.free(), &thresholds);

    let allotments = fair::allot(host, available, config);
    let mut vms: Vec<VmPlan> = (host.vms.iter().zip(allotments))
        .map(|(vm, allotment)| vm_plan(vm, allotment, state, config))
        .collect();
    let evictions = evict::evictions(host, state, shortfall, &vms, config);
    for ((vm, plan), evict) in host.vms.iter().zip(&mut vms).zip(evictions) {
        plan.evict = evict;
        plan.why = why(vm, plan, state);
    }
    let stuck = stuck(host, state, shortfall, &vms);
    Plan {
        state,
        available,
        shortfall,
        vms,
        stuck,
    }
}

/// What all VMs together may hold, shared pages counted in full.
fn available(host: &HostSnapshot, state: FreeState, thresholds: &Thresholds) -> Pages {
    // At rest the high threshold is enough. Once balloons stand, the aim is where soft is left:
    // an aim between the two would return pages only to take them again.
    let at_rest = state == FreeState::High
        && host.free() >= thresholds.high
        && host.vms.iter().all(|vm| vm.ballooned == Pages(0));
    let keep_free = if at_rest {
        thresholds.high
    } else {
        thresholds.to_high
    };
    total([host.budget, host.sharing_saved()]).saturating_sub(total([host.overhead(), keep_free]))
}

fn vm_plan(vm: &VmSnapshot, allotment: Allotment, state: FreeState, config: &Config) -> VmPlan {
    let aim = balloon_aim(vm, allotment, config);
    let balloon_target = match state {
        FreeState::High | FreeState::Soft => aim,
        FreeState::Hard | FreeState::Low => aim.max(vm.ballooned),
    };
    VmPlan {
        id: vm.id,
        target: allotment.target,
        balloon_target: balloon_target.min(balloon_cap(vm, config)),
        evict: Pages(0),
        blocked: state == FreeState::Low && vm.allocation() > allotment.target,
        why: Why::Fits,
    }
}

/// What the balloon of a VM should hold if nothing bounded it.
fn balloon_aim(vm: &VmSnapshot, allotment: Allotment, config: &Config) -> Pages {
    let beyond = vm.size.saturating_sub(allotment.target);
    if vm.allocation() > allotment.target {
        return beyond;
    }
    // What is above the limit is never backed, so that part of a balloon may as well stay.
    let above_limit = vm.size.saturating_sub(vm.max());
    let returned = if allotment.all_met {
        fair::headroom(vm, config).min(vm.ballooned.saturating_sub(above_limit))
    } else {
        Pages(0)
    };
    beyond.min(vm.ballooned.saturating_sub(returned))
}

/// The most the balloon of a VM may hold: never part of its reservation.
fn balloon_cap(vm: &VmSnapshot, config: &Config) -> Pages {
    percent_of(vm.size, config.balloon_max_percent)
        .min(vm.balloon_max)
        .min(vm.size.saturating_sub(vm.min()))
}

fn why(vm: &VmSnapshot, plan: &VmPlan, state: FreeState) -> Why {
    let reclaimed = plan.evict > Pages(0) || plan.balloon_target > vm.ballooned;
    if reclaimed && vm.allocation() > vm.max() {
        Why::OverLimit
    } else if plan.evict > Pages(0) && state >= FreeState::Hard {
        Why::HostShort
    } else if plan.evict > Pages(0) {
        Why::NoBalloon
    } else if plan.balloon_target > vm.ballooned {
        Why::OverFairPart
    } else if plan.balloon_target < vm.ballooned {
        Why::Deflating
    } else if vm.ballooned > Pages(0) {
        Why::Ballooned
    } else {
        Why::Fits
    }
}

fn stuck(
    host: &HostSnapshot,
    state: FreeState,
    shortfall: Pages,
    plans: &[VmPlan],
) -> Option<Stuck> {
    let mut vms = host.vms.iter().zip(plans);
    let hopeful = vms.clone().any(|(vm, plan)| {
        // A blocked guest runs no balloon agent, so its balloon is no hope.
        plan.evict > Pages(0) || (!plan.blocked && evict::pending(vm, plan) > Pages(0))
    });
    if state == FreeState::High || shortfall == Pages(0) || hopeful {
        return None;
    }
    if vms.any(|(vm, plan)| vm.allocation() > plan.target) {
        Some(Stuck::NoRoom)
    } else {
        Some(Stuck::Reserved)
    }
}
