//! Whether a balloon is worth waiting for.
//!
//! The policy frees memory by balloons first, because a guest knows best what it can spare. What a balloon still
//! has to bring, the policy does not evict. That an agent is connected says little: its process may be stopped,
//! its guest may be out of memory itself, or it may never have meant to give anything. Then the host would wait
//! for ever. So what counts is that the balloon comes closer to its target.
//!
//! An agent polls once a second, and it may give little: a guest that has to push its own memory out first is
//! slow, not dead. A single page in [`WINDOW`], four polls, shows that the agent is at work. The target may move
//! meanwhile. Only when it asks for the other direction does the agent get a new window, because then its
//! earlier work says nothing. A balloon that is not waited for keeps its target, so the page that shows it alive
//! again can come at any time.
//!
//! Being alive is not enough. A balloon that is to bring 3000 pages and brings 40 a second needs more than a
//! minute. The host stays short for that time, and nothing is taken elsewhere because this balloon moves. So a
//! balloon is expected to bring what it can bring within [`IN_TIME`] at the pace that it has shown: pages by
//! time, over a window in which it owed some. The policy takes by other means what the balloon owes beyond that.
//! A balloon that has just been asked, or has brought all that it owed, has shown no pace yet and is believed
//! for a window.
//!
//! What counts against an agent is the time for which it owed pages and moved none. All such times add up: a
//! target that comes and goes does not give a stuck agent a window each time it is asked anew. Only after
//! [`FORGIVEN`] at its target is an agent trusted again without having shown anything, because by then nobody
//! knows how it is.

use std::time::{Duration, Instant};

use super::SLACK_PAGES;
use crate::units::Pages;

/// How long a balloon may stand still before it is not waited for: four polls of a second.
const WINDOW: Duration = Duration::from_secs(4);
/// How long a balloon may stand still before its guest, if at its limit, is evicted from: a poll.
const AT_WORK: Duration = Duration::from_secs(1);
/// The time in which a balloon is to bring what it owes. ESX publishes none. In this time an agent that must push
/// its guest's memory out first brings 20 to 80 MiB, a good one 640.
const IN_TIME: Duration = Duration::from_secs(10);
/// The shortest time that says anything about a pace: agents poll once a second.
const PACE_SEEN: Duration = Duration::from_secs(1);
/// How long an agent must have owed nothing to be trusted again.
const FORGIVEN: Duration = Duration::from_secs(30);

/// Which way a balloon has to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Inflate,
    Deflate,
}

impl Way {
    /// `None` when there is nothing to wait for. A balloon below its target owes every page, because the policy
    /// waits for the last few as well. A balloon a little above its target is left alone by its agent
    /// ([`SLACK_PAGES`]).
    fn to(target: Pages, ballooned: Pages) -> Option<Self> {
        if ballooned < target {
            Some(Self::Inflate)
        } else if ballooned.0 - target.0 > SLACK_PAGES {
            Some(Self::Deflate)
        } else {
            None
        }
    }

    fn is_closer(self, ballooned: Pages, before: Pages) -> bool {
        match self {
            Self::Inflate => ballooned > before,
            Self::Deflate => ballooned < before,
        }
    }
}

/// What is known about a connected agent.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    ballooned: Pages,
    /// The way that the balloon last had to go.
    way: Option<Way>,
    /// How long it has owed pages in that direction without moving one.
    still: Duration,
    /// How long it has owed no pages.
    idle: Duration,
    pace: Pace,
}

/// How fast a balloon has come closer to its target while it owed pages.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// The pages that it brings in [`IN_TIME`], by the latest window that has ended.
    shown: Option<u64>,
    /// The time for which it has owed pages since that window, and the pages that it has moved.
    owed: Duration,
    moved: u64,
}

impl Pace {
    fn note(&mut self, owed: Duration, moved: u64) {
        self.owed += owed;
        self.moved = self.moved.saturating_add(moved);
        if self.owed >= WINDOW {
            *self = Self {
                shown: self.now(),
                ..Self::default()
            };
        }
    }

