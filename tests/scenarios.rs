//! `memvisor run` and `memvisor compare` as people use them: real hosts and guests for some seconds.

mod rig;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use rig::{PATIENCE, Process, eventually, memvisor, scratch};
use serde_json::Value;

/// How long a run of some seconds may take on a busy machine.
const LONG: Duration = Duration::from_secs(180);

/// A host with two stores, of which one is killed and started again.
const SMALL: &str = r#"title = "Small"
duration = "4s"
interval = "200ms"
[host]
memory = "24M"
[[guest]]
name = "kv"
count = 2
memory = "16M"
workloads = ["kv,size=8M,content=text,rate=16M"]
[[change]]
at = "0s"
set = { kv-1.limit = "15M", kv-2.balloon = "1M" }
[[change]]
at = "1500ms"
kill = "kv-2"
set = { kv-1.shares = "high", Mem.IdleTax = 10 }
[[change]]
at = "2500ms"
start = "kv-2"
"#;

fn start(dir: &Path, words: &[&str]) -> Process {
    let mut command = memvisor();
    command.args(words).current_dir(dir).env("TMPDIR", dir);
    Process::start(command, words[0], dir)
}

/// Runs a command in `dir`; its exit code, what it printed and what it said on standard error.
fn ends(dir: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut process = start(dir, words);
    let status = process.wait(LONG);
    (status.code(), process.stdout(), process.stderr())
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("write");
}

fn result(dir: &Path) -> Value {
    let text = fs::read_to_string(dir.join("result.json")).expect("a result");
    serde_json::from_str(&text).expect("JSON")
}

/// No directory of a run is left, and so no process that uses it.
fn leaves_nothing(dir: &Path) {
    let left: Vec<PathBuf> = fs::read_dir(dir)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.to_string_lossy().contains("memvisor-run-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The samples of a repetition of [`SMALL`] have what was changed, and its two living guests have verified their pages.
fn is_recorded(out: &Path, run: &Value) {
    let guests = run["guests"].as_array().expect("a list");
    assert_eq!(
        guests.len(),
        2,
        "the one that was killed says nothing: {run}"
    );
    assert!(
        guests
            .iter()
            .all(|guest| guest["pages_verified"].as_u64() > Some(0))
    );
    let run = out.join(run["dir"].as_str().expect("a path"));
    let samples = fs::read_to_string(run.join("samples.json")).expect("samples");
    let samples: Value = serde_json::from_str(&samples).expect("JSON");
    let moments = samples["at_ms"].as_array().expect("a list").len();
    assert!(moments >= 5, "{moments}");
    let marks = samples["marks"].to_string();
    for part in [
        "kv-1: limit = 15M",
        "kv-2: balloon of 1.0 MiB",
        "kv-2 is killed",
        "kv-2 starts",
        "kv-1: shares = high",
        "Mem.IdleTax = 10",
    ] {
        assert!(marks.contains(part), "no `{part}` in {marks}");
    }
    let host = fs::read_to_string(run.join("host.csv")).expect("samples");
    assert_eq!(host.lines().count(), moments + 1);
    let shares = samples["vms"]["kv-1"]["memvisor_vm_shares"]
        .as_array()
        .expect("a column");
    assert_eq!(
        shares.last().and_then(Value::as_f64),
        Some(320.0),
        "{shares:?}"
    );
    let limits = samples["vms"]["kv-1"]["memvisor_vm_limit_bytes"]
        .as_array()
        .expect("a column");
    let limit = f64::from(15 << 20);
    assert_eq!(
        limits.last().and_then(Value::as_f64),
        Some(limit),
        "{limits:?}"
    );
    assert!(run.join("guests/kv-2.2.log").exists());
}

#[test]
fn run_with_changes_and_variants_is_recorded_and_judged() {
    let dir = scratch();
    let text = format!(
        "{SMALL}[variants]\n\"host.engine\" = [\"auto\", \"mprotect\"]\n\
         [[expect]]\ntext = \"it works\"\nof = \"kv-*\"\nseries = \"guest_operations_total\"\nat-least = 1\n\
         [[expect]]\ntext = \"it works beyond measure\"\nof = \"kv-1\"\nseries = \"guest_operations_total\"\nat-least = 1e12\n\
         published = {{ value = 1e12, source = \"a dream\" }}\n"
    );
    write(dir.path(), "small.toml", &text);
    let (code, said, log) = ends(dir.path(), &["run", "small.toml", "--out", "out"]);
    assert_eq!(code, Some(5), "{said}{log}");
    for part in [
        "holds it works [engine=auto]",
        "FAILS it works beyond measure",
        "out/report.html",
    ] {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    assert!(log.contains("2 of 4 expectations hold"), "{log}");
    let out = dir.path().join("out");
    let found = result(&out);
    assert_eq!(
        (&found["whole"], &found["why"]),
        (&Value::Bool(true), &Value::Null)
    );
    let variants = found["variants"].as_array().expect("a list");
    assert_eq!(variants[1]["repetitions"][0]["engine"], "mprotect");
    for variant in variants {
        is_recorded(&out, &variant["repetitions"][0]);
    }
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("it works beyond measure") && page.contains("a dream"));
    leaves_nothing(dir.path());

    // The same once more: its directory is there.
    let (code, _, log) = ends(dir.path(), &["run", "small.toml", "--out", "out"]);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("`out` exists already"), "{log}");

    let (code, table, log) = ends(dir.path(), &["compare", "out", "--html", "both.html"]);
    assert_eq!(code, Some(0), "{log}");
    for part in [
        "engine=auto",
        "engine=mprotect",
        "operations of all guests",
        "it works",
    ] {
        assert!(table.contains(part), "no `{part}` in:\n{table}");
    }
    assert!(dir.path().join("both.html").exists());
    let (code, json, log) = ends(dir.path(), &["compare", "out", "out", "--json"]);
    assert_eq!(code, Some(0), "{log}");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["sides"].as_array().map(Vec::len), Some(4));
    assert_eq!(json["rows"][0]["values"][2]["ratio"], 1.0);
}

