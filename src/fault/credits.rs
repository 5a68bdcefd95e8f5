//! How much memory a guest that serves some of its faults itself holds in advance.
//!
//! A page that it holds is a page that nobody else has, and a fault that finds none asks the daemon, as
//! every fault of other guests does. So what a guest holds begins small, doubles each time it has been
//! used up, and is taken back whole when little of it was used for a while or the VM must wait.

use std::time::{Duration, Instant};

use memvisor_guest_agent::protocol::claims::CREDITS;

use crate::page::Home;
use crate::units::Gfn;
use crate::vm::{Cause, Vm};

use super::resolve::{Access, cause};

/// Pages that a guest holds at first.
pub(super) const FIRST: u32 = 16;
/// A guest holds at most this part of what faults may take, because others touch pages too, and never more than the
/// table has credits. Where faults wait for each page it holds [`FIRST`], so that they come once for so many.
const PART: u64 = 8;
/// How long pages that are held may lie unused.
const REST: Duration = Duration::from_millis(250);
/// How much longer a guest that holds nothing is left alone.
const IDLE: Duration = Duration::from_secs(1);

/// The credits of one VM; belongs to its fault thread.
#[derive(Debug)]
pub(super) struct Credits {
    want: u32,
    /// What it had used when it was looked at last.
    used: u64,
    /// The same, when it last rested.
    rested: u64,
    due: Instant,
}

impl Credits {
    /// Nothing is held yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            want: FIRST,
            used: 0,
            rested: 0,
            due: now + REST,
        }
    }

    /// Whether the guest would not have asked for this if it had had a credit.
    pub(super) fn were_missing(vm: &Vm, gfn: Gfn, access: Access) -> bool {
        vm.table.claims().is_some()
            && cause(vm, gfn, access) != Cause::Open
            // A page of the balloon has to be asked for in any case.
            && vm.table.entry(gfn).home() != Home::Ballooned
    }

    /// Gives the guest what it needs, more than before if that was used up.
    pub(super) fn top_up(&mut self, vm: &Vm, now: Instant) {
        vm.settle_done();
        let used = vm.stats.inline();
        if let Some(claims) = vm.table.claims()
            && claims.held() == 0
        {
            // A guest at its limit comes here often and never holds one, so that the look is never due.
            claims.look_for_forged();
            (self.rested, self.due) = (used, now + REST);
        }
        if used - self.used >= u64::from(self.want / 2) {
            let most = (vm.budget.spare().0 / PART).min(u64::from(CREDITS));
            let most = u32::try_from(most).unwrap_or(CREDITS);
            self.want = (self.want * 2).min(most).max(FIRST);
        }
        self.used = used;
        vm.grant_credits(self.want);
    }

    /// How long it may take until [`look`](Self::look) is due; `None` for a guest that asks for everything.
    pub(super) fn due(&self, vm: &Vm, now: Instant) -> Option<Duration> {
        let claims = vm.table.claims()?;
        // Who holds nothing is looked at for what it may have made itself.
        let later = if claims.held() > 0 {
            Duration::ZERO
        } else {
            IDLE
        };
        Some(self.due.saturating_duration_since(now) + later)
    }

    /// Takes back what the guest holds if the VM must wait, or, when a look is due, if it was hardly used since the last.
    pub(super) fn look(&mut self, vm: &Vm, now: Instant) {
        let Some(claims) = vm.table.claims() else {
            return;
        };
        let is_due = now >= self.due;
        if !is_due && !vm.is_blocked() {
            return;
        }
        claims.look_for_forged();
        vm.settle_done();
        let used = vm.stats.inline();
        let is_idle = used - self.rested < u64::from(self.want / 2);
        if vm.is_blocked() || is_idle {
            vm.take_back_credits();
            self.want = FIRST;
        }
        if is_due {
            self.rested = used;
            self.due = now + REST;
        }
    }
}
