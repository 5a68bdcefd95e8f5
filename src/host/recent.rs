//! How fast the counters of a VM moved lately. Counters say what happened since power-on, which does not tell pressure
//! from history. So the policy thread looks at them once in an interval, that of esxtop, whether a client asks or not.
//!
//! At the same time it looks what the guest's process takes beside its RAM. The kernel writes sixty lines for each such
//! look, which would be most of what a status costs.

use std::time::{Duration, Instant};

use crate::telemetry::{VmRates, VmStatus};
use crate::units::Bytes;

/// The length of an interval, which is that of esxtop and of the share of time that a VM stood still.
const INTERVAL: Duration = Duration::from_secs(5);

/// The rates of the latest interval that has ended, and the beginning of the one that runs.
#[derive(Debug, Default)]
pub(super) struct Recent {
    begun: Option<(Instant, VmStatus)>,
    rates: VmRates,
    process: Option<Bytes>,
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
