//! Which processor a thread runs on.

use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

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
    fn processor_is_found_behind_any_name() {
        let numbers = (4..=52).map(|field| field.to_string());
        let fields: Vec<String> = numbers.collect();
        let stat = format!("12 (a ) b (c) S {}", fields.join(" "));
        assert_eq!(processor(&stat), Some(39));
        assert_eq!(processor("12 (a) S 1 2"), None);
    }
}
