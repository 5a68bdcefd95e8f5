//! What a replay predicts, compared with what a real host did with real guests.

mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use rig::{Host, PATIENCE, memvisor, modes, names_all, scratch};
use serde_json::Value;

/// How far a prediction may be off.
const WITHIN: f64 = 0.10;
/// The same where accesses to resident pages are guessed.
const GUESSED_WITHIN: f64 = 0.30;
/// How often a kind of run is recorded until a prediction holds.
const RUNS: usize = 3;

/// Two guests that together want more than their host has, recorded from the first to the last page.
struct Recorded {
    _dir: tempfile::TempDir,
    trace: PathBuf,
    lists: Vec<PathBuf>,
}

fn record(engine: &str, guest: &str, host: &[&str]) -> Recorded {
    let dir = scratch();
    let trace = dir.path().join("host.trace");
    let path = trace.to_str().expect("UTF-8");
    let args = [&["--record-trace", path], host].concat();
    let mut host = Host::start(engine, "24M", &args);
    let list = |name: &str| dir.path().join(format!("{name}.csv"));
    let mut guests = ["a", "b"].map(|name| {
        let list = list(name);
        let words = format!(
            "--memory 24M --no-agent --no-sharing {guest} --seed 11 --workload kv,size=16M,write=30,threads=1 \
             --duration 3s --record-accesses {}",
            list.display()
        );
        host.guest(name, &words)
    });
    for guest in &mut guests {
        guest.verifies();
    }
    host.process.terminate();
    assert!(host.process.wait(PATIENCE).success(), "{}", host.log());
    let lists = ["a", "b"].map(list).to_vec();
    Recorded {
        _dir: dir,
        trace,
        lists,
    }
}

fn run(words: &[&str], files: &[&Path]) -> Output {
    let mut command = memvisor();
    command.args(words).args(files);
    command.output().expect("it runs")
}

