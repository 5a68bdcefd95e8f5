//! How long one plan takes: the policy thread makes four a second, and one more each time that free memory
//! crosses a threshold.
//!
//! ```text
//! cargo bench --bench plan
//! ```

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memvisor::bench::plan::crowd;
use memvisor::policy::{Config, Esx, FreeState, IdleTaxType, Policy};

/// Name, percent and state of each situation, as [`crowd`] takes them.
const SITUATIONS: [(&str, u64, FreeState); 3] = [
    ("undercommitted", 130, FreeState::High),
    ("soft", 97, FreeState::Soft),
    ("hard", 98, FreeState::Hard),
];
const SIZES: [u32; 4] = [10, 100, 1000, 10_000];

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
                let host = crowd(vms, percent, state);
                assert_eq!(Esx.plan(&host, &config).state, state);
                group.throughput(Throughput::Elements(u64::from(vms)));
                group.bench_with_input(BenchmarkId::from_parameter(vms), &host, |bencher, host| {
                    bencher.iter(|| Esx.plan(black_box(host), &config));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, plans);
criterion_main!(benches);
