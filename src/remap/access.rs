//! Changes what the guest may do with pages that stay where they are, and counts what that costs it in VMAs.

use std::cmp::Reverse;
use std::ops::Range;

use crate::engine::{Engine, EngineError, EngineKind};
use crate::page::{Home, PageGuard};
use crate::units::{Gfn, GfnRun, RunsExt, runs_of};
use crate::vm::Vm;

/// Runs are joined over gaps of up to this many unmapped pages, 2 MiB: what one page table of the guest's kernel maps.
pub(crate) const BRIDGE: usize = 512;

/// Makes resident pages, ascending, stand still: from here on the guest waits when it touches them.
/// `false`: the guest's kernel refused at its limit of VMAs. The pages still hold all that they held.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub(crate) fn freeze<'a>(
    vm: &Vm,
    pages: impl Iterator<Item = &'a PageGuard<'a>> + Clone,
) -> Result<bool, EngineError> {
    let runs = runs_of(pages.clone().map(PageGuard::gfn));
    // The freeze may succeed for some of the pages only, so until it is known nothing is claimed about any of them. A
    // fault on a page that is marked open and cannot be accessed would be answered by "try again" for ever; a page that
    // is marked frozen and can be written would lose what is written while it is moved.
    pages.clone().for_each(PageGuard::set_unsure);
    // With userfaultfd a freeze drops page-table entries and keeps the mapping: no VMA changes.
    let changed = match vm.engine.kind() {
        EngineKind::Uffd => 0,
        EngineKind::Mprotect => runs.len(),
    };
    let _change = vm.vmas.change(changed);
    let frozen = match vm.engine.kind() {
        EngineKind::Uffd => vm.engine.freeze(&bridged(vm, &runs)),
        EngineKind::Mprotect => vm.engine.freeze(&runs),
    };
    let frozen = unless_refused(frozen)?;
    if frozen {
        pages.for_each(PageGuard::set_frozen);
    } else {
        vm.stats.vma_refused.add(runs.pages());
    }
    Ok(frozen)
}

/// The runs, joined where the guest has nothing mapped between them.
///
/// With userfaultfd a freeze drops entries of the guest's page tables. Where there are none it does nothing, while
/// each further run is a system call of the guest and interrupts the processors that its threads run on. A page
/// between two runs that the guest brings meanwhile loses its mapping. That can happen to any page, and the next
/// access maps it again.
pub(crate) fn bridged(vm: &Vm, runs: &[GfnRun]) -> Vec<GfnRun> {
    let is_mapped = |gfn: u32| {
        let entry = vm.table.entry(Gfn(gfn));
        match entry.home() {
            Home::Resident => !entry.is_frozen(),
            Home::Shared(_) => true,
            _ => false,
        }
    };
    // Nothing is mapped in the gap, so to freeze it too changes nothing for the guest.
    let is_bridge = |gap: Range<u32>| gap.len() <= BRIDGE && !gap.into_iter().any(is_mapped);
    let mut joined: Vec<GfnRun> = Vec::with_capacity(runs.len());
    for &run in runs {
        match joined.last_mut() {
            Some(last) if is_bridge(last.start.0 + last.count..run.start.0) => {
                last.count = run.start.0 + run.count - last.start.0;
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// Lets the guest access frozen pages, ascending, where that saves it VMAs. `false`: the guest's kernel refused, and
/// faults on the pages are served as usual.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn thaw(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<bool, EngineError> {
    // With userfaultfd there are no VMAs to save: the next access maps the page.
    if vm.engine.kind() == EngineKind::Uffd {
        return Ok(true);
    }
    // As in `freeze`: the command may succeed for some of the pages only.
    pages.iter().for_each(PageGuard::set_unsure);
    command(vm, pages, <dyn Engine>::thaw, |page| page.set_open())
}

/// Makes reads of shared pages, ascending, wait as well. All of them are marked as sampled, even where the guest's
/// kernel refuses, so no page is closed without its mark.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn close(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<(), EngineError> {
    // Marked first: a page that is closed and not marked would be answered by "try again" for ever.
    pages.iter().for_each(|page| page.set_sampled(true));
    command(vm, pages, <dyn Engine>::close, |_| {}).map(drop)
}

/// Lets the guest read closed pages, ascending, and removes their marks. `false`: the guest's kernel refused, and the
/// pages stay marked.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn reveal(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<bool, EngineError> {
    let unmark = |page: &PageGuard<'_>| page.set_sampled(false);
    command(vm, pages, <dyn Engine>::reveal, unmark)
}

/// Has the guest carry out a command, and notes the result in the page table; `false`: the guest's kernel refused.
fn command(
    vm: &Vm,
    pages: &[PageGuard<'_>],
    command: fn(&(dyn Engine + 'static), &[GfnRun]) -> Result<(), EngineError>,
    note: impl FnMut(&PageGuard<'_>),
) -> Result<bool, EngineError> {
    let runs = runs_of(pages.iter().map(PageGuard::gfn));
    let _change = vm.vmas.change(runs.len());
    let done = unless_refused(command(&*vm.engine, &runs))?;
    if done {
        pages.iter().for_each(note);
    }
    Ok(done)
}

pub(super) fn unless_refused(done: Result<(), EngineError>) -> Result<bool, EngineError> {
    match done {
        Ok(()) => Ok(true),
        Err(EngineError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many runs may be remapped that need not be. A run in the middle of a mapping splits it: two more VMAs.
pub(crate) fn room(vm: &Vm) -> usize {
    // A run in the middle of a VMA makes three of one: two more.
    vm.vmas.room(&vm.table) as usize / 2
}

/// Splits `runs` into the longest ones, at most `allowed`, ascending, and the others, which are counted as refused.
pub(crate) fn afford<R>(
    vm: &Vm,
    mut runs: Vec<R>,
    allowed: usize,
    run: impl Fn(&R) -> GfnRun,
) -> (Vec<R>, Vec<R>) {
    if runs.len() <= allowed {
        return (runs, Vec::new());
    }
    // The longest first: a long run saves more memory for the same two VMAs.
    runs.sort_by_key(|it| Reverse(run(it).count));
    let dropped = runs.split_off(allowed);
    let pages = dropped.iter().map(|it| u64::from(run(it).count)).sum();
    vm.stats.vma_refused.add(pages);
    // Back in the order of pages, in which callers join neighbours.
    runs.sort_by_key(|it| run(it).start);
    (runs, dropped)
}
