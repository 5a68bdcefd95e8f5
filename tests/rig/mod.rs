//! Real hosts and guests for tests of what goes wrong: each host has a directory of its own, and
//! nothing outlives the test.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod raw;
pub(crate) mod sys;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use memvisor::control::Client;
use memvisor::telemetry::{HostStatus, VmStatus};
use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::privacy::INSPECTABLE;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::{self, Process};

/// How long anything may take on a busy machine. Where a test measures time, it sets a limit of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The engines that work here.
pub(crate) fn engines() -> Vec<&'static str> {
    let mut all = Vec::new();
    common::engines(|name| all.extend(["uffd", "mprotect"].iter().filter(|known| **known == name)));
    all
}

/// Waits until `met` gives something.
pub(crate) fn eventually<T>(what: &str, met: impl FnMut() -> Option<T>) -> T {
    common::eventually(what, PATIENCE, met)
}

/// The executable under test, without the caller's environment.
pub(crate) fn memvisor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
    for name in ["MEMVISOR_RUNTIME_DIR", "MEMVISOR_LOG", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    // Tests read what it has open in /proc, which a process closed to others would not show.
    command.env(INSPECTABLE, "1");
    command
}

/// A temporary directory, removed with the test.
pub(crate) fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("mv-bad-").tempdir();
    dir.expect("a temporary directory")
}

/// Starts a process whose output goes to files in `dir`.
pub(crate) fn start(mut command: Command, name: &str, dir: &Path) -> Process {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    command.env("NO_COLOR", "1");
    Process::spawn(dir, &format!("{name}-{count}"), command)
}

/// What a test expects of the end of a process.
pub(crate) trait Ends {
    fn send(&self, signal: Signal);
    fn wait_long(&mut self) -> ExitStatus;
    fn fails(&mut self, code: i32, text: &str);
    fn dies_by(&mut self, signal: Signal);
    fn reports(&mut self, code: i32) -> GuestReport;

    /// Waits for the guest to end well; its report, which says that it verified what it had written.
    #[track_caller]
    fn verifies(&mut self) -> GuestReport {
        self.reports(0)
    }
}

impl Ends for Process {
    fn send(&self, signal: Signal) {
        self.signal(signal).expect("it is our child");
    }

    fn wait_long(&mut self) -> ExitStatus {
        self.wait(PATIENCE)
    }

    /// Waits for the process to end with `code`; its log must contain `text`.
    #[track_caller]
    fn fails(&mut self, code: i32, text: &str) {
        let status = self.wait_long();
        let (name, log) = (self.name(), self.stderr());
        assert_eq!(status.code(), Some(code), "{name}: {status}: {log}");
        assert!(log.contains(text), "{name}: no `{text}` in: {log}");
    }

    /// Waits for the process to be killed by `signal`.
    #[track_caller]
    fn dies_by(&mut self, signal: Signal) {
        let status = self.wait_long();
        let (name, by) = (self.name(), Some(signal as i32));
        assert_eq!(status.signal(), by, "{name}: {status}");
    }

    /// Waits for the guest to end with `code`; its report must say that it verified what it had written.
    #[track_caller]
    fn reports(&mut self, code: i32) -> GuestReport {
        let status = self.wait_long();
        let (name, log) = (self.name(), self.stderr());
        assert_eq!(status.code(), Some(code), "{name}: {status}: {log}");
        let report = GuestReport::last_in(&self.stdout()).expect("a report");
        assert_eq!(report.mismatches, 0, "{name}: {log}");
        assert!(report.pages_verified > 0, "{name} verified nothing: {log}");
        report
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
    /// Starts a host and waits until it serves. `args` are added to the arguments of every host.
    pub(crate) fn start(engine: &str, memory: &str, args: &[&str]) -> Self {
        let dir = scratch();
        let process = start(host_command(&dir, engine, memory, args), "host", dir.path());
        Self::over(process, dir)
    }

    pub(crate) fn over(mut process: Process, dir: TempDir) -> Self {
        let client = Client::new(dir.path().join("run/control.sock")).expect("a client");
        eventually("the host serves", || {
            assert_eq!(process.ended(), None, "{}", process.stderr());
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
        self.process.stderr()
    }

    pub(crate) fn status(&self) -> HostStatus {
        self.client.status().expect("the host answers")
    }

    pub(crate) fn vm(&self, name: &str) -> VmStatus {
        self.client.vm(name).expect("the VM is there")
    }

    /// Starts a guest; `words` are the rest of its command line.
    pub(crate) fn guest(&self, name: &str, words: &str) -> Process {
        start(self.guest_command(name, words), name, self.path())
    }

    pub(crate) fn guest_command(&self, name: &str, words: &str) -> Command {
        let mut command = memvisor();
        command.args([
            "guest",
            "--die-with-parent",
            "--json",
            "--name",
            name,
            "--runtime-dir",
        ]);
        command.arg(self.path().join("run"));
        command.args(words.split_whitespace());
        command
    }

    /// Waits until the status of the VM satisfies `met`.
    pub(crate) fn await_vm(
        &self,
        name: &str,
        what: &str,
        mut met: impl FnMut(&VmStatus) -> bool,
    ) -> VmStatus {
        eventually(&format!("{name}: {what}"), || {
            self.client.vm(name).ok().filter(&mut met)
        })
    }

    /// The host's descriptors whose target contains `text`.
    pub(crate) fn descriptors(&self, text: &str) -> Vec<PathBuf> {
        let dir = format!("/proc/{}/fd", self.process.pid());
        let entries = fs::read_dir(dir).expect("our own process").flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(text)))
            .collect()
    }

    /// The host's swap files: open files without a name, in its swap directory.
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
        let memfds = ["memvisor-ram:", "memvisor-zip:", "memvisor-claims:"]
            .map(|kind| format!("{kind}{name}"));
        let what = format!("nothing is left of {name}");
        common::eventually(&what, limit, || {
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
        common::eventually("no memory and no file is left", limit, || {
            let status = self.status();
            // The metadata that stays is the host's own: its table of hints.
            let is_free = status.vms.is_empty() && status.used_pages == status.metadata_pages;
            let held = self.descriptors("memvisor-ram:").len() + self.swap_files().len();
            let pools = self.descriptors("memvisor-pool").len();
            (is_free && held == 0 && pools == 0).then_some(())
        });
    }

    /// Ends the host in order and removes its directory; its log.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        self.end()
    }

    /// Ends the host in order; no socket may be left. Returns its log.
    #[track_caller]
    pub(crate) fn end(&mut self) -> String {
        self.process.terminate();
        let status = self.process.wait_long();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        for socket in ["memory.sock", "balloon.sock", "control.sock"] {
            assert!(!self.socket(socket).exists(), "{socket} is left: {log}");
        }
        log
    }
}

/// A host that does not sample, because sampling would send commands that a scripted guest does not expect.
pub(crate) fn host_command(dir: &TempDir, engine: &str, memory: &str, args: &[&str]) -> Command {
    let mut command = memvisor();
    command.args([
        "host",
        "--die-with-parent",
        "--engine",
        engine,
        "--memory",
        memory,
        "--set",
        "Mem.SamplePeriod=0",
    ]);
    command.arg("--runtime-dir").arg(dir.path().join("run"));
    command.args(args);
    command
}
