//! Requests for relief: threads of the guest ask, and the agent serves them in rounds.
//!
//! Under pressure many threads ask at once. A round serves all threads that asked before the agent
//! took it, with the sum of their wishes in one message.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memvisor_wire::Doorbell;

#[derive(Debug, Default)]
pub(super) struct ReliefRequests {
    state: Mutex<State>,
    served: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: u64,
    /// Rounds that have been taken.
    taken: u64,
    /// Rounds that have been finished. A wish that came when `taken` was `n` is settled when this is > `n`.
    finished: u64,
    /// Pages freed in all rounds.
    freed: u64,
    closed: bool,
}

impl ReliefRequests {
    /// Waits until a round that includes this wish is finished, at most `timeout`. Returns the pages
    /// freed meanwhile, no matter which thread asked for them.
    pub(super) fn ask(&self, pages: u64, timeout: Duration, bell: &Doorbell) -> u64 {
        let mut state = self.lock();
        if state.closed || pages == 0 {
            return 0;
        }
        state.wanted = state.wanted.saturating_add(pages);
        // The round that is still to be taken: one that is under way was asked before this wish.
        let (round, freed) = (state.taken, state.freed);
        bell.ring();
        let pending = |state: &mut State| state.finished <= round && !state.closed;
        let (state, _) = self
            .served
            .wait_timeout_while(state, timeout, pending)
            .unwrap_or_else(PoisonError::into_inner);
        state.freed - freed
    }

    /// Whether somebody waits for the next round.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().wanted > 0
    }

    /// Begins a round and returns how many pages are wanted in it; `None` if nobody waits. A round must be
    /// [finished](Self::finish).
    pub(super) fn take(&self) -> Option<u64> {
        let mut state = self.lock();
        let wanted = std::mem::take(&mut state.wanted);
        state.taken += u64::from(wanted > 0);
        (wanted > 0).then_some(wanted)
    }

    /// Ends the round: `freed` pages came back.
    pub(super) fn finish(&self, freed: u64) {
        let mut state = self.lock();
        state.finished = state.taken;
        state.freed += freed;
        self.served.notify_all();
    }

    /// Ends all service: threads that wait and threads that ask later get nothing.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.served.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment, so a panic of another thread leaves none half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn wishes_before_a_round_are_summed_and_all_served() {
        let (requests, bell) = (ReliefRequests::default(), Doorbell::new().unwrap());
        thread::scope(|scope| {
            let asks = [3, 4].map(|pages| {
                scope.spawn({
                    let (requests, bell) = (&requests, &bell);
                    move || requests.ask(pages, PATIENCE, bell)
                })
            });
            while requests.lock().wanted < 7 {
                thread::yield_now();
            }
            assert_eq!(requests.take(), Some(7));
            assert_eq!(requests.take(), None);
            requests.finish(5);
            for ask in asks {
                assert_eq!(ask.join().unwrap(), 5);
            }
        });
    }

    #[test]
    fn ask_without_an_answer_returns_after_its_timeout() {
        let (requests, bell) = (ReliefRequests::default(), Doorbell::new().unwrap());
        assert_eq!(requests.ask(3, Duration::from_millis(1), &bell), 0);
        assert!(requests.is_wanted(), "the wish stays");
    }

    #[test]
    fn ask_after_close_returns_at_once() {
        let (requests, bell) = (ReliefRequests::default(), Doorbell::new().unwrap());
        requests.close();
        assert_eq!(requests.ask(3, PATIENCE, &bell), 0);
    }
}
