//! What others ask of a worker, and the queue in which that waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::atomic::AtomicCell;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use crossbeam::select;
use memvisor_guest_agent::protocol::balloon::StatusRun;

use crate::pool::Pool;
use crate::share::AttachRequest;
use crate::units::{Gfn, GfnRun};

/// Jobs that wait. Looks at single pages are dropped when it is full: the next pass finds them.
const QUEUE: usize = 4096;

/// What others ask of a worker.
#[derive(Debug)]
pub enum Job {
    /// Take pages into the balloon.
    Inflate(Vec<GfnRun>, Sender<Vec<StatusRun>>),
    /// Give pages back from the balloon.
    Deflate(Vec<GfnRun>, Sender<Vec<StatusRun>>),
    /// Empty the balloon.
    ReleaseAll(Sender<()>),
    /// Attach pages of the guest, and ring when it is answered.
    Attach(AttachRequest, Sender<u32>),
    /// A frame with the content that this page had exists now.
    Look(Gfn),
    /// Share in this pool from now on, or with nobody.
    Join(Option<Arc<Pool>>),
    /// The orders of the policy or the [`Routine`] have changed.
    Wake,
    /// The VM ends.
    End,
}

/// How others reach a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    jobs: Sender<Job>,
    /// Disconnected when the worker has ended. What then lies in its queue may stay there as long as
    /// somebody could send to it, and who waits for the answer could.
    ended: Receiver<Infallible>,
    routine: Arc<AtomicCell<Routine>>,
}

/// Where a worker finds what others ask of it. Dropped, it tells askers that the worker has ended.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) jobs: Receiver<Job>,
    pub(super) routine: Arc<AtomicCell<Routine>>,
    _runs: Sender<Infallible>,
}

/// The two ends of a queue.
pub(crate) fn queue() -> (WorkerHandle, Queue) {
    // One with a bound would take memory for all that it could hold, a quarter of a MiB for each VM.
    let (jobs, taken) = unbounded();
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
    /// Pages that are scanned in a second; zero for none.
    pub scan_rate: u32,
    /// The period of sampling, in running time of the VM; zero for none.
    pub sample_period: Duration,
    /// Whether it evicts pages that nobody wanted back while they were frozen, and not random ones:
    /// `Memvisor.Victims`.
    pub second_chance: bool,
}

impl WorkerHandle {
    /// Asks for something that need not happen: dropped when the worker is behind. Whether it was not.
    pub fn suggest(&self, job: Job) -> bool {
        self.jobs.len() < QUEUE && self.jobs.send(job).is_ok()
    }

    /// Asks for something and waits for the answer; `None` when the worker has ended.
    pub fn ask<T>(&self, job: impl FnOnce(Sender<T>) -> Job) -> Option<T> {
        let (answer, wait) = bounded(1);
        self.jobs.send(job(answer)).ok()?;
        select! {
            recv(wait) -> answer => answer.ok(),
            // It may have answered before it ended.
            recv(self.ended) -> _ => wait.try_recv().ok(),
        }
    }

    /// What it does without being asked.
    #[must_use]
    pub fn routine(&self) -> Routine {
        self.routine.load()
    }

    /// Changes what it does without being asked.
    pub fn change(&self, change: impl Fn(&mut Routine)) {
        let changed = self.routine.fetch_update(|before| {
            let mut routine = before;
            change(&mut routine);
            (routine != before).then_some(routine)
        });
        if changed.is_ok() {
            self.suggest(Job::Wake);
        }
    }

    /// Has the worker end when it has done what it was asked for before.
    pub(super) fn end(&self) {
        // Failing means that it has ended already.
        let _ = self.jobs.send(Job::End);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// More than any machine needs to notice.
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
