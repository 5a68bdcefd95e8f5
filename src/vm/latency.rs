//! How long the faults of one VM took.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::Vm;

/// Fault latencies are kept from 1 us to a minute, with two significant digits.
const MAX_US: u64 = 60_000_000;
const DIGITS: u8 = 2;

/// Fault latencies of one VM so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Latency {
    /// Half of all faults were served within this time, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 faults were served within this time, in microseconds.
    pub p99_us: u64,
}

/// Counts the fault latencies of one VM.
#[derive(Debug)]
pub(super) struct Latencies(Mutex<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        let counts = Histogram::new_with_max(MAX_US, DIGITS);
        Self(Mutex::new(counts.expect("bounds that the library allows")))
    }
}

impl Latencies {
    pub(super) fn note(&self, took: Duration) {
        if let Ok(mut counts) = self.0.lock() {
            counts.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        }
    }

    pub(super) fn so_far(&self) -> Option<Latency> {
        let counts = self.0.lock().ok()?;
        (!counts.is_empty()).then(|| Latency {
            p50_us: counts.value_at_quantile(0.5),
            p99_us: counts.value_at_quantile(0.99),
        })
    }
}

impl Vm {
    /// Notes how long a fault took, from reading it to answering it.
    pub fn note_latency(&self, took: Duration) {
        self.latency.note(took);
    }

    /// How long faults took so far; `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Latency> {
        self.latency.so_far()
    }
}
