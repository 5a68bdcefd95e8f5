//! When workload threads go on, wait and stop.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::WorkloadSpec;

/// Shorter waits are saved up until they reach this, because the system cannot wait that precisely.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// A thread that is further behind its rate than this, because the host kept it waiting, does not
/// try to catch up.
const LONGEST_LAG: Duration = Duration::from_secs(1);

/// What a runner tells its threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Go on.
    Run,
    /// Verify everything and end.
    Finish,
    /// End.
    Abandon,
}

/// The current order. All threads look at it before every operation, and a waiting thread wakes when it changes.
#[derive(Debug)]
pub(super) struct Orders {
    order: Mutex<Order>,
    changed: Condvar,
}

impl Orders {
    pub(super) const fn new() -> Self {
        Self {
            order: Mutex::new(Order::Run),
            changed: Condvar::new(),
        }
    }

    pub(super) fn give(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
        self.changed.notify_all();
    }

    /// Wakes all waiting threads, so that they look at what they wait for.
    pub(super) fn wake(&self) {
        // Locked, so that a thread which has just looked is waiting already.
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Waits until the function returns a value, or for an order other than to run; then `None`.
    pub(super) fn wait_for<T>(&self, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        while *order == Order::Run {
            if let Some(value) = ready() {
                return Some(value);
            }
            order = self
                .changed
                .wait(order)
                .unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    pub(super) fn current(&self) -> Order {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an order other than `now`, at most for `limit`; without a limit, for ever.
    pub(super) fn wait(&self, now: Order, limit: Option<Duration>) {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = |order: &mut Order| *order == now;
        match limit {
            Some(limit) => drop(self.changed.wait_timeout_while(order, limit, unchanged)),
            None => drop(self.changed.wait_while(order, unchanged)),
        }
    }
}

/// How fast one thread may go.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<f64>,
    pause: Duration,
    due: Instant,
}

impl Pace {
    /// The share of one thread in the rate of its workload, from `now` on.
    pub(super) fn new(spec: &WorkloadSpec, now: Instant) -> Self {
        Self {
            bytes_per_second: spec.rate.map(|rate| rate as f64 / f64::from(spec.threads)),
            pause: spec.pause,
            due: now,
        }
    }

    /// How long to wait after an operation that moved `bytes` and ended at `now`.
    pub(super) fn wait_after(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return self.pause;
        };
        let earliest = now.checked_sub(LONGEST_LAG).unwrap_or(now);
        // Cannot overflow: even at one byte per second a page takes only an hour.
        self.due = self.due.max(earliest) + Duration::from_secs_f64(bytes as f64 / rate);
        let ahead = self.due.saturating_duration_since(now);
        let wait = if ahead < SHORTEST_WAIT {
            Duration::ZERO
        } else {
            ahead
        };
        wait.max(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(spec: &str, now: Instant) -> Pace {
        Pace::new(&spec.parse().expect(spec), now)
    }

    #[test]
    fn pace_of_a_rate_is_kept_over_many_operations() {
        let start = Instant::now();
        let mut pace = pace("stream,rate=4096000,threads=2", start);
        let mut now = start;
        for _ in 0..1000 {
            now += pace.wait_after(4096, now);
        }
        let took = now - start;
        let expected = Duration::from_secs(2);
        assert!(
            took.abs_diff(expected) < Duration::from_millis(5),
            "{took:?}"
        );
    }

    #[test]
    fn pace_after_a_long_stall_does_not_catch_up_all_of_it() {
        let start = Instant::now();
        let mut pace = pace("stream,rate=1M", start);
        let mut now = start + Duration::from_secs(3600);
        let resumed = now;
        for _ in 0..10 {
            now += pace.wait_after(1 << 20, now);
        }
        assert!(
            now - resumed >= Duration::from_secs(8),
            "{:?}",
            now - resumed
        );
    }

    #[test]
    fn pace_without_limits_never_waits_and_pause_is_kept() {
        let now = Instant::now();
        assert_eq!(pace("stream", now).wait_after(1 << 30, now), Duration::ZERO);
        let mut slow = pace("stream,pause=7ms,rate=1G", now);
        assert_eq!(slow.wait_after(1, now), Duration::from_millis(7));
    }
}
