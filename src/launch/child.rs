//! Processes of this executable that another process of it starts and watches.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use memvisor_wire::signals::{Event, Signals};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The most bytes of a log that are repeated in an error.
const TAIL: usize = 2000;

/// A child process with its output in two files.
///
/// Its standard input is a pipe that nothing is written to. The pipe ends when this process does, and a child that
/// is started with `--die-with-parent` ends with the pipe.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: process::Child,
    ended: Option<ExitStatus>,
    out: PathBuf,
    log: PathBuf,
}

impl Child {
    /// Starts `program` with `args`; its output goes to `NAME.out` and `NAME.log` in `dir`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        dir: &Path,
    ) -> io::Result<Self> {
        let out = dir.join(format!("{name}.out"));
        let log = dir.join(format!("{name}.log"));
        let process = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(File::create(&out)?)
            .stderr(File::create(&log)?)
            // In a group of its own, so that Ctrl-C reaches only this process, which ends the others in order.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            name: name.to_owned(),
            process,
            ended: None,
            out,
            log,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Its pid, which no other process can have until the child's end has been seen.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.out)?).into_owned())
    }

    /// The whole lines that it has printed after the first `from` bytes, which then are those up to their end.
    pub(crate) fn output_after(&self, from: &mut u64) -> io::Result<String> {
        let mut out = File::open(&self.out)?;
        out.seek(SeekFrom::Start(*from))?;
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |last| last + 1));
        *from += bytes.len() as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The end of what it has logged, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(TAIL)..).unwrap_or(&log);
        let text = String::from_utf8_lossy(tail);
        let text = text.trim();
        if text.is_empty() {
            "it logged nothing"
        } else {
            text
        }
        .to_owned()
    }

    /// Sends a signal unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        // Until the child is waited for, its pid cannot become that of another process.
        if matches!(self.ended(), Ok(None))
            && let Ok(pid) = i32::try_from(self.process.id())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if self.ended.is_none() {
            let _ = self.process.wait();
        }
    }
}

/// Asks `children` to end, and kills those that are left once `may_wait` returns false. Each call of `may_wait` is to
/// wait a moment, or until a child may have ended.
pub(crate) fn end_all(children: &mut [Child], mut may_wait: impl FnMut() -> bool) {
    for child in children.iter_mut() {
        child.signal(Signal::SIGTERM);
    }
    while children
        .iter_mut()
        .any(|child| matches!(child.ended(), Ok(None)))
    {
        if !may_wait() {
            break;
        }
    }
    for child in children.iter_mut() {
        child.signal(Signal::SIGKILL);
        if child.ended.is_none() {
            child.ended = child.process.wait().ok();
        }
    }
}

/// How often children are checked without SIGCHLD. Pending SIGCHLDs merge into one, so there may be fewer signals
/// than children that ended.
const CHECK: Duration = Duration::from_millis(50);

/// Waits until a child may have ended; `false` after `deadline`, or when a signal to end has come. `signals` must contain
/// SIGCHLD.
pub(crate) fn await_child(signals: &Signals, deadline: Instant) -> bool {
    let now = Instant::now();
    match signals.wait(None, deadline.min(now + CHECK)) {
        Ok(Event::Signal(Signal::SIGCHLD)) => true,
        Ok(Event::Timeout) => now < deadline,
        _ => false,
    }
}

/// An exit status in words.
pub(crate) fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(number)) => Signal::try_from(number)
            .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string()),
        (None, None) => "no code".to_owned(),
    }
}
