//! The worker thread of one VM: the only one that takes pages away and that commands the shim.
//!
//! Everything it does comes in small pieces, taken in this order: what the balloon's session and the guest ask
//! for (they wait for the answer), eviction that the policy has ordered, pages that other VMs
//! found to equal theirs, a slice of scanning or a new period of sampling when it is due, and what
//! settings that have changed ask of the stores and of sharing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use crossbeam::select;
use memvisor_guest_agent::protocol::balloon::StatusRun;

use super::evict::Evictor;
use super::join::Joining;
use super::pace::Pace;
use super::stores::Stores;
use crate::balloon;
use crate::engine::{EngineError, Link};
use crate::pool::Pool;
use crate::sample::Sampler;
use crate::share::{self, AttachRequest, Peers, Scanner};
use crate::units::{Gfn, GfnRun, Pages};
use crate::vm::Vm;

/// Jobs that wait. Looks at single pages are dropped when it is full: the next pass finds them.
const QUEUE: usize = 4096;
/// Looks at single pages that are taken together.
const LOOKS: usize = 512;
/// The longest sleep of a worker that has nothing to do.
const IDLE: Duration = Duration::from_secs(10);
/// How long to leave eviction alone when nothing could be evicted.
const EVICT_PAUSE: Duration = Duration::from_millis(50);

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

/// Where a worker finds what others ask of it.
#[derive(Debug)]
struct Queue {
    jobs: Receiver<Job>,
    _runs: Sender<Infallible>,
}

fn queue() -> (WorkerHandle, Queue) {
    // One with a bound would take memory for all that it could hold, a quarter of a MiB for each VM.
    let (jobs, taken) = unbounded();
    let (runs, ended) = bounded(0);
    let handle = WorkerHandle {
        jobs,
        ended,
        speeds: Arc::default(),
    };
    let queue = Queue {
        jobs: taken,
        _runs: runs,
    };
    (handle, queue)
}

/// What the worker goes by in what nobody asks for.
#[derive(Debug, Default)]
struct Speeds {
    /// Pages a second; zero for none.
    scan: AtomicU32,
    /// Milliseconds of a period of sampling; zero for none.
    sample: AtomicU32,
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
}

/// A worker that runs.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker of `vm`, which neither scans nor samples until it is told how fast.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        vm: Arc<Vm>,
        link: Arc<Link>,
        peers: Arc<dyn Peers>,
        sampler: Sampler,
    ) -> std::io::Result<Self> {
        let (handle, queue) = queue();
        let speeds = Arc::clone(&handle.speeds);
        let name = format!("work-{}", vm.params.name);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let seed = u64::from(vm.id.0) << 32 | 0x9e37_79b9;
            let state = State {
                evictor: Evictor::new(seed),
                scanner: Scanner::default(),
                sampler,
                pace: Pace::new(vm.table.pages(), Instant::now()),
                evict_after: Instant::now(),
                joining: None,
                stores: Stores::default(),
                ending: false,
                vm,
                peers,
                speeds,
            };
            state.run(&queue.jobs, &link);
            // The whole of it: its end is what askers are told by.
            drop(queue);
        })?;
        Ok(Self { handle, thread })
    }

    /// How others reach it.
    #[must_use]
    pub const fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// Ends it and waits until it has. The link must have ended, or it may wait for its guest.
    ///
    /// # Panics
    /// When the worker panicked: the VM's pages may be in any state, and the daemon must not go on.
    pub fn join(self) {
        // Failing means that it has ended already.
        let _ = self.handle.jobs.send(Job::End);
        self.thread.join().expect("a worker ends without panicking");
    }
}

struct State {
    vm: Arc<Vm>,
    peers: Arc<dyn Peers>,
    speeds: Arc<Speeds>,
    evictor: Evictor,
    scanner: Scanner,
    sampler: Sampler,
    pace: Pace,
    evict_after: Instant,
    joining: Option<Joining>,
    stores: Stores,
    ending: bool,
}

