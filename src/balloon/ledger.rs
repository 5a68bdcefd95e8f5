//! Taking pages into the balloon and giving them back: moves in the page table.
//!
//! Run by the worker of the VM. A page goes without being read: whatever home it had is dropped, so
//! ballooning a page that was swapped out costs no swap-in.
//!
//! What it costs is the kernel's: 0.8 us and more to unmap and free a page, in holes as long as the
//! runs that the agent names; all that is done here is a twentieth of that. A second thread would
//! not help, because the kernel locks the file for each hole.

use memvisor_guest_agent::protocol::balloon::{PageStatus, StatusRun};

use crate::engine::{EngineError, EngineKind};
use crate::page::{Home, PageGuard};
use crate::remap::{freeze, rehome};
use crate::units::{Gfn, GfnRun};
use crate::vm::Vm;

/// Takes pages, ascending and inside RAM; what became of each.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub fn inflate(vm: &Vm, runs: &[GfnRun]) -> Result<Vec<StatusRun>, EngineError> {
    let mut statuses = Vec::new();
    let (mut resident, mut taken) = (Vec::new(), Vec::new());
    for gfn in runs.iter().flat_map(|run| run.iter()) {
        let status = match vm.try_lock(gfn) {
            None => PageStatus::Busy,
            Some(page) => match page.home() {
                Home::Ballooned => PageStatus::AlreadyLocked,
                home => {
                    let pages = match home {
                        Home::Resident => &mut resident,
                        _ => &mut taken,
                    };
                    pages.push(page);
                    PageStatus::Ok
                }
            },
        };
        push(&mut statuses, gfn, status);
    }
    // With userfaultfd the hole takes the mappings with it, and the next access faults. Without it
    // an open page would be filled by the kernel, behind our back.
    if vm.engine.kind() == EngineKind::Uffd || freeze(vm, resident.iter())? {
        let refilled = resident.iter().filter(|page| page.entry().is_refilled());
        vm.stats.double_paged.add(refilled.count() as u64);
        taken.append(&mut resident);
    } else {
        let refused: Vec<Gfn> = resident.iter().map(PageGuard::gfn).collect();
        statuses = refuse(&statuses, &refused);
    }
    vm.stats.inflated.add(taken.len() as u64);
    let moves = taken.into_iter().map(|page| (page, Home::Ballooned));
    rehome(vm, moves.collect())?;
    Ok(statuses)
}

/// The statuses with `refused` pages, ascending, made busy.
fn refuse(statuses: &[StatusRun], refused: &[Gfn]) -> Vec<StatusRun> {
    let mut changed = Vec::new();
    for StatusRun { run, status } in statuses {
        for gfn in run.iter() {
            let busy = refused.binary_search(&gfn).is_ok();
            push(
                &mut changed,
                gfn,
                if busy { PageStatus::Busy } else { *status },
            );
        }
    }
    changed
}

/// Gives pages back, ascending and inside RAM; what became of each. They read as zeroes.
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

/// Empties the balloon: both sides start from nothing. A page that a fault is just popping leaves
/// the balloon by that.
pub fn release_all(vm: &Vm) {
    for gfn in (0..vm.table.pages()).map(Gfn) {
        if vm.table.entry(gfn).home() == Home::Ballooned {
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
