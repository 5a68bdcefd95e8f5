//! The scanner's notes about a page. They are hints, kept beside the home and changed without the lock; a
//! note that is lost in a race costs one scan of one page.

use super::{
    BACKOFF_MASK, BACKOFF_MAX, BACKOFF_SHIFT, KIND, LOCKED, PAYLOAD_SHIFT, PageTable, REFILLED,
    SKIP_MASK, SKIP_SHIFT,
};
use crate::page::home::Home;
use crate::sync::Ordering;
use crate::units::Gfn;

impl PageTable {
    /// Whether the scanner shall look at the page in this pass; counts the pass.
    pub fn due_for_scan(&self, gfn: Gfn) -> bool {
        let word = &self.entries[gfn.index()];
        let entry = word.load(Ordering::Relaxed);
        if entry >> SKIP_SHIFT & SKIP_MASK == 0 {
            return true;
        }
        let less = entry - (1 << SKIP_SHIFT);
        let _ = word.compare_exchange(entry, less, Ordering::Relaxed, Ordering::Relaxed);
        false
    }

    /// Notes that the page changed between two looks or was broken out of sharing: the next looks
    /// come ever later, up to every 31st pass.
    pub fn back_off(&self, gfn: Gfn) {
        let word = &self.entries[gfn.index()];
        let entry = word.load(Ordering::Relaxed);
        let exponent = (entry >> BACKOFF_SHIFT & BACKOFF_MASK).min(BACKOFF_MAX - 1) + 1;
        let cleared = entry & !(SKIP_MASK << SKIP_SHIFT | BACKOFF_MASK << BACKOFF_SHIFT);
        let passes = (1 << exponent) - 1;
        let next = cleared | passes << SKIP_SHIFT | exponent << BACKOFF_SHIFT;
        let _ = word.compare_exchange(entry, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that the page was found unchanged: it is looked at in every pass again.
    pub fn settle(&self, gfn: Gfn) {
        let clear = SKIP_MASK << SKIP_SHIFT | BACKOFF_MASK << BACKOFF_SHIFT;
        let word = &self.entries[gfn.index()];
        if word.load(Ordering::Relaxed) & clear != 0 {
            word.fetch_and(!clear, Ordering::Relaxed);
        }
    }

    /// Notes the low half of the hash of a resident page, and that it was looked at; does nothing if it
    /// is locked or no longer resident.
    pub fn note_hash(&self, gfn: Gfn, hash: u32) {
        let word = &self.entries[gfn.index()];
        let entry = word.load(Ordering::Relaxed);
        if entry & (KIND | LOCKED) == Home::Resident.kind() as u64 {
            let kept = entry & u64::from(u32::MAX) & !REFILLED;
            let noted = kept | u64::from(hash) << PAYLOAD_SHIFT;
            let _ = word.compare_exchange(entry, noted, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
