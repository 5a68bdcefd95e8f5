//! Serving faults on the processor on which they happen.
//!
//! A thread that faults waits until it is served, and its processor has nothing to do meanwhile. A fault that
//! another processor serves costs two wake-ups across processors, and where these are halted the wake-ups take most
//! of the fault's time. On the same processor the fault costs two context switches. So the fault thread goes to the
//! guest: where a single thread faults again and again, the fault thread asks from time to time on which processor
//! that thread runs, and moves there.
//!
//! That helps guests that are confined to a processor, as virtual processors often are, and hosts on which no processor
//! is idle. Otherwise the scheduler wakes the guest's thread on an idle processor, away from the fault thread.
//!
//! The fault thread goes back as soon as another thread of the guest faults. Threads that compute while one waits
//! would be in its way, and a thread that serves several is best placed by the scheduler. It also goes back when
//! nothing has faulted for a while: by the next fault somebody else may use the processor.

use std::time::{Duration, Instant};

use crate::sys::{Processors, processor_of};

/// Consecutive faults of one thread after which the thread is followed.
const FOLLOW_AFTER: u32 = 32;
/// The least time between two questions where the thread runs. A question costs as much as one fault.
const POLL: Duration = Duration::from_millis(10);

/// After this time without a fault, the thread is followed no longer.
const REST: Duration = Duration::from_millis(20);

/// Where the fault thread of a VM runs; belongs to that thread.
#[derive(Debug)]
pub(super) struct Follower {
    /// The guest's process.
    pid: i32,
    thread: u32,
    /// Its consecutive faults.
    faults: u32,
    last: Instant,
    due: Instant,
    follow: Option<Follow>,
}

#[derive(Debug)]
struct Follow {
    /// The processors that the fault thread could use before, and gets back.
    all: Processors,
    one: Processors,
}

impl Follower {
    /// Follows nobody yet.
    pub(super) const fn new(pid: i32, now: Instant) -> Self {
        Self {
            pid,
            thread: 0,
            faults: 0,
            last: now,
            due: now,
            follow: None,
        }
    }

    /// Notes that a thread of the guest has faulted; 0: the thread is not known.
    pub(super) fn note(&mut self, thread: u32, now: Instant) {
        if thread == 0 {
            return;
        }
        if thread != self.thread {
            (self.thread, self.faults) = (thread, 0);
            self.leave();
        }
        self.faults = self.faults.saturating_add(1);
        self.last = now;
        if self.faults < FOLLOW_AFTER || now < self.due {
            return;
        }
        self.due = now + POLL;
        if let Some(processor) = processor_of(self.pid, thread) {
            self.go(processor);
        }
    }

    /// How long it may take until [`rest`](Self::rest) is due; `None` while nobody is followed.
    pub(super) fn due(&self, now: Instant) -> Option<Duration> {
        let due = self.last + REST;
        self.follow
            .as_ref()
            .map(|_| due.saturating_duration_since(now))
    }

    /// Stops following if there was no fault for a while.
    pub(super) fn rest(&mut self, now: Instant) {
        if self.follow.is_some() && now >= self.last + REST {
            self.faults = 0;
            self.leave();
        }
    }

    /// Moves this thread to `processor`. Where that fails, nobody is followed: faults can be served on any processor.
    fn go(&mut self, processor: usize) {
        let (Ok(now), Ok(one)) = (Processors::of_this_thread(), Processors::only(processor)) else {
            return;
        };
        let all = match &self.follow {
            Some(follow) if follow.one == one && now == one => return,
            Some(follow) if now == follow.one => follow.all,
            // We follow nobody yet, or somebody else has chosen processors for this thread since. The present set
            // is the one to go back to.
            _ => now,
        };
        if all.contains(processor) && one.take().is_ok() {
            self.follow = Some(Follow { all, one });
        } else {
            // The thread cannot be followed there, and where it was it is no longer.
            self.leave();
        }
    }

    fn leave(&mut self) {
        if let Some(Follow { all, one }) = self.follow.take()
            && Processors::of_this_thread().is_ok_and(|now| now == one)
        {
            // A failure leaves this thread where it is, which only costs time.
            let _ = all.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number above any that the kernel gives to threads: the real threads beside this one run other tests.
    const NO_THREAD: u32 = i32::MAX.unsigned_abs();

    /// This thread plays the guest's thread and the fault thread at once, so it is always near itself.
    fn faults(follower: &mut Follower, thread: u32, count: u32, now: Instant) {
        (0..count).for_each(|_| follower.note(thread, now));
    }

    fn ids() -> (i32, u32) {
        let (pid, thread) = (nix::unistd::getpid(), nix::unistd::gettid());
        (pid.as_raw(), thread.as_raw().unsigned_abs())
    }

    fn here() -> Processors {
        Processors::of_this_thread().expect("the kernel tells")
    }

    #[test]
    fn single_thread_is_followed_until_another_faults() {
        let (pid, thread) = ids();
        let (all, now) = (here(), Instant::now());
        let mut follower = Follower::new(pid, now);
        faults(&mut follower, thread, FOLLOW_AFTER - 1, now);
        assert_eq!(here(), all, "not yet");
        faults(&mut follower, thread, 1, now);
        let at = processor_of(pid, thread).expect("this thread");
        assert_eq!(Ok(here()), Processors::only(at).map_err(drop));
        faults(&mut follower, NO_THREAD, 1, now);
        assert_eq!(here(), all);
        faults(&mut follower, NO_THREAD, FOLLOW_AFTER, now + POLL);
        assert_eq!(here(), all, "no thread of the guest");
    }

    #[test]
    fn nobody_is_followed_when_nothing_faults() {
        let (pid, thread) = ids();
        let (all, now) = (here(), Instant::now());
        let mut follower = Follower::new(pid, now);
        assert_eq!(follower.due(now), None);
        faults(&mut follower, thread, FOLLOW_AFTER, now);
        assert_eq!(follower.due(now), Some(REST));
        follower.rest(now + REST / 2);
        assert!(follower.due(now).is_some());
        follower.rest(now + REST);
        assert_eq!((follower.due(now), here()), (None, all));
        faults(&mut follower, thread, FOLLOW_AFTER - 1, now + REST);
        assert_eq!(here(), all, "it is counted anew");
    }

    #[test]
    fn thread_that_went_where_nobody_may_follow_is_followed_no_longer() {
        let (pid, _) = ids();
        let all = here();
        let at = (0..64).find(|at| all.contains(*at)).expect("one at least");
        let barred = (0..1024)
            .rev()
            .find(|at| !all.contains(*at))
            .expect("no machine has all");
        let mut follower = Follower::new(pid, Instant::now());
        follower.go(at);
        follower.go(barred);
        assert!(follower.follow.is_none());
        assert_eq!(here(), all);
    }

    #[test]
    fn processors_that_somebody_else_chose_are_kept() {
        let (pid, thread) = ids();
        let (all, now) = (here(), Instant::now());
        let mut follower = Follower::new(pid, now);
        faults(&mut follower, thread, FOLLOW_AFTER, now);
        let at = processor_of(pid, thread).expect("this thread");
        let Some(other) = (0..64).find(|other| *other != at && all.contains(*other)) else {
            return;
        };
        let chosen = Processors::only(other).expect("there is one");
        chosen.take().expect("allowed");
        faults(&mut follower, thread, 1, now + POLL);
        assert_eq!(here(), chosen);
        faults(&mut follower, NO_THREAD, 1, now + POLL);
        assert_eq!(here(), chosen);
    }
}
