//! Where a page stands with sharing: why one that is in RAM of its own is not shared.
//!
//! Whoever waits for sharing to save something wants to know what it waits for. The scanner knows of each page, at the
//! moment when it leaves the page alone, and then goes on. Counters of these moments do not help: a page that was
//! refused a thousand times is one page. So the scanner leaves the cause in the page's entry, and who wants to know
//! counts entries. Each page is read once and counted once, so the counts add up to all pages at any time, however
//! pages move meanwhile.

use super::{CAUSE, CHANGES, Entry, KIND, LOCKED, NO_MEMORY, NO_VMA, PageTable, UNSEEN};
use crate::page::home::Home;
use crate::sync::Ordering;
use crate::units::Gfn;

/// Why a page is not shared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// It is not in RAM of its own: it is shared, or it holds nothing, or it is in a store.
    Elsewhere,
    /// Somebody is moving it.
    Moving,
    /// It was not scanned since it became resident or was last written.
    Unscanned,
    /// It changes too often, or what is beside it does.
    Volatile,
    /// Its guest has no VMA left for it.
    NoVma,
    /// There was no memory for a frame.
    NoMemory,
    /// No other page of its sharing domain is known to be equal.
    Unique,
}

impl PageTable {
    /// Shows each page with its entry and where it stands to `visit`.
    pub fn visit_standings(&self, mut visit: impl FnMut(Gfn, Entry, Standing)) {
        for (gfn, word) in (0..).zip(&self.entries) {
            // Acquire, as of `entry`.
            let entry = Entry(word.load(Ordering::Acquire));
            visit(Gfn(gfn), entry, self.standing(Gfn(gfn), entry));
        }
    }

    fn standing(&self, gfn: Gfn, Entry(entry): Entry) -> Standing {
        if entry & KIND != Home::Resident.kind() as u64 {
            return Standing::Elsewhere;
        }
        match entry & CAUSE {
            _ if entry & LOCKED != 0 => Standing::Moving,
            CHANGES => Standing::Volatile,
            NO_VMA => Standing::NoVma,
            NO_MEMORY => Standing::NoMemory,
            _ if entry & UNSEEN == 0 => Standing::Unique,
            _ if self.is_resting(gfn) => Standing::Volatile,
            _ => Standing::Unscanned,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;
    use crate::page::table::groups::GROUP;
    use crate::units::FrameId;

    const PAGE: Gfn = Gfn(0);

    fn table() -> PageTable {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let table = PageTable::new(2 * GROUP, parking).expect("memory");
        table.try_lock(PAGE).expect("free").set_home(Home::Resident);
        table
    }

    fn standing(table: &PageTable) -> Standing {
        table.standing(PAGE, table.entry(PAGE))
    }

    #[test]
    fn page_stands_where_its_last_scan_left_it() {
        let table = table();
        assert_eq!(standing(&table), Standing::Unscanned);
        let scan = |note: fn(&PageTable, Gfn)| {
            table.mark_seen(PAGE);
            note(&table, PAGE);
            standing(&table)
        };
        assert_eq!(scan(|_, _| ()), Standing::Unique);
        assert_eq!(scan(PageTable::back_off), Standing::Volatile);
        assert_eq!(scan(PageTable::refuse), Standing::NoVma);
        assert_eq!(scan(PageTable::lack_frame), Standing::NoMemory);
        assert_eq!(scan(|table, gfn| table.settle(gfn, true)), Standing::Unique);
        assert_eq!(scan(PageTable::note_written), Standing::Unscanned);
        assert_eq!(scan(PageTable::note_undone), Standing::Volatile);
        table.begin_anew();
        assert_eq!(standing(&table), Standing::Unscanned);
        let page = table.try_lock(PAGE).expect("free");
        assert_eq!(standing(&table), Standing::Moving);
        table.lack_frame(PAGE);
        page.set_home(Home::Shared(FrameId(1)));
        assert_eq!(standing(&table), Standing::Elsewhere);
        page.set_home(Home::Resident);
        drop(page);
        assert_eq!(
            standing(&table),
            Standing::Unscanned,
            "the cause is gone with the home"
        );
    }

    #[test]
    fn unscanned_page_of_a_resting_group_is_volatile() {
        let table = table();
        (1..GROUP).for_each(|gfn| table.note_undone(Gfn(gfn)));
        assert_eq!(table.begin_group(PAGE), Some(true));
        assert_eq!(standing(&table), Standing::Volatile);
        table.mark_seen(PAGE);
        assert_eq!(standing(&table), Standing::Unique);
    }

    #[test]
    fn each_page_is_visited_once() {
        let table = table();
        let mut visited = Vec::new();
        table.visit_standings(|_, entry, standing| visited.push((entry.home(), standing)));
        assert_eq!(visited.len(), 2 * GROUP as usize);
        assert_eq!(visited[0], (Home::Resident, Standing::Unscanned));
        assert!(
            visited[1..]
                .iter()
                .all(|it| *it == (Home::Untouched, Standing::Elsewhere))
        );
    }
}
