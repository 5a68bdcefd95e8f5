//! Properties of the plan over arbitrary hosts, and the worked numbers of `docs/policy.md`.

use proptest::prelude::*;

use super::*;
use crate::units::VmId;

/// The parts of a VM as fractions and weights, so that every draw is a consistent VM.
fn vm() -> impl Strategy<Value = VmSnapshot> {
    let homes = proptest::array::uniform7(0_u64..3000);
    let rules = (0_u64..=100, proptest::option::of(1_u64..=100), 0_u32..5000);
    let means = (any::<bool>(), 0_u64..=100, 0_u64..5000, any::<bool>());
    (homes, rules, means, 0_u64..=100).prop_map(|(homes, rules, means, saved)| {
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
            id: VmId(0),
            size: Pages(size),
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
            agent_alive: means.0,
            balloon_max: Pages(size * means.1 / 100),
            active: None,
            swap_room: Pages(means.2),
            swap_failing: means.3,
        }
    })
}

fn state() -> impl Strategy<Value = FreeState> {
    prop_oneof![
        Just(FreeState::High),
        Just(FreeState::Soft),
        Just(FreeState::Hard),
        Just(FreeState::Low),
    ]
}

/// A host with metadata of 500 pages and so much free that each state occurs.
fn host() -> impl Strategy<Value = HostSnapshot> {
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
    #[test]
    fn plan_keeps_each_vm_within_its_bounds(host in host()) {
        let config = Config::default();
        let plan = plan(&host, &config);
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            prop_assert_eq!(vm.id, plan.id);
            prop_assert!(vm.min() <= plan.target && plan.target <= vm.max(), "{plan:?}");
            prop_assert!(plan.balloon_target <= vm.balloon_max);
            prop_assert!(plan.balloon_target <= percent_of(vm.size, config.balloon_max_percent));
            prop_assert!(plan.balloon_target.0 + vm.min().0 <= vm.size.0, "{plan:?}");
            prop_assert!(plan.evict <= vm.evictable());
            prop_assert!(vm.allocation().saturating_sub(plan.evict) >= plan.target
                || plan.evict == Pages(0), "evicted below its target: {plan:?}");
        }
    }

    #[test]
    fn plan_targets_are_no_more_than_available_and_lent(host in host()) {
        let config = Config::default();
        let plan = plan(&host, &config);
        let lent = |vm: &VmSnapshot| vm.min().saturating_sub(fair::demand(vm, &config));
        let held = |vm: &VmSnapshot| vm.min().min(fair::demand(vm, &config));
        let lent = sum(host.vms.iter().map(lent));
        let promised = sum(host.vms.iter().map(held));
        let targets = sum(plan.vms.iter().map(|vm| vm.target));
        prop_assert!(targets <= plan.available.0.max(promised) + lent);
        // What is available and what is kept free make up the budget, and sharing adds to it.
        let keeps = Thresholds::of(host.budget, &config).high.0;
        prop_assert!(plan.available == Pages(0) || plan.available.0 + 500 + keeps
            <= host.budget.0 + host.sharing_saved().0);
    }

    #[test]
    fn plan_evicts_what_is_missing_and_no_more(host in host(), round in 1_u64..3000) {
        let config = Config { evict_round: Pages(round), ..Config::default() };
        let plan = plan(&host, &config);
        let evicted = sum(plan.vms.iter().map(|vm| vm.evict));
        let over_limits = sum(host.vms.iter().map(|vm| vm.allocation().saturating_sub(vm.max())));
        prop_assert!(evicted <= round);
        prop_assert!(evicted <= over_limits.max(plan.shortfall.0), "{plan:?}");
        if plan.state >= FreeState::Hard {
            let takeable = |(vm, plan): (&VmSnapshot, &VmPlan)|
                vm.allocation().saturating_sub(plan.target).min(vm.evictable());
            let takeable = sum(host.vms.iter().zip(&plan.vms).map(takeable));
            prop_assert!(evicted >= takeable.min(round).min(plan.shortfall.0), "{plan:?}");
        }
    }

    /// Without the reservations that nobody can take, all that is missing can be found above the
    /// targets: a short host always knows from whom to take.
    #[test]
    fn plan_short_host_has_enough_above_targets(host in host()) {
        let mut host = host;
        host.vms.iter_mut().for_each(|vm| vm.reservation = Pages(0));
        let plan = plan(&host, &Config::default());
        let above = |(vm, plan): (&VmSnapshot, &VmPlan)|
            vm.allocation().saturating_sub(plan.target);
        let above = sum(host.vms.iter().zip(&plan.vms).map(above));
        prop_assert!(above >= plan.shortfall.0.min(sum(host.vms.iter().map(VmSnapshot::backing))));
    }

    #[test]
    fn plan_blocks_only_in_low_and_only_above_target(host in host()) {
        let plan = plan(&host, &Config::default());
        for (vm, plan_of) in host.vms.iter().zip(&plan.vms) {
            let above = vm.allocation() > plan_of.target;
            prop_assert_eq!(plan_of.blocked, plan.state == FreeState::Low && above);
        }
    }

    /// Either the plan takes something, or it says why it cannot: no silent standstill.
    #[test]
    fn plan_short_host_moves_or_is_stuck(host in host()) {
        let plan = plan(&host, &Config::default());
        let moves = host.vms.iter().zip(&plan.vms).any(|(vm, plan)| plan.evict > Pages(0)
            || (vm.agent_alive && !plan.blocked && plan.balloon_target > vm.ballooned));
        prop_assert_eq!(plan.stuck.is_some(), plan.shortfall > Pages(0) && !moves);
    }

    #[test]
    fn plan_undercommitted_host_reclaims_nothing(host in host(), state in state()) {
        let mut host = host;
        host.vms.iter_mut().for_each(|vm| vm.limit = None);
        let sizes = sum(host.vms.iter().map(|vm| vm.size));
        let host = host_of(host.vms, (sizes + 500) * 100 / 93 + 1, state, 0);
        let plan = plan(&host, &Config::default());
        prop_assert_eq!(plan.stuck, None);
        for (vm, plan_of) in host.vms.iter().zip(&plan.vms) {
            prop_assert_eq!(plan_of.target, vm.size);
            prop_assert!(plan_of.balloon_target <= vm.ballooned);
            prop_assert!(plan_of.evict == Pages(0) && !plan_of.blocked);
            if plan.state <= FreeState::Soft {
                prop_assert_eq!(plan_of.balloon_target, Pages(0));
            }
        }
    }

    #[test]
    fn plan_at_rest_asks_no_balloon_below_a_limit(host in host()) {
        let mut host = host;
        for vm in &mut host.vms {
            vm.untouched.0 += vm.ballooned.0;
            vm.ballooned = Pages(0);
            vm.limit = None;
        }
        let budget = host.used.0 * 100 / 94 + 2;
        let host = host_of(host.vms, budget, FreeState::High, 0);
        let plan = plan(&host, &Config::default());
        prop_assert!(plan.vms.iter().all(|vm| vm.why == Why::Fits), "{plan:?}");
    }

    #[test]
    fn plan_never_deflates_in_hard_or_low(host in host()) {
        let plan = plan(&host, &Config::default());
        prop_assume!(plan.state >= FreeState::Hard);
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
        host in host(),
        which: prop::sample::Index,
        more in 1_u32..5000,
    ) {
        prop_assume!(!host.vms.is_empty());
        let at = which.index(host.vms.len());
        let mut richer = host.clone();
        richer.vms[at].shares += more;
        let before = plan(&host, &Config::default()).vms[at].target;
        let after = plan(&richer, &Config::default()).vms[at].target;
        prop_assert!(after.0 + 1 >= before.0, "from {before:?} to {after:?}");
    }

    #[test]
    fn plan_does_not_depend_on_the_order_of_vms(host in host()) {
        let mut turned = host.clone();
        turned.vms.reverse();
        let forward = plan(&host, &Config::default());
        let mut backward = plan(&turned, &Config::default());
        backward.vms.reverse();
        prop_assert_eq!(forward.state, backward.state);
        for (one, other) in forward.vms.iter().zip(&backward.vms) {
            prop_assert_eq!((one.target, one.balloon_target), (other.target, other.balloon_target));
        }
    }

    /// Numbers that contradict each other come from files; they may not break the planner.
    #[test]
    fn plan_of_nonsense_still_plans(
        numbers in proptest::collection::vec(any::<u64>(), 20),
        host in host(),
    ) {
        let mut host = host;
        let mut numbers = numbers.into_iter().map(Pages).cycle();
        let mut next = || numbers.next().expect("it cycles");
        (host.budget, host.used) = (next(), next());
        for vm in &mut host.vms {
            (vm.size, vm.reservation, vm.limit) = (next(), next(), Some(next()));
            (vm.resident, vm.shared, vm.sharing_saved) = (next(), next(), next());
            (vm.zip_pages, vm.zip_room, vm.swap_room) = (next(), next(), next());
            (vm.ballooned, vm.balloon_max, vm.active) = (next(), next(), Some(next()));
        }
        let plan = plan(&host, &Config::default());
        for (vm, plan) in host.vms.iter().zip(&plan.vms) {
            prop_assert!(vm.min() <= plan.target && plan.target <= vm.max());
        }
    }
}

