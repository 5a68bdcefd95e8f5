//! Which resident pages of a VM are evicted.
//!
//! *Random* pages, as in ESX, because any other order can be the worst one: a guest that pages by least-recent use
//! and a host that does the same chase each other. They come in short runs, because to freeze, punch and swap a run
//! of neighbours costs little more than one page.
//!
//! But most guests use some pages much more than others, and a random choice takes a used page as often as any other;
//! each then costs a refill at once. So the other choice is a *second chance*. A hand goes round the VM and freezes
//! resident pages ahead of need. They wait in a queue. A page that the guest wants meanwhile comes back for a minor
//! fault; a page that nobody has wanted back when it reaches the head of the queue is evicted. A used page costs the
//! guest one minor fault for each round of the hand. The longer the queue, the more pages are found to be used.
//!
//! A victim that does not compress would have to go to the swap file, from where pages come back more slowly than from
//! the cache. So it goes on waiting, in a second queue of the same length, and is swapped only if nobody has wanted it
//! back when it reaches the head of that one.
//!
//! The page table knows which victims are still frozen: whoever gives a page back marks it open, under its lock, and
//! where the guest's kernel has refused a freeze or a thaw, no page is marked frozen. So a victim need not be frozen
//! again.

use std::collections::VecDeque;
use std::iter::from_fn;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::engine::EngineError;
use crate::page::{Entry, Home, PageGuard};
use crate::remap::freeze;
use crate::units::Gfn;
use crate::vm::Vm;

/// Pages taken from one random place. Each run costs one step of the freeze, one read and one hole.
const RUN: u32 = 16;
/// The same when the guest is short of VMAs: its mappings must not be split more than needed.
const RUN_SHORT_OF_VMAS: u32 = 128;
/// Random places tried before the missing victims are searched for page by page: enough to fill a batch of 64
/// when a tenth of the pages qualify.
const TRIES: u32 = 96;

/// The part of the resident pages, one in so many, that waits frozen for its second chance in each of the two queues.
/// The longer the queues, the more used pages are found, and the more minor faults these cost.
const WATCHED_PART: u64 = 4;
/// Pages frozen at once: they share the cost of one command to the shim.
const FREEZE: usize = 128;
/// The most freezes in one call of [`SecondChance::choose`]. The queue need not be full before the first eviction.
const FREEZES: u32 = 8;

/// The queue of a VM's pages that have a second chance. See the module text.
#[derive(Debug, Default)]
pub(super) struct SecondChance {
    hand: u32,
    watched: VecDeque<Gfn>,
    /// Frozen pages that did not compress.
    dense: VecDeque<Gfn>,
}

fn is_frozen(entry: Entry) -> bool {
    entry.home() == Home::Resident && entry.is_frozen()
}

impl SecondChance {
    /// Locks up to `want` resident pages that were frozen and that nobody has wanted back since, in ascending order.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub(super) fn choose<'a>(
        &mut self,
        vm: &'a Vm,
        want: usize,
    ) -> Result<Vec<PageGuard<'a>>, EngineError> {
        let resident = vm.table.count(Home::Resident);
        let watch = usize::try_from(resident / WATCHED_PART).unwrap_or(usize::MAX);
        // With so few resident pages left, the hand would go round the VM for each victim. Random choice finds them.
        let watch = if watch < want { 0 } else { watch };
        let mut chosen = Vec::with_capacity(want);
        for _ in 0..FREEZES {
            if self.watched.len() < watch && !self.freeze(vm)? {
                break;
            }
            let watched = from_fn(|| self.watched.pop_front());
            take(vm, watched, want, is_frozen, &mut chosen);
            if chosen.len() == want {
                break;
            }
        }
        chosen.sort_unstable_by_key(PageGuard::gfn);
        Ok(chosen)
    }

    /// The same for the pages that did not compress, as far as their queue is longer than it may be; in a `hurry`,
    /// for all of them.
    pub(super) fn choose_dense<'a>(
        &mut self,
        vm: &'a Vm,
        want: usize,
        hurry: bool,
    ) -> Vec<PageGuard<'a>> {
        let part = if hurry { u64::MAX } else { WATCHED_PART };
        let watch = usize::try_from(vm.table.count(Home::Resident) / part);
        let spare = self.dense.len().saturating_sub(watch.unwrap_or(usize::MAX));
        let mut chosen = Vec::new();
        let dense = from_fn(|| self.dense.pop_front());
        take(vm, dense, want.min(spare), is_frozen, &mut chosen);
        chosen.sort_unstable_by_key(PageGuard::gfn);
        chosen
    }

    /// Has frozen pages that did not compress go on waiting.
    pub(super) fn defer(&mut self, pages: &[Gfn]) {
        self.dense.extend(pages);
    }

    /// Freezes the next resident pages before the hand. `false`: there are none, or the guest's kernel refused.
    fn freeze(&mut self, vm: &Vm) -> Result<bool, EngineError> {
        let mut pages = Vec::with_capacity(FREEZE);
        let resident = |entry: Entry| entry.home() == Home::Resident && !entry.is_frozen();
        take(vm, round(vm, self.hand), FREEZE, resident, &mut pages);
        let Some(last) = pages.last() else {
            return Ok(false);
        };
        self.hand = last.gfn().0 + 1;
        pages.sort_unstable_by_key(PageGuard::gfn);
        let frozen = freeze(vm, pages.iter())?;
        if frozen {
            self.watched.extend(pages.iter().map(PageGuard::gfn));
        }
        Ok(frozen)
    }
}

/// Locks up to `want` pages whose home `qualifies`, in ascending order.
pub(super) fn choose<'a>(
    vm: &'a Vm,
    dice: &mut StdRng,
    want: usize,
    qualifies: impl Fn(Home) -> bool + Copy,
) -> Vec<PageGuard<'a>> {
    let qualifies = |entry: Entry| qualifies(entry.home());
    let pages = vm.table.pages();
    let run = if vm.vmas.is_exceeded(&vm.table) {
        RUN_SHORT_OF_VMAS
    } else {
        RUN
    };
    let mut chosen = Vec::with_capacity(want);
    for _ in 0..TRIES {
        let start = dice.random_range(0..pages) / run * run;
        let end = start.saturating_add(run).min(pages);
        take(vm, (start..end).map(Gfn), want, qualifies, &mut chosen);
        if chosen.len() == want {
            break;
        }
    }
    if chosen.len() < want {
        let all = round(vm, dice.random_range(0..pages));
        take(vm, all, want, qualifies, &mut chosen);
    }
    chosen.sort_unstable_by_key(PageGuard::gfn);
    chosen
}

/// All pages of the VM once, from `start` on and round.
fn round(vm: &Vm, start: u32) -> impl Iterator<Item = Gfn> {
    let pages = vm.table.pages();
    (start..pages).chain(0..start.min(pages)).map(Gfn)
}

/// Locks pages that qualify, until there are `want`. It takes no more out of `gfns` than it needs: that drains a queue.
fn take<'a>(
    vm: &'a Vm,
    mut gfns: impl Iterator<Item = Gfn>,
    want: usize,
    qualifies: impl Fn(Entry) -> bool,
    chosen: &mut Vec<PageGuard<'a>>,
) {
    while chosen.len() < want
        && let Some(gfn) = gfns.next()
    {
        // Asked before the lock, because a look is cheaper than a lock, and again under it, when it cannot change.
        if qualifies(vm.table.entry(gfn))
            && let Some(page) = vm.try_lock(gfn)
            && qualifies(page.entry())
        {
            chosen.push(page);
        }
    }
}
