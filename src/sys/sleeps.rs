//! Ends system calls in which a thread would sleep.
//!
//! Some calls cannot be told not to wait, but a signal interrupts them. A signal that comes just before the call is
//! lost, so signals come at regular intervals: the next one interrupts the call. The signal is `SIGURG`: nothing
//! else here uses it, and a stray one does no harm.

use std::cell::RefCell;
use std::time::Duration;

use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// How long a sleep may last. Only a guest that plays tricks makes a thread sleep, so it matters more that
/// idle threads are seldom woken.
const INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static TIMER: RefCell<Option<Timer>> = const { RefCell::new(None) };
}

extern "C" fn ignore(_: libc::c_int) {}

/// From now on, and for as long as this thread lives, system calls that signals can interrupt do not sleep for longer
/// than about a second: they fail with `EINTR`.
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
    // Without SA_RESTART, so that the interrupted call fails.
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
