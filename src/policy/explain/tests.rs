use super::super::*;
use super::*;

/// A host of 100 000 pages with 2000 of metadata and three VMs, the first of which is to give.
fn host() -> HostSnapshot {
    let vm = |id, size, shares, resident, active| VmSnapshot {
        id: VmId(id),
        shares,
        active: Some(Pages(active)),
        ..VmSnapshot::sample(size, resident)
    };
    HostSnapshot {
        least_free: None,
        resource_pools: Vec::new(),
        budget: Pages(100_000),
        used: Pages(97_000),
        state: FreeState::High,
        vms: vec![
            vm(1, 60_000, 1000, 50_000, 10_000),
            vm(2, 60_000, 1000, 40_000, 40_000),
            vm(3, 20_000, 1000, 5000, 5000),
        ],
        seed: 0,
    }
}

fn config() -> Config {
    Config {
        generation: Generation::G2002,
        ..Config::default()
    }
}

fn explained(host: &HostSnapshot, config: &Config, id: u32) -> Explanation {
    let plan = Esx.plan(host, config);
    explain(&Esx, host, config, &plan, VmId(id)).expect("it is there")
}

fn change(explanation: &Explanation, wanted: impl Fn(&Input) -> bool) -> Option<Change> {
    let mut changes = explanation.changes.iter();
    changes.find(|change| wanted(&change.input)).copied()
}

#[test]
fn explanation_has_the_numbers_behind_the_target() {
    let one = explained(&host(), &config(), 1);
    assert_eq!(one.plan.target, Pages(46_600));
    assert_eq!(
        (one.host.state, one.host.shortfall),
        (FreeState::Soft, Pages(3400))
    );
    assert_eq!(
        (one.host.free, one.host.overhead),
        (Pages(3000), Pages(2000))
    );
    assert_eq!(
        (one.host.available, one.host.thresholds.aim),
        (Pages(91_600), Pages(6400))
    );
    assert_eq!(
        (one.memory.allocation, one.memory.untouched),
        (Pages(50_000), Pages(10_000))
    );
    assert_eq!(
        (one.fairness.in_use, one.fairness.idle),
        (Pages(10_000), Pages(40_000))
    );
    assert!(one.fairness.because.contains("by sampling"));
    assert_eq!(
        (one.fairness.demand, one.fairness.headroom),
        (Pages(50_000), Pages(0))
    );
    assert_eq!(
        (one.balloon.cap, one.balloon.bound),
        (Pages(39_000), BalloonBound::Host)
    );
    // What it holds beyond its target is to be swapped as long as the balloon does not hold it.
    assert_eq!(one.plan.swap_target, Pages(3400));
    // 46 600 = 10 000 + (price * 1000 - 10 000) / 4.
    let price = one.host.price.expect("memory is short");
    assert!((price - 156.4).abs() < 0.1, "{price}");
    // 10 000 used and 40 000 idle pages, each of which counts four times.
    assert_eq!(one.fairness.shares_per_page, Some(1000.0 / 170_000.0));
}

#[test]
fn vm_at_its_target_has_the_shares_per_page_that_the_price_says() {
    let mut host = host();
    host.vms[0].resident = Pages(46_601);
    host.used = Pages(93_601);
    host.state = FreeState::Soft;
    let one = explained(&host, &config(), 1);
    let price = one.host.price.expect("memory is short by a page");
    let shares = one.fairness.shares_per_page.expect("it holds pages");
    assert!((shares * price - 1.0).abs() < 0.001, "{shares} and {price}");
}

#[test]
fn vm_of_which_nothing_is_known_has_no_idle_pages() {
    let mut host = host();
    host.vms[0].active = None;
    let one = explained(&host, &config(), 1);
    assert_eq!(
        (one.fairness.in_use, one.fairness.idle),
        (Pages(50_000), Pages(0))
    );
    assert!(one.fairness.because.contains("not known yet"));
    assert_eq!(one.fairness.shares_per_page, Some(1000.0 / 50_000.0));
    host.vms[0].resident = Pages(0);
    assert_eq!(
        explained(&host, &config(), 1).fairness.shares_per_page,
        None
    );
}

#[test]
fn changes_are_what_the_plan_says_when_it_is_so() {
    // The first two hold as much, and both have idle pages; 86 600 are for them.
    let mut host = host();
    let config = config();
    for (vm, active) in [(0, 40_000), (1, 45_000)] {
        host.vms[vm].resident = Pages(46_000);
        host.vms[vm].active = Some(Pages(active));
    }
    host.used = Pages(99_000);
    let one = explained(&host, &config, 1);
    assert_eq!(one.plan.target, Pages(41_425));
    for (input, target) in [
        (Input::Shares(2000), 46_000),
        (Input::Reservation(Pages(46_000)), 46_000),
        (Input::NoTax, 43_300),
    ] {
        let change = change(&one, |wanted| *wanted == input);
        let change = change.expect("it makes a difference");
        assert_eq!(change.target, Some(Pages(target)), "{input}");
    }
    let mut richer = host.clone();
    richer.vms[0].shares = 2000;
    let then = Esx.plan(&richer, &config).vms[0];
    let richer = change(&one, |input| *input == Input::Shares(2000)).expect("as before");
    assert_eq!(richer.target, Some(then.target));
    assert_eq!(richer.balloon_target, Some(then.balloon_target));
    // The third has all it wants, whatever it is given.
    let three = explained(&host, &config, 3);
    assert!(matches!(
        three.changes[..],
        [Change {
            input: Input::Free { .. },
            target: None,
            ..
        }]
    ));
}

