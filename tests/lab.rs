//! The balloon laboratory as a user has it: real processes, real sockets, a real guest.

mod rig;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rig::{Host, PATIENCE, Process, engines, eventually, memvisor, names, names_all, scratch};
use serde_json::Value;

/// The shipped agent, as a command for a shell.
fn bundled() -> String {
    behaving("well-behaved")
}

fn behaving(behaviour: &str) -> String {
    let program = env!("CARGO_BIN_EXE_memvisor");
    format!("'{program}' balloon agent --behaviour {behaviour}")
}

/// The agent in Python, which was written from the document.
fn python() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/balloon_agent.py");
    format!("python3 '{}'", path.display())
}

fn has_python() -> bool {
    let has = Command::new("python3").arg("--version").output().is_ok();
    if !has {
        eprintln!("SKIPPED: no python3");
    }
    has
}

fn balloon(words: &[&str]) -> Output {
    let mut command = memvisor();
    command.arg("balloon").args(words);
    command.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must end with `code`; its standard output.
#[track_caller]
fn ends(words: &[&str], code: i32) -> String {
    let output = balloon(words);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{words:?}: {out}\n{err}");
    out
}

/// The verdicts of a suite by the names of its cases.
fn verdicts(output: &str) -> Vec<(String, String, String)> {
    let json: Vec<Value> = serde_json::from_str(output).expect("JSON");
    let word = |case: &Value, key: &str| case[key].as_str().unwrap_or_default().to_owned();
    let case = |case: &Value| (word(case, "name"), word(case, "verdict"), word(case, "why"));
    json.iter().map(case).collect()
}

/// The protocols beside ranges, and what the names of their cases have in them.
const PROTOCOLS: [(&str, &str); 5] = [
    ("page-lists", "lists"),
    ("pfn-arrays", "arrays"),
    ("reporting", "report"),
    ("hints", "hints"),
    ("bitmap", "map"),
];

/// The protocol that a case is about.
fn protocol_of(case: &str) -> &'static str {
    let of = PROTOCOLS.iter().find(|(_, part)| case.contains(part));
    of.map_or("ranges", |(protocol, _)| protocol)
}

/// An agent that offers this protocol passes all cases but those of others, which it does not offer.
#[track_caller]
fn passes(cases: &[(String, String, String)], protocol: &str) {
    for (name, verdict, why) in cases {
        let of = protocol_of(name);
        let offered = of == "ranges" || of == protocol;
        let wanted = if offered { "pass" } else { "skip" };
        assert_eq!(verdict, wanted, "{protocol}: {name}: {why}");
    }
    let own = cases
        .iter()
        .filter(|(name, ..)| protocol_of(name) == protocol);
    assert!(own.count() >= 5, "{cases:#?}");
}

#[test]
fn shipped_agent_passes_every_case_of_every_protocol() {
    for (protocol, part) in PROTOCOLS {
        let agent = format!("{} --protocol {protocol}", bundled());
        let list = ends(&["conform", "--list"], 0);
        let names = list.lines().filter(|line| !line.starts_with(' '));
        let own = names.filter(|name| name.contains(part) && !name.starts_with("host-"));
        // Beside its own cases, some in ranges, to which the host agrees if it has nothing else.
        let mut words = vec!["conform", "--agent", &agent, "--json"];
        for name in own.chain(["inflates", "reset", "stop"]) {
            words.extend(["--case", name]);
        }
        passes(&verdicts(&ends(&words, 0)), protocol);
    }
}

#[test]
fn shipped_agent_passes_every_case() {
    let dir = scratch();
    let junit = dir.path().join("junit.xml");
    let path = junit.to_str().expect("text");
    let agent = bundled();
    let output = ends(
        &["conform", "--agent", &agent, "--json", "--junit", path],
        0,
    );
    let cases = verdicts(&output);
    assert!(cases.len() > 20, "{output}");
    passes(&cases, "ranges");
    let xml = fs::read_to_string(junit).expect("written");
    assert_eq!(xml.matches("<testcase ").count(), cases.len(), "{xml}");
    assert!(xml.contains("failures=\"0\""), "{xml}");
}

