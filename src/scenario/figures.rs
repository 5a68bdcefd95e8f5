//! The figures that every run has, so that any two runs can be compared.

use serde::{Deserialize, Serialize};

use super::expected::{Figure, Value};
use super::judge::value;
use super::said::{OPERATIONS, P99};
use crate::recording::Recording;

/// A figure of one run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What it is.
    pub name: String,
    /// What it counts in.
    pub unit: String,
    /// How much it is.
    pub value: f64,
}

/// Whose values a figure is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Host,
    /// All VMs, added up.
    All,
    /// The VM with the largest value.
    Worst,
}

/// A figure that every run has: what it is, what it counts in, whose it is, its series, what becomes of their values.
type Common = (
    &'static str,
    &'static str,
    Of,
    &'static [&'static str],
    Value,
);

const COMMON: &[Common] = &[
    (
        "operations of all guests",
        "operations/s",
        Of::All,
        &[OPERATIONS],
        Value::Rate,
    ),
    (
        "p99 of operations, worst guest",
        "seconds",
        Of::Worst,
        &[P99],
        Value::Mean,
    ),
    (
        "threads stand still because of the host",
        "seconds/s",
        Of::All,
        &["memvisor_vm_stalled_seconds_total"],
        Value::Rate,
    ),
    (
        "memory in use",
        "bytes",
        Of::Host,
        &["memvisor_host_used_bytes"],
        Value::Mean,
    ),
    (
        "saved by sharing",
        "bytes",
        Of::Host,
        &["memvisor_host_shared_saved_bytes"],
        Value::Mean,
    ),
    (
        "zero pages",
        "bytes",
        Of::All,
        &["memvisor_vm_memory_bytes{home=\"zero\"}"],
        Value::Mean,
    ),
    (
        "in balloons",
        "bytes",
        Of::All,
        &["memvisor_vm_balloon_bytes"],
        Value::Mean,
    ),
    (
        "compressed",
        "bytes",
        Of::All,
        &["memvisor_vm_memory_bytes{home=\"compressed\"}"],
        Value::Mean,
    ),
    (
        "compression caches",
        "bytes",
        Of::All,
        &["memvisor_vm_cache_bytes"],
        Value::Mean,
    ),
    (
        "in swap files",
        "bytes",
        Of::All,
        &["memvisor_vm_memory_bytes{home=\"swapped\"}"],
        Value::Mean,
    ),
    (
        "read from swap files",
        "bytes/s",
        Of::All,
        &["memvisor_vm_swap_in_bytes_total"],
        Value::Rate,
    ),
    (
        "written to swap files",
        "bytes/s",
        Of::All,
        &["memvisor_vm_swap_out_bytes_total"],
        Value::Rate,
    ),
];

/// The figures of a recording, and the operations of each guest.
pub(super) fn of(recording: &Recording) -> Vec<Measured> {
    let common = COMMON.iter().filter_map(|(name, unit, of, series, how)| {
        let figure = |vm: &str| Figure {
            of_host: *of == Of::Host,
            counter: *how == Value::Rate,
            of: vm.to_owned(),
            series: series.iter().map(|name| (*name).to_owned()).collect(),
            value: *how,
            from_ms: 0,
            to_ms: u64::MAX,
            variant: None,
        };
        let value = match of {
            Of::Host | Of::All => value(&figure("*"), recording)?,
            Of::Worst => {
                let vms = recording.vms.keys();
                let each = vms.filter_map(|vm| value(&figure(vm), recording));
                each.reduce(f64::max)?
            }
        };
        Some(Measured {
            name: (*name).to_owned(),
            unit: (*unit).to_owned(),
            value,
        })
    });
    let guests = recording.vms.keys().filter_map(|vm| {
        let figure = Figure {
            of_host: false,
            counter: true,
            of: vm.clone(),
            series: vec![OPERATIONS.to_owned()],
            value: Value::Rate,
            from_ms: 0,
            to_ms: u64::MAX,
            variant: None,
        };
        Some(Measured {
            name: format!("operations of {vm}"),
            unit: "operations/s".to_owned(),
            value: value(&figure, recording)?,
        })
    });
    common.chain(guests).collect()
}

#[cfg(test)]
mod tests {
    use super::super::said::known;
    use super::*;

    #[test]
    fn common_figures_are_of_series_that_there_are() {
        let known = known();
        for (name, unit, of, series, how) in COMMON {
            for series in *series {
                let one = known.get(*series).unwrap_or_else(|| panic!("{series}"));
                assert_eq!(one.is_of_host, *of == Of::Host, "{name}");
                assert_eq!(one.is_counter, *how == Value::Rate, "{name}");
                assert!(unit.starts_with(one.unit), "{name}: {unit}");
            }
        }
    }
}
