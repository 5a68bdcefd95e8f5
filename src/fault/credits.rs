//! How much memory a guest that serves some of its faults itself holds in advance.
//!
//! A page that a guest holds in advance is a page that no other guest can have. A fault that finds no credit asks
//! the daemon, as every fault of other guests does. So a guest holds few pages at first. The number doubles each
//! time they have been used up, and all unused ones are taken back when few were used for a while or the VM must wait.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use memvisor_wire::claims::CREDITS;

use crate::page::Home;
use crate::units::Gfn;
use crate::vm::{Cause, Vm};

use super::resolve::{Access, cause};

/// A guest holds one in so many of its pages at first.
const FIRST_PART: u32 = 512;
/// Bounds for that number.
const FIRST: RangeInclusive<u32> = 16..=128;
/// A guest holds at most one of this many of the pages that first touches may take, because others touch pages too, and
/// never more than the table has credits. Where memory is short it still holds as many as at first: to ask once
/// takes 26 us of a processor, as much as two pages that it brings by itself.
const PART: u64 = 8;
/// How long held pages may lie unused.
const REST: Duration = Duration::from_millis(250);
/// How much later a guest that holds nothing is checked.
const IDLE: Duration = Duration::from_secs(1);

/// How many a VM with so many pages holds at first.
pub(super) fn first(pages: u32) -> u32 {
    (pages / FIRST_PART).clamp(*FIRST.start(), *FIRST.end())
}

/// The credits of one VM; belongs to its fault thread.
#[derive(Debug)]
pub(super) struct Credits {
    want: u32,
    /// How many credits the guest had used when they were last topped up.
    used: u64,
    /// How many it had used when a check was last due.
    rested: u64,
    due: Instant,
}

impl Credits {
    /// Those of a VM with so many pages. Nothing is held yet.
    pub(super) fn new(pages: u32, now: Instant) -> Self {
        Self {
            want: first(pages),
            used: 0,
            rested: 0,
            due: now + REST,
        }
    }

    /// Whether the guest asked for this page only because it had no credit.
    pub(super) fn were_missing(vm: &Vm, gfn: Gfn, access: Access) -> bool {
        vm.table.claims().is_some()
            && cause(vm, gfn, access) != Cause::Open
            // Pages of the balloon are never offered: the guest has to ask for them in any case.
            && vm.table.entry(gfn).home() != Home::Ballooned
    }

    /// Tops the guest's credits up, to more than before if most of those were used.
    pub(super) fn top_up(&mut self, vm: &Vm, now: Instant) {
        // Credits count as used only once the pages that the guest has brought with them are settled.
        vm.settle_done();
        let used = vm.stats.inline();
        if let Some(claims) = vm.table.claims()
            && claims.held() == 0
        {
            // The next check is put off here. For a guest at its limit, which comes here often, it would never be due.
            claims.find_forged();
            (self.rested, self.due) = (used, now + REST);
        }
        // Half, because a guest asks before its last credit: at three quarters of them (`Claims::grant`).
        if used - self.used >= u64::from(self.want / 2) {
            let most = (vm.budget.spare().0 / PART).min(u64::from(CREDITS));
            let most = u32::try_from(most).unwrap_or(CREDITS);
            self.want = (self.want * 2).min(most).max(first(vm.params.pages));
        }
        self.used = used;
        vm.grant_credits(self.want);
    }

    /// How long it may take until [`tick`](Self::tick) is due; `None` for a guest that asks for everything.
    pub(super) fn due(&self, vm: &Vm, now: Instant) -> Option<Duration> {
        let claims = vm.table.claims()?;
        // A guest that holds nothing is checked too, for credits that it may have forged.
        let later = if claims.held() > 0 {
            Duration::ZERO
        } else {
            IDLE
        };
        Some(self.due.saturating_duration_since(now) + later)
    }

    /// Takes back what the guest holds if the VM must wait, or if a check is due and little was used since the last
    /// one.
    pub(super) fn tick(&mut self, vm: &Vm, now: Instant) {
        let Some(claims) = vm.table.claims() else {
            return;
        };
        let is_due = now >= self.due;
        if !is_due && !vm.is_blocked() {
            return;
        }
        claims.find_forged();
        vm.settle_done();
        let used = vm.stats.inline();
        let is_idle = used - self.rested < u64::from(self.want / 2);
        if vm.is_blocked() || is_idle {
            vm.take_back_credits();
            self.want = first(vm.params.pages);
        }
        // Looks for a blocked VM come whenever something happens, and must not shorten the time over which use is
        // measured.
        if is_due {
            self.rested = used;
            self.due = now + REST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_holds_a_part_of_its_pages_at_first() {
        let mib = |mib: u32| first(mib * 256);
        assert_eq!([1, 32, 64, 320].map(mib), [16, 16, 32, 128]);
    }
}
