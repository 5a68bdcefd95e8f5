//! What a host says of itself, it says everywhere: the control socket, `vm ls`, `top` as JSON, as CSV and as a screen,
//! the metrics, the live page, and the report that a recording becomes.
//!
//! The host is at rest, so that nearly all numbers stand still. The rest (times, averages) must lie between what the
//! status had before everything else was read and what it had afterwards. That is exact: each surface is read between.

mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::process::Output;

use memvisor::recording::Recording;
use memvisor::settings::BALLOON_LAWS;
use memvisor::telemetry::{HostStatus, Series};
use memvisor::view::{self, Report, Run};
use rig::browser::{Page, browser};
use rig::openmetrics::{Sample, parse, scrape};
use rig::{Host, PATIENCE, engines, eventually};
use serde_json::Value;

const WINDOW: (u32, u32) = (1280, 900);
const NAMES: [&str; 2] = ["a", "b"];
/// Documents the fields of `top`; a unit test holds it to them.
const TOP: &str = include_str!("../docs/top.md");

/// A number of the host, whose VM is "", or of a VM.
type Place = (String, String);

/// What everything else is compared with: the status before and after.
struct Truth {
    before: Value,
    after: Value,
    /// How many numbers were compared, and how many of these stood still.
    compared: usize,
    still: usize,
}

impl Truth {
    /// The status of the host or a VM, before and after.
    fn of(&self, vm: &str) -> [&Value; 2] {
        [&self.before, &self.after].map(|status| match vm {
            "" => status,
            vm => {
                let vms = status["vms"].as_array().expect("a list");
                let found = vms.iter().find(|it| it["name"] == vm);
                found.unwrap_or_else(|| panic!("there is no VM {vm}"))
            }
        })
    }

    /// Compares what a surface says of a number with what `read` finds in the status.
    fn check(
        &mut self,
        surface: &str,
        (vm, name): (&str, &str),
        said: Option<f64>,
        off: f64,
        read: impl Fn(&Value) -> Option<f64>,
    ) -> Result<(), String> {
        let [before, after] = self.of(vm).map(&read);
        self.compared += 1;
        self.still += usize::from(before == after);
        let agree = match (before, said, after) {
            (Some(before), Some(said), Some(after)) => {
                let off = off + 1e-9 * said.abs();
                (before.min(after) - off..=before.max(after) + off).contains(&said)
            }
            (before, said, after) => said.is_none() && (before.is_none() || after.is_none()),
        };
        match agree {
            true => Ok(()),
            false => Err(format!(
                "{surface} says of `{vm}` that {name} is {said:?}; the status had {before:?}, then {after:?}"
            )),
        }
    }

    /// Compares JSON, number by number.
    fn check_json(&mut self, surface: &str, vm: &str, said: &Value) -> Result<(), String> {
        let mut paths = Vec::new();
        numbers_in(said, "", &mut paths);
        for (path, number) in paths {
            let read = |status: &Value| status.pointer(&path).and_then(Value::as_f64);
            self.check(surface, (vm, &path), Some(number), 0.0, read)?;
        }
        Ok(())
    }

    /// Compares numbers under the names of series.
    fn check_series(
        &mut self,
        surface: &str,
        said: &BTreeMap<Place, Option<f64>>,
    ) -> Result<(), String> {
        let all: Vec<Series> = Series::of_host().chain(Series::of_vm()).collect();
        for ((vm, name), value) in said {
            let series = all.iter().find(|series| series.name() == *name);
            let series = series.unwrap_or_else(|| panic!("{surface}: {name} is no series"));
            self.check(surface, (vm, name), *value, 0.0, |it| series.read(it))?;
        }
        Ok(())
    }

    /// Compares the counters of a line of `top --batch`.
    fn check_batch(&mut self, fields: &[Field], text: &str) -> Result<(), String> {
        let lines: Vec<Vec<&str>> = text.lines().map(cells).collect();
        let [headings, line] = &lines[..] else {
            panic!("two lines: {text}");
        };
        for (heading, cell) in headings.iter().zip(line).skip(1) {
            let (group, counter) = heading.rsplit_once('\\').expect(heading);
            let vm = group.rsplit_once(':').map_or("", |(_, name)| name);
            let vm = vm.trim_end_matches(')');
            let is_meant =
                |field: &&Field| field.counter == counter && field.is_of_vm != vm.is_empty();
            let field = fields.iter().find(is_meant).expect(heading);
            let said = cell.parse().ok();
            self.check("top --batch", (vm, counter), said, 0.0, |it| field.read(it))?;
        }
        Ok(())
    }

