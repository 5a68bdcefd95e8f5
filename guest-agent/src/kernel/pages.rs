//! The physical page allocator: who owns which page.

mod shown;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use memvisor_wire::{Gfn, GfnRun};

use super::runs::FreeRuns;
use super::{KernelError, lock};
use shown::Shown;

/// Pages at the start of RAM that the kernel keeps for itself and never gives out.
pub(super) const KERNEL_PAGES: u32 = 4;

/// While less than this part of RAM (1/64) is free, every allocation pushes a few pages out.
const LOW_DIVISOR: u32 = 64;

/// The floor of the low watermark, for RAM so small that 1/64 of it means nothing.
const LOW_FLOOR: u32 = 2;

/// What a page is in use for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageUse {
    /// In the free list.
    Free,
    /// The kernel's own.
    Kernel,
    /// Behind an anonymous mapping.
    Anon,
    /// Behind a page of a file.
    Cache,
    /// Pinned by the balloon: the host has it.
    Balloon,
}

/// Objects have numbers below this.
pub(super) const MAX_OBJECTS: u32 = 1 << 31;

/// Which page of which object (a mapping or a file) a physical page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    /// The number the object is registered under; never 0, and below [`MAX_OBJECTS`].
    pub(super) object: u32,
    /// The page of the object.
    pub(super) page: u32,
}

impl Owner {
    /// What the owner table holds for a page that nobody maps.
    const NOBODY: u64 = 0;
    /// Set for pages of the page cache, so that the clock can tell them without a lock. No object has so high a
    /// number.
    const CACHE: u64 = 1 << 63;

    fn pack(self, page_use: PageUse) -> u64 {
        let cache = if page_use == PageUse::Cache {
            Self::CACHE
        } else {
            0
        };
        cache | u64::from(self.object) << 32 | u64::from(self.page)
    }

    const fn unpack(packed: u64) -> Option<Self> {
        match packed {
            Self::NOBODY => None,
            _ => Some(Self {
                object: ((packed & !Self::CACHE) >> 32) as u32,
                page: packed as u32,
            }),
        }
    }
}

/// How many pages each use has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    pub(super) free: u32,
    pub(super) anon: u32,
    pub(super) cache: u32,
    pub(super) balloon: u32,
}

impl Usage {
    const fn of(&mut self, page_use: PageUse) -> Option<&mut u32> {
        match page_use {
            PageUse::Free => Some(&mut self.free),
            PageUse::Anon => Some(&mut self.anon),
            PageUse::Cache => Some(&mut self.cache),
            PageUse::Balloon => Some(&mut self.balloon),
            PageUse::Kernel => None,
        }
    }
}

#[derive(Debug)]
struct State {
    /// Free pages that only this guest can take.
    free: FreeRuns,
    /// Those whose memory the host has dropped at this guest's word: each costs a fault when it is used. So they are
    /// used last, or a guest that allocates and frees would get back, fault by fault, what it has just given.
    dropped: FreeRuns,
    /// The other free pages, while the host may take them too.
    shown: Option<Shown>,
    uses: Box<[PageUse]>,
    usage: Usage,
    waiting: u32,
}

impl State {
    /// Moves one page from one use to another. A page that is not in use as `from` has two owners.
    fn change(&mut self, gfn: Gfn, from: PageUse, to: PageUse) {
        self.change_run(GfnRun::single(gfn), from, to);
    }

    /// Moves the pages of a run from one use to another.
    fn change_run(&mut self, run: GfnRun, from: PageUse, to: PageUse) {
        let pages = run.start.index()..run.start.index() + run.count as usize;
        let uses = &mut self.uses[pages];
        assert!(
            uses.iter().all(|page| *page == from),
            "{run:?} changes hands to {to:?}"
        );
        uses.fill(to);
        if let Some(count) = self.usage.of(from) {
            *count -= run.count;
        }
        if let Some(count) = self.usage.of(to) {
            *count += run.count;
        }
    }
}

