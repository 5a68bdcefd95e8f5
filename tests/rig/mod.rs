//! Real hosts and guests for tests of what goes wrong: each host has a directory of its own, and
//! nothing outlives the test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod raw;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memvisor::control::Client;
use memvisor::telemetry::{GuestReport, HostStatus, VmStatus};
use memvisor_guest_agent::shim::uffd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything may take on a busy machine. What is measured has its own limit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

/// The engines that work here.
pub(crate) fn engines() -> Vec<&'static str> {
    match uffd::open() {
        Ok(_) => vec!["mprotect", "uffd"],
        Err(error) => {
            eprintln!("SKIPPED for uffd: userfaultfd does not work here: {error}");
            vec!["mprotect"]
        }
    }
}

/// Waits until `met` gives something.
pub(crate) fn eventually<T>(what: &str, met: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, met)
}

/// As [`eventually`], but in a time that is itself tested.
pub(crate) fn within<T>(limit: Duration, what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        // Looked at before the clock, so that a test that was not scheduled looks once more.
        let late = began.elapsed() > limit;
        if let Some(found) = met() {
            return found;
        }
        assert!(!late, "after {limit:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// The executable under test, without the caller's environment.
pub(crate) fn memvisor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
    for name in ["MEMVISOR_RUNTIME_DIR", "MEMVISOR_LOG", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A directory on a disk if there is one.
pub(crate) fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("mv-bad-").tempdir();
    dir.expect("a temporary directory")
}

/// A process with its output in files; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(mut command: Command, name: &str, dir: &Path) -> Self {
        let (out, log) = (
            dir.join(format!("{name}.out")),
            dir.join(format!("{name}.log")),
        );
        let child = command
            .stdout(File::create(&out).expect("create"))
            .stderr(File::create(&log).expect("create"))
            .spawn()
            .expect("spawn");
        let name = name.to_owned();
        Self {
            name,
            child,
            out,
            log,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("pids fit");
        kill(Pid::from_raw(pid), signal).expect("it is a child, so it is there until waited for");
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is a child")
    }

    /// Waits for its end, at most `limit`.
    pub(crate) fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} has not ended", self.name);
        within(limit, &what, || self.ended())
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end with `code` and for `text` in what it logged.
    #[track_caller]
    pub(crate) fn fails(&mut self, code: i32, text: &str) {
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(code), "{}: {status}: {log}", self.name);
        assert!(log.contains(text), "{}: no `{text}` in: {log}", self.name);
    }

    /// Waits for its end by `signal`.
    #[track_caller]
    pub(crate) fn dies_by(&mut self, signal: Signal) {
        let status = self.wait();
        let by = Some(signal as i32);
        assert_eq!(
            status.signal(),
            by,
            "{}: {status}: {}",
            self.name,
            self.log()
        );
    }

    /// Waits for its good end; the report of a guest that verified what it had written.
    #[track_caller]
    pub(crate) fn verifies(&mut self) -> GuestReport {
        self.reports(0)
    }

    /// As [`Self::verifies`], with another exit code.
    #[track_caller]
    pub(crate) fn reports(&mut self, code: i32) -> GuestReport {
        let status = self.wait();
        let (name, log) = (&self.name, self.log());
        assert_eq!(status.code(), Some(code), "{name}: {status}: {log}");
        let report = GuestReport::last_in(&self.out()).expect("a report");
        assert_eq!(report.mismatches, 0, "{name}: {log}");
        assert!(report.pages_verified > 0, "{name} verified nothing: {log}");
        report
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}

/// A running host.
#[derive(Debug)]
pub(crate) struct Host {
    process: Process,
    client: Client,
    dir: TempDir,
}

impl Host {
    /// Starts a host and waits until it serves. `args` are added to those every host gets.
    pub(crate) fn start(engine: &str, memory: &str, args: &[&str]) -> Self {
        let dir = scratch();
        let process = Process::start(host_command(&dir, engine, memory, args), "host", dir.path());
        Self::over(process, dir)
    }

    pub(crate) fn over(mut process: Process, dir: TempDir) -> Self {
        let client = Client::new(dir.path().join("run/control.sock")).expect("a client");
        eventually("the host does not serve", || {
            assert_eq!(process.ended(), None, "{}", process.log());
            client.status().ok()
        });
        Self {
            process,
            client,
            dir,
        }
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) fn status(&self) -> HostStatus {
        self.client.status().expect("the host answers")
    }

    pub(crate) fn vm(&self, name: &str) -> VmStatus {
        self.client.vm(name).expect("the VM is there")
    }

    /// Starts a guest; `words` are the rest of its command line.
    pub(crate) fn guest(&self, name: &str, words: &str) -> Process {
        Process::start(self.guest_command(name, words), name, self.path())
    }

    pub(crate) fn guest_command(&self, name: &str, words: &str) -> Command {
        let mut command = memvisor();
        command.args(["guest", "--json", "--name", name, "--runtime-dir"]);
        command.arg(self.path().join("run"));
        command.args(words.split_whitespace());
        command
    }

    /// Waits until the VM has this many resident pages, at least.
    pub(crate) fn await_vm(&self, name: &str, what: &str, mut met: impl FnMut(&VmStatus) -> bool) {
        eventually(&format!("{name}: {what}"), || {
            self.client.vm(name).ok().filter(&mut met)
        });
    }

    /// The host's descriptors whose target holds `text`.
    pub(crate) fn descriptors(&self, text: &str) -> Vec<PathBuf> {
        let dir = format!("/proc/{}/fd", self.process.pid());
        let entries = fs::read_dir(dir).expect("our own process").flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(text)))
            .collect()
    }

    /// The host's swap files: without a name, in its swap directory.
    pub(crate) fn swap_files(&self) -> Vec<PathBuf> {
        let place = self.dir.path().join("run").to_string_lossy().into_owned();
        let mut files = self.descriptors(&place);
        files.retain(|path| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.nlink() == 0)
        });
        files
    }

    /// Waits, at most `limit`, until nothing is left of the VM `name`.
    #[track_caller]
    pub(crate) fn forgets(&self, name: &str, limit: Duration) {
        let memfds = ["memvisor-ram:", "memvisor-zip:"].map(|kind| format!("{kind}{name}"));
        within(limit, &format!("something is left of {name}"), || {
            let gone = self.client.vm(name).is_err();
            let closed = memfds.iter().all(|memfd| {
                let exact = format!("{memfd} ");
                self.descriptors(&exact).is_empty()
            });
            (gone && closed).then_some(())
        });
    }

    /// Waits until no memory is used and no file is held for any guest.
    #[track_caller]
    pub(crate) fn is_empty(&self, limit: Duration) {
        within(limit, "memory or files are left", || {
            let used = self.status().used_pages.0;
            let held = self.descriptors("memvisor-ram:").len() + self.swap_files().len();
            let pools = self.descriptors("memvisor-pool").len();
            (used == 0 && held == 0 && pools == 0).then_some(())
        });
    }

    /// Ends the host in order and removes its directory.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        self.end()
    }

    /// Ends the host in order; no socket may be left. What it logged.
    #[track_caller]
    pub(crate) fn end(&mut self) -> String {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        for socket in ["memory.sock", "balloon.sock", "control.sock"] {
            assert!(!self.socket(socket).exists(), "{socket} is left: {log}");
        }
        log
    }
}

pub(crate) fn host_command(dir: &TempDir, engine: &str, memory: &str, args: &[&str]) -> Command {
    let mut command = memvisor();
    command.args(["host", "--engine", engine, "--memory", memory]);
    command.arg("--runtime-dir").arg(dir.path().join("run"));
    command.args(args);
    command
}
