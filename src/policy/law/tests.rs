//! Laws one by one, on a guest whose balloon follows with a delay.

mod twentieth;

use std::time::Duration;

use proptest::prelude::*;

use super::super::{FreeState, VmSnapshot};
use super::*;

/// A VM whose balloon follows its target at `pace` pages a plan.
struct Rig {
    vm: VmSnapshot,
    config: Config,
    part: Allotment,
    state: FreeState,
    least: u64,
    most: u64,
    pace: u64,
    /// The part of what the balloon takes that is taken from pages with content, in %.
    gain: u64,
    targets: Vec<u64>,
}

const PLAN_MS: u64 = 250;

impl Rig {
    /// A VM of 10 000 pages that holds 8000 of them.
    fn new(law: &'static dyn Law) -> Self {
        Self {
            vm: VmSnapshot::sample(10_000, 8000),
            config: Config {
                law,
                ..Config::default()
            },
            part: Allotment {
                target: Pages(8000),
                entitled: Pages(8000),
                satisfied: Satisfied::Short,
            },
            state: FreeState::Soft,
            least: 0,
            most: 6500,
            pace: 300,
            gain: 100,
            targets: Vec::new(),
        }
    }

    fn may_hold(&mut self, pages: u64) {
        (self.part.target, self.part.entitled) = (Pages(pages), Pages(pages));
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            vm: &self.vm,
            part: self.part,
            config: &self.config,
            budget: Pages(20_000),
            host_free: Pages(500),
            state: self.state,
            inflates: true,
            least: Pages(self.least),
            most: Pages(self.most),
            elapsed_ms: self.vm.law_since_ms,
        }
    }

    fn plan(&mut self) -> u64 {
        let (target, memory) = follow(&self.seen());
        let vm = &mut self.vm;
        (vm.law, vm.law_since_ms) = (memory, PLAN_MS);
        let before = vm.ballooned.0;
        let now = target
            .0
            .clamp(before.saturating_sub(self.pace), before + self.pace);
        vm.ballooned = Pages(now);
        if now > before {
            let grown = now - before;
            let of_untouched = (grown - grown * self.gain / 100).min(vm.untouched.0);
            let of_resident = (grown - of_untouched).min(vm.resident.0);
            vm.resident.0 -= of_resident;
            vm.untouched.0 -= grown - of_resident;
        } else {
            vm.untouched.0 += before - now;
        }
        self.targets.push(target.0);
        target.0
    }

    fn plans(&mut self, plans: usize) -> u64 {
        for _ in 1..plans {
            self.plan();
        }
        self.plan()
    }

    /// How often the target turned.
    fn turns(&self) -> usize {
        let moves = self.targets.windows(2).map(|pair| pair[1].cmp(&pair[0]));
        let moves: Vec<_> = moves.filter(|way| way.is_ne()).collect();
        moves.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

#[test]
fn each_law_is_found_by_its_own_name_and_the_default_is_esx() {
    assert_eq!(ALL.iter().map(|law| law.name()).collect::<Vec<_>>(), NAMES);
    for law in ALL {
        assert_eq!(named(law.name()), Ok(*law));
        assert!(!law.about().is_empty(), "{law:?}");
    }
    assert_eq!(<&dyn Law>::default().name(), "esx");
    let error = named("pdi").expect_err("none").to_string();
    assert!(
        error.contains("`pdi`; allowed: esx, pid, senpai"),
        "{error}"
    );
}

#[test]
fn pid_takes_what_is_missing_without_turning_back() {
    for gain in [100, 50] {
        let mut rig = Rig::new(&Pid);
        rig.gain = gain;
        rig.may_hold(6000);
        rig.plans(400);
        let missing = rig.vm.resident.0.abs_diff(6000);
        assert!(missing <= 10_000 / 1024, "{gain} %: {missing} pages off");
        assert_eq!(rig.turns(), 0, "{gain} %: {:?}", rig.targets);
        // The balloon holds what brought that, and hardly more.
        let least = 2000 * 100 / gain;
        assert!(
            rig.vm.ballooned.0 <= least + least / 8,
            "{:?}",
            rig.vm.ballooned
        );
    }
}

/// A balloon that does not follow is not asked for ever more, and once it follows nothing has to be unwound.
#[test]
fn pid_does_not_wind_up_while_the_agent_is_stuck() {
    let mut rig = Rig::new(&Pid);
    (rig.pace, rig.gain) = (0, 100);
    rig.may_hold(6000);
    let asked = rig.plans(2000);
    assert_eq!(asked, 2000);
    rig.pace = 300;
    rig.plans(100);
    assert_eq!(rig.vm.ballooned, Pages(2000));
}

/// The release goes on to its end, whatever the balloon does.
#[test]
fn pid_asks_for_all_back_while_the_balloon_does_not_shrink() {
    let mut rig = Rig::new(&Pid);
    rig.state = FreeState::High;
    (rig.vm.ballooned, rig.vm.untouched) = (Pages(2000), Pages(0));
    rig.may_hold(10_000);
    rig.pace = 0;
    assert_eq!(rig.plans(100), 0);
}

#[test]
fn pid_anticipates_a_guest_that_grows() {
    let grown = |derivative| {
        let mut rig = Rig::new(&Pid);
        rig.config.pid_derivative_percent = derivative;
        rig.vm.resident = Pages(8100);
        for _ in 0..4 {
            rig.plan();
            rig.vm.resident.0 += 300;
        }
        rig.plan()
    };
    assert!(grown(100) > grown(0));
}

#[test]
fn senpai_takes_a_hundredth_every_six_seconds_of_a_guest_that_does_not_mind() {
    let mut rig = Rig::new(&Senpai);
    rig.state = FreeState::High;
    assert_eq!(rig.plans(24), 0, "six seconds have not passed");
    assert_eq!(rig.plan(), 100, "1 % of 10 000");
    assert_eq!(rig.plans(24), 199, "1 % of 9900");
    rig.vm.ballooned = Pages(0);
    rig.pace = 0;
    assert_eq!(rig.plans(240), 199, "it waits for the balloon");
}

#[test]
fn senpai_gives_back_by_the_square_of_the_stall_and_at_once_if_it_is_long() {
    let after = |host: u64, guest: u64| {
        let mut rig = Rig::new(&Senpai);
        rig.state = FreeState::High;
        (rig.vm.ballooned, rig.vm.resident) = (Pages(4000), Pages(6000));
        rig.vm.untouched = Pages(0);
        (rig.vm.stall_us_per_s, rig.vm.guest_stall_us_per_s) = (host, guest);
        rig.plans(5)
    };
    assert_eq!(after(10_000, 0), 4000, "10 ms is what it may be");
    // 20 of 10 ms, of 20 times that: a tenth, squared.
    let given = 4000 - after(10_000, 10_000);
    assert!((59..=61).contains(&given), "{given}");
    assert_eq!(after(0, 300_000), 0, "all of it");
}

#[test]
fn senpai_asks_for_what_division_takes_while_the_host_is_short() {
    let mut rig = Rig::new(&Senpai);
    (rig.gain, rig.pace) = (0, 4000);
    rig.may_hold(6000);
    assert_eq!(rig.plan(), 4000);
    rig.vm.guest_stall_us_per_s = 1_000_000;
    assert_eq!(rig.plans(40), 4000, "somebody has to wait");
}

#[test]
fn target_moves_from_the_previous_target_at_the_pace_of_the_law() {
    #[derive(Debug)]
    struct Slow;
    impl Law for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }
        fn about(&self) -> &'static str {
            ""
        }
        fn step(&self, _: &Seen<'_>, _: &mut Memory) -> Step {
            Step {
                target: Pages(9000),
                pace: 400,
            }
        }
    }
    let mut rig = Rig::new(&Slow);
    // The balloon does not follow, and the target goes on.
    rig.pace = 0;
    assert_eq!(rig.plans(11), 1000, "nothing has passed at the first plan");
    assert_eq!(rig.plans(1000), 6500, "its bound");
}

