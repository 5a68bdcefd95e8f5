//! Locked pages.

use memvisor_wire::claims::State;

use super::{
    CAUSE, COLD, Entry, FROZEN, KIND, LOCKED, OPEN, PAYLOAD_SHIFT, PageTable, REFILLED, SAMPLED,
    UNSEEN, WAITED,
};
use crate::page::home::Home;
use crate::seeded::Seeded;
use crate::sync::Ordering;
use crate::units::Gfn;

#[cfg(doc)]
use crate::page::Claims;

/// The lock of one page; dropping it unlocks the page and wakes the faults that wait for it.
#[derive(Debug)]
pub struct PageGuard<'a> {
    pub(super) table: &'a PageTable,
    pub(super) gfn: Gfn,
    /// Whether the page is offered to its guest when it is unlocked.
    pub(super) offers: bool,
}

/// A locked page that its guest says it has brought. Dropping it unlocks the page as it is.
#[derive(Debug)]
pub struct DonePage<'a> {
    pub(super) guard: PageGuard<'a>,
    pub(super) credit: u32,
}

impl<'a> DonePage<'a> {
    /// Accepts what the guest says: the credit is used up, and the caller must make the page resident.
    /// `None`: the guest did not have the credit ([`Claims::violation`]).
    #[must_use]
    pub fn settle(mut self) -> Option<PageGuard<'a>> {
        let claims = self.guard.table.claims.as_ref()?;
        let settled = claims.settle(self.guard.gfn, self.guard.home(), self.credit);
        self.guard.offers = settled;
        settled.then_some(self.guard)
    }
}

/// A page that stays locked until the guest has confirmed a mapping; see [`PageTable::resume`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is kept locked and forgotten is locked for ever"]
pub struct KeptPage(pub(super) Gfn);

impl KeptPage {
    /// Which page.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        self.0
    }
}

impl PageGuard<'_> {
    /// Which page.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// Its entry. Nobody else can change its home.
    #[must_use]
    pub fn entry(&self) -> Entry {
        self.table.entry(self.gfn)
    }

    /// Its home.
    #[must_use]
    pub fn home(&self) -> Home {
        self.entry().home()
    }

    /// Moves the page to another home.
    ///
    /// # Panics
    /// When the move is not in the table of legal ones ([`Home::may_become`]): going on would lose a page.
    pub fn set_home(&self, home: Home) {
        let from = self.home();
        assert!(
            from.may_become(home),
            "{}: {from:?} may not become {home:?}; {}",
            self.gfn,
            self.table.history.of(self.gfn)
        );
        // A page that is mapped from the pool can be read at once: its mark would stay, as no fault counts the access.
        let lost = match home {
            Home::Shared(_) => SAMPLED,
            _ => 0,
        };
        // A cold page stays one while it moves from store to store.
        let warm = match home {
            Home::Compressed(_) | Home::Swapped(_) => 0,
            _ => COLD,
        };
        let lost = lost | warm;
        let clear = KIND
            | OPEN
            | FROZEN
            | REFILLED
            | UNSEEN
            | CAUSE
            | lost
            | u64::from(u32::MAX) << PAYLOAD_SHIFT;
        let unseen = if home == Home::Resident { UNSEEN } else { 0 };
        let set = home.kind() as u64 | unseen | u64::from(home.payload()) << PAYLOAD_SHIFT;
        self.table.update(self.gfn, clear, set);
        self.table.counts[from.kind()].fetch_sub(1, Ordering::Relaxed);
        self.table.counts[home.kind()].fetch_add(1, Ordering::Relaxed);
        self.table.history.record(self.gfn, home);
        if let Some(witness) = self.table.witness() {
            witness.moved(self.gfn, from, home);
        }
    }

    /// Notes that the guest was given the RAM page.
    pub fn set_open(&self) {
        self.table.update(self.gfn, FROZEN, OPEN);
    }

    /// Notes that the guest's accesses to the RAM page wait.
    pub fn set_frozen(&self) {
        self.table.update(self.gfn, OPEN, FROZEN);
    }

    /// Notes that nobody knows whether the guest can access the RAM page, until [`Self::set_open`] or
    /// [`Self::set_frozen`].
    pub fn set_unsure(&self) {
        self.table.update(self.gfn, OPEN | FROZEN, 0);
    }

    /// Notes whether the next access to the page is to be counted.
    pub fn set_sampled(&self, sampled: bool) {
        self.set_flag(SAMPLED, sampled);
    }

    /// Notes that the page came back from a store.
    pub fn set_refilled(&self) {
        self.set_flag(REFILLED, true);
    }

    /// Notes that the page leaves for a store because its guest has not touched it for long. It is forgotten as soon as
    /// the page is in no store any more.
    pub fn set_cold(&self) {
        self.set_flag(COLD, true);
    }

    fn set_flag(&self, flag: u64, on: bool) {
        let (clear, set) = if on { (0, flag) } else { (flag, 0) };
        self.table.update(self.gfn, clear, set);
    }

    /// Keeps the page locked beyond the life of this guard, until [`PageTable::resume`].
    pub fn keep(self) -> KeptPage {
        let gfn = self.gfn;
        self.table.kept.fetch_add(1, Ordering::Relaxed);
        std::mem::forget(self);
        KeptPage(gfn)
    }
}

impl PageTable {
    /// How many pages are [kept](PageGuard::keep) locked now. A shared page among them has a filled and charged copy
    /// in RAM.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }
}

impl Drop for PageGuard<'_> {
    fn drop(&mut self) {
        if self.offers
            && let Some(claims) = &self.table.claims
        {
            // Before the unlock: afterwards the page may be somebody else's.
            let offer = self.entry().offer();
            if offer != State::None {
                claims.offer(self.gfn, offer);
            }
        }
        let word = &self.table.entries[self.gfn.index()];
        // Release pairs with the Acquire of `attempt`: whoever locks the page next sees what we did.
        let before = word.fetch_and(!(LOCKED | WAITED), Ordering::Release);
        if before & WAITED != 0 && !Seeded::ForgottenWakeup.is_sown() {
            self.table.parking.unpark(self.gfn);
        }
    }
}
