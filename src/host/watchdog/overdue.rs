//! Whether a guest that does not answer is to end.
//!
//! A guest may be stopped for as long as somebody likes: by a debugger, a frozen control group, Ctrl-Z. Then nothing
//! can be taken from it, which does no harm while there is enough for the others. So silence alone ends no
//! guest. It is ended when it has been silent, and others have gone without memory, both for long enough.

use std::time::{Duration, Instant};

use crate::policy::FreeState;
use crate::units::Pages;

/// How long a guest may stay silent while another one has less than it was promised. A good guest answers within a
/// millisecond, on a very busy machine within a second.
const UNMET: Duration = Duration::from_secs(10);
/// How long a guest may stay silent while the host is hard or low, where others lose pages in its stead. They can
/// live on what they have, so there is time for somebody to look at a stopped guest and let it go on.
const SHORT: Duration = Duration::from_secs(60);

/// Since when, without a break, others have gone without.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Need {
    unmet: Option<Instant>,
    short: Option<Instant>,
}

impl Need {
    /// Notes whether a VM waits for memory that is reserved for it, and the state of the host.
    pub(super) fn note(&mut self, now: Instant, unmet: bool, state: FreeState) {
        let since = |before: Option<Instant>, holds: bool| holds.then(|| before.unwrap_or(now));
        self.unmet = since(self.unmet, unmet);
        self.short = since(self.short, state >= FreeState::Hard);
    }
}

/// A guest, as far as it owes the host an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debtor {
    /// For how long it has owed an answer.
    pub(super) silence: Duration,
    /// What it holds beyond its own reservation.
    pub(super) spare: Pages,
}

/// Why a guest is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    /// Another one has less than its reservation.
    Unmet,
    /// The host is hard or low.
    Short,
}

/// The guest that is to end, if any: of those that have been silent for too long, the one that holds most beyond its
/// reservation. A guest that holds no more than its reservation is spared: it would lose nothing if it answered.
pub(super) fn overdue(need: &Need, now: Instant, guests: &[Debtor]) -> Option<(usize, Why)> {
    let is_over = |since: Option<Instant>, deadline: Duration| {
        since.is_some_and(|since| now.saturating_duration_since(since) >= deadline)
    };
    let (deadline, why) = if is_over(need.unmet, UNMET) {
        (UNMET, Why::Unmet)
    } else if is_over(need.short, SHORT) {
        (SHORT, Why::Short)
    } else {
        return None;
    };
    let silent = guests
        .iter()
        .enumerate()
        .filter(|(_, guest)| guest.silence >= deadline && guest.spare > Pages(0));
    // One guest, and the one whose end gives the others most: the fewer are ended the better.
    let most = silent.max_by_key(|(_, guest)| guest.spare)?;
    Some((most.0, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const PERIOD: Duration = Duration::from_millis(250);

    fn guest(silence: Duration, spare: u64) -> Debtor {
        Debtor {
            silence,
            spare: Pages(spare),
        }
    }

    /// Which of `guests` is ended, and after how long, on a host that stays as it is. A guest with a silence at the
    /// beginning stays silent from then on; one without answers.
    fn ended(unmet: bool, state: FreeState, guests: &[Debtor]) -> Option<(Duration, usize, Why)> {
        let begin = Instant::now();
        let mut need = Need::default();
        (0..2000).find_map(|count| {
            let passed = PERIOD * count;
            need.note(begin + passed, unmet, state);
            let mut guests = guests.to_vec();
            for guest in guests.iter_mut().filter(|guest| !guest.silence.is_zero()) {
                guest.silence += passed;
            }
            let (index, why) = overdue(&need, begin + passed, &guests)?;
            Some((passed, index, why))
        })
    }

    #[test]
    fn stopped_guest_is_left_alone_where_nobody_goes_without() {
        for state in [FreeState::High, FreeState::Clear, FreeState::Soft] {
            assert_eq!(ended(false, state, &[guest(LONG, 1000)]), None, "{state}");
        }
    }

    #[test]
    fn silence_counts_from_when_others_go_without() {
        for silence in [PERIOD, LONG] {
            let guests = [guest(Duration::ZERO, 5000), guest(silence, 1000)];
            for state in FreeState::ALL {
                assert_eq!(ended(true, state, &guests), Some((UNMET, 1, Why::Unmet)));
            }
            for state in [FreeState::Hard, FreeState::Low] {
                assert_eq!(ended(false, state, &guests), Some((SHORT, 1, Why::Short)));
            }
        }
    }

    #[test]
    fn need_that_was_met_begins_anew() {
        let begin = Instant::now();
        let mut need = Need::default();
        need.note(begin, true, FreeState::Low);
        need.note(begin + UNMET / 2, false, FreeState::Soft);
        need.note(begin + UNMET, true, FreeState::Low);
        let guests = [guest(LONG, 1)];
        assert_eq!(overdue(&need, begin + UNMET + UNMET / 2, &guests), None);
        let over = overdue(&need, begin + 2 * UNMET, &guests);
        assert_eq!(over, Some((0, Why::Unmet)));
    }

    #[test]
    fn of_several_the_one_that_holds_most_ends_and_none_that_holds_its_reservation() {
        let guests = [guest(LONG, 0), guest(LONG, 10), guest(LONG, 20)];
        let end = |guests| ended(true, FreeState::Low, guests).map(|(_, index, _)| index);
        assert_eq!(end(&guests), Some(2));
        assert_eq!(end(&guests[..2]), Some(1));
        assert_eq!(end(&guests[..1]), None);
    }
}
