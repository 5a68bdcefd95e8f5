//! Whose turn it is among workloads that follow each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::tally::Tally;

/// The workloads of a sequence, of which one at a time has its turn.
#[derive(Debug)]
pub(super) struct Turns {
    tallies: Vec<Arc<Tally>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the workload whose turn it is.
    now: usize,
    /// When its turn began.
    began: Instant,
    /// How many threads each workload still has.
    left: Vec<u32>,
}

impl Turns {
    /// The first workload has its turn now. `threads` says how many threads each has.
    pub(super) fn new(tallies: Vec<Arc<Tally>>, threads: Vec<u32>, now: Instant) -> Self {
        if let Some(first) = tallies.first() {
            first.begin(now);
        }
        let state = State {
            now: 0,
            began: now,
            left: threads,
        };
        Self {
            tallies,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the turn of this workload began, if it is its turn.
    pub(super) fn began(&self, number: usize) -> Option<Instant> {
        let state = self.state();
        (state.now == number).then_some(state.began)
    }

    /// Notes the end of a thread. After that of its last thread a workload has had its turn.
    pub(super) fn thread_ended(&self, number: usize) {
        let mut state = self.state();
        state.left[number] -= 1;
        while state.left.get(state.now) == Some(&0) {
            state.now += 1;
            state.began = Instant::now();
            if let Some(tally) = self.tallies.get(state.now) {
                tally.begin(state.began);
            }
        }
    }
}