    /// Compares the table of VMs on the screen of `top`, and the header of the host.
    fn check_screen(&mut self, fields: &[Field], text: &str) -> Result<(), String> {
        let mut lines = text.lines().skip_while(|line| !line.starts_with("NAME "));
        let headings: Vec<&str> = lines.next().expect(text).split_whitespace().collect();
        let rows = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        for row in rows.filter(|row| NAMES.contains(&row[0])) {
            for (heading, cell) in headings.iter().zip(&row).skip(1) {
                let is_meant = |field: &&Field| field.is_of_vm && field.name == *heading;
                let Some(field) = fields.iter().find(is_meant) else {
                    assert_eq!(*heading, "HOMES", "{text}");
                    continue;
                };
                self.check_cell(field, row[0], cell)?;
            }
        }
        // `17.2 free`: the number, then its name.
        for field in fields
            .iter()
            .filter(|field| !field.is_of_vm && field.unit == "MiB")
        {
            // In its line it is called as the other one of that kind.
            let name = if field.name == "ballooned" {
                "curr"
            } else {
                field.name.as_str()
            };
            let words: Vec<&str> = text.split_whitespace().collect();
            let pairs = words.windows(2).filter(|pair| pair[1] == name);
            let found: Vec<_> = pairs
                .map(|pair| self.check_cell(field, "", pair[0]))
                .collect();
            assert!(!found.is_empty(), "no {name} in\n{text}");
            if found.iter().all(Result::is_err) {
                return found.into_iter().next().expect("one at least");
            }
        }
        Ok(())
    }

    /// Compares what stands on the screen: a word, or a number that was rounded.
    fn check_cell(&mut self, field: &Field, vm: &str, cell: &str) -> Result<(), String> {
        let rounded = match cell.split_once('.') {
            Some((_, digits)) => 0.5 / 10_f64.powi(i32::try_from(digits.len()).expect("few")),
            None => 0.5,
        };
        let name = field.name.as_str();
        match cell.parse() {
            Ok(number) => self.check("top", (vm, name), Some(number), rounded, |it| {
                field.read(it)
            }),
            Err(_) if cell == "-" => self.check("top", (vm, name), None, 0.0, |it| field.read(it)),
            Err(_) => {
                let place = READINGS.iter().position(|word| *word == cell);
                let place = place.and_then(|place| u32::try_from(place).ok());
                self.check("top", (vm, name), place.map(f64::from), 0.0, |it| {
                    field.read(it)
                })
            }
        }
    }
}

const READINGS: [&str; 4] = ["awesome", "good", "hmm", "oops"];
const STATES: [&str; 5] = ["high", "clear", "soft", "hard", "low"];

/// A row of the tables of docs/top.md.
struct Field {
    name: String,
    unit: String,
    /// Pointers into the status; of several, the first less the others.
    paths: Vec<String>,
    counter: String,
    is_of_vm: bool,
}

impl Field {
    /// All fields. Rates are left out of the paths: the first screen shows those that the host measured itself.
    fn all() -> Vec<Self> {
        let rows = TOP.lines().filter(|line| line.starts_with("| `"));
        let columns = rows.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let fields = columns.filter(|columns| columns.len() == 7);
        let field = |columns: Vec<&str>| {
            let paths = columns[4].split(" less ").map(|path| {
                let is_rate = path.starts_with("rate ");
                let path = path.trim_start_matches("rate ").trim_matches('`');
                let path = path.trim_start_matches("vms[].").replace('.', "/");
                match is_rate {
                    true => format!("/rates/{path}"),
                    false => format!("/{path}"),
                }
            });
            Self {
                name: columns[1].split('`').nth(1).expect("a name").to_owned(),
                unit: columns[2].to_owned(),
                paths: paths.collect(),
                counter: columns[5].trim_matches('`').to_owned(),
                is_of_vm: false,
            }
        };
        let mut all: Vec<Self> = fields.map(field).collect();
        let of_vms = TOP
            .split("<!-- numbers of the host -->")
            .next()
            .expect("a part");
        let count = of_vms
            .lines()
            .filter(|line| line.matches('|').count() == 6 && line.starts_with("| `"));
        let count = count.count();
        all[..count]
            .iter_mut()
            .for_each(|field| field.is_of_vm = true);
        all
    }

