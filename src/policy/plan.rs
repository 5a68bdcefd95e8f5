//! The plan: what is to happen to each VM until the next snapshot.

use serde::{Deserialize, Serialize};

use super::fair;
use super::mechanisms::{Means, Mechanisms, Rules};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::states::{FreeState, Thresholds, next_state};
use super::{Config, balloon, evict, total};
use crate::units::{Pages, VmId};

/// What is to happen until the next snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The free-memory state from now on.
    pub state: FreeState,
    /// What that state does to every VM above its target. [`VmPlan::means`] has what is done to
    /// one.
    pub mechanisms: Mechanisms,
    /// What all VMs together may hold, shared pages counted in full.
    pub available: Pages,
    /// The host pages that eviction must free to leave the state; balloons aim further. Zero in
    /// high and clear.
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
    /// The guest pages that would be in its compression cache and its swap file if it held its target
    /// and its balloon held what it holds now. Above what is there now: evicted when the
    /// state says so. Below: nothing is brought back but what the guest touches. It falls as the
    /// balloon grows (esxtop: SWTGT).
    pub swap_target: Pages,
    /// The guest pages to evict in this round, by share, compress and swap in that order. Resident
    /// pages come first: each frees a host page.
    pub evict: Pages,
    /// By what else than sharing they may leave. None when nothing is evicted.
    pub means: Means,
    /// The most it may hold, shared pages counted in full: faults that would make it larger wait until
    /// some of it is evicted. Its limit, or somewhat more while it comes down to that; `None` where no
    /// limit binds, or nothing can be evicted.
    pub ceiling: Option<Pages>,
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
    /// It has no shares and is above its reservation: as if that were its limit.
    NoShares,
    /// It is above its fair part: its balloon grows.
    OverFairPart,
    /// It is above its fair part and no balloon will bring the rest: it is evicted from.
    NoBalloon,
    /// The state does not wait for balloons: it is evicted from.
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
    let host = &host.believable();
    let thresholds = Thresholds::of(host.budget, config);
    let state = next_state(host.state, host.free(), &thresholds);
    let mut rules = Rules::of(state, config);
    let available = available(host, state, &thresholds);
    let shortfall = evict::shortfall(&rules, host.free(), &thresholds);

    let allotments = fair::divide(host, available, config);
    let balloons = fair::for_balloons(host, available, config, &allotments);
    let mut vms: Vec<VmPlan> = (host.vms.iter().zip(&allotments).zip(&balloons))
        .map(|((vm, allotment), for_balloon)| VmPlan {
            id: vm.id,
            target: allotment.target,
            balloon_target: balloon::target(vm, *for_balloon, &rules, config),
            swap_target: total([vm.allocation(), vm.compressed, vm.swapped])
                .saturating_sub(allotment.target),
            evict: Pages(0),
            means: Means::default(),
            ceiling: None,
            blocked: rules.mechanisms.block && vm.allocation() > allotment.target,
            why: Why::Fits,
        })
        .collect();
    let orders = evict::orders(host, &rules, shortfall, &vms, config);
    let none_left = orders.iter().all(|order| order.pages == Pages(0));
    if shortfall > Pages(0) && none_left && !rules.mechanisms.inflate {
        // Balloons stand in this state, but they are all there is.
        rules.mechanisms.inflate = true;
        for ((vm, plan), for_balloon) in host.vms.iter().zip(&mut vms).zip(&balloons) {
            plan.balloon_target = balloon::target(vm, *for_balloon, &rules, config);
        }
    }
    for ((vm, plan), order) in host.vms.iter().zip(&mut vms).zip(orders) {
        (plan.evict, plan.means) = (order.pages, order.means);
        plan.ceiling = evict::ceiling(vm, order.pages, rules.all);
        plan.why = why(vm, plan, &rules);
    }
    let stuck = stuck(host, &rules, shortfall, &vms);
    Plan {
        state,
        mechanisms: rules.mechanisms,
        available,
        shortfall,
        vms,
        stuck,
    }
}

/// What all VMs together may hold, shared pages counted in full.
fn available(host: &HostSnapshot, state: FreeState, thresholds: &Thresholds) -> Pages {
    // At rest what is to be kept free is enough. Once balloons stand, the aim is where soft is left:
    // an aim between the two would return pages only to take them again.
    let at_rest = !state.is_short()
        && host.free() >= thresholds.min_free
        && host.vms.iter().all(|vm| vm.ballooned == Pages(0));
    let keep_free = if at_rest {
        thresholds.min_free
    } else {
        thresholds.aim
    };
    total([host.budget, host.sharing_saved()]).saturating_sub(total([host.overhead(), keep_free]))
}

fn why(vm: &VmSnapshot, plan: &VmPlan, rules: &Rules) -> Why {
    let reclaimed = plan.evict > Pages(0) || plan.balloon_target > vm.ballooned;
    if reclaimed && vm.allocation() > vm.max() {
        if vm.shares == 0 {
            Why::NoShares
        } else {
            Why::OverLimit
        }
    } else if plan.evict > Pages(0) && (!rules.waits() || !plan.means.swap) {
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

fn stuck(host: &HostSnapshot, rules: &Rules, shortfall: Pages, plans: &[VmPlan]) -> Option<Stuck> {
    let mut vms = host.vms.iter().zip(plans);
    let hopeful = vms.clone().any(|(vm, plan)| {
        // A blocked guest runs no balloon agent, so its balloon is no hope. Relief ends by itself.
        plan.evict > Pages(0)
            || (!plan.blocked && balloon::pending(vm, plan) > Pages(0))
            || (vm.relief.is_some() && rules.gives() && vm.allocation() > plan.target)
    });
    if shortfall == Pages(0) || hopeful {
        return None;
    }
    if vms.any(|(vm, plan)| vm.allocation() > plan.target) {
        Some(Stuck::NoRoom)
    } else {
        Some(Stuck::Reserved)
    }
}
