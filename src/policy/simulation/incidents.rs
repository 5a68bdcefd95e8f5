//! What balloon controllers have done to guests elsewhere, and must not happen here.
//!
//! Each comment tells an incident that was reported of some other controller: a loop that looked right and
//! hurt guests for minutes or hours. The name of the test says what happens here instead.

use super::*;

/// Three guests on 14 000 pages in one generation: an idle one, a busy one that uses all it holds, and
/// one that grows.
fn idle_busy_growing(generation: Generation) -> Host {
    let idle = Guest::grown(10_000, 7000, 500);
    let busy = Guest::grown(5000, 4000, 4000);
    let mut growing = Guest::grown(5000, 500, 4000);
    (growing.wants, growing.growth) = (4000, 15);
    let mut host = Host::new(14_000, vec![idle, busy, growing]);
    host.config = Config {
        generation,
        balloon_max_percent: 99,
        ..Config::default()
    };
    host
}

/// A guest was shrunk without regard to what it used, and spun in reclaim at 1590 % CPU for 18 hours, while
/// others held memory that they did not use.
#[test]
fn busy_guest_is_not_ballooned_while_another_holds_idle_memory() {
    for generation in Generation::ALL {
        let mut host = idle_busy_growing(generation);
        for _ in 0..600 {
            let plan = host.step();
            for busy in [1, 2] {
                let VmPlan {
                    balloon_target,
                    evict,
                    ..
                } = plan.vms[busy];
                assert_eq!(
                    (balloon_target, evict),
                    (Pages(0), Pages(0)),
                    "{generation}"
                );
            }
        }
        host.assert_rests();
        let [idle, busy, grown] = [0, 1, 2].map(|vm: usize| &host.guests[vm].vm);
        assert_eq!((busy.resident, grown.resident), (Pages(4000), Pages(4000)));
        assert!(
            idle.ballooned > Pages(4000) && idle.resident >= Pages(4500),
            "{idle:?}"
        );
    }
}

/// The other half of that incident: the guest had asked for relief, and was pressed further.
#[test]
fn guest_that_asked_for_relief_is_pressed_no_further() {
    let mut host = hungry();
    host.config.generation = Generation::G50;
    for guest in &mut host.guests {
        (guest.growth, guest.pace, guest.untouched_first) = (30, 45, false);
    }
    while host.guests[0].vm.ballooned <= Pages(200) {
        host.step();
    }
    let most = Pages(host.guests[0].vm.ballooned.0 - 100);
    host.guests[0].vm.relief = Some(most);
    for guest in &mut host.guests {
        guest.growth = 0;
    }
    for _ in 0..40 {
        let plan = host.step();
        assert!(plan.state <= FreeState::Soft, "others give");
        assert!(plan.vms[0].balloon_target <= most);
        assert_eq!(plan.vms[0].evict, Pages(0), "nor is it swapped instead");
    }
    assert!(host.guests[0].vm.ballooned <= most);
    host.guests[0].vm.relief = None;
    assert!(host.step().vms[0].balloon_target > Pages(5000));
    // A host that is short itself has no relief to give.
    host.guests[0].vm.relief = Some(Pages(0));
    host.budget -= host.free() - 200;
    let short = host.step();
    assert_eq!(short.state, FreeState::Hard);
    assert!(short.vms[0].balloon_target > Pages(0));
}

/// A formula for idle memory took all that a guest had available, gave it back, and took it again: in each
/// such cycle the guest had nothing for 98 seconds.
#[test]
fn idle_guest_is_not_emptied_and_does_not_swing() {
    for generation in Generation::ALL {
        for idle_tax_type in [IdleTaxType::Flat, IdleTaxType::Variable] {
            let idle = Guest::grown(10_000, 7000, 0);
            let mut busy = Guest::grown(10_000, 5000, 9000);
            (busy.wants, busy.growth) = (9000, 20);
            let mut host = Host::new(14_000, vec![idle, busy]);
            host.config = Config {
                generation,
                idle_tax_type,
                ..Config::default()
            };
            let mut held = host.guests[0].vm.allocation();
            for _ in 0..600 {
                host.step();
                let now = host.guests[0].vm.allocation();
                assert!(now <= held, "it was given back what is then taken again");
                held = now;
            }
            host.assert_rests();
            // Of an even part of 6450 pages the tax leaves an idle guest more than a quarter.
            assert!(held > Pages(6450 / 4), "{generation}: {held:?}");
        }
    }
}

