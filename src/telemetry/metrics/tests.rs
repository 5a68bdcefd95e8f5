//! Holds the table of metrics to the status, to OpenMetrics and to the documents.

use std::collections::BTreeSet;

use super::super::document::{fields, row_of};
use super::super::{FreeState, fixture};
use super::*;

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
const START: &str = "<!-- table of metrics -->\n";
const END: &str = "<!-- end of table -->\n";

/// Fields of the status that no metric shows, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "pid",
        "another after each start: as a label it would make new series of old ones",
    ),
    ("vms[].pid", "the same"),
    ("vms[].placed_on", "a number that measures nothing"),
    ("vms[].name", "the label `vm`"),
    ("pools[].name", "the label `pool`"),
    ("health.why", "a sentence"),
    ("vms[].health.why", "the same"),
    ("vms[].rates.", "whoever asks makes rates of the counters"),
    (
        "share.settled",
        "`memvisor_host_settled_vms` by `memvisor_host_vms`",
    ),
    ("totals.", "sums over the VMs, which whoever asks can make"),
    ("vms[].zip.oldest_save_us", "explains a limit, for people"),
    ("vms[].zip.ram_saves_us", "the same"),
    ("vms[].swap.reads", "`memvisor_vm_swap_in_bytes_total`"),
    ("vms[].swap.writes", "`memvisor_vm_swap_out_bytes_total`"),
    ("vms[].salt_set", "a setting"),
    ("machine.budget", "the same, as it was given"),
    ("machine.cgroup", "a name, for people"),
    ("machine.pressure.cgroup", "the same"),
    ("vms[].swap.unswap_rate", "an order, for whoever gave it"),
];

#[test]
fn each_field_of_the_status_is_shown_once_or_left_out_with_a_reason() {
    let mut shown: Vec<_> = TABLE
        .iter()
        .flat_map(|metric| metric.fields.paths())
        .copied()
        .collect();
    let there = fields(&fixture::host());
    let is_left_out = |path: &str| {
        LEFT_OUT
            .iter()
            .any(|(out, _)| path == *out || out.ends_with('.') && path.starts_with(out))
    };
    let expected: BTreeSet<&str> = there
        .iter()
        .map(String::as_str)
        .filter(|path| !is_left_out(path))
        .collect();
    // An array, of which the number of elements is shown.
    shown.retain(|path| *path != "vms");
    assert_eq!(shown.iter().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(shown.len(), expected.len(), "a field is shown twice");
}

#[test]
fn names_end_in_their_units_and_fields_count_in_theirs() {
    let units = ["bytes", "seconds", "ratio", "pages"];
    for metric in TABLE {
        let (name, unit) = (metric.name, metric.unit.name());
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(plain, "{name}");
        let suffix = name.rsplit('_').next().filter(|word| units.contains(word));
        assert_eq!(suffix.unwrap_or_default(), unit, "{name}");
        assert!(!metric.help.contains(['\\', '"', '\n']), "{name}");
        for path in metric.fields.paths() {
            let expected: &[Unit] = match path.rsplit('_').next().unwrap_or_default() {
                "pages" => &[Pages],
                "bytes" => &[Bytes],
                "ms" => &[Millis],
                "us" => &[Micros],
                "percent" => &[Percent],
                _ => &[Plain, Moves, Pages],
            };
            assert!(expected.contains(&metric.unit), "{name} {path}");
            assert_eq!(
                path.starts_with(OF_VM),
                name.starts_with("memvisor_vm"),
                "{name} {path}"
            );
            assert_eq!(
                path.starts_with(OF_POOL),
                name.starts_with("memvisor_resource_pool"),
                "{name} {path}"
            );
        }
    }
    let names: BTreeSet<_> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), TABLE.len(), "a name is there twice");
}