#[test]
fn one_variant_runs_and_its_result_is_printed_as_json() {
    let dir = scratch();
    let text = SMALL.replace("\"4s\"", "\"3s\"").replace("2500ms", "2s");
    write(
        dir.path(),
        "small.toml",
        &format!("{text}[variants]\nseed = [1, 2]\n"),
    );
    let words = ["run", "small.toml", "--variant", "seed=2", "--json"];
    let (code, said, log) = ends(dir.path(), &words);
    assert_eq!(code, Some(0), "{log}");
    let json: Value = serde_json::from_str(&said).expect("JSON alone");
    let variants = json["variants"].as_array().expect("a list");
    assert_eq!(variants.len(), 1);
    assert_eq!(variants[0]["repetitions"][0]["seed"], 2);
    assert_eq!(json, result(&dir.path().join("results/small-1")));
    let (code, _, log) = ends(dir.path(), &["run", "small.toml", "--variant", "seed=3"]);
    assert_eq!(code, Some(2));
    assert!(log.contains("allowed: seed=1; seed=2"), "{log}");
}

#[test]
fn interruption_keeps_what_was_recorded_and_leaves_no_process() {
    let dir = scratch();
    write(dir.path(), "long.toml", &SMALL.replace("\"4s\"", "\"10m\""));
    let mut process = start(dir.path(), &["run", "long.toml", "--out", "out"]);
    let samples = dir.path().join("out/runs/1/host.csv");
    eventually("three samples", PATIENCE, || {
        let text = fs::read_to_string(&samples).unwrap_or_default();
        (text.lines().count() > 3).then_some(())
    });
    process.send(Signal::SIGINT);
    assert_eq!(process.wait(LONG).code(), Some(130), "{}", process.stderr());
    let found = result(&dir.path().join("out"));
    assert_eq!(found["whole"], false);
    assert_eq!(found["interrupted"], true);
    let why = found["why"].as_str().expect("a reason");
    assert!(
        why.contains("repetition 1 did not run to its end: interrupted"),
        "{why}"
    );
    assert!(process.stderr().contains(why), "{}", process.stderr());
    assert!(dir.path().join("out/runs/1/samples.json").exists());
    let page = fs::read_to_string(dir.path().join("out/report.html")).expect("a report");
    assert!(page.contains("interrupted"));
    leaves_nothing(dir.path());
}

