//! Does what docs/tutorial.md says: writes its files, runs its commands in its order, compares what they print, and makes
//! its pictures anew. Without this, it would be right on the day on which it was written.
//!
//! What a block is stands behind its fence:
//!
//! - `console`: commands, as in `rig::console`, each run to its end.
//! - `console exactly`: the same, with numbers that do not vary.
//! - `console every`: what is typed first in every terminal.
//! - `console screen`: a program that takes the screen, which `q` ends.
//! - `console NAME`: a terminal of its own, in which its command goes on running until a block of that name has `^C`.
//! - `toml FILE`: a file that the reader writes.
//!
//! Any other block fails the test, and so does a command in a sentence that is not the beginning of one that is run.
//! All times in commands and files are a third of what the reader sees, so a published experiment may fail. Sizes that
//! a short run does not change stay. `MEMVISOR_WRITE_DOCS=1` runs everything in its full time and keeps the pictures.

mod rig;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use nix::sys::signal::Signal;
use rig::browser::{Page, browser};
use rig::console::{Shown, commands, fences, prints};
use rig::{PATIENCE, Process, Terminal, eventually, scratch};
use serde_json::json;
use tempfile::TempDir;

const DOCUMENT: &str = include_str!("../docs/tutorial.md");
const PICTURE_OF_TOP: &str = include_str!("../docs/tutorial/top.svg");
const PICTURE_OF_REPORT: &[u8] = include_bytes!("../docs/tutorial/report.png");
/// What the reader's checkout has that the tutorial uses.
const CHECKOUT: &[(&str, &str)] = &[
    ("setup", include_str!("../setup")),
    ("Cargo.toml", include_str!("../Cargo.toml")),
    (
        "rust-toolchain.toml",
        include_str!("../rust-toolchain.toml"),
    ),
    (
        "docs/experiments/idle-tax.toml",
        include_str!("../docs/experiments/idle-tax.toml"),
    ),
];
/// In place of cargo: the build is the one that `cargo test` has made already. `CARGO_HOME` brings it in front.
const CARGO: &str = r#"#!/bin/sh
case "$*" in
--version) echo "cargo 999.0.0" ;;
"build --release") mkdir -p target/release && ln -sf "$MEMVISOR" target/release/memvisor ;;
*) echo "cargo $*: not what the tutorial builds by" >&2; exit 1 ;;
esac
"#;
/// By how much times are shorter than those that the reader sees.
const HASTE: u64 = 3;
/// How long a command may take on a busy machine.
const LONG: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_secs(15);
/// The window of which a part is the picture of the report.
const WINDOW: (u32, u32) = (1100, 1400);

fn writes() -> bool {
    env::var_os("MEMVISOR_WRITE_DOCS").is_some_and(|set| set == "1")
}

/// A text in which each time of whole seconds is a third of it.
fn hastened(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = rest[start..].find(|c: char| !c.is_ascii_digit());
        let end = start + digits.unwrap_or(rest.len() - start);
        let (before, number, after) = (&rest[..start], &rest[start..end], &rest[end..]);
        out += before;
        let follows = after.strip_prefix('s');
        let is_time = follows.is_some_and(|it| !it.starts_with(|c: char| c.is_alphanumeric()))
            && !before.ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c));
        match (is_time, number.parse::<u64>()) {
            (true, Ok(seconds)) => out += &format!("{}m", seconds * 1000 / HASTE),
            _ => out += number,
        }
        rest = after;
    }
    out + rest
}

