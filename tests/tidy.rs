//! What reviewers would have to check by hand: where `unsafe` is, which room depends on which, how long files
//! are, and that what the documents name exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of the host and the rooms each may use. A new room needs a row. A new dependency needs a thought
/// about its direction, and a change of docs/ARCHITECTURE.md.
const HOST: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("sync", &[]),
    ("seeded", &[]),
    ("chain", &[]),
    ("throttle", &[]),
    ("average", &[]),
    ("runtime_dir", &[]),
    ("digest", &["units"]),
    ("machine", &["units"]),
    ("sys", &["units"]),
    ("page", &["units", "sync", "seeded"]),
    ("engine", &["units", "sync", "sys"]),
    ("compress", &["units", "sync", "sys", "digest"]),
    ("swap", &["units", "sync", "sys", "digest"]),
    ("pool", &["units", "sync", "sys"]),
    (
        "vm",
        &[
            "units", "average", "sync", "page", "engine", "compress", "swap", "pool",
        ],
    ),
    (
        "fault",
        &[
            "units", "sys", "page", "engine", "compress", "swap", "pool", "vm", "seeded",
            "throttle",
        ],
    ),
    (
        "remap",
        &["units", "page", "engine", "pool", "vm", "seeded"],
    ),
    (
        "share",
        &[
            "units", "sync", "digest", "page", "engine", "pool", "vm", "remap",
        ],
    ),
    ("sample", &["units", "sys", "page", "engine", "vm", "remap"]),
    (
        "balloon",
        &["units", "sys", "page", "engine", "vm", "remap"],
    ),
    (
        "reclaim",
        &[
            "units", "digest", "page", "engine", "compress", "swap", "pool", "vm", "remap",
            "share", "sample", "balloon", "seeded",
        ],
    ),
    ("laboratory", &["units", "throttle", "sys", "vm", "balloon"]),
    ("policy", &["units"]),
    ("trace", &["units", "page"]),
    ("telemetry", &["units"]),
    ("settings", &["units", "machine", "policy", "reclaim"]),
    ("calculator", &["units", "policy", "settings"]),
    ("recording", &["telemetry"]),
    ("launch", &["units", "policy", "runtime_dir", "settings"]),
    ("view", &["telemetry", "recording"]),
    ("control", &["units", "telemetry", "settings", "view"]),
    (
        "top",
        &["units", "chain", "telemetry", "control", "settings"],
    ),
    (
        "host",
        &[
            "units",
            "chain",
            "throttle",
            "average",
            "runtime_dir",
            "machine",
            "sys",
            "digest",
            "page",
            "engine",
            "compress",
            "swap",
            "pool",
            "vm",
            "fault",
            "share",
            "sample",
            "balloon",
            "reclaim",
            "laboratory",
            "policy",
            "telemetry",
            "settings",
            "control",
            "trace",
        ],
    ),
    (
        "demo",
        &[
            "units",
            "runtime_dir",
            "launch",
            "telemetry",
            "settings",
            "control",
            "top",
            "host",
        ],
    ),
    (
        "bench",
        &[
            "units",
            "launch",
            "telemetry",
            "control",
            "demo",
            "digest",
            "machine",
            "sys",
            "page",
            "engine",
            "compress",
            "vm",
            "share",
            "reclaim",
            "policy",
            "settings",
            "runtime_dir",
            "host",
        ],
    ),
    (
        "scenario",
        &[
            "machine",
            "units",
            "chain",
            "launch",
            "policy",
            "runtime_dir",
            "telemetry",
            "settings",
            "control",
            "recording",
            "view",
            "sys",
            "vm",
            "bench",
        ],
    ),
    (
        "replay",
        &[
            "units",
            "page",
            "engine",
            "compress",
            "swap",
            "pool",
            "vm",
            "fault",
            "share",
            "sample",
            "reclaim",
            "policy",
            "trace",
            "settings",
            "recording",
            "view",
            "host",
        ],
    ),
    (
        "incident",
        &[
            "units",
            "balloon",
            "policy",
            "settings",
            "recording",
            "view",
            "host",
        ],
    ),
    (
        "cli",
        &[
            "incident",
            "units",
            "machine",
            "chain",
            "balloon",
            "bench",
            "policy",
            "runtime_dir",
            "telemetry",
            "settings",
            "calculator",
            "control",
            "top",
            "host",
            "laboratory",
            "launch",
            "demo",
            "scenario",
            "reclaim",
            "trace",
            "replay",
            "view",
            "recording",
        ],
    ),
];

