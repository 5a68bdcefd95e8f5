//! VMs under the resource pools that they are in, with the sums of each pool.

use std::cmp::Ordering;

use super::config::Config;
use super::fields::{Numbers, Unit, VM, place};
use super::sample::{Sample, VmSample};
use crate::telemetry::PoolStatus;

/// A resource pool at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct PoolSample {
    /// Its name.
    pub(super) name: String,
    /// The pool that it stands in, by its place among those of the sample; the root stands in itself.
    pub(super) parent: usize,
    /// For each of [`VM`] its own number, or the sum of those of the VMs in it and in pools in it.
    pub(super) numbers: Numbers,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    /// A pool, so many pools deep.
    Pool(usize, &'a PoolSample),
    /// A VM, so many pools deep.
    Vm(usize, &'a VmSample),
}

/// A number that a pool has by itself, in the unit of its field.
type Own = fn(&PoolStatus) -> Option<f64>;

/// Fields that a pool has by itself: those of VMs do not add up to them.
const OWN: [(usize, Own); 3] = [
    (place(VM, "AMIN"), |pool| {
        Some(mib(pool.reservation_pages.0))
    }),
    (place(VM, "AMAX"), |pool| {
        pool.limit_pages.map(|limit| mib(limit.0))
    }),
    (place(VM, "ASHRS"), |pool| {
        Some(f64::from(pool.counted_shares))
    }),
];

#[expect(clippy::cast_precision_loss, reason = "people read it")]
fn mib(pages: u64) -> f64 {
    pages as f64 / 256.0
}

/// The pools of a status, the root first and each after its parent. `plain` makes a text safe for a terminal.
pub(super) fn pools(
    of: &[PoolStatus],
    vms: &[VmSample],
    plain: fn(&str) -> String,
) -> Vec<PoolSample> {
    let parent = |pool: &PoolStatus| {
        let parent = pool.parent.as_ref()?;
        of.iter().position(|known| known.name == *parent)
    };
    let mut pools: Vec<PoolSample> = of
        .iter()
        .map(|pool| PoolSample {
            name: plain(&pool.name),
            parent: parent(pool).unwrap_or(0),
            numbers: vec![None; VM.len()],
        })
        .collect();
    for vm in vms {
        let mut at = home(vm, &pools);
        while let Some(pool) = pools.get_mut(at) {
            add(&mut pool.numbers, &vm.numbers);
            at = if at == 0 { usize::MAX } else { pool.parent };
        }
    }
    for (pool, of) in pools.iter_mut().zip(of).skip(1) {
        for (field, own) in OWN {
            pool.numbers[field] = own(of);
        }
    }
    pools
}

/// The place of the pool that a VM is in.
fn home(vm: &VmSample, pools: &[PoolSample]) -> usize {
    let found = pools.iter().position(|pool| pool.name == vm.pool);
    found.unwrap_or(0)
}

fn add(sums: &mut Numbers, numbers: &Numbers) {
    for ((sum, number), field) in sums.iter_mut().zip(numbers).zip(VM) {
        if let Some(number) = number.filter(|_| adds_up(field.unit)) {
            *sum = Some(sum.unwrap_or(0.0) + number);
        }
    }
}

const fn adds_up(unit: Unit) -> bool {
    matches!(unit, Unit::Memory | Unit::Speed | Unit::Stall | Unit::Count)
}

/// The rows in the order in which they are shown: VMs alone, or each below its pool.
pub(super) fn rows<'a>(sample: &'a Sample, config: &Config) -> Vec<Row<'a>> {
    let mut vms: Vec<&VmSample> = sample.vms.iter().collect();
    vms.sort_by(|a, b| {
        let order = match config.sort {
            None => a.id.cmp(&b.id),
            Some(field) => greatest_first(a.number(field), b.number(field)),
        };
        turned(order, config).then_with(|| a.id.cmp(&b.id))
    });
    if !config.pools || sample.pools.is_empty() {
        return vms.into_iter().map(|vm| Row::Vm(0, vm)).collect();
    }
    let mut rows = Vec::new();
    below(0, 0, (sample, config, &vms), &mut rows);
    rows
}