/// What numbers, bars and words look like that vary from run to run: `#` for a number, one word for those of a kind.
/// Everything else stays.
fn shape(line: &str) -> String {
    let line = line.replace("~x", "x");
    let words = line.split_whitespace().map(|word| {
        if word.chars().any(|c| "█▓▒▁○·".contains(c)) {
            return "BAR".to_owned();
        }
        let mut shaped = String::new();
        for c in word.chars() {
            match c {
                '0'..='9' if shaped.ends_with('#') => {}
                '0'..='9' => shaped.push('#'),
                // Within a number.
                '.' if shaped.ends_with('#') => {}
                _ => shaped.push(c),
            }
        }
        let kinds: &[&[&str]] = &[
            &["MiB", "B", "KiB", "GiB"],
            &["us", "ms"],
            &["%", "times"],
            &["hmm", "awesome", "good", "oops"],
            &["holds", "FAILS"],
        ];
        let bare = shaped.trim_end_matches([',', ';', ':']);
        match kinds.iter().find(|kind| kind.contains(&bare)) {
            Some(kind) => shaped.replace(bare, kind[0]),
            None => shaped,
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shapes(text: &str) -> String {
    text.lines().map(|line| shape(line) + "\n").collect()
}

/// Whether a program printed these lines, whatever their numbers.
fn prints_alike(output: &str, wanted: &[&str]) -> Result<(), String> {
    let wanted: Vec<String> = wanted.iter().map(|line| shape(line)).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    prints(&shapes(output), &wanted).map_err(|what| format!("{what}\nthat is\n{output}"))
}

/// A reader at work.
struct Reader {
    dir: TempDir,
    /// What was typed first in every terminal.
    first: String,
    terminals: BTreeMap<&'static str, Process>,
    typed: Vec<String>,
}

impl Reader {
    fn new() -> Self {
        let dir = scratch();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("in our directory")).expect("a directory");
            fs::write(&path, text).expect("there is room");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        };
        for (name, text) in CHECKOUT {
            let is_experiment = name.starts_with("docs/") && !writes();
            let text = match is_experiment {
                true => hastened(text),
                false => (*text).to_owned(),
            };
            write(name, &text, 0o755);
        }
        write("home/.cargo/bin/cargo", CARGO, 0o755);
        Self {
            dir,
            first: String::new(),
            terminals: BTreeMap::new(),
            typed: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The script that types a line into a terminal, after what is typed first there.
    fn script(&mut self, line: &str) -> String {
        self.typed.push(line.to_owned());
        let line = match writes() {
            true => line.to_owned(),
            false => hastened(line),
        };
        // These would stay if the test were killed.
        let stays = line.starts_with("memvisor host") || line.starts_with("memvisor guest");
        let more = if stays { " --die-with-parent" } else { "" };
        format!("{}exec {line}{more}", self.first)
    }

    fn start(&mut self, line: &str, name: &str) -> Process {
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.script(line)])
            .current_dir(self.dir.path())
            .env("MEMVISOR", env!("CARGO_BIN_EXE_memvisor"))
            .env("MEMVISOR_RUNTIME_DIR", self.path("run"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("CARGO_HOME", self.path("home/.cargo"))
            .env("TMPDIR", self.dir.path())
            .env_remove("MEMVISOR_LOG");
        fs::create_dir_all(self.path("terminals")).expect("a directory");
        Process::start(command, name, &self.path("terminals"))
    }

    /// Runs the commands of a block, each to its end. What looks at running guests may look too early: it is repeated.
    fn runs(&mut self, block: &str, exactly: bool) {
        for Shown { line, wanted } in commands(block) {
            let begin = Instant::now();
            loop {
                let mut process = self.start(line, "command");
                let code = process.wait(LONG).code();
                let output = process.stdout() + &process.stderr();
                // In a third of the time a published experiment may find something else.
                let may_fail = line.starts_with("memvisor run docs/") && code == Some(5);
                let found = match exactly {
                    _ if code != Some(0) && !may_fail => Err(format!("{code:?}:\n{output}")),
                    true => prints(&output, &wanted),
                    false => prints_alike(&output, &wanted),
                };
                match found {
                    Ok(()) => break println!("$ {line}  # {:.1?}\n{output}", begin.elapsed()),
                    Err(_) if !self.terminals.is_empty() && begin.elapsed() < PATIENCE => {}
                    Err(what) => panic!("`{line}`: {what}"),
                }
            }
        }
    }

    /// What happens in the terminal called `name`: its command starts, or is ended by Ctrl-C.
    fn in_terminal(&mut self, name: &'static str, block: &str) {
        for Shown { line, mut wanted } in commands(block) {
            if !line.is_empty() {
                let process = self.start(line, name);
                assert!(self.terminals.insert(name, process).is_none(), "{name}");
            }
            let process = self.terminals.get_mut(name).expect("it was started");
            let mut ended = None;
            if wanted.first() == Some(&"^C") {
                wanted.remove(0);
                process.send(Signal::SIGINT);
                ended = process.wait(PATIENCE).code();
            }
            // The last failure, for whoever reads that it did not come.
            let mut missing = String::new();
            eventually(&format!("what {name} prints"), PATIENCE, || {
                let output = process.stdout() + &process.stderr();
                match prints_alike(&output, &wanted) {
                    Ok(()) => Some(()),
                    Err(what) if missing == what => None,
                    Err(what) => {
                        println!("{name}: {what}");
                        missing = what;
                        None
                    }
                }
            });
            match ended {
                // A host ends in order, a guest as one that was interrupted.
                Some(code) => {
                    assert!(code == 0 || code == 130, "{name}: {code}");
                    self.terminals.remove(name);
                }
                None => assert_eq!(process.ended(), None, "{name}: {}", process.stderr()),
            }
        }
    }

    fn on_screen(&mut self, block: &str) {
        for Shown { line, wanted } in commands(block) {
            let script = self.script(line);
            let (dir, run) = (self.path(""), self.path("run"));
            let words = ["sh", "-c", &script];
            let mut terminal = Terminal::run(&words, &dir, &run, (110, 30), true);
            terminal.shows(line, |text| prints_alike(text, &wanted).is_ok());
            if writes() {
                // As long as a reader looks: what the picture shows has come to rest then.
                thread::sleep(LOOK);
            }
            terminal.types("q");
            assert!(terminal.ends().success());
        }
    }

    fn does(&mut self, info: &'static str, text: &str) {
        match info.split_once(' ') {
            None if info == "console" => self.runs(text, false),
            Some(("console", "exactly")) => self.runs(text, true),
            Some(("console", "screen")) => self.on_screen(text),
            Some(("console", "every")) => {
                for Shown { line, wanted } in commands(text) {
                    assert!(wanted.is_empty(), "{line} prints nothing");
                    self.first += &format!("{line}\n");
                }
            }
            Some(("console", name)) => self.in_terminal(name, text),
            Some(("toml", name)) => {
                let text = match writes() {
                    true => text.to_owned(),
                    false => hastened(text),
                };
                fs::write(self.path(name), text).expect("there is room");
            }
            _ => panic!("a block of docs/tutorial.md that nobody checks: ```{info}\n{text}"),
        }
    }
}

/// What a picture of `top` consists of: the names of its lines, and the words and shapes of those that are no sentences.
fn rows(svg: &str) -> Vec<String> {
    let lines = svg.split("<tspan x=\"10px\"").skip(1);
    let text = |line: &str| -> String {
        let parts = line.split('>').skip(1);
        let parts = parts.map(|part| part.split('<').next().unwrap_or_default());
        parts.collect()
    };
    let rows = lines.map(|line| match shape(&text(line)) {
        row if row.starts_with("HEALTH :") => "HEALTH".to_owned(),
        // There are two engines, and five names of states.
        row if row.starts_with("memvisor") => "memvisor".to_owned(),
        row => row.split(" ursvd ").next().expect("a part").to_owned(),
    });
    // Not every kernel tells pressure.
    rows.filter(|row| !row.starts_with("PSI")).collect()
}

/// The picture that `top` has drawn has the lines and columns of the one in the tutorial.
fn screen_is_that_of_the_picture(reader: &Reader) {
    let made = fs::read_to_string(reader.path("top.svg")).expect("it was drawn");
    keep("top.svg", made.as_bytes());
    let found = rows(&made);
    assert!(found.iter().any(|row| row.starts_with("shop ")), "{made}");
    if !writes() {
        assert_eq!(found, rows(PICTURE_OF_TOP));
    }
}

/// Writes a picture into the tutorial's directory, if pictures are to be kept.
fn keep(name: &str, picture: &[u8]) {
    if writes() {
        let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorial");
        fs::write(to.join(name), picture).expect("there is room");
    }
}

/// The part of the report of which the tutorial has a picture: the table of what was expected, and the charts behind it as far as the window
/// reaches. Its place in the page, and what it shows.
const PART: &str = "(async () => {
    const table = [...document.querySelectorAll('table')].find((it) => it.caption?.textContent === 'What was expected');
    const section = [...document.querySelectorAll('section')].find((it) => it.querySelector('h2')?.textContent === 'Comparison');
    const charts = [...section.querySelectorAll('figure.chart')].slice(0, 4);
    for (const chart of charts) {
        chart.scrollIntoView();
        for (let i = 0; i < 600 && !chart.querySelector('.plot canvas'); i++) await new Promise(requestAnimationFrame);
    }
    scrollTo(0, 0);
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    const top = table.getBoundingClientRect().top - 8;
    const end = charts[3].getBoundingClientRect().bottom;
    return {
        rows: [...table.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent)),
        charts: charts.map((chart) => [chart.querySelector('figcaption').textContent, Number(chart.dataset.points)]),
        clip: { x: 0, y: top, width: innerWidth, height: end - top, scale: 1 },
    };
})()";

/// The report has what the tutorial's picture of it is said to show, and the numbers that were printed.
fn report_is_that_of_the_picture(reader: &Reader) {
    let Some(browser) = browser() else { return };
    let report = reader.path("results/shop-1/report.html");
    let mut page = Page::open(&browser, &format!("file://{}", report.display()), WINDOW);
    let part = page.eval(PART);
    let rows = part["rows"].as_array().expect("a table");
    assert_eq!(rows.len(), 7, "three variants of two, and one: {rows:?}");
    let said = DOCUMENT.replace('\n', " ");
    let charts: Vec<(String, u64)> =
        serde_json::from_value(part["charts"].clone()).expect("as the script makes them");
    for (title, points) in &charts {
        assert!(said.contains(&format!("*{title}*")), "no *{title}*");
        assert!(*points >= 5, "{title}: {points} points");
    }
    let shot = json!({"format": "png", "clip": part["clip"], "captureBeyondViewport": true});
    let shot = page.call("Page.captureScreenshot", &shot);
    let png = shot["data"].as_str().expect("a picture");
    let png = BASE64.decode(png).expect("as the protocol says");
    assert_eq!(page.complaints(), [""; 0]);
    let ((width, height), kept) = (size(&png), size(PICTURE_OF_REPORT));
    println!("the picture has {width} x {height} points, that of the tutorial {kept:?}");
    keep("report.png", &png);
    // Heights differ by the fonts of the machine.
    let differs = height.abs_diff(kept.1) * 5 > kept.1;
    assert!(writes() || (width == kept.0 && !differs));
}

/// Width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert_eq!(png.get(12..16), Some(&b"IHDR"[..]), "no PNG");
    let word = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    (word(16), word(20))
}

