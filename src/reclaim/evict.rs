//! Evicting pages of one VM, a batch at a time.

use std::iter::Peekable;

use super::stash::{Cluster, Stash, spill};
use super::victims::{Dice, choose};
use crate::digest::digest;
use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::remap::{FrameHold, Match, freeze, give_back, place, rehome};
use crate::seeded::Seeded;
use crate::units::{Gfn, GfnRun, PageBuf, Pages};
use crate::vm::{Means, Vm};

/// Pages evicted at once: the guest's accesses to them wait meanwhile, for about a millisecond.
const BATCH: usize = 64;

/// Pages read at once: as many as are taken from one place.
const AT_ONCE: usize = 16;

/// Evicts pages of one VM; belongs to its worker.
#[derive(Debug)]
pub struct Evictor {
    stash: Stash,
    cluster: Cluster,
    dice: Dice,
    contents: Vec<PageBuf>,
}

impl Evictor {
    /// An evictor whose choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            stash: Stash::new(),
            cluster: Cluster::default(),
            dice: Dice::new(seed),
            contents: Vec::new(),
        }
    }

    /// Evicts up to `want` pages, at most a batch; how many left. Pages that are zero or equal to a
    /// frame need no means; what the others may not or cannot use stays.
    ///
    /// Resident pages go first. A shared page frees memory only with the last page that shares its
    /// frame, so those that are alone with their frame follow, and the others when nothing else is
    /// left. When nothing is mapped at all, the oldest of the compression cache move on to swap, each
    /// of which frees a part of a page.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn evict(&mut self, vm: &Vm, want: Pages, means: Means) -> Result<Pages, EngineError> {
        // What the guest has made resident itself can be evicted too.
        vm.settle_done();
        vm.give_back_emptied();
        let want = usize::try_from(want.0).unwrap_or(BATCH).min(BATCH);
        let victims = choose(vm, &mut self.dice, want, |home| home == Home::Resident);
        if !victims.is_empty() {
            return self.evict_resident(vm, victims, means);
        }
        // A shared page has no other place to go to.
        if !means.compress && !means.swap {
            return Ok(Pages(0));
        }
        let pool = vm.pool();
        let alone = |home| matches!(home, Home::Shared(frame) if pool.refs(frame) == 1);
        let mut victims = choose(vm, &mut self.dice, want, alone);
        if victims.is_empty() {
            victims = choose(vm, &mut self.dice, want, |home| {
                matches!(home, Home::Shared(_))
            });
        }
        let left = self.evict_shared(vm, victims, means)?;
        if left > Pages(0) || !means.swap {
            return Ok(left);
        }
        Ok(spill(vm, want))
    }

    fn evict_resident<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
        means: Means,
    ) -> Result<Pages, EngineError> {
        if !freeze(vm, victims.iter())? {
            return Ok(Pages(0));
        }
        // Only now: many a VM is never evicted.
        self.contents.resize_with(AT_ONCE, PageBuf::zeroed);
        let mut leaving = Leaving::new(victims.len(), means, &mut self.cluster);
        let mut matches = Vec::new();
        let mut victims = victims.into_iter().peekable();
        while let Some(run) = next_run(&mut victims) {
            let contents = &mut self.contents[..run.len()];
            #[expect(clippy::cast_possible_truncation, reason = "AT_ONCE at most")]
            let gfns = GfnRun::new(run[0].gfn(), run.len() as u32);
            if let Err(error) = vm.engine.read_out(gfns, contents) {
                leaving.undo(vm)?;
                return Err(error);
            }
            for (page, content) in run.into_iter().zip(contents.iter()) {
                if content.is_zero() {
                    vm.stats.evict_zero.one();
                    leaving.stored.push((page, Home::Zero));
                } else if let Some(hold) = equal_frame(vm, content) {
                    matches.push(Match { page, hold });
                } else {
                    leaving.store(vm, &mut self.stash, page, content);
                }
            }
        }
        let shared = matches.len();
        let refused = match place(vm, matches) {
            Ok(refused) => refused,
            Err(error) => {
                leaving.undo(vm)?;
                return Err(error);
            }
        };
        let shared = (shared - refused.len()) as u64;
        vm.stats.evict_shared.add(shared);
        let mut content = PageBuf::zeroed();
        for page in refused {
            vm.engine.read(page.gfn(), &mut content);
            leaving.store(vm, &mut self.stash, page, &content);
        }
        Ok(Pages(leaving.leave(vm)? + shared))
    }

    /// Pages that only refer to a frame: nobody can write it, so there is nothing to freeze.
    fn evict_shared<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
        means: Means,
    ) -> Result<Pages, EngineError> {
        let pool = vm.pool();
        let mut leaving = Leaving::new(victims.len(), means, &mut self.cluster);
        let mut content = PageBuf::zeroed();
        for page in victims {
            let Home::Shared(frame) = page.home() else {
                continue;
            };
            pool.read(frame, &mut content);
            leaving.store(vm, &mut self.stash, page, &content);
        }
        leaving.leave(vm).map(Pages)
    }
}

