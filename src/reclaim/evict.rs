//! Evicting pages of one VM, a batch at a time.

use std::iter::Peekable;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::stash::{Cluster, NotZipped, spill, zip};
use super::victims::{Choice, Choices, is_frozen, random};
use crate::compress::Compressor;
use crate::digest::digest;
use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::remap::{FrameHold, Match, freeze, give_up, place, rehome};
use crate::units::{Gfn, GfnRun, PageBuf, Pages};
use crate::vm::{Means, Vm};

/// Pages evicted at once. The guest's accesses to them wait meanwhile, for about a millisecond.
const BATCH: usize = 64;

/// Pages read at once: the length of a run of random victims.
const AT_ONCE: usize = 16;

/// Evicts pages of one VM; belongs to its worker.
#[derive(Debug)]
pub struct Evictor {
    compressor: Compressor,
    cluster: Cluster,
    dice: StdRng,
    victims: Choices,
    /// Pages of the latest batch that did not compress and go on waiting.
    deferred: Vec<Gfn>,
    contents: Vec<PageBuf>,
}

impl Evictor {
    /// An evictor whose choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            compressor: Compressor::new(),
            cluster: Cluster::default(),
            dice: StdRng::seed_from_u64(seed),
            victims: Choices::default(),
            deferred: Vec::new(),
            contents: Vec::new(),
        }
    }

    /// Evicts up to `want` pages, at most a batch, and returns how many left RAM. Pages that are zero or equal to a
    /// frame can always go; the others go to a store that `means` allows, and stay where none takes them.
    ///
    /// Resident pages go first: those of `choice`, or any where it finds none. A shared page frees memory
    /// only with the last page that shares its frame, so pages that have their frame to themselves go second, and other
    /// shared pages when nothing else is left. When nothing is mapped at all, the oldest pages of the compression cache
    /// move to the swap file; each of them frees a part of a page.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn evict(
        &mut self,
        vm: &Vm,
        want: Pages,
        means: Means,
        choice: Choice,
    ) -> Result<Pages, EngineError> {
        self.deferred.clear();
        // Pages that the guest has made resident itself can be evicted only once the page table knows them.
        vm.settle_done();
        // Arena pages that hold nothing go before any page of the guest.
        vm.give_back_emptied();
        let want = usize::try_from(want.0).unwrap_or(BATCH).min(BATCH);
        if vm.table.count(Home::Resident) > 0 {
            if let Some(evicted) = self.evict_chosen(vm, want, means, choice)? {
                return Ok(evicted);
            }
            // Second chance comes here when the guest wanted all watched pages back.
            let victims = random(vm, &mut self.dice, want, |home| home == Home::Resident);
            if !victims.is_empty() {
                return self.evict_resident(vm, victims, means, Way::AtOnce);
            }
        }
        // A shared page can only go to a store.
        if !means.compress && !means.swap {
            return Ok(Pages(0));
        }
        let pool = vm.pool();
        let alone = |home| matches!(home, Home::Shared(frame) if pool.refs(frame) == 1);
        // Frames that nobody else refers to come first: others free no memory until their last page leaves.
        let mut victims = random(vm, &mut self.dice, want, alone);
        if victims.is_empty() {
            victims = random(vm, &mut self.dice, want, |home| {
                matches!(home, Home::Shared(_))
            });
        }
        let left = self.evict_shared(vm, victims, means)?;
        if left > Pages(0) || !means.swap {
            return Ok(left);
        }
        Ok(spill(vm, want))
    }

    /// Whether pages of the latest batch did not compress and go on waiting: then there is something to evict later.
    #[must_use]
    pub const fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Evicts pages of a choice. If it has a queue for them, those that only the swap file would take go on waiting,
    /// unless memory is scarce; those of which that is known are not even read. `None`: it finds no page.
    fn evict_chosen(
        &mut self,
        vm: &Vm,
        want: usize,
        means: Means,
        choice: Choice,
    ) -> Result<Option<Pages>, EngineError> {
        let chosen = self.victims.of(choice);
        let mut victims = chosen.choose(vm, &mut self.dice, want)?;
        // What is not resident has no content in the RAM file, whatever a choice says.
        victims.retain(|page| page.home() == Home::Resident);
        // Neighbours are frozen, read and punched in runs, whatever order the choice has.
        victims.sort_unstable_by_key(PageGuard::gfn);
        let mut is_found = !victims.is_empty();
        let has_queue = chosen.dense().is_some();
        let waits = has_queue && means.compress && means.swap && !vm.budget.is_scarce();
        let way = if waits { Way::Deferring } else { Way::AtOnce };
        let dense = chosen.dense().filter(|_| waits);
        if let Some(dense) = dense {
            let known = victims.extract_if(.., |page| dense.knows(page.gfn()));
            // Dropping their guards unlocks them; they stay frozen.
            self.deferred.extend(known.map(|page| page.gfn()));
        }
        // While memory is scarce nothing waits in the second queue: what does not compress goes to the swap file at
        // once.
        let evicted = self.evict_resident(vm, victims, means, way)?;
        let Some(dense) = self.victims.of(choice).dense() else {
            return Ok(is_found.then_some(evicted));
        };
        dense.defer(&self.deferred);
        // Faults wait and this batch freed nothing: to find in batch after batch that nothing compresses would have
        // them wait longer.
        let hurry = evicted == Pages(0) && vm.budget.starving() > 0;
        let dense = dense.choose(vm, want, hurry);
        is_found |= !dense.is_empty();
        // Not to be compressed again: these pages are here because that did not help.
        let means = Means {
            compress: false,
            ..means
        };
        let swapped = self.evict_resident(vm, dense, means, Way::AtOnce)?;
        Ok(is_found.then_some(Pages(evicted.0 + swapped.0)))
    }

    /// Evicts locked resident pages of a batch that their guest has not touched for long, and marks those that go to a
    /// store as cold. Returns how many left RAM.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub(super) fn evict_cold(
        &mut self,
        vm: &Vm,
        victims: Vec<PageGuard<'_>>,
        means: Means,
    ) -> Result<Pages, EngineError> {
        self.evict_resident(vm, victims, means, Way::Cold)
    }

    /// Evicts resident pages; freezes them if any is not frozen.
    fn evict_resident<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
        means: Means,
        way: Way,
    ) -> Result<Pages, EngineError> {
        if victims.is_empty() {
            return Ok(Pages(0));
        }
        let are_frozen = victims.iter().all(|page| is_frozen(page.entry()));
        // Victims of second chance are frozen already: another freeze would be a command to the shim for nothing.
        if !are_frozen && !freeze(vm, victims.iter())? {
            return Ok(Pages(0));
        }
        // Allocated only here, because many VMs are never evicted from.
        self.contents.resize_with(AT_ONCE, PageBuf::zeroed);
        let deferred = (way == Way::Deferring).then_some(&mut self.deferred);
        let mut leaving = Leaving::new(means, &mut self.compressor, &mut self.cluster, deferred);
        leaving.are_cold = way == Way::Cold;
        match leaving.take_frozen(vm, victims, &mut self.contents) {
            Ok(shared) => Ok(Pages(leaving.leave(vm)? + shared)),
            Err(error) => Err(give_up(vm, &leaving.stored, error)),
        }
    }

    /// Evicts shared pages. Nobody can write their frames, so there is nothing to freeze.
    fn evict_shared<'a>(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
        means: Means,
    ) -> Result<Pages, EngineError> {
        let pool = vm.pool();
        let mut leaving = Leaving::new(means, &mut self.compressor, &mut self.cluster, None);
        let mut content = PageBuf::zeroed();
        for page in victims {
            let Home::Shared(frame) = page.home() else {
                continue;
            };
            pool.read(frame, &mut content);
            leaving.store(vm, page, &content);
        }
        leaving.leave(vm).map(Pages)
    }
}

