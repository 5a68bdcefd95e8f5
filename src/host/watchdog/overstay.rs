//! Whether a guest that was told to end has had its time.
//!
//! The thread that serves a VM sees its end, gives the guest a moment and kills it. But that thread may wait in the
//! kernel for this very guest, which holds a lock there: its RAM is a file, which it can write from memory that nobody
//! brings. Then only the end of the guest's process gives the lock back.

use std::time::{Duration, Instant};

/// How long a guest may take to end. The VM's own thread kills it after 0.7 s, on a busy machine a little later; more
/// time is of no use to the guest.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a guest should be gone by now. `told` is when it was told to end, if it was.
pub(super) fn overstays(told: Option<Instant>, now: Instant) -> bool {
    told.is_some_and(|told| now.saturating_duration_since(told) >= GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_has_its_time_from_when_it_was_told_and_none_that_was_not() {
        let told = Instant::now();
        let after = |time| overstays(Some(told), told + time);
        assert!(!after(Duration::ZERO));
        assert!(!after(GRACE - Duration::from_millis(1)));
        assert!(after(GRACE));
        assert!(
            !overstays(Some(told + GRACE), told),
            "the clock was read before"
        );
        assert!(!overstays(None, told + 100 * GRACE));
    }
}
