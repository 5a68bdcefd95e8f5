//! How many cold pages may be taken, by how many come back.
//!
//! Nobody can know beforehand which pages come back, and one that has left can come back at any time. So the bound is
//! kept as an account of refaults that may still happen: time pays in, each page that comes back is paid for, and
//! nothing is taken while the account is empty. At first no more pages are taken than may come back, so that the bound
//! holds even if all of them do. As long as hardly any does, each round takes twice as many as the one before; more that
//! come back than may end that at once.
//!
//! A guest that begins to use what it left alone for long brings much back in a moment, which no bound can prevent. That
//! is a debt, and nothing is taken until it is paid: of a guest that does so every hour hardly anything is taken, of one
//! that does so once a day nearly everything, for most of the day.

use std::time::Duration;

/// Beyond this a round takes all that is cold, of any VM.
const MOST_TRUST: f64 = 268_435_456.0;

/// The account of a VM. See the module text.
#[derive(Debug)]
pub(super) struct Bound {
    /// Refaults that may still happen; below zero: a debt.
    credit: f64,
    /// Pages that are taken for each of them.
    trust: f64,
}

impl Default for Bound {
    fn default() -> Self {
        Self {
            credit: 0.0,
            trust: 1.0,
        }
    }
}

impl Bound {
    /// Ends a round that took `passed`, in which `back` pages came back where `rate` may in a second. `is_used_up`: as
    /// many were taken as might be. Returns how many the next round may take.
    pub(super) fn end_round(
        &mut self,
        rate: f64,
        passed: Duration,
        back: u64,
        is_used_up: bool,
    ) -> u64 {
        let allowed = rate * passed.as_secs_f64();
        #[expect(
            clippy::cast_precision_loss,
            reason = "at most some 2^28 pages a round"
        )]
        let back = back as f64;
        // What was not used in one round is not saved up for others, except for the first page of a small VM.
        let most = allowed.max(1.0);
        self.credit = (self.credit + allowed - back).min(most);
        if back > allowed {
            self.trust = 1.0;
        } else if is_used_up && back <= allowed / 2.0 {
            self.trust = (self.trust * 2.0).min(MOST_TRUST);
        }
        if self.credit < 1.0 {
            return 0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative; a larger number means all pages as well"
        )]
        let pages = (self.credit * self.trust) as u64;
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_secs(10);

    #[test]
    fn first_round_takes_what_may_come_back_and_each_next_one_twice_as_much() {
        let mut bound = Bound::default();
        let rounds: Vec<u64> = (0..5)
            .map(|round| bound.end_round(2.0, ROUND, 0, round > 0))
            .collect();
        assert_eq!(rounds, [20, 40, 80, 160, 320]);
        assert_eq!(bound.end_round(2.0, ROUND, 0, false), 320, "some were left");
        assert_eq!(bound.end_round(2.0, ROUND, 11, true), 320, "half came back");
    }

    #[test]
    fn what_comes_back_beyond_the_bound_is_paid_for_before_more_is_taken() {
        let mut bound = Bound::default();
        bound.end_round(2.0, ROUND, 0, false);
        bound.end_round(2.0, ROUND, 0, true);
        // 20 were left, 20 came, 70 are paid.
        assert_eq!(bound.end_round(2.0, ROUND, 70, true), 0);
        assert_eq!(bound.end_round(2.0, ROUND, 0, false), 0, "-10");
        assert_eq!(bound.end_round(2.0, ROUND, 0, false), 10);
        assert_eq!(bound.end_round(2.0, ROUND, 0, true), 40, "trust grows anew");
    }

    #[test]
    fn small_vm_saves_up_for_its_first_page() {
        let mut bound = Bound::default();
        let rounds = (1..).find(|_| bound.end_round(0.025, ROUND, 0, false) > 0);
        assert_eq!(rounds, Some(4));
        assert_eq!(bound.end_round(0.025, ROUND, 1, true), 0);
    }

    /// However late all that is taken comes back, no more does than time has paid for and was on its way when the first
    /// pages came.
    #[test]
    fn pages_that_come_back_late_pass_the_bound_by_what_was_on_its_way_only() {
        for late in 1..10 {
            let mut bound = Bound::default();
            let mut away = std::collections::VecDeque::from(vec![0; late]);
            let mut all = 0;
            let rounds = 2000;
            let (mut back, mut taken) = (0, 0);
            for _ in 0..rounds {
                taken = bound.end_round(2.0, ROUND, back, taken > 0);
                away.push_back(taken);
                back = away.pop_front().expect("one was added");
                all += back;
            }
            let paid = rounds * 20;
            assert!(
                all <= paid + (20 << (late + 2)),
                "{all} of {paid}, {late} rounds late"
            );
        }
    }
}