/// How resident pages leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Into whichever store takes them.
    AtOnce,
    /// The same, but those that do not compress go on waiting.
    Deferring,
    /// The same as at once, marked as cold.
    Cold,
}

/// Locked pages on their way out: those that are stored in a new place and those that wait for the
/// swap file. All of them still have their old homes.
struct Leaving<'a, 'c> {
    stored: Vec<(PageGuard<'a>, Home)>,
    queued: Vec<PageGuard<'a>>,
    compressor: &'c mut Compressor,
    cluster: &'c mut Cluster,
    means: Means,
    /// Receives the pages that do not compress and go on waiting; `None`: they go to the swap file.
    deferred: Option<&'c mut Vec<Gfn>>,
    /// Whether the pages leave because they are cold.
    are_cold: bool,
}

impl<'a, 'c> Leaving<'a, 'c> {
    fn new(
        means: Means,
        compressor: &'c mut Compressor,
        cluster: &'c mut Cluster,
        deferred: Option<&'c mut Vec<Gfn>>,
    ) -> Self {
        // A batch that was given up may have left pages in it.
        cluster.clear();
        Self {
            stored: Vec::with_capacity(BATCH),
            queued: Vec::new(),
            compressor,
            cluster,
            means,
            deferred,
            are_cold: false,
        }
    }

