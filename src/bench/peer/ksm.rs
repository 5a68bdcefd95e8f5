//! KSM: the kernel's own merging of equal pages.
//!
//! It has one thread for the whole machine, ksmd, and merges private anonymous memory that asks for it. The
//! benchmark sets how many pages ksmd scans at each wake-up, how long it sleeps, and its heuristics; the guard
//! restores all of that. Where somebody else has merged pages, KSM is left alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::BenchError;
use super::super::clock::process_cpu;
use super::super::guard::{Guard, Undo};

const DIR: &str = "/sys/kernel/mm/ksm";
/// How long KSM may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_micros(500);

/// How hard KSM works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// Nothing holds it back, and its heuristics are off.
    Unthrottled,
    /// As usual on a host of virtual machines: 1000 pages every 20 ms, zeroes merged with the kernel's zero page.
    Usual,
}

/// What is set, in this order. It is restored in the opposite order, so that KSM runs again only after all else is
/// restored.
type Settings = [(&'static str, &'static str); 6];

impl Pace {
    const fn settings(self) -> Settings {
        match self {
            Self::Unthrottled => [
                ("run", "2"),
                ("advisor_mode", "none"),
                ("smart_scan", "0"),
                ("use_zero_pages", "0"),
                ("sleep_millisecs", "0"),
                ("pages_to_scan", "100000"),
            ],
            Self::Usual => [
                ("run", "2"),
                ("advisor_mode", "none"),
                ("smart_scan", "1"),
                ("use_zero_pages", "1"),
                ("sleep_millisecs", "20"),
                ("pages_to_scan", "1000"),
            ],
        }
    }
}

/// The kernel's KSM, for this benchmark alone.
#[derive(Debug)]
pub(crate) struct Ksm<'a> {
    /// Keeps the settings until the end.
    _guard: &'a Guard,
    ksmd: u32,
}

/// How far KSM has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Passes over all memory.
    pub(crate) passes: u64,
    /// Pages scanned.
    pub(crate) scanned: u64,
    /// Pages whose content is in a merged page: the pages that were kept and those that were freed.
    pub(crate) merged: u64,
}

fn file(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn read(name: &str) -> io::Result<String> {
    let text = fs::read_to_string(file(name))?;
    let text = text.trim();
    // A setting with choices is shown as all its choices, with brackets around the one in force.
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or(text, |(chosen, _)| chosen).to_owned())
}

fn number(name: &str) -> io::Result<u64> {
    read(name)?.parse().map_err(io::Error::other)
}

impl<'a> Ksm<'a> {
    /// Takes KSM over; the inner error says why that cannot be done.
    ///
    /// # Errors
    /// The guard is gone.
    pub(crate) fn open(guard: &'a Guard, pace: Pace) -> Result<Result<Self, String>, BenchError> {
        if !Path::new(DIR).exists() {
            return Ok(Err("this kernel has none".to_owned()));
        }
        if let Err(error) = fs::OpenOptions::new().write(true).open(file("run")) {
            return Ok(Err(format!("its settings are for root: {error}")));
        }
        // Claimed before its counters are read: another benchmark could begin in between.
        if let Err(why) = guard.claim(&file("run")) {
            return Ok(Err(why.to_string()));
        }
        let used = number("pages_shared").map_err(BenchError::io("read KSM's counters"))?;
        // To stop KSM unmerges everything, also what others have merged.
        if used > 0 {
            return Ok(Err(format!(
                "somebody uses it: {used} pages are merged now"
            )));
        }
        let Some(ksmd) = find_thread("ksmd") else {
            return Ok(Err("its thread cannot be found".to_owned()));
        };
        for (name, _) in pace.settings() {
            // Not every kernel has every setting.
            if let Ok(text) = read(name) {
                let path = file(name);
                guard
                    .undo(Undo::Write { path, text })
                    .map_err(BenchError::io("have KSM restored"))?;
            }
        }
        // Registered last, so undone first: unmerges everything. KSM keeps counting pages of processes that were killed
        // while it scanned them, and the next benchmark would think that somebody uses KSM.
        let (path, text) = (file("run"), "2".to_owned());
        guard
            .undo(Undo::Write { path, text })
            .map_err(BenchError::io("have KSM restored"))?;
        let ksm = Self {
            _guard: guard,
            ksmd,
        };
        for (name, value) in pace.settings() {
            if file(name).exists() {
                set(name, value)?;
            }
        }
        Ok(Ok(ksm))
    }

    /// Starts scanning all memory that asked for it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn start(&self) -> Result<(), BenchError> {
        set("run", "1")
    }

    /// Stops scanning; merged pages stay merged.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn pause(&self) -> Result<(), BenchError> {
        set("run", "0")
    }

    /// Stops scanning, and gives every merged page its own memory back.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn stop(&self) -> Result<(), BenchError> {
        set("run", "2")
    }

    /// How far it has come.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn progress(&self) -> Result<Progress, BenchError> {
        let read = |name| number(name).map_err(BenchError::io("read KSM's counters"));
        Ok(Progress {
            passes: read("full_scans")?,
            scanned: read("pages_scanned")?,
            merged: read("pages_shared")? + read("pages_sharing")?,
        })
    }

    /// Processor time of its thread so far.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn cpu(&self) -> Result<Duration, BenchError> {
        process_cpu(self.ksmd).map_err(BenchError::io("read ksmd's processor time"))
    }

    /// Waits until `enough`.
    ///
    /// # Errors
    /// [`BenchError::Overtime`].
    pub(crate) fn wait(
        &self,
        what: &str,
        enough: impl Fn(&Progress) -> bool,
    ) -> Result<Progress, BenchError> {
        let start = Instant::now();
        loop {
            let now = self.progress()?;
            if enough(&now) {
                return Ok(now);
            }
            if start.elapsed() > PATIENCE {
                return Err(BenchError::Overtime {
                    what: format!("KSM to {what}"),
                    limit: PATIENCE,
                });
            }
            std::thread::sleep(POLL);
        }
    }
}

fn set(name: &str, value: &str) -> Result<(), BenchError> {
    fs::write(file(name), value).map_err(BenchError::io("change a setting of KSM"))
}

/// The pid of a thread of the kernel.
fn find_thread(name: &str) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // A thread of the kernel has no executable.
        comm.trim() == name && fs::read_link(format!("/proc/{pid}/exe")).is_err()
    });
    pids.next()
}