    fn read(&self, status: &Value) -> Option<f64> {
        let mut parts = self.paths.iter().map(|path| {
            let number = match status["vms"].as_array() {
                // The host's rates are the sums of those of its VMs.
                Some(vms) if path.starts_with("/rates/") => {
                    let rates = vms.iter().map(|vm| vm.pointer(path)?.as_f64());
                    rates.sum::<Option<f64>>()?
                }
                _ => number(status.pointer(path)?)?,
            };
            Some(match self.unit.as_str() {
                "MiB" => number / 256.0,
                "MiB/s" => number / 1_048_576.0,
                "s" => number / 1000.0,
                _ if path.starts_with("/overcommit/") => number / 100.0,
                _ => number,
            })
        });
        let first = parts.next()??;
        Some((first - parts.flatten().sum::<f64>()).max(0.0))
    }
}

/// A number, or the place of a word among its kind.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(word) => {
            let kinds = [&READINGS[..], &STATES[..], BALLOON_LAWS];
            let mut places = kinds
                .iter()
                .map(|kind| kind.iter().position(|it| it == word));
            let place = places.find_map(|place| place)?;
            Some(f64::from(u32::try_from(place).ok()?))
        }
        Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
        value => value.as_f64(),
    }
}

/// The cells of a line of CSV in which all are quoted and none has a quote in it.
fn cells(line: &str) -> Vec<&str> {
    let line = line
        .strip_prefix('"')
        .and_then(|line| line.strip_suffix('"'));
    line.expect("quoted").split("\",\"").collect()
}

/// All numbers in JSON, by their pointers. Lists are of VMs, which are compared one by one, or histories.
fn numbers_in(value: &Value, path: &str, into: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                numbers_in(value, &format!("{path}/{name}"), into);
            }
        }
        Value::Number(number) => into.push((path.to_owned(), number.as_f64().expect("finite"))),
        _ => {}
    }
}

fn by_name(vms: &Value) -> Vec<(String, &Value)> {
    let vms = vms.as_array().expect("a list").iter();
    vms.map(|vm| (vm["name"].as_str().expect("a name").to_owned(), vm))
        .collect()
}

/// What the metrics say, under the names of series. Words are at their places in the list of words.
fn series_of(samples: &BTreeMap<Sample, f64>) -> BTreeMap<Place, Option<f64>> {
    let all: Vec<Series> = Series::of_host().chain(Series::of_vm()).collect();
    let mut found = BTreeMap::new();
    for ((name, labels), value) in samples {
        let mut labels = labels.clone();
        let vm = labels.remove("vm").unwrap_or_default();
        // No other surface has series of resource pools.
        if name.ends_with("_info") || labels.contains_key("pool") {
            continue;
        }
        if let Some(word) = labels.get(name) {
            let series = all
                .iter()
                .find(|series| series.name() == *name)
                .expect(name);
            let place = series.words().iter().position(|it| it == word).expect(word);
            if *value > 0.0 {
                let place = f64::from(u32::try_from(place).expect("few"));
                found.insert((vm, name.clone()), Some(place));
            }
            continue;
        }
        let name = labels.iter().next().map_or(name.clone(), |(label, value)| {
            format!("{name}{{{label}=\"{value}\"}}")
        });
        found.insert((vm, name), Some(*value));
    }
    found
}

/// What a page shows, under the names of series.
fn shown(page: &mut Page) -> BTreeMap<Place, Option<f64>> {
    let numbers = page.numbers().into_iter();
    numbers.map(|(place, (value, _))| (place, value)).collect()
}

fn run(host: &Host, words: &str) -> String {
    let output: Output = host.command(words).output().expect("start");
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).expect("a text")
}

