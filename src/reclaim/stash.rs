//! Moves the content of pages to where it costs less: into the compression cache, else into the host cache or the
//! swap file.

use std::error::Error;

use memvisor_wire::payload::checksum;

use crate::compress::{Compressor, StoreRefused};
use crate::digest::digest;
use crate::page::{Home, Urgency};
use crate::seeded::Seeded;
use crate::swap::{SlotRun, SwapError};
use crate::units::{Gfn, PAGE_SIZE, PageBuf, Pages, SlotId};
use crate::vm::Vm;

/// The oldest pages of a full cache leave in groups of this many, so that they are written to swap as one cluster.
const SPILL: usize = 32;
/// Old pages that are looked at to find so many: some may be locked by a fault.
const SPILL_SCAN: usize = 2 * SPILL;

/// Why a page is not in the compression cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotZipped {
    /// It does not compress to half its size.
    Dense,
    /// The cache is full and its pages cannot move on to the swap file, or there is no memory for it to grow.
    NoRoom,
}

/// Pages that wait to be written to the swap file in one cluster. Its owner keeps it and uses it again: a
/// buffer of this size that is allocated for each batch would be new memory each time, which the kernel
/// clears and maps page by page.
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

    /// Writes the pages, and returns the slot of each; `None` for those that neither the host cache nor the swap file
    /// took.
    pub(super) fn write(&self, vm: &Vm) -> Vec<Option<SlotId>> {
        let mut slots = self.write_to_cache(vm);
        slots.extend(self.write_behind(vm, slots.len(), |count| vm.swap.allocate(count)));
        for (at, slot) in slots.iter().enumerate() {
            if let Some(slot) = slot {
                self.describe(vm, at, *slot);
            }
        }
        slots
    }

    /// Writes the pages to the swap file, into slots from `allocate`, and returns the slot of each; `None` for those that
    /// it did not take. Nobody is told yet where they are.
    pub(super) fn write_to_file(
        &self,
        vm: &Vm,
        allocate: impl FnOnce(u32) -> Vec<SlotRun>,
    ) -> Vec<Option<SlotId>> {
        self.write_behind(vm, 0, allocate)
    }

    /// Tells whom it concerns that the page at `at`, which is locked, is in this slot.
    pub(super) fn describe(&self, vm: &Vm, at: usize, slot: SlotId) {
        vm.describe_swap(self.gfns[at], slot, &self.contents[at]);
        if let Some(witness) = vm.table.witness() {
            witness.hashed(self.gfns[at], self.digests[at]);
        }
    }

    /// Writes the first pages to the host cache, as many as it takes.
    fn write_to_cache(&self, vm: &Vm) -> Vec<Option<SlotId>> {
        let Some(cache) = &vm.swap.cache else {
            return Vec::new();
        };
        let (stored, result) = vm
            .swap
            .store_cached(&self.gfns, &self.contents, &self.digests);
        match result {
            Err(error) => {
                vm.stats.cache_errors.one();
                if cache.note_failing(true) {
                    let error: &dyn Error = &error;
                    let vm = &vm.params.name;
                    tracing::error!(%vm, error, "the host cache fails, pages go to the swap file");
                }
            }
            Ok(()) if !stored.is_empty() && cache.note_failing(false) => {
                tracing::info!(vm = %vm.params.name, "the host cache takes pages again");
            }
            Ok(()) => {}
        }
        stored.into_iter().map(Some).collect()
    }

    /// Writes the pages from `first` on to the swap file.
    fn write_behind(
        &self,
        vm: &Vm,
        first: usize,
        allocate: impl FnOnce(u32) -> Vec<SlotRun>,
    ) -> Vec<Option<SlotId>> {
        let (contents, digests) = (&self.contents[first..], &self.digests[first..]);
        let count = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let runs = if count == 0 {
            Vec::new()
        } else {
            allocate(count)
        };
        let mut slots = Vec::with_capacity(contents.len());
        for run in runs {
            let range = slots.len()..slots.len() + run.len as usize;
            let written = vm
                .swap
                .file
                .write(run, &contents[range.clone()], &digests[range]);
            // A run that cannot be written costs only its own pages: the others may lie on a sound part of the disk.
            slots.extend(run.slots().map(|slot| written.is_ok().then_some(slot)));
            note_written(vm, run, written);
        }
        // The swap file may have had fewer free slots than there are pages.
        slots.resize(contents.len(), None);
        slots
    }
}