/// Moves the balloon of the first VM towards its target a little at a time, with a guest that touches
/// nothing. Returns the targets that the balloon was given until it arrived.
fn targets_on_the_way(host: &HostSnapshot, config: &Config, step: u64) -> Vec<u64> {
    let mut host = host.clone();
    let mut targets = Vec::new();
    loop {
        let plan = Esx.plan(&host, config);
        let (target, vm) = (plan.vms[0].balloon_target, &mut host.vms[0]);
        targets.push(target.0);
        if target == vm.ballooned || targets.len() > 1000 {
            return targets;
        }
        let back = vm.ballooned.saturating_sub(target).0.min(step);
        vm.ballooned.0 -= back;
        vm.untouched.0 += back;
        let more = target.saturating_sub(vm.ballooned).0.min(step);
        let untouched = more.min(vm.untouched.0);
        vm.ballooned.0 += more;
        vm.untouched.0 -= untouched;
        vm.resident.0 -= more - untouched;
        host.used.0 -= more - untouched;
        host.state = plan.state;
    }
}

/// Each target was computed from the size that the balloon had reached, so a release that got stuck
/// half way stayed there for ten minutes.
#[test]
fn balloon_that_moves_a_little_keeps_its_target() {
    let vm = |id, ballooned, resident, shares| VmSnapshot {
        id: VmId(id),
        shares,
        ballooned: Pages(ballooned),
        untouched: Pages(0),
        ..VmSnapshot::sample(ballooned + resident, resident)
    };
    let host = |budget, vms: Vec<VmSnapshot>| {
        let used = METADATA + vms.iter().map(|vm| vm.backing().0).sum::<u64>();
        HostSnapshot {
            least_free: None,
            resource_pools: Vec::new(),
            budget: Pages(budget),
            used: Pages(used),
            state: FreeState::High,
            vms,
            seed: 0,
        }
    };
    let config = Config::default();
    let swapped = VmSnapshot {
        resident: Pages(3000),
        swapped: Pages(2000),
        ..vm(1, 5000, 5000, 1000)
    };
    for step in [1, 7, 50] {
        let swapped = swapped.clone();
        for (what, host, expected) in [
            // All balloons can be returned.
            ("all", host(100_000, vec![vm(1, 5000, 5000, 1000)]), 0),
            // Demands are met, and each may hold half of 18 514.
            (
                "part",
                host(
                    20_000,
                    vec![vm(1, 5000, 5000, 1000), vm(2, 5000, 5000, 1000)],
                ),
                743,
            ),
            // Demands are met, but others have more shares: a tenth of its size is returned, for its
            // guest will want some of what is swapped.
            (
                "headroom",
                host(13_100, vec![swapped, vm(2, 5000, 5000, 1_000_000)]),
                4000,
            ),
            // Memory is short, but this guest is below its part and has less room than a tenth.
            (
                "short",
                host(20_000, vec![vm(1, 300, 3700, 9000), vm(2, 0, 15_000, 1000)]),
                0,
            ),
            // Memory is short by 986 of 18 514 pages, and only this guest is above its part.
            (
                "taken",
                host(20_000, vec![vm(1, 0, 18_000, 1000), vm(2, 0, 1500, 1000)]),
                986,
            ),
        ] {
            let targets = targets_on_the_way(&host, &config, step);
            assert!(
                targets.iter().all(|target| *target == expected),
                "{what}: {targets:?}"
            );
            let moves = targets.len() as u64 - 1;
            assert!(moves >= 300 / step, "{what}: it was on its way");
        }
    }
}