    /// The pages that it would bring in [`IN_TIME`] at the pace of the current window; `None` while that is too short.
    fn now(&self) -> Option<u64> {
        let moved = u128::from(self.moved) * IN_TIME.as_millis();
        let pages = moved / self.owed.as_millis().max(1);
        (self.owed >= PACE_SEEN).then(|| u64::try_from(pages).unwrap_or(u64::MAX))
    }

    /// The pages that it can be expected to bring in [`IN_TIME`]. A balloon that becomes faster is believed at once.
    fn brings(&self) -> Option<Pages> {
        let shown = self.shown?;
        // The larger of the two: a window that has only begun may have fallen into a pause of the agent.
        Some(Pages(self.now().map_or(shown, |now| shown.max(now))))
    }
}

impl Seen {
    /// Notes that `passed` went by, and that the balloon, which holds `ballooned`, has to go this way now.
    fn note(&mut self, passed: Duration, way: Option<Way>, ballooned: Pages) {
        let came_closer = |way: Way| way.is_closer(ballooned, self.ballooned);
        let moved = self.way.is_some_and(came_closer);
        let turned = way.is_some() && way != self.way;
        self.idle = match way {
            Some(_) => Duration::ZERO,
            None => self.idle + passed,
        };
        if moved || turned || self.idle >= FORGIVEN {
            self.still = Duration::ZERO;
        } else if way.is_some() {
            self.still += passed;
        }
        // An agent that has brought all that it owed could have brought more: its pace of the last moment would be too
        // low.
        let arrived = moved && way.is_none();
        if arrived || turned || self.idle >= FORGIVEN {
            self.pace = Pace::default();
        } else if way.is_some() {
            let pages = ballooned.0.abs_diff(self.ballooned.0);
            // Pages that went the other way are no progress.
            self.pace.note(passed, if moved { pages } else { 0 });
        }
        // At its target the balloon keeps the direction it came from: to go on the same way is no turn.
        self.way = way.or(self.way);
    }
}

/// The progress of one VM's balloon.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentProgress(Option<Seen>);

impl AgentProgress {
    /// Whether the balloon was below its target at the latest plan, and has moved within the last second.
    #[must_use]
    pub fn inflates(&self) -> bool {
        self.0.is_some_and(|seen| {
            seen.way == Some(Way::Inflate) && seen.idle.is_zero() && seen.still < AT_WORK
        })
    }

    /// The pages that the balloon can be expected to bring in ten seconds; `None`: it has shown no pace yet, so it
    /// is expected to bring all that it is asked for.
    #[must_use]
    pub fn brings(&self) -> Option<Pages> {
        self.0.and_then(|seen| seen.pace.brings())
    }

    /// Notes where the balloon is, and returns whether it is to be waited for. To be called at every plan,
    /// more often than once in four seconds: a longer gap, in which the machine may have slept, is not held
    /// against the agent.
    pub fn note(&mut self, now: Instant, connected: bool, target: Pages, ballooned: Pages) -> bool {
        if !connected {
            // The next agent is not judged by what this one did.
            self.0 = None;
            return false;
        }
        let fresh = Seen {
            at: now,
            ballooned,
            way: None,
            still: Duration::ZERO,
            idle: Duration::ZERO,
            pace: Pace::default(),
        };
        let known = self
            .0
            .map(|seen| (now.saturating_duration_since(seen.at), seen));
        let (passed, mut seen) = known
            // After a longer gap nobody knows what the agent did in it.
            .filter(|(passed, _)| *passed <= WINDOW)
            .unwrap_or((Duration::ZERO, fresh));
        let way = Way::to(target, ballooned);
        seen.note(passed, way, ballooned);
        (seen.at, seen.ballooned) = (now, ballooned);
        self.0 = Some(seen);
        way.is_none() || seen.still < WINDOW
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Duration = Duration::from_millis(250);

    /// A tracker and its clock.
    struct Rig {
        progress: AgentProgress,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let progress = AgentProgress::default();
            let now = Instant::now();
            Self { progress, now }
        }

        fn after(&mut self, time: Duration, target: u64, ballooned: u64) -> bool {
            self.now += time;
            self.progress
                .note(self.now, true, Pages(target), Pages(ballooned))
        }

        fn note(&mut self, target: u64, ballooned: u64) -> bool {
            self.after(POLICY, target, ballooned)
        }

        /// Plans with the same numbers while the answer stays the same, and returns how long that was.
        fn stands(&mut self, target: u64, ballooned: u64, answer: bool) -> Duration {
            let start = self.now;
            while self.note(target, ballooned) == answer {
                assert!(
                    self.now - start < Duration::from_secs(100),
                    "it stays {answer}"
                );
            }
            self.now - start
        }
    }