#[test]
fn agent_in_python_passes_every_case() {
    if !has_python() {
        return;
    }
    let output = ends(&["conform", "--agent", &python(), "--json"], 0);
    passes(&verdicts(&output), "ranges");
}

#[test]
fn broken_agents_fail_the_case_that_they_break() {
    for (behaviour, broken) in [
        ("refuses", "inflates"),
        ("never-deflates", "deflates-to-nothing"),
        ("claims-balloon", "believes-what-it-holds"),
        ("gives-used-pages", "locks-pinned-pages"),
        ("wrong-token", "token"),
        ("reuses-early", "unlocks-first"),
        ("ignores-reset", "reset"),
        ("follower", "stop"),
        (
            "gives-used-pages --protocol page-lists",
            "lists-lock-pinned-pages",
        ),
        ("reuses-early --protocol page-lists", "lists-unlock-first"),
        (
            "gives-used-pages --protocol pfn-arrays",
            "arrays-name-pinned-pages",
        ),
        ("reuses-early --protocol pfn-arrays", "arrays-must-tell"),
        ("reports-used-pages", "reports-isolated-pages"),
        ("gives-used-hints", "hints-pin-what-they-give"),
        ("shows-used-pages", "map-shows-pages-that-nobody-uses"),
        ("takes-back", "map-leaves-taken-pages"),
        ("takes-back", "map-is-left"),
    ] {
        let agent = behaving(behaviour);
        // Beside a case that has nothing to do with it.
        let words = [
            "conform", "--agent", &agent, "--json", "--case", broken, "--case", "start",
        ];
        for (name, verdict, why) in verdicts(&ends(&words, 5)) {
            let wanted = if name == broken { "fail" } else { "pass" };
            assert_eq!(verdict, wanted, "{behaviour}: {name}: {why}");
        }
    }
}

/// A host alone with an agent that it starts, which is recorded.
fn recorded(dir: &Path, target: &str, agent: &str) -> (String, PathBuf) {
    let socket = dir.join("b");
    let out = ends(
        &[
            "host",
            "--socket",
            socket.to_str().expect("text"),
            "--memory",
            "64M",
            "--target",
            target,
            "--poll",
            "100ms",
            "--duration",
            "3s",
            "--agent",
            agent,
            "--record-balloon",
            dir.join("rec").to_str().expect("text"),
        ],
        0,
    );
    assert!(!socket.exists(), "the socket is left");
    (out, dir.join("rec/000001.balloon"))
}

#[test]
fn recording_is_shown_and_replayed_to_the_same_agent_without_a_difference() {
    let dir = scratch();
    let (out, file) = recorded(dir.path(), "0s=0,1s=4M,2s=1M", &bundled());
    names_all(
        &out,
        "START STARTED GET_TARGET LOCK LOCK_RESULT UNLOCK 1024 768 STOPPED",
    );
    let path = file.to_str().expect("text");
    let dumped = ends(&["dump", path], 0);
    names_all(&dumped, "began START STARTED LOCK UNLOCK STOP # ended");
    let json: Value = serde_json::from_str(&ends(&["dump", path, "--json"], 0)).expect("JSON");
    assert_eq!(json["messages"][0]["message"], "START");
    assert_eq!(json["whole"], true);
    // Bytes 16 to 23 have the token.
    let bytes = json["messages"][0]["bytes"].as_str().expect("hex");
    assert_eq!(&bytes[32..48], "0000000000000000");
    let packets = dir.path().join("x.pcapng");
    ends(
        &["dump", path, "--pcapng", packets.to_str().expect("text")],
        0,
    );
    assert_eq!(
        fs::read(packets).expect("written")[..4],
        [0x0a, 0x0d, 0x0d, 0x0a]
    );

    for more in [&[][..], &["--fast"]] {
        let agent = bundled();
        let words = [&["replay", path, "--agent", &agent, "--json"], more].concat();
        let report: Value = serde_json::from_str(&ends(&words, 0)).expect("JSON");
        assert_eq!(report["complete"], true, "{report}");
        assert!(report["compared"].as_u64() > Some(4), "{report}");
    }
    let never = behaving("never-deflates");
    let out = ends(&["replay", path, "--agent", &never, "--fast"], 5);
    names_all(&out, "differs");
}

