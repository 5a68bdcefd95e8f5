//! For how long the threads of a guest wait for the guest's own swap device.
//!
//! A balloon that takes too much makes its guest page, and the host sees nothing of that: no page of the guest is missing
//! that the host took. The guest tells a counter with its statistics, about once a second. What it tells may be wrong: a
//! counter that went back is a guest that booted, and no guest can wait longer than its threads are there, so the rate is
//! bounded. A guest that claims to wait is given back its balloon by a law that goes by that, and no more than its balloon.

use std::time::{Duration, Instant};

/// What a report says is true for this long.
const VALID: Duration = Duration::from_secs(5);
/// The most that counts, in microseconds a second: that of 64 threads which do nothing but wait.
const MOST: u64 = 64_000_000;
/// The shortest time between two reports that says anything about a rate.
const SHORTEST: Duration = Duration::from_millis(100);

/// The latest rate, and the report that the next one begins with.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwapWaits {
    begun: Option<(Instant, u64)>,
    us_per_s: u64,
}

impl SwapWaits {
    /// Notes a report: the microseconds since the guest booted; `None` if it does not tell.
    pub fn note(&mut self, now: Instant, counter: Option<u64>) {
        let Some(counter) = counter else {
            *self = Self::default();
            return;
        };
        if let Some((since, before)) = self.begun {
            let passed = now.saturating_duration_since(since);
            if passed < SHORTEST {
                return;
            }
            let waited = u128::from(counter.saturating_sub(before)) * 1_000_000;
            let rate = waited / passed.as_micros().max(1);
            self.us_per_s = u64::try_from(rate).unwrap_or(MOST).min(MOST);
        }
        self.begun = Some((now, counter));
    }

    /// The microseconds in each second for which its threads waited between the latest two reports; 0 if the guest has
    /// not told for five seconds.
    #[must_use]
    pub fn us_per_s(&self, now: Instant) -> u64 {
        let is_valid = |(since, _)| now.saturating_duration_since(since) <= VALID;
        if self.begun.is_some_and(is_valid) {
            self.us_per_s
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_that_between_two_reports() {
        let (start, mut waits) = (Instant::now(), SwapWaits::default());
        let at = |ms| start + Duration::from_millis(ms);
        waits.note(at(0), Some(5_000_000));
        assert_eq!(waits.us_per_s(at(0)), 0, "nothing to compare with");
        waits.note(at(2000), Some(5_400_000));
        assert_eq!(waits.us_per_s(at(2000)), 200_000);
        // A second report at the same moment says nothing.
        waits.note(at(2001), Some(9_000_000));
        assert_eq!(waits.us_per_s(at(7000)), 200_000);
        assert_eq!(waits.us_per_s(at(7001)), 0, "it says nothing any more");
        waits.note(at(8000), Some(100));
        assert_eq!(waits.us_per_s(at(8000)), 0, "it booted");
        waits.note(at(9000), Some(u64::MAX));
        assert_eq!(waits.us_per_s(at(9000)), MOST);
        waits.note(at(9500), None);
        assert_eq!(waits.us_per_s(at(9500)), 0);
    }
}
