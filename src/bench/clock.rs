//! How long a piece of work took: by the wall clock, and in processor time.
//!
//! A rate "of one core" is measured in processor time, which stays the same when something else has the core for a
//! while. This makes work comparable that is never idle but runs at another priority, such as the kernel thread ksmd.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::sys::scheduled;

/// What a piece of work of this thread took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Took {
    /// By the wall clock.
    pub wall: Duration,
    /// Processor time of this thread.
    pub cpu: Duration,
}

/// Does `work` and says what it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let (start, cpu) = (Instant::now(), thread_cpu());
    let done = work();
    let took = Took {
        wall: start.elapsed(),
        cpu: thread_cpu().saturating_sub(cpu),
    };
    (done, took)
}

/// Processor time of this thread so far.
#[must_use]
pub fn thread_cpu() -> Duration {
    // It cannot fail: the clock is always there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Processor time of all threads that a process has now.
///
/// # Errors
/// There is no such process, or the kernel does not count.
pub fn process_cpu(pid: u32) -> io::Result<Duration> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?;
    Ok(scheduled(pid)?.ran)
}

/// Processor time of a process so far, including that of threads that have ended.
///
/// # Errors
/// There is no such process.
pub fn whole_cpu(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // User and system time are fields 14 and 15 (proc(5)). Counted behind the name, which is in brackets and may
    // contain anything, they are fields 12 and 13.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    let second = sysconf(SysconfVar::CLK_TCK)?
        .unwrap_or(1)
        .max(1)
        .unsigned_abs();
    Ok(Duration::from_millis(ticks * 1000 / second))
}

/// Anonymous memory of this process, in bytes.
///
/// # Errors
/// What reading `/proc/self/status` says.
pub fn anonymous_bytes() -> io::Result<u64> {
    anonymous_bytes_of(std::process::id())
}

/// Anonymous memory of a process, in bytes.
///
/// # Errors
/// There is no such process.
pub fn anonymous_bytes_of(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) * 1024)
}

/// The processors this process may use.
///
/// # Errors
/// What `sched_getaffinity(2)` says.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let is_set = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_set).collect())
}

/// Has all threads that a process has now run on these processors.
///
/// # Errors
/// What `sched_setaffinity(2)` says.
pub fn pin(pid: u32, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let tid = name.to_str().and_then(|tid| tid.parse().ok());
        if let Some(tid) = tid {
            match sched_setaffinity(Pid::from_raw(tid), &set) {
                // ESRCH: the thread has ended in between.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// How many a second. No time at all counts as a nanosecond.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.max(Duration::from_nanos(1)).as_secs_f64()
}

/// The percentiles 50 and 99 of times.
#[must_use]
pub fn percentiles(mut times: Vec<u64>) -> (u64, u64) {
    times.sort_unstable();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or(0)
    };
    (at(50), at(99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_passes_while_something_is_done() {
        let work = || (0..2_000_000u64).fold(0, |sum, n| sum ^ n.wrapping_mul(n));
        let (sum, took) = timed(work);
        assert_ne!(sum, 0);
        assert!(took.cpu > Duration::ZERO && took.wall > Duration::ZERO);
        let process = || process_cpu(std::process::id()).expect("the kernel counts");
        // Threads of other tests may end at any moment, and their time is then missing from the sum. So it is tried
        // often.
        let passes = (0..1000).any(|_| {
            let before = process();
            std::hint::black_box(work());
            process() > before
        });
        assert!(passes);
        assert!(anonymous_bytes().expect("proc") > 1 << 20);
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        assert_eq!(percentiles((0..1000).rev().collect()), (500, 990));
        assert_eq!(percentiles(vec![7]), (7, 7));
        assert_eq!(percentiles(Vec::new()), (0, 0));
    }

    #[test]
    fn pinned_thread_is_on_its_processor_and_can_be_let_go() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let all = allowed_cpus().expect("the kernel tells");
                assert!(!all.is_empty());
                let tid = nix::unistd::gettid();
                let mut set = CpuSet::new();
                set.set(all[0]).expect("in range");
                sched_setaffinity(tid, &set).expect("allowed");
                assert_eq!(allowed_cpus().expect("the kernel tells"), [all[0]]);
            });
        });
    }
}
