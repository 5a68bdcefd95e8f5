//! Which pages are offered to a guest that serves some of its faults itself, and which it has taken.
//!
//! The layout of the table, and the guest's half, are in [`memvisor_wire::claims`].
//! This is the daemon's half. The page table stays the truth. A row of the table of claims means something
//! only while its page is offered, and whether it is follows from the page's entry. When a guest says that it
//! has brought a page, the daemon moves the page in the page table, under its lock, once it sees that.
//!
//! Locking a page revokes its offer, and unlocking the page offers it again ([`super::PageTable`]), so
//! no other code knows of claims. A page that its guest has claimed cannot be locked; only other threads of
//! that guest wait for it.
//!
//! Each credit is a page of the budget. Which credits are granted is recorded here, in the daemon's private
//! memory. So a guest cannot use a credit twice, or one that was not granted: the attempt is noted as a
//! [violation](Claims::violation) and ends the VM.

use std::sync::{Arc, OnceLock};

use memvisor_wire::claims::{
    BREAKS, CREDIT, CREDITS, FREE, MARK, NO_CREDIT, Place, REPORTED, StallCause, State, USED,
    Words, credit_word, row,
};

use super::parking::Parking;
use super::{Entry, Home};
use crate::seeded::Seeded;
use crate::sync::{AtomicU64, Ordering};
use crate::units::Gfn;

/// How often a revocation is tried. An honest guest changes a row under us at most twice: when it claims the
/// page and when it has brought it.
const TRIES: u32 = 16;
const BITS: u32 = u64::BITS;

/// See the module text.
#[derive(Debug)]
pub struct Claims {
    words: Arc<dyn Words>,
    pages: u32,
    /// A bit for each credit, set while the credit is granted, whether the guest has used it or not.
    granted: [AtomicU64; (CREDITS / BITS) as usize],
    violation: OnceLock<String>,
    parking: Arc<Parking>,
}

/// What became of an offer that was to be revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Revoked {
    /// It is revoked: the guest cannot claim the page.
    Yes,
    /// A thread of the guest has claimed the page.
    Claimed,
    /// The guest has brought the page with this credit.
    Done(u32),
}

impl Claims {
    /// Nothing is offered, nothing is granted. `words` are zero, and there are enough of them for `pages`.
    pub(super) fn new(words: Arc<dyn Words>, pages: u32, parking: Arc<Parking>) -> Self {
        // Nothing is granted yet, so no thread is to report that credits run low.
        words.store(MARK, REPORTED);
        Self {
            words,
            pages,
            granted: Default::default(),
            violation: OnceLock::new(),
            parking,
        }
    }

    /// What a page may be offered as. The next access to a sampled page is to be counted. A guest opens a frozen page
    /// only for a thread that accesses it, so that is counted when the page is settled. Other pages also come ahead,
    /// for nobody: while they are sampled, the daemon must see the access itself.
    pub(super) const fn offer_of(entry: Entry) -> State {
        match entry.home() {
            Home::Resident if !entry.is_open() => State::Frozen,
            _ if entry.is_sampled() => State::None,
            Home::Compressed(_) => State::Zip,
            // The guest has its swap file, but not its part of the host cache.
            Home::Swapped(slot) if slot.is_cached() => State::None,
            Home::Swapped(_) => State::Swap,
            Home::Shared(_) => State::Frame,
            Home::Untouched | Home::Zero => State::Empty,
            Home::Resident | Home::Ballooned => State::None,
        }
    }

    /// Tells the guest where the content of page `gfn` is. The page is compressed or swapped, and locked.
    pub fn describe(&self, gfn: Gfn, place: Place) {
        // The page is locked, so its offer comes later: storing the offer publishes these words.
        for (word, at) in place.encode().into_iter().zip(row(gfn) + 1..) {
            self.words.store(at, word);
        }
    }

    /// Offers a page, which is locked and not offered yet.
    pub(super) fn offer(&self, gfn: Gfn, offer: State) {
        self.words.store(row(gfn), offer.encode());
    }

