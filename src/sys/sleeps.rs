//! Ends system calls in which a thread would sleep.
//!
//! Some calls cannot be told not to wait. A signal interrupts them, and if one comes just before the call the
//! next one does, so they come in regular intervals. The signal is `SIGURG`: nothing here uses it, and one that
//! strays does no harm.

use std::cell::RefCell;
use std::time::Duration;

use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// How long a sleep may last. Only a guest that plays with us makes a thread sleep, so what counts is that
/// threads that have nothing to do are seldom woken.
const INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static TIMER: RefCell<Option<Timer>> = const { RefCell::new(None) };
}

extern "C" fn ignore(_: libc::c_int) {}

/// From now on, and for as long as this thread lives, no system call in which it sleeps takes longer than
/// about a second: it fails with `EINTR`, if it is one that signals interrupt.
///
/// # Errors
/// What `sigaction(2)`, `timer_create(2)` or `timer_settime(2)` says.
pub(super) fn end_sleeps() -> nix::Result<()> {
    TIMER.with_borrow_mut(|timer| {
        if timer.is_none() {
            *timer = Some(start()?);
        }
        Ok(())
    })
}

fn start() -> nix::Result<Timer> {
    // Without SA_RESTART: the call shall fail.
    let action = SigAction::new(
        SigHandler::Handler(ignore),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing at all, so it may run anywhere.
    unsafe { sigaction(Signal::SIGURG, &action) }?;
    let to_this_thread = SigevNotify::SigevThreadId {
        signal: Signal::SIGURG,
        thread_id: gettid().as_raw(),
        si_value: 0,
    };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(to_this_thread))?;
    let each = Expiration::Interval(TimeSpec::from_duration(INTERVAL));
    timer.set(each, TimerSetTimeFlags::empty())?;
    Ok(timer)
}
