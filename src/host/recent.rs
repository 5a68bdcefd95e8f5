//! How fast the counters of a VM moved lately. Counters say what happened since power-on, which does not tell pressure
//! from history. So the policy thread looks at them once in an interval, that of esxtop, whether a client asks or not.

use std::time::{Duration, Instant};

use crate::telemetry::{VmRates, VmStatus};

/// The length of an interval, which is that of esxtop and of the share of time that a VM stood still.
const INTERVAL: Duration = Duration::from_secs(5);

/// The rates of the latest interval that has ended, and the beginning of the one that runs.
#[derive(Debug, Default)]
pub(super) struct Recent {
    begun: Option<(Instant, VmStatus)>,
    rates: VmRates,
}

impl Recent {
    /// The rates of the latest interval that has ended; all 0 before the first has.
    pub(super) const fn rates(&self) -> VmRates {
        self.rates
    }

    /// Whether the interval is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let since = self.begun.as_ref().map(|(since, _)| *since);
        since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL)
    }

    /// Ends the interval and begins the next.
    pub(super) fn end(&mut self, now: Instant, status: VmStatus) {
        if let Some((since, old)) = &self.begun {
            let passed = now.saturating_duration_since(*since).as_millis();
            let passed = u64::try_from(passed).unwrap_or(u64::MAX);
            self.rates = VmRates::between(old, &status, passed);
        }
        self.begun = Some((now, status));
    }
}