    /// Revokes the offer of a page that has just been locked and was offered until then.
    pub(super) fn revoke(&self, gfn: Gfn) -> Revoked {
        let at = row(gfn);
        let mut word = self.words.load(at);
        for _ in 0..TRIES {
            match State::decode(word) {
                // The guest has overwritten the offer itself. That harms nobody else.
                Some(State::None) => return Revoked::Yes,
                Some(State::Zip | State::Swap | State::Frame | State::Empty | State::Frozen) => {
                    match self.words.compare_exchange(at, word, State::None.encode()) {
                        Ok(_) => return Revoked::Yes,
                        Err(now) => word = now,
                    }
                }
                Some(State::Taken { .. }) => return Revoked::Claimed,
                Some(State::Done { credit }) => return Revoked::Done(credit),
                None => {
                    self.note_violation(format!(
                        "the claim of {gfn} is {word:#x}, which is no state"
                    ));
                    return Revoked::Claimed;
                }
            }
        }
        self.note_violation(format!("the claim of {gfn} changed {TRIES} times at once"));
        Revoked::Claimed
    }

    /// The guest has used `credit` for the locked page `gfn`: from here on the credit's page of the budget pays for
    /// it. A page that is resident already has memory and takes no credit ([`FREE`]). `false`: the guest lied about
    /// the credit.
    pub(super) fn settle(&self, gfn: Gfn, home: Home, credit: u32) -> bool {
        if (credit == FREE) != (home == Home::Resident) {
            self.note_violation(format!(
                "it says that it used credit {credit} for {gfn}, which is {home:?}"
            ));
            return false;
        }
        if credit == FREE {
            self.words.store(row(gfn), State::None.encode());
            return true;
        }
        let at = credit_word(credit);
        let word = self.words.load(at);
        // The word before the bit: once the bit is clear, the credit may be granted again.
        if word != gfn.0.saturating_add(USED) || !self.is_granted(credit) {
            self.note_violation(format!(
                "it says that it used credit {credit} for {gfn}, which was not granted for that"
            ));
            return false;
        }
        self.words.store(at, NO_CREDIT);
        if Seeded::CreditSpentTwice.is_sown() {
            self.words.store(at, CREDIT);
        } else if !self.ungrant(credit) {
            self.note_violation(format!("it used credit {credit} twice"));
            return false;
        }
        self.words.store(row(gfn), State::None.encode());
        true
    }

    fn bit(credit: u32) -> (usize, u64) {
        ((credit / BITS) as usize, 1 << (credit % BITS))
    }

    fn is_granted(&self, credit: u32) -> bool {
        let (word, bit) = Self::bit(credit);
        // Relaxed: the caller has seen the credit's word, which is stored after the bit is set.
        self.granted[word].load(Ordering::Relaxed) & bit != 0
    }

    fn ungrant(&self, credit: u32) -> bool {
        let (word, bit) = Self::bit(credit);
        // Release pairs with the Acquire of `credits`: whoever sees the bit clear sees that the credit's word is
        // taken away.
        self.granted[word].fetch_and(!bit, Ordering::Release) & bit != 0
    }

