//! Moving pages to homes in which their guest has nothing mapped, and freeing what they leave behind.

use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::seeded::Seeded;
use crate::units::{Gfn, runs_of};
use crate::vm::Vm;

/// Moves locked pages to other homes, which have their content already or need none, and frees what the old ones held.
/// None may become shared ([`place`](super::place)), and those that are resident must be frozen, unless a hole takes the
/// guest's mapping with it and the guest has given the page up.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone. If that is so before the first page has moved, none does,
/// and the new homes are given back.
pub(crate) fn rehome(vm: &Vm, mut moves: Vec<(PageGuard<'_>, Home)>) -> Result<(), EngineError> {
    moves.sort_unstable_by_key(|(page, _)| page.gfn());
    let is_shared = |(page, _): &&(PageGuard<'_>, Home)| matches!(page.home(), Home::Shared(_));
    let shared = runs_of(moves.iter().filter(is_shared).map(|(page, _)| page.gfn()));
    let _change = vm.vmas.change(shared.len());
    // The guest must not see a frame any more when its reference ends: the frame may be used again.
    if !shared.is_empty()
        && let Err(error) = vm.engine.map_private(&shared)
    {
        return Err(give_up(vm, &moves, error));
    }
    let left: Vec<(Gfn, Home)> = moves
        .iter()
        .map(|(page, home)| move_to(page, *home))
        .collect();
    give_back(vm, left)
}

/// Frees the homes that pages were to move to, which stay where they are because of an error. Returned is why the VM
/// cannot go on.
pub(crate) fn give_up(vm: &Vm, moves: &[(PageGuard<'_>, Home)], error: EngineError) -> EngineError {
    let homes = moves.iter().map(|(page, home)| (page.gfn(), *home));
    let lost = Seeded::LostCharge.is_sown();
    give_back(vm, homes.filter(|_| !lost))
        .err()
        .unwrap_or(error)
}

/// Moves a page; what it has left.
pub(super) fn move_to(page: &PageGuard<'_>, home: Home) -> (Gfn, Home) {
    let old = page.home();
    page.set_home(home);
    (page.gfn(), old)
}

/// So many holes are punched one after the other more cheaply if the daemon maps none of the pages.
const FORGET: usize = 4;

/// Frees what `homes` of locked pages hold: homes that they have left, or did not move to.
///
/// # Errors
/// [`EngineError::Kernel`]: some of it may be freed.
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
    // Together: whoever waits for memory is called once.
    vm.budget.give(punched);
    vm.call_barred();
    done
}
