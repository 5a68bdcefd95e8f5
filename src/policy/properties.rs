//! Properties of the plan over arbitrary hosts and settings, by each policy there is.

mod nonsense;
mod pools;
mod worked_examples;

use proptest::prelude::*;

use super::law::Memory;
use super::*;
use crate::units::VmId;

/// Each policy there is: those that are not here yet as well.
pub(super) fn policy() -> impl Strategy<Value = &'static dyn Policy> {
    prop::sample::select(policies::ALL)
}

/// What its threads wait for, by the host and by the guest, and for how long its law has known it.
fn stalls() -> impl Strategy<Value = (u64, (u64, u64), u64, u64)> {
    let stall = || prop_oneof![Just(0), 0_u64..3_000_000];
    let since = prop_oneof![Just(0), 1_u64..10_000];
    (stall(), (stall(), 0_u64..3000), stall(), since)
}

/// The parts of a VM as fractions and weights, so that every draw is a consistent VM.
fn vm() -> impl Strategy<Value = VmSnapshot> {
    let homes = proptest::array::uniform7(0_u64..3000);
    let shares = prop_oneof![1 => Just(0), 9 => 1_u32..5000];
    let rules = (0_u64..=100, proptest::option::of(1_u64..=100), shares);
    let means = (any::<bool>(), 0_u64..=100, 0_u64..5000, any::<bool>());
    let use_of = (
        0_u64..=100,
        proptest::option::of(0_u64..=100),
        any::<bool>(),
        stalls(),
    );
    (homes, rules, means, use_of).prop_map(|(homes, rules, means, uses)| {
        let (saved, active, pressing, stalls) = uses;
        let (stall_us_per_s, early, guest_stall_us_per_s, law_since_ms) = stalls;
        let [
            resident,
            shared,
            compressed,
            swapped,
            ballooned,
            zero,
            untouched,
        ] = homes;
        let size = homes.iter().sum::<u64>();
        let limit = rules.1.map(|percent| Pages(size * percent / 100));
        VmSnapshot {
            reservation: limit
                .unwrap_or(Pages(size))
                .min(Pages(size * rules.0 / 200)),
            limit,
            shares: rules.2,
            resident: Pages(resident),
            shared: Pages(shared),
            sharing_saved: Pages(shared * saved / 100),
            compressed: Pages(compressed),
            zip_pages: Pages(compressed / 3),
            zip_room: Pages(means.2 / 10),
            swapped: Pages(swapped),
            ballooned: Pages(ballooned),
            zero: Pages(zero),
            untouched: Pages(untouched),
            agent: true,
            agent_alive: means.0,
            balloon_max: Pages(size * means.1 / 100),
            active: active.map(|percent| Pages(size * percent / 100)),
            stall_us_per_s,
            early_us_per_s: early.0,
            left_lately: Pages(early.1),
            guest_stall_us_per_s,
            law: Memory {
                target: (law_since_ms > 0).then_some(Pages(ballooned + untouched / 2)),
                sum: i64::try_from(1000 * ballooned).expect("small"),
                waited_ms: 2 * law_since_ms,
                ..Memory::default()
            },
            law_since_ms,
            swap_room: Pages(means.2),
            swap_failing: means.3,
            pressing,
            ..VmSnapshot::new(VmId(0), Pages(size))
        }
    })
}

/// What a VM may lose beyond all else: one whose faults wait at its limit gets at most 1 MiB of room.
fn room(vm: &VmSnapshot) -> Pages {
    Pages(if vm.pressing { 256 } else { 0 })
}

fn state() -> impl Strategy<Value = FreeState> {
    prop::sample::select(FreeState::ALL.to_vec())
}

/// Any settings that change what is taken and how, but not how much is kept free.
pub(super) fn config() -> impl Strategy<Value = Config> {
    let generation = prop::sample::select(Generation::ALL.to_vec());
    let tax_type = prop::sample::select(vec![IdleTaxType::Flat, IdleTaxType::Variable]);
    let tax = (prop_oneof![Just(75), 0_u32..=99], tax_type);
    let law = prop::sample::select(law::ALL);
    (generation, any::<bool>(), tax, law).prop_map(|(generation, zip_enabled, tax, law)| Config {
        law,
        generation,
        zip_enabled,
        idle_tax_percent: tax.0,
        idle_tax_type: tax.1,
        ..Config::default()
    })
}

/// A host with metadata of 500 pages, and 0 to 12 % free so that each state occurs.
pub(super) fn host() -> impl Strategy<Value = HostSnapshot> {
    let vms = proptest::collection::vec(vm(), 0..6);
    (vms, state(), 0_u64..=12, any::<u64>()).prop_map(|(vms, state, free, seed)| {
        let used = 500 + vms.iter().map(|vm| vm.backing().0).sum::<u64>();
        host_of(vms, used * 100 / (100 - free), state, seed)
    })
}

