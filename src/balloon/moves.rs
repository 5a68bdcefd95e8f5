//! Takes pages into the balloon and gives them back: moves in the page table, made by the worker of the VM.
//!
//! A page is ballooned without being read: whatever home it had is dropped, so ballooning a page that
//! was swapped out costs no swap-in.
//!
//! Most of the cost is the kernel's: 0.8 us and more to unmap and free a page, in holes as long as the
//! runs that the agent names. The work done here takes a twentieth of that. A second thread would
//! not help, because the kernel locks the file for each hole.

use memvisor_wire::balloon::{PageStatus, StatusRun};

use crate::engine::{EngineError, EngineKind};
use crate::page::{Home, PageGuard};
use crate::remap::{freeze, rehome};
use crate::units::{Gfn, GfnRun};
use crate::vm::Vm;

/// Takes pages, ascending and inside RAM, into the balloon. Returns what became of each.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub fn inflate(vm: &Vm, runs: &[GfnRun]) -> Result<Vec<StatusRun>, EngineError> {
    let gfns = || runs.iter().flat_map(|run| run.iter());
    // All are locked first, so that one command freezes all of them.
    let pages: Vec<Option<PageGuard<'_>>> = gfns().map(|gfn| vm.try_lock(gfn)).collect();
    let is_resident = |page: &&PageGuard<'_>| page.home() == Home::Resident;
    let resident = pages.iter().flatten().filter(is_resident);
    // With userfaultfd the hole takes the mappings with it, and the next access faults. Without userfaultfd
    // the kernel would fill the hole at an access to an open page, behind our back.
    let is_frozen = vm.engine.kind() == EngineKind::Uffd || freeze(vm, resident)?;
    let (mut statuses, mut moves) = (Vec::new(), Vec::new());
    for (gfn, page) in gfns().zip(pages) {
        let status = match page.as_ref().map(PageGuard::home) {
            None => PageStatus::Busy,
            Some(Home::Ballooned) => PageStatus::AlreadyLocked,
            Some(Home::Resident) if !is_frozen => PageStatus::Busy,
            Some(_) => PageStatus::Ok,
        };
        push(&mut statuses, gfn, status);
        let taken = page.filter(|_| status == PageStatus::Ok);
        moves.extend(taken.map(|page| (page, Home::Ballooned)));
    }
    // Before they move, which takes the mark away.
    let is_refilled = |page: &PageGuard<'_>| is_resident(&page) && page.entry().is_refilled();
    let refilled = moves.iter().filter(|(page, _)| is_refilled(page));
    vm.stats.double_paged.add(refilled.count() as u64);
    let inflated = moves.len() as u64;
    rehome(vm, moves)?;
    vm.stats.inflated.add(inflated);
    Ok(statuses)
}

/// Gives pages, ascending and inside RAM, back to the guest; they read as zeroes. Returns what became of each.
#[must_use]
pub fn deflate(vm: &Vm, runs: &[GfnRun]) -> Vec<StatusRun> {
    let mut statuses = Vec::new();
    for gfn in runs.iter().flat_map(|run| run.iter()) {
        push(&mut statuses, gfn, deflate_page(vm, gfn));
    }
    statuses
}

fn deflate_page(vm: &Vm, gfn: Gfn) -> PageStatus {
    let Some(page) = vm.try_lock(gfn) else {
        return PageStatus::Busy;
    };
    if page.home() != Home::Ballooned {
        return PageStatus::NotLocked;
    }
    page.set_home(Home::Untouched);
    vm.stats.deflated.one();
    PageStatus::Ok
}

/// Empties the balloon, so that both sides start from nothing. A busy page is skipped: the fault that pops it takes it
/// out of the balloon.
pub fn release_all(vm: &Vm) {
    for gfn in (0..vm.table.pages()).map(Gfn) {
        if vm.table.entry(gfn).home() == Home::Ballooned {
            // A page that is busy is being brought by a fault, and leaves the balloon that way.
            let _ = deflate_page(vm, gfn);
        }
    }
}

fn push(statuses: &mut Vec<StatusRun>, gfn: Gfn, status: PageStatus) {
    match statuses.last_mut() {
        Some(last) if last.status == status && last.run.end() == u64::from(gfn.0) => {
            last.run.count += 1;
        }
        _ => statuses.push(StatusRun {
            run: GfnRun::single(gfn),
            status,
        }),
    }
}
