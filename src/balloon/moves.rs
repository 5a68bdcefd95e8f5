//! Takes pages into the balloon and gives them back: moves in the page table, made by the worker of the VM.
//!
//! A page is ballooned without being read: whatever home it had is dropped, so ballooning a page that
//! was swapped out costs no swap-in.
//!
//! Most of the cost of a page with memory is the kernel's: 0.8 us and more to unmap and free it, in holes as long as
//! the runs that the agent names. The work done here takes a twentieth of that. A second thread would
//! not help, because the kernel locks the file for each hole. A page without memory costs only what is done here, so
//! it moves by itself, without a batch.

use memvisor_wire::balloon::{PageStatus, StatusRun, push_status};

use crate::engine::{EngineError, EngineKind};
use crate::page::{Home, Moved, PageGuard};
use crate::remap::{break_under, freeze, rehome};
use crate::units::{Gfn, GfnRun, runs_of};
use crate::vm::Vm;

/// Takes pages, ascending and inside RAM, into the balloon. Returns what became of each.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub fn inflate(vm: &Vm, runs: &[GfnRun]) -> Result<Vec<StatusRun>, EngineError> {
    let mut statuses = Vec::new();
    // Pages that hold something stay locked, so that one command freezes all of them.
    let mut held = Vec::new();
    let mut empty = 0;
    break_under(vm, runs)?;
    for run in runs {
        vm.table.balloon_empty(
            *run,
            |gfn| vm.try_lock(gfn),
            |gfn, moved| {
                let status = match moved {
                    Moved::Yes => {
                        empty += 1;
                        PageStatus::Ok
                    }
                    Moved::No(page) if page.home() == Home::Ballooned => PageStatus::AlreadyLocked,
                    // Its large page could not be broken just now.
                    Moved::No(_) if vm.large.holds(gfn) => PageStatus::Busy,
                    Moved::No(page) => {
                        held.push(page);
                        PageStatus::Ok
                    }
                    Moved::Busy => PageStatus::Busy,
                };
                push(&mut statuses, gfn, status);
            },
        );
    }
    vm.stats.inflated.add(empty);
    if empty > 0 {
        // The VM holds fewer pages, and may be below its ceiling now.
        vm.wake_barred();
    }
    let left = take(vm, held)?;
    if !left.is_empty() {
        refuse(&mut statuses, &left);
    }
    Ok(statuses)
}

/// Takes locked pages that hold something. Returns those that the guest's kernel does not let go: resident pages that
/// it refuses to freeze.
fn take(vm: &Vm, held: Vec<PageGuard<'_>>) -> Result<Vec<Gfn>, EngineError> {
    let is_resident = |page: &&PageGuard<'_>| page.home() == Home::Resident;
    // With userfaultfd the hole takes the mappings with it, and the next access faults. Without userfaultfd
    // the kernel would fill the hole at an access to an open page, behind our back.
    let is_frozen =
        vm.engine.kind() == EngineKind::Uffd || freeze(vm, held.iter().filter(is_resident))?;
    let stays = |page: &PageGuard<'_>| !is_frozen && is_resident(&page);
    let left = held
        .iter()
        .filter(|page| stays(page))
        .map(PageGuard::gfn)
        .collect();
    let taken = held.into_iter().filter(|page| !stays(page));
    let moves: Vec<_> = taken.map(|page| (page, Home::Ballooned)).collect();
    // Before they move, which takes the mark away.
    let is_refilled = |page: &PageGuard<'_>| is_resident(&page) && page.entry().is_refilled();
    let refilled = moves.iter().filter(|(page, _)| is_refilled(page));
    vm.stats.double_paged.add(refilled.count() as u64);
    let inflated = moves.len() as u64;
    rehome(vm, moves)?;
    vm.stats.inflated.add(inflated);
    Ok(left)
}

/// Says BUSY of the pages of `left`, which ascend.
fn refuse(statuses: &mut Vec<StatusRun>, left: &[Gfn]) {
    let before = std::mem::take(statuses);
    for part in before {
        for gfn in part.run.iter() {
            let stays = left.binary_search(&gfn).is_ok();
            push(
                statuses,
                gfn,
                if stays { PageStatus::Busy } else { part.status },
            );
        }
    }
}

/// Gives pages, ascending and inside RAM, back to the guest; they read as zeroes. Returns what became of each.
#[must_use]
pub fn deflate(vm: &Vm, runs: &[GfnRun]) -> Vec<StatusRun> {
    let mut statuses = Vec::new();
    let mut deflated = 0;
    for run in runs {
        vm.table.unballoon(
            *run,
            |gfn| vm.try_lock(gfn),
            |gfn, moved| {
                let status = match moved {
                    Moved::Yes => {
                        deflated += 1;
                        PageStatus::Ok
                    }
                    Moved::No(_) => PageStatus::NotLocked,
                    Moved::Busy => PageStatus::Busy,
                };
                push(&mut statuses, gfn, status);
            },
        );
    }
    vm.stats.deflated.add(deflated);
    statuses
}

/// Empties the balloon, so that both sides start from nothing. A busy page is skipped: the fault that pops it takes it
/// out of the balloon.
pub fn release_all(vm: &Vm) {
    let all = (0..vm.table.pages()).map(Gfn);
    let held = all.filter(|gfn| vm.table.entry(*gfn).home() == Home::Ballooned);
    // A page that is busy is being brought by a fault, and leaves the balloon that way.
    let _ = deflate(vm, &runs_of(held));
}

fn push(statuses: &mut Vec<StatusRun>, gfn: Gfn, status: PageStatus) {
    let run = GfnRun::single(gfn);
    push_status(statuses, StatusRun { run, status });
}