/// The files of the room `host`. Each uses only files before it in this list, so that the owners of the daemon's
/// state can be read and tested one by one.
const HOST_FILES: &[&str] = &[
    "error",
    "reserve",
    "options",
    "capability",
    "vm_settings",
    "recent",
    "member",
    "members",
    "resource_pools",
    "configuration",
    "pools",
    "snapshot",
    "census",
    "admission",
    "averages",
    "balance",
    "laws",
    "watchdog",
    "caches",
    "tiers",
    "placement",
    "orders",
    "service",
    "vm_status",
    "traced",
    "governor",
    "surroundings",
    "daemon",
    "status",
    "survey",
    "api",
    "session",
    "balloon",
    "listen",
    "bare",
    "mod",
];

/// The rooms of what runs in a guest, in the same way.
const GUEST: &[(&str, &[&str])] = &[
    ("shim", &[]),
    ("kernel", &["shim"]),
    ("balloon", &[]),
    ("outside", &["balloon", "shim"]),
    ("workload", &["kernel"]),
    (
        "guest",
        &["shim", "kernel", "balloon", "outside", "workload"],
    ),
    ("command", &["workload", "guest"]),
    ("log", &["command"]),
];

/// The rooms of what host and guest say to each other, in the same way.
const WIRE: &[(&str, &[&str])] = &[
    ("gfn", &[]),
    ("codec", &[]),
    ("system_error", &[]),
    ("vm_name", &[]),
    ("privacy", &[]),
    ("streams", &[]),
    ("filled", &[]),
    ("units", &["gfn"]),
    ("payload", &["filled"]),
    ("claims", &[]),
    ("sys", &["claims"]),
    ("signals", &["sys"]),
    ("runtime_dir", &[]),
    ("seqpacket", &[]),
    ("fds", &["seqpacket"]),
    ("doorbell", &[]),
    ("memory", &["vm_name"]),
    ("balloon", &["claims"]),
];

/// The crates, where the sources of each are, and which of the others it may use. Host and guest are two programs that
/// may not even run on the same version: what both know is in `memvisor_wire`.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("memvisor_wire", "guest-agent/wire/src", &[]),
    (
        "memvisor_guest_agent",
        "guest-agent/src",
        &["memvisor_wire"],
    ),
    ("memvisor", "src", &["memvisor_wire"]),
];

/// The parts of the host that start guests, which may use `memvisor_guest_agent` too.
const STARTS_GUESTS: &[&str] = &[
    "src/cli/exit.rs",
    "src/cli/mod.rs",
    "src/cli/guest.rs",
    "src/cli/bench.rs",
    "src/bench",
    "src/demo",
    "src/laboratory",
    "src/cli/balloon",
    "src/launch",
    "src/scenario",
];

/// The most lines of a file without its tests. A reader cannot hold more in mind at once.
const LONGEST_FILE: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir`, which is relative to the root, without build outputs and the files of git.
fn files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root().join(&dir)).expect("a directory of the project") {
            let entry = entry.expect("a readable directory");
            let path = dir.join(entry.file_name());
            let skip = [".git", "target"].iter().any(|name| path.ends_with(name));
            match entry.file_type().expect("a type") {
                kind if kind.is_dir() && !skip => dirs.push(path),
                kind if kind.is_file() && !skip => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The lines of Rust that are not for tests. As rustfmt writes it, an item behind `#[cfg(test)]` ends with a `}`
