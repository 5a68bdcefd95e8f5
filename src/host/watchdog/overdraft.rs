//! Memory that a guest has filled but was not given.

use crate::units::Pages;

/// How many pages may be filled without being counted though nothing is wrong. A batch of 64 pages that leave their
/// share pool may be so for several checks, while it waits for its guest to confirm. Other batches are under way for
/// moments only, and have at most 256 pages: so as much is overlooked, 1 MiB.
const TOLERANCE: Pages = Pages(256);
/// By how many the checks that found too much must outnumber those that did not. A single check may be wrong: if the
/// thread is stopped between its counts, it finds what was given meanwhile.
const STRIKES: u32 = 4;

/// What the checks of one VM have found so far.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Overdraft {
    strikes: u32,
}

impl Overdraft {
    /// Notes that `filled` pages of a VM's RAM are in use where at most `paid` may be. Returns whether it is to end.
    pub(super) fn note(&mut self, filled: Pages, paid: Pages) -> bool {
        self.strikes = if filled.saturating_sub(paid) > TOLERANCE {
            self.strikes + 1
        } else {
            // One off and not all: a guest that takes too much at most looks, not at each, is caught too.
            self.strikes.saturating_sub(1)
        };
        self.strikes >= STRIKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAID: Pages = Pages(1000);
    const MUCH: Pages = Pages(PAID.0 + TOLERANCE.0 + 1);

    /// The index of the check that ends a VM for which the checks find `found`, again and again.
    fn ended(found: &[Pages]) -> Option<usize> {
        let mut overdraft = Overdraft::default();
        let mut checks = found.iter().cycle().take(100);
        checks.position(|filled| overdraft.note(*filled, PAID))
    }

    #[test]
    fn overdraft_that_stays_ends_its_vm() {
        assert_eq!(ended(&[MUCH]), Some(3));
        assert_eq!(ended(&[Pages(u64::MAX)]), Some(3));
        // Hiding it every third time does not help.
        assert_eq!(ended(&[MUCH, MUCH, PAID]), Some(7));
    }

    #[test]
    fn what_is_under_way_ends_nobody() {
        assert_eq!(ended(&[Pages(0)]), None);
        assert_eq!(ended(&[Pages(PAID.0 + TOLERANCE.0)]), None);
        assert_eq!(ended(&[MUCH, PAID]), None);
        assert_eq!(ended(&[Pages(u64::MAX), PAID, PAID]), None);
    }
}
