//! The calculator as people use it. It must also give each of the worked numbers in docs/policy.md.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use memvisor::calculator::{Format, Report, Scenario, VmReport};
use memvisor::policy::policies;
use memvisor::units::Pages;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn plan(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_memvisor"))
        .arg("plan")
        .args(args)
        .current_dir(root())
        .env_remove("MEMVISOR_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    // This fails where the calculator reads a named file instead and ends.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const TWO: &str = "[host]\nmemory = \"8G\"\n[vm.web]\nsize = \"8G\"\nactive = \"1G\"\n\
                   [vm.sql]\nsize = \"8G\"\nactive = \"8G\"\n";

#[test]
fn table_has_the_host_and_a_line_for_each_vm() {
    let text = stdout(&plan(&["-"], TWO));
    for part in [
        "state      low (it was high)",
        "ESX 5.0: soft below 262.1 MiB",
        "8.00 GiB more than there is",
        "VM   SHARES",
        "host-short  the host is too short",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let web = text
        .lines()
        .find(|line| line.starts_with("web "))
        .expect("a line");
    let words: Vec<&str> = web.split_whitespace().collect();
    assert_eq!(words[..4], ["web", "81920", "0", "none"], "{web}");
}

#[test]
fn json_names_its_units_and_has_the_vms() {
    let text = stdout(&plan(&["-", "--json"], TWO));
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["memory_pages"], 2 << 20);
    assert_eq!(report["state"], "low");
    assert_eq!(report["mechanisms"]["block"], true);
    assert_eq!(report["thresholds_pages"]["min_free"], 104_857);
    let vms = report["vms"].as_array().expect("an array");
    let sum: u64 = vms
        .iter()
        .filter_map(|vm| vm["target_pages"].as_u64())
        .sum();
    let available = report["available_pages"].as_u64().expect("a number");
    assert!(
        sum <= available && sum + 2 >= available,
        "{sum} of {available}"
    );
}

#[test]
fn why_explains_one_vm_with_what_would_change_it() {
    let text = stdout(&plan(&["-", "--why", "web"], TWO));
    for part in [
        "VM web: ",
        "idle 7.00 GiB",
        "75 % (variable): a page that is idle costs as much as 4 in use",
        "by Mem.CtlMaxPercent",
        "With 163840 shares, twice as many: target ",
        "Without the idle memory tax",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let text = stdout(&plan(&["-", "--why", "sql", "--json"], TWO));
    let why: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(why["name"], "sql");
    assert_eq!(why["memory"]["size"], 2 << 20);
}

#[test]
fn files_of_both_formats_are_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let json = r#"{"host": {"memory": "8G"}, "vm": {"a": {"size": "1G"}}}"#;
    let toml = "[host]\nmemory = \"8G\"\n[vm.a]\nsize = \"1G\"\n";
    let mut seen = BTreeSet::new();
    for (name, text) in [("a.json", json), ("a.toml", toml), ("a", json), ("b", toml)] {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("write");
        seen.insert(stdout(&plan(&[path.to_str().expect("UTF-8")], "")));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn wrong_files_exit_with_2_and_say_where() {
    let wrong = "[host]\nmemory = \"8G\"\n[settings]\nMem.IdleTax = 100\n[vm.web]\nsize = 8\n";
    let output = plan(&["-"], wrong);
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(
        error.contains("standard input:4: Mem.IdleTax cannot be `100`"),
        "{error}"
    );
    assert!(
        error.contains("standard input:6: VM web: size cannot be `8`"),
        "{error}"
    );
    assert!(output.stdout.is_empty());
    let output = plan(&["-", "--why", "nobody"], TWO);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("allowed: web, sql"),
        "{}",
        stderr(&output)
    );
    let output = plan(&["/nowhere/x.toml"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/nowhere/x.toml"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn policy_of_the_command_line_replaces_that_of_the_file() {
    let target = |args: &[&str]| {
        let report = stdout(&plan(
            &[&["docs/plans/stall.toml", "--json"], args].concat(),
            "",
        ));
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        (
            report["policy"].clone(),
            report["vms"][0]["target_pages"].clone(),
        )
    };
    assert_eq!(target(&[]), ("stall".into(), 64_550.into()));
    assert_eq!(
        target(&["--policy", "equal"]),
        ("equal".into(), 45_800.into())
    );
    let why = ["docs/plans/stall.toml", "--why", "busy"];
    let why = stdout(&plan(&why, ""));
    for part in ["policy         stall", "1 us/s", "195.3 MiB, idle "] {
        assert!(why.contains(part), "no `{part}` in:\n{why}");
    }
    let output = plan(&["docs/plans/stall.toml", "--policy", "fair"], "");
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(error.contains("allowed: esx, equal, stall"), "{error}");
    let unknown = "[host]\nmemory = \"8G\"\npolicy = \"fair\"\n[vm.a]\nsize = \"1G\"\n";
    let error = stderr(&plan(&["-"], unknown));
    assert!(
        error.contains("standard input:3: host.policy: there is no policy `fair`"),
        "{error}"
    );
}

#[test]
fn policies_are_listed() {
    let list = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
        stdout(&command.arg("policies").args(args).output().expect("start"))
    };
    let json: serde_json::Value = serde_json::from_str(&list(&["--json"])).expect("JSON");
    for policy in policies::ALL {
        assert!(list(&[]).contains(policy.about()), "{policy:?}");
        let of = |row: &&serde_json::Value| row["name"] == policy.name();
        let row = json.as_array().expect("an array").iter().find(of);
        assert_eq!(row.expect("it is listed")["about"], policy.about());
    }
}

/// Header and cells of each row of the tables in docs/policy.md whose header begins with these cells.
fn tables(begin: &[&str]) -> Vec<(Vec<String>, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/policy.md")).expect("it is there");
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows = Vec::new();
    let mut header: Vec<String> = Vec::new();
    for line in text.lines() {
        if !line.starts_with('|') {
            header.clear();
        } else if header.is_empty() {
            header = cells(line);
        } else if !line.starts_with("|---") && header.iter().zip(begin).all(|(a, b)| a == b) {
            rows.push((header.clone(), cells(line)));
        }
    }
    rows
}

/// Whether a cell, such as `46 600`, `179 MiB` or `2.11 GiB`, says this number of pages.
fn says(cell: &str, pages: Pages) -> bool {
    let bytes = pages.0 as f64 * 4096.0;
    for (unit, shift) in [(" MiB", 20), (" GiB", 30)] {
        if let Some(number) = cell.strip_suffix(unit) {
            let decimals = number.split_once('.').map_or(0, |(_, rest)| rest.len());
            return number == format!("{:.decimals$}", bytes / f64::from(1 << shift));
        }
    }
    cell.replace(' ', "") == pages.0.to_string()
}

fn vm_says(column: &str, cell: &str, vm: &VmReport) -> bool {
    match column {
        "target" => says(cell, vm.target_pages),
        "balloon target" => says(cell, vm.balloon_target_pages),
        "swap target" => says(cell, vm.swap_target_pages),
        "evicted now" => says(cell, vm.evict_pages),
        "waits" => cell == if vm.blocked { "yes" } else { "no" },
        "why" => Some(cell) == serde_json::to_value(vm.why).expect("plain").as_str(),
        other => panic!("no column `{other}`"),
    }
}

fn host_says(column: &str, cell: &str, report: &Report) -> bool {
    match column {
        "state" => cell == report.state.to_string(),
        "free" => says(cell, report.free_pages),
        "minFree" => says(cell, report.thresholds_pages.min_free),
        "aim" => says(cell, report.thresholds_pages.aim),
        "available" => says(cell, report.available_pages),
        "missing" => says(cell, report.shortfall_pages),
        other => panic!("no column `{other}`"),
    }
}

fn worked(file: &Path) -> Report {
    let text = fs::read_to_string(root().join("docs").join(file)).expect("it is there");
    let scenario = Scenario::parse(&file.display().to_string(), Format::Toml, &text);
    scenario.unwrap_or_else(|error| panic!("{error}")).report()
}

/// The file that a cell `[name](plans/name.toml)` links to. An empty cell means the file of the row before.
fn linked(cell: &str, before: &mut PathBuf) -> PathBuf {
    if let Some((_, file)) = cell.split_once("](") {
        *before = PathBuf::from(file.trim_end_matches(')'));
    }
    before.clone()
}

#[test]
fn worked_numbers_of_the_policy_document_are_what_the_calculator_gives() {
    let (mut seen, mut numbers) = (BTreeSet::new(), 0);
    let mut file = PathBuf::new();
    for (header, cells) in tables(&["plan", "VM"]) {
        let report = worked(&linked(&cells[0], &mut file));
        seen.insert(file.clone());
        let vm = report.vms.iter().find(|vm| vm.name == cells[1]);
        let vm = vm.unwrap_or_else(|| panic!("{file:?} has no VM {}", cells[1]));
        for (column, cell) in header.iter().zip(&cells).skip(2) {
            assert!(
                vm_says(column, cell, vm),
                "{file:?}: {column} is not {cell}: {vm:?}"
            );
            numbers += 1;
        }
    }
    for (header, cells) in tables(&["plan", "state"]) {
        let report = worked(&linked(&cells[0], &mut file));
        seen.insert(file.clone());
        for (column, cell) in header.iter().zip(&cells).skip(1) {
            assert!(
                host_says(column, cell, &report),
                "{file:?}: {column} is not {cell}: {report:?}"
            );
            numbers += 1;
        }
    }
    assert!(
        numbers > 60,
        "only {numbers} numbers found: is the search right?"
    );
    let there = fs::read_dir(root().join("docs/plans")).expect("a directory");
    for entry in there {
        let name = Path::new("plans").join(entry.expect("readable").file_name());
        assert!(
            seen.contains(&name),
            "docs/policy.md has no numbers of {name:?}"
        );
    }
}

/// A host with this much memory and the thresholds of this generation of ESX.
fn thresholds(memory: &str, generation: &str) -> Report {
    let text = format!(
        "[host]\nmemory = \"{memory}\"\n[settings]\nMemvisor.FreeStates = \"{generation}\"\n\
         [vm.a]\nsize = \"1M\"\n"
    );
    let scenario = Scenario::parse("a host", Format::Toml, &text);
    scenario.unwrap_or_else(|error| panic!("{error}")).report()
}

#[test]
fn thresholds_of_the_policy_document_are_those_of_the_generations() {
    let rows = tables(&["memory", "ESX"]);
    for (header, cells) in &rows {
        let thresholds = thresholds(&cells[0], &cells[1]).thresholds_pages;
        for (column, cell) in header.iter().zip(cells).skip(2) {
            let pages = match column.as_str() {
                "minFree" => thresholds.min_free,
                "soft" => thresholds.soft,
                "hard" => thresholds.hard,
                "low" => thresholds.low,
                "soft ends" => thresholds.aim,
                "high again" => thresholds.to_high,
                other => panic!("no column `{other}`"),
            };
            assert!(
                says(cell, pages),
                "{cells:?}: {column} is not {cell}: {pages:?}"
            );
        }
    }
    assert!(rows.len() > 5, "only {} rows found", rows.len());
}
