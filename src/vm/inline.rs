//! Guests that make pages resident by themselves: locking their pages, and granting them credits.

use memvisor_wire::claims::Place;
use memvisor_wire::payload::checksum;

use super::Vm;
use crate::page::{Attempt, DonePage, Home, PageGuard, Urgency};
use crate::units::{Gfn, PAGE_SIZE, PageBuf, Pages, SlotId};

/// Why a page is not locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockError {
    /// Another thread of the daemon is moving it. Its unlock can be waited for.
    Busy,
    /// A thread of the guest has it. Only other threads of the guest wait for that thread.
    Claimed,
}

impl Vm {
    /// Locks a page. If its guest has brought it, the page table says so afterwards.
    ///
    /// # Errors
    /// [`LockError`]: who has the page.
    pub fn lock(&self, gfn: Gfn) -> Result<PageGuard<'_>, LockError> {
        match self.table.attempt(gfn) {
            Attempt::Locked(page) => Ok(page),
            Attempt::Busy => Err(LockError::Busy),
            Attempt::Claimed => Err(LockError::Claimed),
            Attempt::Done(page) => self.settle(page).ok_or(LockError::Claimed),
        }
    }

    /// As [`lock`](Self::lock), for callers that need no reason for a failure.
    #[must_use]
    pub fn try_lock(&self, gfn: Gfn) -> Option<PageGuard<'_>> {
        self.lock(gfn).ok()
    }

    /// Settles a page that its guest has brought: it becomes resident in the page table. The credit has paid for its
    /// memory, so nothing more is charged. A guest that lied has a hole there, which stays charged as if it were a
    /// page.
    fn settle<'a>(&self, page: DonePage<'a>) -> Option<PageGuard<'a>> {
        // Before the page changes its home: once its last shared page is gone, the VM may leave this pool at any
        // moment.
        let pool = self.pool();
        let page = page.settle()?;
        let old = page.home();
        if old == Home::Resident {
            page.set_open();
            self.note_wanted(&page);
            return Some(page);
        }
        let is_shared = matches!(old, Home::Shared(_));
        // The guest has remapped the page already. Until the entry shows it, no count of VMAs may cover the change.
        let _change = self.vmas.change(usize::from(is_shared));
        let was_cold = page.entry().is_cold();
        page.set_home(Home::Resident);
        page.set_open();
        if let Home::Shared(frame) = old {
            self.release_frame_of(&pool, frame);
            self.table.note_undone(page.gfn());
            self.stats.breaks.one();
            self.stats.inline_breaks.one();
            // Until now the page counted twice, as shared and as a credit: the VM holds one page less.
            self.wake_barred();
        } else if matches!(old, Home::Untouched | Home::Zero) {
            self.stats.first_touch.one();
            self.stats.inline_touches.one();
        } else {
            page.set_refilled();
            self.stats.cold_back.add(was_cold.into());
            self.release_wanted(page.gfn(), old);
            if matches!(old, Home::Swapped(_)) {
                // The guest has read its swap file itself, past the daemon's counters.
                self.swap.file.note_read();
                self.stats.refill_swap.one();
                self.stats.inline_swap_ins.one();
            } else {
                self.stats.refill_zip.one();
                self.stats.inline_refills.one();
            }
        }
        Some(page)
    }

    /// Counts an access to a resident page that was frozen.
    pub fn note_wanted(&self, page: &PageGuard<'_>) {
        if page.entry().is_sampled() {
            self.note_touch(page);
        } else if let Some(witness) = self.table.witness() {
            witness.accessed(page.gfn());
        }
    }

    /// Counts an access to the page if it is sampled.
    pub fn note_touch(&self, page: &PageGuard<'_>) {
        if page.entry().is_sampled() {
            page.set_sampled(false);
            self.activity.touch();
            if let Some(witness) = self.table.witness() {
                witness.accessed(page.gfn());
            }
        }
    }

    /// Settles all pages that the guest has brought: they become resident in the page table. Only for the VM's own
    /// threads: these have ended when the VM is torn down.
    pub fn settle_done(&self) {
        if let Some(claims) = self.table.claims() {
            // To lock a page is to settle it; nothing else is to be done under the lock.
            claims.done().for_each(|gfn| drop(self.try_lock(gfn)));
        }
    }

    /// Tells the guest where its locked page lies in the compression cache.
    pub fn describe_zip(&self, gfn: Gfn, slot: SlotId) {
        let Some(claims) = self.table.claims() else {
            return;
        };
        let place: Option<Place> = self.zip.lock().place(slot);
        if let Some(place) = place {
            claims.describe(gfn, place);
        }
    }

    /// Tells the guest in which slot of the swap file its locked page is; `content` is the page's content. A page of the
    /// host cache is not offered to it, so that what it is told of one does not matter.
    pub fn describe_swap(&self, gfn: Gfn, slot: SlotId, content: &PageBuf) {
        if let Some(claims) = self.table.claims() {
            // A file that is to be slow is slow for the daemon: the guest finds no page there, and asks.
            let slot = match self.swap.file.is_slowed() {
                true => SlotId(u32::MAX),
                false => slot,
            };
            let (page, sum) = (slot.0, checksum(&content.0));
            #[expect(clippy::cast_possible_truncation, reason = "a page is shorter")]
            let len = PAGE_SIZE as u16;
            let at = 0;
            claims.describe(gfn, Place { page, at, len, sum });
        }
    }

    /// Grants the guest credits until it holds `want`, as far as there is memory.
    pub fn grant_credits(&self, want: u32) {
        if let Some(claims) = self.table.claims() {
            // Checked before charging: a charge that fails for want of memory, or at the ceiling, would call the
            // policy.
            let is_there = || {
                let below = self.held().0.saturating_add(1) < self.orders.ceiling().0;
                // One page must be left, or the credits alone would make memory short.
                let is_free =
                    || !self.budget.is_awaited(Urgency::Touch) && self.budget.spare() > Pages(1);
                below && (self.has_granted_page() || is_free())
            };
            claims.grant(want, || is_there() && self.charge(Urgency::Touch));
            // A break in the middle of a run costs two VMAs. Near the limit the daemon breaks the rest of the run too.
            claims.allow_breaks(!self.vmas.is_exceeded(&self.table));
        }
    }

    /// Takes back the credits that the guest holds and has not used, and returns how many.
    pub fn take_back_credits(&self) -> u64 {
        // A broken page counts as shared and as a credit until it is settled, which alone can bring the VM below its
        // ceiling.
        self.settle_done();
        let pages = self.table.claims().map_or(0, |claims| claims.take_back());
        self.budget.give(pages);
        pages
    }
}