/// The host of the worked example: 100 000 pages, of which 97 000 are used.
fn worked_host() -> HostSnapshot {
    let vm = |id, size, shares, resident| VmSnapshot {
        id: VmId(id),
        size: Pages(size),
        reservation: Pages(0),
        limit: None,
        shares,
        resident: Pages(resident),
        shared: Pages(0),
        sharing_saved: Pages(0),
        compressed: Pages(0),
        zip_pages: Pages(0),
        zip_room: Pages(0),
        swapped: Pages(0),
        ballooned: Pages(0),
        zero: Pages(0),
        untouched: Pages(size - resident),
        agent_alive: true,
        balloon_max: Pages(size * 65 / 100),
        active: None,
        swap_room: Pages(size),
        swap_failing: false,
    };
    HostSnapshot {
        budget: Pages(100_000),
        used: Pages(97_000),
        state: FreeState::High,
        vms: vec![
            vm(1, 60_000, 1000, 50_000),
            vm(2, 60_000, 2000, 40_000),
            vm(3, 20_000, 1000, 5000),
        ],
        seed: 0,
    }
}

/// Target, balloon target, eviction and reason of each VM.
fn rows(plan: &Plan) -> Vec<(u64, u64, u64, Why)> {
    let row = |vm: &VmPlan| (vm.target.0, vm.balloon_target.0, vm.evict.0, vm.why);
    plan.vms.iter().map(row).collect()
}

