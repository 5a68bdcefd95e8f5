//! Bounds for log lines that guests, agents and strangers can cause.
//!
//! A log that a guest fills hides what matters, and fills a disk. Dropping such lines altogether would hide
//! the guest. So each place in the code that writes such lines has a [`Throttle`]: a number of lines may come at
//! once, then one now and then, and each says how many were suppressed since the line before.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bound for the lines from one place in the code.
#[derive(Debug)]
pub struct Throttle {
    burst: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the lines so far will have been paid for, at one line in each period; `None` before the first line.
    paid: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// `burst` lines at once, at least one, and in the long run one in each `period`.
    #[must_use]
    pub const fn new(burst: u32, period: Duration) -> Self {
        let state = State {
            paid: None,
            suppressed: 0,
        };
        Self {
            burst,
            period,
            state: Mutex::new(state),
        }
    }

    /// Calls `write` if a line may be written now. `write` is told how many lines were suppressed since the last one,
    /// if any.
    pub fn line(&self, write: impl FnOnce(Option<u64>)) {
        if let Some(suppressed) = self.ready_at(Instant::now()) {
            write((suppressed > 0).then_some(suppressed));
        }
    }

    /// How many lines were suppressed since the last one, if a line may be written now. `None`: this one is
    /// suppressed too.
    fn ready_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = state.paid.map_or(now, |paid| paid.max(now)) + self.period;
        if paid > now + self.period * self.burst.max(1) {
            state.suppressed += 1;
            return None;
        }
        state.paid = Some(paid);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_passes_then_one_in_each_period_with_the_number_of_those_between() {
        let throttle = Throttle::new(3, SECOND);
        let start = Instant::now();
        let at = |ms| throttle.ready_at(start + Duration::from_millis(ms));
        assert_eq!([at(0), at(0), at(0)], [Some(0); 3]);
        assert_eq!([at(0), at(999)], [None; 2]);
        assert_eq!(at(1000), Some(2));
        assert_eq!([at(1000), at(1500)], [None; 2]);
        // After a long quiet time there may be a burst again, and no more than that.
        assert_eq!(
            [at(60_000), at(60_000), at(60_000)],
            [Some(2), Some(0), Some(0)]
        );
        assert_eq!(at(60_000), None);
    }

    #[test]
    fn throttle_without_a_burst_lets_one_pass() {
        let throttle = Throttle::new(0, SECOND);
        let now = Instant::now();
        assert_eq!(
            [throttle.ready_at(now), throttle.ready_at(now)],
            [Some(0), None]
        );
    }
}
