//! What others ask of a worker, and the queue in which that waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use crossbeam::select;
use memvisor_guest_agent::protocol::balloon::StatusRun;

use super::victims::Selection;
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
    /// The orders of the policy or the rate of scanning have changed.
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
    speeds: Arc<Speeds>,
}

/// Where a worker finds what others ask of it. Dropped, it tells askers that the worker has ended.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) jobs: Receiver<Job>,
    pub(super) speeds: Arc<Speeds>,
    _runs: Sender<Infallible>,
}

/// The two ends of a queue.
pub(crate) fn queue() -> (WorkerHandle, Queue) {
    // One with a bound would take memory for all that it could hold, a quarter of a MiB for each VM.
    let (jobs, taken) = unbounded();
    let (runs, ended) = bounded(0);
    let speeds = Arc::default();
    let queue = Queue {
        jobs: taken,
        speeds: Arc::clone(&speeds),
        _runs: runs,
    };
    let handle = WorkerHandle {
        jobs,
        ended,
        speeds,
    };
    (handle, queue)
}

/// What the worker goes by in what nobody asks for.
#[derive(Debug, Default)]
pub(super) struct Speeds {
    scan: AtomicU32,
    sample: AtomicU32,
    second_chance: AtomicBool,
}

impl Speeds {
    /// Pages that are scanned in a second; zero for none.
    pub(super) fn scan(&self) -> u32 {
        self.scan.load(Ordering::Relaxed)
    }

    /// A period of sampling; zero for none.
    pub(super) fn sample(&self) -> Duration {
        Duration::from_millis(self.sample.load(Ordering::Relaxed).into())
    }

    /// How victims are chosen.
    pub(super) fn selection(&self) -> Selection {
        match self.second_chance.load(Ordering::Relaxed) {
            true => Selection::SecondChance,
            false => Selection::Random,
        }
    }
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

    /// How many pages a second are scanned.
    #[cfg(test)]
    pub(crate) fn scan_rate(&self) -> u32 {
        self.speeds.scan()
    }

    /// Sets how many pages a second are scanned; zero for none.
    pub fn set_scan_rate(&self, pages_per_s: u32) {
        if self.speeds.scan.swap(pages_per_s, Ordering::Relaxed) != pages_per_s {
            self.suggest(Job::Wake);
        }
    }

    /// Sets the period of sampling, in running time of the VM; zero for none.
    pub fn set_sample_period(&self, period: Duration) {
        let millis = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
        if self.speeds.sample.swap(millis, Ordering::Relaxed) != millis {
            self.suggest(Job::Wake);
        }
    }

    /// Sets how victims are chosen.
    pub fn set_selection(&self, selection: Selection) {
        let second_chance = selection == Selection::SecondChance;
        self.speeds
            .second_chance
            .store(second_chance, Ordering::Relaxed);
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
