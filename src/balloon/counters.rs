//! What the balloon session of a VM has seen, for telemetry.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one VM since it was powered on. A guest can drive each of them as fast as it likes,
/// which is why they are counters and not log lines. No counter depends on another, so `Relaxed` is enough.
#[derive(Debug, Default)]
pub struct BalloonCounters {
    /// Pages taken into the balloon.
    pub inflated_pages: AtomicU64,
    /// Pages given back by `UNLOCK`.
    pub deflated_pages: AtomicU64,
    /// Pages of `LOCK` and `UNLOCK` that were answered with anything but `OK`.
    pub refused_pages: AtomicU64,
    /// Pages outside RAM that the agent named: it lies or is broken.
    pub invalid_pages: AtomicU64,
    /// Pages that `REPORT` named and the host dropped.
    pub reported_pages: AtomicU64,
    /// Messages of the agent.
    pub messages_in: AtomicU64,
    /// Messages to the agent.
    pub messages_out: AtomicU64,
    /// Bytes of these messages, both ways.
    pub bytes: AtomicU64,
    /// Resets after a popped page.
    pub resets: AtomicU64,
    /// Requests for relief.
    pub reliefs: AtomicU64,
    /// Times the agent's idea of its memory or balloon differed from the page table.
    pub mismatches: AtomicU64,
    /// Times the session stopped reading because the agent had asked for too much at once.
    pub throttles: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, number: u64) {
    // Relaxed: the counters are shown, and nothing is decided by them.
    counter.fetch_add(number, Ordering::Relaxed);
}
