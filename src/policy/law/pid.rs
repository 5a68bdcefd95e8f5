//! A PID controller of what the VM has above its part.
//!
//! What a balloon is for is free memory of the host, so the controlled quantity is how far that is below the watermark.
//! Pressure inside the guest would be the other choice; but a guest that is idle has none, and it is the idle guest that
//! the host wants to take from. One number for the whole host would leave open whose balloon is to move. So each VM has
//! an error of its own:
//!
//! ```text
//! e(t)   = pages of the VM with content - its target by division, no less than - headroom
//! target = P e(t) + I integral of e dt + D de/dt
//! ```
//!
//! Where memory is short, targets by division add up to all that may be held, so the errors add up to what the host lacks:
//! watermark less free memory, and what was evicted for want of it. Evicted pages count in every state: if they did only
//! while the host is short, each eviction would end the error, and the balloon would be given back. The law closes the loop by what is *seen to be missing*. It asks for no more than that,
//! where ESX's law asks at once for all that the VM must never hold; the price is time, where a balloon takes pages first
//! that cost nothing.
//!
//! - *No windup.* The integral stays between the bounds of the target, and does not grow while the balloon is behind its
//!   target: a stuck balloon would make it ask for ever more. It falls whatever the balloon does. If it waited for the
//!   balloon there, a release that got stuck would stay stuck.
//! - *No undoing.* While pages are missing the target does not fall, and while the VM may have some back it does not rise.
//!   An error shrinks because the balloon grows; a target that shrank with it would never be reached.
//! - *No twitching.* An error of less than a 1024th of the VM counts as none: then the target stays as it is, and the
//!   integral takes over what the other terms held.
//! - *The derivative* is of the error smoothed over a second, and only asks for more: it anticipates a guest that grows.
//! - A balloon is given back no faster than by a headroom's error. Otherwise a VM that may have all would be given all in
//!   one step, fill it, and lose it again.
//!
//! All of it is whole numbers, in thousandths of a page, so that the same snapshot gives the same plan everywhere.

use super::super::{fair, percent_of};
use super::{Law, Memory, Seen, Step};
use crate::units::Pages;

/// Thousandths in a page.
const MILLI: i64 = 1000;
/// The time over which the error is smoothed for its derivative, in milliseconds.
const SMOOTHED_MS: i64 = 1000;
/// Of a VM's size, one part in so many is the error that counts as none.
const DEAD_BAND: u64 = 1024;
/// In a second a target moves by no more than this part of the VM's size, in %.
const PACE_PERCENT: u32 = 50;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Pid;

/// `milli * percent / 100`, without overflow.
fn times(milli: i64, percent: u32) -> i64 {
    let product = i128::from(milli) * i128::from(percent) / 100;
    saturated(product)
}

fn saturated(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

fn milli(pages: Pages) -> i64 {
    i64::try_from(pages.0).map_or(i64::MAX, |pages| pages.saturating_mul(MILLI))
}

/// The error, in thousandths of a page.
fn error(seen: &Seen<'_>) -> i64 {
    let wanted = milli(seen.wanted());
    let error = wanted.saturating_sub(milli(seen.part.target));
    // A VM that may hold more than it does wants a part of its balloon back, not all that it could be given.
    let headroom = milli(fair::headroom(seen.vm, seen.config));
    let error = error.max(-headroom);
    if error.abs() <= milli(dead_band(seen.vm.size)) {
        0
    } else {
        error
    }
}

fn dead_band(size: Pages) -> Pages {
    Pages(size.0 / DEAD_BAND)
}

/// By how much the smoothed error rises, in thousandths of a page a second, at least 0. Takes note of the error.
fn slope(error: i64, passed_ms: i64, memory: &mut Memory) -> i64 {
    let away = i128::from(error) - i128::from(memory.last);
    let near = away * i128::from(passed_ms) / i128::from(SMOOTHED_MS.saturating_add(passed_ms));
    memory.last = memory.last.saturating_add(saturated(near));
    saturated(away * 1000 / i128::from(SMOOTHED_MS)).max(0)
}

impl Law for Pid {
    fn name(&self) -> &'static str {
        "pid"
    }

    fn about(&self) -> &'static str {
        "by a PID controller of what the VM holds above its part"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        let config = seen.config;
        let before = seen.before(memory);
        let error = error(seen);
        if memory.target.is_none() {
            memory.last = error;
        }
        let passed = i64::try_from(seen.elapsed_ms).unwrap_or(i64::MAX);
        let slope = slope(error, passed, memory);
        let at_rest = memory.target.is_none() || error == 0;
        if at_rest {
            // Without a bump: what the other terms held until now is the integral's.
            memory.sum = milli(before);
        }
        let proportional = times(error, config.pid_proportional_percent);
        if error > 0 {
            // The error shrinks because the balloon grows. What the proportional term loses by that is the integral's.
            let tracked = milli(before).saturating_sub(proportional);
            memory.sum = memory.sum.max(tracked);
        }
        // The balloon has brought what it was asked for, and it was asked for all that is missing.
        let arrived = before.saturating_sub(seen.vm.ballooned) <= dead_band(seen.vm.size)
            && milli(before) >= memory.sum.saturating_add(proportional);
        if error < 0 || arrived {
            let grown = i128::from(times(error, config.pid_integral_percent));
            let grown = saturated(grown * i128::from(passed) / 1000);
            memory.sum = memory.sum.saturating_add(grown);
        }
        memory.sum = memory.sum.clamp(milli(seen.least), milli(seen.most));
        let target = memory
            .sum
            .saturating_add(proportional)
            .saturating_add(times(slope, config.pid_derivative_percent));
        let target = Pages(u64::try_from(target / MILLI).unwrap_or(0));
        Step {
            target: match error.signum() {
                1 => target.max(before),
                -1 => target.min(before),
                _ => before,
            },
            pace: percent_of(seen.vm.size, PACE_PERCENT).0.max(1),
        }
    }
}