fn host_of(vms: Vec<VmSnapshot>, budget: u64, state: FreeState, seed: u64) -> HostSnapshot {
    let numbered = (1..)
        .zip(vms)
        .map(|(id, vm)| VmSnapshot { id: VmId(id), ..vm });
    let vms: Vec<VmSnapshot> = numbered.collect();
    HostSnapshot {
        least_free: None,
        resource_pools: Vec::new(),
        budget: Pages(budget),
        used: Pages(500 + vms.iter().map(|vm| vm.backing().0).sum::<u64>()),
        state,
        vms,
        seed,
    }
}

fn sum(pages: impl Iterator<Item = Pages>) -> u64 {
    total(pages).0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_vms_are_worth_together_is_what_each_is_worth(
        policy in policy(),
        host in host(),
        config in config(),
    ) {
        let each = host.vms.iter().map(|vm| policy.worth(vm, &host, &config));
        prop_assert_eq!(policy.worths(&host, &config), each.collect::<Vec<_>>());
    }

    #[test]
    fn plan_keeps_each_vm_within_its_bounds(policy in policy(), host in host(), config in config()) {
        let plan = policy.plan(&host, &config);
        let above_can_give = host.vms.iter().zip(&plan.vms).any(|(vm, plan)|
            vm.allocation() > plan.target && vm.evictable(Means::all(&config)) > Pages(0));
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            prop_assert_eq!(vm.id, plan.id);
            prop_assert!(vm.min() <= plan.target && plan.target <= vm.max(), "{plan:?}");
            prop_assert!(plan.balloon_target <= vm.balloon_max);
            prop_assert!(plan.balloon_target <= percent_of(vm.size, config.balloon_max_percent));
            prop_assert!(plan.balloon_target.0 + vm.min().0 <= vm.size.0, "{plan:?}");
            prop_assert!(plan.evict <= vm.evictable(plan.means));
            prop_assert!(!plan.means.compress || Means::all(&config).compress);
            let left = Pages(vm.allocation().saturating_sub(plan.evict).0 + room(vm).0);
            let last_resort = plan.evict > Pages(0) && !above_can_give;
            prop_assert!(plan.evict == Pages(0) || left >= vm.min(), "{plan:?}");
            prop_assert!(plan.evict == Pages(0) || left >= plan.target || last_resort, "{plan:?}");
        }
    }

    /// No more is given than is available, and while any VM wants more all of it is given, but for less than a
    /// page for each VM.
    #[test]
    fn plan_targets_are_all_that_is_available(policy in policy(), host in host(), config in config()) {
        let plan = policy.plan(&host, &config);
        // What a VM can use of its target: a reservation beyond its demand is lent to others.
        let cap = |vm: &VmSnapshot| fair::demand(vm, &config).min(vm.max());
        let caps = sum(host.vms.iter().map(cap));
        let floors = sum(host.vms.iter().map(|vm| vm.min().min(cap(vm))));
        let used = host.vms.iter().zip(&plan.vms).map(|(vm, plan)| plan.target.min(cap(vm)));
        let used = sum(used);
        prop_assert!(used <= plan.available.0.max(floors));
        if caps > plan.available.0 {
            prop_assert!(used + host.vms.len() as u64 > plan.available.0);
        } else {
            prop_assert_eq!(used, caps);
        }
        // What is available, metadata and what is kept free are at most the budget and what sharing saves.
        let keeps = Thresholds::of_host(&host, &config).min_free.0;
        prop_assert!(plan.available == Pages(0) || plan.available.0 + 500 + keeps
            <= host.budget.0 + host.sharing_saved().0);
    }

    #[test]
    fn plan_without_shares_gives_exactly_the_reservation(policy in policy(), host in host(), config in config()) {
        let mut host = host;
        host.vms.iter_mut().step_by(2).for_each(|vm| vm.shares = 0);
        let plan = policy.plan(&host, &config);
        for (vm, plan) in host.vms.iter().zip(&plan.vms).step_by(2) {
            prop_assert_eq!(plan.target, vm.reservation.min(vm.limit.unwrap_or(vm.size)));
            let left = vm.allocation().saturating_sub(plan.evict).0 + room(vm).0;
            prop_assert!(plan.evict == Pages(0) || Pages(left) >= vm.reservation.min(vm.allocation()));
        }
    }

    /// Without a tax it makes no difference how many pages a VM uses.
    #[test]
    fn plan_without_tax_knows_shares_only(host in host(), config in config()) {
        let config = Config { idle_tax_percent: 0, ..config };
        let mut busy = host.clone();
        busy.vms.iter_mut().for_each(|vm| vm.active = None);
        prop_assert_eq!(Esx.plan(&host, &config), Esx.plan(&busy, &config));
    }

    /// One page of tolerance for rounding.
    #[test]
    fn plan_more_active_pages_never_mean_a_smaller_target(
        host in host(),
        config in config(),
        which: prop::sample::Index,
        more in 1_u64..5000,
    ) {
        let mut busier = host.clone();
        if host.vms.is_empty() {
            return Ok(());
        }
        let at = which.index(host.vms.len());
        busier.vms[at].active = busier.vms[at].active.map(|active| Pages(active.0 + more));
        let before = Esx.plan(&host, &config).vms[at].target;
        let after = Esx.plan(&busier, &config).vms[at].target;
        prop_assert!(after.0 + 1 >= before.0, "from {before:?} to {after:?}");
    }

    /// The flat tax takes as much as the variable one, but not by balloons.
    #[test]
    fn plan_flat_tax_balloons_no_more_than_shares_do(policy in policy(), host in host(), config in config()) {
        // Other laws go by where they were.
        let config = Config { law: &law::Esx, ..config };
        let with = |idle_tax_percent, idle_tax_type| {
            policy.plan(&host, &Config { idle_tax_percent, idle_tax_type, ..config })
        };
        let flat = with(config.idle_tax_percent, IdleTaxType::Flat);
        let variable = with(config.idle_tax_percent, IdleTaxType::Variable);
        let shares = with(0, IdleTaxType::Variable);
        for ((flat, variable), shares) in flat.vms.iter().zip(&variable.vms).zip(&shares.vms) {
            prop_assert_eq!(flat.target, variable.target);
            prop_assert!(flat.balloon_target <= shares.balloon_target.min(variable.balloon_target));
        }
    }

    #[test]
    fn plan_evicts_what_is_missing_and_no_more(policy in policy(), host in host(), config in config(), round in 1_u64..3000) {
        let config = Config { evict_round: Pages(round), ..config };
        let plan = policy.plan(&host, &config);
        let evicted = sum(plan.vms.iter().map(|vm| vm.evict));
        let over_limit = |vm| VmSnapshot::allocation(vm).0 + room(vm).0;
        let over_limits = sum(host.vms.iter().map(|vm| Pages(over_limit(vm)).saturating_sub(vm.max())));
        prop_assert!(evicted <= round);
        prop_assert!(evicted <= over_limits + plan.shortfall.0, "{plan:?}");
        if plan.mechanisms.swap {
            let all = Means::all(&config);
            let takeable = |(vm, plan): (&VmSnapshot, &VmPlan)|
                vm.allocation().saturating_sub(plan.target).min(vm.evictable(all));
            let takeable = sum(host.vms.iter().zip(&plan.vms).map(takeable));
            prop_assert!(evicted >= takeable.min(round).min(plan.shortfall.0), "{plan:?}");
        }
    }

    /// A limit binds where something can be taken, never stops a guest below it, and faults that wait
    /// at the limit get room in the same round.
    #[test]
    fn plan_holds_guests_at_their_limits_and_lets_them_go_on(policy in policy(), host in host(), config in config()) {
        let plan = policy.plan(&host, &config);
        let all = Means::all(&config);
        let evictable = sum(host.vms.iter().map(|vm| vm.evictable(all)));
        for (vm, of) in host.vms.iter().zip(&plan.vms) {
            let is_stuck = vm.allocation() >= vm.max() && vm.evictable(all) == Pages(0);
            let limited = vm.max() < vm.size && !is_stuck;
            prop_assert_eq!(of.ceiling.is_some(), limited);
            let Some(ceiling) = of.ceiling else { continue };
            prop_assert!(ceiling >= vm.max());
            prop_assert!(ceiling <= vm.allocation().max(vm.max()).max(Pages(256)));
            let full = vm.allocation() >= vm.max() && vm.pressing && vm.evictable(all) > Pages(0);
            // At least half of a round is for limits. A VM whose part of that is less than a page may have to
            // wait for a round in which it bears the odd page.
            let part = vm.evictable(all).0 * (config.evict_round.0 / 2) / evictable.max(1);
            prop_assert!(!full || of.evict > Pages(0) || part == 0, "{of:?}");
        }
    }

    /// Without reservations, which nothing can take, all that is missing can be found above the
    /// targets: a short host always knows from which VMs to take.
    #[test]
    fn plan_short_host_has_enough_above_targets(policy in policy(), host in host(), config in config()) {
        let mut host = host;
        host.vms.iter_mut().for_each(|vm| vm.reservation = Pages(0));
        let plan = policy.plan(&host, &config);
        let above = |(vm, plan): (&VmSnapshot, &VmPlan)|
            vm.allocation().saturating_sub(plan.target);
        let above = sum(host.vms.iter().zip(&plan.vms).map(above));
        prop_assert!(above >= plan.shortfall.0.min(sum(host.vms.iter().map(VmSnapshot::backing))));
    }

    #[test]
    fn plan_blocks_only_in_low_and_only_above_target(policy in policy(), host in host(), config in config()) {
        let plan = policy.plan(&host, &config);
        for (vm, plan_of) in host.vms.iter().zip(&plan.vms) {
            let above = vm.allocation() > plan_of.target;
            prop_assert_eq!(plan_of.blocked, plan.state == FreeState::Low && above);
        }
    }

    /// Either the plan takes something, or it says why it cannot: no silent standstill.
    #[test]
    fn plan_short_host_moves_or_is_stuck(policy in policy(), host in host(), config in config()) {
        let plan = policy.plan(&host, &config);
        let moves = host.vms.iter().zip(&plan.vms).any(|(vm, plan)| plan.evict > Pages(0)
            || (vm.agent_alive && !plan.blocked && plan.balloon_target > vm.ballooned));
        prop_assert_eq!(plan.stuck.is_some(), plan.shortfall > Pages(0) && !moves);
    }

    #[test]
    fn plan_undercommitted_host_reclaims_nothing(
        policy in policy(),
        host in host(),
        config in config(),
        state in state(),
    ) {
        let mut host = host;
        host.vms.iter_mut().for_each(|vm| vm.limit = None);
        host.vms.iter_mut().for_each(|vm| vm.shares = vm.shares.max(1));
        let sizes = sum(host.vms.iter().map(|vm| vm.size));
        let host = host_of(host.vms, (sizes + 500) * 100 / 93 + 1, state, 0);
        let plan = policy.plan(&host, &config);
        prop_assert_eq!(plan.stuck, None);
        for (vm, plan_of) in host.vms.iter().zip(&plan.vms) {
            prop_assert_eq!(plan_of.target, vm.size);
            prop_assert!(plan_of.evict == Pages(0) && !plan_of.blocked);
            // Other laws take their time, or take from VMs of any host.
            let is_esx = config.law.name() == "esx";
            prop_assert!(!is_esx || plan_of.balloon_target <= vm.ballooned);
            if is_esx && plan.state <= FreeState::Soft {
                prop_assert_eq!(plan_of.balloon_target, Pages(0));
            }
        }
    }

    #[test]
    fn plan_at_rest_asks_no_balloon_below_a_limit(policy in policy(), host in host(), config in config()) {
        let mut host = host;
        for vm in &mut host.vms {
            vm.untouched.0 += vm.ballooned.0;
            vm.ballooned = Pages(0);
            vm.limit = None;
            vm.shares = vm.shares.max(1);
        }
        let budget = host.used.0 * 100 / 94 + 2;
        let host = host_of(host.vms, budget, FreeState::High, 0);
        let config = Config { law: &law::Esx, ..config };
        let plan = policy.plan(&host, &config);
        prop_assert!(plan.vms.iter().all(|vm| vm.why == Why::Fits), "{plan:?}");
    }

    #[test]
    fn plan_never_deflates_in_hard_or_low(policy in policy(), host in host(), config in config()) {
        // So little is free that every state becomes hard or low.
        let mut host = host;
        host.budget = Pages(host.used.0 * 100 / 99);
        let plan = policy.plan(&host, &config);
        prop_assert!(plan.state >= FreeState::Hard);
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            let cap = percent_of(vm.size, 65)
                .min(vm.balloon_max)
                .min(vm.size.saturating_sub(vm.min()));
            prop_assert!(plan.balloon_target >= vm.ballooned.min(cap));
        }
    }

    /// One page of tolerance for rounding.
    #[test]
    fn plan_more_shares_never_mean_a_smaller_target(
        policy in policy(),
        host in host(),
        config in config(),
        which: prop::sample::Index,
        more in 1_u32..5000,
    ) {
        if host.vms.is_empty() {
            return Ok(());
        }
        let at = which.index(host.vms.len());
        let mut richer = host.clone();
        richer.vms[at].shares += more;
        let before = policy.plan(&host, &config).vms[at].target;
        let after = policy.plan(&richer, &config).vms[at].target;
        prop_assert!(after.0 + 1 >= before.0, "from {before:?} to {after:?}");
    }

    #[test]
    fn plan_does_not_depend_on_the_order_of_vms(policy in policy(), host in host(), config in config()) {
        let mut turned = host.clone();
        turned.vms.reverse();
        let forward = policy.plan(&host, &config);
        let mut backward = policy.plan(&turned, &config);
        backward.vms.reverse();
        prop_assert_eq!(forward.state, backward.state);
        for (one, other) in forward.vms.iter().zip(&backward.vms) {
            prop_assert_eq!((one.target, one.balloon_target), (other.target, other.balloon_target));
        }
    }
}
