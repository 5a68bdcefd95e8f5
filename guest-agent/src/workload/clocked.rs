//! The times of operations: how long they took, and how many ended in each second.
//!
//! Of two guests with equally many operations, one is worse if it stands still for seconds in between. So
//! every operation is timed: the longest one matters most, and a sample would miss it. Timing costs one
//! reading of the clock (some 25 ns) per operation, because the end of an operation is the beginning of the
//! next, and an update of a record that only its own thread writes.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::Latency;

/// The longest latency that is recorded, in nanoseconds: longer ones count as ten minutes.
const LONGEST_NS: u64 = 600_000_000_000;

/// How many seconds of progress are kept: one hour, because the record of a guest that runs for days must not grow.
const SECONDS_KEPT: usize = 3600;

/// The times of one thread, or of several together.
#[derive(Debug)]
pub(super) struct Clocked {
    latencies: Histogram<u64>,
    seconds: Vec<u32>,
}

impl Clocked {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 2);
        Self {
            latencies: histogram
                .expect("the bounds are legal: 1 < 2 * 1 <= the longest, 2 <= 5 digits"),
            seconds: Vec::new(),
        }
    }

    /// Records how long an operation took.
    pub(super) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(nanoseconds);
    }

    /// Records a piece of work that was done at this time after the start.
    pub(super) fn progress(&mut self, at: Duration) {
        let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        if second >= SECONDS_KEPT {
            return;
        }
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.latencies
            .add(&other.latencies)
            .expect("all histograms have the same bounds");
        let length = self.seconds.len().max(other.seconds.len());
        self.seconds.resize(length, 0);
        for (sum, count) in self.seconds.iter_mut().zip(&other.seconds) {
            *sum += count;
        }
    }

    /// How long operations took since `before`, which was the record of the same threads then and becomes this one.
    pub(super) fn since(self, before: &mut Self) -> Latency {
        let earlier = std::mem::replace(before, self);
        let mut since = Self::new();
        since.add(before);
        since
            .latencies
            .subtract(&earlier.latencies)
            .expect("a record only grows, and all have the same bounds");
        since.summary()
    }

    /// Pieces of work done in each full second of a run of this length.
    pub(super) fn each_second(mut self, of: Duration) -> Vec<u32> {
        let full = usize::try_from(of.as_secs()).unwrap_or(usize::MAX);
        self.seconds.resize(full.min(SECONDS_KEPT), 0);
        self.seconds
    }

    pub(super) fn summary(&self) -> Latency {
        if self.latencies.is_empty() {
            return Latency::default();
        }
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile| microseconds(self.latencies.value_at_quantile(quantile));
        Latency {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: microseconds(self.latencies.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_threads_are_merged() {
        let (mut all, mut other) = (Clocked::new(), Clocked::new());
        assert_eq!(all.summary(), Latency::default());
        for _ in 0..99 {
            all.record(Duration::from_micros(10));
        }
        other.record(Duration::from_secs(3600));
        all.add(&other);
        let summary = all.summary();
        assert!((summary.p50_us - 10.0).abs() < 0.2, "{summary:?}");
        assert!(summary.p999_us > 5e8, "{summary:?}");
    }

    #[test]
    fn latencies_since_the_last_look_leave_out_earlier_ones() {
        let mut before = Clocked::new();
        let mut now = Clocked::new();
        now.record(Duration::from_secs(1));
        assert!(now.since(&mut before).p50_us > 9e5);
        let mut now = Clocked::new();
        now.add(&before);
        now.record(Duration::from_micros(10));
        let summary = now.since(&mut before);
        assert!(summary.max_us < 11.0, "{summary:?}");
        let mut now = Clocked::new();
        now.add(&before);
        assert_eq!(now.since(&mut before), Latency::default());
    }

    #[test]
    fn seconds_without_progress_are_there_and_the_last_unfinished_one_is_not() {
        let (mut all, mut other) = (Clocked::new(), Clocked::new());
        for millis in [0, 999, 2500] {
            all.progress(Duration::from_millis(millis));
        }
        other.progress(Duration::from_millis(100));
        other.progress(Duration::from_millis(4200));
        all.add(&other);
        assert_eq!(all.each_second(Duration::from_millis(4900)), [3, 0, 1, 0]);
        let mut late = Clocked::new();
        late.progress(Duration::from_secs(1 << 40));
        let kept = late.each_second(Duration::from_secs(1 << 40));
        assert_eq!(kept, vec![0; SECONDS_KEPT]);
    }
}
