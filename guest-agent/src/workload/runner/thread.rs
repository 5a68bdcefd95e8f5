//! What each thread of a workload does: it waits for its turn, loads, operates until it is told to stop, and verifies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::pace::{Order, Pace};
use super::super::tally::Tally;
use super::super::turns::Turns;
use super::super::{Failure, Work, Worker};
use super::{Shared, lock};

/// How many mismatches are kept in full. The first ones are enough to tell what went wrong.
const MISMATCHES_KEPT: usize = 16;

/// How long a thread waits before it repeats a piece of work that failed, for instance for want of memory.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// How often the last pass tries to read a page before it goes on without it.
const VERIFY_ATTEMPTS: u32 = 50;

/// One thread of a workload.
pub(super) struct Thread {
    pub(super) shared: Arc<Shared>,
    pub(super) tally: Arc<Tally>,
    pub(super) number: usize,
    pub(super) turns: Arc<Turns>,
    /// The turn of the workload among `turns`.
    pub(super) turn: usize,
    /// How long the turn lasts.
    pub(super) lasts: Option<Duration>,
    /// When the turn is over.
    pub(super) until: Option<Instant>,
    pub(super) pace: Pace,
    /// When the operation began that is under way or comes next; `None` if it begins with the next step.
    pub(super) begin: Option<Instant>,
}

impl Drop for Thread {
    /// Runs after a panic too: nobody must wait for a thread that is gone.
    fn drop(&mut self) {
        self.tally.count_done();
        self.turns.thread_ended(self.turn);
        self.shared.orders.wake();
        *lock(&self.shared.running) -= 1;
        self.shared.thread_ended.notify_all();
    }
}

impl Thread {
    pub(super) fn run(mut self, mut worker: Box<dyn Worker>) {
        let orders = &self.shared.orders;
        let Some(began) = orders.wait_for(|| self.turns.began(self.turn)) else {
            return;
        };
        self.until = self.lasts.map(|lasts| began + lasts);
        self.load(worker.as_mut());
        while self.is_on() && !worker.is_over() {
            self.operate(worker.as_mut());
        }
        if self.is_late() {
            self.tally.stop_clock();
        }
        if self.shared.orders.current() != Order::Abandon {
            self.verify(worker.as_mut());
        }
    }

    /// Whether the time of the workload is over.
    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn is_on(&self) -> bool {
        self.shared.orders.current() == Order::Run && !self.is_late()
    }

    /// Waits at most for `limit`, and no longer than the workload is to run.
    fn wait(&self, limit: Option<Duration>) {
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let limit = match (limit, left) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        };
        self.shared.orders.wait(Order::Run, limit);
    }

    fn load(&self, worker: &mut dyn Worker) {
        for number in 0..worker.to_load() {
            while self.is_on() {
                match worker.load(number) {
                    Ok(work) => {
                        self.tally.count_work(work);
                        self.tally.count_piece(self.number, Instant::now());
                        break;
                    }
                    Err(failure) => {
                        self.count_failure(failure);
                        self.wait(Some(RETRY_WAIT));
                    }
                }
            }
        }
        self.tally.count_loaded();
    }

    fn operate(&mut self, worker: &mut dyn Worker) {
        let begin = self.begin.take().unwrap_or_else(Instant::now);
        let done = worker.step();
        let is_amid = worker.is_amid_operation();
        // Kept while it waits, because a wait amid an operation is a part of it.
        self.begin = is_amid.then_some(begin);
        match done {
            Ok(Some(work)) => {
                self.tally.count_work(work);
                if is_amid {
                    return;
                }
                let end = Instant::now();
                self.tally.count_operation(self.number, begin, end);
                let wait = self.pace.wait_after(work.written + work.verified, end);
                if wait.is_zero() {
                    self.begin = Some(end);
                } else {
                    self.wait(Some(wait));
                }
            }
            Ok(None) if worker.is_over() => {}
            Ok(None) => self.wait(worker.idle_for()),
            Err(failure) => {
                self.count_failure(failure);
                self.wait(Some(RETRY_WAIT));
            }
        }
    }

    fn verify(&self, worker: &mut dyn Worker) {
        let pieces = worker.to_verify();
        self.shared
            .to_check
            .fetch_add(pieces.into(), Ordering::Relaxed);
        for number in 0..pieces {
            if self.shared.orders.current() == Order::Abandon {
                self.tally.count_unverified((pieces - number).into());
                return;
            }
            match self.try_verify(worker, number) {
                Some(work) => self.tally.count_work(work),
                None => self.tally.count_unverified(1),
            }
            self.shared.checked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Verifies one piece, and tries again when it cannot be read; `None` if it could not be verified.
    fn try_verify(&self, worker: &mut dyn Worker, number: u32) -> Option<Work> {
        for _ in 0..VERIFY_ATTEMPTS {
            match worker.verify(number) {
                Ok(work) => return Some(work),
                Err(failure @ Failure::Mismatch(_)) => {
                    self.count_failure(failure);
                    return Some(Work::default());
                }
                Err(failure @ Failure::FileChanged(_)) => {
                    self.count_failure(failure);
                    return None;
                }
                Err(failure @ Failure::Kernel(_)) => {
                    self.count_failure(failure);
                    let orders = &self.shared.orders;
                    orders.wait(orders.current(), Some(RETRY_WAIT));
                }
            }
        }
        None
    }

    fn count_failure(&self, failure: Failure) {
        match failure {
            Failure::Mismatch(mut mismatch) => {
                self.tally.count_mismatch();
                self.tally.name().clone_into(&mut mismatch.workload);
                let mut kept = lock(&self.shared.mismatches);
                if kept.len() < MISMATCHES_KEPT {
                    kept.push(*mismatch);
                }
                self.shared.mismatch_found.notify_all();
            }
            other => self.tally.count_error(error_chain(&other)),
        }
    }
}

/// An error with all its causes, in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
