//! How a budget falls that follows a limit.
//!
//! A smaller budget makes a host short. All of a large fall at once makes it as short as it can be, so guests wait, and
//! cold and warm pages are swapped alike, while the kernel would have had room for some seconds more: what is over a limit
//! that was lowered is mostly not in use. So a budget falls by an eighth of the way at each look. Where the group uses
//! nearly all of its limit there is no such room, and the budget falls at once.

use crate::units::{Bytes, Pages};

/// In how many steps a budget falls.
const STEPS: u64 = 8;
/// The group is near its limit when less than this part of the limit is not in use.
const NEAR: u64 = 16;

/// A fall that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descent {
    /// Where it leads.
    to: Pages,
    /// How far at each look.
    step: Pages,
}

impl Descent {
    /// The budget after this look, of one that `was` so large and is to be `want`; and the fall that goes on, if one
    /// does. `before` is the one that went on until now. It is `urgent` if the memory is needed at once.
    #[must_use]
    pub fn follow(
        before: Option<Self>,
        was: Pages,
        want: Pages,
        urgent: bool,
    ) -> (Pages, Option<Self>) {
        let left = was.saturating_sub(want);
        if left == Pages(0) || urgent {
            return (want, None);
        }
        // Another limit is another way.
        let descent = before.filter(|descent| descent.to == want).unwrap_or(Self {
            to: want,
            step: Pages(left.0.div_ceil(STEPS)),
        });
        let next = Pages(was.0 - left.min(descent.step).0);
        (next, Some(descent).filter(|_| next > want))
    }
}

/// Whether so little of a limit is left that the kernel may act at any moment.
#[must_use]
pub fn is_near(used: Bytes, limit: Bytes) -> bool {
    limit.0.saturating_sub(used.0) < limit.0 / NEAR
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fall_takes_eight_looks_and_a_rise_one() {
        let (mut was, mut descent) = (Pages(1000), None);
        let mut seen = Vec::new();
        for _ in 0..9 {
            (was, descent) = Descent::follow(descent, was, Pages(200), false);
            seen.push(was.0);
        }
        assert_eq!(seen, [900, 800, 700, 600, 500, 400, 300, 200, 200]);
        assert_eq!(descent, None);
        let up = Descent::follow(None, Pages(200), Pages(1000), false);
        assert_eq!(up, (Pages(1000), None));
    }

    #[test]
    fn group_is_near_its_limit_from_fifteen_sixteenths_on() {
        let near = |used| is_near(Bytes::from_mib(used), Bytes::from_mib(160));
        assert_eq!(
            [0, 150, 151, 160, 170].map(near),
            [false, false, true, true, true]
        );
    }

    proptest! {
        /// Limits that change, each for some looks.
        #[test]
        fn budget_comes_to_its_limit_and_never_falls_by_more_than_an_eighth_of_the_way(
            start in 1_u64..1 << 20,
            limits in proptest::collection::vec((1_u64..1 << 20, 1_usize..12, any::<bool>()), 1..10),
        ) {
            let (mut was, mut descent) = (Pages(start), None);
            for (want, looks, urgent) in limits {
                let want = Pages(want);
                // A limit that is back again is another way too, unless the budget is there already.
                descent = descent.filter(|descent: &Descent| descent.to == want);
                let far = was.saturating_sub(want).0;
                let most = descent.map_or(far.div_ceil(8), |descent| descent.step.0);
                for look in 1..=looks {
                    let (next, on) = Descent::follow(descent, was, want, urgent);
                    prop_assert!(next >= want.min(was) && next <= want.max(was));
                    if !urgent {
                        prop_assert!(was.saturating_sub(next).0 <= most);
                    }
                    prop_assert!(next == want || (look < 8 && !urgent));
                    prop_assert_eq!(on.is_some(), next > want);
                    (was, descent) = (next, on);
                }
            }
        }
    }
}
