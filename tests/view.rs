//! The pages in a real browser: what they show is what is in their data, and nobody complains.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use memvisor::recording::{Column, Recording};
use memvisor::telemetry::{HostStatus, Series};
use memvisor::units::Bytes;
use memvisor::view::{self, Expectation, Report, Run, Table};
use rig::browser::{Page, browser};
use rig::{Host, PATIENCE, engines, eventually, scratch};
use serde_json::{Value, json};

const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);
/// A name that markup would make something of, in a text that shows whether it did.
const NAME: &str = "<b>web</b>&\"'</script>";

/// A recording of `vms` in which every series has values, of which counters grow and no two are equal.
fn recording(vms: &[&str], samples: u32, seed: f64) -> Recording {
    let column = |number: usize, series: &Series, of: f64| -> Column {
        let value = |i: u32| {
            let (i, number) = (f64::from(i), f64::from(u32::try_from(number).expect("few")));
            let wave = 1.5 + ((i / 9.0 + number + seed + of).sin() * 0.5);
            let size = match (series.unit(), series.words().len()) {
                ("bytes", _) => 4096.0 * (4000.0 + 100.0 * of),
                ("seconds" | "ratio", _) => 0.02,
                (_, 0) => 900.0,
                (_, words) => return f64::from(i as u32 / 10 % u32::try_from(words).expect("few")),
            };
            let value = if series.is_counter() {
                size * (i * 2.0 + wave)
            } else {
                size * wave
            };
            if series.unit() == "seconds" || series.unit() == "ratio" {
                value
            } else {
                value.round()
            }
        };
        (0..samples).map(|i| Some(value(i))).collect()
    };
    let columns = |series: Vec<Series>, of| -> BTreeMap<String, Column> {
        let each = series.iter().enumerate();
        each.map(|(i, series)| (series.name(), column(i, series, of)))
            .collect()
    };
    let mut recording = Recording {
        at_ms: (0..samples).map(|i| u64::from(i) * 1000 + 7).collect(),
        host: columns(Series::of_host().collect(), 0.0),
        ..Recording::default()
    };
    for (i, vm) in vms.iter().enumerate() {
        let of = f64::from(u32::try_from(i).expect("few"));
        let mut all = columns(Series::of_vm().collect(), of);
        let operations = (0..samples).map(|n| Some(f64::from(n) * (500.0 + of + 40.0 * seed)));
        all.insert("guest_operations_total".to_owned(), operations.collect());
        for (name, value) in [("p50", 12e-6), ("p99", 3.4e-3)] {
            let name = format!("guest_operation_{name}_seconds");
            all.insert(name, vec![Some(value * (1.0 + seed)); samples as usize]);
        }
        recording.vms.insert((*vm).to_owned(), all);
    }
    recording.mark(20_007, "Mem.IdleTax set to 0.75".to_owned());
    recording
}

fn report<'a>(runs: &[(&str, u32, &'a Recording)]) -> Report<'a> {
    let run = |&(variant, repetition, recording): &(&str, u32, &'a Recording)| Run {
        variant: variant.to_owned(),
        repetition,
        recording,
    };
    let expectation = |held, text: &str| Expectation {
        run: runs[0].0.to_owned(),
        text: text.to_owned(),
        measured: "2.5 %".to_owned(),
        held,
    };
    Report {
        title: "a pair of guests".to_owned(),
        facts: vec![(
            "Command".to_owned(),
            "memvisor run pair.toml --seed 7".to_owned(),
        )],
        unfinished: Some("interrupted after 60 s".to_owned()),
        runs: runs.iter().map(run).collect(),
        expectations: vec![
            expectation(Some(true), "stalled at most 5 %"),
            expectation(Some(false), "stalled at most 1 %"),
            expectation(None, "latency of operations at most 1 ms"),
        ],
        tables: vec![Table {
            caption: "Guests".to_owned(),
            head: vec!["Guest".to_owned(), "Workload".to_owned()],
            rows: vec![vec![NAME.to_owned(), "cache".to_owned()]],
        }],
    }
}

/// Writes the page and opens it as a file.
fn open(browser: &Path, report: &Report<'_>, size: (u32, u32)) -> (Page, tempfile::TempDir) {
    let dir = scratch();
    let file = dir.path().join("report.html");
    fs::write(&file, view::page(report)).expect("write the report");
    (
        Page::open(browser, &format!("file://{}", file.display()), size),
        dir,
    )
}

