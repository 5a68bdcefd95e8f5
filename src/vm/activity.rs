//! How much of its memory a VM uses: averages over what sampling has found.
//!
//! There are three averages of the touched fraction, as in ESX: a slow one, a fast one, and a fast one that
//! includes the unfinished period as if it ended now. The estimate is the greatest of the three. So it
//! rises within a period and falls with the slow average: taking memory from a VM that has just begun to
//! work costs more than leaving memory to one that has just stopped. The three averages are from OSDI 2002
//! section 5.3; the weights are read off its figure 6.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{AtomicU32, Ordering};
use crate::units::Pages;

/// The weight of a new period in the slow average.
const SLOW: f64 = 0.25;
/// The weight of a new period in the fast averages.
const FAST: f64 = 0.75;
/// For how long after somebody watched the accessed pages go on being counted.
const WATCHED: Duration = Duration::from_secs(10);

/// What sampling has found so far. The fault thread counts, the worker begins and ends periods, the
/// policy reads.
#[derive(Debug, Default)]
pub struct Activity {
    /// Sampled pages that were touched in the current period.
    touched: AtomicU32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Pages sampled in the current period.
    sampled: u32,
    /// Slow and fast average; `None` before the first period has ended.
    averages: Option<(f64, f64)>,
    /// Pages that the guest's page tables say were accessed in the latest period.
    referenced: Option<Pages>,
    /// When somebody last watched.
    watched: Option<Instant>,
}

/// The part of its memory that a VM is estimated to use, from 0 to 1, by each average.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// The slow average.
    pub slow: f64,
    /// The fast average.
    pub fast: f64,
    /// The fast average as if the current period ended now.
    pub next: f64,
}

impl Estimate {
    /// The estimate itself.
    #[must_use]
    pub const fn active(self) -> f64 {
        self.slow.max(self.fast).max(self.next)
    }
}

impl Activity {
    /// Counts a sampled page that was touched.
    pub fn touch(&self) {
        self.touched.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a period with `sampled` sampled pages.
    pub fn begin(&self, sampled: u32) {
        // Relaxed: a touch that is counted in the wrong period moves the estimate by a hundredth.
        self.touched.store(0, Ordering::Relaxed);
        self.state().sampled = sampled;
    }

    /// Ends the period: `untouched` sampled pages were not touched. Sampled pages that are neither among these
    /// nor among the touched ones have lost their mark and do not count. A period without samples changes nothing.
    pub fn end(&self, untouched: u32) {
        let touched = self.touched.swap(0, Ordering::Relaxed);
        let mut state = self.state();
        state.sampled = 0;
        // Of the pages whose end is known: a mark that was lost counts neither way.
        let Some(now) = fraction(touched, touched.saturating_add(untouched)) else {
            return;
        };
        let (slow, fast) = state.averages.unwrap_or((now, now));
        state.averages = Some((mix(slow, now, SLOW), mix(fast, now, FAST)));
    }

    /// Forgets everything: sampling was switched off.
    pub fn forget(&self) {
        *self.state() = State::default();
    }

    /// The estimate; `None` before the first period has ended.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        let state = *self.state();
        let (slow, fast) = state.averages?;
        let touched = self.touched.load(Ordering::Relaxed);
        // A page of an earlier period may be touched in this one, so more may be touched than were drawn.
        let now = fraction(touched, state.sampled.max(touched)).unwrap_or(0.0);
        Some(Estimate {
            slow,
            fast,
            next: mix(fast, now, FAST),
        })
    }

    /// The pages in use of a VM of `size` pages: the estimate, at least `floor_percent` of the VM
    /// (`Mem.SampleActivePctMin`).
    #[must_use]
    pub fn pages(&self, size: Pages, floor_percent: u32) -> Option<Pages> {
        let estimate = self.estimate()?;
        let floor = size.0.saturating_mul(u64::from(floor_percent)) / 100;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a fraction of at most 2^28 pages"
        )]
        let active = (estimate.active() * size.0 as f64).round() as u64;
        Some(Pages(active.max(floor).min(size.0)))
    }

    /// Notes what the guest's page tables say.
    pub fn set_referenced(&self, pages: Option<Pages>) {
        self.state().referenced = pages;
    }

    /// Pages that the guest's page tables say were accessed in the latest period; `None` while nobody
    /// [watches](Self::watch).
    #[must_use]
    pub fn referenced(&self) -> Option<Pages> {
        self.state().referenced
    }

    /// Has the accessed pages counted for a while. That costs two walks of the guest's page tables in each period, and
    /// the guest has to walk them anew afterwards.
    pub fn watch(&self) {
        self.state().watched = Some(Instant::now());
    }

    /// Whether somebody has watched lately.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.state()
            .watched
            .is_some_and(|since| since.elapsed() < WATCHED)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain numbers, which are consistent even if a holder of the lock panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mix(old: f64, new: f64, weight: f64) -> f64 {
    old.mul_add(1.0 - weight, new * weight)
}

fn fraction(part: u32, whole: u32) -> Option<f64> {
    (whole > 0).then(|| f64::from(part) / f64::from(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The estimate in pages of a VM of 1000, after one period of 100 samples.
    fn period(activity: &Activity, touched: u32) -> u64 {
        activity.begin(100);
        (0..touched).for_each(|_| activity.touch());
        activity.end(100 - touched);
        activity.pages(Pages(1000), 1).expect("a period ended").0
    }

    #[test]
    fn estimate_is_unknown_before_the_first_period_has_ended() {
        let activity = Activity::default();
        activity.begin(100);
        activity.touch();
        assert_eq!(activity.pages(Pages(1000), 1), None);
    }

    #[test]
    fn estimate_rises_at_once_and_falls_with_the_slow_average() {
        let activity = Activity::default();
        assert_eq!(period(&activity, 10), 100);
        assert_eq!(period(&activity, 90), 700);
        // Slow: 0.10, 0.30, 0.225, 0.169. Fast: 0.10, 0.70, 0.175, 0.044.
        assert_eq!(period(&activity, 0), 225);
        assert_eq!(period(&activity, 0), 169);
    }

    /// OSDI 2002 figure 6: from 182.5 MB on, the slow average falls by a quarter in each period.
    #[test]
    fn slow_average_falls_as_in_figure_6() {
        let activity = Activity::default();
        period(&activity, 100);
        let falls: Vec<u64> = (0..4).map(|_| period(&activity, 0)).collect();
        assert_eq!(falls, [750, 563, 422, 316]);
    }

    #[test]
    fn touches_of_the_unfinished_period_count_as_soon_as_they_come() {
        let activity = Activity::default();
        period(&activity, 0);
        activity.begin(100);
        (0..60).for_each(|_| activity.touch());
        assert_eq!(activity.pages(Pages(1000), 1), Some(Pages(450)));
    }

    #[test]
    fn floor_holds_and_lost_samples_do_not_count() {
        let activity = Activity::default();
        assert_eq!(period(&activity, 0), 10, "one per cent");
        activity.begin(100);
        (0..20).for_each(|_| activity.touch());
        activity.end(20);
        let estimate = activity.estimate().expect("two periods");
        assert!((estimate.fast - 0.375).abs() < 1e-9, "{estimate:?}");
    }

    #[test]
    fn period_without_samples_teaches_nothing() {
        let activity = Activity::default();
        period(&activity, 50);
        activity.begin(0);
        activity.end(0);
        assert_eq!(activity.pages(Pages(1000), 1), Some(Pages(500)));
        activity.forget();
        assert_eq!(activity.estimate(), None);
    }
}
