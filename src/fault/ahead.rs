//! Sequential faults: how many of the pages behind a fault are given with it, before the guest asks for them.
//!
//! A fault costs two wake-ups, one of the daemon and one of the guest's thread. On an idle machine each of them
//! costs more than everything else together. A guest that touches page after page is going to touch the next
//! ones too. So a fault brings more pages the longer its stream is ([`Streams`]), and one page when it is not part of a
//! stream. When memory is short, it is kept for pages that somebody asks for.

use memvisor_wire::streams::Streams;

use super::resolve::{Access, FaultError, Outcome, resolve};
use crate::page::Home;
use crate::units::Gfn;
use crate::vm::Vm;

/// Serves a fault, and gives pages behind it if it is part of a stream.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn resolve_in_stream(
    streams: &Streams,
    vm: &Vm,
    gfn: Gfn,
    access: Access,
) -> Result<Outcome, FaultError> {
    if !may_give(vm, vm.table.entry(gfn).home()) {
        return resolve(vm, gfn, access, 0);
    }
    let touched = streams.touched(gfn);
    let outcome = resolve(vm, gfn, access, touched.ahead)?;
    streams.gave(touched, outcome.behind(gfn));
    Ok(outcome)
}

/// Whether pages of this home are worth giving ahead now.
fn may_give(vm: &Vm, home: Home) -> bool {
    let is_worth_it = matches!(
        home,
        Home::Untouched | Home::Compressed(_) | Home::Swapped(_)
    );
    is_worth_it && vm.has_room()
}
