//! The jobs that others give a worker, and the queue in which the jobs wait.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::atomic::AtomicCell;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use crossbeam::select;
use memvisor_wire::balloon::StatusRun;

use super::cold::Cold;
use super::large::LargePages;
use super::victims::Choice;
use crate::pool::Pool;
use crate::share::{AttachRequest, Survey};
use crate::units::{Gfn, GfnRun};

/// The most jobs that wait. Nudges are dropped beyond that, because the next pass scans the pages anyway.
const QUEUE: usize = 4096;

/// A job for a worker.
#[derive(Debug)]
pub enum Job {
    /// Take pages into the balloon.
    Inflate(Vec<GfnRun>, Sender<Vec<StatusRun>>),
    /// Give pages back from the balloon.
    Deflate(Vec<GfnRun>, Sender<Vec<StatusRun>>),
    /// Empty the balloon.
    ReleaseAll(Sender<()>),
    /// Attach pages of the guest, and ring the bell of the VM after the answer.
    Attach(AttachRequest, Sender<u32>),
    /// Scan this page: a frame with the content that it had exists now.
    Nudge(Gfn),
    /// Share in this pool from now on; `None`: share with nobody.
    Join(Option<Arc<Pool>>),
    /// Find out what sharing would save.
    Survey(Box<Survey>),
    /// The orders of the policy or the [`Routine`] have changed.
    Wake,
    /// The VM ends.
    End,
}

/// How others reach a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    jobs: Sender<Job>,
    /// Disconnected when the worker has ended. Without it an asker could wait for ever: a job that the worker never
    /// took may stay in the queue, with the sender of its answer, as long as any handle exists, the asker's included.
    ended: Receiver<Infallible>,
    routine: Arc<AtomicCell<Routine>>,
}

/// The worker's end of its queue. Dropping it tells askers that the worker has ended.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) jobs: Receiver<Job>,
    pub(super) routine: Arc<AtomicCell<Routine>>,
    _runs: Sender<Infallible>,
}

/// The two ends of a queue.
pub(crate) fn queue() -> (WorkerHandle, Queue) {
    // A bounded channel would allocate room for all its jobs at once, a quarter of a MiB for each VM. `suggest` keeps
    // the bound instead.
    let (jobs, taken) = unbounded();
    // Nothing is ever sent on it. It closes when the worker drops its end, so nobody waits for one that has panicked.
    let (runs, ended) = bounded(0);
    let routine = Arc::default();
    let queue = Queue {
        jobs: taken,
        routine: Arc::clone(&routine),
        _runs: runs,
    };
    let handle = WorkerHandle {
        jobs,
        ended,
        routine,
    };
    (handle, queue)
}

/// What a worker does without being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Routine {
    /// Pages to scan in a second; zero: do not scan.
    pub scan_rate: u32,
    /// The period of sampling, in running time of the VM; zero: do not sample.
    pub sample_period: Duration,
    /// Which pages are evicted: `Memvisor.Victims`.
    pub victims: Choice,
    /// Swapped pages to bring back in a second once memory has stayed free: `Memvisor.UnswapRate`; zero: none.
    pub unswap_rate: u32,
    /// Which pages leave though nobody is short of memory.
    pub cold: Cold,
    /// What becomes of large pages.
    pub large: LargePages,
}

impl WorkerHandle {
    /// Sends a job that need not be done: it is dropped when the worker is behind. Whether it was sent.
    pub fn suggest(&self, job: Job) -> bool {
        self.jobs.len() < QUEUE && self.jobs.send(job).is_ok()
    }

    /// Sends a job and waits for the answer; `None` when the worker has ended.
    pub fn ask<T>(&self, job: impl FnOnce(Sender<T>) -> Job) -> Option<T> {
        // Room for the one answer: the worker must not wait for an asker that has left.
        let (answer, wait) = bounded(1);
        // Past the bound of `suggest`: each asker waits for its answer, so there are only a few of these jobs.
        self.jobs.send(job(answer)).ok()?;
        select! {
            recv(wait) -> answer => answer.ok(),
            // The worker may have answered before it ended.
            recv(self.ended) -> _ => wait.try_recv().ok(),
        }
    }

    /// What the worker does without being asked.
    #[must_use]
    pub fn routine(&self) -> Routine {
        self.routine.load()
    }

    /// Changes what the worker does without being asked.
    pub fn change(&self, change: impl Fn(&mut Routine)) {
        let changed = self.routine.fetch_update(|before| {
            let mut routine = before;
            change(&mut routine);
            // Settings are written again four times a second, and only a change is worth waking the worker.
            (routine != before).then_some(routine)
        });
        if changed.is_ok() {
            self.suggest(Job::Wake);
        }
    }

    /// Has the worker end after the jobs that were sent before.
    pub(super) fn end(&self) {
        // A failure means that the worker has ended already.
        let _ = self.jobs.send(Job::End);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than any machine needs to notice.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Asks for the balloon to be emptied, on a thread of its own.
    fn ask(handle: &WorkerHandle) -> Receiver<Option<()>> {
        let handle = handle.clone();
        let (tell, told) = bounded(1);
        thread::spawn(move || tell.send(handle.ask(Job::ReleaseAll)));
        told
    }

    #[test]
    fn asker_whose_job_the_worker_never_took_is_told_that_it_has_ended() {
        let (handle, queue) = queue();
        let told = ask(&handle);
        while queue.jobs.is_empty() {
            thread::yield_now();
        }
        drop(queue);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(None));
        assert_eq!(handle.ask(Job::ReleaseAll), None);
        assert!(!handle.suggest(Job::Wake));
    }

    #[test]
    fn asker_gets_the_answer_that_came_before_the_end() {
        for _ in 0..1000 {
            let (handle, queue) = queue();
            let told = ask(&handle);
            let Ok(Job::ReleaseAll(answer)) = queue.jobs.recv() else {
                panic!("the only job");
            };
            answer.send(()).expect("it waits");
            drop(queue);
            assert_eq!(told.recv_timeout(PATIENCE), Ok(Some(())));
        }
    }
}
