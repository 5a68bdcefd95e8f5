//! What is measured of an incident.

use serde::Serialize;

use super::guest::{Guest, STEP_US};
use crate::units::Pages;

/// A target that turns by less than one part in so many of a guest has not turned.
const DEAD_BAND: u64 = 100;
/// A guest whose thread waits for more than this part of a step, one in so many, has not what it needs.
const SETTLED: u64 = 100;

/// What a law did to the guests of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The most of its hot pages that a guest could not hold because of its balloon, in MiB.
    pub overshoot_mib: f64,
    /// The same, in % of these hot pages.
    pub overshoot_percent: f64,
    /// How often targets turned by more than a hundredth of their guests' memory.
    pub oscillations: u64,
    /// For how long threads waited for memory, of all guests together, in seconds.
    pub stall_s: f64,
    /// Processes killed for lack of memory.
    pub oom_kills: u64,
    /// Seconds from the last change of a load until every guest has what it touches and the host is not short, for the
    /// rest of the run. `None`: not in this run.
    pub settled_s: Option<f64>,
    /// What balloons held on average, of all guests together, in MiB.
    pub taken_mib: f64,
    /// Accesses of all guests, in millions: what they got done.
    pub accesses_m: f64,
}

/// The way of one target.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The latest target at which it turned, or that it has reached since.
    extreme: u64,
    rises: Option<bool>,
}

/// What is kept while an incident runs.
#[derive(Debug)]
pub(super) struct Measure {
    ways: Vec<Way>,
    stalls: Vec<u64>,
    overshoot: (u64, u64),
    turns: u64,
    taken: u64,
    steps: u64,
    unsettled_step: u64,
}

impl Measure {
    pub(super) fn new(guests: &[Guest]) -> Self {
        let way = |guest: &Guest| Way {
            extreme: guest.ballooned,
            rises: None,
        };
        Self {
            ways: guests.iter().map(way).collect(),
            stalls: vec![0; guests.len()],
            overshoot: (0, 1),
            turns: 0,
            taken: 0,
            steps: 0,
            unsettled_step: 0,
        }
    }

    /// Notes a step that has ended.
    pub(super) fn note(&mut self, guests: &[Guest], targets: &[Pages], is_short: bool) {
        let mut settled = !is_short;
        for (at, guest) in guests.iter().enumerate() {
            let over = guest.overshoot();
            if over > self.overshoot.0 {
                self.overshoot = (over, guest.active().0.max(1));
            }
            let stall = guest.stall_us() - self.stalls[at];
            self.stalls[at] = guest.stall_us();
            settled &= over == 0 && stall <= STEP_US / SETTLED;
            self.taken += guest.ballooned;
            self.turns += u64::from(self.ways[at].turned(targets[at].0, guest.is.size.0));
        }
        self.steps += 1;
        if !settled {
            self.unsettled_step = self.steps;
        }
    }

    pub(super) fn figures(&self, guests: &[Guest], last_change_s: u64) -> Figures {
        let mib = |pages: u64| round(pages as f64 / 256.0);
        let sum = |of: fn(&Guest) -> u64| guests.iter().map(of).sum::<u64>();
        let step_s = STEP_US as f64 / 1e6;
        let settled_s = (self.unsettled_step as f64 * step_s - last_change_s as f64).max(0.0);
        let (over, of) = self.overshoot;
        Figures {
            overshoot_mib: mib(over),
            overshoot_percent: round(100.0 * over as f64 / of as f64),
            oscillations: self.turns,
            stall_s: round(sum(Guest::stall_us) as f64 / 1e6),
            oom_kills: sum(|guest| guest.kills),
            settled_s: (self.unsettled_step < self.steps).then_some(round(settled_s)),
            taken_mib: mib(self.taken / self.steps.max(1)),
            accesses_m: round(sum(|guest| guest.accesses) as f64 / 1e6),
        }
    }
}

/// To a hundredth.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

impl Way {
    /// Notes a target; whether it has turned.
    fn turned(&mut self, target: u64, size: u64) -> bool {
        let is_away = target.abs_diff(self.extreme) > size / DEAD_BAND;
        let up = target > self.extreme;
        match self.rises {
            // It goes on the same way.
            Some(rises) if rises == up => self.extreme = target,
            Some(_) if is_away => {
                *self = Self {
                    extreme: target,
                    rises: Some(up),
                };
                return true;
            }
            None if is_away => {
                *self = Self {
                    extreme: target,
                    rises: Some(up),
                };
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_turns_when_it_comes_back_by_more_than_the_dead_band() {
        let mut way = Way {
            extreme: 0,
            rises: None,
        };
        let targets = [5, 0, 100, 200, 195, 300, 250, 240, 255, 100, 200];
        let turned: Vec<u64> = (targets.into_iter())
            .filter(|target| way.turned(*target, 1000))
            .collect();
        assert_eq!(turned, [250, 255, 100, 200]);
    }
}
