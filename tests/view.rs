//! The pages in a real browser: what they show is what is in their data, and nobody complains.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use memvisor::recording::{Column, Recording};
use memvisor::telemetry::Series;
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
/// whether there is colour inside: grounds and grids are grey.
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
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const inside = copy.getImageData(left + 2, top + 2, width - 4, height).data;
            let coloured = 0;
            for (let i = 0; i < inside.length; i += 4) {
                const [r, g, b] = inside.slice(i, i + 3);
                if (Math.max(r, g, b) - Math.min(r, g, b) > 60) coloured += 1;
            }
            found.push([figure.querySelector('figcaption').textContent, Number(figure.dataset.points), coloured > 50]);
        }
        return found;
    })()";
    let found = page.eval(script);
    serde_json::from_value(found).expect("as the script makes them")
}

/// Checks each number that the page shows against a recording at sample `i`.
fn check_numbers(page: &mut Page, recording: &Recording, i: usize) {
    let numbers = page.numbers();
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
    assert_eq!(charts.len(), 3 + 2 * 11, "{charts:?}");
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
        "– not judged",
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

fn says(page: &mut Page, words: &str) {
    eventually(&format!("the page says: {words}"), PATIENCE, || {
        let status = page.eval("document.querySelector('.status').textContent");
        status
            .as_str()
            .is_some_and(|said| said.contains(words))
            .then_some(())
    });
}

#[test]
fn live_page_shows_pressure_within_two_seconds() {
    let Some(browser) = browser() else { return };
    let engine = engines()[0];
    let args = |address: &'static str| ["--http", address, "--share-scan-time", "0.01"];
    let host = Host::quiet(engine, "80M", &args("127.0.0.1:0"));
    let address = host.http_address();
    let mut page = Page::open(&browser, &format!("http://{address}/"), DESKTOP);
    says(&mut page, "Live");
    let guests = ["a", "b"].map(|name| {
        let seed = name.as_bytes()[0];
        host.guest(
            name,
            &format!("--seed {seed} --memory 64M --workload idle,size=56M"),
        )
    });
    // By the clock of the host, so that a busy machine has no say in it.
    let pressed = eventually("there is pressure", PATIENCE, || {
        let status = host.status();
        let taken = status.vms.iter().map(|vm| {
            vm.homes.compressed_pages.0 + vm.homes.swapped_pages.0 + vm.homes.ballooned_pages.0
        });
        (taken.sum::<u64>() > 0).then_some(status.uptime_ms)
    });
    let script = "(() => {
        const run = page.charts.values().next().value?.host;
        const names = ['compressed', 'swapped', 'ballooned'].map((home) => `memvisor_vm_memory_bytes{home=\"${home}\"}`);
        const taken = (i) => [...run.vms.values()].some((columns) => names.some((name) => columns.get(name)?.[i] > 0));
        return run ? run.at[run.at.findIndex((_, i) => taken(i))] ?? null : null;
    })()";
    let shown = eventually("the page shows it", PATIENCE, || page.eval(script).as_f64());
    assert!(
        shown * 1000.0 <= 2000.0 + f64::from(u32::try_from(pressed).expect("seconds")),
        "{shown} s, {pressed} ms"
    );
    host.rest(&["a", "b"], PATIENCE);
    for (title, points, inked) in charts(&mut page) {
        assert!(points > 0 && inked, "{title}: {points} points, {inked}");
    }
    assert_eq!(page.complaints(), [""; 0]);
    guests.into_iter().for_each(|guest| drop(guest.stop()));
    host.stop();
    says(&mut page, "does not answer");
    let again: &'static str = Box::leak(address.to_string().into_boxed_str());
    let host = Host::quiet(engine, "80M", &args(again));
    says(&mut page, "Live");
    host.stop();
}

/// Not a check but a measurement: `cargo test --release --test view -- --ignored --nocapture`.
#[test]
#[ignore = "says how long a long report takes to open, which depends on the machine"]
fn report_of_eight_guests_opens() {
    let Some(browser) = browser() else { return };
    let vms: Vec<String> = (1..=8).map(|vm| format!("guest{vm}")).collect();
    let vms: Vec<&str> = vms.iter().map(String::as_str).collect();
    let recording = recording(&vms, 600, 0.0);
    let (mut page, dir) = open(&browser, &report(&[("base", 1, &recording)]), DESKTOP);
    let bytes = fs::metadata(dir.path().join("report.html"))
        .expect("written")
        .len();
    let loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd";
    let loaded = eventually("it has loaded", PATIENCE, || {
        page.eval(loaded).as_f64().filter(|ms| *ms > 0.0)
    });
    println!("{bytes} bytes, loaded and drawn after {loaded:.0} ms");
    assert!(loaded < 2000.0 && bytes < 5_000_000);
}
