//! How many pages the agent moves between two polls.
//!
//! The rates are those of VMware's driver for Linux up to version 1.2 (its later versions run
//! straight to the target). They are counted per poll, which is per second. There is one difference:
//! the fast rate grows with the guest. 16 384 pages a second are 64 MiB, and at that rate a balloon of
//! 65 % of a 64 GiB guest would take eleven minutes. At a sixteenth of the guest per second, any guest
//! gets there in about ten seconds, provided that its kernel has free pages to give.

/// The fast rate of a small guest: 64 MiB.
const FAST_MIN: u32 = 16_384;
/// The fast rate of a large guest is this part of its RAM.
const FAST_PART: u64 = 16;
/// The slow rate, which holds while the kernel must reclaim for the balloon, is never below this.
const SLOW_MIN: u32 = 512;
/// The slow rate is never above this, and begins here.
const SLOW_MAX: u32 = 2048;
/// How much a rate grows after a window without trouble.
const STEP: u32 = 16;
/// How many windows the slow rate holds after the kernel ran out of free pages.
const SLOW_WINDOWS: u32 = 4;
const DEFLATE_MIN: u32 = 512;
const DEFLATE_MAX: u32 = 16_384;

/// The rates and what is left of them until the next poll. Doorbells do not open a new window, so
/// a host that rings often is not served faster.
#[derive(Debug)]
pub(super) struct Pace {
    fast_rate: u32,
    slow_rate: u32,
    slow_windows: u32,
    deflate_rate: u32,
    inflated: u32,
    deflated: u32,
    reported: u32,
    /// Whether there are limits at all.
    is_limited: bool,
    inflate_ended: bool,
    deflate_ended: bool,
}

impl Pace {
    /// The pace of a guest of `total_pages`; without any limit if it is not to be limited.
    pub(super) fn new(total_pages: u64, is_limited: bool) -> Self {
        let part = u32::try_from(total_pages / FAST_PART).unwrap_or(u32::MAX);
        Self {
            fast_rate: part.max(FAST_MIN),
            slow_rate: SLOW_MAX,
            slow_windows: 0,
            deflate_rate: DEFLATE_MAX,
            inflated: 0,
            deflated: 0,
            reported: 0,
            is_limited,
            inflate_ended: false,
            deflate_ended: false,
        }
    }

    /// Begins the window of a new poll. A rate that was used up without trouble grows.
    pub(super) fn open_window(&mut self) {
        if self.slow_windows > 0 {
            // Only a window that used its whole rate shows that the guest could have given more.
            if !self.inflate_ended && self.inflated >= self.slow_rate {
                self.slow_rate = (self.slow_rate + STEP).min(SLOW_MAX);
            }
            self.slow_windows -= 1;
        }
        if !self.deflate_ended && self.deflated >= self.deflate_rate {
            self.deflate_rate = (self.deflate_rate + STEP).min(DEFLATE_MAX);
        }
        (self.inflated, self.deflated, self.reported) = (0, 0, 0);
        (self.inflate_ended, self.deflate_ended) = (false, false);
    }

    /// Whether the kernel may reclaim for the next pages.
    pub(super) const fn may_reclaim(&self) -> bool {
        self.slow_windows > 0
    }

    /// How many pages may still be allocated in this window.
    pub(super) const fn inflate_left(&self) -> u32 {
        if self.inflate_ended {
            return 0;
        }
        if !self.is_limited {
            return u32::MAX;
        }
        let rate = if self.may_reclaim() {
            self.slow_rate
        } else {
            self.fast_rate
        };
        rate.saturating_sub(self.inflated)
    }

    /// The kernel gave `got` of the `wanted` pages.
    pub(super) fn inflated(&mut self, wanted: u32, got: u32) {
        self.inflated = self.inflated.saturating_add(got);
        if got >= wanted {
            return;
        }
        // In fast mode the kernel has only run out of free pages, and the window goes on at the slow
        // rate. In slow mode even reclaiming did not yield enough.
        if self.may_reclaim() {
            self.slow_rate = (self.slow_rate / 2).max(SLOW_MIN);
            self.inflate_ended = true;
        }
        self.slow_windows = SLOW_WINDOWS;
    }

    /// How many free pages may still be reported in this window: as many as may be inflated while there are free ones.
    pub(super) const fn report_left(&self) -> u32 {
        if !self.is_limited {
            return u32::MAX;
        }
        self.fast_rate.saturating_sub(self.reported)
    }

    /// Notes that pages were reported.
    pub(super) const fn reported(&mut self, pages: u32) {
        self.reported = self.reported.saturating_add(pages);
    }

    /// Ends inflation for this window, because the host refuses pages.
    pub(super) const fn end_inflate(&mut self) {
        self.inflate_ended = true;
    }

    /// How many pages may still be given back in this window.
    pub(super) const fn deflate_left(&self) -> u32 {
        if self.deflate_ended {
            return 0;
        }
        if !self.is_limited {
            return u32::MAX;
        }
        self.deflate_rate.saturating_sub(self.deflated)
    }

    /// Notes that of the pages to be unlocked, `freed` came back and `failed` did not.
    pub(super) fn deflated(&mut self, freed: u32, failed: u32) {
        self.deflated = self.deflated.saturating_add(freed);
        if failed > 0 {
            self.deflate_rate = (self.deflate_rate / 2).max(DEFLATE_MIN);
            self.deflate_ended = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_rate_grows_with_the_guest() {
        assert_eq!(Pace::new(1000, true).inflate_left(), 16_384);
        assert_eq!(Pace::new(1 << 24, true).inflate_left(), 1 << 20);
    }

    #[test]
    fn shortage_in_fast_mode_turns_to_reclaim_for_four_windows() {
        let mut pace = Pace::new(1000, true);
        pace.inflated(4096, 1000);
        assert!(pace.may_reclaim());
        assert_eq!(
            pace.inflate_left(),
            2048 - 1000,
            "the window goes on slowly"
        );
        for _ in 0..3 {
            pace.open_window();
            assert!(pace.may_reclaim());
        }
        pace.open_window();
        assert!(!pace.may_reclaim());
        assert_eq!(pace.inflate_left(), 16_384);
    }

    #[test]
    fn shortage_in_slow_mode_halves_the_rate_and_ends_the_window() {
        let mut pace = Pace::new(1000, true);
        pace.inflated(1, 0);
        for expected in [1024, 512, 512] {
            pace.inflated(2, 1);
            assert_eq!(pace.inflate_left(), 0);
            pace.open_window();
            assert_eq!(pace.inflate_left(), expected);
        }
    }

    #[test]
    fn good_slow_window_raises_the_rate_and_an_idle_one_does_not() {
        let mut pace = Pace::new(1000, true);
        pace.inflated(1, 0);
        pace.inflated(2, 1);
        pace.open_window();
        pace.inflated(1024, 1024);
        pace.open_window();
        assert_eq!(pace.inflate_left(), 1040);
        pace.open_window();
        assert_eq!(pace.inflate_left(), 1040);
    }

    #[test]
    fn failed_unlock_halves_the_deflate_rate_down_to_its_least() {
        let mut pace = Pace::new(1000, true);
        for expected in [8192, 4096, 2048, 1024, 512, 512] {
            pace.deflated(5, 1);
            assert_eq!(pace.deflate_left(), 0);
            pace.open_window();
            assert_eq!(pace.deflate_left(), expected);
        }
        pace.deflated(512, 0);
        pace.open_window();
        assert_eq!(pace.deflate_left(), 528);
    }
}