/// Commands in sentences are the beginnings of commands that are typed, or say which they are like.
fn sentences_name_what_is_typed(typed: &[String]) {
    let prose: String = DOCUMENT.split("\n```").step_by(2).collect();
    let spans = prose.split('`').skip(1).step_by(2);
    for span in spans.filter(|span| span.starts_with("memvisor ")) {
        let is_typed = typed.iter().any(|line| line.starts_with(span));
        assert!(is_typed, "`{span}` is not run");
    }
}

#[test]
fn reader_sees_what_the_tutorial_shows() {
    let mut reader = Reader::new();
    for fence in fences(DOCUMENT) {
        reader.does(fence.info, &fence.text);
    }
    let open: Vec<_> = reader.terminals.keys().collect();
    assert!(open.is_empty(), "nothing ends {open:?}");
    sentences_name_what_is_typed(&reader.typed);
    screen_is_that_of_the_picture(&reader);
    report_is_that_of_the_picture(&reader);
}

#[test]
fn times_are_shorter_and_sizes_stay() {
    let text = "--duration 10s size=48M from = \"14s\" then=60M@30s 2.5s 200ms idle-75s kv-1";
    let hasty =
        "--duration 3333ms size=48M from = \"4666ms\" then=60M@10000ms 2.5s 200ms idle-75s kv-1";
    assert_eq!(hastened(text), hasty);
}

#[test]
fn shapes_are_alike_whatever_the_numbers() {
    let alike = |a: &str, b: &str| shape(a) == shape(b);
    assert!(alike(
        "shop  64.0 MiB  1.5 KiB hmm ██○",
        "shop 8.0 MiB   12.25 MiB good ░▁"
    ));
    assert!(alike("p99 [a]: 27.60 times", "p99 [a]: 99.1 %"));
    assert!(!alike("balloon 0 B", "balloon 1.0 %"));
    assert!(!alike("0 corrupt", "none corrupt"));
    assert!(prints_alike("a 1 MiB\nb 0:12\n", &["a 2 GiB", "b 0:13"]).is_ok());
    assert!(prints_alike("b 1\na 1\n", &["a 1", "b 1"]).is_err());
}