/// When one guest wanted memory the controller shrank all guests to their least, even those that
/// were short.
#[test]
fn guest_with_demand_below_its_part_grows_while_others_are_asked() {
    for generation in Generation::ALL {
        let mut host = hungry();
        host.config.generation = generation;
        (host.guests[0].wants, host.guests[0].growth) = (3000, 10);
        for guest in &mut host.guests[1..] {
            (guest.growth, guest.untouched_first) = (30, false);
        }
        let mut held = Pages(0);
        for _ in 0..400 {
            let plan = host.step();
            let wanting = &host.guests[0].vm;
            assert_eq!(
                (plan.vms[0].balloon_target, plan.vms[0].evict),
                (Pages(0), Pages(0))
            );
            let growing = wanting.resident >= Pages(held.0 + 10);
            assert!(
                growing || wanting.resident == Pages(3000),
                "{generation}: {wanting:?}"
            );
            held = wanting.resident;
        }
        host.assert_rests();
        for other in &host.guests[1..] {
            assert!(other.vm.ballooned > Pages(0));
            assert!(other.vm.resident > Pages(3000), "none goes to its least");
        }
    }
}

/// A balloon gave a page now and then, which counted as progress: the host stayed short for minutes.
#[test]
fn balloon_that_crawls_is_waited_for_no_longer_than_what_it_brings_takes() {
    for generation in Generation::ALL {
        // Soft, 500 pages short of its end.
        let held = (14_000 - METADATA - 400) / 3;
        let mut guest = Guest::grown(10_000, held, held);
        (guest.growth, guest.refault) = (0, 0);
        (guest.pace, guest.untouched_first) = (1, false);
        guest.vm.balloon_brings = Some(Pages(40));
        let mut host = Host::new(14_000, vec![guest; 3]);
        host.config.generation = generation;
        let (first, last) = (host.step(), host.steps(60));
        assert_eq!(first.state, FreeState::Soft, "{generation}");
        assert!(!last.state.is_short(), "{generation}: {last:?}");
        let taken: u64 = host.guests.iter().map(|guest| guest.vm.swapped.0).sum();
        let brought: u64 = host.guests.iter().map(|guest| guest.vm.ballooned.0).sum();
        // What the balloons bring in time is not evicted.
        assert!(
            taken >= 300 && brought >= 90,
            "{generation}: {taken}, {brought}"
        );
    }
}

/// A balloon could not deflate and hung, together with its guest, and the host waited for it.
#[test]
fn guest_whose_agent_stops_is_swapped_and_ballooned_again_when_it_moves() {
    for generation in Generation::ALL {
        let mut host = hungry();
        host.config.generation = generation;
        for guest in &mut host.guests {
            guest.untouched_first = false;
        }
        host.steps(12);
        let ballooned = host.guests[0].vm.ballooned;
        host.guests[0].vm.agent_alive = false;
        let mut asked = Pages(0);
        for _ in 0..300 {
            asked = asked.max(host.step().vms[0].swap_target);
        }
        assert!(
            host.state <= FreeState::Soft,
            "{generation}: it is not waited for"
        );
        let swapped = host.guests[0].vm.swapped;
        assert_eq!(host.guests[0].vm.ballooned, ballooned);
        assert!(swapped > Pages(0), "{generation}");
        assert!(asked > Pages(0), "{generation}");
        host.guests[0].vm.agent_alive = true;
        host.steps(600);
        host.assert_rests();
        assert!(
            host.guests[0].vm.ballooned > ballooned,
            "{generation}: it balloons again"
        );
        assert_eq!(host.step().vms[0].swap_target, Pages(0), "{generation}");
        assert!(host.guests[0].vm.swapped < swapped, "{generation}");
    }
}