    /// The credits that are granted, or those that are not. They are looked at in groups of 64, each when the iterator
    /// reaches it, and only once.
    fn credits(&self, granted: bool) -> impl Iterator<Item = u32> {
        let flip = if granted { 0 } else { u64::MAX };
        let words = (0..).zip(&self.granted);
        words.flat_map(move |(word, bits)| {
            // Acquire pairs with the Release of `ungrant`.
            let mut rest = bits.load(Ordering::Acquire) ^ flip;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < BITS).then_some(word * BITS + bit)
            })
        })
    }

    /// How many credits, each a page of the budget, the guest has been granted, used ones that are not yet settled
    /// included.
    #[must_use]
    pub fn held(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.granted.iter().map(ones).sum()
    }

    /// Grants credits until the guest holds `want`. `pay` charges each of them; granting ends when it returns `false`.
    /// Only one thread may call this.
    pub fn grant(&self, want: u32, mut pay: impl FnMut() -> bool) {
        let want = want.min(CREDITS);
        let mut missing = u64::from(want).saturating_sub(self.held());
        for credit in self.credits(false) {
            if missing == 0 || !pay() {
                break;
            }
            let (word, bit) = Self::bit(credit);
            // Relaxed: the guest learns of the credit by its word, which is stored next.
            self.granted[word].fetch_or(bit, Ordering::Relaxed);
            self.words.store(credit_word(credit), CREDIT);
            missing -= 1;
        }
        // Threads take the lowest credit there is, so one that takes a credit of the upper quarter knows that the
        // others are gone, and tells the daemon. A quarter lasts until the daemon has come; a lower mark would have
        // threads tell more often, and telling costs a thread more than a page does.
        self.words.store(MARK, want / 4 * 3);
    }

    /// Takes back the credits that the guest has not used, and returns how many.
    #[must_use]
    pub fn take_back(&self) -> u64 {
        let unused = |credit: &u32| {
            let at = credit_word(*credit);
            // Exchanged and not stored: a thread of the guest may take the credit at this moment, and then keeps it.
            let taken = self.words.compare_exchange(at, CREDIT, NO_CREDIT);
            taken.is_ok() && self.ungrant(*credit)
        };
        self.credits(true).filter(unused).count() as u64
    }

    /// Looks for credits that the guest has forged. Only the thread that grants may look. Then a word without its bit
    /// is forged: nobody else makes a credit, and whoever ends one clears the word before the bit.
    pub fn find_forged(&self) {
        let is_forged = |credit: &u32| self.words.load(credit_word(*credit)) != NO_CREDIT;
        if let Some(credit) = self.credits(false).find(is_forged) {
            self.note_violation(format!("it has credit {credit}, which was not granted"));
        }
    }

    /// The pages that the guest says it has brought.
    pub fn done(&self) -> impl Iterator<Item = Gfn> {
        let used = |credit| {
            let word = self.words.load(credit_word(credit));
            let gfn = Gfn(word.checked_sub(USED)?);
            (gfn.0 < self.pages).then_some(gfn)
        };
        (self.credits(true).filter_map(used)).filter(|gfn| self.is_done(*gfn))
    }

    /// Whether the guest says that it has brought or opened the page.
    #[must_use]
    pub fn is_done(&self, gfn: Gfn) -> bool {
        let state = State::decode(self.words.load(row(gfn)));
        matches!(state, Some(State::Done { .. }))
    }

    /// How long threads of the guest stood still, as they say themselves: the words of [`StallCause::ALL`].
    #[must_use]
    pub fn stall_times(&self) -> [u32; StallCause::ALL.len()] {
        StallCause::ALL.map(|cause| self.words.load(cause.word()))
    }

    /// Allows or forbids the guest to break shared pages without asking.
    pub fn allow_breaks(&self, allowed: bool) {
        self.words.store(BREAKS, u32::from(allowed));
    }

    fn note_violation(&self, what: String) {
        let _ = self.violation.set(what);
        self.parking.ring();
    }

    /// The first rule that the guest broke, for which its VM ends; `None` for an honest guest.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use memvisor_wire::claims::{Attempt, Claimer, words};

    use super::*;
    use crate::sync::{AtomicU32, zeroes};
    use crate::units::SlotId;

    const PAGES: u32 = 8;
    const GFN: Gfn = Gfn(5);
    const ZIP: Home = Home::Compressed(SlotId(1));

    /// A table of claims for one thread.
    #[derive(Debug)]
    struct Table(Box<[AtomicU32]>);

    impl Words for Table {
        fn load(&self, at: u32) -> u32 {
            self.0[at as usize].load(Ordering::Relaxed)
        }

        fn store(&self, at: u32, word: u32) {
            self.0[at as usize].store(word, Ordering::Relaxed);
        }

        fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
            self.0[at as usize].compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
        }
    }

    fn claims() -> (Claims, Arc<Table>) {
        let count = usize::try_from(words(PAGES)).expect("a few pages");
        let table = Arc::new(Table(zeroes(count).expect("memory")));
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        (Claims::new(Arc::clone(&table) as _, PAGES, parking), table)
    }

    /// Brings an offered page, as a thread of the guest does.
    fn bring(claims: &Claims, table: &Table, gfn: Gfn) {
        claims.offer(gfn, State::Zip);
        let claimer = Claimer::new(table);
        let Attempt::Claimed(claim) = claimer.claim(gfn, State::Zip) else {
            panic!("{gfn} is offered and there are credits");
        };
        claimer.done(claim);
    }

    #[test]
    fn credits_are_paid_for_and_come_back_unless_they_were_used() {
        let (claims, table) = claims();
        let mut left = 3;
        claims.grant(8, || {
            left -= i32::from(left > 0);
            left > 0
        });
        assert_eq!(claims.held(), 2);
        bring(&claims, &table, GFN);
        assert_eq!(claims.done().collect::<Vec<_>>(), [GFN]);
        assert_eq!(claims.revoke(GFN), Revoked::Done(0));
        assert_eq!(claims.take_back(), 1);
        assert!(claims.settle(GFN, ZIP, 0));
        assert_eq!((claims.held(), claims.violation()), (0, None));
        assert_eq!(claims.revoke(GFN), Revoked::Yes);
    }

    #[test]
    fn credits_that_nobody_granted_are_found_and_granted_ones_are_not() {
        let (claims, table) = claims();
        claims.grant(3, || true);
        bring(&claims, &table, GFN);
        claims.find_forged();
        assert_eq!(claims.violation(), None, "one is used, two are not");
        assert!(claims.settle(GFN, ZIP, 0));
        assert_eq!(claims.take_back(), 2);
        claims.find_forged();
        assert_eq!(claims.violation(), None, "none is left");
        table.store(credit_word(7), CREDIT);
        claims.find_forged();
        assert_eq!(
            claims.violation(),
            Some("it has credit 7, which was not granted")
        );
    }

    #[test]
    fn claim_under_way_cannot_be_revoked() {
        let (claims, table) = claims();
        claims.grant(1, || true);
        claims.offer(GFN, State::Frame);
        let claimer = Claimer::new(&*table);
        let claim = claimer.claim(GFN, State::Frame);
        assert_eq!(claims.revoke(GFN), Revoked::Claimed);
        assert_eq!(claims.take_back(), 0);
        assert_eq!(claims.done().count(), 0);
        let Attempt::Claimed(claim) = claim else {
            panic!("it was offered");
        };
        claimer.give_up(claim);
        assert_eq!(claims.revoke(GFN), Revoked::Yes);
        assert_eq!(claims.take_back(), 1);
    }

    #[test]
    fn credit_that_was_not_granted_or_is_used_twice_is_a_lie() {
        let (first, table) = claims();
        table.store(credit_word(9), GFN.0 + USED);
        assert!(!first.settle(GFN, ZIP, 9));
        assert!(
            first
                .violation()
                .is_some_and(|it| it.contains("credit 9 for gfn 0x5"))
        );

        let (second, table) = claims();
        second.grant(1, || true);
        bring(&second, &table, GFN);
        assert!(second.settle(GFN, ZIP, 0));
        assert!(!second.settle(Gfn(1), ZIP, 0));
        assert!(second.violation().is_some());
        assert_eq!(second.held(), 0);
    }

    #[test]
    fn word_that_is_no_state_is_a_lie() {
        let (claims, table) = claims();
        table.store(row(GFN), 15);
        assert_eq!(claims.revoke(GFN), Revoked::Claimed);
        assert!(
            claims
                .violation()
                .is_some_and(|it| it.contains("gfn 0x5 is 0xf"))
        );
    }
}