#[test]
fn recording_of_an_agent_is_replayed_to_a_host() {
    let dir = scratch();
    let (_, file) = recorded(dir.path(), "0s=2M", &behaving("follower"));
    let path = file.to_str().expect("text");
    for (target, code) in [("0s=2M", 0), ("0s=1M", 5)] {
        let socket = dir.path().join("h");
        let mut command = memvisor();
        command.args([
            "balloon", "host", "--memory", "64M", "--poll", "100ms", "--token", "0x77",
        ]);
        command
            .args(["--target", target, "--duration", "60s", "--socket"])
            .arg(&socket);
        let host = Process::start(command, "host-alone", dir.path());
        eventually("it listens", PATIENCE, || socket.exists().then_some(()));
        let socket_text = socket.to_str().expect("text");
        let out = ends(
            &[
                "replay",
                path,
                "--host",
                socket_text,
                "--token",
                "0x77",
                "--fast",
            ],
            code,
        );
        assert_eq!(out.contains("differs"), code == 5, "{out}");
        drop(host);
        assert!(!socket.exists(), "the socket is left");
    }
}

#[test]
fn damaged_recording_is_shown_as_far_as_it_is_whole() {
    let dir = scratch();
    let (_, file) = recorded(dir.path(), "0s=1M", &behaving("follower"));
    let whole = fs::read(&file).expect("written");
    let path = file.to_str().expect("text");
    fs::write(&file, &whole[..whole.len() / 2]).expect("cut");
    let output = balloon(&["dump", path]);
    assert_eq!(output.status.code(), Some(1));
    names_all(&text(&output.stderr), "cut off byte");
    names_all(&text(&output.stdout), "START STARTED");
    let mut flipped = whole;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&file, flipped).expect("written");
    names_all(&text(&balloon(&["dump", path]).stderr), "damaged byte");
    fs::write(&file, "something else").expect("written");
    names_all(&text(&balloon(&["dump", path]).stderr), "memvball");
}

/// The agent in Python in a real guest: the guest's kernel lends the pages, and the workload verifies every byte.
#[test]
fn agent_in_python_balloons_a_real_guest_that_loses_nothing() {
    if !has_python() {
        return;
    }
    for engine in engines() {
        let dir = scratch();
        let record = dir.path().join("rec");
        let host = Host::quiet(
            engine,
            "128M",
            &["--record-balloon", record.to_str().expect("text")],
        );
        let mut command = host.guest_command("snake", "--memory 48M --workload kv,size=24M");
        command.args(["--print-token", "--agent", &python()]);
        let guest = Process::start(command, "snake", host.path());
        host.await_vm("snake", "has an agent", |vm| vm.balloon.agent);
        for (size, pages) in [("8M", 2048), ("16M", 4096), ("0", 0)] {
            let set = host
                .command(&format!("vm balloon snake {size}"))
                .output()
                .expect("it runs");
            assert!(set.status.success(), "{}", text(&set.stderr));
            host.await_vm("snake", "reaches its target", |vm| {
                vm.balloon.size_pages.0 == pages
            });
        }
        let token = host.command("vm token snake").output().expect("it runs");
        let token = text(&token.stdout);
        let printed = guest.stdout();
        let first: Value =
            serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["token"].as_str(), Some(token.trim()));
        guest.stop();
        host.stop_quietly(&[]);
        let file = record.join(&names(&record)[0]);
        let dumped = ends(&["dump", file.to_str().expect("text")], 0);
        names_all(&dumped, "START LOCK UNLOCK STATS STOPPED # ended");
        assert!(
            !dumped.contains(token.trim().trim_start_matches("0x")),
            "{dumped}"
        );
    }
}