/// A report whose recording has the one sample that `status` is.
fn report(browser: &std::path::Path, host: &Host, status: &HostStatus) -> Page {
    let mut recording = Recording::default();
    recording.push(0, status, &BTreeMap::new());
    let report = Report {
        title: "at rest".to_owned(),
        facts: Vec::new(),
        unfinished: None,
        runs: vec![Run {
            variant: "base".to_owned(),
            repetition: 1,
            recording: &recording,
        }],
        expectations: Vec::new(),
        tables: Vec::new(),
    };
    let file = host.path().join("report.html");
    fs::write(&file, view::page(&report)).expect("write the report");
    Page::open(browser, &format!("file://{}", file.display()), WINDOW)
}

/// Reads everything between two looks at the status, and compares it.
fn compare(host: &Host, fields: &[Field], live: Option<&mut Page>) -> Result<(), String> {
    let before = host.status();
    let listed: Value = serde_json::from_str(&run(host, "vm ls --json")).expect("JSON");
    let top: Value = serde_json::from_str(&run(host, "top --json -n 1")).expect("JSON");
    let batch = run(host, "top --batch -n 1");
    let screen = run(host, "top --once");
    let samples = parse(&scrape(host.http_address()));
    let on_page = live.map(shown);
    let after = host.status();
    let mut truth = Truth {
        before: serde_json::to_value(&before).expect("plain data"),
        after: serde_json::to_value(after).expect("plain data"),
        compared: 0,
        still: 0,
    };
    for (name, vm) in by_name(&listed) {
        truth.check_json("vm ls --json", &name, vm)?;
    }
    let status = &top["status"];
    truth.check_json("top --json", "", status)?;
    for (name, vm) in by_name(&status["vms"]) {
        truth.check_json("top --json", &name, vm)?;
    }
    truth.check_batch(fields, &batch)?;
    truth.check_screen(fields, &screen)?;
    let series = series_of(&samples);
    assert!(series.len() > 200, "{series:?}");
    truth.check_series("/metrics", &series)?;
    if let Some(on_page) = on_page {
        assert!(on_page.len() >= 5 + 2 * 9, "{on_page:?}");
        truth.check_series("the live page", &on_page)?;
    }
    println!(
        "{} numbers, of which {} stood still",
        truth.compared, truth.still
    );
    // Else next to nothing has been compared.
    assert!(truth.compared > 800 && truth.still * 10 > truth.compared * 9);
    Ok(())
}

#[test]
fn all_surfaces_show_the_same_numbers_at_the_same_moment() {
    // Scans fast, to be at rest soon.
    let args = ["--http", "127.0.0.1:0", "--share-scan-time", "0.01"];
    let host = Host::quiet(engines()[0], "80M", &args);
    let guests = NAMES.map(|name| {
        let seed = name.as_bytes()[0];
        let words = format!("--seed {seed} --memory 64M --workload idle,size=56M");
        host.guest(name, &words)
    });
    host.rest(&NAMES, PATIENCE);
    let fields = Field::all();
    let browser = browser();
    let mut live = browser.as_deref().map(|browser| {
        let url = format!("http://{}/", host.http_address());
        Page::open(browser, &url, WINDOW)
    });
    let mut said = String::new();
    // The page may show the second before, and the workers may have moved a last page.
    eventually("all surfaces agree", PATIENCE, || {
        let Err(wrong) = compare(&host, &fields, live.as_mut()) else {
            return Some(());
        };
        if said != wrong {
            println!("{wrong}");
            said = wrong;
        }
        None
    });
    if let Some(browser) = browser {
        let status = host.status();
        let json = serde_json::to_value(&status).expect("plain data");
        let mut truth = Truth {
            before: json.clone(),
            after: json,
            compared: 0,
            still: 0,
        };
        let mut page = report(&browser, &host, &status);
        let on_page = shown(&mut page);
        assert!(on_page.len() >= 5 + 2 * 9, "{on_page:?}");
        let same = truth.check_series("the report", &on_page);
        same.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(page.complaints(), [""; 0]);
    }
    guests.into_iter().for_each(|guest| drop(guest.stop()));
    host.stop();
}
