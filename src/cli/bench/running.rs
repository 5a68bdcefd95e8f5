//! A benchmark while it runs: one thread measures, and another waits for that thread and for signals.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use memvisor_wire::signals::{Event, Signals};

use crate::bench::report::Report;
use crate::bench::{Bench, BenchError};
use crate::cli::exit::Exit;

/// How long a benchmark may take to end when it is told to, before it is left behind.
const GRACE: Duration = Duration::from_secs(3);
/// A limit for waits that take as long as it takes. They are repeated when it passes.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// What the thread that measures shares with the one that waits for it and for signals.
pub(super) struct Running {
    pub(super) report: Report,
    pub(super) line: Line,
    /// What is being measured.
    step: Mutex<Option<(Bench, String)>>,
    stop: AtomicBool,
}

impl Running {
    pub(super) fn new() -> Self {
        Self {
            report: Report::default(),
            line: Line::new(),
            step: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Notes the next step; whether to go on with it.
    pub(super) fn step(&self, bench: Bench, text: &str) -> bool {
        self.line.show(&format!("{bench}: {text}"));
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        *step = Some((bench, text.to_owned()));
        !self.stop.load(Ordering::Relaxed)
    }

    /// Has a thread `measure` to its end. If a signal comes, the thread ends before its next step. If that takes too
    /// long, or a second signal comes, the thread is left behind and ends with the process. The guard restores the
    /// machine in any case.
    pub(super) fn until_end(
        &self,
        signals: &Signals,
        measure: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Exit> {
        // The thread's end of the pipe closes when the thread ends, even by a panic.
        let (over, running) = io::pipe().context("cannot make a pipe")?;
        let work = move || {
            let _running = running;
            measure()
        };
        let thread = thread::Builder::new()
            .name("measure".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        let wait = |limit| signals.wait(Some(over.as_fd()), Instant::now() + limit);
        let mut event = Event::Timeout;
        while event == Event::Timeout {
            event = wait(FAR)?;
        }
        if matches!(event, Event::Signal(_)) {
            self.stop.store(true, Ordering::Relaxed);
            // A benchmark that hangs in the kernel is left behind: the guard puts the machine back when this process
            // ends.
            if wait(GRACE)? != Event::Readable {
                return Ok(Exit::Interrupted);
            }
        }
        let done = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match done {
            Err(error) if self.is_interruption(&error) => Ok(Exit::Interrupted),
            done => done.map(|()| Exit::Success),
        }
    }

    /// Whether `error` ended the measuring because a signal came. The end of a guest can be that too: one that is just
    /// being started is not in its own process group yet, and gets the terminal's signal as well.
    fn is_interruption(&self, error: &anyhow::Error) -> bool {
        match error.downcast_ref() {
            Some(BenchError::Interrupted) => true,
            Some(BenchError::GuestEnded(_)) => self.stop.load(Ordering::Relaxed),
            _ => false,
        }
    }

    /// What a run of `benches` that ended early has not measured.
    pub(super) fn missing(&self, benches: &[Bench]) -> String {
        let step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((bench, text)) = &*step else {
            return "nothing was measured".to_owned();
        };
        let begun = benches.iter().position(|other| other == bench);
        let later = &benches[begun.map_or(0, |begun| begun + 1)..];
        let later: String = later
            .iter()
            .map(|bench| format!(", and all of {bench}"))
            .collect();
        format!("not measured: what comes from `{bench}: {text}` on{later}")
    }
}

/// The line on standard error that says what is being measured.
pub(super) struct Line {
    live: bool,
}

impl Line {
    fn new() -> Self {
        Self {
            live: io::stderr().is_terminal(),
        }
    }

    fn show(&self, text: &str) {
        // Errors are ignored: if standard error is closed, nobody is left to be told.
        let _ = if self.live {
            write!(io::stderr(), "\r\x1b[K{text}")
        } else {
            writeln!(io::stderr(), "{text}")
        };
    }

    pub(super) fn clear(&self) {
        if self.live {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_that_ends_is_an_interruption_after_a_signal_alone() {
        let running = Running::new();
        let ended = || BenchError::GuestEnded("scanned".to_owned()).into();
        assert!(!running.is_interruption(&ended()));
        assert!(running.step(Bench::Scan, "random, round 1"));
        running.stop.store(true, Ordering::Relaxed);
        assert!(!running.step(Bench::Scan, "random, round 2"));
        assert!(running.is_interruption(&ended()));
        assert!(running.is_interruption(&BenchError::Interrupted.into()));
        let (name, pages) = ("scanned".to_owned(), 1);
        assert!(!running.is_interruption(&BenchError::Corrupt { name, pages }.into()));
    }

    #[test]
    fn missing_is_what_was_to_come() {
        let running = Running::new();
        let benches = [Bench::Scan, Bench::Swap, Bench::Plan];
        assert_eq!(running.missing(&benches), "nothing was measured");
        running.step(Bench::Swap, "text, round 2");
        assert_eq!(
            running.missing(&benches),
            "not measured: what comes from `swap: text, round 2` on, and all of plan"
        );
    }
}