/// The physical pages of the guest.
///
/// One short lock guards the state; nobody touches guest RAM under it. The owner and the referenced
/// bit of a page are atomics outside that lock, because the clock and every access use them without
/// needing anything from the state.
#[derive(Debug)]
pub(super) struct PageAllocator {
    state: Mutex<State>,
    freed: Condvar,
    owners: Box<[AtomicU64]>,
    referenced: Box<[AtomicBool]>,
}

impl PageAllocator {
    /// An allocator of `pages` pages, all free but the kernel's own.
    pub(super) fn new(pages: u32) -> Self {
        let kept = KERNEL_PAGES.min(pages);
        let mut uses = vec![PageUse::Free; pages as usize].into_boxed_slice();
        uses[..kept as usize].fill(PageUse::Kernel);
        let mut free = FreeRuns::default();
        free.insert(GfnRun::new(Gfn(kept), pages - kept));
        let usage = Usage {
            free: pages - kept,
            ..Usage::default()
        };
        Self {
            state: Mutex::new(State {
                free,
                dropped: FreeRuns::default(),
                shown: None,
                uses,
                usage,
                waiting: 0,
            }),
            freed: Condvar::new(),
            owners: (0..pages).map(|_| AtomicU64::new(Owner::NOBODY)).collect(),
            referenced: (0..pages).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// All pages, the kernel's included.
    pub(super) const fn pages(&self) -> u32 {
        self.owners.len() as u32
    }

    /// The number of free pages below which allocations reclaim.
    pub(super) fn low_watermark(&self) -> u32 {
        (self.pages() / LOW_DIVISOR).max(LOW_FLOOR)
    }

    /// The number of free pages that the balloon and a stage leave to allocations.
    pub(super) fn high_watermark(&self) -> u32 {
        2 * self.low_watermark()
    }

    /// How many pages each use has now.
    pub(super) fn usage(&self) -> Usage {
        lock(&self.state).usage
    }

    /// Gives a free page to `owner`. Its bytes are whatever the last owner left there.
    pub(super) fn take(&self, owner: Owner, page_use: PageUse) -> Option<Gfn> {
        let mut state = lock(&self.state);
        let gfn = state.take_free()?;
        state.change(gfn, PageUse::Free, page_use);
        self.referenced[gfn.index()].store(true, Ordering::Relaxed);
        self.owners[gfn.index()].store(owner.pack(page_use), Ordering::Relaxed);
        Some(gfn)
    }

    /// Gives a run of `count` free pages to the pages of an object from `owner` on, or pins the run for the
    /// kernel if there is no owner. `None` when there is no such run, or when fewer pages than the high
    /// watermark would be left.
    pub(super) fn take_run(
        &self,
        count: u32,
        owner: Option<Owner>,
        page_use: PageUse,
    ) -> Option<GfnRun> {
        let mut state = lock(&self.state);
        // Long runs are a favour and leave the watermark alone, or the next allocation would have to reclaim.
        if state.usage.free < count.saturating_add(self.high_watermark()) {
            return None;
        }
        let run = state.take_free_run(count)?;
        for (gfn, page) in run.iter().zip(owner.map_or(0, |owner| owner.page)..) {
            state.change(gfn, PageUse::Free, page_use);
            self.referenced[gfn.index()].store(true, Ordering::Relaxed);
            let packed = owner.map_or(Owner::NOBODY, |owner| {
                Owner { page, ..owner }.pack(page_use)
            });
            self.owners[gfn.index()].store(packed, Ordering::Relaxed);
        }
        Some(run)
    }

    /// Takes a page back from its owner.
    ///
    /// # Panics
    /// When the page is not in use as `page_use`: it would have two owners.
    pub(super) fn release(&self, gfn: Gfn, page_use: PageUse) {
        let mut state = lock(&self.state);
        self.owners[gfn.index()].store(Owner::NOBODY, Ordering::Relaxed);
        state.change(gfn, page_use, PageUse::Free);
        state.put_free(GfnRun::single(gfn));
        self.tell_waiting(&state);
    }

    /// Pins up to `max` free pages for the balloon, in the longest runs that there are, and leaves
    /// `floor` pages free.
    pub(super) fn pin(&self, max: u32, floor: u32) -> Vec<GfnRun> {
        let mut state = lock(&self.state);
        let free = state.free.pages() + state.dropped.pages();
        let mut want = max.min(free.saturating_sub(floor));
        let mut runs = Vec::new();
        while want > 0
            && let Some(run) = state.take_longest(want)
        {
            state.change_run(run, PageUse::Free, PageUse::Balloon);
            want -= run.count;
            runs.push(run);
        }
        runs
    }

    /// Frees pages that [`Self::pin`] gave out. The runs need not be the same.
    ///
    /// # Errors
    /// [`KernelError::NotBallooned`] when one of the pages is not in the balloon or is named twice;
    /// then none is freed.
    pub(super) fn unpin(&self, runs: &[GfnRun]) -> Result<(), KernelError> {
        let mut sorted: Vec<GfnRun> = runs.iter().copied().filter(|run| run.count > 0).collect();
        sorted.sort_unstable_by_key(|run| run.start);
        let mut state = lock(&self.state);
        let mut end = 0;
        for run in &sorted {
            let twice = (u64::from(run.start.0) < end).then_some(run.start);
            let outside = run.end() > u64::from(self.pages());
            let last = Gfn((run.end() - 1).min(u64::from(u32::MAX)) as u32);
            let foreign = || {
                run.iter()
                    .find(|gfn| state.uses[gfn.index()] != PageUse::Balloon)
            };
            let wrong = twice.or(outside.then_some(last)).or_else(foreign);
            if let Some(gfn) = wrong {
                return Err(KernelError::NotBallooned { gfn });
            }
            end = run.end();
        }
        for run in sorted {
            state.change_run(run, PageUse::Balloon, PageUse::Free);
            state.put_free(run);
        }
        self.tell_waiting(&state);
        Ok(())
    }

    /// Waits until a page is free, at most for `limit`.
    pub(super) fn wait_freed(&self, limit: Duration) {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let (mut state, _) = self
            .freed
            .wait_timeout_while(state, limit, |state| state.usage.free == 0)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        state.waiting -= 1;
    }

    /// Wakes threads that wait for a free page, if there are any. Waiting threads are counted because a
    /// condition variable may make a system call even when nobody waits.
    fn tell_waiting(&self, state: &State) {
        if state.waiting > 0 {
            self.freed.notify_all();
        }
    }

    /// The owner of the page, if it is behind a mapping or a file. A moment later the page may have another owner, so
    /// whoever wants to evict it must let the owner check this under the owner's lock.
    pub(super) fn owner(&self, gfn: Gfn) -> Option<Owner> {
        Owner::unpack(self.owners[gfn.index()].load(Ordering::Relaxed))
    }

    /// Whether the page is page cache at this moment.
    pub(super) fn is_cache(&self, gfn: Gfn) -> bool {
        self.owners[gfn.index()].load(Ordering::Relaxed) & Owner::CACHE != 0
    }

    /// Notes an access. Reads the bit first: mostly it is set, and a store would take the cache line from
    /// other processors.
    pub(super) fn mark_referenced(&self, gfn: Gfn) {
        let bit = &self.referenced[gfn.index()];
        // A load first: most pages are marked already, and a store would take the word from other processors.
        if !bit.load(Ordering::Relaxed) {
            bit.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the page was accessed since the last call.
    pub(super) fn take_referenced(&self, gfn: Gfn) -> bool {
        self.referenced[gfn.index()].swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use memvisor_wire::{RunsExt, runs_of};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PAGES: u32 = 96;

    #[derive(Clone, Debug)]
    enum Op {
        Take(bool),
        Release(usize),
        Pin { max: u32, floor: u32 },
        Unpin { from: usize, count: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => any::<bool>().prop_map(Op::Take),
            3 => any::<usize>().prop_map(Op::Release),
            1 => (0..PAGES, 0..PAGES).prop_map(|(max, floor)| Op::Pin { max, floor }),
            1 => (any::<usize>(), 0..40usize).prop_map(|(from, count)| Op::Unpin { from, count }),
        ]
    }

    fn pages_in(model: &HashMap<Gfn, PageUse>, wanted: impl Fn(PageUse) -> bool) -> Vec<Gfn> {
        let mut pages: Vec<Gfn> = model
            .iter()
            .filter(|(_, page_use)| wanted(**page_use))
            .map(|(&gfn, _)| gfn)
            .collect();
        pages.sort_unstable();
        pages
    }

    fn apply(allocator: &PageAllocator, model: &mut HashMap<Gfn, PageUse>, op: &Op, step: u32) {
        let free = PAGES - KERNEL_PAGES - model.len() as u32;
        match *op {
            Op::Take(anon) => {
                let page_use = if anon { PageUse::Anon } else { PageUse::Cache };
                let owner = Owner {
                    object: 1,
                    page: step,
                };
                let taken = allocator.take(owner, page_use);
                assert_eq!(taken.is_some(), free > 0);
                if let Some(gfn) = taken {
                    assert!(gfn.0 >= KERNEL_PAGES, "{gfn} is the kernel's");
                    assert_eq!(model.insert(gfn, page_use), None, "{gfn} has two owners");
                    assert_eq!(allocator.owner(gfn), Some(owner));
                    assert_eq!(allocator.is_cache(gfn), !anon);
                }
            }
            Op::Release(pick) => {
                let mapped = pages_in(model, |page_use| page_use != PageUse::Balloon);
                if let Some(&gfn) = mapped.get(pick % mapped.len().max(1)) {
                    let page_use = model.remove(&gfn).expect("listed just above");
                    allocator.release(gfn, page_use);
                    assert_eq!(allocator.owner(gfn), None);
                }
            }
            Op::Pin { max, floor } => {
                let runs = allocator.pin(max, floor);
                assert_eq!(runs.pages(), u64::from(max.min(free.saturating_sub(floor))));
                for gfn in runs.iter().flat_map(|run| run.iter()) {
                    assert_eq!(model.insert(gfn, PageUse::Balloon), None, "{gfn}");
                }
            }
            Op::Unpin { from, count } => {
                let pinned = pages_in(model, |page_use| page_use == PageUse::Balloon);
                let from = from % (pinned.len() + 1);
                let chosen = &pinned[from..(from + count).min(pinned.len())];
                allocator
                    .unpin(&runs_of(chosen.iter().copied()))
                    .expect("all of them are pinned");
                for gfn in chosen {
                    model.remove(gfn);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn allocator_random_operations_match_the_model(ops in vec(op(), 1..300)) {
            let allocator = PageAllocator::new(PAGES);
            let mut model = HashMap::new();
            for (step, op) in ops.iter().enumerate() {
                apply(&allocator, &mut model, op, step as u32);
                let count = |wanted| pages_in(&model, |page_use| page_use == wanted).len() as u32;
                prop_assert_eq!(allocator.usage(), Usage {
                    free: PAGES - KERNEL_PAGES - model.len() as u32,
                    anon: count(PageUse::Anon),
                    cache: count(PageUse::Cache),
                    balloon: count(PageUse::Balloon),
                });
            }
        }
    }

    #[test]
    fn pin_of_untouched_ram_is_one_run() {
        let allocator = PageAllocator::new(PAGES);
        assert_eq!(allocator.pin(64, 8).len(), 1);
    }

    #[test]
    fn unpin_of_foreign_page_frees_none_and_names_it() {
        let allocator = PageAllocator::new(PAGES);
        let pinned = allocator.pin(8, 0);
        let owner = Owner { object: 1, page: 0 };
        let anon = allocator.take(owner, PageUse::Anon).expect("free pages");
        for foreign in [GfnRun::single(anon), pinned[0], GfnRun::new(Gfn(90), 50)] {
            let error = allocator.unpin(&[pinned[0], foreign]).expect_err("foreign");
            assert!(matches!(error, KernelError::NotBallooned { .. }), "{error}");
            assert_eq!(allocator.usage().balloon, 8);
        }
        allocator.unpin(&pinned).expect("still pinned");
    }

    #[test]
    #[should_panic(expected = "changes hands")]
    fn release_of_free_page_panics() {
        PageAllocator::new(PAGES).release(Gfn(50), PageUse::Anon);
    }
}
