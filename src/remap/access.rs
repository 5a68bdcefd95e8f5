//! What the guest may do with pages where they are, and what that costs it in VMAs.

use std::cmp::Reverse;
use std::ops::Range;

use crate::engine::{Engine, EngineError, EngineKind};
use crate::page::{Home, PageGuard};
use crate::units::{Gfn, GfnRun, RunsExt, runs_of};
use crate::vm::Vm;

/// Runs are joined over so many pages that are not mapped, 2 MiB: what one page table of the guest's kernel maps.
pub(crate) const BRIDGE: usize = 512;

/// Makes resident pages, ascending, stand still: from here on their guest waits when it touches them.
/// `false`: the guest's kernel refused, at its limit of VMAs; the pages are as good as before.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub(crate) fn freeze<'a>(
    vm: &Vm,
    pages: impl Iterator<Item = &'a PageGuard<'a>> + Clone,
) -> Result<bool, EngineError> {
    let runs = runs_of(pages.clone().map(PageGuard::gfn));
    // Part of it may succeed. A page marked open that the guest may not access would have its fault answered by
    // "try again" for ever; one marked frozen that the guest may write would lose what is written while it leaves.
    pages.clone().for_each(PageGuard::set_unsure);
    // With userfaultfd the mapping stays, without entries.
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

/// The runs, joined where the guest has nothing mapped in between.
///
/// With userfaultfd a freeze drops entries of the guest's page tables. Where there are none there is nothing to drop, but
/// each run more is a system call of the guest, which interrupts the processors that its threads run on. A page in between
/// that its guest brings meanwhile loses its mapping, as any page may to the guest's kernel: the next access maps it again.
pub(crate) fn bridged(vm: &Vm, runs: &[GfnRun]) -> Vec<GfnRun> {
    let is_mapped = |gfn: u32| {
        let entry = vm.table.entry(Gfn(gfn));
        match entry.home() {
            Home::Resident => !entry.is_frozen(),
            Home::Shared(_) => true,
            _ => false,
        }
    };
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

/// Lets the guest access frozen pages, ascending, as far as that saves it VMAs. `false`: its kernel refused, and
/// their faults are served as ever.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn thaw(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<bool, EngineError> {
    // With userfaultfd there are no VMAs to save: the next access maps the page.
    if vm.engine.kind() == EngineKind::Uffd {
        return Ok(true);
    }
    // Part of it may succeed.
    pages.iter().for_each(PageGuard::set_unsure);
    command(vm, pages, <dyn Engine>::thaw, |page| page.set_open())
}

/// Makes reads of shared pages, ascending, wait too. They are marked as sampled, whatever part of it the guest's kernel
/// refuses: a page that is closed is known to be.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn close(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<(), EngineError> {
    pages.iter().for_each(|page| page.set_sampled(true));
    command(vm, pages, <dyn Engine>::close, |_| {}).map(drop)
}

/// Lets the guest read closed pages, ascending, and takes their marks away. `false`: its kernel refused, and the pages
/// stay marked.
///
/// # Errors
/// As [`freeze`].
pub(crate) fn reveal(vm: &Vm, pages: &[PageGuard<'_>]) -> Result<bool, EngineError> {
    let unmark = |page: &PageGuard<'_>| page.set_sampled(false);
    command(vm, pages, <dyn Engine>::reveal, unmark)
}

/// Has the guest carry out a command, and notes in the page table what is so then; `false`: its kernel refused.
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

fn unless_refused(done: Result<(), EngineError>) -> Result<bool, EngineError> {
    match done {
        Ok(()) => Ok(true),
        Err(EngineError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many runs may be remapped by choice. One in the middle of a mapping splits it: two more VMAs.
pub(crate) fn room(vm: &Vm) -> usize {
    vm.vmas.room(&vm.table) as usize / 2
}

/// The longest of `runs`, at most so many, ascending, and the others, which are counted as refused.
pub(crate) fn afford<R>(
    vm: &Vm,
    mut runs: Vec<R>,
    allowed: usize,
    run: impl Fn(&R) -> GfnRun,
) -> (Vec<R>, Vec<R>) {
    if runs.len() <= allowed {
        return (runs, Vec::new());
    }
    runs.sort_by_key(|it| Reverse(run(it).count));
    let dropped = runs.split_off(allowed);
    let pages = dropped.iter().map(|it| u64::from(run(it).count)).sum();
    vm.stats.vma_refused.add(pages);
    runs.sort_by_key(|it| run(it).start);
    (runs, dropped)
}
