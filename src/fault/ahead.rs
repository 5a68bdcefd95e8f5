//! Faults in a row: how many pages behind them are given before they are asked for.
//!
//! A fault costs two wake-ups, of the daemon and of the guest's thread, and on an idle machine each of
//! them is dearer than everything else together. A guest that touches page after page is going to
//! touch the next ones too. So the granule of a fault grows with the length of the row ([`Rows`]), and is one
//! page again for whatever is not a row. Memory that is short is for pages that somebody asks for.

use memvisor_guest_agent::rows::Rows;

use super::resolve::{Access, FaultError, Outcome, resolve};
use crate::page::Home;
use crate::units::Gfn;
use crate::vm::Vm;

/// The most pages given ahead, 64 KiB: what a guest stops short of is found zero and taken back.
pub(super) const MOST: u32 = 15;

/// Pages are given ahead while so large a part of the budget is free beside the reserve. Reclaim keeps more than that
/// free as long as it keeps up with what guests ask for.
const FREE_PART: u64 = 256;

/// Serves a fault, and gives pages behind it if it is one of a row.
///
/// # Errors
/// As [`resolve`].
pub(super) fn resolve_in_row(
    rows: &Rows,
    vm: &Vm,
    gfn: Gfn,
    access: Access,
) -> Result<Outcome, FaultError> {
    if !may_give(vm, vm.table.entry(gfn).home()) {
        return resolve(vm, gfn, access, 0);
    }
    let touched = rows.touched(gfn);
    let outcome = resolve(vm, gfn, access, touched.ahead)?;
    rows.gave(touched, outcome.behind(gfn));
    Ok(outcome)
}

/// Whether pages of this home are worth giving ahead now.
fn may_give(vm: &Vm, home: Home) -> bool {
    let is_below_ceiling = vm.held().0.saturating_add(MOST.into()) < vm.orders.ceiling().0;
    let is_free = vm.budget.spare().0 >= vm.budget.total().0 / FREE_PART;
    let is_worth_it = matches!(
        home,
        Home::Untouched | Home::Compressed(_) | Home::Swapped(_)
    );
    is_worth_it && is_free && is_below_ceiling
}
