//! How long the policy takes to plan for hosts of many VMs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::report::{Case, Report};
use super::{Bench, BenchError, Setup};
use crate::policy::{
    Config, Esx, FreeState, HostSnapshot, NORMAL_POOL_SHARES, Policy, ROOT, ResourcePool,
    VmSnapshot,
};
use crate::units::{Pages, VmId};

/// The numbers of VMs of the hosts.
const SIZES: [u32; 4] = [10, 100, 1000, 10_000];
/// VMs, and resource pools that these are in.
const POOLED: (u32, usize) = (1000, 100);
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
    let flat = SIZES.map(|vms| (format!("{vms} VMs"), crowd(vms)));
    let (vms, pools) = POOLED;
    let pooled = (
        format!("{vms} VMs in {pools} pools"),
        in_pools(crowd(vms), pools),
    );
    for (name, host) in flat.into_iter().chain([pooled]) {
        let case = Case::less(Bench::Plan, &name, "one plan", "us");
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Plan, &format!("{name}, round {round}"))?;
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
        resource_pools: Vec::new(),
        budget: Pages(backing * 100 / HELD),
        used: Pages(backing),
        state: FreeState::Soft,
        vms,
        seed: 3,
    }
}

/// The host with its VMs in a tree of so many pools, of all kinds, three levels deep.
fn in_pools(host: HostSnapshot, pools: usize) -> HostSnapshot {
    let mut numbers = Numbers(11);
    let held: u64 = host.vms.iter().map(|vm| vm.allocation().0).sum();
    let each = held / pools as u64;
    let pool = |at: usize| ResourcePool {
        name: format!("pool{at}"),
        parent: if at < 10 { ROOT } else { at / 10 },
        shares: NORMAL_POOL_SHARES,
        reservation: Pages(each * numbers.below(3) / 10),
        limit: (at >= 10 && numbers.below(8) == 0).then_some(Pages(each)),
        expandable: true,
        scalable: numbers.below(4) == 0,
    };
    let list: Vec<ResourcePool> = (0..pools).map(pool).collect();
    let vms = host.vms.into_iter().enumerate().map(|(at, vm)| VmSnapshot {
        resource_pool: at % pools,
        ..vm
    });
    HostSnapshot {
        vms: vms.collect(),
        resource_pools: list,
        ..host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_the_crowd_are_a_tree_in_which_shares_and_limits_decide() {
        let host = in_pools(crowd(200), 20);
        let plan = Esx.plan(&host, &config());
        assert_eq!(plan.state, FreeState::Soft);
        assert_eq!(plan.pools.len(), 20);
        let short = plan.pools.iter().filter(|pool| pool.price.is_some());
        assert!(short.count() > 5, "{:?}", plan.pools);
        let inner = host
            .resource_pools
            .iter()
            .filter(|pool| pool.parent != ROOT);
        assert_eq!(inner.count(), 10);
    }

    #[test]
    fn crowd_is_in_the_state_it_is_made_for() {
        assert_eq!(Esx.plan(&crowd(50), &config()).state, FreeState::Soft);
    }
}