    #[test]
    fn balloon_that_stands_still_is_waited_for_for_four_seconds() {
        for (target, ballooned) in [
            (1000, 0),
            (1000, 999),
            (0, 1000),
            (100, 100 + SLACK_PAGES + 1),
        ] {
            let mut rig = Rig::new();
            assert!(rig.note(target, ballooned));
            assert_eq!(rig.stands(target, ballooned, true), WINDOW);
            assert!(!rig.note(target, ballooned));
        }
    }

    #[test]
    fn balloon_at_its_target_is_alive_for_ever() {
        let mut rig = Rig::new();
        for _ in 0..1000 {
            assert!(rig.note(1000, 1000));
            assert!(rig.note(1000, 1000 + SLACK_PAGES));
        }
        assert!(rig.note(2000, 1000), "and has its window then");
        assert_eq!(rig.stands(2000, 1000, true), WINDOW);
        assert!(rig.note(1000, 1000), "nothing is owed");
        assert!(!rig.note(2000, 1000), "it was asked before");
        assert!(rig.note(2000, 1001));
    }

    #[test]
    fn one_page_in_four_seconds_is_enough() {
        let mut rig = Rig::new();
        for ballooned in 0..100 {
            for _ in 0..15 {
                assert!(rig.note(1000, ballooned), "{ballooned}");
            }
        }
        assert_eq!(rig.stands(1000, 100, true), WINDOW + POLICY);
        assert!(rig.note(1000, 101), "it is alive again as soon as it moves");
        assert!(rig.note(1000, 100), "one that popped");
        assert_eq!(rig.stands(1000, 100, true) + 2 * POLICY, WINDOW + POLICY);
    }

    /// 10 pages at each plan are 40 a second and 400 in ten seconds. The balloon is believed for a window, and again
    /// when it has brought what it owed.
    #[test]
    fn balloon_that_crawls_is_good_for_what_it_brings_in_time() {
        let mut rig = Rig::new();
        let brings = |rig: &Rig| rig.progress.brings().map(|pages| pages.0);
        rig.note(3000, 0);
        for plan in 1..16 {
            assert!(rig.note(3000, 10 * plan));
            assert_eq!(brings(&rig), None, "after {plan} plans");
        }
        for plan in 16..100 {
            assert!(rig.note(3000, 10 * plan), "it is alive");
            assert_eq!(brings(&rig), Some(400), "after {plan} plans");
        }
        // It becomes faster, and slower again.
        for plan in 0..8 {
            rig.note(3000, 1000 + 100 * plan);
        }
        assert!(brings(&rig) > Some(1000));
        for _ in 0..40 {
            rig.note(3000, 1700);
        }
        assert_eq!(brings(&rig), Some(0));
        rig.note(3000, 3000);
        assert_eq!(brings(&rig), None, "it has brought all it owed");
        rig.note(4000, 3000);
        assert_eq!(brings(&rig), None);
    }

    /// A target that falls to where a crawling balloon just is and rises again shows nothing new.
    #[test]
    fn pace_is_not_forgotten_because_less_is_asked_for() {
        let mut rig = Rig::new();
        for plan in 0..40 {
            rig.note(3000, 10 * plan);
        }
        for _ in 0..4 {
            rig.note(390, 390);
            rig.note(3000, 390);
            assert_eq!(rig.progress.brings(), Some(Pages(400)));
        }
    }

