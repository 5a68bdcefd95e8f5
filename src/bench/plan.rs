//! How long the policy takes to plan for hosts of many VMs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::report::{Case, Report};
use super::{Bench, BenchError, Setup};
use crate::policy::{Config, Esx, FreeState, HostSnapshot, Policy, VmSnapshot};
use crate::units::{Pages, VmId};

/// The numbers of VMs of the hosts.
const SIZES: [u32; 4] = [10, 100, 1000, 10_000];
/// How long plans for one host are made in a round, at least.
const ROUND: Duration = Duration::from_millis(20);

/// Thresholds by a fixed percentage, as ESX had them before its sliding scale.
fn config() -> Config {
    Config {
        min_free_percent: 6,
        ..Config::default()
    }
}

pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let config = config();
    for vms in SIZES {
        let host = crowd(vms);
        let case = Case::less(Bench::Plan, &format!("{vms} VMs"), "one plan", "us");
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Plan, &format!("{vms} VMs, round {round}"))?;
            let (start, mut plans) = (Instant::now(), 0u32);
            while plans == 0 || start.elapsed() < ROUND {
                black_box(Esx.plan(black_box(&host), &config));
                plans += 1;
            }
            report.ours(
                &case,
                start.elapsed().as_secs_f64() * 1e6 / f64::from(plans),
            );
        }
    }
    Ok(())
}

/// Numbers that look random and are the same in each run (Knuth's linear congruential generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// VMs of 1 to 16 GiB, of all kinds: idle and busy, with and without reservation, limit and agent.
fn vm(id: u32, numbers: &mut Numbers) -> VmSnapshot {
    let size = (1 + numbers.below(16)) << 18;
    let percent = |percent: u64| Pages(size * percent / 100);
    let ballooned = numbers.below(20);
    let swapped = numbers.below(10);
    let shared = numbers.below(20);
    let resident = numbers.below(51);
    let untouched = size
        - [ballooned, swapped, shared, resident]
            .map(|part| percent(part).0)
            .iter()
            .sum::<u64>();
    VmSnapshot {
        reservation: percent(numbers.below(4) * 10),
        limit: (numbers.below(8) == 0).then(|| percent(60)),
        shares: u32::try_from((1 + numbers.below(4)) * size / 256).unwrap_or(u32::MAX),
        resident: percent(resident),
        shared: percent(shared),
        sharing_saved: Pages(percent(shared).0 / 2),
        zip_room: percent(10),
        swapped: percent(swapped),
        ballooned: percent(ballooned),
        untouched: Pages(untouched),
        agent: true,
        agent_alive: numbers.below(8) > 0,
        balloon_max: percent(65),
        active: (numbers.below(8) > 0).then(|| percent(numbers.below(100))),
        swap_room: percent(90),
        ..VmSnapshot::new(VmId(id), Pages(size))
    }
}

/// How much of the host's budget its VMs hold, in percent.
const HELD: u64 = 97;

/// A host of VMs of all kinds in the state `soft`, the same in each run.
fn crowd(vms: u32) -> HostSnapshot {
    let mut numbers = Numbers(7);
    let vms: Vec<VmSnapshot> = (1..=vms).map(|id| vm(id, &mut numbers)).collect();
    let backing: u64 = vms.iter().map(|vm| vm.backing().0).sum();
    HostSnapshot {
        least_free: None,
        budget: Pages(backing * 100 / HELD),
        used: Pages(backing),
        state: FreeState::Soft,
        vms,
        seed: 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowd_is_in_the_state_it_is_made_for() {
        assert_eq!(Esx.plan(&crowd(50), &config()).state, FreeState::Soft);
    }
}
