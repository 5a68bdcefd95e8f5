//! Real hosts and real guests for tests: started in a private directory, watched, and ended by pid.
//!
//! Nothing here sleeps to let something happen: tests wait for what they need with a deadline
//! ([`eventually`]). Every process is a child that ends with the test, even when the test is killed,
//! because its standard input is a pipe that only the test holds.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file is a crate of its own and uses a part"
)]

mod kernel;
mod process;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memvisor::control::Client;
use memvisor::settings::{Key, VmPatch};
use memvisor::telemetry::{HostStatus, ShareStatus, Totals, VmStatus};
use memvisor::units::Pages;
use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::sys::uffd;
use tempfile::TempDir;

#[allow(unused_imports, reason = "as above")]
pub use kernel::{Blocks, MapLine, cpu_time, mappings, private_bytes};
pub use process::{Process, Suspended};

/// How long a host may take until it answers, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);
/// How long a host may take to end: its guests get some seconds.
const STOP: Duration = Duration::from_secs(30);
/// How long nothing must happen before a host is said to be at rest.
const REST: Duration = Duration::from_millis(2000);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Runs `body` with each engine, by the name that `--engine` takes.
///
/// # Panics
/// Without userfaultfd, if `MEMVISOR_REQUIRE_UFFD=1`. Otherwise that engine is left out, with a message.
pub fn engines(mut body: impl FnMut(&str)) {
    match uffd::open() {
        Ok(_) => body("uffd"),
        Err(error) => {
            let required = std::env::var_os("MEMVISOR_REQUIRE_UFFD").is_some_and(|set| set == "1");
            assert!(!required, "userfaultfd is required: {error}");
            eprintln!("SKIPPED: no userfaultfd ({error}); only the mprotect engine is tested");
        }
    }
    body("mprotect");
}

/// Runs `body` for each way in which the faults of a guest can be served: the engine, and arguments for its
/// guests.
///
/// # Panics
/// As [`engines`].
pub fn modes(mut body: impl FnMut(&str, &[&str])) {
    engines(|engine| {
        body(engine, &[]);
        if engine == "uffd" {
            body(engine, &["--no-inline"]);
        }
    });
}

/// Waits until `probe` has something.
///
/// # Panics
/// When nothing came `within` the time.
pub fn eventually<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// The number of seconds in the environment variable `name`, or `default` if it is not set.
///
/// # Panics
/// When the variable is no number.
pub fn seconds(name: &str, default: u64) -> Duration {
    let chosen = std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}=`{text}` is not a number of seconds"))
    });
    Duration::from_secs(chosen.unwrap_or(default))
}

