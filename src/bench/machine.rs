//! The machine on which figures were measured.

use std::fmt;
use std::fs;
use std::thread;

use nix::sys::utsname::uname;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Pages};

/// What a reader has to know about the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The name of the processor.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: usize,
    /// Memory of the machine.
    pub memory: Bytes,
    /// The kernel.
    pub kernel: String,
    /// Whether this is root.
    pub root: bool,
    /// The load average over a minute when the figures were taken.
    pub load: String,
    /// The version of memvisor, and how it was built.
    pub build: String,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let uname = uname();
        let part = |get: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            uname
                .as_ref()
                .map(|uname| get(uname).to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let optimised = if cfg!(debug_assertions) {
            "debug build"
        } else {
            "release build"
        };
        Self {
            cpu: value(&cpuinfo, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal"),
            kernel: format!("{} {}", part(|u| u.sysname()), part(|u| u.release())),
            root: geteuid().is_root(),
            load: load.split_whitespace().next().unwrap_or("-").to_owned(),
            build: format!("memvisor {}, {optimised}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// Memory that could be allocated now without anybody swapping.
    #[must_use]
    pub fn available() -> Bytes {
        meminfo("MemAvailable")
    }
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

fn meminfo(name: &str) -> Bytes {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = value(&text, name).and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    Pages(kib.unwrap_or(0) / 4).bytes()
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cpus,
            memory,
            kernel,
            root,
            load,
            build,
        } = self;
        let user = if *root { "root" } else { "an ordinary user" };
        write!(
            f,
            "{cpus} x {cpu}, {memory}, {kernel}, as {user}, load {load}, {build}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_described() {
        let machine = Machine::here();
        assert!(machine.cpus > 0 && machine.memory > Bytes(0), "{machine:?}");
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(Machine::available() <= machine.memory);
        assert!(machine.to_string().contains(&machine.kernel));
    }
}
