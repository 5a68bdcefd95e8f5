//! How much work an agent may cause.
//!
//! Each message costs a fixed price plus its pages, paid from an allowance that refills with time.
//! A message is served before it is paid for, so the allowance can go into debt. The session reads
//! nothing more until the debt is gone: the kernel's queue fills, and the agent waits in its own
//! `send`. It is not disconnected, because an eager agent is not a malformed one.

use std::time::{Duration, Instant};

/// Pages an agent may name in a second: 8 GiB/s, more than a host can punch out.
const PAGES_PER_SECOND: f64 = 2_097_152.0;
/// The price of a message in pages: 4096 empty messages a second cost the host a few per cent of a
/// core.
const MESSAGE_PRICE: f64 = 512.0;
/// The most that may be saved up: an eighth of a second, so that an honest agent never notices the limit.
const BURST: f64 = PAGES_PER_SECOND / 8.0;

/// The allowance of one session.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    /// Pays for one message that named `pages` pages, at most a batch.
    pub(super) fn pay(&mut self, pages: u64, now: Instant) {
        self.refill(now);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.left -= MESSAGE_PRICE + f64::from(pages);
    }

    /// How long to wait before the next message is read; zero when there is no debt.
    pub(super) fn delay(&mut self, now: Instant) -> Duration {
        self.refill(now);
        Duration::from_secs_f64((-self.left).max(0.0) / PAGES_PER_SECOND)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * PAGES_PER_SECOND).min(BURST);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_appears_after_the_burst_and_goes_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut served = 0;
        while allowance.delay(start).is_zero() {
            allowance.pay(4096, start);
            served += 1;
        }
        assert_eq!(served, 57, "262144 pages of burst at 4608 a message");
        let delay = allowance.delay(start);
        assert!(
            allowance
                .delay(start + delay + Duration::from_micros(1))
                .is_zero()
        );
    }

    #[test]
    fn flood_of_empty_messages_is_held_to_4096_a_second() {
        let start = Instant::now();
        let mut now = start;
        let mut allowance = Allowance::new(start);
        let mut served = 0;
        while now < start + Duration::from_secs(10) {
            now += allowance.delay(now);
            allowance.pay(0, now);
            served += 1;
        }
        assert!((40_000..42_500).contains(&served), "{served}");
    }
}
