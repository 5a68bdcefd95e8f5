//! Guest frame numbers and runs of them.

use std::fmt;

/// Bytes of a page. memvisor works in 4 KiB pages everywhere, as ESX does below large pages.
pub const PAGE_SIZE: usize = 4096;

/// A guest frame number: the guest-physical address divided by [`PAGE_SIZE`].
///
/// ESX calls it a PPN. 32 bits address 16 TiB of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gfn(pub u32);

impl Gfn {
    /// The index of this page in an array that has one element per page.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The byte offset of this page from the start of guest RAM.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 as u64 * PAGE_SIZE as u64
    }

    /// The page that lies `count` pages further on, or `None` past the last gfn.
    #[must_use]
    pub const fn checked_add(self, count: u32) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(gfn) => Some(Self(gfn)),
            None => None,
        }
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// A run of neighbouring guest pages: `count` pages from `start` on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GfnRun {
    /// The first page.
    pub start: Gfn,
    /// How many pages; zero is legal and means an empty run.
    pub count: u32,
}

impl GfnRun {
    /// A run of `count` pages from `start` on.
    #[must_use]
    pub const fn new(start: Gfn, count: u32) -> Self {
        Self { start, count }
    }

    /// A run of one page.
    #[must_use]
    pub const fn single(gfn: Gfn) -> Self {
        Self::new(gfn, 1)
    }

    /// The first page behind the run, as a plain number because it may be past the last `Gfn`.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.0 as u64 + self.count as u64
    }

    /// The pages of the run, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Gfn> + Clone {
        (self.start.0..self.start.0.saturating_add(self.count)).map(Gfn)
    }

    /// The length of the run in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count as u64 * PAGE_SIZE as u64
    }
}

/// Joins an ascending sequence of pages into the fewest runs.
pub fn runs_of(pages: impl IntoIterator<Item = Gfn>) -> Vec<GfnRun> {
    let mut runs: Vec<GfnRun> = Vec::new();
    for gfn in pages {
        match runs.last_mut() {
            Some(run) if run.end() == u64::from(gfn.0) => run.count += 1,
            _ => runs.push(GfnRun::single(gfn)),
        }
    }
    runs
}

/// What is often asked of a list of runs.
pub trait RunsExt {
    /// The number of pages in all runs together.
    fn pages(&self) -> u64;
}

impl RunsExt for [GfnRun] {
    fn pages(&self) -> u64 {
        self.iter().map(|run| u64::from(run.count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_joins_neighbours_only() {
        let runs = runs_of([3, 4, 5, 9, 11, 12].map(Gfn));
        assert_eq!(
            runs,
            [
                GfnRun::new(Gfn(3), 3),
                GfnRun::new(Gfn(9), 1),
                GfnRun::new(Gfn(11), 2)
            ]
        );
        assert_eq!(runs.pages(), 6);
    }

    #[test]
    fn run_end_does_not_overflow_at_the_last_gfn() {
        let run = GfnRun::new(Gfn(u32::MAX), 2);
        assert_eq!(run.end(), u64::from(u32::MAX) + 2);
        assert_eq!(
            run.iter().count(),
            0,
            "a page behind the last gfn does not exist"
        );
    }
}
