//! The page table of one VM: the single truth about where each page lives.
//!
//! One 8-byte atomic entry a page:
//!
//! ```text
//! bit  0..3   kind of home
//!      3      LOCKED   somebody is moving the page; its home may only be changed by them
//!      4      WAITED   a fault waits for the lock; whoever unlocks must wake it
//!      5      OPEN     the guest was given the RAM page, to read and write, and it was not frozen since
//!      6      SAMPLED  the next access is to be counted; a shared page is closed meanwhile
//!      7      REFILLED came back from a store, and the scanner has not seen it since
//!      8..16  back-off of the scanner: passes to skip (5 bits), exponent (3 bits)
//!     16      UNSEEN   a resident page may have other bytes than the scanner has seen
//!     17      QUIET    the scanner did not find it changed at its last scan
//!     18      FROZEN   the guest's accesses to the RAM page are known to wait
//!     19..21  CAUSE    why the last scan did not share the page: it changes, no VMA, no memory
//!     21      COLD     it is in a store, or on its way there, because its guest had not touched it for long
//!     32..64  frame or slot; for a resident page the low half of its hash at the last scan
//! ```
//!
//! Locks are only ever tried, never waited for. A scanner or evictor skips a busy page. A fault
//! that finds its page busy sets WAITED and is *parked*: it holds no thread, and the unlock hands
//! the page number to the [`Parking`] of the VM, whose fault thread serves it again from the start.
//! Setting WAITED and unlocking are both atomic steps on the same word, so no wake-up is lost: either
//! the unlock sees the flag, or the thread that wants to park sees the page unlocked and does not park.
//!
//! Whoever locks several pages takes them in ascending order. As nobody waits for a lock, that is for
//! predictability, not against deadlock.
//!
//! A guest that serves some of its faults itself is offered the pages that it may take ([`Claims`]), as
//! long as the daemon has not locked them. Locking a page revokes its offer; unlocking it makes a new
//! offer, by the home that the page has then. A page that the guest has claimed cannot be locked.

mod balloon;
mod groups;
mod guard;
mod notes;
mod standing;
mod views;

use std::io;
use std::sync::Arc;

use memvisor_wire::claims::{State, Words};

use self::groups::Groups;
use super::claims::{Claims, Revoked};
use super::history::History;
use super::home::{Home, KINDS};
use super::parking::Parking;
use super::witness::Witness;
use crate::seeded::Seeded;
use crate::sync::{AtomicU64, Ordering, zeroes};
use crate::units::Gfn;

pub use balloon::Moved;
pub use guard::{DonePage, KeptPage, PageGuard};
pub use notes::Due;
pub use standing::Standing;

const KIND: u64 = 0b111;
const LOCKED: u64 = 1 << 3;
const WAITED: u64 = 1 << 4;
const OPEN: u64 = 1 << 5;
const SAMPLED: u64 = 1 << 6;
const REFILLED: u64 = 1 << 7;
const SKIP_SHIFT: u32 = 8;
const SKIP_MASK: u64 = 0b1_1111;
const BACKOFF_SHIFT: u32 = 13;
const BACKOFF_MASK: u64 = 0b111;
const UNSEEN: u64 = 1 << 16;
const QUIET: u64 = 1 << 17;
const FROZEN: u64 = 1 << 18;
const CAUSE: u64 = 0b11 << 19;
const CHANGES: u64 = 1 << 19;
const NO_VMA: u64 = 2 << 19;
const NO_MEMORY: u64 = 3 << 19;
const COLD: u64 = 1 << 21;
const PAYLOAD_SHIFT: u32 = 32;

/// How often [`PageTable::counts`] reads the counters until they add up. One page in the middle of its move
/// spoils a reading, and a reading takes nanoseconds.
const COUNT_TRIES: u32 = 1000;

/// A copy of one entry, as it was at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(u64);

impl Entry {
    /// The home of the page.
    #[must_use]
    pub const fn home(self) -> Home {
        Home::from_parts(self.0 & KIND, self.payload())
    }

    /// Whether somebody is moving the page.
    #[must_use]
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Whether the guest was given the RAM page and nobody has tried to freeze it since. In engine uffd, the guest's
    /// kernel may have dropped the mapping of an open page all the same.
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 & OPEN != 0
    }

    /// Whether the guest's accesses to the RAM page are known to wait. When the guest's kernel has refused to freeze a
    /// resident page, the page is neither open nor frozen: the guest may be able to access it or not.
    #[must_use]
    pub const fn is_frozen(self) -> bool {
        self.0 & FROZEN != 0
    }

    /// Whether the next access to the page is to be counted. A shared page that is sampled is closed
    /// to its guest.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.0 & SAMPLED != 0
    }

    /// Whether the page came back from the compression cache or the swap file, and has neither moved on
    /// nor been scanned since.
    #[must_use]
    pub const fn is_refilled(self) -> bool {
        self.0 & REFILLED != 0
    }

    /// Whether the page is in a store because its guest had not touched it for long, and not because memory was short.
    #[must_use]
    pub const fn is_cold(self) -> bool {
        self.0 & COLD != 0
    }

    const fn payload(self) -> u32 {
        (self.0 >> PAYLOAD_SHIFT) as u32
    }

    /// What the page is offered to its guest as while it is unlocked.
    const fn offer(self) -> State {
        Claims::offer_of(self)
    }

    /// The low half of the hash that a resident page had at the last scan; zero if there was none.
    #[must_use]
    pub const fn last_hash(self) -> u32 {
        self.payload()
    }
}

