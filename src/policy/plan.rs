//! The plan: what is to happen to each VM until the next snapshot.

use serde::{Deserialize, Serialize};

use super::fair::{self, PoolPart};
use super::law::{self, Memory};
use super::mechanisms::{Means, Mechanisms, Rules};
use super::policies::Policy;
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::states::{FreeState, Thresholds};
use super::{Config, balloon, evict, pool_limit, total};
use crate::units::{Pages, VmId};

/// What is to happen until the next snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The free-memory state from now on.
    pub state: FreeState,
    /// What that state does to every VM above its target. For what is done to one of them see
    /// [`VmPlan::means`].
    pub mechanisms: Mechanisms,
    /// What all VMs together may hold, shared pages counted in full.
    pub available: Pages,
    /// The free memory, in host pages, up to which eviction goes on. Zero in high and clear.
    pub aim: Pages,
    /// The free memory, in host pages, that faults leave alone: a fault that finds no more than this waits for
    /// pages that eviction frees. Zero: faults leave only the reserve.
    pub floor: Pages,
    /// The host pages that eviction must free to leave the state; balloons aim further. Zero in
    /// high and clear.
    pub shortfall: Pages,
    /// One for each VM, in the order of the snapshot.
    pub vms: Vec<VmPlan>,
    /// One for each resource pool, in the order of the snapshot. The first is that of the root.
    pub pools: Vec<PoolPlan>,
    /// Set when pages are missing but none can be evicted and no balloon is on its way. To be
    /// logged.
    ///
    /// Blocking a VM until it is below its target would then block it for ever. While this is
    /// set, only those faults of a blocked VM wait that make it larger (first touches); refills and
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
    /// The guest pages it could hold if its demand were larger: at least the target (vCenter: entitlement).
    pub entitled: Pages,
    /// The guest pages its balloon is to hold.
    pub balloon_target: Pages,
    /// The guest pages that are to be in its compression cache and its swap file (esxtop: SWTGT): those that
    /// would be there if the VM held its target and its balloon stayed as it is. None unless the host is short or
    /// the VM wants more than its limit. If it is more than is there now, pages are evicted when the state
    /// says so; if it is less, nothing is brought back but what the guest touches. It falls as the balloon grows.
    pub swap_target: Pages,
    /// The guest pages to evict in this round, by share, compress and swap in that order. Resident
    /// pages come first: each frees a host page.
    pub evict: Pages,
    /// The means, besides sharing, by which they may leave. None when nothing is evicted.
    pub means: Means,
    /// Whether they leave however much memory is free, because of the VM's own limit. Otherwise they leave only
    /// while less than [`Plan::aim`] is free.
    pub by_limit: bool,
    /// The most it may hold, shared pages counted in full: faults that would make it larger wait until
    /// some of it is evicted. Its limit, or somewhat more while the VM comes down to its limit; `None` where no
    /// limit binds, or nothing can be evicted.
    pub ceiling: Option<Pages>,
    /// Whether its faults wait, because the state is low and it is above its target. See
    /// [`Plan::stuck`] for when only first touches do.
    pub blocked: bool,
    /// The reason, for people.
    pub why: Why,
    /// What the control law of its balloon remembers until the next plan ([`VmSnapshot::law`]).
    #[serde(default)]
    pub law: Memory,
}

/// What a resource pool is given, and how it is divided.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct PoolPlan {
    /// The guest pages that those in it may hold together, shared pages counted in full: at least its reservation, as
    /// far as they can use it, and at most its limit.
    pub target: Pages,
    /// The guest pages that they could hold if their demand were larger.
    pub entitled: Pages,
    /// The guest pages that they hold or are presumed to want at once, as far as limits allow.
    pub demand: Pages,
    /// Its weight against the VMs and pools beside it: its shares, or what they have grown to.
    pub shares: u32,
    /// The shares of all VMs and pools directly in it.
    pub inner_shares: u64,
    /// How many pages in use a share buys in it. None: all that those in it want is met.
    pub price: Option<f64>,
    /// Whether its own limit, or one around it, is less than those in it want.
    pub limited: bool,
}

/// Why a VM is treated as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It holds no more than its target; nothing is taken and nothing returned.
    Fits,
    /// It is above its own limit: its balloon grows, or it is evicted from, in every state.
    OverLimit,
    /// It holds exactly what its limit allows: what it touches next must wait until it loses something.
    AtLimit,
    /// It is above its part of the limit of a resource pool around it.
    OverPoolLimit,
    /// It holds exactly its part of the limit of a resource pool around it.
    AtPoolLimit,
    /// It has no shares, so its reservation is its limit, and it holds at least that.
    NoShares,
    /// It is above its fair part: its balloon grows.
    OverFairPart,
    /// It is above its fair part and no balloon will bring the rest: it is evicted from.
    NoBalloon,
    /// The state does not wait for balloons: it is evicted from.
    HostShort,
    /// Its balloon is set by hand.
    ByHand,
    /// Its balloon holds what it is to hold.
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

