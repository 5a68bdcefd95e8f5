//! Which pages left a compression cache lately.
//!
//! Pages come back from the swap file for two reasons: they did not compress, or the cache did not keep them. Only the
//! second says that the cache is too small, and only of pages that left not long ago. So each page that leaves is noted,
//! in one of two maps with a bit for each page of the VM. When one has as many notes as the cache has pages, the other is
//! cleared and takes its place.
//!
//! The worker notes, the fault thread takes notes away, and neither waits: a note that is taken while its map is cleared
//! counts or does not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::units::{Gfn, Pages};

/// The pages of one VM that left its cache. See the module text.
#[derive(Debug)]
pub struct Ghosts {
    pages: u32,
    /// Made for the first page: most VMs never note one.
    maps: OnceLock<[Map; 2]>,
    /// Which of them takes notes.
    current: AtomicUsize,
    returned: AtomicU64,
}

#[derive(Debug)]
struct Map {
    words: Box<[AtomicU64]>,
    /// Notes made, whether they are still there or not.
    noted: AtomicU64,
}

impl Map {
    fn new(pages: u32) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            words,
            noted: AtomicU64::new(0),
        }
    }

    /// The word of a page, and its bit there.
    fn bit(&self, gfn: Gfn) -> (&AtomicU64, u64) {
        (&self.words[gfn.0 as usize / 64], 1 << (gfn.0 % 64))
    }

    fn note(&self, gfn: Gfn) -> u64 {
        let (word, bit) = self.bit(gfn);
        word.fetch_or(bit, Ordering::Relaxed);
        self.noted.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether there was a note.
    fn take(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.bit(gfn);
        word.load(Ordering::Relaxed) & bit != 0
            && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
        self.noted.store(0, Ordering::Relaxed);
    }
}

impl Ghosts {
    /// No page of a VM of so many has left.
    #[must_use]
    pub const fn new(pages: u32) -> Self {
        Self {
            pages,
            maps: OnceLock::new(),
            current: AtomicUsize::new(0),
            returned: AtomicU64::new(0),
        }
    }

    /// A page leaves a cache that keeps `stored`. For one thread.
    pub fn note(&self, gfn: Gfn, stored: Pages) {
        let maps = self
            .maps
            .get_or_init(|| [(); 2].map(|()| Map::new(self.pages)));
        let current = self.current.load(Ordering::Relaxed);
        if maps[current].note(gfn) >= stored.0.max(1) {
            maps[1 - current].clear();
            self.current.store(1 - current, Ordering::Relaxed);
        }
    }

    /// A page has come back from the swap file.
    pub fn came_back(&self, gfn: Gfn) {
        let Some(maps) = self.maps.get() else {
            return;
        };
        if maps.iter().any(|map| map.take(gfn)) {
            self.returned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many pages have left lately.
    #[must_use]
    pub fn left(&self) -> Pages {
        let noted = |maps: &[Map; 2]| {
            maps.iter()
                .map(|map| map.noted.load(Ordering::Relaxed))
                .sum()
        };
        Pages(self.maps.get().map_or(0, noted))
    }

    /// How many of those have come back since power-on.
    #[must_use]
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(ghosts: &Ghosts, gfns: impl IntoIterator<Item = u32>) -> u64 {
        let before = ghosts.returned();
        gfns.into_iter().for_each(|gfn| ghosts.came_back(Gfn(gfn)));
        ghosts.returned() - before
    }

    #[test]
    fn page_that_left_counts_once_when_it_comes_back_and_others_do_not() {
        let ghosts = Ghosts::new(130);
        assert_eq!((back(&ghosts, 0..130), ghosts.left()), (0, Pages(0)));
        ghosts.note(Gfn(129), Pages(10));
        ghosts.note(Gfn(64), Pages(10));
        assert_eq!((back(&ghosts, 0..130), ghosts.left()), (2, Pages(2)));
        assert_eq!(back(&ghosts, 0..130), 0);
    }

    /// At least as many as the cache keeps, at most twice as many.
    #[test]
    fn pages_that_left_long_ago_are_forgotten() {
        let ghosts = Ghosts::new(1000);
        for gfn in 0..25 {
            ghosts.note(Gfn(gfn), Pages(10));
        }
        assert_eq!(ghosts.left(), Pages(15));
        assert_eq!(back(&ghosts, 0..10), 0);
        assert_eq!(back(&ghosts, 10..25), 15);
    }
}