#[test]
fn guest_that_dies_without_being_asked_to_fails_the_run() {
    let dir = scratch();
    let gone = dir.path().join("gone");
    fs::create_dir(&gone).expect("a directory");
    fs::write(gone.join("file"), vec![7; 1 << 20]).expect("a file");
    let workload = format!("files:{},size=4M", gone.display());
    let text = SMALL.replace("kv,size=8M,content=text,rate=16M", &workload);
    write(dir.path(), "bad.toml", &text);
    let mut process = start(dir.path(), &["run", "bad.toml", "--out", "out"]);
    let samples = dir.path().join("out/runs/1/host.csv");
    eventually("three samples", PATIENCE, || {
        let text = fs::read_to_string(&samples).unwrap_or_default();
        (text.lines().count() > 3).then_some(())
    });
    // It is not there any more when the guest starts again.
    fs::remove_dir_all(&gone).expect("it was there");
    let code = process.wait(LONG).code();
    let log = process.stderr();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("guest `kv-") && log.contains("gone"), "{log}");
    let found = result(&dir.path().join("out"));
    assert_eq!(
        (&found["whole"], &found["interrupted"]),
        (&Value::Bool(false), &Value::Bool(false))
    );
    leaves_nothing(dir.path());
}

#[test]
fn what_cannot_run_is_refused_before_anything_starts() {
    let dir = scratch();
    for (from, to, part) in [
        (
            "memory = \"24M\"",
            "memory = \"999T\"",
            "of this machine are free",
        ),
        (
            "count = 2",
            "count = 2\nreservation = \"15M\"",
            "the host would refuse guest `kv-2`",
        ),
        (
            "memory = \"24M\"",
            "memroy = \"24M\"",
            "wrong.toml:5: host.memroy: unknown field `memroy`; near: memory",
        ),
        (
            "memory = \"24M\"",
            "memory = \"24M\"\nswap-dir = \"/no/such\"",
            "swap files cannot be in `/no/such`",
        ),
    ] {
        write(dir.path(), "wrong.toml", &SMALL.replacen(from, to, 1));
        for words in [
            vec!["run", "wrong.toml"],
            vec!["run", "wrong.toml", "--check"],
        ] {
            let (code, _, log) = ends(dir.path(), &words);
            assert_eq!(code, Some(2), "{log}");
            assert!(log.contains(part), "no `{part}` in {log}");
        }
        assert!(!dir.path().join("results").exists());
    }
    write(dir.path(), "right.toml", SMALL);
    let (code, said, log) = ends(dir.path(), &["run", "right.toml", "--check"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(said.contains("right.toml: once, 4s"), "{said}");
    assert!(!dir.path().join("results").exists());
}

#[test]
fn host_that_cannot_start_says_why() {
    let dir = scratch();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let text = SMALL.replacen(
        "memory = \"24M\"",
        &format!("memory = \"24M\"\nhttp = {port}"),
        1,
    );
    write(dir.path(), "port.toml", &text);
    let (code, _, log) = ends(dir.path(), &["run", "port.toml", "--out", "out"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("the host ended") && log.contains(&port.to_string()),
        "{log}"
    );
    leaves_nothing(dir.path());
}

#[test]
fn directories_of_others_are_not_compared() {
    let dir = scratch();
    fs::create_dir(dir.path().join("a")).expect("a directory");
    for (text, part) in [
        (None, "`a` is no results directory of `memvisor run`"),
        (Some("{"), "`a/result.json` is damaged"),
        (Some("{\"format\": 1}"), "`a/result.json` is damaged"),
        (
            Some("{\"format\": 99}"),
            "has format 99; this version of memvisor reads format 1",
        ),
    ] {
        if let Some(text) = text {
            write(dir.path(), "a/result.json", text);
        }
        let (code, _, log) = ends(dir.path(), &["compare", "a"]);
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains(part), "no `{part}` in {log}");
    }
}