#[test]
fn values_are_those_of_the_status_in_base_units() {
    let text = openmetrics(&fixture::host());
    for line in [
        "memvisor_host_info{version=\"0.1.0\",engine=\"uffd\",policy=\"esx\",balloon_law=\"esx\"} 1",
        "memvisor_host_uptime_seconds 3725",
        "memvisor_host_vms 2",
        "memvisor_host_state{memvisor_host_state=\"soft\"} 1",
        "memvisor_host_state{memvisor_host_state=\"low\"} 0",
        "memvisor_host_budget_bytes 268435456",
        "memvisor_host_threshold_bytes{state=\"low\"} 2097152",
        "memvisor_host_overcommit_ratio{average=\"one_minute\"} 0.48",
        "memvisor_vm_info{vm=\"web\",id=\"1\",engine=\"uffd\",workload=\"kv\",pool=\"prod\"} 1",
        "memvisor_resource_pool_limit_bytes{pool=\"prod\"} 201326592",
        "memvisor_resource_pool_shares{pool=\"prod\",which=\"inner_shares\"} 2560",
        "memvisor_vm_memory_bytes{vm=\"web\",home=\"resident\"} 73400320",
        "memvisor_vm_memory_bytes{vm=\"database-primary-01\",home=\"swapped\"} 4194304",
        "memvisor_vm_fault_latency_seconds{vm=\"web\",percentile=\"p99\"} 0.00024",
        "memvisor_vm_stall_seconds_total{vm=\"web\",cause=\"blocked\"} 2.5",
        "memvisor_vm_stalled_ratio{vm=\"web\",window=\"latency_minute\"} 0.0506",
        "memvisor_vm_evicted_pages_total{vm=\"web\",how=\"to_zip\"} 2000",
        "memvisor_vm_balloon_agent{vm=\"web\"} 1",
        "memvisor_vm_balloon_agent{vm=\"database-primary-01\"} 0",
        "memvisor_vm_swap_errors_total{vm=\"web\"} 2",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in:\n{text}"
        );
    }
    assert!(
        !text.contains("\nmemvisor_vm_limit_bytes{"),
        "there is no limit"
    );
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn each_free_state_is_a_word_of_the_state_set() {
    let states = [
        FreeState::High,
        FreeState::Clear,
        FreeState::Soft,
        FreeState::Hard,
        FreeState::Low,
    ];
    for free_state in states {
        let text = openmetrics(&HostStatus {
            free_state,
            ..fixture::host()
        });
        let mut set = text
            .lines()
            .filter(|line| line.starts_with("memvisor_host_state{"));
        let word = format!("=\"{free_state}\"}}");
        assert_eq!(set.clone().count(), states.len());
        assert!(
            set.all(|line| line.ends_with(" 1") == line.contains(&word)),
            "{text}"
        );
    }
}

#[test]
fn text_of_a_guest_stays_in_its_quotes() {
    let mut status = fixture::host();
    status.vms[0].workload = "a\\\"} 1\n# EOF".to_owned();
    let text = openmetrics(&status);
    assert!(
        text.contains("workload=\"a\\\\\\\"} 1\\n# EOF\",pool=\"prod\"} 1\n"),
        "{text}"
    );
}

#[test]
fn document_has_the_table_of_metrics() {
    let rows = TABLE.iter().map(|metric| {
        let labels = match metric.fields {
            By("", _) => metric
                .fields
                .paths()
                .iter()
                .map(|path| label_of(path))
                .collect(),
            By(label, _) => vec![label],
            Of(_) => Vec::new(),
        };
        let labels = labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let paths = metric.fields.paths().iter().map(|path| format!("`{path}`"));
        let paths = paths.collect::<Vec<_>>().join(", ");
        row_of(&[
            &format!("`{}`", metric.sample()),
            metric.kind_name(),
            &labels,
            &paths,
            metric.help,
        ])
    });
    let header = row_of(&["metric", "type", "labels", "fields", "meaning"]);
    let table = format!(
        "{header}|---|---|---|---|---|\n{}",
        rows.collect::<String>()
    );
    let (before, rest) = DOCUMENT.split_once(START).expect("a table");
    let (_, after) = rest.split_once(END).expect("its end");
    let made = format!("{before}{START}{table}{END}{after}");
    if std::env::var_os("MEMVISOR_WRITE_DOCS").is_some() {
        std::fs::write(PATH, made).expect("write docs/metrics.md");
        return;
    }
    assert!(
        made == DOCUMENT,
        "docs/metrics.md is not what src/telemetry/metrics.rs says: \
         `MEMVISOR_WRITE_DOCS=1 cargo test -p memvisor --lib telemetry::metrics` writes it"
    );
}

const DASHBOARD: &str = include_str!("../../../docs/metrics/grafana.json");
const ALERTS: &str = include_str!("../../../docs/metrics/alerts.yml");

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("memvisor_")).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let samples: BTreeSet<String> = TABLE.iter().map(Metric::sample).collect();
    for (text, least) in [(DASHBOARD, 15), (ALERTS, 5)] {
        let found = named(text);
        let unknown: Vec<_> = found
            .iter()
            .filter(|name| !samples.contains(**name))
            .collect();
        assert!(unknown.is_empty(), "no such metrics: {unknown:?}");
        assert!(
            found.len() >= least,
            "only {found:?} found: is the search right?"
        );
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        let queries = panel["targets"].as_array().expect("queries");
        let shows = |query: &Value| !named(query["expr"].as_str().expect("a query")).is_empty();
        assert!(!queries.is_empty() && queries.iter().all(shows), "{panel}");
    }
}
