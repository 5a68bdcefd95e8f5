//! The scanner's notes about a page. They are hints, kept beside the home and changed without the lock.
//!
//! UNSEEN must not be lost: where the engine tells which pages were written, a page without UNSEEN is not scanned
//! again. It is set with the home of a page that becomes resident, and whenever a scan came to nothing. A scan
//! clears it *before* it reads the page, so whatever is noted during the scan stays noted.

use super::{
    BACKOFF_MASK, BACKOFF_SHIFT, CAUSE, CHANGES, Entry, KIND, LOCKED, NO_MEMORY, NO_VMA,
    PAYLOAD_SHIFT, PageTable, QUIET, REFILLED, SKIP_MASK, SKIP_SHIFT, UNSEEN,
};
use crate::page::home::Home;
use crate::sync::Ordering;
use crate::units::{Gfn, GfnRun};

/// 2^5 - 1 passes are skipped at most: a page that is broken again and again is tried every 32nd pass.
const BACKOFF_MAX: u64 = 5;
/// 2^3 - 1 passes are skipped at most: where nobody tells writes, a page that never changes is hashed every 8th pass.
const REST_MAX: u64 = 3;
const BACKOFF: u64 = SKIP_MASK << SKIP_SHIFT | BACKOFF_MASK << BACKOFF_SHIFT;
const RESIDENT: u64 = Home::Resident.kind() as u64;

/// What the scanner is to do with a page in this pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Scan it.
    Now,
    /// It changed, or could not be merged, and is left alone for some passes.
    Later,
    /// Nothing.
    No,
}

impl PageTable {
    /// What the scanner is to do with the page in this pass. The call counts as one of the passes that a page skips.
    /// `writes_known`: the engine reports which pages were written, so the others need no scan.
    pub fn due_for_scan(&self, gfn: Gfn, writes_known: bool) -> Due {
        let word = &self.entries[gfn.index()];
        let entry = word.load(Ordering::Relaxed);
        if entry & KIND != RESIDENT || writes_known && entry & UNSEEN == 0 {
            return Due::No;
        }
        if entry >> SKIP_SHIFT & SKIP_MASK == 0 {
            return Due::Now;
        }
        let less = entry - (1 << SKIP_SHIFT);
        // If the entry has changed meanwhile, this pass is not counted, and the page is skipped once more.
        let _ = word.compare_exchange(entry, less, Ordering::Relaxed, Ordering::Relaxed);
        if entry & UNSEEN != 0 && entry & QUIET == 0 {
            Due::Later
        } else {
            Due::No
        }
    }

    /// Notes that the page may have other bytes than the scanner has seen.
    pub fn note_written(&self, gfn: Gfn) {
        let word = &self.entries[gfn.index()];
        // A page that becomes resident later gets UNSEEN with its home.
        if word.load(Ordering::Relaxed) & KIND == RESIDENT {
            // Release pairs with the Acquire of `mark_seen`: the scan that clears this note reads the bytes.
            word.fetch_or(UNSEEN, Ordering::Release);
        }
    }

    /// Has every resident page scanned in the next pass, even pages that were to be left alone for some passes.
    pub fn begin_anew(&self) {
        self.trust_groups();
        (0..self.pages()).for_each(|gfn| {
            self.change(Gfn(gfn), |entry| entry & !(BACKOFF | CAUSE) | unseen(entry));
        });
    }

    /// Whether any page of `run` is resident.
    #[must_use]
    pub fn has_resident(&self, run: GfnRun) -> bool {
        run.iter().any(|gfn| {
            let entry = self.entries[gfn.index()].load(Ordering::Relaxed);
            entry & KIND == RESIDENT
        })
    }

    /// Notes that the scanner is about to read the page. What is written from here on counts as unseen.
    pub fn mark_seen(&self, gfn: Gfn) {
        // Before the read, so that a note made during it stays. Acquire pairs with the Release of
        // `note_written`, and with that of the `update` that made the page resident.
        self.entries[gfn.index()].fetch_and(!(UNSEEN | CAUSE), Ordering::Acquire);
    }

