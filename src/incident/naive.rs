//! The controllers with which the incidents happened, as laws. Nobody can choose them on a host: they are here to show
//! that an incident happens. Bounds hold for them too.

use crate::policy::law::{Law, Memory, Seen, Step};
use crate::units::Pages;

/// Takes three quarters of every guest, whatever it does.
#[derive(Debug)]
pub(super) struct Shrink;

impl Law for Shrink {
    fn name(&self) -> &'static str {
        "shrink"
    }

    fn about(&self) -> &'static str {
        "takes three quarters of every guest, whatever it does"
    }

    fn step(&self, seen: &Seen<'_>, _: &mut Memory) -> Step {
        Step::at_once(Pages(seen.vm.size.0 / 4 * 3))
    }
}

/// Takes all that an idle guest has free, holds it for 98 s, gives it back, and begins anew.
#[derive(Debug)]
pub(super) struct Idle;

/// How long it holds what it took, and how long it then waits, in milliseconds.
const HELD_MS: u64 = 98_000;
const WAITS_MS: u64 = 22_000;

impl Law for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn about(&self) -> &'static str {
        "takes all that a guest has free at the moment, for 98 s"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        memory.waited_ms = (memory.waited_ms + seen.elapsed_ms) % (HELD_MS + WAITS_MS);
        if memory.waited_ms >= HELD_MS {
            memory.sum = 0;
            return Step::at_once(Pages(0));
        }
        let free = seen.vm.balloon_free.unwrap_or(seen.vm.ballooned);
        // What it saw free when it began; what the guest needs later does not count.
        memory.sum = memory.sum.max(i64::try_from(free.0).unwrap_or(i64::MAX));
        Step::at_once(Pages(memory.sum.unsigned_abs()))
    }
}

/// Gives back a 24th of the guest at a time: computed from what the balloon holds, and no more than was asked for before.
#[derive(Debug)]
pub(super) struct FromActual;

impl Law for FromActual {
    fn name(&self) -> &'static str {
        "from-actual"
    }

    fn about(&self) -> &'static str {
        "gives back a little less than the balloon holds, once the guest is short"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        let before = seen.before(memory);
        let free = seen.vm.balloon_free.unwrap_or_default();
        let is_short = free.saturating_sub(seen.vm.ballooned).0 < seen.vm.size.0 / 20;
        if !is_short {
            return Step::at_once(before);
        }
        let step = seen.vm.size.0 / 24;
        Step::at_once(before.min(seen.vm.ballooned.saturating_sub(Pages(step))))
    }
}

/// Shrinks every guest to its least while less than a fifth of the host is free.
#[derive(Debug)]
pub(super) struct AllToMinimum;

impl Law for AllToMinimum {
    fn name(&self) -> &'static str {
        "all-to-minimum"
    }

    fn about(&self) -> &'static str {
        "shrinks every guest to its least while the host has less than a fifth free"
    }

    fn step(&self, seen: &Seen<'_>, _: &mut Memory) -> Step {
        let is_full = seen.host_free.0 < seen.budget.0 / 5;
        Step::at_once(if is_full { seen.most } else { seen.least })
    }
}

/// Holds what an operator has set once.
#[derive(Debug)]
pub(super) struct Fixed;

impl Law for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn about(&self) -> &'static str {
        "holds what was set once, and leaves it to the guest to deflate on OOM"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        Step::at_once(seen.before(memory))
    }
}
