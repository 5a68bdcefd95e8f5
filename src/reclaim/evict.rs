//! Evicting pages of one VM, a batch at a time.

use super::stash::{Cluster, Stash};
use super::victims::{Dice, choose};
use crate::digest::digest;
use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::share::{FrameHold, Match, freeze, give_back, place};
use crate::units::{PageBuf, Pages, runs_of};
use crate::vm::Vm;

/// Pages evicted at once: the guest's accesses to them wait meanwhile, for about a millisecond.
const BATCH: usize = 64;

/// Evicts pages of one VM; belongs to its worker.
#[derive(Debug)]
pub struct Evictor {
    stash: Stash,
    dice: Dice,
}

impl Evictor {
    /// An evictor whose choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            stash: Stash::new(),
            dice: Dice::new(seed),
        }
    }

    /// Evicts up to `want` pages, at most a batch; how many left.
    ///
    /// Resident pages go first. A shared page frees memory only with the last page that shares its
    /// frame, so those that are alone with their frame follow, and the others when nothing else is
    /// left.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn evict(&mut self, vm: &Vm, want: Pages) -> Result<Pages, EngineError> {
        let want = usize::try_from(want.0).unwrap_or(BATCH).min(BATCH);
        let victims = choose(vm, &mut self.dice, want, |home| home == Home::Resident);
        if !victims.is_empty() {
            return self.evict_resident(vm, victims);
        }
        let alone = |home| matches!(home, Home::Shared(frame) if vm.pool.refs(frame) == 1);
        let mut victims = choose(vm, &mut self.dice, want, alone);
        if victims.is_empty() {
            victims = choose(vm, &mut self.dice, want, |home| {
                matches!(home, Home::Shared(_))
            });
        }
        self.evict_shared(vm, victims)
    }

    fn evict_resident<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
    ) -> Result<Pages, EngineError> {
        if !freeze(vm, victims.iter())? {
            return Ok(Pages(0));
        }
        let mut leaving = Leaving::new(victims.len());
        let mut matches = Vec::new();
        let mut content = PageBuf::zeroed();
        for page in victims {
            vm.engine.read(page.gfn(), &mut content);
            if content.is_zero() {
                page.set_home(Home::Zero);
                vm.stats.evict_zero.one();
                leaving.gone.push(page);
                continue;
            }
            let digest = digest(&content);
            match FrameHold::find(vm, digest) {
                Some(hold) if vm.pool.equals(hold.frame(), &content) => {
                    matches.push(Match { page, hold });
                }
                _ => leaving.store(vm, &mut self.stash, page, &content, digest),
            }
        }
        let found = matches.len();
        let placed = place(vm, matches).map(|refused| {
            let shared = found - refused.len();
            for page in refused {
                vm.engine.read(page.gfn(), &mut content);
                leaving.store(vm, &mut self.stash, page, &content, digest(&content));
            }
            shared as u64
        });
        // Also when the guest is gone: pages that have another home already give their memory back.
        let gone = leaving.finish(vm);
        give_back(vm, gone.iter().map(PageGuard::gfn))?;
        let shared = placed?;
        vm.stats.evict_shared.add(shared);
        Ok(Pages(gone.len() as u64 + shared))
    }

    /// Pages that only refer to a frame: nobody can write it, so there is nothing to freeze.
    fn evict_shared<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
    ) -> Result<Pages, EngineError> {
        let mut leaving = Leaving::new(victims.len());
        let mut frames = Vec::new();
        let mut content = PageBuf::zeroed();
        for page in victims {
            let Home::Shared(frame) = page.home() else {
                continue;
            };
            vm.pool.read(frame, &mut content);
            frames.push((page.gfn(), frame));
            leaving.store(vm, &mut self.stash, page, &content, digest(&content));
        }
        let gone = leaving.finish(vm);
        if gone.is_empty() {
            return Ok(Pages(0));
        }
        let runs = runs_of(gone.iter().map(PageGuard::gfn));
        vm.vmas.note(runs.len());
        let unmapped = vm.engine.map_private(&runs);
        for (gfn, frame) in frames {
            if gone.binary_search_by_key(&gfn, PageGuard::gfn).is_err() {
                continue;
            }
            match unmapped {
                // No mapping of the frame by this page is left, so its reference ends here.
                Ok(()) => vm.release_frame(frame),
                Err(_) => vm.abandon_frame(frame),
            }
        }
        unmapped?;
        Ok(Pages(gone.len() as u64))
    }
}

/// Locked pages that have found a new home, and those that wait for the swap file.
struct Leaving<'a> {
    gone: Vec<PageGuard<'a>>,
    queued: Vec<PageGuard<'a>>,
    cluster: Cluster,
}

impl<'a> Leaving<'a> {
    fn new(pages: usize) -> Self {
        Self {
            gone: Vec::with_capacity(pages),
            queued: Vec::new(),
            cluster: Cluster::default(),
        }
    }

    fn store(
        &mut self,
        vm: &Vm,
        stash: &mut Stash,
        page: PageGuard<'a>,
        content: &PageBuf,
        digest: u64,
    ) {
        if let Some(slot) = stash.zip(vm, page.gfn(), content, digest) {
            page.set_home(Home::Compressed(slot));
            vm.stats.evict_zip.one();
            self.gone.push(page);
        } else {
            self.cluster.push(content, digest);
            self.queued.push(page);
        }
    }

    /// Writes what waits for the swap file. The pages that have left, ascending; the others are
    /// unlocked and stay where they were.
    fn finish(mut self, vm: &Vm) -> Vec<PageGuard<'a>> {
        for (page, slot) in self.queued.into_iter().zip(self.cluster.write(vm)) {
            if let Some(slot) = slot {
                page.set_home(Home::Swapped(slot));
                vm.stats.evict_swap.one();
                self.gone.push(page);
            } else {
                vm.stats.evict_failed.one();
            }
        }
        self.gone.sort_unstable_by_key(PageGuard::gfn);
        self.gone
    }
}
