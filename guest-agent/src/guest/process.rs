//! What a guest's process has used so far, as the kernel counts it.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// What this process has used so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProcessUse {
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// The most memory it had at any time, guest RAM included, in bytes.
    pub peak_bytes: u64,
    /// Anonymous memory (in RAM or paged out) and page tables that it has now, in bytes. The RAM of a guest with a
    /// host is not anonymous.
    pub own_bytes: u64,
}

impl ProcessUse {
    /// Asks the kernel. A number that the kernel does not tell is zero.
    #[must_use]
    pub fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let time = |time: TimeVal| {
            let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
            let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
            Duration::from_secs(seconds) + Duration::from_micros(micros)
        };
        let cpu = usage.map(|usage| time(usage.user_time()) + time(usage.system_time()));
        let own = ["RssAnon:", "VmSwap:", "VmPTE:"].map(|name| bytes(&status, name));
        Self {
            cpu: cpu.unwrap_or_default(),
            peak_bytes: bytes(&status, "VmHWM:"),
            own_bytes: own.iter().sum(),
        }
    }
}

/// The bytes of a line of `/proc/PID/status`, which counts KiB.
fn bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_of_this_process_is_more_after_work_than_before() {
        let before = ProcessUse::now();
        assert!(before.own_bytes > 1 << 16, "{before:?}");
        assert!(before.peak_bytes >= 1 << 20, "{before:?}");
        let mut memory = vec![1u8; 32 << 20];
        let mut after = before;
        while after.cpu <= before.cpu {
            std::hint::black_box(&mut memory).fill(2);
            after = ProcessUse::now();
        }
        assert!(after.own_bytes > before.own_bytes, "{after:?}");
        assert!(after.peak_bytes >= 32 << 20, "{after:?}");
    }
}
