//! A map of free pages in memory that guest and host share: the host takes pages without a message.
//!
//! The host moves a page from FREE to MOVING before it takes the page's memory, and the guest one from FREE to USED
//! before it uses it, so only one of them has it. The host believes the map in one thing: that a page which it has
//! moved from FREE may be dropped. Which pages it has, it knows from the page table. Each look at the map passes each
//! page once, so a guest that writes it all the time keeps the host no longer than another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use memvisor_wire::balloon::{
    FreeMap, MAX_BATCH_PAGES, MAX_RANGES, PageState, PageStatus, ToAgent, ToHost, map_words,
};
use memvisor_wire::claims::Words;

use super::{Variant, give_back, pages_ok, target};
use crate::balloon::BalloonVm;
use crate::balloon::counters::add;
use crate::sys::SharedWords;
use crate::units::{Gfn, GfnRun, RunsExt};

/// See the module text.
#[derive(Debug)]
pub(super) struct Bitmap {
    pub(super) map: FreeMap<Arc<SharedWords>>,
    /// Where the host looks first for free pages, and for pages to give back.
    from: u32,
}

impl Bitmap {
    /// An empty map for a VM.
    ///
    /// # Errors
    /// When the memory for it cannot be created or mapped.
    pub(super) fn new(vm: &dyn BalloonVm) -> io::Result<Self> {
        let pages = u32::try_from(vm.total_pages()).unwrap_or(u32::MAX);
        // To keep: a guest leaves the map in order after the session has ended, and must be able to read it then. It
        // is two bits a page, and a guest could have as much memory of its own.
        let words = SharedWords::kept("memvisor-free-map", map_words(pages))?;
        let map = FreeMap::new(Arc::new(words), pages);
        Ok(Self { map, from: 0 })
    }

    /// Takes free pages, at most a batch. Returns how many it worked for.
    fn take(&mut self, vm: &dyn BalloonVm) -> u64 {
        let missing = target(vm).saturating_sub(vm.locked());
        let moving = self.claim(missing.min(MAX_BATCH_PAGES.into()) as u32);
        if moving.is_empty() {
            return 0;
        }
        let answer = vm.lock(&moving);
        for part in &answer {
            let to = match part.status {
                PageStatus::Ok | PageStatus::AlreadyLocked => PageState::Taken,
                _ => PageState::Free,
            };
            // A guest that has moved some of them against the rules will find the rest MOVING, which is its loss.
            let _ = self.map.change_run(part.run, PageState::Moving, to);
        }
        add(&vm.counters().inflated_pages, pages_ok(&answer));
        // Pages that are busy are no work to be done again at once.
        pages_ok(&answer)
    }

    /// Moves up to `most` free pages to MOVING; ascending.
    fn claim(&mut self, most: u32) -> Vec<GfnRun> {
        let start = self.from.min(self.map.pages());
        let mut claimed = Vec::new();
        // Each page is passed once: from `start` to the end, then from the first page to `start`.
        for (mut at, end) in [(start, self.map.pages()), (0, start)] {
            while claimed.len() < MAX_RANGES
                && let left = most - claimed.pages() as u32
                && left > 0
                && let Some(run) = self.map.next_free(Gfn(at), left)
                && run.start.0 < end
            {
                let within = GfnRun::new(run.start, run.count.min(end - run.start.0));
                let count = self
                    .map
                    .change_run(within, PageState::Free, PageState::Moving);
                if count > 0 {
                    claimed.push(GfnRun::new(run.start, count));
                }
                at = run.start.0 + count.max(1);
                self.from = at;
            }
        }
        claimed.sort_unstable_by_key(|run| run.start);
        claimed
    }
}

impl Variant for Bitmap {
    fn answer(&mut self, _vm: &dyn BalloonVm, _message: &ToHost) -> Option<ToAgent> {
        None
    }

    fn act(&mut self, vm: &dyn BalloonVm) -> u64 {
        let taken = self.take(vm);
        if taken > 0 {
            return taken;
        }
        let given = give_back(vm, &mut self.from);
        let back = |status| matches!(status, PageStatus::Ok | PageStatus::NotLocked);
        for part in given.iter().filter(|part| back(part.status)) {
            for gfn in part.run.iter() {
                // Not if the guest has moved it, as one does that stops using the map.
                let _ = self.map.change(gfn, PageState::Taken, PageState::Free);
            }
        }
        pages_ok(&given)
    }

    fn is_counted_by_agent(&self) -> bool {
        false
    }

    fn shared(&self) -> Option<(&dyn Words, u32)> {
        let count = u32::try_from(map_words(self.map.pages())).ok()?;
        Some((self.map.words(), count))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.map.words().as_fd())
    }
}