#[test]
fn daemon_passes_the_suite_on_a_guest_without_an_agent() {
    for engine in engines() {
        let host = Host::quiet(engine, "128M", &[]);
        let guest = host.guest("bare", "--memory 32M --no-agent --workload idle");
        host.vm("bare");
        let token = text(
            &host
                .command("vm token bare")
                .output()
                .expect("it runs")
                .stdout,
        );
        let run = host.path().join("run");
        let program = env!("CARGO_BIN_EXE_memvisor");
        let set = format!(
            "'{program}' vm balloon bare {{}} --runtime-dir '{}'",
            run.display()
        );
        let socket = host.socket("balloon.sock");
        let words = [
            "conform",
            "--host",
            socket.to_str().expect("text"),
            "--token",
            token.trim(),
            "--memory",
            "32M",
            "--set-target",
            &set,
            "--json",
        ];
        let cases = verdicts(&ends(&words, 0));
        for (name, verdict, why) in &cases {
            // Nothing makes the guest touch a page from outside.
            let touches = name.starts_with("host-reset")
                || name.ends_with("-must-tell")
                || name.ends_with("-may-touch");
            let wanted = if touches { "skip" } else { "pass" };
            assert_eq!(verdict, wanted, "{engine}: {name}: {why}");
        }
        drop(guest);
    }
}

/// Each agent that lies harms its own guest at most: another guest beside it verifies every byte.
#[test]
fn lying_agents_harm_nobody_else() {
    let engine = engines()[0];
    let host = Host::quiet(engine, "128M", &[]);
    let honest = host.guest("honest", "--memory 32M --workload kv,size=16M");
    host.await_vm("honest", "has an agent", |vm| vm.balloon.agent);
    for behaviour in [
        "gives-used-pages",
        "locks-outside",
        "reuses-early",
        "lies-in-stats",
        "begs",
        "floods",
    ] {
        let name = format!("liar-{behaviour}");
        let mut command = host.guest_command(&name, "--memory 16M --workload idle");
        command.args(["--agent", &behaving(behaviour)]);
        let liar = Process::start(command, &name, host.path());
        host.await_vm(&name, "has an agent", |vm| vm.balloon.agent);
        let set = host
            .command(&format!("vm balloon {name} 4M"))
            .output()
            .expect("it runs");
        assert!(set.status.success(), "{}", text(&set.stderr));
        if behaviour != "lies-in-stats" && behaviour != "floods" && behaviour != "locks-outside" {
            host.await_vm(&name, "has a balloon", |vm| vm.balloon.size_pages.0 > 0);
        }
        drop(liar);
    }
    honest.stop();
    host.stop();
}

#[test]
fn wrong_words_are_refused_and_named() {
    for (words, part) in [
        (&["agent", "--behaviour", "gredy"][..], "`greedy`"),
        (&["agent", "--socket", "/x"], "--token"),
        (
            &[
                "agent",
                "--die-after",
                "3",
                "--socket",
                "/x",
                "--token",
                "1",
            ],
            "follower",
        ),
        (&["host", "--socket", "/x/y", "--target", "5s"], "`5s`"),
        (&["conform", "--agent", "true", "--case", "nope"], "`nope`"),
        (&["conform", "--host", "/x", "--token", "zz"], "`zz`"),
        (
            &[
                "conform",
                "--host",
                "/x",
                "--token",
                "1",
                "--set-target",
                "true",
            ],
            "{}",
        ),
        (&["replay", "/x"], "--agent"),
        (&["laws", "--incident", "shrnk"], "`shrnk` `shrink`"),
        (&["laws", "--law", "senpi"], "`senpi` `senpai`"),
        (&["laws", "--html", "/x"], "--incident"),
        (&["laws", "--set", "Memvisor.BalloonLaw=pid"], "--law"),
    ] {
        let output = balloon(words);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{words:?}: {}",
            text(&output.stderr)
        );
        names_all(&text(&output.stderr), part);
    }
    for (words, part) in [
        (&["dump", "/nowhere"][..], "/nowhere"),
        (&["host", "--socket", "/nowhere/b"], "/nowhere/b"),
        (
            &[
                "agent",
                "--behaviour",
                "refuses",
                "--socket",
                "/nowhere/b",
                "--token",
                "1",
            ],
            "/nowhere/b",
        ),
    ] {
        let output = balloon(words);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{words:?}: {}",
            text(&output.stderr)
        );
        names_all(&text(&output.stderr), part);
    }
}

/// What of docs/balloon-lab.md is run, in a directory with the documents and nothing else.
#[test]
fn commands_of_the_document_print_what_it_says() {
    if has_python() {
        rig::document::runs(include_str!("../docs/balloon-lab.md"), 8);
    }
}
