//! First touches in a row: the pages behind them are given before they are asked for.
//!
//! A fault costs two wake-ups, of the daemon and of the guest's thread, and on an idle machine each of
//! them is dearer than everything else together. A guest that touches page after page is going to
//! touch the next ones too. So the granule of a first touch grows with the length of the row, and is
//! one page again for whatever is not a row.

use crate::units::Gfn;

/// Rows that are followed at once: a few threads each fill memory of their own.
const ROWS: usize = 4;
/// The most pages given ahead, 64 KiB: what a guest stops short of is found zero and taken back.
const MOST: u32 = 15;

/// One row of touches.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// The page behind the last one that was given.
    next: u32,
    /// Pages given ahead the last time.
    ahead: u32,
}

/// The latest rows of first touches of one VM.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    rows: [Row; ROWS],
    oldest: usize,
}

impl Ahead {
    /// Notes a first touch of `gfn`; how many pages behind it are worth giving with it.
    pub(super) fn touched(&mut self, gfn: Gfn) -> u32 {
        if let Some(row) = self.rows.iter_mut().find(|row| row.next == gfn.0) {
            row.ahead = (row.ahead * 2 + 1).min(MOST);
            row.next = gfn.0.saturating_add(1 + row.ahead);
            return row.ahead;
        }
        self.rows[self.oldest] = Row {
            next: gfn.0.saturating_add(1),
            ahead: 0,
        };
        self.oldest = (self.oldest + 1) % ROWS;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches page after page from `gfn` on, as a guest does that gets what `touched` says.
    fn row(ahead: &mut Ahead, gfn: &mut u32, faults: usize) -> Vec<u32> {
        (0..faults)
            .map(|_| {
                let given = ahead.touched(Gfn(*gfn));
                *gfn += 1 + given;
                given
            })
            .collect()
    }

    #[test]
    fn row_grows_to_the_most_and_scattered_touches_get_one_page() {
        let mut ahead = Ahead::default();
        assert_eq!(row(&mut ahead, &mut 100, 7), [0, 1, 3, 7, 15, 15, 15]);
        for gfn in [5000, 70, 9000, 301] {
            assert_eq!(ahead.touched(Gfn(gfn)), 0);
        }
    }

    #[test]
    fn rows_of_several_threads_are_told_apart() {
        let mut ahead = Ahead::default();
        let (mut one, mut other) = (100, 9000);
        for _ in 0..6 {
            row(&mut ahead, &mut one, 1);
            row(&mut ahead, &mut other, 1);
        }
        assert_eq!(row(&mut ahead, &mut one, 1), [15]);
        assert_eq!(row(&mut ahead, &mut other, 1), [15]);
    }
}
