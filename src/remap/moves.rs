//! Moves pages to homes in which the guest has no frame mapped, and frees what the pages leave behind.

use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::seeded::Seeded;
use crate::units::{Gfn, runs_of};
use crate::vm::Vm;

/// Moves locked pages to other homes, which already have the content or need none, and frees what the old homes held.
/// No page may become shared here ([`place`](super::place) does that). Resident pages must be frozen, except pages that
/// the guest has given up, where the hole takes the guest's mapping with it.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone. If that is found before the first page has moved, no page
/// moves, and the new homes are given back.
pub(crate) fn rehome(vm: &Vm, mut moves: Vec<(PageGuard<'_>, Home)>) -> Result<(), EngineError> {
    moves.sort_unstable_by_key(|(page, _)| page.gfn());
    let is_shared = |(page, _): &&(PageGuard<'_>, Home)| matches!(page.home(), Home::Shared(_));
    let shared = runs_of(moves.iter().filter(is_shared).map(|(page, _)| page.gfn()));
    let _change = vm.vmas.change(shared.len());
    // Before any reference ends: the guest must not see a frame after that, because the frame may be used again.
    if !shared.is_empty()
        && let Err(error) = vm.engine.map_private(&shared)
    {
        return Err(give_up(vm, &moves, error));
    }
    let left: Vec<(Gfn, Home)> = moves
        .iter()
        // All homes change before any memory is freed: whoever gets it must find no page that still names it.
        .map(|(page, home)| move_to(page, *home))
        .collect();
    give_back(vm, left)
}

/// Frees the new homes of pages that stay where they are because of `error`. Returns why the VM cannot go on.
pub(crate) fn give_up(vm: &Vm, moves: &[(PageGuard<'_>, Home)], error: EngineError) -> EngineError {
    let homes = moves.iter().map(|(page, home)| (page.gfn(), *home));
    let lost = Seeded::LostCharge.is_sown();
    give_back(vm, homes.filter(|_| !lost))
        .err()
        .unwrap_or(error)
}

/// Moves a page, and returns the home that it has left.
pub(super) fn move_to(page: &PageGuard<'_>, home: Home) -> (Gfn, Home) {
    let old = page.home();
    page.set_home(home);
    (page.gfn(), old)
}

/// More holes than this are punched more cheaply if the daemon's own mapping of the pages is dropped first.
const FORGET: usize = 4;

/// Frees what `homes` of locked pages hold: homes that the pages have left, or were to move to and did not.
///
/// # Errors
/// [`EngineError::Kernel`]: only a part may have been freed.
pub(crate) fn give_back(
    vm: &Vm,
    homes: impl IntoIterator<Item = (Gfn, Home)>,
) -> Result<(), EngineError> {
    let mut resident = Vec::new();
    for (gfn, home) in homes {
        match home {
            _ if Seeded::KeptSlot.is_sown() && vm.table.entry(gfn).home() == Home::Ballooned => {}
            // In runs: each hole costs a system call.
            Home::Resident => resident.push(gfn),
            home => vm.release(home),
        }
    }
    resident.sort_unstable();
    let runs = runs_of(resident);
    if runs.len() > FORGET {
        vm.engine.forget();
    }
    let mut punched = 0;
    let done = runs.into_iter().try_for_each(|run| {
        vm.engine.punch(run)?;
        punched += u64::from(run.count);
        Ok(())
    });
    // All pages together, so that faults that wait for memory are called once.
    vm.budget.give(punched);
    // Even if nothing came free for others: the VM holds fewer pages, and may be below its ceiling now.
    vm.wake_barred();
    done
}
