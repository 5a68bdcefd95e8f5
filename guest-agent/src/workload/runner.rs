//! Runs workloads: their threads, their pace, their end.

mod thread;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::build::{Built, StartError, build};
use super::clocked::Clocked;
use super::pace::{Order, Orders, Pace};
use super::tally::Tally;
use super::turns::Turns;
use super::{Latency, Mismatch, Report, Sequence};
use crate::kernel::Kernel;
use thread::Thread;

/// How often the progress of the last pass is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How far the last pass is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Pages that were looked at.
    pub done: u64,
    /// Pages to look at. This grows until all threads have begun the pass.
    pub total: u64,
}

/// What all workloads of a guest have done.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Look {
    /// Operations since the start, without filling.
    pub operations: u64,
    /// How long those since the last look took.
    pub latency: Latency,
}

/// What [`Runner::look`] saw the last time.
#[derive(Debug)]
pub struct LastLook(Clocked);

impl Default for LastLook {
    fn default() -> Self {
        Self(Clocked::new())
    }
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    orders: Orders,
    mismatches: Mutex<Vec<Mismatch>>,
    mismatch_found: Condvar,
    running: Mutex<u32>,
    thread_ended: Condvar,
    checked: AtomicU64,
    to_check: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Running workloads. Dropping it stops them without the last pass.
#[derive(Debug)]
pub struct Runner {
    shared: Arc<Shared>,
    tallies: Vec<Arc<Tally>>,
    threads: Vec<(Arc<Tally>, JoinHandle<()>)>,
}

impl Runner {
    /// Starts all workloads, or none: those of a sequence one after the other. Guests with equal seeds and workloads write equal bytes.
    ///
    /// # Errors
    /// [`StartError`]: they do not fit, a file cannot be read, the system has no thread left.
    pub fn start(
        kernel: &Arc<Kernel>,
        sequences: &[Sequence],
        seed: u64,
    ) -> Result<Self, StartError> {
        let all = build(kernel, sequences, seed)?;
        let now = Instant::now();
        let mut runner = Self {
            shared: Arc::new(Shared {
                orders: Orders::new(),
                mismatches: Mutex::default(),
                mismatch_found: Condvar::new(),
                running: Mutex::new(0),
                thread_ended: Condvar::new(),
                checked: AtomicU64::new(0),
                to_check: AtomicU64::new(0),
            }),
            tallies: Vec::new(),
            threads: Vec::new(),
        };
        for sequence in all {
            runner.start_threads(sequence, now)?;
        }
        Ok(runner)
    }

    /// Starts the threads of all workloads of a sequence. Each waits for the turn of its workload: whether the system
    /// has enough threads is known at the start, and not when a guest has run for an hour.
    fn start_threads(&mut self, sequence: Vec<Built<'_>>, now: Instant) -> Result<(), StartError> {
        let threads = |built: &Built<'_>| built.workers.len() as u32;
        let tally = |built: &Built<'_>| {
            let tally = Tally::new(built.spec.to_string(), built.pages, threads(built), now);
            Arc::new(tally)
        };
        let tallies: Vec<_> = sequence.iter().map(tally).collect();
        self.tallies.extend(tallies.iter().cloned());
        let threads = sequence.iter().map(threads).collect();
        let turns = Arc::new(Turns::new(tallies.clone(), threads, now));
        for ((turn, built), tally) in sequence.into_iter().enumerate().zip(&tallies) {
            self.start_workload(built, tally, &turns, turn)?;
        }
        Ok(())
    }

    fn start_workload(
        &mut self,
        built: Built<'_>,
        tally: &Arc<Tally>,
        turns: &Arc<Turns>,
        turn: usize,
    ) -> Result<(), StartError> {
        let spec = built.spec;
        for (number, worker) in built.workers.into_iter().enumerate() {
            let thread = Thread {
                shared: Arc::clone(&self.shared),
                tally: Arc::clone(tally),
                number,
                turns: Arc::clone(turns),
                turn,
                lasts: spec.lasts,
                until: None,
                pace: Pace::new(spec, Instant::now()),
                begin: None,
            };
            // Counted before the spawn. If that fails, dropping `thread` takes it off again.
            *lock(&self.shared.running) += 1;
            let spawned = std::thread::Builder::new()
                .name(format!("{}-{number}", spec.kind.name()))
                .spawn(move || thread.run(worker));
            match spawned {
                Ok(handle) => self.threads.push((Arc::clone(tally), handle)),
                Err(source) => {
                    let spec = spec.to_string();
                    return Err(StartError::Thread { spec, source });
                }
            }
        }
        Ok(())
    }

    /// What the workloads have done so far. Cheap: counters are read, histograms merged.
    #[must_use]
    pub fn snapshot(&self) -> Report {
        Report {
            workloads: self.tallies.iter().map(|tally| tally.report()).collect(),
            mismatches: lock(&self.shared.mismatches).clone(),
        }
    }

    /// What the workloads have done so far, and how long their operations took since the last such look.
    #[must_use]
    pub fn look(&self, last: &mut LastLook) -> Look {
        let mut now = Clocked::new();
        self.tallies
            .iter()
            .for_each(|tally| tally.add_times(&mut now));
        Look {
            operations: self.tallies.iter().map(|tally| tally.operations()).sum(),
            latency: now.since(&mut last.0),
        }
    }

    /// Waits until a mismatch is found, at most for `limit`, and returns the first one.
    #[must_use]
    pub fn wait_mismatch(&self, limit: Duration) -> Option<Mismatch> {
        let found = lock(&self.shared.mismatches);
        let (found, _) = self
            .shared
            .mismatch_found
            .wait_timeout_while(found, limit, |found| found.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        found.first().cloned()
    }

    /// Stops the workloads, verifies all that they own, and returns their report. A thread stops after at
    /// most one page. `progress` is called with how far the last pass is, some ten times a second.
    #[must_use]
    pub fn stop(mut self, mut progress: impl FnMut(Progress)) -> Report {
        self.order(Order::Finish);
        loop {
            let running = lock(&self.shared.running);
            let (running, _) = self
                .shared
                .thread_ended
                .wait_timeout_while(running, PROGRESS_EVERY, |running| *running > 0)
                .unwrap_or_else(PoisonError::into_inner);
            let running = *running;
            progress(Progress {
                done: self.shared.checked.load(Ordering::Relaxed),
                total: self.shared.to_check.load(Ordering::Relaxed),
            });
            if running == 0 {
                break;
            }
        }
        self.join();
        self.snapshot()
    }

    fn order(&self, order: Order) {
        // The clocks stop first, because the last pass is no part of the run.
        for tally in &self.tallies {
            tally.stop_clock();
        }
        self.shared.orders.give(order);
    }

    fn join(&mut self) {
        for (tally, handle) in self.threads.drain(..) {
            if handle.join().is_err() {
                tally.count_error("a thread of the workload panicked".to_owned());
                tally.count_unverified(1);
            }
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.order(Order::Abandon);
            self.join();
        }
    }
}
