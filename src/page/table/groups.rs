//! Groups of pages whose merges are undone.
//!
//! A page that its guest writes after it was shared has cost a fault for nothing, and is left alone for some passes. Its
//! neighbours are not: of memory that a guest rewrites as a whole, each page would be merged and broken once for each
//! length of its back-off. What is rewritten together lies together,
//! so pages stand in groups of neighbours: when many merges of one group are undone between two passes, the
//! whole group rests, and rests longer each time. A group that is scanned without that begins to be
//! trusted again, as slowly as it lost trust.
//!
//! One word a group:
//!
//! ```text
//! bit  0..8   merges undone since the last pass
//!      8..13  passes to rest
//!     13..16  exponent of the rest
//!     16      RESTS    the scanner leaves the group alone in this pass
//! ```
//!
//! A page that was dropped as zero and is accessed again does not count: a guest may read its zeroes again and again,
//! and to keep them in memory for that would take the memory from others. One that is filled again backs off by
//! itself, because a scan finds that it has changed.
//!
//! The words are hints. Nothing is handed over by them, so every access is Relaxed.

use std::io;

use super::PageTable;
use crate::sync::{AtomicU32, Ordering, zeroes};
use crate::units::Gfn;

/// Pages in a group. In tests groups are smaller, so that a small VM has several.
pub(super) const GROUP: u32 = if cfg!(test) { 4 } else { 64 };
/// So many merges of a group, undone between two passes, are many.
const MANY: u32 = GROUP / 4;
/// 2^5 - 1 passes of rest at most, as for a page.
const EXPONENT_MAX: u32 = 5;
const UNDONE: u32 = 0xff;
const REST_SHIFT: u32 = 8;
const REST_MASK: u32 = 0b1_1111;
const EXPONENT_SHIFT: u32 = 13;
const EXPONENT_MASK: u32 = 0b111;
const RESTS: u32 = 1 << 16;

/// The groups of one VM.
#[derive(Debug)]
pub(super) struct Groups(Box<[AtomicU32]>);

impl Groups {
    pub(super) fn new(pages: u32) -> io::Result<Self> {
        zeroes(pages.div_ceil(GROUP) as usize).map(Self)
    }

    fn change(&self, gfn: Gfn, next: impl Fn(u32) -> u32) -> u32 {
        let word = &self.0[(gfn.0 / GROUP) as usize];
        let mut group = word.load(Ordering::Relaxed);
        while let Err(now) =
            word.compare_exchange(group, next(group), Ordering::Relaxed, Ordering::Relaxed)
        {
            group = now;
        }
        next(group)
    }

    fn forget(&self) {
        self.0
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// The word of a group when another pass begins.
const fn after_pass(group: u32) -> u32 {
    let mut exponent = group >> EXPONENT_SHIFT & EXPONENT_MASK;
    let mut rest = group >> REST_SHIFT & REST_MASK;
    if group & UNDONE >= MANY {
        exponent = if exponent < EXPONENT_MAX {
            exponent + 1
        } else {
            EXPONENT_MAX
        };
        rest = (1 << exponent) - 1;
    } else if group & RESTS == 0 {
        exponent = exponent.saturating_sub(1);
    }
    if rest == 0 {
        exponent << EXPONENT_SHIFT
    } else {
        RESTS | exponent << EXPONENT_SHIFT | (rest - 1) << REST_SHIFT
    }
}

impl PageTable {
    /// Notes that the merge of a page was for nothing: its guest has written the page that was shared. The page [backs
    /// off](Self::back_off), and counts against its group.
    pub fn note_undone(&self, gfn: Gfn) {
        self.groups.change(gfn, |group| {
            if group & UNDONE == UNDONE {
                group
            } else {
                group + 1
            }
        });
        self.back_off(gfn);
    }

    /// Begins another pass for the group of neighbours in which `gfn` is the first; whether the scanner is to leave
    /// their content alone in this pass. `None`: `gfn` is not the first of a group.
    pub fn begin_group(&self, gfn: Gfn) -> Option<bool> {
        let is_first = gfn.0.is_multiple_of(GROUP);
        is_first.then(|| self.groups.change(gfn, after_pass) & RESTS != 0)
    }

    /// Whether the scanner leaves the group of the page alone since that group's last pass began.
    #[must_use]
    pub fn is_resting(&self, gfn: Gfn) -> bool {
        let word = &self.groups.0[(gfn.0 / GROUP) as usize];
        word.load(Ordering::Relaxed) & RESTS != 0
    }

    /// Trusts all groups again.
    pub(super) fn trust_groups(&self) {
        self.groups.forget();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;

    const FIRST: Gfn = Gfn(GROUP);

    fn table() -> PageTable {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        PageTable::new(3 * GROUP, parking).expect("memory")
    }

    fn undo(table: &PageTable, count: u32) {
        (0..count).for_each(|it| table.note_undone(Gfn(FIRST.0 + it % GROUP)));
    }

    fn begin(table: &PageTable) -> bool {
        table.begin_group(FIRST).expect("the first of a group")
    }

    /// Passes in which the group rests, from now on.
    fn rest(table: &PageTable) -> usize {
        (0..100).take_while(|_| begin(table)).count()
    }

    #[test]
    fn group_rests_ever_longer_while_its_merges_are_undone() {
        let table = table();
        let rounds: Vec<_> = (0..7)
            .map(|_| {
                undo(&table, MANY);
                rest(&table)
            })
            .collect();
        assert_eq!(rounds, [1, 3, 7, 15, 31, 31, 31]);
    }

    #[test]
    fn group_with_few_undone_is_scanned_and_trusted_again() {
        let table = table();
        undo(&table, MANY - 1);
        assert_eq!(rest(&table), 0, "few are not many");
        undo(&table, MANY - 1);
        assert_eq!(rest(&table), 0, "those of two passes do not add up");
        for _ in 0..3 {
            undo(&table, MANY);
            rest(&table);
        }
        // The pass that ended the last rest was the first of these.
        (0..2).for_each(|_| assert!(!begin(&table)));
        undo(&table, MANY);
        assert_eq!(rest(&table), 3, "two exponents less, one more");
    }

    #[test]
    fn more_undone_than_can_be_counted_are_many() {
        let table = table();
        undo(&table, 10 * UNDONE);
        assert_eq!(rest(&table), 1);
    }

    #[test]
    fn only_the_group_of_the_pages_rests_until_all_is_begun_anew() {
        let table = table();
        undo(&table, MANY);
        assert!(begin(&table));
        assert_eq!(table.begin_group(Gfn(FIRST.0 + 1)), None);
        assert_eq!(table.begin_group(Gfn(0)), Some(false));
        let resting = (0..3 * GROUP).filter(|gfn| table.is_resting(Gfn(*gfn)));
        assert!(resting.eq(FIRST.0..FIRST.0 + GROUP));
        table.begin_anew();
        assert!(!table.is_resting(FIRST));
        assert!(!begin(&table));
    }
}
