//! Faults in a row: the pages behind them are given before they are asked for.
//!
//! A fault costs two wake-ups, of the daemon and of the guest's thread, and on an idle machine each of
//! them is dearer than everything else together. A guest that touches page after page is going to
//! touch the next ones too. So the granule of a fault grows with the length of the row ([`Rows`]), and is one
//! page again for whatever is not a row. Memory that is short is for pages that somebody asks for.
//!
//! With userfaultfd the daemon puts these pages in place and nobody need know. Without it the faulting thread must open
//! them, and does so by one command with the page that it has asked for.
//!
//! A page that comes from the swap file costs the disk a read, and that hardly longer for eight pages
//! than for one. They were written side by side if they were evicted together, as neighbours are; then
//! one read brings them back.

use memvisor_guest_agent::rows::Rows;

use super::resolve::{Access, FaultError, Given, Outcome, fill, note_touch, resolve, resolve_row};
use crate::engine::{Content, EngineKind};
use crate::page::{Home, PageGuard, Urgency};
use crate::swap::SlotRun;
use crate::units::{Gfn, PageBuf};
use crate::vm::Vm;

/// The most pages given ahead, 64 KiB: what a guest stops short of is found zero and taken back.
const MOST: u32 = 15;

/// First touches are given ahead while at least so large a part of the budget is free: an eighth.
const FREE_PART: u64 = 8;
/// Pages that came back are, while so large a part is free beside the reserve: where pages leave, an
/// eighth seldom is.
const FREE_PART_TO_COME_BACK: u64 = 64;

/// The latest rows of faults of one VM.
#[derive(Debug)]
pub(crate) struct Ahead(Rows);

impl Default for Ahead {
    fn default() -> Self {
        Self(Rows::new(MOST))
    }
}

impl Ahead {
    /// Serves a fault, and gives pages behind it if it is one of a row.
    ///
    /// # Errors
    /// [`FaultError`]: the guest cannot go on.
    pub(crate) fn resolve(
        &mut self,
        vm: &Vm,
        gfn: Gfn,
        access: Access,
    ) -> Result<Outcome, FaultError> {
        if !vm.table.contains(gfn) {
            return resolve(vm, gfn, access);
        }
        let home = vm.table.entry(gfn).home();
        if !may_give(vm, home) {
            return resolve(vm, gfn, access);
        }
        let touched = self.0.touched(gfn);
        let mut given = match home {
            Home::Swapped(_) => bring_swapped(vm, gfn, touched.ahead())?,
            // Before the page itself is given: once its thread runs it asks for them.
            _ if vm.engine.kind() == EngineKind::Uffd => {
                give_alike(vm, gfn, home, touched.ahead())?
            }
            _ => touched.ahead(),
        };
        let outcome = resolve_row(vm, gfn, access, given)?;
        if vm.engine.kind() == EngineKind::Mprotect {
            // Only what its thread opens is there for it.
            given = match &outcome {
                Outcome::Ask(_, pending) => pending.behind(gfn),
                _ => 0,
            };
        }
        self.0.gave(touched, given);
        Ok(outcome)
    }
}

/// Whether pages of this home are worth giving ahead now.
fn may_give(vm: &Vm, home: Home) -> bool {
    let (free, most) = (vm.budget.free().0, u64::from(MOST));
    let is_below_ceiling = vm.held().0.saturating_add(most) < vm.orders.ceiling().0;
    is_below_ceiling
        && match home {
            Home::Untouched => free >= vm.budget.total().0 / FREE_PART,
            Home::Compressed(_) | Home::Swapped(_) => {
                free >= vm.budget.reserve().0 + vm.budget.total().0 / FREE_PART_TO_COME_BACK
            }
            _ => false,
        }
}

/// Gives up to `count` pages behind `gfn` that have a home like its `home`; how many.
fn give_alike(vm: &Vm, gfn: Gfn, home: Home, count: u32) -> Result<u32, FaultError> {
    for step in 1..=count {
        let next = gfn
            .checked_add(step)
            .filter(|next| vm.table.contains(*next));
        let alike = next.filter(|next| vm.table.entry(*next).home().kind() == home.kind());
        let served = match alike {
            Some(next) => matches!(resolve(vm, next, Access::Any)?, Outcome::Served),
            None => false,
        };
        if !served {
            return Ok(step - 1);
        }
    }
    Ok(count)
}

/// Brings the swapped page `gfn` and up to `more` pages behind it with one read, as far as they lie side by
/// side in the swap file; how many it brought beside `gfn`. None if there is only one, which the fault
/// brings itself.
///
/// # Errors
/// [`FaultError`]: the guest cannot go on.
fn bring_swapped(vm: &Vm, gfn: Gfn, more: u32) -> Result<u32, FaultError> {
    let mut pages: Vec<PageGuard<'_>> = Vec::new();
    let mut run: Option<SlotRun> = None;
    for next in (0..=more).map_while(|step| gfn.checked_add(step)) {
        let page = Some(next).filter(|next| vm.table.contains(*next));
        let Some(page) = page.and_then(|next| vm.try_lock(next)) else {
            break;
        };
        match (page.home(), &mut run) {
            (Home::Swapped(start), None) => run = Some(SlotRun { start, len: 1 }),
            (Home::Swapped(slot), Some(run)) if slot.0 == run.start.0 + run.len => run.len += 1,
            _ => break,
        }
        pages.push(page);
    }
    let Some(run) = run.filter(|run| run.len > 1) else {
        return Ok(0);
    };
    let mut contents = vec![PageBuf::zeroed(); pages.len()];
    if vm.swap.read_run(run, &mut contents).is_err() {
        // The page that is asked for may be whole, and if it is not, its own fault says so.
        return Ok(0);
    }
    let mut brought = 0;
    // The page that is asked for comes last: once it is there its thread goes on.
    for (page, content) in pages.into_iter().zip(&contents).rev() {
        let counter = &vm.stats.refill_swap;
        let given = fill(vm, page, Urgency::Refill, counter, |buffer| {
            buffer.0.copy_from_slice(&content.0);
            Ok(Content::Bytes(buffer))
        })?;
        let Given::Ready(page, _) = given else { break };
        if page.gfn() == gfn {
            note_touch(vm, &page);
        } else {
            page.set_sampled(false);
            brought += 1;
        }
    }
    Ok(brought)
}
