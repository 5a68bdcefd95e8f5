//! Most guests use some pages much more than others, and a random choice takes a used page as often as any other; each
//! then costs a refill at once. So victims get a *second chance*. A hand goes round the VM and freezes resident pages
//! ahead of need. They wait in a queue. A page that the guest wants meanwhile comes back for a minor fault; a page that
//! nobody has wanted back when it reaches the head of the queue is evicted. A used page costs the guest one minor fault
//! for each round of the hand. The longer the queue, the more pages are found to be used.
//!
//! A victim that does not compress would have to go to the swap file, from where pages come back more slowly than from
//! the cache. So it goes on waiting, in a second queue of the same length, and is swapped only if nobody has wanted it
//! back when it reaches the head of that one. Which page does not compress is known from the first attempt of its stay in
//! RAM. When the hand comes round to it again, it goes on to the second queue unread: most of these pages are used, and
//! to read and compress them again each round would cost more than all that leaves. A page that has become compressible
//! meanwhile is swapped once for nothing.
//!
//! The page table knows which victims are still frozen: whoever gives a page back marks it open, under its lock, and
//! where the guest's kernel has refused a freeze or a thaw, no page is marked frozen. So a victim need not be frozen
//! again.

use std::collections::VecDeque;
use std::iter::from_fn;

use fixedbitset::FixedBitSet;
use rand::rngs::StdRng;

use super::{Victims, round, take};
use crate::engine::EngineError;
use crate::page::{Entry, Home, PageGuard};
use crate::remap::freeze;
use crate::units::Gfn;
use crate::vm::Vm;

/// The part of the resident pages, one in so many, that waits frozen for its second chance in each of the two queues.
/// The longer the queues, the more used pages are found, and the more minor faults these cost.
const WATCHED_PART: u64 = 4;
/// Pages frozen at once: they share the cost of one command to the shim.
const FREEZE: usize = 128;
/// The most freezes for one batch. The queue need not be full before the first eviction.
const FREEZES: u32 = 8;

/// The queue of a VM's pages that have a second chance. See the module text.
#[derive(Debug, Default)]
pub(in super::super) struct SecondChance {
    hand: u32,
    watched: VecDeque<Gfn>,
    dense: Dense,
}

/// Whether a page is resident and frozen.
pub(in super::super) fn is_frozen(entry: Entry) -> bool {
    entry.home() == Home::Resident && entry.is_frozen()
}

impl Victims for SecondChance {
    fn choose<'a>(
        &mut self,
        vm: &'a Vm,
        _: &mut StdRng,
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
        Ok(chosen)
    }

    fn dense(&mut self) -> Option<&mut Dense> {
        Some(&mut self.dense)
    }
}

impl SecondChance {
    /// Freezes the next resident pages before the hand. `false`: there are none, or the guest's kernel refused.
    fn freeze(&mut self, vm: &Vm) -> Result<bool, EngineError> {
        let mut pages = Vec::with_capacity(FREEZE);
        let resident = |entry: Entry| entry.home() == Home::Resident && !entry.is_frozen();
        take(vm, round(vm, self.hand), FREEZE, resident, &mut pages);
        let Some(last) = pages.last() else {
            return Ok(false);
        };
        // Before sorting: the hand may have come round, and then the last page taken is not the highest.
        self.hand = last.gfn().0 + 1;
        pages.sort_unstable_by_key(PageGuard::gfn);
        let frozen = freeze(vm, pages.iter())?;
        if frozen {
            self.watched.extend(pages.iter().map(PageGuard::gfn));
        }
        Ok(frozen)
    }
}

/// Pages that did not compress.
#[derive(Debug, Default)]
pub(in super::super) struct Dense {
    /// Those that wait frozen, the oldest first.
    queue: VecDeque<Gfn>,
    /// Those that have waited here and have not been swapped since: a bit for each page of the VM.
    known: FixedBitSet,
}

impl Dense {
    /// Has pages go on waiting.
    pub(in super::super) fn defer(&mut self, pages: &[Gfn]) {
        self.queue.extend(pages);
        for gfn in pages {
            self.known.grow_and_insert(gfn.0 as usize);
        }
    }

    /// Whether a page is known not to compress.
    pub(in super::super) fn knows(&self, gfn: Gfn) -> bool {
        self.known.contains(gfn.0 as usize)
    }

    /// Locks up to `want` pages that nobody has wanted back, in ascending order, as far as the queue is longer than it
    /// may be; in a `hurry`, whatever its length.
    pub(in super::super) fn choose<'a>(
        &mut self,
        vm: &'a Vm,
        want: usize,
        hurry: bool,
    ) -> Vec<PageGuard<'a>> {
        let part = if hurry { u64::MAX } else { WATCHED_PART };
        let watch = usize::try_from(vm.table.count(Home::Resident) / part);
        // Only what is in excess of the queue's length has had its time.
        let spare = self.queue.len().saturating_sub(watch.unwrap_or(usize::MAX));
        let mut chosen = Vec::new();
        let dense = from_fn(|| self.queue.pop_front());
        take(vm, dense, want.min(spare), is_frozen, &mut chosen);
        for page in &chosen {
            // If it comes back from the swap file, its content may be another by the time it is a victim again.
            self.known.set(page.gfn().0 as usize, false);
        }
        chosen.sort_unstable_by_key(PageGuard::gfn);
        chosen
    }
}