/// Locked pages that are stored in a new place, and those that wait for the swap file. Their homes
/// are still the old ones.
struct Leaving<'a, 'c> {
    stored: Vec<(PageGuard<'a>, Home)>,
    queued: Vec<PageGuard<'a>>,
    cluster: &'c mut Cluster,
    means: Means,
}

impl<'a, 'c> Leaving<'a, 'c> {
    fn new(pages: usize, means: Means, cluster: &'c mut Cluster) -> Self {
        // A batch that was given up may have left something.
        cluster.clear();
        let stored = Vec::with_capacity(pages);
        Self {
            stored,
            queued: Vec::new(),
            cluster,
            means,
        }
    }

    fn store(&mut self, vm: &Vm, stash: &mut Stash, page: PageGuard<'a>, content: &PageBuf) {
        let Means { compress, swap } = self.means;
        let zipped = if compress {
            stash.zip(vm, page.gfn(), content, swap)
        } else {
            None
        };
        if let Some(slot) = zipped {
            vm.stats.evict_zip.one();
            self.stored.push((page, Home::Compressed(slot)));
        } else if swap {
            self.cluster.push(content);
            self.queued.push(page);
        } else {
            vm.stats.evict_failed.one();
        }
    }

    /// Gives the new places up: the pages stay where they were.
    fn undo(self, vm: &Vm) -> Result<(), EngineError> {
        if Seeded::LostCharge.is_sown() {
            return Ok(());
        }
        give_back(
            vm,
            self.stored.iter().map(|(page, home)| (page.gfn(), *home)),
        )
    }

    /// Writes what waits for the swap file, and moves the pages that are stored; how many. The others are
    /// unlocked and stay where they were.
    fn leave(mut self, vm: &Vm) -> Result<u64, EngineError> {
        for (page, slot) in self.queued.into_iter().zip(self.cluster.write(vm)) {
            if let Some(slot) = slot {
                vm.stats.evict_swap.one();
                self.stored.push((page, Home::Swapped(slot)));
            } else {
                vm.stats.evict_failed.one();
            }
        }
        let count = self.stored.len() as u64;
        rehome(vm, self.stored)?;
        Ok(count)
    }
}

/// The next victims that are neighbours, as many as are read at once.
fn next_run<'a>(
    victims: &mut Peekable<impl Iterator<Item = PageGuard<'a>>>,
) -> Option<Vec<PageGuard<'a>>> {
    let mut run = Vec::with_capacity(AT_ONCE);
    run.push(victims.next()?);
    while run.len() < AT_ONCE {
        let follows = |page: &PageGuard<'_>| run.last().map(next_to) == Some(Some(page.gfn()));
        let Some(page) = victims.next_if(follows) else {
            break;
        };
        run.push(page);
    }
    Some(run)
}

fn next_to(page: &PageGuard<'_>) -> Option<Gfn> {
    page.gfn().checked_add(1)
}

/// The frame with these bytes, if there is one.
fn equal_frame<'a>(vm: &'a Vm, content: &PageBuf) -> Option<FrameHold<'a>> {
    let pool = vm.pool();
    // A host that shares nothing need not hash what it evicts.
    if pool.is_empty() {
        return None;
    }
    let hold = FrameHold::find(vm, digest(content))?;
    pool.equals(hold.frame(), content).then_some(hold)
}
