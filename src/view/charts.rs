//! The charts of both pages: which series each draws, and how.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::telemetry::Series;

/// How a chart draws its series.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Form {
    /// Areas, one on top of the other.
    Stacked,
    /// A line for each.
    Lines,
    /// Lines over a scale of powers of ten.
    Magnitudes,
}

/// Of what a chart is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Of {
    /// The host's own series.
    Host,
    /// The sums over all VMs, of series of VMs.
    Sum,
    /// The one series, VM by VM.
    Each,
    /// A VM's series: each VM has such a chart.
    Vm,
}

/// A chart. Counters are drawn as rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) of: Of,
    pub(super) form: Form,
    /// Names of series, and what the chart calls them.
    pub(super) series: &'static [(&'static str, &'static str)],
    /// Where variants are compared, this chart is there, of its first series.
    pub(super) compared: bool,
}

/// What the script knows of a series.
#[derive(Serialize)]
pub(super) struct Described {
    unit: &'static str,
    counter: bool,
    help: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    words: &'static [&'static str],
}

const HOMES: &[(&str, &str)] = &[
    ("memvisor_vm_memory_bytes{home=\"resident\"}", "resident"),
    ("memvisor_vm_memory_bytes{home=\"shared\"}", "shared"),
    (
        "memvisor_vm_memory_bytes{home=\"compressed\"}",
        "compressed",
    ),
    ("memvisor_vm_memory_bytes{home=\"swapped\"}", "swapped"),
    ("memvisor_vm_memory_bytes{home=\"ballooned\"}", "ballooned"),
    ("memvisor_vm_memory_bytes{home=\"zero\"}", "zero"),
    ("memvisor_vm_memory_bytes{home=\"untouched\"}", "untouched"),
];

/// All charts, in the order of the page.
#[rustfmt::skip]
pub(super) const CHARTS: &[Chart] = &[
    Chart { title: "Memory of all VMs by home", of: Of::Sum, form: Form::Stacked, compared: false, series: HOMES },
    Chart { title: "Host memory by VM", of: Of::Each, form: Form::Stacked, compared: true, series: &[
        ("memvisor_vm_consumed_bytes", "consumed"),
    ] },
    Chart { title: "Free memory of the host", of: Of::Host, form: Form::Lines, compared: true, series: &[
        ("memvisor_host_free_bytes", "free"),
        ("memvisor_host_min_free_bytes", "aim"),
        ("memvisor_host_threshold_bytes{state=\"soft\"}", "soft below"),
        ("memvisor_host_threshold_bytes{state=\"hard\"}", "hard below"),
        ("memvisor_host_threshold_bytes{state=\"low\"}", "low below"),
    ] },
    Chart { title: "Memory by home", of: Of::Vm, form: Form::Stacked, compared: false, series: HOMES },
    Chart { title: "Target and actual", of: Of::Vm, form: Form::Lines, compared: false, series: &[
        ("memvisor_vm_consumed_bytes", "consumed"),
        ("memvisor_vm_target_bytes", "target"),
        ("memvisor_vm_active_bytes", "active"),
        ("memvisor_vm_balloon_bytes", "balloon"),
        ("memvisor_vm_balloon_target_bytes", "balloon target"),
        ("memvisor_vm_swap_target_bytes", "target of cache and swap"),
        ("memvisor_vm_reservation_bytes", "reservation"),
        ("memvisor_vm_limit_bytes", "limit"),
    ] },
];

/// The names of all series that are in the data: of charts, of bands, and of the table of moments.
pub(super) fn names() -> BTreeSet<String> {
    let charts = CHARTS.iter().flat_map(|chart| chart.series);
    let names = charts.map(|(name, _)| (*name).to_owned());
    names.collect()
}

/// What there is to know of the series that the metrics have.
pub(super) fn described() -> BTreeMap<String, Described> {
    let names = names();
    let all = Series::of_host().chain(Series::of_vm());
    all.filter(|series| names.contains(&series.name()))
        .map(|series| {
            let described = Described {
                unit: series.unit(),
                counter: series.is_counter(),
                help: series.help(),
                words: series.words(),
            };
            (series.name(), described)
        })
        .collect()
}
