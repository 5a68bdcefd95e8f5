//! One child process, whose output goes to files and which is ended by its pid.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memvisor_wire::privacy::INSPECTABLE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// When a test is over, how long its process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to stop or end a process.
const KERNEL: Duration = Duration::from_secs(10);

/// How many lines of output are shown when a test fails. They are the last ones, which tell how the process ended.
const SHOWN: usize = 60;

/// A child that ends with its test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts the executable with what `arguments` adds; its output goes to files in `dir`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(dir: &Path, name: &str, arguments: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
        arguments(&mut command);
        command
            // The test alone holds the write end of the child's standard input, so the child sees its end when the test
            // dies.
            .arg("--die-with-parent")
            // Tests read /proc/PID of the child, which a process closed to others would not allow.
            .env(INSPECTABLE, "1")
            .env("MEMVISOR_LOG", "info")
            .env("NO_COLOR", "1");
        Self::spawn(dir, name, command)
    }

    /// Starts any command; its output goes to files in `dir`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(dir: &Path, name: &str, mut command: Command) -> Self {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        let file = |path: &Path| File::create_new(path).expect("each process has its own name");
        let child = command
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When the kernel does not know the child.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("it is our child");
        }
        self.ended
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) ends", self.name, self.pid());
        eventually(&what, within, || self.ended())
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM).expect("it is our child");
    }

    /// Sends a signal to this process alone, unless it was waited for: from then on its pid may be another's.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid()).expect("pids are small");
        kill(Pid::from_raw(pid), signal)
    }

    /// Stops all its threads until the result is dropped.
    ///
    /// # Panics
    /// When they do not stop.
    pub fn suspend(&self) -> Suspended<'_> {
        self.signal(Signal::SIGSTOP).expect("it is our child");
        let suspended = Suspended(self);
        let tasks = format!("/proc/{}/task", self.pid());
        eventually("all threads stand still", KERNEL, || {
            all_stopped(&tasks).expect("readable").then_some(())
        });
        suspended
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).expect("readable")
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).expect("readable")
    }
}

impl Process {
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
pub struct Suspended<'a>(&'a Process);

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
