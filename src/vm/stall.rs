//! For how long threads of a VM stood still because of the daemon, and why.
//!
//! A guest that does little may be idle, may compute, or may wait for its memory. From outside these look alike, and
//! what a guest waits for says what to improve. The number of faults does not tell: a thousand faults of ten
//! microseconds are nothing, one that waits for ten seconds is an outage. So time is counted, for each [`Cause`]. To
//! add up the time of a fault when it ends would not do: a VM that is blocked for ten seconds would show nothing
//! until it goes on.
//!
//! So the number of threads that stand still now is kept for each cause. Whenever it changes, and whenever somebody
//! asks, each cause is credited with its number of threads times the time since the last change. That is exact for
//! any number of threads and for stalls under way. The VM as a whole *is stalled* while at least one thread is. That
//! time never exceeds the time that has passed, so shares are taken of it, and decisions go by it.
//!
//! *What is seen*: a stall begins when the fault is read. It ends when the thread is woken or, if the thread is to
//! change a mapping, when its `DONE` is read. The time from the access to the read, and from the wake-up to the
//! guest's next instruction, is not seen: two wake-ups, some 10 to 60 us for each fault. A thread that a signal
//! interrupts while it waits in the kernel faults again, and counts once more until its page comes.
//!
//! *What is believed*: threads of an inline guest that serve themselves add up their own time in the claim table. It is
//! an allegation. Of the time claimed between two readings, only so much counts as the guest's threads can have waited
//! together, less what the daemon has seen itself. Which threads waited at the same time is not known, so the VM counts
//! as stalled for all of that time, up to the time that has passed.
//!
//! There is one lock, the innermost, over plain numbers, held for nanoseconds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Vm;
use crate::average::Average;
use crate::page::Urgency;

/// The latest share is the share of the latest whole interval of this length, which is that of esxtop.
const INTERVAL: Duration = Duration::from_secs(5);
/// The time over which the other share is averaged.
const MINUTE: Duration = Duration::from_secs(60);
/// The time over which waiting for evicted pages is averaged: a few plans. A guest that begins to work should have its
/// memory within a second or two. One plan alone would see no more than a handful of faults of a slow disk.
const REFILLS: Duration = Duration::from_secs(1);

/// What a thread of the guest waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It is given a page of zeroes: the page was untouched, zero or ballooned.
    FirstTouch,
    /// Its page is brought back from the compression cache.
    RefillZip,
    /// Its page is brought back from the swap file.
    RefillSwap,
    /// It has written a shared page, which is copied.
    Break,
    /// Its page is there but was closed: to sample it, to see whether it is wanted, or for a move that was given up.
    Open,
    /// The orders of the VM say that it must wait, or that it may not become larger.
    Blocked,
    /// No page of the host is free.
    Memory,
    /// Its page is being moved.
    Busy,
}

const CAUSES: usize = Cause::ALL.len();

impl Cause {
    /// All causes, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::FirstTouch,
        Self::RefillZip,
        Self::RefillSwap,
        Self::Break,
        Self::Open,
        Self::Blocked,
        Self::Memory,
        Self::Busy,
    ];

    /// How urgently a fault with this cause wants memory.
    #[must_use]
    pub const fn urgency(self) -> Urgency {
        match self {
            Self::FirstTouch => Urgency::Touch,
            _ => Urgency::Refill,
        }
    }
}

/// A value for each cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ByCause<T>([T; CAUSES]);

impl<T> std::ops::Index<Cause> for ByCause<T> {
    type Output = T;

    fn index(&self, cause: Cause) -> &T {
        &self.0[cause as usize]
    }
}

impl<T> std::ops::IndexMut<Cause> for ByCause<T> {
    fn index_mut(&mut self, cause: Cause) -> &mut T {
        &mut self.0[cause as usize]
    }
}

impl ByCause<Duration> {
    /// All causes together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.0.iter().sum()
    }
}