/// What a policy decides: [`Policy::plan`].
pub(super) fn plan<P: Policy + ?Sized>(policy: &P, host: &HostSnapshot, config: &Config) -> Plan {
    // Once and first, so that no formula below has to fear numbers that cannot be true.
    let given = host.believable();
    let limited = pool_limit::hand_down(policy, &given, config);
    let host = &*limited.host;
    let thresholds = Thresholds::of_host(host, config);
    let state = host.next_state(&thresholds);
    let mut rules = Rules::of(state, config);
    let available = available(host, state, &thresholds);
    let aim = evict::aim(&rules, &thresholds);
    let shortfall = aim.saturating_sub(host.free());

    let division = fair::divide(policy, host, available, config);
    let balloons = fair::for_balloons(policy, host, available, config, &division.vms);
    let mut vms: Vec<VmPlan> = (host.vms.iter().zip(&division.vms).zip(&balloons))
        .map(|((vm, allotment), for_balloon)| {
            let (balloon_target, memory) =
                balloon::target(host, vm, *for_balloon, (&rules, config));
            VmPlan {
                id: vm.id,
                target: allotment.target,
                entitled: allotment.entitled,
                balloon_target,
                law: memory,
                swap_target: swap_target(vm, allotment.target, &rules),
                evict: Pages(0),
                means: Means::default(),
                by_limit: false,
                ceiling: None,
                // Only VMs that hold more than their part wait: memory is taken from them for the others.
                blocked: rules.mechanisms.block && vm.allocation() > allotment.target,
                why: Why::Fits,
            }
        })
        .collect();
    let orders = evict::orders(host, &rules, shortfall, &vms, config);
    let none_left = orders.iter().all(|order| order.pages == Pages(0));
    // After the orders, which say whether anything else can free memory.
    let mut owed = host
        .vms
        .iter()
        .zip(&vms)
        .map(|(vm, plan)| balloon::pending(vm, plan));
    let waits = rules.mechanisms.inflate && owed.any(|pages| pages > Pages(0));
    if shortfall > Pages(0) && none_left && !waits {
        // Balloons do not grow in this state, or their law asks for nothing, but nothing else can free memory now.
        rules.mechanisms.inflate = true;
        let config = &Config {
            law: &law::Esx,
            ..*config
        };
        for ((vm, plan), for_balloon) in host.vms.iter().zip(&mut vms).zip(&balloons) {
            (plan.balloon_target, plan.law) =
                balloon::target(host, vm, *for_balloon, (&rules, config));
        }
    }
    for (((vm, own), plan), order) in (host.vms.iter().zip(&given.vms)).zip(&mut vms).zip(orders) {
        (plan.evict, plan.means) = (order.pages, order.means);
        plan.by_limit = order.by_limit;
        plan.ceiling = evict::ceiling(vm, order.pages, rules.all);
        plan.why = why(vm, own, plan, &rules);
    }
    // Last, because it goes by what balloons and evictions were ordered.
    let stuck = stuck(host, &rules, shortfall, &vms);
    Plan {
        state,
        mechanisms: rules.mechanisms,
        available,
        aim,
        floor: floor(config, &thresholds, aim, &vms),
        shortfall,
        vms,
        pools: pools(&division.pools, &limited.binds),
        stuck,
    }
}

fn pools(parts: &[PoolPart], limited: &[bool]) -> Vec<PoolPlan> {
    let plan = |(part, limited): (&PoolPart, &bool)| PoolPlan {
        target: part.allotment.target,
        entitled: part.allotment.entitled,
        demand: part.demand,
        shares: part.shares,
        inner_shares: part.inner_shares,
        price: part.price,
        limited: *limited,
    };
    parts.iter().zip(limited).map(plan).collect()
}

/// The free memory that faults leave alone. Faults can only wait for what eviction frees, so where nothing is
/// evicted there is no floor. The floor is the free memory at which low is left: even if guests ask for memory
/// faster than it is reclaimed, the host neither becomes low nor stays low. It is never above `aim`, where eviction
/// stops.
fn floor(config: &Config, thresholds: &Thresholds, aim: Pages, vms: &[VmPlan]) -> Pages {
    let is_freed = vms.iter().any(|vm| vm.evict > Pages(0) && !vm.by_limit);
    if config.faults_wait_early && is_freed {
        // Not above the aim, at which eviction ends: faults would wait for memory that nobody frees.
        thresholds.to_hard.min(aim)
    } else {
        Pages(0)
    }
}

