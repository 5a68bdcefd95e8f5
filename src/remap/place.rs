//! Maps frames over pages that stand still and are known to equal them.

use super::access::{afford, room};
use super::moves::{give_back, move_to};
use crate::engine::{EngineError, SharedRun};
use crate::page::{Home, PageGuard};
use crate::pool::FrameRef;
use crate::seeded::Seeded;
use crate::units::{FrameId, GfnRun, runs_of};
use crate::vm::Vm;

/// A reference to a frame, which is given back unless a page takes it over.
#[derive(Debug)]
pub(crate) struct FrameHold<'a> {
    vm: &'a Vm,
    frame: FrameId,
}

impl<'a> FrameHold<'a> {
    /// Takes over a reference of the pool. When it ends and frees the frame, the page goes back to the budget.
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

    /// Keeps the frame until the guest is dead: a guest whose session ended may still see it.
    fn abandon(self) {
        self.vm.abandon_frame(self.frame);
        self.taken_over();
    }

    /// Ends this hold without giving the reference back: somebody else, mostly the page table, has it now.
    fn taken_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for FrameHold<'_> {
    fn drop(&mut self) {
        self.vm.release_frame(self.frame);
    }
}

/// A frozen page and a frame with equal bytes, or a page that holds nothing and the frame that it is to share.
#[derive(Debug)]
pub(crate) struct Match<'a> {
    pub(crate) page: PageGuard<'a>,
    pub(crate) hold: FrameHold<'a>,
}

/// Maps frames over the pages that equal them, ascending, as far as the budget of VMAs goes.
///
/// Pages that were mapped become [`Home::Shared`]; if they were resident, their memory is given back. Their locks are
/// dropped. Pages that were not mapped are returned, as frozen and locked as they came.
pub(crate) fn place<'a>(
    vm: &'a Vm,
    matches: Vec<Match<'a>>,
) -> Result<Vec<PageGuard<'a>>, EngineError> {
    let (chosen, mut left) = choose(vm, matches);
    let runs: Vec<SharedRun> = chosen.iter().map(shared).collect();
    let _change = vm.vmas.change(runs.len());
    if Seeded::EarlyPunch.is_sown() {
        let pages = chosen.iter().flatten().map(|m| &m.page);
        give_back(vm, pages.map(|page| (page.gfn(), page.home())))?;
    }
    let done = match vm.engine.map_shared(&runs) {
        Ok(done) => done,
        Err(error) => {
            let matches = chosen.into_iter().flatten();
            // Nobody knows how many runs the guest has mapped. A frame that it still sees must not be filled anew.
            matches.for_each(|matched| matched.hold.abandon());
            return Err(error);
        }
    };
    let (mut mapped, mut homes) = (Vec::new(), Vec::new());
    for (index, run) in chosen.into_iter().enumerate() {
        for Match { page, hold } in run {
            if index < done {
                homes.push(move_to(&page, Home::Shared(hold.frame())));
                // The page's new home is the reference now, so dropping the hold must not end it.
                hold.taken_over();
                mapped.push(page);
            } else {
                left.push(page);
            }
        }
    }
    homes.retain(|_| !Seeded::EarlyPunch.is_sown());
    // Only now: until the frames are mapped, the mappings of the guest lead to the memory that this frees.
    give_back(vm, homes)?;
    // Threads that waited in the kernel for these pages now read the frames.
    for run in runs_of(mapped.iter().map(PageGuard::gfn)) {
        vm.engine.wake(run);
    }
    Ok(left)
}

/// Matches whose pages are neighbours and whose frames are neighbours too: they need one mapping.
type Run<'a> = Vec<Match<'a>>;

fn shared(run: &Run<'_>) -> SharedRun {
    let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
    SharedRun {
        run: GfnRun::new(run[0].page.gfn(), count),
        frame: run[0].hold.frame(),
    }
}

/// Joins matches to runs. Returns the runs that the budget of VMAs allows, and the pages of the others.
fn choose<'a>(vm: &'a Vm, matches: Vec<Match<'a>>) -> (Vec<Run<'a>>, Vec<PageGuard<'a>>) {
    let (runs, dropped) = afford(vm, join(matches), room(vm), |run| shared(run).run);
    let left = dropped.into_iter().flatten();
    (runs, left.map(|Match { page, .. }| page).collect())
}

fn join(matches: Vec<Match<'_>>) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for matched in matches {
        let (gfn, frame) = (matched.page.gfn().0, matched.hold.frame().0);
        let follows = |run: &&mut Run<'_>| {
            let SharedRun { run, frame: first } = shared(run);
            run.end() == u64::from(gfn) && first.0.checked_add(run.count) == Some(frame)
        };
        match runs.last_mut().filter(follows) {
            Some(run) => run.push(matched),
            None => runs.push(vec![matched]),
        }
    }
    runs
}
