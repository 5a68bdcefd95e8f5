//! Putting the content of pages where it costs less: the compression cache, else the swap file.

use std::error::Error;

use memvisor_guest_agent::protocol::payload::checksum;

use crate::compress::{Compressor, StoreRefused};
use crate::digest::digest;
use crate::page::{Home, Urgency};
use crate::seeded::Seeded;
use crate::swap::{SlotRun, SwapError};
use crate::units::{Gfn, PageBuf, Pages, SlotId};
use crate::vm::Vm;

/// Oldest pages of a full cache that leave at once, so that their swap write is one cluster.
const SPILL: usize = 32;
/// Old pages looked at for that: some may be locked by a fault just now.
const SPILL_LOOKS: usize = 2 * SPILL;

/// Why a page is not in the compression cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotZipped {
    /// It does not reach half its size.
    Dense,
    /// The cache is full of pages that nothing else takes, or there is no memory for it to grow.
    NoRoom,
}

/// Pages that wait to be written to the swap file in one cluster. Its owner uses it again and again: a
/// buffer of so many pages that is allocated for each batch is new memory each time, which the kernel
/// clears and maps a page at a time.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    gfns: Vec<Gfn>,
    contents: Vec<PageBuf>,
    digests: Vec<u64>,
}

impl Cluster {
    /// Forgets what waits, for a new batch.
    pub(super) fn clear(&mut self) {
        self.gfns.clear();
        self.contents.clear();
        self.digests.clear();
    }

    /// Adds a page, which stays locked until it is [written](Self::write).
    pub(super) fn push(&mut self, gfn: Gfn, content: &PageBuf) {
        self.gfns.push(gfn);
        self.contents.push(content.clone());
        self.digests.push(digest(content));
    }

    /// Writes the pages; the slot of each, `None` for those that the swap file did not take.
    pub(super) fn write(&self, vm: &Vm) -> Vec<Option<SlotId>> {
        let mut slots = Vec::with_capacity(self.contents.len());
        let count = u32::try_from(self.contents.len()).unwrap_or(u32::MAX);
        let runs = if count == 0 {
            Vec::new()
        } else {
            vm.swap.allocate(count)
        };
        for run in runs {
            let range = slots.len()..slots.len() + run.len as usize;
            let written = vm.swap.write(
                run,
                &self.contents[range.clone()],
                &self.digests[range.clone()],
            );
            slots.extend(run.slots().map(|slot| written.is_ok().then_some(slot)));
            if written.is_ok() {
                for (slot, at) in run.slots().zip(range) {
                    vm.describe_swap(self.gfns[at], slot, &self.contents[at]);
                }
            }
            note_written(vm, run, written);
        }
        slots.resize(self.contents.len(), None);
        slots
    }
}

/// A failed write is said once, not once a batch; the pages stay where they were.
fn note_written(vm: &Vm, run: SlotRun, written: Result<(), SwapError>) {
    match written {
        Ok(()) => {
            if vm.set_swap_failing(false) {
                tracing::info!(vm = %vm.params.name, "the swap file takes pages again");
            }
        }
        Err(error) => {
            run.slots().for_each(|slot| vm.swap.free(slot));
            vm.stats.swap_errors.one();
            if vm.set_swap_failing(true) {
                let error: &dyn Error = &error;
                tracing::error!(vm = %vm.params.name, error, "swap fails, pages stay in memory");
            }
        }
    }
}

/// Compresses a page into the cache; where it `may_spill`, the oldest there make room for it.
///
/// # Errors
/// [`NotZipped`] says why it is not there.
pub(super) fn zip(
    vm: &Vm,
    compressor: &mut Compressor,
    gfn: Gfn,
    content: &PageBuf,
    may_spill: bool,
) -> Result<SlotId, NotZipped> {
    let Some(payload) = compressor.compress(content) else {
        vm.stats.incompressible.one();
        return Err(NotZipped::Dense);
    };
    let sum = checksum(&content.0);
    let stored = match store(vm, gfn, payload, sum) {
        Err(StoreRefused::Full { .. }) if may_spill && spill(vm, SPILL) > Pages(0) => {
            store(vm, gfn, payload, sum)
        }
        stored => stored,
    };
    stored.map_err(|_| NotZipped::NoRoom)
}

fn store(vm: &Vm, gfn: Gfn, payload: &[u8], sum: u32) -> Result<SlotId, StoreRefused> {
    let mut zip = vm.zip.lock();
    let before = zip.pages_used();
    let granted = zip.would_grow(payload.len()) && vm.budget.take(1, Urgency::Reclaim);
    let stored = zip.store(gfn, payload, sum, granted);
    let after = zip.pages_used();
    drop(zip);
    // It may have fewer now.
    vm.budget
        .give(u64::from(before) + u64::from(granted) - u64::from(after));
    if let Ok(slot) = stored
        && !Seeded::StaleSlot.is_sown()
    {
        vm.describe_zip(gfn, slot);
    }
    stored
}

/// Brings a cache that is above its cap or its limit, because that has fallen or it has grown, down to it: moves up to
/// `most` of its oldest pages to the swap file, a cluster at a time. How many moved; none when the cache is
/// within both, or when the swap file takes nothing.
///
/// A page that moves frees an arena page only with the last other one that touches it, so a step may
/// free none. The pages of one arena page came at about the same time: a few steps free most of what
/// they moved.
pub(super) fn trim_cache(vm: &Vm, most: usize) -> Pages {
    let mut moved = 0;
    while moved < most {
        vm.give_back_emptied();
        if !vm.zip.lock().is_above_limit() {
            break;
        }
        match spill(vm, most - moved).0 {
            0 => break,
            pages => moved += usize::try_from(pages).unwrap_or(SPILL),
        }
    }
    Pages(moved as u64)
}

/// Moves up to `want` of the oldest pages of the cache to the swap file, decompressed, as ESX does, at
/// most one cluster; how many. It takes no memory and needs nothing of the guest.
pub(super) fn spill(vm: &Vm, want: usize) -> Pages {
    let want = want.min(SPILL);
    let oldest: Vec<(Gfn, SlotId)> = vm.zip.lock().by_age().take(SPILL_LOOKS).collect();
    let mut cluster = Cluster::default();
    let mut pages = Vec::with_capacity(SPILL);
    let mut content = PageBuf::zeroed();
    for (gfn, slot) in oldest {
        if pages.len() == want {
            break;
        }
        let Some(page) = vm.try_lock(gfn) else {
            continue;
        };
        // A page that is damaged here stays: the fault that needs it reports it.
        if page.home() == Home::Compressed(slot) && vm.zip.lock().load(slot, &mut content).is_ok() {
            cluster.push(gfn, &content);
            pages.push((page, slot));
        }
    }
    let (stored, limit) = {
        let zip = vm.zip.lock();
        (zip.stored(), zip.limit())
    };
    let mut spilled = 0;
    for ((page, old), new) in pages.into_iter().zip(cluster.write(vm)) {
        if let Some(slot) = new {
            // Before anybody can bring it back.
            if limit.is_some() {
                vm.ghosts.note(page.gfn(), stored);
            }
            page.set_home(Home::Swapped(slot));
            vm.release_zip(old);
            spilled += 1;
        }
    }
    vm.stats.spilled.add(spilled);
    Pages(spilled)
}
