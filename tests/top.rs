//! `memvisor top` on a real terminal: a pseudo terminal, whose other end is read as a terminal would show it.

mod rig;

use std::fs;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Child, ExitStatus, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};
use rig::{Host, PATIENCE, Process, engines, eventually, names_all, scratch};

/// A side of a terminal, in characters.
fn side(length: u16) -> NonZeroU16 {
    NonZeroU16::new(length).expect("not 0")
}

/// A terminal with `memvisor top` in it.
struct Terminal {
    pty: Arc<Pty>,
    shown: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Terminal {
    fn open(host: &Host, size: (u16, u16), colour: bool) -> Self {
        Self::run(host, size, &["--interval", "200ms"], colour)
    }

    fn run(host: &Host, size: (u16, u16), args: &[&str], colour: bool) -> Self {
        let (pty, pts) = open().expect("a pseudo terminal");
        pty.resize(Size::new(size.1, size.0)).expect("a size");
        let command = Command::new(env!("CARGO_BIN_EXE_memvisor"))
            .arg("top")
            .args(args)
            .env("MEMVISOR_RUNTIME_DIR", host.path().join("run"))
            .env("XDG_CONFIG_HOME", host.path().join("config"))
            .env("TERM", "xterm-256color")
            .env("NO_COLOR", if colour { "" } else { "1" })
            .env_remove("MEMVISOR_LOG");
        let child = command.spawn(pts).expect("start top");
        let (pty, parser) = (
            Arc::new(pty),
            vt100::Parser::new(side(size.1), side(size.0), 0),
        );
        let shown = Arc::new(Mutex::new(parser));
        let (reader, screen) = (Arc::clone(&pty), Arc::clone(&shown));
        // Ends when nobody has the terminal open any more.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = (&*reader).read(&mut bytes) {
                screen.lock().expect("no panic").process(&bytes[..length]);
            }
        });
        Self { pty, shown, child }
    }

    fn text(&self) -> String {
        self.shown.lock().expect("no panic").screen().contents()
    }

    /// Waits until the screen satisfies `met`; returns it.
    #[track_caller]
    fn shows(&self, what: &str, met: impl Fn(&str) -> bool) -> String {
        eventually(what, PATIENCE, || {
            Some(self.text()).filter(|text| met(text))
        })
    }

    fn types(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).expect("typed");
    }

    fn resize(&self, width: u16, height: u16) {
        self.shown
            .lock()
            .expect("no panic")
            .screen_mut()
            .set_size(side(height), side(width));
        self.pty.resize(Size::new(height, width)).expect("a size");
    }

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Whether keys are shown and lines are edited, as a shell has it.
    fn is_cooked(&self) -> bool {
        let flags = tcgetattr(&*self.pty).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Waits for the end, after which the terminal must be as before.
    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let ended = eventually("top ends", PATIENCE, || {
            self.child.try_wait().expect("ours")
        });
        eventually("the screen is given back", PATIENCE, || {
            let shown = self.shown.lock().expect("no panic");
            let screen = shown.screen();
            (!screen.alternate_screen() && !screen.hide_cursor()).then_some(())
        });
        assert!(self.is_cooked());
        ended
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the screen is\n{}", self.text());
        }
        // It has ended, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let mut top = Terminal::open(&host, (80, 24), true);
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
    let mut again = Terminal::open(&host, (80, 24), false);
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
        let mut top = Terminal::open(&host, (80, 24), true);
        top.shows("a screen", |text| text.contains("MEMCTL"));
        top.send(signal);
        assert_eq!(top.ends().code(), Some(130), "{signal}");
    }
    let mut top = Terminal::open(&host, (80, 24), true);
    top.shows("a screen", |text| text.contains("MEMCTL"));
    // Ctrl-Z gives the terminal back; SIGCONT takes it again.
    top.types("\x1a");
    eventually("it stops", PATIENCE, || top.is_cooked().then_some(()));
    eventually("it has stopped", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", top.child.id())).expect("it runs");
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
    let mut top = Terminal::run(&host, (80, 24), &args, true);
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
