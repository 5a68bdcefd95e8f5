//! The second half of sharing: pages that stand still and are known to equal frames are mapped.

use std::cmp::Reverse;

use crate::engine::{EngineError, EngineKind, SharedRun};
use crate::page::{Home, PageGuard};
use crate::pool::FrameRef;
use crate::units::{FrameId, Gfn, GfnRun, RunsExt, runs_of};
use crate::vm::Vm;

/// A reference to a frame, given back unless a page takes it over.
#[derive(Debug)]
pub(crate) struct FrameHold<'a> {
    vm: &'a Vm,
    frame: FrameId,
}

impl<'a> FrameHold<'a> {
    /// Takes over a reference of the pool: from here on its end is charged to the budget.
    pub(crate) fn new(vm: &'a Vm, frame: FrameRef<'_>) -> Self {
        Self {
            vm,
            frame: frame.keep(),
        }
    }

    /// The frame whose content has this digest, unless the VM may not share.
    pub(crate) fn find(vm: &'a Vm, digest: u64) -> Option<Self> {
        if !vm.is_sharing() {
            return None;
        }
        vm.pool()
            .lookup_frame(digest)
            .map(|frame| Self::new(vm, frame))
    }

    pub(crate) const fn frame(&self) -> FrameId {
        self.frame
    }

    /// A guest whose session ended may see the frame until it is dead.
    fn abandon(self) {
        self.vm.abandon_frame(self.frame);
        self.taken_over();
    }

    /// Somebody else, mostly the page table, has the reference now.
    fn taken_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for FrameHold<'_> {
    fn drop(&mut self) {
        self.vm.release_frame(self.frame);
    }
}

/// A frozen page and a frame with equal bytes, or a page that holds nothing and the frame that it shall share.
#[derive(Debug)]
pub(crate) struct Match<'a> {
    pub(crate) page: PageGuard<'a>,
    pub(crate) hold: FrameHold<'a>,
}

/// Makes locked resident pages stand still: from here on their guest waits when it touches them.
/// `false`: the guest's kernel refused, at its limit of VMAs; the pages are as good as before.
pub(crate) fn freeze<'a>(
    vm: &Vm,
    pages: impl Iterator<Item = &'a PageGuard<'a>> + Clone,
) -> Result<bool, EngineError> {
    // Before the freeze, so that whatever part of it succeeds, a page that the guest may not access
    // is never marked open: its fault would be answered by "try again" for ever.
    pages.clone().for_each(|page| page.set_open(false));
    let runs = runs_of(pages.map(PageGuard::gfn));
    vm.vmas.note(if vm.engine.kind() == EngineKind::Mprotect {
        runs.len()
    } else {
        0
    });
    match vm.engine.freeze(&runs) {
        Ok(()) => Ok(true),
        Err(EngineError::Refused { .. }) => {
            vm.stats.vma_refused.add(runs.pages());
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Maps frames over the pages that equal them, ascending, as far as the budget of VMAs goes.
///
/// The pages that were mapped are [`Home::Shared`], the memory of those that were resident is given back and
/// their locks are dropped; the pages that were not are returned, frozen and locked as they came.
pub(crate) fn place<'a>(
    vm: &'a Vm,
    matches: Vec<Match<'a>>,
) -> Result<Vec<PageGuard<'a>>, EngineError> {
    let (chosen, mut left) = choose(vm, matches);
    let runs: Vec<SharedRun> = chosen.iter().map(|run| run.shared).collect();
    vm.vmas.note(runs.len());
    let done = match vm.engine.map_shared(&runs) {
        Ok(done) => done,
        Err(error) => {
            let matches = chosen.into_iter().flat_map(|run| run.matches);
            matches.for_each(|matched| matched.hold.abandon());
            return Err(error);
        }
    };
    let (mut mapped, mut resident) = (Vec::new(), Vec::new());
    for (index, run) in chosen.into_iter().enumerate() {
        for Match { page, hold } in run.matches {
            if index < done {
                if page.home() == Home::Resident {
                    resident.push(page.gfn());
                }
                page.set_home(Home::Shared(hold.frame()));
                hold.taken_over();
                mapped.push(page);
            } else {
                left.push(page);
            }
        }
    }
    give_back(vm, resident.into_iter())?;
    // Who waited in the kernel for a page reads the frame now.
    for run in runs_of(mapped.iter().map(PageGuard::gfn)) {
        vm.engine.wake(run);
    }
    Ok(left)
}

/// Punches the memory of pages that have left RAM and gives it back to the budget.
pub(crate) fn give_back(vm: &Vm, pages: impl Iterator<Item = Gfn>) -> Result<(), EngineError> {
    let mut gfns: Vec<Gfn> = pages.collect();
    gfns.sort_unstable();
    for run in runs_of(gfns) {
        vm.engine.punch(run)?;
        vm.budget.give(u64::from(run.count));
    }
    Ok(())
}

#[derive(Debug)]
struct Run<'a> {
    shared: SharedRun,
    matches: Vec<Match<'a>>,
}

/// Joins matches to runs and drops the shortest if not all fit the budget of VMAs: sharing one long
/// run saves as much as many short ones and costs a fraction.
fn choose<'a>(vm: &'a Vm, matches: Vec<Match<'a>>) -> (Vec<Run<'a>>, Vec<PageGuard<'a>>) {
    let mut runs = join(matches);
    // A run in the middle of a mapping splits it: two more VMAs.
    let allowed = vm.vmas.room(&vm.table) as usize / 2;
    let mut left = Vec::new();
    if runs.len() > allowed {
        runs.sort_by_key(|run| Reverse(run.shared.run.count));
        for run in runs.drain(allowed..) {
            vm.stats.vma_refused.add(u64::from(run.shared.run.count));
            left.extend(run.matches.into_iter().map(|Match { page, .. }| page));
        }
        runs.sort_by_key(|run| run.shared.run.start);
    }
    (runs, left)
}

fn join(matches: Vec<Match<'_>>) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for matched in matches {
        let (gfn, frame) = (matched.page.gfn(), matched.hold.frame());
        match runs.last_mut() {
            Some(Run {
                shared: SharedRun { run, frame: first },
                matches,
            }) if run.end() == u64::from(gfn.0)
                && first.0.checked_add(run.count) == Some(frame.0) =>
            {
                run.count += 1;
                matches.push(matched);
            }
            _ => runs.push(Run {
                shared: SharedRun {
                    run: GfnRun::single(gfn),
                    frame,
                },
                matches: vec![matched],
            }),
        }
    }
    runs
}