fn replay(words: &[&str], files: &[&Path]) -> Value {
    let output = run(&[&["replay", "--json"], words].concat(), files);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Compares pages brought back by home, and pages evicted by home, with what was recorded.
fn check(what: &str, results: &Value, within: f64) -> Result<(), String> {
    let count = |of: &Value, name: &str| of[name].as_u64().expect(name);
    let (recorded, replayed) = (&results["recorded"], &results["outcomes"][0]);
    assert_eq!(recorded["policy"], replayed["policy"], "{what}");
    assert_eq!(recorded["victims"], replayed["victims"], "{what}");
    for name in [
        "refaults",
        "refills_zip",
        "refills_swap",
        "evicted_zip",
        "evicted_swap",
    ] {
        let (real, found) = (count(recorded, name), count(replayed, name));
        assert!(real > 1000, "{what}: only {real} {name} were recorded");
        let off = found as f64 / real as f64 - 1.0;
        eprintln!(
            "{what}: {name} {real}, predicted {found}, {:+.1} %",
            off * 100.0
        );
        if off.abs() > within {
            return Err(format!("{what}: {name} {real}, predicted {found}"));
        }
    }
    let optimum = count(&results["bounds"][0], "refaults");
    assert!(optimum < count(replayed, "refaults"), "{what}");
    Ok(())
}

/// The check of replay: the policy and the victims under which a run was recorded bring back and evict as many pages in
/// the replay as they did, by home.
///
/// A host that must wait for a processor, because other tests have them, evicts later than a replay, which does not
/// know of them. So each kind of run may be recorded again.
#[test]
fn replay_predicts_what_the_recorded_host_did() {
    let victims = ["random", "second-chance"];
    for (at, (engine, words)) in modes().into_iter().enumerate() {
        let victims = victims[at % victims.len()];
        let set = format!("Memvisor.Victims={victims}");
        let what = format!("{engine} {words} {victims}");
        let check_one = || {
            let recorded = record(engine, words, &["--set", &set]);
            let mut files: Vec<&Path> = vec![&recorded.trace];
            files.extend(recorded.lists.iter().map(PathBuf::as_path));
            check(&what, &replay(&[], &files), WITHIN)?;
            if victims == "random" {
                let alone = replay(&[], &[&recorded.trace]);
                check(&format!("{what}, host alone"), &alone, GUESSED_WITHIN)?;
            }
            Ok::<_, String>(())
        };
        let mut off = Vec::new();
        while let Err(how) = check_one() {
            off.push(how);
            assert!(off.len() < RUNS, "{off:?}");
        }
    }
}

#[test]
fn trace_is_dumped_as_far_as_it_is_whole_and_replayed_by_what_is_left() {
    let (engine, words) = modes().swap_remove(0);
    let recorded = record(engine, words, &[]);
    let dump = |words: &[&str]| {
        let output = run(&[&["trace", "dump"], words].concat(), &[&recorded.trace]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status.code(), text, said)
    };
    let (code, text, said) = dump(&[]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    names_all(&text, "a: b: untouched -> resident compresses host ended");
    let (_, json, _) = dump(&["--json"]);
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for line in json.lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        assert!(line["at_us"].is_u64() && line["vm"].is_u64(), "{line}");
        let what = line["what"].as_str().expect("a kind");
        *kinds.entry(what.to_owned()).or_default() += 1;
    }
    assert_eq!((kinds["host"], kinds["vm"], kinds["gone"]), (1, 2, 2));
    assert_eq!(kinds["end"], 1);
    let bytes = fs::read(&recorded.trace).expect("there");
    let events: u64 = ["moved", "accessed", "compressed", "hashed"]
        .iter()
        .filter_map(|kind| kinds.get(*kind))
        .sum();
    assert!((bytes.len() as f64) < 8.0 * events as f64, "{kinds:?}");

    fs::write(&recorded.trace, &bytes[..bytes.len() * 2 / 3]).expect("our own");
    let (code, whole, said) = dump(&[]);
    assert_eq!(code, Some(1));
    names_all(&said, "host.trace: byte cut off missing");
    assert!(text.starts_with(&whole) && whole.len() > text.len() / 3);
    let output = run(&["replay"], &[&recorded.trace]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    names_all(&said, "byte cut off guessed");

    fs::write(&recorded.trace, b"memtrace\x09\0\0\0").expect("our own");
    let output = run(&["replay"], &[&recorded.trace]);
    assert_eq!(output.status.code(), Some(2));
    names_all(&String::from_utf8_lossy(&output.stderr), "version 9 1");
}

#[test]
fn list_of_others_is_replayed_and_shown_as_a_page() {
    let dir = scratch();
    let list = dir.path().join("list.csv");
    // Two VMs that each sweep 800 pages, where 1024 are there.
    let lines = (0..8000_u32).map(|at| format!("{},vm{},{}\n", at * 500, at % 2, at / 2 % 800));
    let text = "time_us,vm,gfn\n".to_owned() + &lines.collect::<String>();
    fs::write(&list, text).expect("our own directory");
    let page = dir.path().join("page.html");
    let html = page.to_str().expect("UTF-8");
    let words = "replay --memory 4M --policy esx,equal --victims random,second-chance";
    let words: Vec<&str> = words.split(' ').chain(["--html", html]).collect();
    let output = run(&words, &[&list]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    names_all(&said, "compress not known");
    let table = String::from_utf8_lossy(&output.stdout);
    names_all(
        &table,
        "esx equal random second-chance optimum fair LRU 8000",
    );
    let page = fs::read_to_string(page).expect("written");
    names_all(
        &page,
        "equal second-chance memvisor_vm_memory_bytes vm0 vm1",
    );

    let fails = |words: &str, named: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let output = run(&words, &[&list]);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        names_all(&String::from_utf8_lossy(&output.stderr), named);
    };
    fails("replay", "--memory SIZE");
    fails("replay --memory 4M --victims randon", "`randon` `random`?");
    fails("replay --memory 4M --policy esy", "`esy` esx");
    fails("replay --memory 4M --cost swop=1ms", "`swop` `swap`?");
    fs::write(&list, "time_us,vm,gfn\n1,a,b\n").expect("our own directory");
    fails("replay --memory 4M", "list.csv:2: `b`");
}

/// What docs/replay.md shows is run.
#[test]
fn commands_of_the_document_print_what_it_says() {
    rig::document::runs(include_str!("../docs/replay.md"), 1);
}