/// Adds what is in a pool: its VMs, then the pools that stand in it.
fn below<'a>(
    at: usize,
    depth: usize,
    all: (&'a Sample, &Config, &[&'a VmSample]),
    rows: &mut Vec<Row<'a>>,
) {
    let (sample, config, vms) = all;
    let pools = &sample.pools;
    let own = vms.iter().filter(|vm| home(vm, pools) == at);
    rows.extend(own.map(|vm| Row::Vm(depth, vm)));
    let mut inside: Vec<usize> = (1..pools.len())
        .filter(|pool| pools[*pool].parent == at)
        .collect();
    if let Some(field) = config.sort {
        let number = |pool: &usize| pools[*pool].numbers.get(field).copied().flatten();
        inside.sort_by(|a, b| turned(greatest_first(number(a), number(b)), config));
    }
    for pool in inside {
        rows.push(Row::Pool(depth, &pools[pool]));
        // Each pool stands behind its parent, so this comes to an end.
        if pool > at {
            below(pool, depth + 1, all, rows);
        }
    }
}

/// The greatest first; those without a number last.
fn greatest_first(a: Option<f64>, b: Option<f64>) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

fn turned(order: Ordering, config: &Config) -> Ordering {
    if config.reverse {
        order.reverse()
    } else {
        order
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::telemetry::{HostStatus, fixture};
    use crate::units::Pages;

    /// The fixture with one more pool in `prod`, and a third VM there.
    fn host() -> HostStatus {
        let mut host = fixture::host();
        host.pools.push(PoolStatus {
            name: "inner".to_owned(),
            parent: Some("prod".to_owned()),
            counted_shares: 7,
            reservation_pages: Pages(512),
            ..PoolStatus::default()
        });
        let mut third = host.vms[0].clone();
        (third.id.0, third.name, third.pool) = (3, "third".to_owned(), "inner".to_owned());
        host.vms.push(third);
        host
    }

    fn shown(host: &HostStatus, config: &Config) -> Vec<String> {
        let sample = Sample::of(host, None, Timestamp::UNIX_EPOCH);
        let rows = rows(&sample, config).into_iter().map(|row| match row {
            Row::Pool(depth, pool) => format!("{depth} {}/", pool.name),
            Row::Vm(depth, vm) => format!("{depth} {}", vm.name),
        });
        rows.collect()
    }

    #[test]
    fn vms_are_below_their_pools_and_pools_below_theirs() {
        let mut config = Config {
            pools: true,
            ..Config::default()
        };
        let expected = [
            "0 database-primary-01",
            "0 prod/",
            "1 web",
            "1 inner/",
            "2 third",
        ];
        assert_eq!(shown(&host(), &config), expected);
        config.pools = false;
        let expected = ["0 web", "0 database-primary-01", "0 third"];
        assert_eq!(shown(&host(), &config), expected);
        let mut none = host();
        none.pools.clear();
        config.pools = true;
        assert_eq!(shown(&none, &config), expected);
    }

    #[test]
    fn pools_are_sorted_by_their_sums() {
        let mut host = host();
        host.pools.push(PoolStatus {
            name: "big".to_owned(),
            parent: Some("root".to_owned()),
            ..PoolStatus::default()
        });
        host.vms[1].pool = "big".to_owned();
        let mut config = Config {
            pools: true,
            ..Config::default()
        };
        config.sort_by(Some(place(VM, "MEMSZ")));
        let pools = |config: &Config| -> Vec<String> {
            let rows = shown(&host, config).into_iter();
            rows.filter(|row| row.starts_with("0 ")).collect()
        };
        assert_eq!(pools(&config), ["0 prod/", "0 big/"]);
        config.reverse = true;
        assert_eq!(pools(&config), ["0 big/", "0 prod/"]);
    }

    #[test]
    fn pool_has_the_sums_of_all_that_is_in_it_and_settings_of_its_own() {
        let host = host();
        let sample = Sample::of(&host, None, Timestamp::UNIX_EPOCH);
        let number = |pool: usize, name: &str| {
            let at = VM.iter().position(|field| field.name == name).expect(name);
            sample.pools[pool].numbers[at]
        };
        let size = |at: usize| mib(host.vms[at].configured_pages.0);
        assert_eq!(number(0, "MEMSZ"), Some(size(0) + size(1) + size(2)));
        assert_eq!(number(1, "MEMSZ"), Some(size(0) + size(2)));
        assert_eq!(number(2, "MEMSZ"), Some(size(2)));
        assert_eq!((number(2, "AMIN"), number(2, "AMAX")), (Some(2.0), None));
        assert_eq!(
            (number(2, "ASHRS"), number(1, "AMAX")),
            (Some(7.0), Some(192.0))
        );
        assert_eq!((number(1, "%ACTV"), number(1, "HEALTH")), (None, None));
    }
}
