use serde_json::{Value, json};

use super::*;
use crate::recording::Column;
use crate::telemetry::{Series, fixture};

fn recording() -> Recording {
    let mut recording = Recording::default();
    for at in 0..4 {
        recording.push(at * 1000, &fixture::host(), &BTreeMap::new());
    }
    recording
}

/// The data in a page.
fn data_of(page: &str) -> Value {
    let json = page.split_once("id=\"data\">").expect("data").1;
    let json = json.split_once("</script>").expect("an end").0;
    serde_json::from_str(json).expect("whole")
}

#[test]
fn nothing_in_a_report_ends_the_element_that_it_stands_in() {
    let mut recording = recording();
    let evil = "</script><script>alert(1)</script><!--";
    let columns = recording.vms["web"].clone();
    recording.vms.insert(evil.to_owned(), columns);
    recording.mark(3000, evil.to_owned());
    let report = Report {
        title: evil.to_owned(),
        facts: vec![(evil.to_owned(), evil.to_owned())],
        runs: vec![Run {
            variant: evil.to_owned(),
            repetition: 1,
            recording: &recording,
        }],
        ..Report::default()
    };
    let page = page(&report);
    let data = data_of(&page);
    assert_eq!(data["report"]["title"], evil);
    assert_eq!(data["report"]["runs"][0]["marks"][0]["text"], evil);
    assert!(!page.contains("<script>alert") && !page.contains("<!--"));
}

#[test]
fn event_has_the_numbers_of_the_status_and_its_moment() {
    let status = fixture::host();
    let event = event(&status);
    assert!(!event.contains(['\n', '\r']), "it is one line of a stream");
    let event: Value = serde_json::from_str(&event).expect("JSON");
    assert_eq!(event["at_ms"], json!([status.uptime_ms]));
    let json = serde_json::to_value(&status).expect("plain data");
    let mut compared = 0;
    let mut compare = |series: Series, of: &Value, found: &Value| {
        let found = &found[series.name()];
        if !found.is_null() {
            assert_eq!(found.as_f64(), series.read(of), "{series:?}");
            compared += 1;
        }
    };
    Series::of_host().for_each(|series| compare(series, &json, &event["host"]));
    for (vm, of) in status.vms.iter().zip(json["vms"].as_array().expect("VMs")) {
        Series::of_vm().for_each(|series| compare(series, of, &event["vms"][&vm.name]));
    }
    assert!(compared > 60, "only {compared}");
}

#[test]
fn long_run_is_thinned_and_stays_what_it_was() {
    // Ten times a second for ten minutes, eight VMs, and no value like the one before.
    let moments = 6000;
    let column = |of: u32| -> Column {
        let value = |i: u32| Some(f64::from((i * 7919 + of * 104_729) % 1_000_003) * 4096.0);
        (0..moments).map(value).collect()
    };
    let columns = |series: Vec<Series>| -> BTreeMap<String, Column> {
        let each = series.iter().zip(0..);
        each.map(|(series, i)| (series.name(), column(i))).collect()
    };
    let mut recording = Recording {
        at_ms: (0..u64::from(moments)).map(|i| i * 100).collect(),
        host: columns(Series::of_host().collect()),
        ..Recording::default()
    };
    for vm in 0..8 {
        let columns = columns(Series::of_vm().collect());
        recording.vms.insert(format!("guest{vm}"), columns);
    }
    let run = Run {
        variant: "base".to_owned(),
        repetition: 1,
        recording: &recording,
    };
    let report = Report {
        runs: vec![run],
        ..Report::default()
    };
    let page = page(&report);
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    let data = data_of(&page);
    let report = &data["report"];
    let every = report["every"].as_u64().expect("a number");
    assert!(every > 1);
    let at = report["runs"][0]["at_ms"].as_array().expect("moments");
    assert_eq!(at.last(), Some(&json!(599_900)), "how it ended");
    assert_eq!(
        at[1].as_u64().zip(at[0].as_u64()).map(|(b, a)| b - a),
        Some(every * 100)
    );
    let name = "memvisor_vm_consumed_bytes";
    let shown = report["runs"][0]["vms"]["guest7"][name]
        .as_array()
        .expect("a column");
    assert_eq!(shown.len(), at.len());
    let all = &recording.vms["guest7"][name];
    let sample = |at: usize| at * usize::try_from(every).expect("small");
    // Two values are the least and the greatest of the samples for which they stand: no peak is lost.
    let (pairs, end) = (shown.len() - 1, all.len() - 1);
    let first = end - sample(pairs);
    for pair in (pairs % 2..pairs).step_by(2) {
        let begins = if pair < 2 { 0 } else { first + sample(pair) };
        let window = all[begins..first + sample(pair + 2)].iter().flatten();
        let [least, greatest] = [f64::min, f64::max].map(|of| window.clone().copied().reduce(of));
        let mut found = [&shown[pair], &shown[pair + 1]].map(Value::as_f64);
        found.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
        assert_eq!(found, [least, greatest], "from {begins}");
    }
    assert_eq!(shown[pairs].as_f64(), all[end]);
    let counter = "memvisor_vm_swap_in_bytes_total";
    let shown = &report["runs"][0]["vms"]["guest7"][counter];
    for (at, value) in at.iter().zip(shown.as_array().expect("a column")) {
        let sample = usize::try_from(at.as_u64().expect("a moment") / 100).expect("small");
        assert_eq!(value.as_f64(), recording.vms["guest7"][counter][sample]);
    }
}

#[test]
fn column_that_does_not_change_is_one_value_and_one_without_values_is_none() {
    let recording = recording();
    let run = Run {
        variant: "base".to_owned(),
        repetition: 1,
        recording: &recording,
    };
    let report = Report {
        runs: vec![run],
        ..Report::default()
    };
    let data = data_of(&page(&report));
    assert_eq!(data["report"]["every"], 1);
    let web = &data["report"]["runs"][0]["vms"]["web"];
    let size = recording.vms["web"]["memvisor_vm_configured_bytes"][0];
    assert_eq!(web["memvisor_vm_configured_bytes"].as_f64(), size);
    assert!(web.get("memvisor_vm_limit_bytes").is_none(), "{web}");
}
