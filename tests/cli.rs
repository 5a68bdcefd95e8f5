//! The executable as a script sees it: exit codes, and what goes to which stream.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use memvisor_guest_agent::guest::GuestReport;

fn memvisor(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("tempdir");
    Command::new(env!("CARGO_BIN_EXE_memvisor"))
        .args(args)
        .env("MEMVISOR_RUNTIME_DIR", dir.path().join("run"))
        .env_remove("MEMVISOR_LOG")
        .output()
        .expect("start")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_without_a_host_exit_with_4_and_say_how_to_start_one() {
    for args in [
        &["vm", "ls"][..],
        &["vm", "balloon", "a", "auto", "--json"],
        &["top", "--once"],
    ] {
        let output = memvisor(args);
        assert_eq!(output.status.code(), Some(4), "{args:?}");
        let error = stderr(&output);
        assert!(error.starts_with("memvisor: "), "{args:?}: {error}");
        assert!(
            error.contains("memvisor host --memory"),
            "{args:?}: {error}"
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for args in [
        &["host", "--memory", "12Q"][..],
        &[
            "guest",
            "--name",
            "a",
            "--memory",
            "1M",
            "--limit",
            "2M",
            "--workload",
            "idle",
        ],
        &[
            "guest",
            "--name",
            "a",
            "--memory",
            "1M",
            "--bare",
            "--reservation",
            "0",
            "--workload",
            "idle",
        ],
        &["nonsense"],
    ] {
        let output = memvisor(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn runtime_directory_too_long_for_a_socket_is_refused_with_the_limit() {
    let dir = format!("/tmp/{}", "x".repeat(100));
    let output = memvisor(&["vm", "ls", "--runtime-dir", &dir]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("at most 107"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn help_goes_to_standard_output_with_the_exit_codes() {
    let output = memvisor(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn bare_guest_needs_no_host_and_reports_as_others_do() {
    let words = "guest --name a --memory 16M --bare --json --duration 300ms --seed 7 \
                 --workload kv,size=4M files:Cargo.lock image:Cargo.lock";
    let output = memvisor(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let report = GuestReport::last_in(&String::from_utf8_lossy(&output.stdout));
    let report = report.expect("a report");
    assert_eq!((report.name.as_str(), report.mismatches), ("a", 0));
    assert!(report.pages_verified >= 1024, "{report:?}");
    assert_eq!(report.workloads.len(), 3);
    assert!(report.peak_bytes >= 4 << 20, "{report:?}");
    assert!(report.own_bytes >= 4 << 20, "{report:?}");
    for workload in &report.workloads {
        assert!(workload.operations > 0, "{report:?}");
        let latency = workload.latency;
        assert!(latency.p50_us > 0.0, "{report:?}");
        assert!(latency.p50_us <= latency.p99_us && latency.p99_us <= latency.max_us);
    }
}

/// Whether a program can be run here. A test that uses one says what it leaves out without.
fn is_here(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    if let Err(error) = &found {
        eprintln!("SKIPPED: {program}: {error}");
    }
    found.is_ok()
}

#[test]
fn manual_has_a_page_of_every_command_that_is_well_formed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pages = dir.path().join("new/man1");
    let output = memvisor(&["man", &pages.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut paths: Vec<_> = fs::read_dir(&pages)
        .expect("made")
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    for of in ["", "-host", "-vm", "-vm-balloon", "-completions", "-man"] {
        let page = pages.join(format!("memvisor{of}.1"));
        assert!(paths.contains(&page), "{page:?} is not in {paths:?}");
    }
    let hidden = |path: &Path| path.to_string_lossy().contains("guard");
    assert!(!paths.iter().any(|path| hidden(path)), "{paths:?}");
    for path in &paths {
        let page = fs::read_to_string(path).expect("text");
        for heading in [".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n"] {
            assert!(page.contains(heading), "{path:?}: no {heading}: {page}");
        }
    }
    if is_here("groff") {
        let read = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .args(&paths)
            .output()
            .expect("start");
        assert!(
            read.status.success() && read.stderr.is_empty(),
            "{}",
            stderr(&read)
        );
    }
}

#[test]
fn manual_that_cannot_be_written_is_told_with_its_place() {
    let output = memvisor(&["man", "Cargo.toml/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`Cargo.toml/x`"));
}

/// What bash offers for the last of `words`.
fn completed(script: &Path, words: &[&str]) -> Vec<String> {
    let ask = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        function=$(complete -p memvisor | sed -E 's/.*-F ([^ ]+).*/\1/')
        "$function" memvisor "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let asked = Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(script)
        .args(words)
        .output()
        .expect("start");
    assert_eq!(stderr(&asked), "");
    let offers = String::from_utf8_lossy(&asked.stdout).into_owned();
    offers.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_names_of_settings() {
    let output = memvisor(&["completions", "bash"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    if !is_here("bash") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let script = dir.path().join("script");
    fs::write(&script, output.stdout).expect("written");
    for (words, offers) in [
        (&["vm", ""][..], &["ls", "show", "balloon", "kill"][..]),
        (&["ho"], &["host"]),
        (&["host", "--prof"], &["--profile"]),
        (&["get", "Mem.Idle"], &["Mem.IdleTax", "Mem.IdleTaxType"]),
        (&["set", "Memvisor.V"], &["Memvisor.Victims"]),
        (&["completions", "z"], &["zsh"]),
    ] {
        let offered = completed(&script, &[&["memvisor"], words].concat());
        for offer in offers {
            assert!(
                offered.iter().any(|it| it == offer),
                "{words:?}: {offered:?}"
            );
        }
    }
    let all = completed(&script, &["memvisor", ""]);
    assert!(!all.iter().any(|it| it.contains("guard")), "{all:?}");
}
