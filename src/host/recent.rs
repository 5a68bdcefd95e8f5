//! How fast the counters of a VM moved lately. Counters say what happened since power-on, which does not tell pressure
//! from history. So the policy thread looks at them once in an interval, that of esxtop, whether a client asks or not.
//!
//! At the same time it looks what the guest's process takes beside its RAM. The kernel writes sixty lines for each such
//! look, which would be most of what a status costs. How many threads it has, and what the kernel counts for the VM's
//! files, costs a system call each: who asks gets what was so within the latest second. Where the guest is placed, the
//! policy thread says.

use std::time::{Duration, Instant};

use crate::telemetry::{VmRates, VmStatus};
use crate::units::{Bytes, Pages};

/// The length of an interval, which is that of esxtop and of the share of time that a VM stood still.
const INTERVAL: Duration = Duration::from_secs(5);
/// For how long the kernel is not asked again.
const KERNEL: Duration = Duration::from_secs(1);

/// The rates of the latest interval that has ended, and the beginning of the one that runs.
#[derive(Debug, Default)]
pub(super) struct Recent {
    begun: Option<(Instant, VmStatus)>,
    rates: VmRates,
    process: Option<Bytes>,
    kernel: Option<(Instant, Pages)>,
    threads: Option<(Instant, u32)>,
    placed_on: Option<usize>,
}

/// What was noted within the second before `now`.
fn lately<T: Copy>(noted: Option<(Instant, T)>, now: Instant) -> Option<T> {
    let (at, value) = noted?;
    (now.saturating_duration_since(at) < KERNEL).then_some(value)
}

impl Recent {
    /// The rates of the latest interval that has ended; all 0 before the first has.
    pub(super) const fn rates(&self) -> VmRates {
        self.rates
    }

    /// What the guest's process took beside its RAM when the interval began.
    pub(super) const fn process(&self) -> Option<Bytes> {
        self.process
    }

    /// What the kernel counted for the VM's files within the second before `now`, if it was asked.
    pub(super) fn kernel(&self, now: Instant) -> Option<Pages> {
        lately(self.kernel, now)
    }

    /// Notes what the kernel counts for the VM's files.
    pub(super) const fn note_kernel(&mut self, now: Instant, pages: Pages) {
        self.kernel = Some((now, pages));
    }

    /// How many threads the guest had within the second before `now`, if the kernel was asked.
    pub(super) fn threads(&self, now: Instant) -> Option<u32> {
        lately(self.threads, now)
    }

    /// Notes how many threads the guest has.
    pub(super) const fn note_threads(&mut self, now: Instant, threads: u32) {
        self.threads = Some((now, threads));
    }

    /// The processor to which the guest is confined.
    pub(super) const fn placed_on(&self) -> Option<usize> {
        self.placed_on
    }

    /// Notes to which processor the guest is confined.
    pub(super) const fn note_placed_on(&mut self, processor: Option<usize>) {
        self.placed_on = processor;
    }

    /// Whether the interval is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let since = self.begun.as_ref().map(|(since, _)| *since);
        since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }

    /// Ends the interval and begins the next, in which the process takes so much.
    pub(super) fn end(&mut self, now: Instant, status: VmStatus, process: Option<Bytes>) {
        self.process = process;
        if let Some((since, old)) = &self.begun {
            let passed = now.saturating_duration_since(*since).as_millis();
            let passed = u64::try_from(passed).unwrap_or(u64::MAX);
            self.rates = VmRates::between(old, &status, passed);
        }
        self.begun = Some((now, status));
    }
}