#[test]
fn limit_and_agent_are_told_where_they_are_the_reason() {
    let mut host = host();
    host.budget = Pages(1_000_000);
    host.vms[0].limit = Some(Pages(45_000));
    host.vms[0].agent_alive = false;
    let one = explained(&host, &config(), 1);
    assert_eq!(
        (one.plan.why, one.plan.evict),
        (Why::OverLimit, Pages(4096))
    );
    let unlimited = change(&one, |input| *input == Input::NoLimit).expect("it is limited");
    assert_eq!(
        (unlimited.target, unlimited.evict),
        (Some(Pages(60_000)), Some(Pages(0)))
    );
    let alive = change(&one, |input| *input == Input::AgentAlive).expect("it would balloon");
    assert_eq!((alive.evict, alive.target), (Some(Pages(0)), None));
    assert_eq!(
        alive.to_string(),
        "with a balloon agent that moves, evicted now 0 B"
    );
}

#[test]
fn free_memory_that_is_missing_is_what_the_state_needs() {
    let host = host();
    let one = explained(&host, &config(), 1);
    let free = change(&one, |input| matches!(input, Input::Free { .. })).expect("it is soft");
    let state = FreeState::High;
    assert_eq!(
        free.input,
        Input::Free {
            pages: Pages(3400),
            state
        }
    );
    let thresholds = Thresholds::of(host.budget, &config());
    for (free, expected) in [(6399, FreeState::Soft), (6400, FreeState::High)] {
        assert_eq!(
            next_state(FreeState::Soft, Pages(free), &thresholds),
            expected
        );
    }
}

#[test]
fn host_with_memory_to_spare_has_nothing_to_change_and_no_price() {
    let mut host = host();
    host.budget = Pages(1_000_000);
    let one = explained(&host, &config(), 1);
    assert_eq!(one.changes, []);
    assert_eq!(one.host.price, None);
    assert_eq!(one.plan.why, Why::Fits);
}

#[test]
fn vm_without_shares_is_told_what_shares_would_give_it() {
    let mut host = host();
    host.budget = Pages(1_000_000);
    host.vms[0].shares = 0;
    let one = explained(&host, &config(), 1);
    assert_eq!((one.plan.target, one.memory.max), (Pages(0), Pages(0)));
    assert_eq!(one.plan.why, Why::NoShares);
    let shares = change(&one, |input| matches!(input, Input::Shares(2340)));
    assert_eq!(shares.expect("10 for each MiB").target, Some(Pages(60_000)));
}

#[test]
fn explanation_survives_json_and_strangers_have_none() {
    let one = explained(&host(), &config(), 1);
    let json = serde_json::to_string(&one).expect("plain data");
    let back: Explanation = serde_json::from_str(&json).expect("own output");
    assert_eq!(back, one);
    let plan = Esx.plan(&host(), &config());
    assert_eq!(explain(&Esx, &host(), &config(), &plan, VmId(9)), None);
    let mut fewer = plan.clone();
    fewer.vms.clear();
    assert_eq!(explain(&Esx, &host(), &config(), &fewer, VmId(1)), None);
}

#[test]
fn bound_of_a_balloon_is_the_least_of_three() {
    let mut vm = VmSnapshot::sample(1000, 0);
    let config = Config::default();
    assert_eq!(
        balloon::bound(&vm, &config),
        (Pages(650), BalloonBound::Host)
    );
    vm.balloon_max = Pages(600);
    assert_eq!(balloon::bound(&vm, &config), (Pages(600), BalloonBound::Vm));
    vm.reservation = Pages(500);
    assert_eq!(
        balloon::bound(&vm, &config),
        (Pages(500), BalloonBound::Reservation)
    );
}

/// The numbers of one policy are not those of another.
#[test]
fn each_policy_is_explained_by_its_own_numbers() {
    let mut host = host();
    host.vms[0].active = Some(Pages(20_000));
    host.vms[0].stall_us_per_s = 20_000;
    host.vms[0].swapped = Pages(10_000);
    let config = config();
    for (name, in_use, tax_percent) in [
        ("esx", 20_000, 75),
        ("equal", 50_000, 0),
        // 20 000 us/s for 10 000 pages are 2 us/s for each, the best: four fifths of 60 000 pages.
        ("stall", 48_000, 75),
    ] {
        let policy = policies::named(name).expect("it is one");
        let plan = policy.plan(&host, &config);
        let one = explain(policy, &host, &config, &plan, VmId(1)).expect("it is there");
        assert_eq!((one.host.policy.as_str(), one.plan), (name, plan.vms[0]));
        let part = one.fairness;
        assert_eq!(
            (part.in_use, part.tax_percent),
            (Pages(in_use), tax_percent),
            "{name}"
        );
        let change = one
            .changes
            .iter()
            .find(|change| change.input == Input::NoTax);
        assert!(change.is_none() || tax_percent > 0, "{name}: {change:?}");
    }
}