/// Scrolls past all charts, which are drawn when they come into sight, and returns them: title, number of points, and
/// whether there is ink on the canvas.
fn charts(page: &mut Page) -> Vec<(String, u64, bool)> {
    let script = "(async () => {
        const found = [];
        for (const figure of document.querySelectorAll('figure.chart')) {
            figure.scrollIntoView();
            for (let i = 0; i < 600 && !figure.querySelector('.plot canvas'); i++) await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            const canvas = figure.querySelector('.plot canvas');
            const u = [...page.charts].find((chart) => chart.figure === figure).u;
            const { left, top, width, height } = u.bbox;
            const inside = canvas.getContext('2d').getImageData(left + 2, top + 2, width - 4, height - 4).data;
            const colours = new Set();
            for (let i = 0; i < inside.length; i += 4) colours.add(`${inside[i]},${inside[i + 1]},${inside[i + 2]}`);
            found.push([figure.querySelector('figcaption').textContent, Number(figure.dataset.points), colours.size > 5]);
        }
        return found;
    })()";
    let found = page.eval(script);
    serde_json::from_value(found).expect("as the script makes them")
}

/// The numbers at a moment as the page shows them: by VM, or "" for the host, and series; the value and its text.
fn numbers(page: &mut Page) -> BTreeMap<(String, String), (Option<f64>, String)> {
    let script = "[...document.querySelectorAll('[data-series]')].map((cell) => [
        cell.closest('tr')?.dataset.vm ?? '', cell.dataset.series, cell.dataset.value, cell.textContent])";
    let cells: Vec<[String; 4]> = serde_json::from_value(page.eval(script)).expect("texts");
    cells
        .into_iter()
        .map(|[vm, series, value, text]| ((vm, series), (value.parse().ok(), text)))
        .collect()
}

/// Checks each number that the page shows against a recording at sample `i`.
fn check_numbers(page: &mut Page, recording: &Recording, i: usize) {
    let numbers = numbers(page);
    let rows: BTreeSet<_> = numbers.keys().map(|(vm, _)| vm.as_str()).collect();
    let vms = recording.vms.keys().map(String::as_str);
    assert_eq!(rows, vms.chain([""]).collect());
    for ((vm, series), (value, text)) in &numbers {
        let columns = if vm.is_empty() {
            &recording.host
        } else {
            &recording.vms[vm]
        };
        let recorded = columns.get(series).and_then(|column| column[i]);
        assert_eq!(*value, recorded, "{vm} {series}");
        let Some(value) = recorded else {
            assert_eq!(text, "–");
            continue;
        };
        let described = Series::of_host().chain(Series::of_vm());
        let described = described
            .into_iter()
            .find(|it| it.name() == *series)
            .expect("a series");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and not negative"
        )]
        match described.unit() {
            "bytes" => assert_eq!(*text, Bytes(value as u64).to_string(), "{vm} {series}"),
            "ratio" => {
                let shown: f64 = text.strip_suffix(" %").expect(text).parse().expect(text);
                assert!(
                    (shown - value * 100.0).abs() <= 0.005 * (value * 100.0).abs() + 1e-9,
                    "{text} {value}"
                );
            }
            _ => assert_eq!(*text, described.words()[value as usize]),
        }
    }
}

#[test]
fn report_shows_what_is_in_its_data_and_nothing_complains() {
    let Some(browser) = browser() else { return };
    let recording = recording(&[NAME, "db"], 60, 0.0);
    let (mut page, _dir) = open(&browser, &report(&[("base", 1, &recording)]), DESKTOP);
    check_numbers(&mut page, &recording, 59);
    let charts = charts(&mut page);
    assert_eq!(charts.len(), 3 + 2 * 10, "{charts:?}");
    for (title, points, inked) in &charts {
        assert!(*points >= 59 && *inked, "{title}: {points} points, {inked}");
    }
    let texts = page.eval("document.body.innerText");
    let texts = texts.as_str().expect("a text");
    for words in [
        NAME,
        "interrupted after 60 s",
        "✓ held",
        "✗ did not hold",
        "? could not be judged",
        "memvisor run pair.toml",
    ] {
        assert!(texts.contains(words), "no {words} in {texts}");
    }
    assert_eq!(
        page.eval("document.querySelectorAll('b b, main script').length"),
        0
    );
    // By keyboard: two samples back in one chart is two back everywhere.
    page.eval("document.querySelector('.plot').focus()");
    page.press("ArrowLeft");
    page.press("ArrowLeft");
    eventually("the numbers are those of the moment", PATIENCE, || {
        (page.eval("document.querySelector('.vms caption').textContent") == "At 00:57")
            .then_some(())
    });
    check_numbers(&mut page, &recording, 57);
    page.press("Home");
    eventually("the numbers are the first", PATIENCE, || {
        (page.eval("document.querySelector('.vms caption').textContent") == "At 00:00")
            .then_some(())
    });
    check_numbers(&mut page, &recording, 0);
    check_table(&mut page, &recording);
    assert_eq!(page.complaints(), [""; 0]);
}

