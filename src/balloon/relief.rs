//! Relief: a guest that is short of memory itself gets pages of its balloon back at once.
//!
//! The host takes pages because it is short, so it wants again whatever it gives back. Lowering the
//! target once leads to a swing: the guest takes its pages, the policy asks for them a moment later, the
//! guest pushes other pages out to give these, needs the others, and asks again. Both sides pay for each
//! turn, and the swing never ends while the host is short and the guest needs what it has.
//!
//! So relief is a *ceiling* on the balloon, which holds for a time:
//! - The ceiling is what the balloon holds when the guest asks, less what the guest asks for. (Counted from
//!   the target, relief would give nothing while a balloon is still growing towards it.) When the guest asks
//!   again while the ceiling holds, the ceiling falls further and its time begins anew.
//! - The policy takes the ceiling as the most that the balloon may hold. What it cannot get from this balloon it
//!   takes from other VMs or, if this VM holds more than its part, by compression and swap. These choose
//!   worse than the guest would, but the guest has just said that it has no choice left.
//! - The ceiling holds for [`HOLD`]. A guest that asks again within [`MEMORY`] after it ended seems to need the
//!   pages: this time the ceiling holds twice as long, and so on up to [`HOLD_MAX`]. So a guest
//!   that needs its memory for good loses it seven times, then once in eleven minutes, while a guest that
//!   had a bad moment gives it back after ten seconds. Asking again *while* the ceiling holds does not double the
//!   time: a guest that allocates a lot asks many times a second.
//!
//! A host in the hard or low state gives no relief ([`Relief`] is not asked): it would have to take as many
//! pages from this guest or another at the same moment. The guest then pages by itself, to its own swap
//! disk. A guest that asks without need gains nothing: its balloon gets smaller, and the host
//! swaps its pages instead.

use std::time::{Duration, Instant};

use crate::units::Pages;

/// How long relief holds at first.
const HOLD: Duration = Duration::from_secs(10);
/// The longest time for which relief holds without being asked for again: `HOLD` doubled six times.
const HOLD_MAX: Duration = Duration::from_secs(640);
/// Relief that is asked for again within this time after it ended was too short.
const MEMORY: Duration = HOLD_MAX;

#[derive(Clone, Copy, Debug)]
struct Given {
    ceiling: Pages,
    hold: Duration,
    until: Instant,
}

/// The relief of one VM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relief(Option<Given>);

impl Relief {
    /// Notes that the guest asks for `pages` of the `ballooned` pages that its balloon holds.
    pub fn ask(&mut self, now: Instant, ballooned: Pages, pages: Pages) {
        let wanted = ballooned.saturating_sub(pages);
        let (ceiling, hold) = match self.0 {
            Some(given) if now < given.until => (given.ceiling.min(wanted), given.hold),
            Some(given) if now < given.until + MEMORY => (wanted, (given.hold * 2).min(HOLD_MAX)),
            _ => (wanted, HOLD),
        };
        self.0 = Some(Given {
            ceiling,
            hold,
            until: now + hold,
        });
    }

    /// The most pages that the balloon may hold now; `None` while no relief holds.
    #[must_use]
    pub fn ceiling(&self, now: Instant) -> Option<Pages> {
        let given = self.0.filter(|given| now < given.until);
        given.map(|given| given.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn ceiling_is_counted_from_what_the_balloon_holds_and_falls_when_asked_again() {
        let start = Instant::now();
        let mut relief = Relief::default();
        assert_eq!(relief.ceiling(start), None);
        relief.ask(start, Pages(1000), Pages(256));
        assert_eq!(relief.ceiling(start), Some(Pages(744)));
        relief.ask(after(start, 9), Pages(744), Pages(256));
        assert_eq!(relief.ceiling(after(start, 9)), Some(Pages(488)));
        relief.ask(after(start, 9), Pages(600), Pages(10));
        assert_eq!(
            relief.ceiling(after(start, 18)),
            Some(Pages(488)),
            "it never rises"
        );
        assert_eq!(relief.ceiling(after(start, 19)), None);
    }

    #[test]
    fn relief_of_more_than_the_balloon_is_all_of_it() {
        let start = Instant::now();
        let mut relief = Relief::default();
        relief.ask(start, Pages(100), Pages(u64::MAX));
        assert_eq!(relief.ceiling(start), Some(Pages(0)));
    }

    #[test]
    fn hold_doubles_for_who_comes_back_and_is_forgotten_in_the_end() {
        let mut now = Instant::now();
        let mut relief = Relief::default();
        for hold in [10, 20, 40, 80, 160, 320, 640, 640] {
            relief.ask(now, Pages(100), Pages(1));
            assert!(relief.ceiling(after(now, hold - 1)).is_some());
            now = after(now, hold);
            assert_eq!(relief.ceiling(now), None, "{hold} s");
            now = after(now, 5);
        }
        now = after(now, MEMORY.as_secs());
        relief.ask(now, Pages(100), Pages(1));
        assert_eq!(relief.ceiling(after(now, 10)), None);
    }

    /// A guest that needs `need` of its `size` pages for good, on a host that is short all the
    /// time and wants `wanted` of them. Time passes by the second.
    struct Swing {
        size: u64,
        need: u64,
        wanted: u64,
        ballooned: u64,
        relief: Relief,
        now: Instant,
    }

    impl Swing {
        /// How often the guest had to ask in this many seconds.
        fn run(&mut self, seconds: u64) -> u32 {
            let mut asked = 0;
            for _ in 0..seconds {
                self.now = after(self.now, 1);
                let ceiling = self.relief.ceiling(self.now);
                let target = ceiling.map_or(self.wanted, |ceiling| ceiling.0.min(self.wanted));
                self.ballooned = match self.ballooned {
                    held if held < target => target.min(held + 2048),
                    _ => target,
                };
                let mut asks = 0;
                while self.size - self.ballooned < self.need {
                    self.relief.ask(self.now, Pages(self.ballooned), Pages(256));
                    self.ballooned = self.relief.ceiling(self.now).expect("just given").0;
                    asks = 1;
                }
                asked += asks;
            }
            asked
        }
    }

    proptest! {
        /// The swing dies down: however much is wanted and needed, the guest has to ask a few times only,
        /// and in the second hour six times at most.
        #[test]
        fn guest_that_needs_its_memory_is_left_in_peace(
            size in 1000..100_000u64,
            need in 1..100u64,
            wanted in 1..100u64,
        ) {
            let start = Instant::now();
            let mut swing = Swing {
                size,
                need: size * need / 100,
                wanted: size * wanted / 100,
                ballooned: 0,
                relief: Relief::default(),
                now: start,
            };
            let needs = swing.size - swing.wanted < swing.need;
            let first = swing.run(3600);
            let second = swing.run(3600);
            // The balloon takes up to `size / 2048` seconds to grow back each time, and the guest may ask meanwhile.
            prop_assert!(first <= 14, "{first} times in the first hour");
            prop_assert!(second <= 6, "{second} times in the second hour");
            prop_assert_eq!(first > 0, needs);
        }
    }
}