    /// Stores frozen pages in new places, as far as some place takes them. Pages that equal a frame are shared at once;
    /// returns how many.
    fn take_frozen(
        &mut self,
        vm: &'a Vm,
        victims: Vec<PageGuard<'a>>,
        contents: &mut [PageBuf],
    ) -> Result<u64, EngineError> {
        let mut matches = Vec::new();
        let mut victims = victims.into_iter().peekable();
        while let Some(run) = next_run(&mut victims) {
            let contents = &mut contents[..run.len()];
            #[expect(clippy::cast_possible_truncation, reason = "AT_ONCE at most")]
            let gfns = GfnRun::new(run[0].gfn(), run.len() as u32);
            // By one copy of the whole run, which does not map the pages into the daemon: they are punched next.
            vm.engine.read_out(gfns, contents)?;
            for (page, content) in run.into_iter().zip(contents.iter()) {
                if content.is_zero() {
                    vm.stats.evict_zero.one();
                    self.stored.push((page, Home::Zero));
                } else if let Some(hold) = equal_frame(vm, content) {
                    matches.push(Match { page, hold });
                } else {
                    self.store(vm, page, content);
                }
            }
        }
        let equal = matches.len();
        let refused = place(vm, matches)?;
        let shared = (equal - refused.len()) as u64;
        vm.stats.evict_shared.add(shared);
        // Read again: their first copies were overwritten by the runs behind them.
        for page in refused {
            vm.engine.read(page.gfn(), &mut contents[0]);
            self.store(vm, page, &contents[0]);
        }
        Ok(shared)
    }

    fn store(&mut self, vm: &Vm, page: PageGuard<'a>, content: &PageBuf) {
        let Means { compress, swap } = self.means;
        let zipped = if compress {
            zip(vm, self.compressor, page.gfn(), content, swap)
        } else {
            Err(NotZipped::NoRoom)
        };
        match (zipped, &mut self.deferred) {
            (Ok(slot), _) => {
                vm.stats.evict_zip.one();
                self.stored.push((page, Home::Compressed(slot)));
            }
            // The page stays frozen. Dropping its guard here unlocks it.
            (Err(NotZipped::Dense), Some(deferred)) => deferred.push(page.gfn()),
            (Err(_), _) if swap => {
                self.cluster.push(page.gfn(), content);
                self.queued.push(page);
            }
            (Err(_), _) => vm.stats.evict_failed.one(),
        }
    }

    /// Writes the pages that wait for the swap file, moves all pages that are stored to their new homes, and returns
    /// how many. The others are unlocked and stay where they were.
    fn leave(mut self, vm: &Vm) -> Result<u64, EngineError> {
        for (page, slot) in self.queued.into_iter().zip(self.cluster.write(vm)) {
            if let Some(slot) = slot {
                vm.stats.evict_swap.one();
                self.stored.push((page, Home::Swapped(slot)));
            } else {
                vm.stats.evict_failed.one();
            }
        }
        let goes_to_store = |home| matches!(home, Home::Compressed(_) | Home::Swapped(_));
        for (page, _) in self.stored.iter().filter(|(_, home)| goes_to_store(*home)) {
            vm.refaults.left(page.gfn(), vm.held());
            if self.are_cold {
                page.set_cold();
            }
        }
        let count = self.stored.len() as u64;
        // All of them at once, so that their holes are punched in runs and waiting faults are called once.
        rehome(vm, self.stored)?;
        Ok(count)
    }
}

/// The next victims that are neighbours, at most [`AT_ONCE`].
fn next_run<'a>(
    victims: &mut Peekable<impl Iterator<Item = PageGuard<'a>>>,
) -> Option<Vec<PageGuard<'a>>> {
    let mut run = Vec::with_capacity(AT_ONCE);
    run.push(victims.next()?);
    while run.len() < AT_ONCE {
        let next = run.last().and_then(|last| last.gfn().checked_add(1));
        let follows = |page: &PageGuard<'_>| Some(page.gfn()) == next;
        let Some(page) = victims.next_if(follows) else {
            break;
        };
        run.push(page);
    }
    Some(run)
}

/// The frame with these bytes, if there is one.
fn equal_frame<'a>(vm: &'a Vm, content: &PageBuf) -> Option<FrameHold<'a>> {
    let pool = vm.pool();
    // Saves a host that shares nothing the hashing of everything that it evicts.
    if pool.is_empty() {
        return None;
    }
    let hold = FrameHold::find(vm, digest(content))?;
    pool.equals(hold.frame(), content).then_some(hold)
}
