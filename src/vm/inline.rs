//! Pages that the guest makes resident by itself: locking pages of such a guest, and its credits.

use memvisor_guest_agent::protocol::claims::Place;
use memvisor_guest_agent::protocol::payload::checksum;

use super::Vm;
use crate::page::{Attempt, DonePage, Home, PageGuard, Urgency};
use crate::units::{Gfn, PAGE_SIZE, PageBuf, Pages, SlotId};

/// Why a page is not locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unlocked {
    /// Another thread of the daemon is moving it; its unlock can be waited for.
    Busy,
    /// A thread of the guest has it; other threads of the guest wait for that one.
    Claimed,
}

impl Vm {
    /// Locks a page. What its guest has done with it is in its home then.
    ///
    /// # Errors
    /// [`Unlocked`] says who has it.
    pub fn lock(&self, gfn: Gfn) -> Result<PageGuard<'_>, Unlocked> {
        match self.table.attempt(gfn) {
            Attempt::Locked(page) => Ok(page),
            Attempt::Busy => Err(Unlocked::Busy),
            Attempt::Claimed => Err(Unlocked::Claimed),
            Attempt::Done(page) => self.settle(page).ok_or(Unlocked::Claimed),
        }
    }

    /// As [`lock`](Self::lock), for who does not ask why not.
    #[must_use]
    pub fn try_lock(&self, gfn: Gfn) -> Option<PageGuard<'_>> {
        self.lock(gfn).ok()
    }

    /// Makes a page resident that its guest has brought. Its memory is that of the credit, so nothing is
    /// charged; a guest that lied has a hole there, which is charged too.
    fn settle<'a>(&self, page: DonePage<'a>) -> Option<PageGuard<'a>> {
        // With its last shared page gone, the VM may leave the pool at any moment.
        let pool = self.pool();
        let page = page.settle()?;
        let old = page.home();
        if old == Home::Resident {
            page.set_open();
            return Some(page);
        }
        let is_shared = matches!(old, Home::Shared(_));
        let _change = self.vmas.change(usize::from(is_shared));
        page.set_home(Home::Resident);
        page.set_open();
        if let Home::Shared(frame) = old {
            self.release_frame_of(&pool, frame);
            self.table.back_off(page.gfn());
            self.stats.breaks.one();
            self.stats.inline_breaks.one();
            // It was counted as shared and as granted.
            self.call_barred();
        } else if matches!(old, Home::Untouched | Home::Zero) {
            self.stats.first_touch.one();
            self.stats.inline_touches.one();
        } else {
            page.set_refilled();
            self.release_wanted(page.gfn(), old);
            if matches!(old, Home::Swapped(_)) {
                self.swap.note_read();
                self.stats.refill_swap.one();
                self.stats.inline_swap_ins.one();
            } else {
                self.stats.refill_zip.one();
                self.stats.inline_refills.one();
            }
        }
        Some(page)
    }

    /// Moves all pages in the page table that the guest has brought. For the VM's own threads, which have ended when it is
    /// torn down.
    pub fn settle_done(&self) {
        if let Some(claims) = self.table.claims() {
            claims.done().for_each(|gfn| drop(self.try_lock(gfn)));
        }
    }

    /// Says to the guest where its locked page is compressed.
    pub fn describe_zip(&self, gfn: Gfn, slot: SlotId) {
        let Some(claims) = self.table.claims() else {
            return;
        };
        let place: Option<Place> = self.zip.lock().place(slot);
        if let Some(place) = place {
            claims.describe(gfn, place);
        }
    }

    /// Says to the guest in which slot of the swap file its locked page is that has this content.
    pub fn describe_swap(&self, gfn: Gfn, slot: SlotId, content: &PageBuf) {
        if let Some(claims) = self.table.claims() {
            let (page, sum) = (slot.0, checksum(&content.0));
            #[expect(clippy::cast_possible_truncation, reason = "a page is shorter")]
            let len = PAGE_SIZE as u16;
            let at = 0;
            claims.describe(gfn, Place { page, at, len, sum });
        }
    }

    /// Lets the guest hold `want` pages of memory for its own use, as far as there are some.
    pub fn grant_credits(&self, want: u32) {
        if let Some(claims) = self.table.claims() {
            // Asking for what is not there would call the policy, and so would reaching the ceiling.
            let is_there = || {
                let below = self.held().0.saturating_add(1) < self.orders.ceiling().0;
                // One more, or memory would be short by what was granted.
                let is_free =
                    || !self.budget.is_awaited(Urgency::Touch) && self.budget.spare() > Pages(1);
                below && (self.has_page_at_hand() || is_free())
            };
            claims.grant(want, || is_there() && self.charge(Urgency::Touch));
            claims.allow_breaks(!self.vmas.is_exceeded(&self.table));
        }
    }

    /// Takes back what the guest holds and has not used; how many pages.
    pub fn take_back_credits(&self) -> u64 {
        self.settle_done();
        let pages = self.table.claims().map_or(0, |claims| claims.take_back());
        self.budget.give(pages);
        pages
    }
}
