//! One child process, whose output goes to files and which is ended by its pid.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::privacy::INSPECTABLE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, eventually, names_all};

/// When a test is over, how long its process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to stop or end a process.
const KERNEL: Duration = Duration::from_secs(10);

/// How many lines of output are shown when a test fails. They are the last ones, which tell how the process ended.
const SHOWN: usize = 60;

/// The executable under test, without the caller's environment.
pub(crate) fn memvisor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
    let own = ["MEMVISOR_RUNTIME_DIR", "MEMVISOR_LOG", "XDG_RUNTIME_DIR"];
    let of_systemd = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
    for name in own.into_iter().chain(of_systemd) {
        command.env_remove(name);
    }
    // Tests read /proc/PID of the child, which a process closed to others would not allow.
    command.env(INSPECTABLE, "1");
    command
}

/// A child that ends with its test.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; its output goes to files in `dir`. The test alone holds the write end of the child's
    /// standard input, so a child with `--die-with-parent` sees its end when the test dies.
    pub(crate) fn start(mut command: Command, name: &str, dir: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let stdout = dir.join(format!("{name}-{count}.out"));
        let stderr = dir.join(format!("{name}-{count}.err"));
        let file = |path: &Path| File::create_new(path).expect("each process has its own name");
        let child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .expect("start a process");
        Self {
            child,
            name: name.to_owned(),
            stdout,
            stderr,
            ended: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("it is our child");
        }
        self.ended
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) ends", self.name, self.pid());
        eventually(&what, within, || self.ended())
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.send(Signal::SIGTERM);
    }

    /// Sends a signal to this process alone.
    pub(crate) fn send(&self, signal: Signal) {
        self.signal(signal).expect("it is our child");
    }

    /// The same, unless the process was waited for: from then on its pid may be another's.
    fn signal(&self, signal: Signal) -> nix::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid()).expect("pids are small");
        kill(Pid::from_raw(pid), signal)
    }

    /// Waits for the process to end with `code`; its log must have all of `words`.
    #[track_caller]
    pub(crate) fn fails(&mut self, code: i32, words: &str) {
        names_all(&self.ends(code), words);
    }

    /// Waits for the process to be killed by `signal`.
    #[track_caller]
    pub(crate) fn dies_by(&mut self, signal: Signal) {
        let status = self.wait(PATIENCE);
        let (name, by) = (self.name(), Some(signal as i32));
        assert_eq!(status.signal(), by, "{name}: {status}");
    }

    /// Waits for the process to end with `code`; its log.
    #[track_caller]
    fn ends(&mut self, code: i32) -> String {
        let status = self.wait(PATIENCE);
        let log = self.stderr();
        assert_eq!(status.code(), Some(code), "{}: {status}: {log}", self.name);
        log
    }

    /// Waits for the guest to end with `code`. Its report must say that it verified all it had written and found no
    /// wrong byte.
    #[track_caller]
    pub(crate) fn reports(&mut self, code: i32) -> GuestReport {
        let (log, name) = (self.ends(code), &self.name);
        let report = GuestReport::last_in(&self.stdout()).expect("a report");
        assert_eq!(report.mismatches, 0, "{name}: {log}");
        assert!(report.pages_verified > 0, "{name} verified nothing: {log}");
        for workload in &report.workloads {
            let unverified = workload.other.get("pages_unverified");
            let unverified = unverified.and_then(serde_json::Value::as_u64);
            let found = (workload.mismatches, unverified);
            assert_eq!(found, (0, Some(0)), "{name}: {}", workload.workload);
        }
        report
    }

    /// Waits for the guest to end by itself, otherwise as [`Process::reports`].
    #[track_caller]
    pub(crate) fn verifies(&mut self) -> GuestReport {
        self.reports(0)
    }

    /// Tells the guest to end, otherwise as [`Process::reports`].
    #[track_caller]
    pub(crate) fn stop(mut self) -> GuestReport {
        self.terminate();
        self.reports(130)
    }

    /// Stops all its threads until the result is dropped.
    pub(crate) fn suspend(&self) -> Suspended<'_> {
        self.signal(Signal::SIGSTOP).expect("it is our child");
        let suspended = Suspended(self);
        let tasks = format!("/proc/{}/task", self.pid());
        eventually("all threads stand still", KERNEL, || {
            all_stopped(&tasks).expect("readable").then_some(())
        });
        suspended
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).expect("readable")
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).expect("readable")
    }

    /// Ends the process if it still runs: by SIGTERM, and after a while by SIGKILL.
    fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        // It may have ended in between.
        let _ = self.signal(Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if self.ended().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            for (what, path) in [("output", &self.stdout), ("error", &self.stderr)] {
                let text = fs::read_to_string(path).unwrap_or_default();
                let skipped = text.lines().count().saturating_sub(SHOWN);
                let (name, pid) = (&self.name, self.child.id());
                eprintln!("--- {name} (pid {pid}), standard {what}, without {skipped} lines:");
                text.lines()
                    .skip(skipped)
                    .for_each(|line| eprintln!("{line}"));
            }
        }
        self.end();
    }
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub(crate) struct Suspended<'a>(&'a Process);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        // A process that is gone needs no waking.
        let _ = self.0.signal(Signal::SIGCONT);
    }
}

fn all_stopped(tasks: &str) -> io::Result<bool> {
    for task in fs::read_dir(tasks)? {
        match fs::read_to_string(task?.path().join("stat")) {
            // The state is the first field behind the name, which is in brackets (proc(5)).
            Ok(stat)
                if stat
                    .rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.starts_with(" T")) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