/// Opens the values of the faults of the last VM, which are rates of counters.
fn check_table(page: &mut Page, recording: &Recording) {
    let script = "(async () => {
        const figure = [...document.querySelectorAll('figure.chart')].filter((it) =>
            it.querySelector('figcaption').textContent === 'Operations of the guest').pop();
        figure.querySelector('.values summary').click();
        while (!figure.querySelector('.values td')) await new Promise(requestAnimationFrame);
        return [figure.closest('details.vm').dataset.vm, [...figure.querySelectorAll('.values td')].map((cell) => cell.dataset.value)];
    })()";
    let (vm, cells): (String, Vec<String>) =
        serde_json::from_value(page.eval(script)).expect("as the script makes them");
    let counted = &recording.vms[&vm]["guest_operations_total"];
    assert_eq!(cells.len(), counted.len());
    assert_eq!(cells[0], "", "a rate needs two samples");
    for (pair, cell) in counted.windows(2).zip(&cells[1..]) {
        let grown = pair[1].expect("a value") - pair[0].expect("a value");
        assert!(
            (cell.parse::<f64>().expect(cell) - grown).abs() < 1e-6,
            "{cell}"
        );
    }
}

#[test]
fn variants_are_compared_with_the_spread_of_their_repetitions() {
    let Some(browser) = browser() else { return };
    let runs = [0.0, 1.0, 3.0, 4.0, 9.0].map(|seed| recording(&["web", "db"], 40, seed));
    let [a, b, c, d, e] = &runs;
    let all = [
        ("base", 1, a),
        ("base", 2, b),
        ("base", 3, c),
        ("greedy", 1, d),
        ("greedy", 2, e),
    ];
    let (mut page, _dir) = open(&browser, &report(&all), DESKTOP);
    let charts = charts(&mut page);
    assert!(
        charts
            .iter()
            .all(|(_, points, inked)| *points > 0 && *inked),
        "{charts:?}"
    );
    let beside: Vec<_> = charts
        .iter()
        .filter(|(title, ..)| title.starts_with("Faults, "))
        .collect();
    assert_eq!(
        beside.len(),
        4,
        "two VMs, and one run of each variant: {charts:?}"
    );
    // Of operations each recording has a rate of its own: that of each VM is 500 and the VM's number and 40 x seed.
    let script = "(() => {
        const chart = [...page.charts].find((it) => it.panel.title === 'Operations of guests');
        return chart.panel.series.map(({ label, values, least, most }) => [label, values[9], least[9], most[9]]);
    })()";
    let of = |seed: f64| 1001.0 + 80.0 * seed;
    let expected = json!([
        ["base", of(1.0), of(0.0), of(3.0)],
        ["greedy", of(6.5), of(4.0), of(9.0)]
    ]);
    assert_eq!(rounded(&page.eval(script)), rounded(&expected));
    page.eval("(() => { const all = document.getElementById('compared'); all.value = '1'; all.dispatchEvent(new Event('change')); })()");
    let expected = json!([
        ["base", 540.0, 500.0, 620.0],
        ["greedy", 760.0, 660.0, 860.0]
    ]);
    let shown = rounded(&page.eval(script));
    let vm: String = serde_json::from_value(
        page.eval("document.querySelector('#compared option:checked').textContent"),
    )
    .expect("text");
    let of = if vm == "web" { 0.0 } else { 1.0 };
    let added = |value: &Value| value.as_f64().map_or(value.clone(), |it| json!(it + of));
    let expected: Vec<Vec<Value>> = expected
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row.as_array().expect("cells").iter().map(added).collect())
        .collect();
    assert_eq!(shown, rounded(&json!(expected)));
    assert_eq!(page.complaints(), [""; 0]);
}

/// With numbers to the nearest whole one.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(rounded).collect(),
        Value::Number(number) => json!(number.as_f64().expect("a float").round()),
        other => other.clone(),
    }
}

#[test]
fn report_fits_a_phone() {
    let Some(browser) = browser() else { return };
    let recording = recording(&[NAME, "db"], 60, 0.0);
    let (mut page, _dir) = open(&browser, &report(&[("base", 1, &recording)]), PHONE);
    charts(&mut page);
    let wide = page.eval("document.documentElement.scrollWidth");
    assert!(wide.as_u64().is_some_and(|wide| wide <= 390), "{wide}");
    assert_eq!(page.complaints(), [""; 0]);
}