/// Takes note of a write. A failure is logged once, not once for each batch, and the pages stay where they were.
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

/// Compresses a page into the cache. `may_spill`: the oldest pages of a full cache make room for it.
///
/// # Errors
/// [`NotZipped`]: why it is not in the cache.
pub(super) fn zip(
    vm: &Vm,
    compressor: &mut Compressor,
    gfn: Gfn,
    content: &PageBuf,
    may_spill: bool,
) -> Result<SlotId, NotZipped> {
    let Some(payload) = compressor.compress(content) else {
        vm.stats.incompressible.one();
        note_size(vm, gfn, PAGE_SIZE);
        return Err(NotZipped::Dense);
    };
    note_size(vm, gfn, payload.len());
    let sum = checksum(&content.0);
    let stored = match store(vm, gfn, payload, sum) {
        Err(StoreRefused::Full { .. }) if may_spill && spill(vm, SPILL) > Pages(0) => {
            store(vm, gfn, payload, sum)
        }
        stored => stored,
    };
    stored.map_err(|_| NotZipped::NoRoom)
}

fn note_size(vm: &Vm, gfn: Gfn, bytes: usize) {
    if let Some(witness) = vm.table.witness() {
        witness.compressed(gfn, u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

fn store(vm: &Vm, gfn: Gfn, payload: &[u8], sum: u32) -> Result<SlotId, StoreRefused> {
    let mut zip = vm.zip.lock();
    let before = zip.pages_used();
    // Charged before the cache grows, because nothing may be allocated that is not paid for.
    let granted = zip.would_grow(payload.len()) && vm.budget.take(1, Urgency::Reclaim);
    let stored = zip.store(gfn, payload, sum, granted);
    let after = zip.pages_used();
    drop(zip);
    // The granted page may not have been needed, and the cache may even have fewer pages than before.
    vm.budget
        .give(u64::from(before) + u64::from(granted) - u64::from(after));
    if let Ok(slot) = stored
        && !Seeded::StaleSlot.is_sown()
    {
        vm.describe_zip(gfn, slot);
    }
    stored
}

/// Shrinks a cache that is above its cap or its limit, because either has fallen or the cache has grown. Moves up to
/// `most` of its oldest pages to the swap file, a cluster at a time, and returns how many. None move when the cache is
/// within both, or when the swap file takes nothing.
///
/// A page that moves frees its arena page only if no other page is left in it, so a step may free no memory. But the
/// pages of one arena page came at about the same time, so a few steps free most of the memory that they moved out.
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

/// Moves up to `want` of the oldest pages of the cache to the swap file, at most one cluster, and returns how many.
/// They are written decompressed, as in ESX. This takes no memory and needs nothing of the guest.
pub(super) fn spill(vm: &Vm, want: usize) -> Pages {
    // A batch of eviction asks for more than one cluster holds; the rest comes with the next batch.
    let want = want.min(SPILL);
    let oldest: Vec<(Gfn, SlotId)> = vm.zip.lock().by_age().take(SPILL_SCAN).collect();
    let mut cluster = Cluster::default();
    let mut pages = Vec::with_capacity(SPILL);
    let mut content = PageBuf::zeroed();
    // The list was made under the cache's lock, which is given back before pages are locked: page locks come first.
    for (gfn, slot) in oldest {
        if pages.len() == want {
            break;
        }
        let Some(page) = vm.try_lock(gfn) else {
            continue;
        };
        // A page that is damaged in the cache stays there: the fault that needs it reports the damage.
        if page.home() == Home::Compressed(slot) && vm.zip.lock().load(slot, &mut content).is_ok() {
            cluster.push(gfn, &content);
            pages.push((page, slot));
        }
    }
    // Before the pages leave: the ghosts remember about as many pages as the cache kept then.
    let (stored, limit) = {
        let zip = vm.zip.lock();
        (zip.stored(), zip.limit())
    };
    let mut spilled = 0;
    for ((page, old), new) in pages.into_iter().zip(cluster.write(vm)) {
        if let Some(slot) = new {
            // Before the page is unlocked, when a fault can bring it back.
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