/// Writes a file of `pages` pages, all different and none of them zero or compressible. Equal seeds give
/// equal files.
///
/// # Panics
/// When the file cannot be written.
pub fn image(path: &Path, pages: u32, seed: u64) {
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
pub struct TestHost {
    process: Process,
    client: Client,
    // Declared after the process and so dropped after it: the process must end before its directory is removed.
    dir: TempDir,
}

impl TestHost {
    /// Starts `memvisor host` with `args`; returns when it answers.
    ///
    /// # Panics
    /// When it does not answer in time, or ends.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("memvisor-test-")
            .tempdir()
            .expect("a directory");
        for part in ["swap", "guest-tmp"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        let (run, swap) = (dir.path().join("run"), dir.path().join("swap"));
        let mut process = Process::start(dir.path(), "host", |command| {
            command.arg("host").args(args);
            command.arg("--runtime-dir").arg(&run);
            command.arg("--swap-dir").arg(&swap);
        });
        let client = Client::new(run.join("control.sock")).expect("a client");
        eventually("the host answers", START, || {
            assert_eq!(process.ended(), None, "the host ended at its start");
            client.status().ok()
        });
        Self {
            process,
            client,
            dir,
        }
    }

    /// Starts a guest of this host; it may not have attached yet.
    pub fn guest(&self, name: &str, memory: &str, workloads: &[&str], extra: &[&str]) -> TestGuest {
        let process = Process::start(self.dir.path(), name, |command| {
            command.args(["guest", "--json", "--name", name, "--memory", memory]);
            for workload in workloads {
                command.args(["--workload", workload]);
            }
            command.arg("--runtime-dir").arg(self.run_dir()).args(extra);
            command.env("TMPDIR", self.dir.path().join("guest-tmp"));
        });
        TestGuest { process }
    }

    /// The directory with everything of this host; removed with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The pid of the host.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A client of this host's control API, for another thread.
    ///
    /// # Panics
    /// When none can be made.
    pub fn new_client(&self) -> Client {
        Client::new(self.run_dir().join("control.sock")).expect("a client")
    }

    /// This host's control API, for this thread.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Changes a host setting.
    ///
    /// # Panics
    /// When there is no such setting, or the host refuses.
    pub fn set(&self, name: &str, value: &str) {
        let key = Key::find(name).expect("a setting");
        let set = self.client.set_setting(key, value);
        set.unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Changes settings of a VM, written as on a command line.
    ///
    /// # Panics
    /// When there are no such settings, or the host refuses.
    pub fn set_vm(&self, name: &str, words: &str) {
        let patch = VmPatch::from_words(words.split_whitespace()).expect("settings");
        let set = self.client.set_vm(name, &patch);
        set.unwrap_or_else(|error| panic!("{name}: {words}: {error}"));
    }

    /// What the host has logged so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// What the host says of itself.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn status(&self) -> HostStatus {
        self.client.status().expect("the host answers")
    }

    /// What the host says of the VM called `name`, once it has attached.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn vm(&self, name: &str) -> VmStatus {
        let attached = format!("guest {name} is attached");
        eventually(&attached, START, || self.client.vm(name).ok())
    }

    /// Waits until the guests called `names` have attached, none of their pages is faulted in any more, and
    /// their scanners are settled.
    ///
    /// # Panics
    /// When that takes longer than `within`.
    pub fn rest(&self, names: &[&str], within: Duration) -> HostStatus {
        let moved = |vm: &VmStatus| vm.faults.served() + vm.scan.merged + vm.scan.zero_found;
        let mut last = (u64::MAX, Instant::now());
        eventually("the host comes to rest", within, || {
            let status = self.status();
            let moved: u64 = status.vms.iter().map(moved).sum();
            if moved != last.0 || !status.share.settled {
                last = (moved, Instant::now());
            }
            let seen = |vm: &VmStatus| vm.scan.pages_scanned > 0;
            let all = status.vms.len() == names.len() && status.vms.iter().all(seen);
            (all && last.1.elapsed() > REST).then_some(status)
        })
    }

    /// What the kernel counts for the memory of this host and its guests.
    ///
    /// # Panics
    /// When `/proc` cannot be read.
    pub fn blocks(&self) -> Blocks {
        Blocks::of(self.pid()).expect("the host runs")
    }

    /// The same while the host stands still, so that no page is counted in two files or in none.
    ///
    /// # Panics
    /// When the host cannot be stopped.
    pub fn blocks_at_once(&self) -> Blocks {
        let _stopped = self.process.suspend();
        self.blocks()
    }

    /// Ends the host with SIGTERM. Checks that it left nothing behind, and that each warning and error in its
    /// log contains one of `expected`.
    ///
    /// # Panics
    /// When it ends otherwise.
    pub fn stop(mut self, expected: &[&str]) {
        self.process.terminate();
        let status = self.process.wait(STOP);
        assert_eq!(status.code(), Some(0), "the host ends well: {status}");
        let log = self.process.stderr();
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| !line.contains(" INFO "))
            .filter(|line| !expected.iter().any(|text| line.contains(text)))
            .collect();
        assert!(complaints.is_empty(), "the host says: {complaints:#?}");
        assert_eq!(names(&self.run_dir()), ["lock"], "no sockets are left");
        assert_eq!(self.swap_files(), [""; 0], "no swap files are left");
    }

    /// Waits until a host without guests uses nothing, by its own count and by the kernel's.
    ///
    /// # Panics
    /// When something is left.
    pub fn is_empty(&self, within: Duration) {
        let status = eventually("the host has noticed that its guests ended", within, || {
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
        eventually("all memory files are closed", within, || {
            (self.blocks().count() == 0).then_some(())
        });
        eventually("all swap files are gone", within, || {
            self.swap_files().is_empty().then_some(())
        });
    }

    /// The files in the swap directory.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn swap_files(&self) -> Vec<String> {
        names(&self.dir.path().join("swap"))
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).expect("readable").collect();
    let entries = entries.expect("readable");
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.iter().map(name).collect()
}

/// A running guest.
#[derive(Debug)]
pub struct TestGuest {
    process: Process,
}

impl TestGuest {
    /// The pid of the guest.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops all its threads until the result is dropped.
    ///
    /// # Panics
    /// When they do not stop.
    pub fn suspend(&self) -> Suspended<'_> {
        self.process.suspend()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Waits until its time is over and all its memory is verified; its report.
    ///
    /// # Panics
    /// When it fails, hangs, or anything it read was wrong or could not be read.
    pub fn finish(self, within: Duration) -> GuestReport {
        self.check(0, within)
    }

    /// Tells it to end; otherwise as [`TestGuest::finish`].
    ///
    /// # Panics
    /// As [`TestGuest::finish`].
    pub fn stop(mut self, within: Duration) -> GuestReport {
        self.terminate();
        self.interrupted(within)
    }

    /// Tells it to end.
    pub fn terminate(&mut self) {
        self.process.terminate();
    }

    /// Waits until it has ended because it was told to; otherwise as [`TestGuest::finish`].
    ///
    /// # Panics
    /// As [`TestGuest::finish`].
    pub fn interrupted(self, within: Duration) -> GuestReport {
        self.check(130, within)
    }

    fn check(mut self, code: i32, within: Duration) -> GuestReport {
        let name = self.process.name().to_owned();
        let status = self.process.wait(within);
        let (output, errors) = (self.process.stdout(), self.process.stderr());
        assert_eq!(
            status.code(),
            Some(code),
            "guest {name}: {status}\n{output}\n{errors}"
        );
        let report = GuestReport::last_in(&output).expect("a report");
        assert_eq!(report.mismatches, 0, "guest {name} read wrong bytes");
        for workload in &report.workloads {
            let number = |field: &str| {
                workload
                    .other
                    .get(field)
                    .and_then(serde_json::Value::as_u64)
            };
            let name = &workload.workload;
            assert_eq!(workload.mismatches, 0, "{name}");
            assert_eq!(number("pages_unverified"), Some(0), "{name}");
        }
        report
    }
}
