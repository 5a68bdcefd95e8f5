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
    /// Where variants are compared, its first series is, under this title.
    pub(super) compared: Option<&'static str>,
}

/// What the script knows of a series.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Described {
    unit: &'static str,
    /// Whether it only grows.
    pub(super) counter: bool,
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
pub(super) const CHARTS: &[Chart] = &[
    Chart {
        title: "Memory of all VMs by home",
        of: Of::Sum,
        form: Form::Stacked,
        compared: None,
        series: HOMES,
    },
    Chart {
        title: "Host memory by VM",
        of: Of::Each,
        form: Form::Stacked,
        compared: Some("Host memory that VMs cost"),
        series: &[("memvisor_vm_consumed_bytes", "consumed")],
    },
    Chart {
        title: "Free memory of the host",
        of: Of::Host,
        form: Form::Lines,
        compared: Some("Free memory of the host"),
        series: &[
            ("memvisor_host_free_bytes", "free"),
            ("memvisor_host_min_free_bytes", "aim"),
            ("memvisor_host_threshold_bytes{state=\"high\"}", "high"),
            ("memvisor_host_threshold_bytes{state=\"soft\"}", "soft"),
            ("memvisor_host_threshold_bytes{state=\"hard\"}", "hard"),
            ("memvisor_host_threshold_bytes{state=\"low\"}", "low"),
        ],
    },
    Chart {
        title: "Memory by home",
        of: Of::Vm,
        form: Form::Stacked,
        compared: None,
        series: HOMES,
    },
    Chart {
        title: "Target and actual",
        of: Of::Vm,
        form: Form::Lines,
        compared: None,
        series: &[
            ("memvisor_vm_consumed_bytes", "consumed"),
            ("memvisor_vm_target_bytes", "target"),
            ("memvisor_vm_active_bytes", "active"),
            ("memvisor_vm_reservation_bytes", "reservation"),
            ("memvisor_vm_limit_bytes", "limit"),
        ],
    },
    Chart {
        title: "Balloon, cache and swap against their targets",
        of: Of::Vm,
        form: Form::Lines,
        compared: None,
        series: &[
            ("memvisor_vm_balloon_bytes", "balloon"),
            ("memvisor_vm_balloon_target_bytes", "its target"),
            (
                "memvisor_vm_memory_bytes{home=\"compressed\"}",
                "compressed",
            ),
            ("memvisor_vm_memory_bytes{home=\"swapped\"}", "swapped"),
            ("memvisor_vm_swap_target_bytes", "target of both"),
        ],
    },
    Chart {
        title: "Operations of the guest",
        of: Of::Vm,
        form: Form::Lines,
        compared: Some("Operations of guests"),
        series: &[("guest_operations_total", "operations")],
    },
    Chart {
        title: "Latency of operations",
        of: Of::Vm,
        form: Form::Magnitudes,
        compared: None,
        series: &[
            ("guest_operation_p50_seconds", "median"),
            ("guest_operation_p99_seconds", "99 % within"),
        ],
    },
    Chart {
        title: "Time in which a thread stood still",
        of: Of::Vm,
        form: Form::Lines,
        compared: Some("Time in which a thread stood still"),
        series: &[
            ("memvisor_vm_stalled_ratio{window=\"latency\"}", "latest"),
            (
                "memvisor_vm_stalled_ratio{window=\"latency_minute\"}",
                "of a minute",
            ),
        ],
    },
    Chart {
        title: "Stalls by cause",
        of: Of::Vm,
        form: Form::Lines,
        compared: None,
        series: &[
            (
                "memvisor_vm_stall_seconds_total{cause=\"first_touch\"}",
                "first touch",
            ),
            (
                "memvisor_vm_stall_seconds_total{cause=\"refill_zip\"}",
                "refill from cache",
            ),
            (
                "memvisor_vm_stall_seconds_total{cause=\"refill_swap\"}",
                "refill from swap",
            ),
            (
                "memvisor_vm_stall_seconds_total{cause=\"cow_break\"}",
                "break",
            ),
            ("memvisor_vm_stall_seconds_total{cause=\"open\"}", "open"),
            (
                "memvisor_vm_stall_seconds_total{cause=\"blocked\"}",
                "blocked",
            ),
            (
                "memvisor_vm_stall_seconds_total{cause=\"memory\"}",
                "no free page",
            ),
            ("memvisor_vm_stall_seconds_total{cause=\"busy\"}", "busy"),
        ],
    },
    Chart {
        title: "Faults",
        of: Of::Vm,
        form: Form::Lines,
        compared: Some("Faults of first touch"),
        series: &[
            (
                "memvisor_vm_faults_total{kind=\"first_touch\"}",
                "first touch",
            ),
            (
                "memvisor_vm_faults_total{kind=\"refill_zip\"}",
                "refill from cache",
            ),
            (
                "memvisor_vm_faults_total{kind=\"refill_swap\"}",
                "refill from swap",
            ),
            ("memvisor_vm_faults_total{kind=\"cow_break\"}", "break"),
            ("memvisor_vm_faults_total{kind=\"pop\"}", "pop"),
        ],
    },
    Chart {
        title: "Latency of faults since power-on",
        of: Of::Vm,
        form: Form::Magnitudes,
        compared: None,
        series: &[
            (
                "memvisor_vm_fault_latency_seconds{percentile=\"p50\"}",
                "median",
            ),
            (
                "memvisor_vm_fault_latency_seconds{percentile=\"p99\"}",
                "99 % within",
            ),
        ],
    },
    Chart {
        title: "Swapping",
        of: Of::Vm,
        form: Form::Lines,
        compared: Some("Read from swap files"),
        series: &[
            ("memvisor_vm_swap_in_bytes_total", "read by the host"),
            ("memvisor_vm_swap_out_bytes_total", "written by the host"),
            ("memvisor_vm_guest_swap_in_bytes_total", "read by the guest"),
            (
                "memvisor_vm_guest_swap_out_bytes_total",
                "written by the guest",
            ),
        ],
    },
    Chart {
        title: "Eviction",
        of: Of::Vm,
        form: Form::Lines,
        compared: None,
        series: &[
            (
                "memvisor_vm_evicted_pages_total{how=\"to_zero\"}",
                "to zero",
            ),
            (
                "memvisor_vm_evicted_pages_total{how=\"to_shared\"}",
                "to shared",
            ),
            (
                "memvisor_vm_evicted_pages_total{how=\"to_zip\"}",
                "to the cache",
            ),
            (
                "memvisor_vm_evicted_pages_total{how=\"to_swap\"}",
                "to swap",
            ),
        ],
    },
];