/// A thread that stands still, or several that will go on together.
#[derive(Debug)]
#[must_use = "a stall that is forgotten goes on for ever"]
pub struct Stall {
    cause: Cause,
    threads: u32,
}

impl Stall {
    /// What it stands still for.
    #[must_use]
    pub(crate) const fn cause(&self) -> Cause {
        self.cause
    }
}

/// For how long threads of an inline guest stood still since power-on, by their own account and by what they did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claimed {
    /// Microseconds modulo 2^32 of refills from the cache, of breaks, of waiting for one another, of first touches, of
    /// opening frozen pages, and of refills from the swap file.
    pub words: [u32; 6],
    /// How many threads the guest has.
    pub threads: u32,
}

impl Claimed {
    /// The causes that the words are about, in their order.
    const CAUSES: [Cause; 6] = [
        Cause::RefillZip,
        Cause::Break,
        Cause::Busy,
        Cause::FirstTouch,
        Cause::Open,
        Cause::RefillSwap,
    ];
}

/// For how long threads of a VM stood still since power-on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stalled {
    /// The time of all threads, each by itself.
    pub threads: ByCause<Duration>,
    /// The time in which at least one thread stood still.
    pub any: Duration,
    /// `any` as a part of the latest whole interval, 0 to 1; before the first interval has ended, of the time since
    /// power-on.
    pub latest: f64,
    /// The same, averaged over a minute.
    pub minute: f64,
}

/// The stalls of one VM. See the module text.
#[derive(Debug)]
pub struct Stalls(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Everything before this moment is counted.
    at: Instant,
    standing: ByCause<u32>,
    spent: ByCause<Duration>,
    any: Duration,
    /// What the guest had claimed when it was last believed.
    words: [u32; Claimed::CAUSES.len()],
    believed: Mark,
    /// Where the current interval begins.
    begun: Mark,
    latest: Option<f64>,
    minute: Average,
    /// The time of refills that the average has seen, and when it saw it.
    refilled: (Instant, Duration),
    refills: Average,
}

/// What had been counted at some moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    all: Duration,
    any: Duration,
}

