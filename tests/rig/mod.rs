//! Real hosts, real guests and scripted ones for tests: each host has a private directory, and nothing outlives the
//! test.
//!
//! Nothing here sleeps to let something happen: tests wait for what they need with a deadline ([`eventually`]).
//! Every process is a child that ends with the test, even when the test is killed, because its standard input is a
//! pipe that only the test holds.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses a part of it"
)]

pub(crate) mod browser;
pub(crate) mod console;
pub(crate) mod document;
mod kernel;
pub(crate) mod openmetrics;
mod process;
pub(crate) mod raw;
pub(crate) mod sys;
mod terminal;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memvisor::control::Client;
use memvisor::settings::{Key, VmPatch};
use memvisor::telemetry::{HostStatus, ShareStatus, Totals, VmStatus};
use memvisor::units::Pages;
use memvisor_wire::sys::uffd;
use tempfile::TempDir;

pub(crate) use kernel::{Blocks, cpu_time, mappings, open_files, private_bytes};
pub(crate) use process::{Process, memvisor};
pub(crate) use terminal::Terminal;

/// How long anything may take on a busy machine. Where a test measures time, it sets a limit of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must happen before a host is said to be at rest.
const REST: Duration = Duration::from_millis(2000);
/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(20);

/// The engines that work here, by the names that `--engine` takes. Without userfaultfd that engine is left out with a
/// message, or the test fails if `MEMVISOR_REQUIRE_UFFD=1`.
pub(crate) fn engines() -> Vec<&'static str> {
    let Err(error) = uffd::open() else {
        return vec!["uffd", "mprotect"];
    };
    let required = std::env::var_os("MEMVISOR_REQUIRE_UFFD").is_some_and(|set| set == "1");
    assert!(!required, "userfaultfd is required: {error}");
    eprintln!("SKIPPED: no userfaultfd ({error}); only the mprotect engine is tested");
    vec!["mprotect"]
}

/// The ways in which the faults of a guest can be served: the engine, and words for the command lines of its guests.
pub(crate) fn modes() -> Vec<(&'static str, &'static str)> {
    let of = |engine| match engine {
        "uffd" => vec![(engine, ""), (engine, "--no-inline")],
        _ => vec![(engine, "")],
    };
    engines().into_iter().flat_map(of).collect()
}

/// Waits until `probe` has something.
pub(crate) fn eventually<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// The number of seconds in the environment variable `name`, or `default` if it is not set.
pub(crate) fn seconds(name: &str, default: u64) -> Duration {
    let chosen = std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}=`{text}` is not a number of seconds"))
    });
    Duration::from_secs(chosen.unwrap_or(default))
}