    /// Notes the low half of the hash that a scan of a resident page found, and returns the previous one, or 0. The
    /// hash of a page that is being moved is not kept; the page is scanned again.
    pub fn note_hash(&self, gfn: Gfn, hash: u32) -> u32 {
        let noted = self.change(gfn, |entry| {
            if entry & (KIND | LOCKED) != RESIDENT {
                return entry;
            }
            let kept = entry & u64::from(u32::MAX) & !REFILLED;
            kept | u64::from(hash) << PAYLOAD_SHIFT
        });
        if noted & (KIND | LOCKED) != RESIDENT {
            self.note_written(gfn);
        }
        Entry(noted).last_hash()
    }

    /// The low half of the hash that a resident page had when it was last scanned. It tells whether a hint is true.
    ///
    /// Whoever drops a hint asks its page afterwards; the page's scanner notes a hash and looks for the hint
    /// afterwards. Both are atomic changes of the entry, so one comes second, and sees what the other has done.
    #[must_use]
    pub fn known_hash(&self, gfn: Gfn) -> Option<u32> {
        // Release pairs with the Acquire of `change`: a scanner that notes a hash later sees that the hint is gone. A
        // load cannot release, hence a change that changes nothing.
        let entry = self.entries[gfn.index()].fetch_or(0, Ordering::Release);
        let hash = Entry(entry).last_hash();
        (entry & KIND == RESIDENT && hash != 0).then_some(hash)
    }

    /// Notes that the page changed between two scans, or was broken out of sharing. It stays unseen, and the next
    /// scans come ever later, up to every 32nd pass.
    pub fn back_off(&self, gfn: Gfn) {
        self.wait_because(gfn, CHANGES);
    }

    /// Notes that there was no memory for a frame with the content of the page. Memory may come free at any time, so
    /// the page waits as one that changes.
    pub fn lack_frame(&self, gfn: Gfn) {
        self.wait_because(gfn, NO_MEMORY);
    }

    fn wait_because(&self, gfn: Gfn, cause: u64) {
        self.change(gfn, |entry| {
            // For a page that was quiet before, one change means little: its back-off starts anew.
            let before = if entry & QUIET == 0 { entry } else { 0 };
            wait(entry, before, BACKOFF_MAX) & !(QUIET | CAUSE) | waiting(entry, cause)
        });
    }

    /// Notes that the guest has no VMA left for merging the page. It stays unseen, and the next tries come ever
    /// later.
    pub fn refuse(&self, gfn: Gfn) {
        self.change(gfn, |entry| {
            let before = if entry & QUIET == 0 { 0 } else { entry };
            wait(entry, before, BACKOFF_MAX) & !CAUSE | QUIET | waiting(entry, NO_VMA)
        });
    }

    /// Notes that the page was found unchanged. Where `writes_known`, it is scanned again once it has been
    /// written. Elsewhere the next scans come ever later, up to every 8th pass.
    pub fn settle(&self, gfn: Gfn, writes_known: bool) {
        self.change(gfn, |entry| {
            if writes_known {
                return entry & !BACKOFF | QUIET;
            }
            let before = if entry & QUIET == 0 { 0 } else { entry };
            wait(entry, before, REST_MAX) | QUIET
        });
    }

    /// Replaces the notes of a page, and returns the entry as it was before.
    fn change(&self, gfn: Gfn, next: impl Fn(u64) -> u64) -> u64 {
        let word = &self.entries[gfn.index()];
        let mut entry = word.load(Ordering::Relaxed);
        // Acquire pairs with the Release of `known_hash`.
        while let Err(now) =
            word.compare_exchange(entry, next(entry), Ordering::Acquire, Ordering::Relaxed)
        {
            entry = now;
        }
        entry
    }
}

/// The entry with a wait that is one pass longer than twice the wait of `before`; at most 2^`most` - 1 passes.
const fn wait(entry: u64, before: u64, most: u64) -> u64 {
    let exponent = (before >> BACKOFF_SHIFT & BACKOFF_MASK) + 1;
    let exponent = if exponent > most { most } else { exponent };
    let passes = (1 << exponent) - 1;
    entry & !BACKOFF | passes << SKIP_SHIFT | exponent << BACKOFF_SHIFT
}

/// UNSEEN for a resident page; for others it has no meaning.
const fn unseen(entry: u64) -> u64 {
    waiting(entry, 0)
}