/// in the column of its first letter, or with a `;` at the end of a line that starts in that column.
fn without_tests(text: &str) -> Vec<&str> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        for line in lines.by_ref() {
            let attribute = line.trim_start().starts_with("#[");
            let is_short = !attribute
                && line.ends_with(';')
                && line.starts_with(indent)
                && !line[indent.len()..].starts_with(' ');
            if line == end || is_short {
                break;
            }
        }
    }
    kept
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Rust sources below `dir`, without files of modules that exist for tests only.
fn sources(dir: &str) -> Vec<PathBuf> {
    let all: Vec<PathBuf> = files(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .collect();
    let mut tests = BTreeSet::new();
    for path in &all {
        let text = read(path);
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]") {
            let Some((_, name)) = pair[1].split_once("mod ") else {
                continue;
            };
            let Some(name) = name.strip_suffix(';') else {
                continue;
            };
            let is_room = path.ends_with("mod.rs") || path.ends_with("lib.rs");
            let of = if is_room {
                path.with_file_name("")
            } else {
                path.with_extension("")
            };
            tests.insert(of.join(format!("{name}.rs")));
            tests.insert(of.join(name));
        }
    }
    all.into_iter()
        .filter(|path| !path.ancestors().any(|part| tests.contains(part)))
        .collect()
}

