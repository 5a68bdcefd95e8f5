//! Demoting pages: from the host cache to the swap file.
//!
//! Pages are swapped into the host cache while it has room. The oldest have to leave before it has none, because the
//! page that was evicted last is the one that is likeliest to be wanted back soon. They leave here, in clusters, and not
//! where a page is evicted or brought back: the swap file may be slow, and a guest that waits for memory, or for a page,
//! must not wait for a page of a minute ago.
//!
//! A page could be locked while it is copied. Then a fault on it would wait for the slow disk's write, although the fast
//! disk has the page. So the copy is made first, without a lock. Only then is each page locked, for as long as it takes to
//! change its home. If it has left its slot by then, its guest has it, and the copy is dropped. It cannot have come back
//! to that slot with other bytes, because this thread alone writes there.
//!
//! The copy always has a place: the swap file has one for each page that may be swapped, and the pages in the cache are
//! counted as if they were in it. If the disk of the swap file fails, pages stay in the cache. If that of the cache fails
//! to write, all pages leave it that can still be read, and it is tried again a while later.

use std::error::Error;
use std::time::{Duration, Instant};

use super::stash::Cluster;
use crate::page::Home;
use crate::swap::{CacheFile, SlotRun, SwapError, Trouble, Victim};
use crate::units::PageBuf;
use crate::vm::Vm;

/// Pages that leave together: one write of 256 KiB.
const CLUSTER: u32 = 64;
/// How long to wait where no page could leave.
const PAUSE: Duration = Duration::from_millis(500);
/// How long to leave demoting to later while guests wait for memory and the cache still has room.
const YIELD: Duration = Duration::from_millis(20);
/// When a cache that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Demotes the pages of one VM; belongs to its worker.
#[derive(Debug, Default)]
pub(super) struct Demoter {
    due: Option<Instant>,
    /// Since when the cache has not taken pages.
    troubled: Option<Instant>,
    /// Whether the latest pages could not be read.
    unreadable: bool,
}

/// What became of the pages that were to be demoted.
#[derive(Debug, Default)]
struct Outcome {
    /// They have left the cache, or were not there any more.
    gone: usize,
    /// Why some could not be read.
    unread: Option<SwapError>,
}

impl Demoter {
    /// When there is something to do again; `None`: at the worker's next turn, whenever that is.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Demotes a cluster, unless it is too early for the next one.
    pub(super) fn step(&mut self, vm: &Vm, now: Instant) {
        let Some(cache) = &vm.swap.cache else {
            return;
        };
        self.try_again(cache, now);
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        let stats = cache.stats();
        if vm.budget.starving() > 0 && stats.used < stats.slots && !cache.is_beyond_cap() {
            self.due = Some(now + YIELD);
            return;
        }
        // Before the victims are chosen: pages behind the end that the file shall have are among them.
        if let Err(error) = cache.fit() {
            let error: &dyn Error = &error;
            tracing::debug!(vm = %vm.params.name, error, "disk space is given back later");
        }
        let victims = cache.victims(CLUSTER);
        let outcome = demote(vm, cache, &victims);
        self.tell(vm, outcome.unread);
        self.due = match (victims.len(), outcome.gone) {
            (0, _) => None,
            (_, 0) => {
                cache.renew(&victims);
                Some(now + PAUSE)
            }
            // At once, for the rest and to give back what is free now; the worker does its other jobs in between.
            _ => Some(now),
        };
    }

    /// Lets a cache take pages again that has not for a while.
    fn try_again(&mut self, cache: &CacheFile, now: Instant) {
        if cache.trouble() == Trouble::None {
            self.troubled = None;
        } else if now >= *self.troubled.get_or_insert(now) + TRY_AGAIN {
            self.troubled = None;
            cache.set_trouble(Trouble::None);
        }
    }

    /// Logs once that pages cannot be read, not once for each cluster.
    fn tell(&mut self, vm: &Vm, unread: Option<SwapError>) {
        let is_new = !std::mem::replace(&mut self.unreadable, unread.is_some());
        if let Some(error) = unread
            && is_new
        {
            let error: &dyn Error = &error;
            let vm = &vm.params.name;
            tracing::error!(%vm, error, "a page cannot be read: its VM ends if its guest wants it");
        }
    }
}

/// Moves pages to the swap file, as far as they are still in the cache.
fn demote(vm: &Vm, cache: &CacheFile, victims: &[Victim]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut cluster = Cluster::default();
    let mut leaving = Vec::with_capacity(victims.len());
    let mut contents = vec![PageBuf::zeroed(); victims.len()];
    let runs = victims.chunk_by(|one, next| one.slot.0 + 1 == next.slot.0);
    let mut rest = &mut contents[..];
    for run in runs {
        let (pages, behind) = rest.split_at_mut(run.len());
        rest = behind;
        let read = read(cache, run, pages, &mut outcome);
        for (victim, page) in run
            .iter()
            .zip(pages)
            .zip(read)
            .filter_map(|(it, ok)| ok.then_some(it))
        {
            if vm.table.entry(victim.gfn).home() == Home::Swapped(victim.slot) {
                cluster.push(victim.gfn, page);
                leaving.push(victim);
            } else {
                outcome.gone += 1;
            }
        }
    }
    let written = cluster.write_to_file(vm, |count| vm.swap.file.allocate(count));
    for (at, (old, new)) in leaving.into_iter().zip(written).enumerate() {
        let Some(new) = new else { continue };
        let page = vm.try_lock(old.gfn);
        let page = page.filter(|page| page.home() == Home::Swapped(old.slot));
        let Some(page) = page else {
            vm.swap.free(new);
            outcome.gone += 1;
            continue;
        };
        cluster.describe(vm, at, new);
        page.set_home(Home::Swapped(new));
        // After the home has changed: a free slot can get another page's bytes while the entry names it.
        vm.swap.free(old.slot);
        vm.stats.demoted.one();
        outcome.gone += 1;
    }
    outcome
}

/// Reads the pages of neighbouring slots, together or, if that fails, each by itself. Which ones were read.
fn read(
    cache: &CacheFile,
    run: &[Victim],
    pages: &mut [PageBuf],
    outcome: &mut Outcome,
) -> Vec<bool> {
    let slots = |from: &[Victim]| SlotRun {
        start: from[0].slot,
        len: u32::try_from(from.len()).unwrap_or(u32::MAX),
    };
    if cache.read_held(slots(run), pages).is_ok() {
        return vec![true; run.len()];
    }
    let each = run.chunks(1).zip(pages.chunks_mut(1));
    let read = |(victim, page): (&[Victim], &mut [PageBuf])| {
        let read = cache.read_held(slots(victim), page);
        read.map_err(|error| outcome.unread = Some(error)).is_ok()
    };
    each.map(read).collect()
}