#[test]
fn worked_example_soft_balloons_the_vm_above_its_fair_part() {
    let plan = plan(&worked_host(), &Config::default());
    assert_eq!(
        (plan.state, plan.available),
        (FreeState::Soft, Pages(91_600))
    );
    assert_eq!(
        rows(&plan),
        [
            (46_600, 13_400, 0, Why::OverFairPart),
            (40_000, 0, 0, Why::Fits),
            (5000, 0, 0, Why::Fits),
        ]
    );
}

#[test]
fn worked_example_soft_evicts_where_no_balloon_moves() {
    let mut host = worked_host();
    host.vms[0].agent_alive = false;
    let plan = plan(&host, &Config::default());
    assert_eq!(plan.shortfall, Pages(3400));
    assert_eq!(rows(&plan)[0], (46_600, 13_400, 3400, Why::NoBalloon));
}

#[test]
fn worked_example_soft_evicts_what_the_balloon_cannot_hold() {
    let mut host = worked_host();
    host.vms[0].balloon_max = Pages(400);
    let plan = plan(&host, &Config::default());
    assert_eq!(rows(&plan)[0], (46_600, 400, 3000, Why::NoBalloon));
}

#[test]
fn worked_example_hard_evicts_in_proportion_to_where_soft_begins() {
    let mut host = worked_host();
    for (vm, resident) in [(0, 48_000), (1, 43_500)] {
        host.vms[vm].shares = 1000;
        host.vms[vm].resident = Pages(resident);
        host.vms[vm].untouched = Pages(60_000 - resident);
    }
    host.used = Pages(98_500);
    let plan = plan(&host, &Config::default());
    assert_eq!((plan.state, plan.shortfall), (FreeState::Hard, Pages(2900)));
    // The first is 4700 above its part and the second 200: 2900 * 4700 / 4900 = 2781.6.
    assert_eq!(
        rows(&plan),
        [
            (43_300, 16_700, 2782, Why::HostShort),
            (43_300, 16_700, 118, Why::HostShort),
            (5000, 0, 0, Why::Fits),
        ]
    );
}