/// The rooms that a line names: `crate::page::Home` names `page`.
fn rooms_named(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn check_directions(dir: &str, table: &[(&str, &[&str])]) {
    let mut seen = BTreeSet::new();
    for path in sources(dir) {
        let inside = path.strip_prefix(dir).expect("found there");
        let Some(room) = inside.iter().next().and_then(|name| name.to_str()) else {
            continue;
        };
        let room = room.trim_end_matches(".rs");
        if matches!(room, "lib" | "main" | "bin") {
            continue;
        }
        let row = table.iter().find(|(name, _)| *name == room);
        let (_, may) = row.unwrap_or_else(|| panic!("{path:?}: the room `{room}` has no row"));
        seen.insert(room.to_owned());
        let text = read(&path);
        for line in without_tests(&text) {
            for used in rooms_named(line).filter(|_| !is_comment(line)) {
                let known = table.iter().any(|(name, _)| *name == used);
                assert!(
                    used == room || !known || may.contains(&used),
                    "{path:?}: `{room}` must not use `{used}`: {line}"
                );
            }
        }
    }
    assert_eq!(seen.len(), table.len(), "only {seen:?} found below {dir}");
}

#[test]
fn rooms_use_only_what_is_below_them() {
    check_directions("src", HOST);
    check_directions("guest-agent/src", GUEST);
    check_directions("guest-agent/wire/src", WIRE);
}

#[test]
fn crates_use_only_what_is_below_them() {
    let mut uses = 0;
    for (name, dir, may) in CRATES {
        for path in sources(dir) {
            let starts_guests = STARTS_GUESTS.iter().any(|part| path.starts_with(part));
            for line in without_tests(&read(&path))
                .into_iter()
                .filter(|line| !is_comment(line))
            {
                let names = CRATES.iter().map(|(name, ..)| name);
                for used in names.filter(|used| line.contains(&format!("{used}::"))) {
                    let is_guest = *used == "memvisor_guest_agent" && starts_guests;
                    assert!(
                        used == name || is_guest || may.contains(used),
                        "{path:?} must not use `{used}`: {line}"
                    );
                    uses += 1;
                }
            }
        }
    }
    assert!(uses > 100, "only {uses} uses found: is the search right?");
}

#[test]
fn files_of_the_daemon_use_only_what_is_below_them() {
    let place = |name: &str| HOST_FILES.iter().position(|file| *file == name);
    let mut uses = 0;
    for path in sources("src/host") {
        let inside = path.strip_prefix("src/host").expect("found there");
        let file = inside.iter().next().and_then(|name| name.to_str());
        let file = file.unwrap_or_default().trim_end_matches(".rs");
        let here = place(file).unwrap_or_else(|| panic!("{path:?} has no row"));
        let is_inside = inside.iter().count() > 1;
        for line in without_tests(&read(&path)) {
            let prefix = if is_inside {
                "crate::host::"
            } else {
                "use super::"
            };
            let Some((_, rest)) = line.split_once(prefix) else {
                continue;
            };
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            let Some(used) = place(&rest[..end.unwrap_or(rest.len())]) else {
                continue;
            };
            assert!(used < here, "{path:?} must not use this: {line}");
            uses += 1;
        }
    }
    assert!(uses > 30, "only {uses} uses found: is the search right?");
}

#[test]
fn direction_tables_have_no_circle() {
    for table in [HOST, GUEST, WIRE] {
        for (index, (room, may)) in table.iter().enumerate() {
            for used in *may {
                let below = table[..index].iter().any(|(name, _)| name == used);
                assert!(below, "`{used}` does not come before `{room}`");
            }
        }
    }
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let allowed = [
        "src/sys",
        "guest-agent/src/shim",
        "guest-agent/wire/src/sys",
        "tests/models/src/sys",
        "tests/rig/sys.rs",
    ];
    let mut found = 0;
    let rooms = [
        "src",
        "guest-agent/src",
        "guest-agent/wire/src",
        "tests/models",
        "tests/rig",
        "fuzz/src",
    ];
    for path in rooms.into_iter().flat_map(files) {
        if path.extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        for line in read(&path).lines().filter(|line| !is_comment(line)) {
            let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            if line.split(word).any(|word| word == "unsafe") {
                let here = allowed.iter().any(|room| path.starts_with(room));
                assert!(here, "{path:?}: {line}");
                found += 1;
            }
        }
    }
    assert!(
        found > 10,
        "only {found} uses of unsafe found: is the search right?"
    );
}

/// The most lines of code between an ordering and the comment above it that says why.
const NEAR: usize = 4;

/// The comments about a line: the one at its end and the nearest one above.
fn said_about(lines: &[&str], at: usize) -> String {
    let above = lines[..at].iter().rev();
    let code = above
        .clone()
        .take(NEAR)
        .take_while(|line| !is_comment(line));
    let comment = above.skip(code.count()).take_while(|line| is_comment(line));
    let end = lines[at].split_once("// ").map_or("", |(_, end)| end);
    comment.copied().chain([end]).collect()
}

/// Each ordering other than Relaxed needs a comment that names it and says why it is enough.
#[test]
fn orderings_say_why_they_are_enough() {
    let mut found = 0;
    let paths = CRATES.iter().flat_map(|(_, dir, _)| sources(dir));
    for path in paths.filter(|path| !path.starts_with("src/sim")) {
        let text = read(&path);
        let lines = without_tests(&text);
        for (at, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| !is_comment(line))
        {
            let is_used = |name: &&str| line.contains(&format!("Ordering::{name}"));
            for name in ["Acquire", "Release", "AcqRel", "SeqCst"]
                .iter()
                .filter(|name| is_used(name))
            {
                let said = said_about(&lines, at);
                let halves =
                    *name == "AcqRel" && said.contains("Acquire") && said.contains("Release");
                assert!(
                    halves || said.contains(name),
                    "{path:?}: no comment nearby says why {name} is enough: {line}"
                );
                found += 1;
            }
        }
    }
    assert!(
        found > 20,
        "only {found} orderings found: is the search right?"
    );
}

#[test]
fn files_are_short_enough_to_be_read() {
    for path in CRATES.iter().flat_map(|(_, dir, _)| sources(dir)) {
        // Files of tests alone may be longer: tests of one room are easier to read together.
        let lines = without_tests(&read(&path)).len();
        assert!(
            lines <= LONGEST_FILE,
            "{path:?} has {lines} lines without tests: split it"
        );
    }
}

#[test]
fn nothing_is_left_half_done_or_names_a_machine() {
    let itself = Path::new("tests/tidy.rs");
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!("];
    let places = ["/home/", "/root/", "/work/", "/Users/"];
    for path in files("").into_iter().filter(|path| path != itself) {
        // Files that are not text (there are none so far) cannot contain these words.
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for word in marks.iter().chain(&places) {
            let line = text.lines().find(|line| line.contains(word));
            assert!(line.is_none(), "{path:?} has `{word}`: {line:?}");
        }
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let markdown = files("").into_iter().filter(|path| {
        let is_markdown = path.extension().is_some_and(|ending| ending == "md");
        is_markdown && !path.starts_with("tests")
    });
    let mut links = 0;
    for path in markdown {
        let text = read(&path);
        for target in text.split("](").skip(1) {
            let Some((target, _)) = target.split_once(')') else {
                continue;
            };
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let there = path.with_file_name(file);
            assert!(root().join(&there).exists(), "{path:?} links to {target}");
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links found: is the search right?");
}

#[test]
fn documents_that_the_project_promises_are_there() {
    for name in [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        ".ci/run",
        "docs/ARCHITECTURE.md",
        "docs/balloon-lab.md",
        "docs/balloon-protocol.md",
        "docs/extending.md",
        "docs/memory-protocol.md",
        "docs/policy.md",
        "docs/security.md",
        "docs/service.md",
        "docs/settings.md",
        "docs/scenarios.md",
        "docs/experiments.md",
        "docs/metrics.md",
        "docs/top.md",
        "docs/tutorial.md",
    ] {
        assert!(root().join(name).is_file(), "{name} is missing");
    }
}

#[test]
fn promises_of_security_name_tests_that_are_there() {
    let tests = read(Path::new("tests/isolation.rs"));
    let document = read(Path::new("docs/security.md"));
    let named: Vec<&str> = (document.split('`').skip(1).step_by(2))
        .filter(|word| word.matches('_').count() > 3 && !word.contains('/'))
        .collect();
    assert!(
        named.len() > 5,
        "only {named:?} found: is the search right?"
    );
    for name in named {
        assert!(tests.contains(&format!("fn {name}()")), "no test {name}");
    }
}

#[test]
fn readme_has_its_two_commands_where_ci_looks_for_them() {
    let readme = read(Path::new("README.md"));
    for (mark, command) in [
        ("demo", "./setup cargo run --release -- demo"),
        ("test", "./setup cargo test --workspace"),
    ] {
        let block = format!("<!-- ci: {mark} -->\n```sh\n{command}\n```\n");
        assert_eq!(readme.matches(&block).count(), 1, "{block}");
    }
}

/// rustup's users must not find less than the crates ask for, nor write code that Debian's older Rust cannot build.
#[test]
fn toolchain_is_the_oldest_that_the_crates_allow() {
    let file = |name| read(Path::new(name)).parse::<toml::Table>().expect(name);
    let channel = file("rust-toolchain.toml")["toolchain"]["channel"].clone();
    let oldest = file("Cargo.toml")["workspace"]["package"]["rust-version"].clone();
    let (channel, oldest) = (channel.as_str().unwrap(), oldest.as_str().unwrap());
    assert_eq!(channel, format!("{oldest}.0"));
}

#[test]
fn decisions_are_numbered_and_have_their_four_parts() {
    let adrs = files("docs/adr");
    assert!(!adrs.is_empty());
    for (number, path) in (1..).zip(&adrs) {
        let name = path.file_name().and_then(|name| name.to_str());
        let start = format!("{number:04}-");
        assert!(
            name.is_some_and(|name| name.starts_with(&start)),
            "{path:?} is not number {number}"
        );
        let text = read(path);
        assert!(text.starts_with(&format!("# {number}. ")), "{path:?}");
        for part in ["Context", "Decision", "Alternatives", "Consequences"] {
            let heading = format!("\n## {part}\n");
            assert_eq!(text.matches(&heading).count(), 1, "{path:?}: {part}");
        }
    }
}
