//! How many VMAs of its guest the pages of a table take.

use super::{Entry, PageTable};
use crate::page::home::Home;
use crate::sync::Ordering;
use crate::units::FrameId;

/// What a page is mapped to in the guest's address space. Neighbours that continue each other share a VMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    Ram { open: bool },
    Pool { frame: FrameId, closed: bool },
}

impl View {
    /// Whether a page with this view, directly before a page with the view `next`, shares a VMA with it.
    const fn continues(self, next: Self) -> bool {
        match (self, next) {
            (Self::Ram { open: a }, Self::Ram { open: b }) => a == b,
            (
                Self::Pool {
                    frame: a,
                    closed: one,
                },
                Self::Pool {
                    frame: b,
                    closed: other,
                },
            ) => one == other && a.0.wrapping_add(1) == b.0,
            _ => false,
        }
    }
}

impl PageTable {
    /// How many VMAs the guest's RAM takes now, counted page by page. `opens`: open pages are mapped differently from
    /// others.
    #[must_use]
    pub fn count_vmas(&self, opens: bool) -> u32 {
        let entries = self.entries.iter();
        // Relaxed: the changes that the count is to cover were acquired by `Vmas::room`; others may be in it or not.
        let views = entries.map(|word| view(Entry(word.load(Ordering::Relaxed)), opens));
        let mut previous = None;
        let mut vmas = 0;
        for view in views {
            vmas += u32::from(!previous.is_some_and(|before: View| before.continues(view)));
            previous = Some(view);
        }
        vmas
    }
}

const fn view(entry: Entry, opens: bool) -> View {
    match entry.home() {
        Home::Shared(frame) => View::Pool {
            frame,
            closed: entry.is_sampled(),
        },
        _ => View::Ram {
            open: opens && entry.is_open(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;
    use crate::units::Gfn;

    #[test]
    fn vmas_count_breaks_between_views() {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let table = PageTable::new(8, parking).expect("memory");
        let share = |gfn, frame| {
            let guard = table.try_lock(Gfn(gfn)).expect("free");
            guard.set_home(Home::Resident);
            guard.set_home(Home::Shared(FrameId(frame)));
        };
        assert_eq!(table.count_vmas(false), 1);
        share(2, 10);
        share(3, 11);
        assert_eq!(table.count_vmas(false), 3, "ram, one run of frames, ram");
        share(4, 20);
        assert_eq!(table.count_vmas(false), 4);
        let guard = table.try_lock(Gfn(0)).expect("free");
        guard.set_home(Home::Resident);
        guard.set_open();
        assert_eq!(
            table.count_vmas(true),
            5,
            "an open page beside a closed one"
        );
    }
}
