//! The worker of a simulated guest: the core that ships, its queue, and a clock that advances when a test says so.

use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::Guest;
use crate::engine::EngineError;
use crate::reclaim::{Core, Job, Queue, WorkerHandle, queue};
use crate::sample::Sampler;
use crate::share::Peers;
use crate::units::Pages;
use crate::vm::{Eviction, Means, Vm};

/// A worker that still has something to do after this many steps at one moment will never rest.
const PATIENCE: u32 = 10_000;
/// Longer than any pause that a worker makes after it failed to do something.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Pages a second at which one slice covers a whole guest.
pub(super) const FAST: u32 = 100_000;

/// The time on a simulated host. A std mutex, so that reading the time is no point to switch tasks at.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<StdMutex<Instant>>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(StdMutex::new(Instant::now())))
    }
}

impl Clock {
    pub(super) fn now(&self) -> Instant {
        *self.0.lock().expect("no holder panicked")
    }

    pub(super) fn pass(&self, time: Duration) {
        *self.0.lock().expect("no holder panicked") += time;
    }
}

/// A worker without a thread.
pub(super) struct Worker {
    core: Core,
    queue: Queue,
    pub(super) clock: Clock,
    pub(super) handle: WorkerHandle,
}

impl Worker {
    pub(super) fn new(vm: &Arc<Vm>, peers: Arc<dyn Peers>, clock: Clock) -> Self {
        let (handle, queue) = queue();
        let now = clock.now();
        let sampler = Sampler::new(u64::from(vm.id.0), now, None);
        Self {
            core: Core::new(Arc::clone(vm), peers, sampler, &queue, now),
            queue,
            clock,
            handle,
        }
    }

    /// One step; whether there is more to do at this moment.
    pub(super) fn step(&mut self) -> bool {
        self.try_step().expect("the session lives")
    }

    pub(super) fn try_step(&mut self) -> Result<bool, EngineError> {
        let now = self.clock.now();
        let until = self.core.step(now, &mut self.queue.jobs.try_iter())?;
        let until = until.expect("it is wanted");
        Ok(until <= now || !self.queue.jobs.is_empty())
    }

    /// Lets time pass, and does what that makes due.
    pub(super) fn wait(&mut self, time: Duration) {
        self.try_wait(time).expect("the session lives");
    }

    /// The same with a guest that may die.
    ///
    /// # Panics
    /// When the worker never rests: the real one would keep a processor busy instead of waiting.
    pub(super) fn try_wait(&mut self, time: Duration) -> Result<(), EngineError> {
        self.clock.pass(time);
        for _ in 0..PATIENCE {
            if !self.try_step()? {
                return Ok(());
            }
        }
        panic!("the worker does not come to rest: {:?}", self.queue);
    }
}

/// Asks a worker for something; the answer comes over the channel.
pub(super) fn ask<T>(worker: &WorkerHandle, job: impl FnOnce(Sender<T>) -> Job) -> Receiver<T> {
    let (answer, wait) = bounded(1);
    assert!(worker.suggest(job(answer)), "a queue with room");
    wait
}

impl Guest {
    /// Has a batch evicted, however recently an attempt failed; how many pages left.
    pub(super) fn evict_by(&mut self, pages: u64, means: Means) -> u64 {
        self.worker.clock.pass(PAUSE);
        let orders = &self.vm.orders;
        orders.set_evict(Eviction::at_once(Pages(pages), means));
        self.worker.step();
        let left = orders.evict().pages;
        orders.set_evict(Eviction::at_once(Pages(0), means));
        pages - left.0
    }

    pub(super) fn evict(&mut self, pages: u64) -> u64 {
        self.evict_by(pages, Means::ALL)
    }

    /// Has all pages scanned, and then those that the worker was nudged to scan; how many were shared or dropped.
    pub(super) fn scan(&mut self) -> u64 {
        let shared = |vm: &Vm| vm.stats.merged.get() + vm.stats.zeroed.get();
        let before = shared(&self.vm);
        self.worker.handle.change(|it| it.scan_rate = FAST);
        self.worker.wait(PAUSE);
        self.worker.handle.change(|it| it.scan_rate = 0);
        self.worker.wait(Duration::ZERO);
        shared(&self.vm) - before
    }
}