/// The example of the document is this code, and does what the document says.
#[test]
fn law_of_the_document_takes_a_twentieth_of_what_is_free_in_a_second() {
    let code = include_str!("tests/twentieth.rs");
    let code = &code[code.find("impl Law").expect("it is one")..];
    assert!(include_str!("../../../docs/balloon-lab.md").contains(code));
    let mut rig = Rig::new(&twentieth::Twentieth);
    rig.vm.balloon_free = Some(Pages(2000));
    rig.pace = 10_000;
    let second = rig.plans(5);
    assert!((95..=100).contains(&second), "{second}");
    rig.vm.stall_us_per_s = 10_001;
    assert_eq!(rig.plan(), 0);
}

fn any_seen() -> impl Strategy<Value = (VmSnapshot, Config, Allotment, (u64, u64), FreeState)> {
    let number = || prop_oneof![Just(0), 0_u64..20_000, any::<u64>()];
    let homes = proptest::array::uniform5(0_u64..20_000);
    let small = proptest::array::uniform6(prop_oneof![Just(0), 1_u32..100, any::<u32>()]);
    let memory = (
        proptest::option::of(number()),
        any::<i64>(),
        any::<i64>(),
        number(),
    );
    let part = (number(), number(), number(), number());
    let law = prop::sample::select(ALL);
    let state = prop::sample::select(FreeState::ALL.to_vec());
    let rest = (number(), number(), number(), law, state);
    (homes, small, memory, part, rest).prop_map(|(homes, small, memory, part, rest)| {
        let size = homes.iter().sum::<u64>();
        let vm = VmSnapshot {
            resident: Pages(homes[0]),
            shared: Pages(homes[1]),
            swapped: Pages(homes[2]),
            ballooned: Pages(homes[3]),
            untouched: Pages(homes[4]),
            stall_us_per_s: rest.0,
            guest_stall_us_per_s: rest.1,
            law: Memory {
                target: memory.0.map(Pages),
                sum: memory.1,
                last: memory.2,
                waited_ms: memory.3,
            },
            law_since_ms: rest.2,
            ..VmSnapshot::sample(size, 0)
        };
        let config = Config {
            law: rest.3,
            pid_proportional_percent: small[0],
            pid_integral_percent: small[1],
            pid_derivative_percent: small[2],
            senpai_stall_us: small[3],
            senpai_interval: Duration::from_millis(small[4].into()),
            senpai_probe_percent: small[5],
            ..Config::default()
        };
        let part_of = Allotment {
            target: Pages(part.0.min(part.1)),
            entitled: Pages(part.1),
            satisfied: Satisfied::Short,
        };
        let bounds = (part.2.min(part.3), part.2.max(part.3));
        (vm, config, part_of, bounds, rest.4)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whatever it is told: settings that are refused, memories of another law, a guest that lies.
    #[test]
    fn law_stays_within_its_bounds((vm, config, part, bounds, state) in any_seen()) {
        let mut seen = Seen {
            vm: &vm,
            part,
            config: &config,
            budget: Pages(20_000),
            host_free: Pages(500),
            state,
            inflates: true,
            least: Pages(bounds.0),
            most: Pages(bounds.1),
            elapsed_ms: vm.law_since_ms,
        };
        let (target, memory) = follow(&seen);
        prop_assert!((bounds.0..=bounds.1).contains(&target.0), "{target:?}");
        prop_assert_eq!(memory.target, Some(target));
        // And with what it remembers now.
        let next = VmSnapshot { law: memory, ..vm.clone() };
        seen.vm = &next;
        prop_assert!((bounds.0..=bounds.1).contains(&follow(&seen).0.0));
    }

    /// The same conditions for long, and a balloon that follows: the target comes to one number and turns once at most.
    #[test]
    fn target_under_constant_conditions_stands_still(
        law in prop::sample::select(vec![&Esx as &dyn Law, &Pid]),
        may_hold in 3500_u64..10_000,
        pace in 1_u64..2000,
        gain in 30_u64..=100,
        ballooned in 0_u64..2000,
    ) {
        let mut rig = Rig::new(law);
        (rig.pace, rig.gain) = (pace, gain);
        (rig.vm.ballooned, rig.vm.untouched) = (Pages(ballooned), Pages(2000 - ballooned));
        rig.may_hold(may_hold);
        rig.plans(12_000);
        rig.targets.drain(..10_000);
        let last = rig.targets[0];
        prop_assert!(rig.targets.iter().all(|target| *target == last), "{law:?}: {:?}", &rig.targets[..9]);
    }

    /// A guest that stalls while less than it needs is left to it: senpai comes close to that, and stays there.
    #[test]
    fn senpai_finds_what_a_guest_needs(needs in 4000_u64..9000, us in 20_u64..500) {
        let mut rig = Rig::new(&Senpai);
        rig.state = FreeState::High;
        rig.vm.resident = Pages(10_000);
        rig.vm.untouched = Pages(0);
        let mut least = u64::MAX;
        for plan in 0..40_000 {
            let holds = rig.vm.size.0 - rig.vm.ballooned.0;
            rig.vm.guest_stall_us_per_s = needs.saturating_sub(holds) * us;
            rig.plan();
            // The guest fills what it has back.
            rig.vm.resident = rig.vm.size.saturating_sub(rig.vm.ballooned);
            rig.vm.untouched = Pages(0);
            // Within a probe of where it begins to stall, but for what it just gave back.
            if plan > 30_000 {
                least = least.min(holds);
                prop_assert!(holds + holds / 50 >= needs, "{holds} of {needs}");
            }
        }
        prop_assert!(least <= needs + needs / 20, "{least} of {needs}");
    }
}
