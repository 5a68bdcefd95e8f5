//! The latest moves of pages, so that a report about wrong bytes can say where the page has been.

use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::home::Home;
use crate::sync::zeroes;
use crate::units::Gfn;

/// Moves that are remembered: enough for the last seconds of a busy guest, in 64 KiB for each VM.
const MOVES: usize = 8192;
/// Moves of one page that a report names.
const REPORTED: usize = 16;

/// A ring of (page, home). Writers only take a ticket and store, so a report that is made while pages move
/// may miss or mix moves of *other* pages. It is a help for people, never an input. So its schedules are not
/// worth modelling, and its atomics are those of `std`.
#[derive(Debug)]
pub struct History {
    ring: Box<[AtomicU64]>,
    next: AtomicU64,
}

impl History {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: zeroes(MOVES)?,
            next: AtomicU64::new(0),
        })
    }

    pub(super) fn record(&self, gfn: Gfn, home: Home) {
        self.record_all([gfn].into_iter(), home);
    }

    /// Records that all of these pages have moved.
    pub(super) fn record_all(&self, gfns: impl ExactSizeIterator<Item = Gfn>, home: Home) {
        let first = self.next.fetch_add(gfns.len() as u64, Ordering::Relaxed);
        for (gfn, ticket) in gfns.zip(first..) {
            self.put(ticket, gfn, home);
        }
    }

    fn put(&self, ticket: u64, gfn: Gfn, home: Home) {
        // 28 bits of the payload are enough to tell slots and frames apart; the top bit marks a used word.
        let word = 1 << 63
            | (home.kind() as u64) << 60
            | (u64::from(home.payload()) & 0x0fff_ffff) << 32
            | u64::from(gfn.0);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "taken modulo a small number first"
        )]
        self.ring[(ticket % MOVES as u64) as usize].store(word, Ordering::Relaxed);
    }

    /// The latest homes of `gfn`, oldest first, as text.
    #[must_use]
    pub fn of(&self, gfn: Gfn) -> String {
        let next = self.next.load(Ordering::Relaxed);
        let oldest = next.saturating_sub(MOVES as u64);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "taken modulo a small number first"
        )]
        let words = (oldest..next)
            .map(|ticket| self.ring[(ticket % MOVES as u64) as usize].load(Ordering::Relaxed));
        let homes: Vec<Home> = words
            .filter(|word| *word >> 63 == 1 && *word as u32 == gfn.0)
            .map(|word| Home::from_parts(word >> 60 & 0b111, (word >> 32 & 0x0fff_ffff) as u32))
            .collect();
        let mut text = format!("homes of {gfn} in the last {} moves:", next - oldest);
        for home in homes.iter().skip(homes.len().saturating_sub(REPORTED)) {
            let _ = write!(text, " {home:?}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SlotId;

    #[test]
    fn history_names_the_homes_of_one_page_in_order() {
        let history = History::new().expect("memory");
        history.record(Gfn(5), Home::Resident);
        history.record(Gfn(6), Home::Resident);
        history.record(Gfn(5), Home::Swapped(SlotId(3)));
        assert_eq!(
            history.of(Gfn(5)),
            "homes of gfn 0x5 in the last 3 moves: Resident Swapped(SlotId(3))"
        );
    }

    #[test]
    fn history_forgets_the_oldest() {
        let history = History::new().expect("memory");
        history.record(Gfn(1), Home::Resident);
        for _ in 0..MOVES {
            history.record(Gfn(2), Home::Resident);
        }
        assert!(!history.of(Gfn(1)).contains("Resident"));
    }
}