/// What all VMs together may hold, shared pages counted in full.
fn available(host: &HostSnapshot, state: FreeState, thresholds: &Thresholds) -> Pages {
    // At rest it is enough to keep `min_free`. Once balloons hold pages, the aim is where soft is left:
    // if targets kept less free than that, pages would be returned only to be taken again.
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

fn swap_target(vm: &VmSnapshot, target: Pages, rules: &Rules) -> Pages {
    let wanted = total([vm.allocation(), vm.compressed, vm.swapped]);
    if rules.state.is_short() || wanted > vm.max() {
        wanted.saturating_sub(target)
    } else {
        Pages(0)
    }
}

/// The reason, if a limit is what keeps the VM from holding more. `own` has its own limit alone.
fn at_its_limit(vm: &VmSnapshot, own: &VmSnapshot, plan: &VmPlan) -> Option<Why> {
    // A limit that is no less than the size keeps the VM from nothing.
    let is_full = vm.allocation() == vm.max() && plan.target == vm.max() && vm.max() < vm.size;
    let is_of_a_pool = vm.max() < own.max();
    match (vm.allocation() > vm.max(), vm.shares) {
        (true, 0) => Some(Why::NoShares),
        (true, _) if is_of_a_pool => Some(Why::OverPoolLimit),
        (true, _) => Some(Why::OverLimit),
        (false, 0) if is_full => Some(Why::NoShares),
        (false, _) if is_full && is_of_a_pool => Some(Why::AtPoolLimit),
        (false, _) if is_full => Some(Why::AtLimit),
        (false, _) => None,
    }
}

fn why(vm: &VmSnapshot, own: &VmSnapshot, plan: &VmPlan, rules: &Rules) -> Why {
    if let Some(why) = at_its_limit(vm, own, plan) {
        why
    } else if plan.evict > Pages(0) && (!rules.waits() || !plan.means.swap) {
        Why::HostShort
    } else if plan.evict > Pages(0) {
        Why::NoBalloon
    } else if vm.agent && vm.balloon_by_hand.is_some() {
        Why::ByHand
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
        // A blocked guest runs no balloon agent, so nothing is to be expected of its balloon. Relief ends by itself.
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

#[cfg(test)]
mod tests {
    use super::super::Esx;
    use super::*;

    /// A host of 10 000 pages with 200 of metadata.
    fn planned(state: FreeState, vms: Vec<VmSnapshot>) -> Plan {
        let used = 200 + vms.iter().map(|vm| vm.backing().0).sum::<u64>();
        let host = HostSnapshot {
            budget: Pages(10_000),
            used: Pages(used),
            state,
            least_free: None,
            resource_pools: Vec::new(),
            vms,
            seed: 0,
        };
        Esx.plan(&host, &Config::default())
    }

    fn row(plan: &Plan) -> (u64, Why) {
        (plan.vms[0].balloon_target.0, plan.vms[0].why)
    }

    #[test]
    fn balloon_set_by_hand_takes_what_it_may_and_nothing_reserved() {
        for (reservation, by_hand, expected) in [(0, 900, 650), (0, 300, 300), (900, 500, 100)] {
            let vm = VmSnapshot {
                reservation: Pages(reservation),
                balloon_by_hand: Some(Pages(by_hand)),
                ..VmSnapshot::sample(1000, 800)
            };
            let plan = planned(FreeState::High, vec![vm]);
            assert_eq!(row(&plan), (expected, Why::ByHand));
        }
    }

    #[test]
    fn balloon_without_an_agent_has_no_target_and_is_evicted_instead() {
        for ballooned in [0, 100] {
            let vm = VmSnapshot {
                agent: false,
                ballooned: Pages(ballooned),
                untouched: Pages(0),
                ..VmSnapshot::sample(9700 + ballooned, 9700)
            };
            let plan = planned(FreeState::Soft, vec![vm]);
            assert_eq!(row(&plan), (ballooned, Why::NoBalloon));
            assert_eq!(plan.vms[0].evict, plan.shortfall);
        }
    }

    #[test]
    fn balloon_that_takes_free_pages_only_leaves_the_guest_its_headroom_and_what_costs_nothing() {
        let target = |ballooned: u64, untouched: u64, free: Option<u64>| {
            let vm = VmSnapshot {
                ballooned: Pages(ballooned),
                untouched: Pages(untouched),
                // The balloon counts as free: the limit on its size includes what it holds already.
                balloon_free: free.map(|free| Pages(ballooned + free)),
                ..VmSnapshot::sample(12_000, 12_000 - ballooned - untouched)
            };
            let host = HostSnapshot {
                budget: Pages(10_000),
                used: Pages(9_800),
                state: FreeState::Soft,
                least_free: None,
                resource_pools: Vec::new(),
                vms: vec![vm],
                seed: 0,
            };
            let config = Config {
                balloon_takes_free_only: true,
                ..Config::default()
            };
            Esx.plan(&host, &config).vms[0].balloon_target.0
        };
        assert_eq!(target(0, 2000, None), 0, "it does not say");
        assert_eq!(target(0, 2000, Some(2000)), 0, "all of that costs nothing");
        assert_eq!(target(0, 2000, Some(2500)), 500);
        // Whether the balloon took untouched pages first or others, the target stays the same.
        assert_eq!(target(500, 1500, Some(2000)), 500);
        assert_eq!(target(500, 2000, Some(2000)), 0);
        assert_eq!(target(0, 0, Some(1500)), 300, "a tenth is its headroom");
    }

    #[test]
    fn part_of_what_sharing_saves_is_kept_free_before_anybody_needs_it() {
        let plan = |share_reserve_percent| {
            let vm = VmSnapshot {
                shared: Pages(2000),
                sharing_saved: Pages(1000),
                untouched: Pages(0),
                ..VmSnapshot::sample(9600, 7600)
            };
            let host = HostSnapshot {
                budget: Pages(10_000),
                used: Pages(200 + 7600 + 1000),
                state: FreeState::High,
                least_free: None,
                resource_pools: Vec::new(),
                vms: vec![vm],
                seed: 0,
            };
            let config = Config {
                share_reserve_percent,
                ..Config::default()
            };
            let plan = Esx.plan(&host, &config);
            (plan.state, plan.available.0, plan.shortfall.0)
        };
        // 1200 are free, 600 are kept free.
        assert_eq!(plan(0), (FreeState::High, 10_800 - 600, 0));
        assert_eq!(plan(50), (FreeState::High, 10_800 - 1100, 0));
        // Soft is left at 643 and 1000.
        assert_eq!(plan(100), (FreeState::Soft, 10_800 - 1643, 1643 - 1200));
    }

    #[test]
    fn faults_leave_what_keeps_the_host_out_of_low_as_long_as_eviction_frees_some() {
        let config = Config {
            faults_wait_early: true,
            ..Config::default()
        };
        let floor = |swap_room: u64, config: &Config| {
            let vm = VmSnapshot {
                swap_room: Pages(swap_room),
                agent: false,
                ..VmSnapshot::sample(12_000, 9_600)
            };
            let host = HostSnapshot {
                budget: Pages(10_000),
                used: Pages(9_800),
                state: FreeState::Hard,
                least_free: None,
                resource_pools: Vec::new(),
                vms: vec![vm],
                seed: 0,
            };
            let thresholds = Thresholds::of(host.budget, config);
            (Esx.plan(&host, config).floor, thresholds.to_hard)
        };
        let (with, to_hard) = floor(5000, &config);
        assert_eq!(with, to_hard);
        assert_eq!(floor(0, &config).0, Pages(0), "nothing can be evicted");
        assert_eq!(floor(5000, &Config::default()).0, Pages(0));
    }

    #[test]
    fn vm_exactly_at_its_limit_is_told_so_also_while_its_faults_get_room() {
        for pressing in [false, true] {
            let vm = VmSnapshot {
                limit: Some(Pages(800)),
                balloon_max: Pages(0),
                pressing,
                ..VmSnapshot::sample(1000, 800)
            };
            let plan = planned(FreeState::High, vec![vm]);
            assert_eq!(row(&plan), (0, Why::AtLimit));
            assert_eq!(plan.vms[0].evict > Pages(0), pressing);
        }
        let whole = planned(FreeState::High, vec![VmSnapshot::sample(800, 800)]);
        assert_eq!(row(&whole).1, Why::Fits, "its size keeps it from nothing");
    }

    /// A VM of which pressure has swapped 4000 pages.
    #[test]
    fn swap_target_falls_to_nothing_when_the_pressure_ends() {
        let swap_target = |state, limit, resident| {
            let vm = VmSnapshot {
                limit,
                swapped: Pages(4000),
                agent: false,
                ..VmSnapshot::sample(20_000, resident)
            };
            planned(state, vec![vm]).vms[0].swap_target
        };
        assert!(swap_target(FreeState::Soft, None, 9500) > Pages(4000));
        assert_eq!(swap_target(FreeState::High, None, 4000), Pages(0));
        // A limit still asks for it, however much is free.
        let limit = Some(Pages(4000));
        assert_eq!(swap_target(FreeState::High, limit, 4000), Pages(4000));
        let limit = Some(Pages(9000));
        assert_eq!(swap_target(FreeState::High, limit, 4000), Pages(0));
    }
}
