//! Which parts of a VM's RAM are large pages.
//!
//! RAM is divided into *regions* of the size of a large page. A region is large from the moment at which the kernel
//! backs it by one until it is broken. All its pages are resident meanwhile, and nobody takes one of them away: who
//! wants to breaks the region first ([`crate::remap`]). A large region is *torn* while the guest's kernel maps its
//! pages one by one, because one of them is frozen to be sampled; the memory behind them is still one large page.
//!
//! For each large region the sampler notes in how many periods in a row pages of it were drawn and none was touched. It
//! draws few pages, so many regions are as good as unknown; but what it finds untouched again and again is cold.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::units::{Gfn, GfnRun, Pages};

const LARGE: u8 = 1 << 7;
const TORN: u8 = 1 << 6;
/// For how many drawn pages in a row, none was touched.
const IDLE: u8 = TORN - 1;

/// The number of a region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Region(pub(crate) u32);

/// The regions of one VM. Only its worker changes them. See the module text.
#[derive(Debug)]
pub struct Large {
    /// The pages of a region.
    span: u32,
    regions: Box<[AtomicU8]>,
    large: AtomicU32,
}

impl Large {
    /// A VM of so many pages, none of which is large. `span`: the pages of a large page, if the machine has them.
    #[must_use]
    pub fn new(pages: u32, span: Option<u32>) -> Self {
        let span = span.unwrap_or(u32::MAX);
        Self {
            span,
            // What is left at the end of RAM is no region.
            regions: (0..pages / span).map(|_| AtomicU8::new(0)).collect(),
            large: AtomicU32::new(0),
        }
    }

    /// How many regions there are.
    #[must_use]
    pub const fn regions(&self) -> u32 {
        self.regions.len() as u32
    }

    /// How many of them are large.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.large.load(Ordering::Relaxed)
    }

    /// Pages in large regions.
    #[must_use]
    pub fn pages(&self) -> Pages {
        Pages(u64::from(self.count()) * u64::from(self.span))
    }

    /// Whether a page is in a large region.
    #[must_use]
    pub fn holds(&self, gfn: Gfn) -> bool {
        self.count() > 0 && self.large_at(gfn).is_some()
    }

    /// The large region in which a page is.
    #[must_use]
    pub fn large_at(&self, gfn: Gfn) -> Option<Region> {
        let region = Region(gfn.0 / self.span);
        (region.0 < self.regions() && self.is_large(region)).then_some(region)
    }

    /// The large regions in which pages of `run` are, ascending.
    pub fn large_in(&self, run: GfnRun) -> impl Iterator<Item = Region> {
        let end = run.start.0.saturating_add(run.count).div_ceil(self.span);
        let regions = run.start.0 / self.span..end.min(self.regions());
        regions.map(Region).filter(|region| self.is_large(*region))
    }

    /// The pages of a region.
    #[must_use]
    pub const fn run(&self, Region(region): Region) -> GfnRun {
        GfnRun::new(Gfn(region * self.span), self.span)
    }

    /// Whether a region is large.
    #[must_use]
    pub fn is_large(&self, region: Region) -> bool {
        self.word(region) & LARGE != 0
    }

    /// Whether a large region is mapped page by page.
    #[must_use]
    pub fn is_torn(&self, region: Region) -> bool {
        self.word(region) & TORN != 0
    }

    /// A region is large, and mapped as such.
    pub(crate) fn set_large(&self, region: Region) {
        let idle = self.word(region) & IDLE;
        if !self.is_large(region) {
            self.large.fetch_add(1, Ordering::Relaxed);
        }
        self.set(region, LARGE | idle);
    }

    /// A large region is mapped page by page from now on.
    pub(crate) fn set_torn(&self, region: Region) {
        self.set(region, self.word(region) | TORN);
    }

    /// A large region is none any more.
    pub(crate) fn set_small(&self, region: Region) {
        if self.is_large(region) {
            self.large.fetch_sub(1, Ordering::Relaxed);
        }
        self.set(region, 0);
    }

    /// Notes that a page was sampled, and whether its guest touched it.
    pub(crate) fn note_sample(&self, gfn: Gfn, touched: bool) {
        if let Some(region) = self.large_at(gfn) {
            let word = self.word(region);
            let idle = if touched {
                0
            } else {
                (word & IDLE).saturating_add(1).min(IDLE)
            };
            self.set(region, word & !IDLE | idle);
        }
    }

    /// Up to `want` large regions, the coldest first.
    #[must_use]
    pub(crate) fn coldest(&self, want: usize) -> Vec<Region> {
        if self.count() == 0 {
            return Vec::new();
        }
        let all = (0..self.regions()).map(Region);
        let mut large: Vec<Region> = all.filter(|region| self.is_large(*region)).collect();
        // Stable: of equally cold ones the first.
        large.sort_by_key(|region| Reverse(self.word(*region) & IDLE));
        large.truncate(want);
        large
    }

    /// VMAs that large regions may take at most where they are mapped differently from others: each stretch of them
    /// splits one into three.
    #[must_use]
    pub(crate) fn vmas(&self) -> u32 {
        let (large, small) = (self.count(), self.regions() - self.count());
        large.min(small + 1) * 2
    }

    fn word(&self, Region(region): Region) -> u8 {
        self.regions[region as usize].load(Ordering::Relaxed)
    }

    fn set(&self, Region(region): Region, word: u8) {
        self.regions[region as usize].store(word, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_held_by_its_region_as_long_as_that_is_large() {
        let large = Large::new(20, Some(8));
        assert_eq!(large.regions(), 2, "the rest is no region");
        assert!(!large.holds(Gfn(8)));
        large.set_large(Region(1));
        large.set_large(Region(1));
        let held: Vec<u32> = (0..20).filter(|gfn| large.holds(Gfn(*gfn))).collect();
        assert_eq!(held, (8..16).collect::<Vec<u32>>());
        assert_eq!((large.count(), large.pages()), (1, Pages(8)));
        let within = |start, count| large.large_in(GfnRun::new(Gfn(start), count)).count();
        assert_eq!(
            [within(0, 8), within(7, 2), within(15, 5), within(16, 4)],
            [0, 1, 1, 0]
        );
        large.set_small(Region(1));
        large.set_small(Region(1));
        assert_eq!((large.count(), large.holds(Gfn(9))), (0, false));
    }

    #[test]
    fn what_was_found_untouched_most_often_is_the_coldest() {
        let large = Large::new(32, Some(8));
        (0..4)
            .map(Region)
            .for_each(|region| large.set_large(region));
        for (gfn, touched) in [(9, false), (9, false), (17, false), (25, false), (25, true)] {
            large.note_sample(Gfn(gfn), touched);
        }
        (0..200).for_each(|_| large.note_sample(Gfn(10), false));
        large.set_torn(Region(2));
        assert_eq!(large.coldest(9), [1, 2, 0, 3].map(Region));
        assert!(large.is_torn(Region(2)) && large.is_large(Region(2)));
        large.set_large(Region(2));
        assert!(!large.is_torn(Region(2)), "it is mapped as one again");
        assert_eq!(large.coldest(1), [Region(1)]);
    }

    #[test]
    fn machine_without_large_pages_has_no_region() {
        let large = Large::new(1 << 20, None);
        assert_eq!((large.regions(), large.vmas()), (0, 0));
        assert_eq!(large.large_at(Gfn(7)), None);
        assert_eq!(large.coldest(1), []);
    }
}