impl State {
    fn run(mut self, queue: &Receiver<Job>, link: &Link) {
        loop {
            match self.turn(queue, link) {
                Ok(true) => {}
                Ok(false) => return,
                Err(EngineError::Gone) => break,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(vm = %self.vm.params.name, error, "the VM cannot go on");
                    self.vm
                        .set_end_reason(&format!("its worker failed: {error}"));
                    break;
                }
            }
        }
        // The fault thread sees the end of the link and ends the VM; until then askers get no answer.
        link.end(&self.vm.end_reason().unwrap_or_default());
    }

    /// One job, one batch or one slice. `false` when the worker is no longer wanted.
    fn turn(&mut self, queue: &Receiver<Job>, link: &Link) -> Result<bool, EngineError> {
        let now = Instant::now();
        let evict_due = self.vm.orders.evict().0 > Pages(0);
        let rate = self.speeds.scan.load(Ordering::Relaxed);
        let scan_due = (rate > 0).then(|| self.pace.due(rate, self.vm.stats.served()));
        let period = Duration::from_millis(self.speeds.sample.load(Ordering::Relaxed).into());
        let mut until = now + IDLE;
        if !period.is_zero() {
            until = until.min(self.sampler.due(now, period));
        }
        if evict_due {
            until = until.min(self.evict_after);
        }
        if let Some(due) = scan_due {
            until = until.min(due);
        }
        if let Some(joining) = &self.joining {
            until = until.min(joining.due());
        }
        if let Some(due) = self.stores.due() {
            until = until.min(due);
        }
        match queue.recv_timeout(until.saturating_duration_since(now)) {
            Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Ok(job) => self.job(job, queue)?,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if self.ending {
            return Ok(false);
        }
        let now = Instant::now();
        if evict_due && now >= self.evict_after {
            self.evict()?;
        }
        if scan_due.is_some_and(|due| now >= due) {
            self.scan(now, rate)?;
        }
        self.sampler.tick(&self.vm, now, period)?;
        if let Some(joining) = &mut self.joining
            && joining.step(&self.vm, link)?
        {
            self.joining = None;
            self.scanner = Scanner::default();
            self.pace = Pace::new(self.vm.table.pages(), now);
        }
        self.stores.step(&self.vm, now);
        self.vm.give_back_emptied();
        Ok(true)
    }

    fn job(&mut self, job: Job, queue: &Receiver<Job>) -> Result<(), EngineError> {
        let vm = &self.vm;
        // An asker that is gone needs no answer.
        match job {
            Job::Inflate(runs, answer) => {
                let _ = answer.send(balloon::inflate(vm, &runs)?);
            }
            Job::Deflate(runs, answer) => {
                let _ = answer.send(balloon::deflate(vm, &runs));
            }
            Job::ReleaseAll(answer) => {
                balloon::release_all(vm);
                let _ = answer.send(());
            }
            Job::Attach(request, answer) => {
                let attached = share::attach(vm, &*self.peers, request)?;
                // The pages that the bytes came from are to be looked at again.
                vm.settled.note(None);
                let _ = answer.send(attached);
                vm.parking.ring();
            }
            Job::Join(pool) => {
                self.joining = Some(Joining::begin(vm, pool));
                vm.settled.note(None);
            }
            Job::Look(gfn) => self.look(gfn, queue)?,
            // Taken out behind looks.
            Job::End => self.ending = true,
            Job::Wake => {}
        }
        Ok(())
    }

    /// Takes the looks that wait together, and the job behind them if there is one.
    fn look(&mut self, first: Gfn, queue: &Receiver<Job>) -> Result<(), EngineError> {
        let mut gfns = vec![first];
        let mut other = None;
        while gfns.len() < LOOKS && other.is_none() {
            match queue.try_recv() {
                Ok(Job::Look(gfn)) => gfns.push(gfn),
                Ok(job) => other = Some(job),
                Err(_) => break,
            }
        }
        if self.scanner.follow(&self.vm, &*self.peers, gfns)? > 0 {
            self.vm.settled.note(None);
        }
        match other {
            Some(job) => self.job(job, queue),
            None => Ok(()),
        }
    }

    fn evict(&mut self) -> Result<(), EngineError> {
        let (pages, means) = self.vm.orders.evict();
        let evicted = self.evictor.evict(&self.vm, pages, means)?;
        self.vm.orders.evicted(evicted);
        self.vm.note_evicted(evicted, means);
        if evicted == Pages(0) {
            self.evict_after = Instant::now() + EVICT_PAUSE;
        }
        Ok(())
    }

    fn scan(&mut self, now: Instant, rate: u32) -> Result<(), EngineError> {
        let vm = &self.vm;
        let faults = vm.stats.served();
        let found = self.scanner.scan(vm, &*self.peers, Pace::slice(rate))?;
        if found.changed > 0 || found.shared > 0 {
            vm.settled.note(None);
        }
        if let Some(pass) = self.pace.note(now, found, rate, faults) {
            vm.stats.passes.one();
            // What was found while nothing may be shared says nothing of the new pool.
            vm.settled
                .note(pass.settled.filter(|_| self.joining.is_none()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
