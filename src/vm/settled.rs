//! Whether the scanner has anything left to do in a VM.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number of faults that is never reached: the VM is not settled.
const NOT: u64 = u64::MAX;

/// A VM is settled when the latest pass of its scanner found nothing new and left nothing to be scanned or
/// merged, and no page has become resident since.
#[derive(Debug)]
pub struct Settled(AtomicU64);

impl Default for Settled {
    fn default() -> Self {
        Self(AtomicU64::new(NOT))
    }
}

impl Settled {
    /// Notes that the VM was settled when it had had `faults` faults; `None`: it is not settled.
    pub fn note(&self, faults: Option<u64>) {
        self.0.store(faults.unwrap_or(NOT), Ordering::Relaxed);
    }

    /// Whether a VM that has had `faults` so far is settled.
    #[must_use]
    pub fn is(&self, faults: u64) -> bool {
        self.0.load(Ordering::Relaxed) == faults
    }
}