#[test]
fn worked_example_early_ballooning_starts_in_high() {
    let mut host = worked_host();
    host.vms[0].resident = Pages(48_000);
    host.used = Pages(95_000);
    let plan = plan(&host, &Config::default());
    assert_eq!((plan.state, plan.shortfall), (FreeState::High, Pages(0)));
    assert_eq!(rows(&plan)[0], (46_600, 13_400, 0, Why::OverFairPart));
}

#[test]
fn limit_binds_in_the_high_state() {
    let mut host = worked_host();
    host.budget = Pages(1_000_000);
    host.vms[0].limit = Some(Pages(45_000));
    host.vms[1].limit = Some(Pages(39_000));
    host.vms[1].agent_alive = false;
    let plan = plan(&host, &Config::default());
    assert_eq!(
        rows(&plan),
        [
            (45_000, 15_000, 0, Why::OverLimit),
            (39_000, 21_000, 1000, Why::OverLimit),
            (20_000, 0, 0, Why::Fits),
        ]
    );
}

#[test]
fn shared_pages_count_in_full_and_their_saving_is_available() {
    let mut host = worked_host();
    let vm = &mut host.vms[0];
    (vm.resident, vm.shared, vm.sharing_saved) = (Pages(20_000), Pages(30_000), Pages(3000));
    host.used = Pages(94_000);
    host.state = FreeState::Soft;
    let plan = plan(&host, &Config::default());
    assert_eq!(
        (plan.available, plan.shortfall),
        (Pages(94_600), Pages(400))
    );
    assert_eq!(plan.vms[0].target, Pages(49_600));
}

#[test]
fn low_without_room_to_evict_is_stuck_and_says_so() {
    let mut host = worked_host();
    host.used = host.budget;
    for vm in &mut host.vms {
        vm.swap_failing = true;
    }
    let no_room = plan(&host, &Config::default());
    assert_eq!(
        (no_room.state, no_room.stuck),
        (FreeState::Low, Some(Stuck::NoRoom))
    );
    assert!(no_room.vms[0].blocked && !no_room.vms[2].blocked);

    for vm in &mut host.vms {
        vm.reservation = vm.size;
    }
    let reserved = plan(&host, &Config::default());
    assert_eq!(reserved.stuck, Some(Stuck::Reserved));
    assert!(reserved.vms.iter().all(|vm| !vm.blocked));
}

#[test]
fn admission_counts_reservations_metadata_and_what_stays_free() {
    let mut host = worked_host();
    host.vms[0].reservation = Pages(50_000);
    let config = Config::default();
    let vm = |reservation| VmParams {
        size: Pages(60_000),
        reservation: Pages(reservation),
        limit: None,
        overhead: Pages(100),
    };
    // 100 000 - 50 000 reserved - 2000 metadata - 6400 free = 41 600.
    assert_eq!(admit(&host, &config, &vm(41_500)), Ok(()));
    let refusal = admit(&host, &config, &vm(41_501)).expect_err("one page too many");
    assert!(matches!(
        refusal,
        Refusal::Unreserved {
            unreserved: Pages(41_600),
            ..
        }
    ));
    assert_eq!(
        refusal.to_string(),
        "reservation 162.1 MiB and overhead 400.0 KiB exceed the unreserved 162.5 MiB: of the \
         budget of 390.6 MiB, 195.3 MiB is reserved, 7.8 MiB is metadata and 25.0 MiB stays free"
    );
    let refusal = admit(&host, &config, &vm(60_001)).expect_err("more than its size");
    assert!(matches!(
        refusal,
        Refusal::AboveMax {
            max: Pages(60_000),
            ..
        }
    ));
}
