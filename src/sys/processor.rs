//! Which processor a thread runs on, and which it may use.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// A set of processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processors(CpuSet);

impl Processors {
    /// The processors that this thread may use.
    ///
    /// # Errors
    /// What `sched_getaffinity(2)` says.
    pub fn of_this_thread() -> io::Result<Self> {
        Ok(Self(sched_getaffinity(THIS)?))
    }

    /// The processors that a thread may use; a process' number stands for its first thread.
    ///
    /// # Errors
    /// What `sched_getaffinity(2)` says: there is no such thread.
    pub fn of(thread: i32) -> io::Result<Self> {
        Ok(Self(sched_getaffinity(Pid::from_raw(thread))?))
    }

    /// A set of one processor.
    ///
    /// # Errors
    /// `InvalidInput` when the system has none of this number.
    pub fn only(processor: usize) -> io::Result<Self> {
        let mut set = CpuSet::new();
        set.set(processor)?;
        Ok(Self(set))
    }

    /// Whether `processor` is among them.
    #[must_use]
    pub fn contains(&self, processor: usize) -> bool {
        self.0.is_set(processor).unwrap_or(false)
    }

    /// Makes this thread use these processors and no others.
    ///
    /// # Errors
    /// What `sched_setaffinity(2)` says: none of them is allowed here.
    pub fn take(&self) -> io::Result<()> {
        Ok(sched_setaffinity(THIS, &self.0)?)
    }
}

/// Has each thread of a process that may use just the processors `from` use `to` instead. Threads for which somebody
/// has chosen others are left alone, and so are threads that end meanwhile.
///
/// # Errors
/// What `sched_setaffinity(2)` says: it is another user's process. `NotFound`: there is no such process, or no `/proc`.
pub fn move_threads(pid: i32, from: &Processors, to: &Processors) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !Processors::of(thread).is_ok_and(|now| now == *from) {
            continue;
        }
        match sched_setaffinity(Pid::from_raw(thread), &to.0) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What the threads of a process had of the processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scheduled {
    /// For how long they ran.
    pub ran: Duration,
    /// For how long they were ready to run and had no processor.
    pub waited: Duration,
}

/// The sums over all threads that a process has now.
///
/// # Errors
/// There is no such process, or no `/proc`.
pub fn scheduled(pid: i32) -> io::Result<Scheduled> {
    let mut sum = Scheduled::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended in between.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let mut times = text
            .split_whitespace()
            .map(|ns| Duration::from_nanos(ns.parse().unwrap_or(0)));
        sum.ran += times.next().unwrap_or_default();
        sum.waited += times.next().unwrap_or_default();
    }
    Ok(sum)
}

/// The number of each processor, and the time since the start of the system in which it had nothing to run.
///
/// # Errors
/// There is no `/proc`.
pub fn idle_times() -> io::Result<HashMap<usize, Duration>> {
    let second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100).max(1);
    Ok(idle(
        &fs::read_to_string("/proc/stat")?,
        second.unsigned_abs(),
    ))
}

/// Fields 4 and 5 of the lines of `/proc/stat` for single processors: idle, and idle with reads or writes under way.
fn idle(stat: &str, ticks_per_second: u64) -> HashMap<usize, Duration> {
    let each = |line: &str| {
        let (number, times) = line.strip_prefix("cpu")?.split_once(' ')?;
        let mut times = times.split_whitespace().skip(3).take(2);
        let mut next = || times.next()?.parse::<u64>().ok();
        let ticks = next()? + next()?;
        let idle = Duration::from_millis(ticks * 1000 / ticks_per_second);
        Some((number.parse().ok()?, idle))
    };
    stat.lines().filter_map(each).collect()
}

/// The processor on which a thread of a process ran last; `None` when there is no such thread, or no `/proc`.
#[must_use]
pub fn processor_of(pid: i32, thread: u32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).ok()?;
    processor(&stat)
}

/// Field 39 of `/proc/PID/stat`. Field 2, a name in parentheses, may hold anything.
fn processor(stat: &str) -> Option<usize> {
    // Behind the last bracket, because the name in front of it may hold spaces and brackets.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn processor_of_a_pinned_thread_is_where_it_is() {
        let all = Processors::of_this_thread().expect("the kernel tells");
        let first = (0..).find(|at| all.contains(*at)).expect("at least one");
        Processors::only(first)
            .and_then(|one| one.take())
            .expect("it is allowed");
        let (pid, thread) = (nix::unistd::getpid(), nix::unistd::gettid());
        let thread = u32::try_from(thread.as_raw()).expect("positive");
        assert_eq!(processor_of(pid.as_raw(), thread), Some(first));
        let now = Processors::of_this_thread().expect("the kernel tells");
        assert_eq!(Ok(now), Processors::only(first).map_err(drop));
        all.take().expect("as before");
        assert_eq!(processor_of(pid.as_raw(), 0), None);
    }

    #[test]
    fn threads_are_moved_that_use_what_they_are_moved_from() {
        let all = Processors::of_this_thread().expect("the kernel tells");
        let mut child = Command::new("sleep").arg("60").spawn().expect("a command");
        let pid = i32::try_from(child.id()).expect("positive");
        let first = (0..).find(|at| all.contains(*at)).expect("at least one");
        let one = Processors::only(first).expect("it is there");
        let of_child = || Processors::of(pid).expect("it runs");
        assert_eq!(of_child(), all);
        move_threads(pid, &all, &one).expect("it is ours");
        assert_eq!(of_child(), one);
        // Somebody may have chosen this one, unless it was all that there was.
        move_threads(pid, &all, &all).expect("it is ours");
        assert_eq!(of_child(), one);
        move_threads(pid, &one, &all).expect("it is ours");
        assert_eq!(of_child(), all);
        child
            .kill()
            .and_then(|()| child.wait())
            .expect("it is ours");
        move_threads(pid, &all, &one).expect_err("it is gone");
        scheduled(pid).expect_err("it is gone");
    }

    #[test]
    fn times_are_those_of_all_threads() {
        let me = nix::unistd::getpid().as_raw();
        let before = scheduled(me).expect("there is /proc");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {}
        let after = scheduled(me).expect("there is /proc");
        // However crowded the processors were, this thread ran or waited.
        let had = |it: Scheduled| it.ran + it.waited;
        assert!(had(after) > had(before), "{before:?} {after:?}");
    }

    #[test]
    fn idle_times_are_of_single_processors() {
        let stat =
            "cpu  9 9 9 9 9\ncpu0 1 2 3 400 50 6\ncpu12 1 2 3 7 0\ncpu3 1 2\nintr 5 6 7 8 9\n";
        let millis = Duration::from_millis;
        let expected = [(0, millis(4500)), (12, millis(70))];
        assert_eq!(idle(stat, 100), HashMap::from(expected));
        let all = idle_times().expect("there is /proc");
        assert!(!all.is_empty());
    }

    #[test]
    fn processor_is_found_behind_any_name() {
        let numbers = (4..=52).map(|field| field.to_string());
        let fields: Vec<String> = numbers.collect();
        let stat = format!("12 (a ) b (c) S {}", fields.join(" "));
        assert_eq!(processor(&stat), Some(39));
        assert_eq!(processor("12 (a) S 1 2"), None);
    }
}
