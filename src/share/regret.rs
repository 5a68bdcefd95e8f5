//! Whether it pays to take pages of a VM at once.
//!
//! A page that is taken, dropped as zero or shared, and wanted back soon costs its guest a fault, for memory that nobody
//! needs while it is plentiful. The back-off of a page does not help with the first look at it, and a guest that rewrites
//! all its memory faster than a pass goes over it is taken every page of once, and later again and again, however seldom
//! each. So it is counted how many of the pages of the whole VM come back. While they are many, a page is *held* before it
//! is taken: looked at again some passes later, and taken if it was not written in the last of them. So nothing is
//! forgotten: pages that nobody writes are taken all the same, later, and as they stay taken they end the regret.
//!
//! Where the engine does not tell which pages were written, a page is taken if it has the same bytes as when it was held:
//! one that is cleared again and again is not known from one that is left alone, and only backs off.

use crate::page::Takings;

/// Regret is felt when more than one in so many comes back. They come back seconds after they are taken, so the first of
/// them have to tell of the others; and to hold a page that would not have come back costs nothing but time.
const PART: u64 = 8;
/// Fewer that came back say nothing.
const FEW: u64 = 32;
/// Takings after which what came before counts half: long enough for those to come back that do so within seconds.
const MEMORY: u64 = 8192;

/// What became of the pages that were taken from a VM lately.
#[derive(Debug, Default)]
pub(super) struct Regret {
    lately: Takings,
    seen: Option<Takings>,
}

impl Regret {
    /// Takes note of how many pages of the VM were taken so far, and came back.
    pub(super) fn note(&mut self, now: Takings) {
        let seen = self.seen.replace(now).unwrap_or(now);
        let Takings { taken, returned } = &mut self.lately;
        *taken += now.taken.saturating_sub(seen.taken);
        *returned += now.returned.saturating_sub(seen.returned);
        while *taken.max(returned) > MEMORY {
            (*taken, *returned) = (*taken / 2, *returned / 2);
        }
    }

    /// Whether too many came back.
    pub(super) const fn is_felt(&self) -> bool {
        let Takings { taken, returned } = self.lately;
        returned >= FEW && returned * PART > taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A guest in which so many pages are taken in a slice, of each hundred of which so many come back some slices later.
    fn churn(taken: u64, back: u64, delay: usize, slices: usize) -> Takings {
        let (mut regret, mut total, mut outstanding) = <(Regret, Takings, Vec<u64>)>::default();
        for slice in 0..slices {
            regret.note(total);
            // While it is felt, only pages that stay are taken.
            let felt = regret.is_felt();
            total.taken += if felt {
                taken * (100 - back) / 100
            } else {
                taken
            };
            outstanding.push(if felt { 0 } else { taken * back / 100 });
            total.returned += slice
                .checked_sub(delay)
                .map_or(0, |slice| outstanding[slice]);
        }
        total
    }

    proptest! {
        #[test]
        fn no_more_than_twice_the_part_comes_back_for_long(
            taken in 1..1000u64,
            back in 0..=100u64,
            delay in 1..20usize,
        ) {
            let early = churn(taken, back, delay, 300);
            let late = churn(taken, back, delay, 600);
            let (taken_later, came_back) = (late.taken - early.taken, late.returned - early.returned);
            // What is taken until the first of it is wanted back is not known to be wanted, each time anew.
            let unknown = FEW + taken * (delay as u64 + 1);
            prop_assert!(
                came_back <= 2 * taken_later / PART + 2 * unknown,
                "{came_back} of {taken_later} came back, {unknown} of which nobody could know"
            );
        }
    }

    #[test]
    fn few_that_came_back_say_nothing_and_many_that_stay_end_it() {
        let mut regret = Regret::default();
        let mut felt = |taken, returned| {
            regret.note(Takings { taken, returned });
            regret.is_felt()
        };
        assert!(!felt(5_000, 5_000), "before it began to look");
        assert!(!felt(5_000 + FEW, 5_000 + FEW - 1));
        assert!(felt(5_000 + FEW, 5_000 + FEW));
        assert!(!felt(5_000 + PART * FEW, 5_000 + FEW));
        assert!(felt(5_000 + PART * FEW, 5_001 + FEW));
        assert!(!felt(6_000, 5_001 + FEW));
    }
}
