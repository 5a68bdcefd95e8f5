//! Pages that hold nothing, into the balloon and out of it.
//!
//! Most pages that an idle guest gives up were never touched: there is no memory to free, and nothing of the guest to
//! be told. What is left to do is the entry, and then the cost is the number of atomic operations. So the moves of
//! neighbours are counted and noted together.

use super::{FROZEN, KIND, OPEN, PAYLOAD_SHIFT, PageGuard, PageTable, REFILLED, UNSEEN};
use crate::page::home::{Home, KINDS};
use crate::sync::Ordering;
use crate::units::{Gfn, GfnRun};

/// Pages that are counted together, and locked so long.
const TOGETHER: usize = 64;

/// What became of a page that was to be moved although it holds nothing.
#[derive(Debug)]
pub enum Moved<'a> {
    /// It has moved, and is unlocked soon.
    Yes,
    /// It cannot move in this way. It is locked, as it was.
    No(PageGuard<'a>),
    /// It could not be locked.
    Busy,
}

impl PageTable {
    /// Moves those pages of a run that hold nothing into the balloon. `lock` locks a page, and settles it if its guest
    /// has brought it. `each` is told what became of each page, in order.
    pub fn balloon_empty<'a>(
        &'a self,
        run: GfnRun,
        lock: impl Fn(Gfn) -> Option<PageGuard<'a>>,
        each: impl FnMut(Gfn, Moved<'a>),
    ) {
        let is_empty = |home| matches!(home, Home::Untouched | Home::Zero);
        self.move_empty(run, Home::Ballooned, lock, is_empty, each);
    }

    /// Moves those pages of a run that are in the balloon out of it; `lock` and `each` as in
    /// [`balloon_empty`](Self::balloon_empty).
    pub fn unballoon<'a>(
        &'a self,
        run: GfnRun,
        lock: impl Fn(Gfn) -> Option<PageGuard<'a>>,
        each: impl FnMut(Gfn, Moved<'a>),
    ) {
        let is_ballooned = |home| home == Home::Ballooned;
        self.move_empty(run, Home::Untouched, lock, is_ballooned, each);
    }

    fn move_empty<'a>(
        &'a self,
        run: GfnRun,
        to: Home,
        lock: impl Fn(Gfn) -> Option<PageGuard<'a>>,
        moves: impl Fn(Home) -> bool,
        mut each: impl FnMut(Gfn, Moved<'a>),
    ) {
        let mut left = [0_u64; KINDS];
        let mut moved = Vec::with_capacity(TOGETHER);
        for gfn in run.iter() {
            let Some(page) = lock(gfn) else {
                each(gfn, Moved::Busy);
                continue;
            };
            let from = page.home();
            if !moves(from) {
                each(gfn, Moved::No(page));
                continue;
            }
            left[from.kind()] += 1;
            self.set_kind(gfn, to);
            if let Some(witness) = self.witness() {
                witness.moved(gfn, from, to);
            }
            moved.push(page);
            each(gfn, Moved::Yes);
            if moved.len() == TOGETHER {
                self.count_and_unlock(&mut left, to, &mut moved);
            }
        }
        self.count_and_unlock(&mut left, to, &mut moved);
    }

    /// Counts pages that have moved, then unlocks them: a fault that takes one out of its new home finds it counted.
    fn count_and_unlock(&self, left: &mut [u64; KINDS], to: Home, moved: &mut Vec<PageGuard<'_>>) {
        self.history
            .record_all(moved.iter().map(PageGuard::gfn), to);
        for (kind, pages) in left.iter_mut().enumerate().filter(|(_, pages)| **pages > 0) {
            self.counts[kind].fetch_sub(*pages, Ordering::Relaxed);
            self.counts[to.kind()].fetch_add(*pages, Ordering::Relaxed);
            *pages = 0;
        }
        moved.clear();
    }

    /// Changes the kind of home of a locked page to one without a payload.
    fn set_kind(&self, gfn: Gfn, to: Home) {
        let clear = KIND | OPEN | FROZEN | REFILLED | UNSEEN | u64::from(u32::MAX) << PAYLOAD_SHIFT;
        self.update(gfn, clear, to.kind() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::Parking;

    #[test]
    fn pages_without_content_move_and_the_others_stay_locked() {
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let table = PageTable::new(6, parking).expect("memory");
        let lock = |gfn| table.try_lock(Gfn(gfn)).expect("free");
        lock(1).set_home(Home::Resident);
        let busy = lock(3);
        let mut seen = Vec::new();
        let mut kept = Vec::new();
        let free = |gfn| table.try_lock(gfn);
        table.balloon_empty(GfnRun::new(Gfn(0), 5), free, |gfn, moved| match moved {
            Moved::Yes => seen.push((gfn.0, 'y')),
            Moved::No(page) => {
                seen.push((gfn.0, 'n'));
                kept.push(page);
            }
            Moved::Busy => seen.push((gfn.0, 'b')),
        });
        assert_eq!(seen, [(0, 'y'), (1, 'n'), (2, 'y'), (3, 'b'), (4, 'y')]);
        assert!(table.entry(Gfn(1)).is_locked());
        drop((busy, kept));
        assert_eq!(table.counts(), table.recount());
        assert_eq!(table.count(Home::Ballooned), 3);
        assert!((0..6).all(|gfn| !table.entry(Gfn(gfn)).is_locked()));
        table.unballoon(GfnRun::new(Gfn(0), 6), free, |_, _| {});
        assert_eq!(table.counts(), table.recount());
        assert_eq!(table.count(Home::Untouched), 5);
    }
}
