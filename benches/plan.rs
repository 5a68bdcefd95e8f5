//! How long one plan takes: the policy thread makes four a second, and one more each time that free memory
//! crosses a threshold.
//!
//! ```text
//! cargo bench --bench plan
//! ```

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memvisor::policy::{Config, FreeState, HostSnapshot, IdleTaxType, VmSnapshot, plan};
use memvisor::units::{Pages, VmId};

/// A situation: what of the VMs' memory the budget is, in percent, and the state before.
const SITUATIONS: [(&str, u64, FreeState); 3] = [
    ("undercommitted", 130, FreeState::High),
    ("soft", 97, FreeState::Soft),
    ("hard", 98, FreeState::Hard),
];
const SIZES: [u32; 4] = [10, 100, 1000, 10_000];

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
        id: VmId(id),
        size: Pages(size),
        reservation: percent(numbers.below(4) * 10),
        limit: (numbers.below(8) == 0).then(|| percent(60)),
        shares: u32::try_from((1 + numbers.below(4)) * size / 256).unwrap_or(u32::MAX),
        resident: percent(resident),
        shared: percent(shared),
        sharing_saved: Pages(percent(shared).0 / 2),
        compressed: Pages(0),
        zip_pages: Pages(0),
        zip_room: percent(10),
        swapped: percent(swapped),
        ballooned: percent(ballooned),
        zero: Pages(0),
        untouched: Pages(untouched),
        agent_alive: numbers.below(8) > 0,
        balloon_max: percent(65),
        relief: None,
        active: (numbers.below(8) > 0).then(|| percent(numbers.below(100))),
        swap_room: percent(90),
        swap_failing: false,
        mute: false,
        pressing: false,
    }
}

/// A host whose VMs hold what they hold, and whose budget is `percent` of that but for what is free.
fn host(vms: u32, percent: u64, state: FreeState) -> HostSnapshot {
    let mut numbers = Numbers(7);
    let vms: Vec<VmSnapshot> = (1..=vms).map(|id| vm(id, &mut numbers)).collect();
    let backing: u64 = vms.iter().map(|vm| vm.backing().0).sum();
    let sizes: u64 = vms.iter().map(|vm| vm.size.0).sum();
    let budget = match state {
        FreeState::High => sizes * percent / 100,
        _ => backing * 100 / percent,
    };
    HostSnapshot {
        budget: Pages(budget),
        used: Pages(backing),
        state,
        vms,
        seed: 3,
    }
}

fn plans(criterion: &mut Criterion) {
    let variable = Config {
        min_free_percent: 6,
        ..Config::default()
    };
    let flat = Config {
        idle_tax_type: IdleTaxType::Flat,
        ..variable
    };
    for (situation, percent, state) in SITUATIONS {
        for (tax, config) in [("variable", variable), ("flat", flat)] {
            let mut group = criterion.benchmark_group(format!("{situation}, {tax} tax"));
            for vms in SIZES {
                let host = host(vms, percent, state);
                assert_eq!(plan(&host, &config).state, state);
                group.throughput(Throughput::Elements(u64::from(vms)));
                group.bench_with_input(BenchmarkId::from_parameter(vms), &host, |bencher, host| {
                    bencher.iter(|| plan(black_box(host), &config));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, plans);
criterion_main!(benches);
