//! When the policy takes new estimates of idle memory.
//!
//! Free memory moves within milliseconds and is looked at four times a second. But how much a VM uses is an
//! estimate over seconds or minutes, and targets that followed each twitch of it would move balloons
//! to and fro. So the estimates are taken only now and then, and kept until the next time: once in each
//! `Mem.BalancePeriod`, and whenever the question itself changes, because a VM came or went, a setting
//! changed, or the host changed its state (ESX: section 5.2 of OSDI 2002, and the resource
//! management guides).

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::policy::FreeState;
use crate::units::{Pages, VmId};

/// The question that a balance answers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Question {
    vms: BTreeSet<VmId>,
    revision: u64,
    state: FreeState,
}

/// The estimates of the latest balance.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    latest: Option<(Instant, Question)>,
    active: HashMap<VmId, Option<Pages>>,
}

impl Balance {
    /// Takes the estimates of all VMs if it is time. `revision` counts changes of settings.
    pub(crate) fn refresh(
        &mut self,
        now: Instant,
        period: Duration,
        (state, revision): (FreeState, u64),
        estimates: HashMap<VmId, Option<Pages>>,
    ) {
        let question = Question {
            vms: BTreeSet::from_iter(estimates.keys().copied()),
            revision,
            state,
        };
        if !self.is_due(now, period, &question) {
            return;
        }
        self.latest = Some((now, question));
        self.active = estimates;
    }

    fn is_due(&self, now: Instant, period: Duration, question: &Question) -> bool {
        // While some VM's estimate is not known, each plan asks again, so that it counts as soon as it is.
        let known = |active: &Option<Pages>| active.is_some();
        let Some((at, answered)) = &self.latest else {
            return true;
        };
        answered != question
            || now.saturating_duration_since(*at) >= period
            || !self.active.values().all(known)
    }

    /// What a VM was estimated to use; `None` when that is not known.
    pub(crate) fn active(&self, vm: VmId) -> Option<Pages> {
        self.active.get(&vm).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(15);

    fn question(state: FreeState, revision: u64) -> Question {
        let vms = BTreeSet::from([VmId(1)]);
        Question {
            vms,
            revision,
            state,
        }
    }

    #[test]
    fn balance_is_due_by_time_and_when_the_question_changes() {
        let now = Instant::now();
        let mut balance = Balance::default();
        let asked = question(FreeState::High, 3);
        assert!(balance.is_due(now, PERIOD, &asked), "never answered");
        balance.latest = Some((now, asked.clone()));
        balance.active = HashMap::from([(VmId(1), Some(Pages(5)))]);
        assert!(!balance.is_due(now + PERIOD / 2, PERIOD, &asked));
        assert!(balance.is_due(now + PERIOD, PERIOD, &asked));
        assert!(balance.is_due(now, PERIOD, &question(FreeState::Soft, 3)));
        assert!(balance.is_due(now, PERIOD, &question(FreeState::High, 4)));
        assert_eq!(balance.active(VmId(1)), Some(Pages(5)));
        assert_eq!(balance.active(VmId(2)), None);
    }

    #[test]
    fn balance_waits_for_estimates_that_are_not_known_yet() {
        let now = Instant::now();
        let asked = question(FreeState::High, 0);
        let balance = Balance {
            latest: Some((now, asked.clone())),
            active: HashMap::from([(VmId(1), None)]),
        };
        assert!(balance.is_due(now, PERIOD, &asked));
    }
}
