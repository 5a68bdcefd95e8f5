//! A host and its guests as processes of this executable, for whoever starts them: the demo, benchmarks, experiments.
//!
//! Each of these once knew by itself how a host is started, what a guest's exit code means and where sockets go. A new
//! option, or a new way for a guest to end, then had to reach three places. So the command lines are made here
//! ([`HostStart`], [`GuestStart`]), and what an ended guest means is read here ([`Ended`]). Who waits for whom, and how
//! long, differs and stays with them.
//!
//! - `child.rs`: a process with its output in files, which ends when this process does.
//! - `scratch.rs`: a directory for sockets and swap files, which nobody finds afterwards.
//! - `guests.rs`: tables `[[guest]]` of files, for fleets and scenarios.
//! - `content.rs`: files for guests to read, like those of real systems.

mod child;
pub(crate) mod content;
pub(crate) mod guests;
mod scratch;

use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use memvisor_guest_agent::command::Exit;
use memvisor_guest_agent::guest::GuestReport;
use serde_json::Value as Json;

pub(crate) use self::child::{Child, await_child, end_all, in_words};
pub(crate) use self::scratch::SCRATCH_PREFIX;
pub(crate) use self::scratch::{Scratch, ScratchError};
use crate::policy::Policy;
use crate::settings::{EngineChoice, HttpAddress, Key, Profile, VmPatch};
use crate::units::Bytes;

/// A host to be started.
#[derive(Clone, Debug)]
pub(crate) struct HostStart<'a> {
    pub(crate) memory: Bytes,
    pub(crate) engine: EngineChoice,
    pub(crate) profile: Profile,
    pub(crate) policy: Option<&'static dyn Policy>,
    pub(crate) settings: &'a [(Key, String)],
    pub(crate) http: Option<HttpAddress>,
    pub(crate) runtime_dir: &'a Path,
    pub(crate) swap_dir: &'a Path,
    pub(crate) swap_cache: Option<&'a Path>,
    /// A directory that the host removes if this process dies.
    pub(crate) scratch: Option<&'a Path>,
    /// Its configuration file.
    pub(crate) configuration: Option<&'a Path>,
}

impl HostStart<'_> {
    /// Its arguments.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = words(["host", "--die-with-parent"]);
        let mut give = |option: &str, value: String| args.extend([option.to_owned(), value]);
        give("--memory", self.memory.0.to_string());
        give("--engine", self.engine.to_string());
        give("--profile", self.profile.to_string());
        if let Some(policy) = self.policy {
            give("--policy", policy.name().to_owned());
        }
        for (key, value) in self.settings {
            give("--set", format!("{}={value}", key.spec().name));
        }
        if let Some(HttpAddress(address)) = self.http {
            give("--http", address.to_string());
        }
        give("--runtime-dir", text(self.runtime_dir));
        give("--swap-dir", text(self.swap_dir));
        if let Some(cache) = self.swap_cache {
            give("--swap-cache", text(cache));
        }
        if let Some(scratch) = self.scratch {
            give("--scratch", text(scratch));
        }
        if let Some(file) = self.configuration {
            give("--config", text(file));
        }
        args
    }
}

/// A guest to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestStart<'a> {
    pub(crate) name: &'a str,
    pub(crate) memory: Bytes,
    pub(crate) workloads: &'a [String],
    pub(crate) seed: u64,
    /// How long it runs; `None`: until it is told to end.
    pub(crate) duration: Option<Duration>,
}

impl GuestStart<'_> {
    /// Its arguments, without those that depend on where it runs.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = words(["guest", "--die-with-parent", "--json"]);
        let mut give = |option: &str, value: String| args.extend([option.to_owned(), value]);
        give("--name", self.name.to_owned());
        give("--memory", self.memory.0.to_string());
        give("--seed", self.seed.to_string());
        if let Some(duration) = self.duration {
            give("--duration", format!("{}us", duration.as_micros()));
        }
        for workload in self.workloads {
            give("--workload", workload.clone());
        }
        args
    }
}

/// The arguments by which a guest on the host in `runtime_dir` is powered on with these settings, but for what
/// becomes of its swap file, which can only be set later.
pub(crate) fn powered_on(patch: &VmPatch, runtime_dir: &Path) -> Vec<String> {
    let mut args = vec!["--runtime-dir".to_owned(), text(runtime_dir)];
    let Ok(Json::Object(settings)) = serde_json::to_value(patch) else {
        return args;
    };
    for (key, value) in settings {
        match (key.as_str(), value) {
            ("swap-dir" | "swap-persist", _) | (_, Json::Null) => {}
            ("sharing", value) => args.extend((value == false).then(|| "--no-sharing".to_owned())),
            (key, Json::String(text)) => args.extend([format!("--{key}"), text]),
            (key, number) => args.extend([format!("--{key}"), number.to_string()]),
        }
    }
    args
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// After its time, with a report.
    Well(GuestReport),
    /// Because a signal told it to, with a report.
    Told(GuestReport),
    /// It found other bytes than it had written.
    Corrupt {
        /// Pages that differ; 0 if it did not say.
        pages: u64,
        /// The end of what it logged.
        log: String,
    },
    /// In another way.
    Badly {
        /// Its exit code or signal.
        how: String,
        /// The end of what it logged.
        log: String,
    },
    /// Well, but without a report.
    Silent,
}

impl Ended {
    /// What the end of `guest` with `status` means.
    pub(crate) fn of(guest: &Child, status: ExitStatus) -> io::Result<Self> {
        let report = GuestReport::last_in(&guest.output()?);
        let pages = report.as_ref().map_or(0, |report| report.mismatches);
        let (code, log) = (status.code(), guest.log_tail());
        if code == Some(Exit::Corrupt as i32) || pages > 0 {
            return Ok(Self::Corrupt { pages, log });
        }
        Ok(match report {
            Some(report) if status.success() => Self::Well(report),
            Some(report) if code == Some(Exit::Interrupted as i32) => Self::Told(report),
            None if status.success() => Self::Silent,
            _ => Self::Badly {
                how: in_words(status),
                log,
            },
        })
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