impl Stalls {
    /// No thread has stood still by `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let mark = Mark {
            at: now,
            all: Duration::ZERO,
            any: Duration::ZERO,
        };
        Self(Mutex::new(State {
            at: now,
            standing: ByCause::default(),
            spent: ByCause::default(),
            any: Duration::ZERO,
            words: Default::default(),
            believed: mark,
            begun: mark,
            latest: None,
            minute: Average::over(MINUTE),
            refilled: (now, Duration::ZERO),
            refills: Average::over(REFILLS),
        }))
    }

    /// Notes that a thread has stood still since `since`, which may be before the time that is already counted.
    pub fn begin(&self, cause: Cause, since: Instant) -> Stall {
        let mut state = self.state();
        // It is one of several faults that were read together, and has waited while the others were served.
        let before = state.at.saturating_duration_since(since);
        state.spent[cause] += before;
        state.advance(since);
        state.standing[cause] += 1;
        Stall { cause, threads: 1 }
    }

    /// Notes that from `now` on the thread stands still for another cause.
    pub fn change(&self, stall: &mut Stall, cause: Cause, now: Instant) {
        // The usual case: a fault that goes on for the same cause needs no lock.
        if stall.cause == cause {
            return;
        }
        let mut state = self.state();
        state.advance(now);
        state.standing[stall.cause] -= stall.threads;
        state.standing[cause] += stall.threads;
        stall.cause = cause;
    }

    /// Joins `other` to `stall`: from here on it has the same cause and ends together with it.
    #[expect(clippy::needless_pass_by_value, reason = "it goes on as the first")]
    pub fn join(&self, stall: &mut Stall, other: Stall) {
        let mut state = self.state();
        state.standing[other.cause] -= other.threads;
        state.standing[stall.cause] += other.threads;
        stall.threads += other.threads;
    }

    /// Ends a stall.
    #[expect(clippy::needless_pass_by_value, reason = "it is no more")]
    pub fn end(&self, stall: Stall, now: Instant) {
        let mut state = self.state();
        state.advance(now);
        state.standing[stall.cause] -= stall.threads;
    }

    /// What has been counted by `now`. `claimed` is what an inline guest has claimed by then. This must be called at
    /// least every few minutes for such a guest, because its counters wrap.
    #[must_use]
    pub fn so_far(&self, claimed: Option<Claimed>, now: Instant) -> Stalled {
        let mut state = self.state();
        state.advance(now);
        if let Some(claimed) = claimed {
            state.believe(claimed);
        }
        state.note_refills();
        let (passed, share) = state.interval();
        if passed >= INTERVAL {
            state.minute.note(share, passed);
            state.latest = Some(share);
            state.begun = state.mark();
        }
        Stalled {
            threads: state.spent,
            any: state.any,
            latest: state.latest.unwrap_or(share),
            minute: state.minute.mean().unwrap_or(share),
        }
    }

    /// The time in which at least one thread has stood still, and the moment for which that is true: `now`, or later if
    /// something later was noted already.
    #[must_use]
    pub fn stood_still(&self, now: Instant) -> (Duration, Instant) {
        let state = self.state();
        let since = now.saturating_duration_since(state.at);
        let is_stalled = state.standing.0.iter().any(|threads| *threads > 0);
        let more = if is_stalled { since } else { Duration::ZERO };
        (state.any + more, state.at + since)
    }

    /// Microseconds in each second for which threads waited for evicted pages, each thread by itself, on average over
    /// the second before the last call of [`so_far`](Self::so_far).
    #[must_use]
    pub fn refills_us_per_s(&self) -> u64 {
        let mean = self.state().refills.mean().unwrap_or_default();
        u64::try_from(Duration::from_secs_f64(mean).as_micros()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain numbers, which are consistent even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts up to `now`, unless more than that is counted already.
    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        // Times may come out of order, by threads that read the clock before they took the lock: then nothing has
        // passed.
        self.at += passed;
        let mut is_stalled = false;
        for (spent, standing) in self.spent.0.iter_mut().zip(self.standing.0) {
            if standing > 0 {
                *spent += passed * standing;
                is_stalled = true;
            }
        }
        if is_stalled {
            self.any += passed;
        }
    }

    fn mark(&self) -> Mark {
        Mark {
            at: self.at,
            all: self.spent.sum(),
            any: self.any,
        }
    }

    fn note_refills(&mut self) {
        let refilled = self.spent[Cause::RefillZip] + self.spent[Cause::RefillSwap];
        let (at, before) = std::mem::replace(&mut self.refilled, (self.at, refilled));
        let passed = self.at - at;
        if !passed.is_zero() {
            let share = (refilled - before).div_duration_f64(passed);
            self.refills.note(share, passed);
        }
    }

    /// How long the current interval has lasted, and for which part of it the VM was stalled.
    fn interval(&self) -> (Duration, f64) {
        let passed = self.at - self.begun.at;
        let share =
            (self.any - self.begun.any).div_duration_f64(passed.max(Duration::from_nanos(1)));
        (passed, share)
    }

    /// Counts what threads of the guest claim, as far as it can be true: see the module text.
    fn believe(&mut self, claimed: Claimed) {
        let passed = self.at - self.believed.at;
        let seen = self.spent.sum() - self.believed.all;
        let mut room = (passed * claimed.threads).saturating_sub(seen);
        let mut counted = Duration::ZERO;
        for (cause, (now, before)) in Claimed::CAUSES
            .into_iter()
            .zip(claimed.words.into_iter().zip(self.words))
        {
            // Wrapping, because the guest adds up modulo 2^32.
            let said = Duration::from_micros(now.wrapping_sub(before).into()).min(room);
            self.spent[cause] += said;
            room -= said;
            counted += said;
        }
        self.any += counted.min(passed.saturating_sub(self.any - self.believed.any));
        self.words = claimed.words;
        self.believed = self.mark();
    }
}

