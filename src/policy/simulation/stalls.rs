//! The policy `stall` in the loop: memory goes to the guest that touches what it lost, and then stays where it is.

use super::*;
use crate::policy::policies::{Equal, Stall};

/// Two guests with equal shares and without balloons on a host for little more than half of them: one wants back what
/// it lost, `refault` pages a round, as long as less than `active` of its pages are there; the other wants nothing.
fn host(policy: &'static dyn Policy, refault: u64, active: u64) -> Host {
    let guests = [(refault, active), (0, 0)].map(|(refault, active)| {
        let mut guest = Guest::grown(10_000, 8000, active);
        guest.vm.agent_alive = false;
        guest.refault = refault;
        guest
    });
    let mut host = Host::new(12_000 + METADATA, guests.to_vec());
    host.policy = policy;
    for guest in &mut host.guests {
        guest.vm.resident = Pages(5500);
        guest.vm.swapped = Pages(2500);
        guest.vm.swap_room = Pages(7500);
    }
    host
}

fn held(host: &Host) -> [u64; 2] {
    [0, 1].map(|at| host.guests[at].vm.allocation().0)
}

#[test]
fn memory_goes_to_the_guest_that_waits_for_it_and_rests_there() {
    let mut stall = host(&Stall, 60, 7500);
    stall.steps(800);
    let [busy, idle] = held(&stall);
    assert!(busy >= 7400 && idle <= 4000, "{busy} {idle}");
    stall.assert_rests();
    assert_eq!(held(&stall), [busy, idle]);

    let mut equal = host(&Equal, 60, 7500);
    equal.steps(800);
    let [busy, idle] = held(&equal);
    assert!(busy.abs_diff(idle) < 600, "{busy} {idle}");
}

/// A guest that wants more than it can be given waits for ever. Its target must come to one number all the same.
#[test]
fn targets_stand_still_while_a_guest_goes_on_waiting() {
    for refault in [5, 20, 60, 200, 1000] {
        let mut host = host(&Stall, refault, 10_000);
        host.steps(1200);
        let targets: Vec<u64> = (0..400).map(|_| host.step().vms[0].target.0).collect();
        let (least, most) = (targets.iter().min(), targets.iter().max());
        let (least, most) = (least.expect("some"), most.expect("some"));
        assert!(most - least <= 10_000 / 50, "{refault}: {least} to {most}");
    }
}

/// However long it waits, a guest takes no more from the other than the tax allows.
#[test]
fn shares_are_a_floor() {
    let mut host = host(&Stall, 1000, 10_000);
    host.guests[0].vm.size = Pages(40_000);
    host.guests[0].vm.swapped = Pages(34_500);
    for round in 0..800 {
        let plan = host.step();
        let part = plan.available.0 / 2;
        assert!(plan.vms[1].target.0 >= part / 4, "round {round}: {plan:?}");
    }
}

/// A guest that wrote much and works on a part of it, against one that wants everything back as often: by what
/// its pages cost on average, it deserves no more than the other.
#[test]
fn memory_goes_to_the_guest_whose_pages_come_back_early() {
    let held_after = |early| {
        let mut host = host(&Stall, 60, 10_000);
        host.guests
            .iter_mut()
            .for_each(|guest| guest.sampled = false);
        let worker = &mut host.guests[1];
        worker.early = early;
        worker.refault = 60;
        worker.vm.active = Some(Pages(7500));
        worker.vm.size = Pages(60_000);
        worker.vm.swapped = Pages(44_500);
        worker.vm.untouched = Pages(10_000);
        host.steps(800);
        let targets: Vec<u64> = (0..400).map(|_| host.step().vms[1].target.0).collect();
        let most = targets.iter().max().expect("some");
        assert!(targets.iter().all(|target| most - target <= 10_000 / 50));
        held(&host)
    };
    let [_, worker] = held_after(false);
    let [_, early] = held_after(true);
    assert!(early >= worker + 500, "{early} instead of {worker}");
}
