//! What it costs that evicted pages come back early.
//!
//! What would a little more memory save a VM? Not what its evicted pages cost on average: of a guest that once wrote
//! much and works on a part of it, most pages that are out never come back, and some come back all the time. The pages
//! that left RAM last are those that a little more memory would have kept. So the pages that left lately are remembered
//! ([`Ghosts`]): at least an eighth as many as the VM holds, at most a quarter. A refault of one of them is *early*.
//! Threads stand still for an early refault as long as for any other from the same store, on average.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Cause, Ghosts, Stalled, Stats};
use crate::average::Average;
use crate::page::Home;
use crate::units::{Gfn, Pages};

/// Of the pages that left, at least one for so many that the VM holds is remembered.
const REMEMBERED_PART: u64 = 8;
/// The time over which early refaults are averaged, as the stalls are with which they are compared.
const SPAN: Duration = Duration::from_secs(1);

/// The stores from which pages come back, in the order of the arrays below.
const STORES: [Cause; 2] = [Cause::RefillZip, Cause::RefillSwap];

/// The early refaults of one VM. See the module text.
#[derive(Debug)]
pub struct Refaults {
    ghosts: Ghosts,
    early: [AtomicU64; 2],
    seen: Mutex<Seen>,
}

/// What the latest look found, and the average over all looks.
#[derive(Debug)]
struct Seen {
    at: Instant,
    stores: [Store; 2],
    us_per_s: Average,
}

/// What happened to the pages in a store since power-on.
#[derive(Clone, Copy, Debug, Default)]
struct Store {
    refills: u64,
    early: u64,
    stood: Duration,
}

impl Store {
    /// For how long threads stood still for early refaults since `before`.
    fn early_since(&self, before: &Self) -> Duration {
        let refills = self.refills - before.refills;
        // No more than there were: the counters are read one after the other.
        let early = (self.early - before.early).min(refills);
        if early == 0 {
            return Duration::ZERO;
        }
        let stood = self.stood.saturating_sub(before.stood);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let part = early as f64 / refills as f64;
        stood.mul_f64(part)
    }
}

impl Refaults {
    pub(super) fn new(pages: u32, now: Instant) -> Self {
        Self {
            ghosts: Ghosts::new(pages),
            early: Default::default(),
            seen: Mutex::new(Seen {
                at: now,
                stores: Default::default(),
                us_per_s: Average::over(SPAN),
            }),
        }
    }

    /// Notes that a page goes from RAM to a store, of a VM that holds `held` pages. Only the worker calls this.
    pub(crate) fn left(&self, gfn: Gfn, held: Pages) {
        self.ghosts.note(gfn, Pages(held.0 / REMEMBERED_PART));
    }

    /// Notes that the guest wants a page back that was at `home`.
    pub(crate) fn came_back(&self, gfn: Gfn, home: Home) {
        let store = match home {
            Home::Compressed(_) => 0,
            Home::Swapped(_) => 1,
            _ => return,
        };
        if self.ghosts.came_back(gfn) {
            self.early[store].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes for how long threads have stood still by `now`.
    pub(super) fn look(&self, stats: &Stats, stalled: &Stalled, now: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(seen.at);
        if passed.is_zero() {
            return;
        }
        let refills = [stats.refill_zip.get(), stats.refill_swap.get()];
        let stores = [0, 1].map(|store| Store {
            refills: refills[store],
            early: self.early[store].load(Ordering::Relaxed),
            stood: stalled.threads[STORES[store]],
        });
        let both = stores.iter().zip(&seen.stores);
        let stood: Duration = both.map(|(now, before)| now.early_since(before)).sum();
        seen.at = now;
        seen.stores = stores;
        seen.us_per_s
            .note(stood.div_duration_f64(passed) * 1e6, passed);
    }

    /// Microseconds in each second for which threads stand still because of early refaults, each thread by itself, on
    /// average over the second before the latest look.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a float that is too large becomes the most"
    )]
    pub fn us_per_s(&self) -> u64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.us_per_s.mean().unwrap_or_default().round() as u64
    }

    /// How many pages that left lately are remembered.
    #[must_use]
    pub fn remembered(&self) -> Pages {
        self.ghosts.left()
    }

    /// How many early refaults there were since power-on.
    #[must_use]
    pub fn early(&self) -> u64 {
        self.ghosts.returned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ByCause;
    use super::*;
    use crate::units::SlotId;

    const SECOND: Duration = Duration::from_secs(1);
    const ZIP: Home = Home::Compressed(SlotId(0));
    const SWAP: Home = Home::Swapped(SlotId(0));

    /// A VM that holds 80 pages, and for how long it stood still.
    struct Rig {
        refaults: Refaults,
        stats: Stats,
        stalled: Stalled,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                refaults: Refaults::new(1000, now),
                stats: Stats::default(),
                stalled: Stalled {
                    threads: ByCause::default(),
                    any: Duration::ZERO,
                    latest: 0.0,
                    minute: 0.0,
                },
                now,
            }
        }

        fn leave(&self, gfns: std::ops::Range<u32>) {
            gfns.for_each(|gfn| self.refaults.left(Gfn(gfn), Pages(80)));
        }

        /// Refills these pages from a store, each in a millisecond.
        fn refill(&mut self, gfns: std::ops::Range<u32>, home: Home) {
            for gfn in gfns {
                self.refaults.came_back(Gfn(gfn), home);
                let (refills, cause) = match home {
                    ZIP => (&self.stats.refill_zip, Cause::RefillZip),
                    _ => (&self.stats.refill_swap, Cause::RefillSwap),
                };
                refills.one();
                self.stalled.threads[cause] += Duration::from_millis(1);
            }
        }

        fn us_per_s_after(&mut self, passed: Duration) -> u64 {
            self.now += passed;
            self.refaults.look(&self.stats, &self.stalled, self.now);
            self.refaults.us_per_s()
        }
    }

    #[test]
    fn only_refaults_of_pages_that_left_lately_are_early() {
        let mut rig = Rig::new();
        assert_eq!(rig.us_per_s_after(SECOND), 0);
        // Of 80 pages that are held, at least the latest 10 and at most the latest 20.
        rig.leave(0..100);
        assert_eq!(rig.refaults.remembered(), Pages(10));
        rig.refill(0..90, ZIP);
        assert_eq!(rig.refaults.early(), 0);
        rig.refill(90..95, ZIP);
        assert_eq!(rig.refaults.early(), 5);
        // A page that came back counts no second time.
        rig.refill(90..95, ZIP);
        assert_eq!(rig.refaults.early(), 5);
        assert_eq!(rig.us_per_s_after(1000 * SECOND), 5);
    }

    #[test]
    fn early_refault_costs_what_refills_of_its_store_cost_on_average() {
        let mut rig = Rig::new();
        rig.leave(0..20);
        rig.refill(10..14, ZIP);
        rig.stalled.threads[Cause::RefillZip] *= 3;
        rig.refill(14..20, SWAP);
        rig.refill(100..106, SWAP);
        let all = 4 * 3 + 6;
        assert_eq!(rig.us_per_s_after(100 * SECOND), all * 1000 / 100);
        // Nothing happened since.
        assert_eq!(rig.us_per_s_after(1000 * SECOND), 0);
    }

    #[test]
    fn page_that_comes_back_from_elsewhere_is_no_refault() {
        let mut rig = Rig::new();
        rig.leave(0..8);
        rig.refaults.came_back(Gfn(3), Home::Zero);
        assert_eq!(rig.refaults.early(), 0);
        rig.refill(3..4, ZIP);
        assert_eq!(rig.refaults.early(), 1);
    }
}