/// The same, with the cause for which the page waits.
const fn waiting(entry: u64, cause: u64) -> u64 {
    if entry & KIND == RESIDENT {
        UNSEEN | cause
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;
    use crate::units::FrameId;

    const PAGE: Gfn = Gfn(0);

    fn table() -> PageTable {
        let table =
            PageTable::new(1, Arc::new(Parking::new().expect("an eventfd"))).expect("memory");
        table.try_lock(PAGE).expect("free").set_home(Home::Resident);
        table
    }

    /// Passes until the page is due.
    fn skipped(table: &PageTable, writes_known: bool) -> usize {
        let due = |_: &u32| table.due_for_scan(PAGE, writes_known) != Due::Now;
        (0..100).take_while(due).count()
    }

    #[test]
    fn back_off_grows_and_begins_anew_after_quiet() {
        let table = table();
        assert_eq!(skipped(&table, true), 0);
        let change = |_| {
            table.mark_seen(PAGE);
            table.back_off(PAGE);
            assert_eq!(table.due_for_scan(PAGE, true), Due::Later);
            1 + skipped(&table, true)
        };
        let rounds: Vec<_> = (0..6).map(change).collect();
        assert_eq!(rounds, [1, 3, 7, 15, 31, 31]);
        table.mark_seen(PAGE);
        table.settle(PAGE, true);
        assert_eq!(change(0), 1);
    }

    #[test]
    fn quiet_page_is_scanned_when_written_or_where_nobody_tells_ever_later() {
        let table = table();
        let scan = |writes_known| {
            table.mark_seen(PAGE);
            table.settle(PAGE, writes_known);
        };
        scan(true);
        assert_eq!(table.due_for_scan(PAGE, true), Due::No);
        table.note_written(PAGE);
        assert_eq!(table.due_for_scan(PAGE, true), Due::Now);
        scan(true);
        let rounds: Vec<_> = (0..5)
            .map(|_| {
                scan(false);
                skipped(&table, false)
            })
            .collect();
        assert_eq!(rounds, [1, 3, 7, 7, 7]);
    }

    #[test]
    fn begun_anew_every_resident_page_is_due_whatever_it_waits_for() {
        for note in [
            PageTable::back_off,
            PageTable::refuse,
            |table: &PageTable, gfn| {
                table.settle(gfn, false);
            },
        ] {
            for writes_known in [false, true] {
                let table = table();
                table.mark_seen(PAGE);
                (0..3).for_each(|_| note(&table, PAGE));
                assert_ne!(table.due_for_scan(PAGE, writes_known), Due::Now);
                table.begin_anew();
                assert_eq!(table.due_for_scan(PAGE, writes_known), Due::Now);
            }
        }
    }

    #[test]
    fn refused_page_is_tried_ever_later_and_nothing_waits_for_it() {
        let table = table();
        let refuse = |_| {
            table.mark_seen(PAGE);
            table.refuse(PAGE);
            assert_eq!(table.due_for_scan(PAGE, true), Due::No);
            1 + skipped(&table, true)
        };
        let rounds: Vec<_> = (0..3).map(refuse).collect();
        assert_eq!(rounds, [1, 3, 7]);
    }

    #[test]
    fn only_resident_pages_are_unseen() {
        let table = table();
        let page = table.try_lock(PAGE).expect("free");
        page.set_home(Home::Shared(FrameId(3)));
        table.note_written(PAGE);
        table.back_off(PAGE);
        assert_eq!(table.entry(PAGE).0 & UNSEEN, 0);
        assert_eq!(table.due_for_scan(PAGE, false), Due::No);
        page.set_home(Home::Resident);
        assert_ne!(table.entry(PAGE).0 & UNSEEN, 0);
    }

    #[test]
    fn hash_of_a_page_that_moves_is_not_kept_and_it_stays_unseen() {
        let table = table();
        let guard = table.try_lock(PAGE).expect("free");
        table.mark_seen(PAGE);
        table.note_hash(PAGE, 77);
        assert_eq!(table.entry(PAGE).last_hash(), 0);
        drop(guard);
        assert_eq!(table.due_for_scan(PAGE, true), Due::Now);
        table.mark_seen(PAGE);
        table.note_hash(PAGE, 77);
        assert_eq!(table.due_for_scan(PAGE, true), Due::No);
        table.back_off(PAGE);
        let entry = table.entry(PAGE);
        assert_eq!(
            (entry.home(), entry.last_hash(), entry.is_locked()),
            (Home::Resident, 77, false)
        );
    }
}
