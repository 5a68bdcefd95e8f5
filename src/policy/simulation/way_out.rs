//! From every state there is a way out: whatever the guests hold and wherever it is, a host that is short
//! gets enough free memory, or gives a reason that an operator can see and remove.

use super::*;

/// Any settings within their ranges.
fn any_config() -> impl Strategy<Value = Config> {
    let free = (0_u32..=50, 10_u32..=25);
    let balloons = (0_u32..=99, 1_u32..=100);
    (config(), free, balloons, 0_u32..=99, 1_u64..=4096).prop_map(
        |(config, free, balloons, idle_tax_percent, evict_round)| Config {
            min_free_percent: free.0,
            margin_percent: free.1,
            balloon_max_percent: balloons.0,
            headroom_percent: balloons.1,
            idle_tax_percent,
            evict_round: Pages(evict_round),
            ..config
        },
    )
}

/// A guest whose memory is anywhere, and that touches nothing. Its cache may hold all of it.
fn any_guest() -> impl Strategy<Value = Guest> {
    let homes = proptest::array::uniform6(prop_oneof![Just(0), 0_u64..3000]);
    let cache = prop_oneof![Just(100), 0_u64..=100];
    let swap = prop_oneof![3 => Just(10_000_u64), 1 => 0_u64..3000];
    let stores = (cache, any::<bool>(), swap, prop::bool::weighted(0.2));
    let agent = (any::<bool>(), 1_u64..500, any::<bool>());
    let rules = (
        0_u64..=60,
        prop::option::of(10_u64..=100),
        prop_oneof![1 => Just(0), 5 => 1_u32..4000],
    );
    let active = prop::option::of(0_u64..=100);
    (homes, stores, agent, rules, active).prop_map(|(homes, stores, agent, rules, active)| {
        let [resident, compressed, swapped, ballooned, zero, untouched] = homes;
        let size = homes.iter().sum::<u64>();
        let mut guest = Guest::new(size, rules.2, 0);
        let vm = &mut guest.vm;
        vm.resident = Pages(resident);
        vm.compressed = Pages(compressed);
        vm.zip_pages = Pages(compressed.div_ceil(2));
        vm.swapped = Pages(swapped);
        vm.ballooned = Pages(ballooned);
        vm.zero = Pages(zero);
        vm.untouched = Pages(untouched);
        vm.limit = rules.1.map(|percent| Pages(size * percent / 100));
        vm.reservation = Pages(size * rules.0 / 100);
        vm.active = active.map(|percent| Pages(size * percent / 100));
        vm.swap_room = Pages(stores.2).min(Pages(size - swapped));
        vm.swap_failing = stores.3;
        vm.agent_alive = agent.0;
        vm.balloon_brings = agent.2.then_some(Pages(4 * agent.1));
        (guest.pace, guest.untouched_first) = (agent.1, agent.2);
        guest.zip_max = (size * stores.0 / 100).max(vm.zip_pages.0);
        guest.compresses = stores.1;
        (guest.growth, guest.refault) = (0, 0);
        guest
    })
}

/// The most plans that it may take: evictions are bounded by rounds, and balloons by their pace.
fn patience(host: &Host) -> u64 {
    let pages: u64 = host.guests.iter().map(|guest| guest.vm.size.0).sum();
    let slowest = host
        .guests
        .iter()
        .map(|guest| guest.pace)
        .min()
        .unwrap_or(1);
    // Evicting a page into a cache frees only half a page of memory, and each state on the way up takes a step.
    100 + 8 * pages / host.config.evict_round.0 + 2 * pages / slowest
}

/// Asserts that nothing can be taken indeed: a VM above its target (in a state that swaps, above its
/// reservation) has no place to put what it could give.
fn assert_reason_holds(host: &Host, plan: &Plan) {
    assert!(
        plan.stuck.is_some(),
        "it neither moves nor says why: {plan:?}"
    );
    for (vm, of) in host.snapshot().vms.iter().zip(&plan.vms) {
        let floor = if plan.mechanisms.swap {
            vm.min()
        } else {
            of.target
        };
        let has_room = !vm.swap_failing && vm.swap_room > Pages(0);
        let could_give = has_room && vm.allocation() > floor;
        assert!(!could_give, "{vm:?} could give: {plan:?}");
    }
}

/// All memory of all guests is in their caches, which may hold all of it: nothing is resident, and the
/// caches take up all of the host. Their oldest pages go to swap.
#[test]
fn host_whose_memory_is_all_in_caches_comes_out_of_low() {
    for generation in [Generation::G41, Generation::G50, Generation::G60] {
        let mut guest = Guest::new(10_000, 1000, 0);
        guest.vm.untouched = Pages(1000);
        guest.vm.compressed = Pages(9000);
        guest.vm.zip_pages = Pages(4500);
        guest.vm.agent_alive = false;
        (guest.zip_max, guest.growth, guest.refault) = (10_000, 0, 0);
        let mut host = Host::new(METADATA + 4 * 4500 + 20, vec![guest; 4]);
        host.config.generation = generation;
        let first = host.step();
        assert_eq!(
            (first.state, first.stuck),
            (FreeState::Low, None),
            "{generation}"
        );
        host.steps(40);
        host.assert_rests();
        assert!(host.guests.iter().all(|guest| guest.vm.swapped > Pages(0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn short_host_gets_its_memory_back_or_says_why_not(
        guests in proptest::collection::vec(any_guest(), 1..6),
        config in any_config(),
        free in 0_u64..=20,
        state in prop::sample::select(FreeState::ALL.to_vec()),
    ) {
        let held: u64 = guests.iter().map(|guest| guest.vm.backing().0).sum();
        let mut host = Host::new(METADATA + held + 1 + held * free / 100, guests);
        (host.config, host.state) = (config, state);
        let most = patience(&host);
        let mut plan = host.step();
        // What did not compress is tried again now and then. Until it has been, the plan counts on it.
        while plan.shortfall > Pages(0) && (host.round < most || plan.stuck.is_none()) {
            plan = host.step();
            prop_assert!(host.round < most + RETRY, "it neither moves nor says why: {plan:?}");
        }
        if plan.shortfall > Pages(0) {
            assert_reason_holds(&host, &plan);
        }
    }
}
