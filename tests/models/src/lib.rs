//! The protocols of memvisor's atomics, built a second time on loom's atomics: page lock, claim table, budget,
//! frames. The map of free pages takes its words from whoever uses it, and so needs no second build.
//!
//! The files are those that ship. All of them get their atomics from `src/sync.rs`, which takes loom's here
//! (`build.rs` sets `cfg(loom)` for this package alone), and [`sys`] stands for the kernel. The models are in
//! `tests`: each runs a body of two or three threads in every order that the memory model allows, up to a
//! number of preemptions. Shuttle, in the unit tests of the host, covers more threads and longer protocols, but
//! delays no store.

#[path = "../../../src/page/mod.rs"]
pub mod page;
#[path = "../../../src/pool/mod.rs"]
pub mod pool;
#[path = "../../../src/seeded.rs"]
mod seeded;
#[path = "../../../src/sync.rs"]
mod sync;
pub mod sys;
#[path = "../../../src/units.rs"]
pub mod units;

use std::sync::Arc;

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

/// Preemptions of a schedule. One more takes three times as long, and five found nothing that three did not.
const PREEMPTIONS: usize = 4;
/// Bytes of a thread's stack, which holds copies of pages. The stack that loom gives is too small for a few of them.
const STACK: usize = 256 << 10;

/// Runs `body` in every order of its threads with at most `PREEMPTIONS`, or `LOOM_MAX_PREEMPTIONS` if that is set.
pub fn explore(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    let body = Arc::new(body);
    builder.check(move || {
        let body = Arc::clone(&body);
        join(spawn(move || body()));
    });
}

/// Starts a thread of a model.
pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(body).expect("a model has room for it")
}

/// Waits for a thread of a model.
///
/// # Panics
/// When the thread panicked.
pub fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("it ends well")
}