impl Vm {
    /// For how long its threads stood still by `now`. `threads` says how many an inline guest has. Call it regularly.
    #[must_use]
    pub fn stalled(&self, threads: impl FnOnce() -> u32, now: Instant) -> Stalled {
        let claimed = self.table.claims().map(|claims| Claimed {
            words: claims.stall_times(),
            threads: threads(),
        });
        let stalled = self.stalls.so_far(claimed, now);
        self.refaults.look(&self.stats, &stalled, now);
        stalled
    }

    /// What a fault waits for whose cause was `cause` until a page was [refused](Self::charge) to it.
    #[must_use]
    pub fn refused(&self, cause: Cause) -> Cause {
        if self.may_have(cause.urgency()) {
            Cause::Memory
        } else {
            Cause::Blocked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A VM that was powered on this many seconds ago.
    struct Clock(Instant, Stalls);

    impl Clock {
        fn new() -> Self {
            let start = Instant::now();
            Self(start, Stalls::new(start))
        }

        fn at(&self, seconds: u32) -> Instant {
            self.0 + SECOND * seconds
        }

        fn seen(&self, at: u32) -> Stalled {
            self.1.so_far(None, self.at(at))
        }

        /// Seconds of this cause, of all causes, and in which the VM was stalled.
        fn seconds(&self, cause: Cause, at: u32) -> [u64; 3] {
            let seen = self.seen(at);
            [seen.threads[cause], seen.threads.sum(), seen.any].map(|time| time.as_secs())
        }

        fn believed(&self, said: [u32; 3], threads: u32, at: u32) -> Stalled {
            let mut words = [0; 6];
            words[..3].copy_from_slice(&said);
            let claimed = Claimed { words, threads };
            self.1.so_far(Some(claimed), self.at(at))
        }
    }

    #[test]
    fn stall_under_way_counts_for_what_it_waits_for_now() {
        let clock = Clock::new();
        let mut stall = clock.1.begin(Cause::FirstTouch, clock.at(1));
        assert_eq!(clock.seconds(Cause::FirstTouch, 2), [1, 1, 1]);
        clock.1.change(&mut stall, Cause::Blocked, clock.at(3));
        assert_eq!(clock.seconds(Cause::Blocked, 13), [10, 12, 12]);
        clock.1.change(&mut stall, Cause::FirstTouch, clock.at(14));
        clock.1.end(stall, clock.at(15));
        assert_eq!(clock.seconds(Cause::Blocked, 20), [11, 14, 14]);
        assert_eq!(clock.seconds(Cause::FirstTouch, 20), [3, 14, 14]);
    }

    #[test]
    fn threads_that_overlap_count_each_and_the_vm_once() {
        let clock = Clock::new();
        let first = clock.1.begin(Cause::Memory, clock.at(1));
        let second = clock.1.begin(Cause::RefillSwap, clock.at(3));
        clock.1.end(first, clock.at(5));
        assert_eq!(clock.seconds(Cause::Memory, 6), [4, 7, 5]);
        clock.1.end(second, clock.at(7));
        let third = clock.1.begin(Cause::Memory, clock.at(9));
        clock.1.end(third, clock.at(10));
        assert_eq!(clock.seconds(Cause::Memory, 11), [5, 9, 7]);
    }

    #[test]
    fn joined_stalls_go_on_for_the_cause_of_the_first_and_end_together() {
        let clock = Clock::new();
        let mut first = clock.1.begin(Cause::Memory, clock.at(0));
        let second = clock.1.begin(Cause::Blocked, clock.at(0));
        clock.1.join(&mut first, second);
        assert_eq!(clock.seconds(Cause::Memory, 2), [4, 4, 2]);
        clock.1.change(&mut first, Cause::RefillZip, clock.at(3));
        clock.1.end(first, clock.at(4));
        assert_eq!(clock.seconds(Cause::RefillZip, 9), [2, 8, 4]);
    }

    #[test]
    fn fault_that_waits_for_those_read_with_it_has_waited_since_it_was_read() {
        let clock = Clock::new();
        for end in [2, 3] {
            let stall = clock.1.begin(Cause::RefillSwap, clock.at(1));
            clock.1.end(stall, clock.at(end));
        }
        assert_eq!(clock.seconds(Cause::RefillSwap, 4), [3, 3, 2]);
    }

    /// One thread reads the clock before the fault thread does, and takes the lock after it.
    #[test]
    fn numbers_never_fall_whatever_the_order_in_which_clocks_are_read() {
        let clock = Clock::new();
        let stall = clock.1.begin(Cause::Busy, clock.at(0));
        assert_eq!(clock.seconds(Cause::Busy, 5), [5, 5, 5]);
        clock.1.end(stall, clock.at(4));
        assert_eq!(clock.seconds(Cause::Busy, 3), [5, 5, 5]);
    }

    #[test]
    fn share_is_that_of_the_latest_interval_and_of_a_minute() {
        let clock = Clock::new();
        let stall = clock.1.begin(Cause::Blocked, clock.at(1));
        let young = clock.seen(2);
        assert_eq!((young.latest, young.minute), (0.5, 0.5));
        clock.1.end(stall, clock.at(4));
        let first = clock.seen(5);
        assert_eq!((first.latest, first.minute), (0.6, 0.6));
        assert_eq!(clock.seen(9).latest, 0.6, "the second has not ended");
        let second = clock.seen(10);
        assert_eq!(second.latest, 0.0);
        assert!((0.28..0.3).contains(&second.minute), "{second:?}");
    }

    #[test]
    fn waiting_for_evicted_pages_is_averaged_and_other_waiting_is_not() {
        let clock = Clock::new();
        let refills = [Cause::RefillZip, Cause::RefillSwap].map(|c| clock.1.begin(c, clock.at(0)));
        let touch = clock.1.begin(Cause::FirstTouch, clock.at(0));
        assert_eq!(clock.1.refills_us_per_s(), 0, "nobody has looked");
        for second in 1..=100 {
            let _ = clock.seen(second);
            assert_eq!(
                clock.1.refills_us_per_s(),
                2_000_000,
                "two of three threads"
            );
        }
        for stall in refills.into_iter().chain([touch]) {
            clock.1.end(stall, clock.at(100));
        }
        let _ = clock.seen(101);
        let left = clock.1.refills_us_per_s();
        assert!((730_000..740_000).contains(&left), "{left} is not 2 s / e");
    }

    #[test]
    fn claims_of_an_inline_guest_count_by_cause_and_wrap() {
        let clock = Clock::new();
        let seen = clock.believed([400_000, 30, 2], 1, 1);
        let counted = [Cause::RefillZip, Cause::Break, Cause::Busy]
            .map(|cause| seen.threads[cause].as_micros());
        assert_eq!(counted, [400_000, 30, 2]);
        assert_eq!(seen.any.as_micros(), 400_032);
        let before = clock.believed([u32::MAX, 30, 2], 9999, 2).threads.sum();
        let after = clock.believed([9, 30, 2], 9999, 3).threads.sum();
        assert_eq!((after - before).as_micros(), 10);
    }

    #[test]
    fn lies_of_an_inline_guest_are_cut_to_the_time_that_its_threads_had() {
        let clock = Clock::new();
        let seen = clock.believed([u32::MAX; 3], 2, 3);
        assert_eq!((seen.threads.sum(), seen.any), (SECOND * 6, SECOND * 3));
        assert_eq!(seen.latest, 1.0);
        // What the daemon itself has seen leaves no room to lie about.
        let mut stall = clock.1.begin(Cause::Memory, clock.at(3));
        let other = clock.1.begin(Cause::Memory, clock.at(3));
        clock.1.join(&mut stall, other);
        let seen = clock.believed([0; 3], 2, 5);
        assert_eq!((seen.threads.sum(), seen.any), (SECOND * 10, SECOND * 5));
        assert_eq!(clock.believed([0; 3], 0, 5), seen, "nothing new");
        clock.1.end(stall, clock.at(5));
    }
}