/// Asserts that a message has each of the words that it needs, such as a value and what is allowed, in any order and
/// whatever the sentence around them.
#[track_caller]
pub(crate) fn names_all(message: &str, words: &str) {
    for word in words.split_whitespace() {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

/// A temporary directory, removed with the test.
pub(crate) fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("memvisor-test-").tempdir();
    dir.expect("a temporary directory")
}

/// The names of the files in `dir`, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("our own directory").flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Writes a file of `pages` pages, all different and none of them zero or compressible. Equal seeds give
/// equal files.
pub(crate) fn image(path: &Path, pages: u32, seed: u64) {
    // Not zero, from where xorshift never gets away.
    let mut state = seed | 1;
    let words = (0..u64::from(pages) * 512).flat_map(|_| {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    fs::write(path, words.collect::<Vec<u8>>()).expect("write an image");
}

/// A running host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) process: Process,
    client: Client,
    // Declared after the process and so dropped after it: the process must end before its directory is removed.
    dir: TempDir,
}

impl Host {
    /// Starts a host and waits until it serves.
    pub(crate) fn start(engine: &str, memory: &str, args: &[&str]) -> Self {
        let dir = scratch();
        Self::run(host_command(&dir, engine, memory, args), dir)
    }

    /// The same without sampling, which would send commands that a scripted guest does not expect.
    pub(crate) fn quiet(engine: &str, memory: &str, args: &[&str]) -> Self {
        let quiet = ["--set", "Mem.SamplePeriod=0"];
        Self::start(engine, memory, &[&quiet, args].concat())
    }

    /// Runs a command that starts a host in `dir`, and waits until it serves.
    pub(crate) fn run(command: Command, dir: TempDir) -> Self {
        let mut process = Process::start(command, "host", dir.path());
        let client = Client::new(dir.path().join("run/control.sock")).expect("a client");
        eventually("the host serves", PATIENCE, || {
            assert_eq!(process.ended(), None, "{}", process.stderr());
            client.status().ok()
        });
        Self {
            process,
            client,
            dir,
        }
    }

    /// The directory with everything of this host; removed with it.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.path().join("run").join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What the host has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// Where it says that its metrics are.
    pub(crate) fn http_address(&self) -> SocketAddr {
        eventually("the host says where its metrics are", PATIENCE, || {
            let log = self.log();
            let (_, rest) = log.split_once("http://")?;
            rest.split_once("/metrics")?.0.parse().ok()
        })
    }

    pub(crate) fn status(&self) -> HostStatus {
        self.client.status().expect("the host answers")
    }

    /// What the host says of the VM called `name`, once its guest is powered on.
    pub(crate) fn vm(&self, name: &str) -> VmStatus {
        self.await_vm(name, "is powered on", |_| true)
    }

    /// Waits until the status of the VM satisfies `met`.
    pub(crate) fn await_vm(
        &self,
        name: &str,
        what: &str,
        mut met: impl FnMut(&VmStatus) -> bool,
    ) -> VmStatus {
        eventually(&format!("{name}: {what}"), PATIENCE, || {
            self.client.vm(name).ok().filter(&mut met)
        })
    }

    /// Changes a host setting.
    pub(crate) fn set(&self, name: &str, value: &str) {
        let key = Key::find(name).expect("a setting");
        let set = self.client.set_setting(key, value);
        set.unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Changes settings of a VM, written as on a command line.
    pub(crate) fn set_vm(&self, name: &str, words: &str) {
        let patch = VmPatch::from_words(words.split_whitespace()).expect("settings");
        let set = self.client.set_vm(name, &patch);
        set.unwrap_or_else(|error| panic!("{name}: {words}: {error}"));
    }

    /// Starts a guest, which may not be powered on yet; `words` are the rest of its command line.
    pub(crate) fn guest(&self, name: &str, words: &str) -> Process {
        Process::start(self.guest_command(name, words), name, self.path())
    }

    pub(crate) fn guest_command(&self, name: &str, words: &str) -> Command {
        let own = ["--die-with-parent", "--json", "--name", name];
        let mut command = self.command("guest");
        command.args(own).args(words.split_whitespace());
        command
    }

    /// A command line for this host.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = memvisor();
        command.args(words.split_whitespace());
        command.arg("--runtime-dir").arg(self.path().join("run"));
        command
    }

    /// Waits until the guests called `names` are powered on, none of their pages is faulted in any more, and
    /// their scanners are settled.
    pub(crate) fn rest(&self, names: &[&str], within: Duration) -> HostStatus {
        self.still(names, within, |status| status.share.settled)
    }

    /// The same, but pages that changed while they were scanned may still wait to be shared.
    pub(crate) fn calm(&self, names: &[&str], within: Duration) -> HostStatus {
        self.still(names, within, |_| true)
    }

    /// Waits until nothing has moved for a while in which `is_enough` held.
    fn still(
        &self,
        names: &[&str],
        within: Duration,
        is_enough: impl Fn(&HostStatus) -> bool,
    ) -> HostStatus {
        let moved = |vm: &VmStatus| vm.faults.served() + vm.scan.merged + vm.scan.zero_found;
        let mut last = (u64::MAX, Instant::now());
        eventually("the host comes to rest", within, || {
            let status = self.status();
            let moved: u64 = status.vms.iter().map(moved).sum();
            if moved != last.0 || !is_enough(&status) {
                last = (moved, Instant::now());
            }
            let seen = |vm: &VmStatus| vm.scan.pages_scanned > 0;
            let all = status.vms.len() == names.len() && status.vms.iter().all(seen);
            (all && last.1.elapsed() > REST).then_some(status)
        })
    }

    /// What the kernel counts for the memory of this host and its guests.
    pub(crate) fn blocks(&self) -> Blocks {
        Blocks::of(self.pid()).expect("the host runs")
    }

    /// The same while the host stands still, so that no page is counted in two files or in none.
    pub(crate) fn blocks_at_once(&self) -> Blocks {
        let _stopped = self.process.suspend();
        self.blocks()
    }

    /// The host's descriptors whose target contains `text`.
    pub(crate) fn descriptors(&self, text: &str) -> Vec<PathBuf> {
        let all = open_files(self.pid()).expect("our own process").into_iter();
        all.filter(|(_, target)| target.contains(text))
            .map(|(path, _)| path)
            .collect()
    }

    /// The host's swap files: open files without a name, in its swap directory.
    pub(crate) fn swap_files(&self) -> Vec<PathBuf> {
        let mut files = self.descriptors(&self.path().to_string_lossy());
        files.retain(|path| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.nlink() == 0)
        });
        files
    }

    /// Waits, at most `limit`, until nothing is left of the VM `name`.
    #[track_caller]
    pub(crate) fn forgets(&self, name: &str, limit: Duration) {
        let memfds = ["memvisor-ram:", "memvisor-zip:", "memvisor-claims:"]
            .map(|kind| format!("{kind}{name} "));
        let what = format!("nothing is left of {name}");
        eventually(&what, limit, || {
            let gone = self.client.vm(name).is_err();
            let closed = (memfds.iter()).all(|memfd| self.descriptors(memfd).is_empty());
            (gone && closed).then_some(())
        });
    }

    /// Waits until a host without guests uses nothing, by its own count and by the kernel's.
    #[track_caller]
    pub(crate) fn is_empty(&self, limit: Duration) {
        let status = eventually("the host has noticed that its guests ended", limit, || {
            let status = self.status();
            let own = status.metadata_pages;
            (status.vms.is_empty() && status.used_pages == own).then_some(status)
        });
        let blocks = self.blocks();
        assert_eq!(blocks.total(), Pages(0), "freed before it was: {blocks:?}");
        // The table of hints is the host's own.
        let own = status.metadata_pages.0;
        assert!(own <= status.budget_pages.0 / 256, "{status:#?}");
        assert_eq!(status.totals, Totals::default());
        assert_eq!(status.share, ShareStatus::default());
        eventually("all files of memory and of swap are closed", limit, || {
            (self.blocks().count() == 0 && self.swap_files().is_empty()).then_some(())
        });
    }

    /// Ends the host in order and removes its directory; its log.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        self.end()
    }

    /// The same. Each warning and error in its log must contain one of `expected`.
    #[track_caller]
    pub(crate) fn stop_quietly(self, expected: &[&str]) {
        let log = self.stop();
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| !line.contains(" INFO "))
            .filter(|line| !expected.iter().any(|text| line.contains(text)))
            .collect();
        assert!(complaints.is_empty(), "the host says: {complaints:#?}");
    }

    /// Ends the host in order; nothing may be left in its runtime directory. Its log.
    #[track_caller]
    pub(crate) fn end(&mut self) -> String {
        self.process.terminate();
        let status = self.process.wait(PATIENCE);
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        let run = self.path().join("run");
        assert_eq!(names(&run), ["lock"], "no sockets are left: {log}");
        log
    }
}

/// The command that starts a host in `dir`.
pub(crate) fn host_command(dir: &TempDir, engine: &str, memory: &str, args: &[&str]) -> Command {
    let mut command = memvisor();
    command.args(["host", "--die-with-parent", "--engine", engine]);
    command.args(["--memory", memory]).args(args);
    command.arg("--runtime-dir").arg(dir.path().join("run"));
    command
}
