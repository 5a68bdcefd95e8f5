//! `memvisor top` on a real terminal: a pseudo terminal, whose other end is read as a terminal would show it.

mod rig;

use std::fs;
use std::path::Path;
use std::process::Output;

use nix::sys::signal::Signal;
use rig::{Host, PATIENCE, Process, Terminal, engines, eventually, names_all, scratch};

/// `memvisor top` in a terminal of that many columns and lines.
fn open(host: &Host, size: (u16, u16), colour: bool) -> Terminal {
    run_in(host, size, &["--interval", "200ms"], colour)
}

fn run_in(host: &Host, size: (u16, u16), args: &[&str], colour: bool) -> Terminal {
    let mut words = vec![env!("CARGO_BIN_EXE_memvisor"), "top"];
    words.extend(args);
    let run = host.path().join("run");
    Terminal::run(&words, host.path(), &run, size, colour)
}

/// A host with two guests of different sizes.
fn host() -> (Host, [Process; 2]) {
    let engine = engines()[0];
    let host = Host::start(engine, "64M", &[]);
    let guests = [("small", "16M"), ("large", "32M")].map(|(name, size)| {
        let guest = host.guest(
            name,
            &format!("--memory {size} --workload toucher,size=8M,active=1M"),
        );
        host.vm(name);
        guest
    });
    (host, guests)
}

/// The names in the first column of the rows of VMs, and the headings.
fn table(text: &str) -> (Vec<&str>, Vec<&str>) {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("NAME"));
    let headings = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let names = lines.filter_map(|line| line.split_whitespace().next());
    let names = names
        .filter(|name| ["small", "large"].contains(name))
        .collect();
    (names, headings)
}

#[test]
fn screen_is_used_as_a_user_does_and_given_back() {
    let (host, _guests) = host();
    let mut top = open(&host, (80, 24), true);
    let text = top.shows("both guests", |text| table(text).0 == ["small", "large"]);
    for part in [
        "PMEM", "VMKMEM", "PSHARE", "SWAP", "ZIP", "MEMCTL", "HEALTH", " state",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    assert!(!top.is_cooked());
    // Sorted by size, then without the field HEALTH.
    top.types("M");
    top.shows("the large one first", |text| {
        table(text).0 == ["large", "small"]
    });
    top.types("f \x1b[F \x1b");
    top.shows("another choice of fields", |text| {
        table(text).1.get(1) == Some(&"MEMSZ")
    });
    top.types("W");
    top.shows("where it was written", |text| text.contains("written to"));
    // Wider, then too small, then large enough again.
    top.resize(160, 50);
    top.shows("more fields", |text| {
        table(text).1.contains(&"SWW/s") && text.contains("STALL")
    });
    top.resize(60, 10);
    top.shows("what it needs", |text| text.contains("needs 80 x 16"));
    top.resize(80, 24);
    top.shows("both guests again", |text| {
        table(text).0 == ["large", "small"]
    });
    top.types("h");
    top.shows("help", |text| {
        text.contains("keys") && text.contains("PgUp")
    });
    top.types("q\r");
    let text = top.shows("why", |text| text.contains("VM large is"));
    assert!(text.contains("where its pages were"), "{text}");
    top.types("qq");
    assert!(top.ends().success());
    // The next start shows what was saved.
    let mut again = open(&host, (80, 24), false);
    again.shows("the saved choice", |text| {
        let (names, headings) = table(text);
        names == ["large", "small"] && headings.get(1) == Some(&"MEMSZ")
    });
    again.types("q");
    assert!(again.ends().success());
}

#[test]
fn terminal_is_given_back_after_signals_and_the_end_of_the_host() {
    let (mut host, guests) = host();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut top = open(&host, (80, 24), true);
        top.shows("a screen", |text| text.contains("MEMCTL"));
        top.send(signal);
        assert_eq!(top.ends().code(), Some(130), "{signal}");
    }
    let mut top = open(&host, (80, 24), true);
    top.shows("a screen", |text| text.contains("MEMCTL"));
    // Ctrl-Z gives the terminal back; SIGCONT takes it again.
    top.types("\x1a");
    eventually("it stops", PATIENCE, || top.is_cooked().then_some(()));
    eventually("it has stopped", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", top.pid())).expect("it runs");
        stat.rsplit(')')
            .next()?
            .trim_start()
            .starts_with('T')
            .then_some(())
    });
    top.send(Signal::SIGCONT);
    eventually("it goes on", PATIENCE, || (!top.is_cooked()).then_some(()));
    top.shows("a screen again", |text| text.contains("MEMCTL"));
    drop(guests);
    host.end();
    assert_eq!(top.ends().code(), Some(4));
    let text = top.shows("an error", |text| text.contains("memvisor: "));
    assert!(!text.contains("PSHARE"), "{text}");
}

fn run(host: &Host, words: &str) -> Output {
    let mut command = host.command(words);
    command.env("XDG_CONFIG_HOME", host.path().join("config"));
    command.output().expect("start")
}

#[test]
fn recording_is_printed_and_replayed_on_the_same_screen() {
    let (host, _guests) = host();
    let path = host.path().join("x.csv");
    let output = run(&host, "top -b -d 0.1 -n 3");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        text.starts_with("\"(PDH-CSV 4.0) (UTC)(0)\",\"\\\\"),
        "{text}"
    );
    assert!(text.contains(":large)\\Memory Size MBytes\""), "{text}");
    fs::write(&path, &text).expect("there is room");
    let args = ["--replay", &path.to_string_lossy()];
    let mut top = run_in(&host, (80, 24), &args, true);
    let text = top.shows("its end", |text| text.contains("3/3 x1 paused"));
    assert_eq!(table(&text).0, ["small", "large"]);
    top.types("p");
    top.shows("the sample before", |text| text.contains("2/3 x1 paused"));
    top.types("q");
    assert!(top.ends().success());
    fs::write(&path, "nothing").expect("there is room");
    let output = run(&host, &format!("top --replay {}", path.display()));
    assert_eq!(output.status.code(), Some(1));
    names_all(
        &String::from_utf8_lossy(&output.stderr),
        "x.csv line recording",
    );
}

#[test]
fn what_cannot_be_shown_is_refused_with_what_can() {
    let engine = engines()[0];
    let host = Host::start(engine, "16M", &[]);
    let output = run(&host, "top");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    names_all(&error, "no terminal --once --batch --json");
    assert_eq!(output.stdout, b"");
    let dir = scratch();
    damaged_configuration(&host, dir.path());
    let output = run(&host, "top --once");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("0 VMs"), "{text}");
    let output = run(&host, "top --json -n 2");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), 2, "{text}");
}

fn damaged_configuration(host: &Host, dir: &Path) {
    let path = dir.join("toprc");
    fs::write(&path, "fields = [\n  \"MEMSZ\",\n  \"SWCRU\",\n]\n").expect("there is room");
    let output = run(host, &format!("top --once --config {}", path.display()));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    names_all(&error, "toprc line 3 `SWCRU` allowed SWCUR");
}