/// The page table of one VM. See the module text.
#[derive(Debug)]
pub struct PageTable {
    entries: Box<[AtomicU64]>,
    counts: [AtomicU64; KINDS],
    /// How many pages are locked until their guest has confirmed a mapping.
    kept: AtomicU64,
    groups: Groups,
    history: History,
    parking: Arc<Parking>,
    /// What the guest may do by itself, if it can.
    claims: Option<Claims>,
    pub(super) witness: Option<Arc<dyn Witness>>,
}

/// How an attempt to lock a page ended.
#[derive(Debug)]
pub enum Attempt<'a> {
    /// It is locked.
    Locked(PageGuard<'a>),
    /// Another thread of the daemon is moving it.
    Busy,
    /// Its guest is moving it.
    Claimed,
    /// Its guest has made it resident. It is locked, but its home in the table is still the old one.
    Done(DonePage<'a>),
}

impl PageTable {
    /// A table of `pages` untouched pages. `parking` wakes the faults that wait for a page.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(pages: u32, parking: Arc<Parking>) -> io::Result<Self> {
        let counts: [AtomicU64; KINDS] = Default::default();
        counts[Home::Untouched.kind()].store(u64::from(pages), Ordering::Relaxed);
        Ok(Self {
            entries: zeroes(pages as usize)?,
            counts,
            kept: AtomicU64::new(0),
            groups: Groups::new(pages)?,
            history: History::new()?,
            parking,
            claims: None,
            witness: None,
        })
    }

    /// The same table for a guest that serves some faults itself: its pages are offered in `words`, which are all zero.
    #[must_use]
    pub fn offering(mut self, words: Arc<dyn Words>) -> Self {
        let claims = Claims::new(words, self.pages(), Arc::clone(&self.parking));
        self.claims = Some(claims);
        self
    }

    /// What the guest may do by itself; `None` for one that asks for everything.
    #[must_use]
    pub const fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// Configured pages.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Whether `gfn` is a page of this VM.
    #[must_use]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        gfn.0 < self.pages()
    }

    /// The entry as it is now; unless the caller holds the lock it may be old a moment later.
    ///
    /// # Panics
    /// When `gfn` is outside the VM. Page numbers that a guest sends are checked before they come here.
    #[must_use]
    pub fn entry(&self, gfn: Gfn) -> Entry {
        // Acquire pairs with the Release of `update`: whoever sees a home sees what was put there before.
        Entry(self.entries[gfn.index()].load(Ordering::Acquire))
    }

    /// How many pages have each kind of home. While pages move, the counts may be of different moments,
    /// but no page is missing or counted twice: they add up to all pages.
    #[must_use]
    pub fn counts(&self) -> [u64; KINDS] {
        let mut counts = [0; KINDS];
        for _ in 0..COUNT_TRIES {
            counts = std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed));
            if counts.iter().sum::<u64>() == u64::from(self.pages()) {
                break;
            }
            // A thread in the middle of a move may have lost its processor there.
            std::thread::yield_now();
        }
        // It is still in the middle of the move. Its page counts as one of the most frequent kind.
        let missing = u64::from(self.pages()).wrapping_sub(counts.iter().sum());
        if let Some(most) = counts.iter_mut().max() {
            *most = most.wrapping_add(missing);
        }
        counts
    }

    /// How many pages have homes of the kind of `home`.
    #[must_use]
    pub fn count(&self, home: Home) -> u64 {
        self.counts[home.kind()].load(Ordering::Relaxed)
    }

    /// The latest moves of pages, for reports about wrong bytes.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Locks a page, or says who is moving it.
    pub fn attempt(&self, gfn: Gfn) -> Attempt<'_> {
        // Acquire pairs with the Release of the unlock: what the last holder did is done.
        let before = self.entries[gfn.index()].fetch_or(LOCKED, Ordering::Acquire);
        if before & LOCKED != 0 {
            return Attempt::Busy;
        }
        let revoked = match &self.claims {
            Some(claims) if Entry(before).offer() != State::None => claims.revoke(gfn),
            _ => Revoked::Yes,
        };
        // Offers only once the offer is revoked: the drop of the guard of a page that its guest has claimed would
        // overwrite the claim.
        let mut guard = PageGuard {
            table: self,
            gfn,
            offers: false,
        };
        match revoked {
            Revoked::Yes => {
                guard.offers = true;
                Attempt::Locked(guard)
            }
            Revoked::Claimed => Attempt::Claimed,
            Revoked::Done(credit) => Attempt::Done(DonePage { guard, credit }),
        }
    }

    /// Locks a page; `None` if somebody else is moving it or its guest has moved it.
    pub fn try_lock(&self, gfn: Gfn) -> Option<PageGuard<'_>> {
        match self.attempt(gfn) {
            Attempt::Locked(page) => Some(page),
            Attempt::Busy | Attempt::Claimed | Attempt::Done(_) => None,
        }
    }

    /// Asks for a wake-up by the parking when the page is unlocked. `false`: it is not locked (any
    /// more), so try again at once.
    #[must_use]
    pub fn park(&self, gfn: Gfn) -> bool {
        let word = &self.entries[gfn.index()];
        // Relaxed: WAITED hands nothing over. A thread that is called, or finds the page free, then locks it.
        let mut entry = word.load(Ordering::Relaxed);
        while entry & LOCKED != 0 || Seeded::MissedUnlock.is_sown() {
            let parked = entry | WAITED;
            match word.compare_exchange(entry, parked, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => entry = now,
            }
        }
        false
    }

    /// Takes over a lock that was kept by [`PageGuard::keep`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "taking the token ends the keeping"
    )]
    pub fn resume(&self, kept: KeptPage) -> PageGuard<'_> {
        self.kept.fetch_sub(1, Ordering::Relaxed);
        PageGuard {
            table: self,
            gfn: kept.0,
            offers: true,
        }
    }

    /// Counts every page by its home, from the entries alone: what [`Self::counts`] must equal when
    /// nobody moves pages.
    #[must_use]
    pub fn recount(&self) -> [u64; KINDS] {
        let mut counts = [0; KINDS];
        for word in &self.entries {
            counts[Entry(word.load(Ordering::Relaxed)).home().kind()] += 1;
        }
        counts
    }

    fn update(&self, gfn: Gfn, clear: u64, set: u64) {
        let word = &self.entries[gfn.index()];
        let mut entry = word.load(Ordering::Relaxed);
        // The caller holds the lock, so only WAITED and the scanner's notes can change under us. Release pairs with the
        // Acquire of `entry` and of `mark_seen`: the bytes are in place before the home that says so.
        while let Err(now) = word.compare_exchange(
            entry,
            entry & !clear | set,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            entry = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync;
    use crate::units::SlotId;

    fn table(pages: u32) -> PageTable {
        PageTable::new(pages, Arc::new(Parking::new().expect("an eventfd"))).expect("memory")
    }

    #[test]
    fn lock_is_exclusive_and_ends_with_its_guard() {
        let table = table(2);
        let guard = table.try_lock(Gfn(0)).expect("free");
        assert!(table.try_lock(Gfn(0)).is_none());
        assert!(
            table.try_lock(Gfn(0)).is_none(),
            "a failed try does not unlock"
        );
        assert!(table.try_lock(Gfn(1)).is_some());
        drop(guard);
        assert!(table.try_lock(Gfn(0)).is_some());
    }

    #[test]
    fn counts_follow_homes() {
        let table = table(3);
        for gfn in [Gfn(0), Gfn(1)] {
            table.try_lock(gfn).expect("free").set_home(Home::Resident);
        }
        table
            .try_lock(Gfn(1))
            .expect("free")
            .set_home(Home::Swapped(SlotId(4)));
        assert_eq!(table.counts(), [1, 0, 1, 0, 0, 1, 0]);
        assert_eq!(table.recount(), table.counts());
    }

    #[test]
    #[should_panic(expected = "may not become")]
    fn illegal_move_panics_with_the_history() {
        table(1)
            .try_lock(Gfn(0))
            .expect("free")
            .set_home(Home::Zero);
    }

    /// A fault that parks races with a mover that unlocks. In any order, the fault is woken or sees the page free.
    #[test]
    fn parked_fault_is_never_forgotten_in_any_schedule() {
        sync::model(2_000, || {
            let parking = Arc::new(Parking::new().expect("an eventfd"));
            let table = PageTable::new(1, Arc::clone(&parking)).expect("memory");
            let table = Arc::new(table);
            let kept = table.try_lock(Gfn(0)).expect("free").keep();
            let mover = {
                let table = Arc::clone(&table);
                shuttle::thread::spawn(move || drop(table.resume(kept)))
            };
            let parked = table.park(Gfn(0));
            mover.join().expect("the mover ends");
            assert_eq!(parking.pop(), parked.then_some(Gfn(0)));
            assert!(table.try_lock(Gfn(0)).is_some());
        });
    }
}