    #[test]
    fn target_that_moves_the_same_way_gives_no_new_window() {
        let mut rig = Rig::new();
        let mut target = 1000;
        while rig.note(target, 10) {
            target += 100;
            assert!(target < 4000, "it stays alive");
        }
        assert!(rig.note(0, 10), "nothing is owed");
        assert!(!rig.note(1000, 10), "it was asked before");
        assert!(rig.note(1000, 11));
    }

    #[test]
    fn target_that_turns_gives_a_new_window() {
        let mut rig = Rig::new();
        rig.stands(5000, 2000, true);
        assert!(rig.note(0, 2000));
        assert_eq!(rig.stands(0, 2000, true), WINDOW);
        assert!(rig.note(0, 1999));
    }

    #[test]
    fn agent_that_comes_again_begins_anew() {
        let mut rig = Rig::new();
        rig.stands(1000, 0, true);
        assert!(!rig.progress.note(rig.now, false, Pages(1000), Pages(0)));
        assert!(rig.note(1000, 0));
        assert_eq!(rig.stands(1000, 0, true), WINDOW);
    }

    #[test]
    fn machine_that_slept_does_not_hold_it_against_the_agent() {
        let mut rig = Rig::new();
        assert!(rig.note(1000, 0));
        for _ in 0..3 {
            assert!(rig.after(WINDOW + POLICY, 1000, 0));
        }
        assert_eq!(rig.stands(1000, 0, true), WINDOW);
    }

    #[test]
    fn stuck_agent_is_forgiven_at_its_target_after_a_while() {
        for (quiet, alive) in [(FORGIVEN - POLICY, false), (FORGIVEN, true)] {
            let mut rig = Rig::new();
            rig.note(1000, 0);
            rig.stands(1000, 0, true);
            let until = rig.now + quiet;
            while rig.now < until {
                assert!(rig.note(0, 0));
            }
            assert_eq!(rig.note(1000, 0), alive);
        }
    }

    proptest! {
        /// An agent that moves a page when its target changes, and one in each window, is alive at every plan,
        /// whatever the target does and however unevenly the plans come.
        #[test]
        fn agent_that_moves_in_time_is_always_alive(
            plans in prop::collection::vec((1..1000u64, prop::option::weighted(0.1, 0..20_000u64)), 1..400),
            step in 1..3000u64,
            every in 1..3001u64,
        ) {
            let mut rig = Rig::new();
            let (mut target, mut ballooned, mut since) = (0u64, 0u64, 0);
            for (time, new) in plans {
                target = new.unwrap_or(target);
                since += time;
                if since >= every || new.is_some() {
                    since = 0;
                    ballooned = match Way::to(Pages(target), Pages(ballooned)) {
                        Some(Way::Inflate) => target.min(ballooned + step),
                        Some(Way::Deflate) => target.max(ballooned.saturating_sub(step)),
                        None => ballooned,
                    };
                }
                prop_assert!(rig.after(Duration::from_millis(time), target, ballooned));
            }
        }

        /// A dead agent whose target only ever asks for more, or for nothing, is waited for at most
        /// one window in each span after which it is forgiven.
        #[test]
        fn dead_agent_is_hardly_waited_for(
            targets in prop::collection::vec((1..20u32, 0..3000u64), 1..200),
            ballooned in 0..3000u64,
        ) {
            let mut rig = Rig::new();
            let (mut waited, mut passed) = (Duration::ZERO, Duration::ZERO);
            for (plans, target) in targets {
                let target = target.max(ballooned.saturating_sub(SLACK_PAGES));
                for _ in 0..plans {
                    passed += POLICY;
                    if rig.note(target, ballooned) && target > ballooned {
                        waited += POLICY;
                    }
                }
            }
            let windows = passed.as_secs_f64() / FORGIVEN.as_secs_f64() + 1.0;
            prop_assert!(waited.as_secs_f64() <= windows * (WINDOW + POLICY).as_secs_f64());
        }
    }
}
