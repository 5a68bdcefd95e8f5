//! Noting signals.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// A bit for each signal that was noted and has not been taken yet.
static NOTED: AtomicU64 = AtomicU64::new(0);

/// The bit of a signal. There are no more than 64.
const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

extern "C" fn note(signal: libc::c_int) {
    // Relaxed: the interrupted thread sees its own store, and no other memory is published by it.
    NOTED.fetch_or(bit(signal), Ordering::Relaxed);
}

/// From now on, notes `signal` when it is delivered, and lets it end the system call that it interrupts. Returns the
/// previous action.
///
/// # Errors
/// `sigaction(2)`: it is a signal that cannot be caught.
pub(crate) fn note_signal(signal: Signal) -> nix::Result<SigAction> {
    // Without SA_RESTART, because a wait shall end.
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler changes one atomic word, so it may run anywhere, at any time.
    unsafe { sigaction(signal, &action) }
}

/// Restores the action that `signal` had before [`note_signal`].
pub(crate) fn restore_signal(signal: Signal, before: &SigAction) {
    // SAFETY: `before` comes from `sigaction(2)`, so it was fit to be run on this signal.
    let _ = unsafe { sigaction(signal, before) };
}

/// Takes a signal of `signals` that was noted.
pub(crate) fn take_noted(signals: &SigSet) -> Option<Signal> {
    signals.iter().find(|signal| {
        let bit = bit(*signal as libc::c_int);
        // Relaxed: nothing but the bit is handed over.
        NOTED.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    })
}