/// Series beside those of charts: the ground behind charts, and what only the numbers at a moment have.
const BESIDE: &[&str] = &[
    "memvisor_host_state",
    "memvisor_host_budget_bytes",
    "memvisor_host_used_bytes",
    "memvisor_host_shared_saved_bytes",
    "memvisor_vm_configured_bytes",
];

/// What guests say of their work, which is no part of the status.
const GUESTS: &[(&str, Described)] = &[
    (
        "guest_operations_total",
        Described {
            unit: "operations",
            counter: true,
            help: "Operations that the workload of the guest has completed.",
            words: &[],
        },
    ),
    (
        "guest_operation_p50_seconds",
        Described {
            unit: "seconds",
            counter: false,
            help: "Half of the operations since the sample before took no longer.",
            words: &[],
        },
    ),
    (
        "guest_operation_p99_seconds",
        Described {
            unit: "seconds",
            counter: false,
            help: "Of the operations since the sample before 99 % took no longer.",
            words: &[],
        },
    ),
];

/// The names of all series that are in the data.
pub(super) fn names() -> BTreeSet<&'static str> {
    let charts = CHARTS.iter().flat_map(|chart| chart.series);
    let names = charts.map(|(name, _)| *name);
    names.chain(BESIDE.iter().copied()).collect()
}

/// What there is to know of each of them.
pub(super) fn described() -> BTreeMap<String, Described> {
    let names = names();
    let all = Series::of_host().chain(Series::of_vm());
    let of_status = all.map(|series| {
        let described = Described {
            unit: series.unit(),
            counter: series.is_counter(),
            help: series.help(),
            words: series.words(),
        };
        (series.name(), described)
    });
    let of_guests = GUESTS.iter();
    let of_guests = of_guests.map(|(name, described)| ((*name).to_owned(), *described));
    let all = of_status.chain(of_guests);
    all.filter(|(name, _)| names.contains(name.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_that_of_a_series_and_charts_do_not_mix_units() {
        let described = described();
        for name in names() {
            assert!(described.contains_key(name), "there is no series {name}");
        }
        for chart in CHARTS {
            let kinds = chart.series.iter().map(|(name, _)| &described[*name]);
            let kinds: BTreeSet<_> = kinds.map(|it| (it.unit, it.counter)).collect();
            assert_eq!(kinds.len(), 1, "{}: {kinds:?}", chart.title);
            let of_host = chart.series[0].0.starts_with("memvisor_host_");
            assert_eq!(of_host, chart.of == Of::Host, "{}", chart.title);
        }
    }
}
