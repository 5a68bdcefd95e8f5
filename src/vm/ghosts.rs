//! Which pages have left a place lately: RAM, or a compression cache.
//!
//! How many pages come back says little about a place that they left. One that comes back after an hour would have had
//! to be kept for an hour; only one that left not long ago says that a little more room would have kept it. So each
//! page that leaves is noted in the current one of two maps, which have a bit for each page of the VM. When the
//! current map has as many notes as are to be remembered, the other map is cleared and becomes the current one.
//!
//! The worker makes notes, the fault thread takes them away, and neither waits. A note that is taken away while its map
//! is being cleared may count or not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::units::{Gfn, Pages};

/// The pages of one VM that left a place. See the module text.
#[derive(Debug)]
pub struct Ghosts {
    pages: u32,
    /// Made with the first note: most VMs never make one.
    maps: OnceLock<[Map; 2]>,
    /// The map that gets new notes.
    current: AtomicUsize,
    returned: AtomicU64,
}

#[derive(Debug)]
struct Map {
    words: Box<[AtomicU64]>,
    /// How many notes were made, whether they are still there or not.
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

    /// Takes a note away; whether there was one.
    fn take(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.bit(gfn);
        // The load first: most pages have no note, and a load is cheaper than an atomic change.
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
    /// For a VM of `pages`, of which none has left yet.
    #[must_use]
    pub const fn new(pages: u32) -> Self {
        Self {
            pages,
            maps: OnceLock::new(),
            current: AtomicUsize::new(0),
            returned: AtomicU64::new(0),
        }
    }

    /// Notes that a page leaves. At least the latest `most` are remembered, and at most twice as many. Only one thread
    /// may call this.
    pub fn note(&self, gfn: Gfn, most: Pages) {
        let maps = self
            .maps
            .get_or_init(|| [(); 2].map(|()| Map::new(self.pages)));
        let current = self.current.load(Ordering::Relaxed);
        if maps[current].note(gfn) >= most.0.max(1) {
            // A map is forgotten as a whole: to forget notes one by one would take a list of them in order.
            maps[1 - current].clear();
            self.current.store(1 - current, Ordering::Relaxed);
        }
    }

    /// Notes that a page has come back; whether it had left lately.
    pub fn came_back(&self, gfn: Gfn) -> bool {
        let Some(maps) = self.maps.get() else {
            return false;
        };
        let is_ghost = maps.iter().any(|map| map.take(gfn));
        if is_ghost {
            self.returned.fetch_add(1, Ordering::Relaxed);
        }
        is_ghost
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

    /// How many pages have come back since power-on that had left lately.
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
        let ghosts_of = gfns.into_iter().filter(|gfn| ghosts.came_back(Gfn(*gfn)));
        let found = ghosts_of.count() as u64;
        assert_eq!(ghosts.returned() - before, found);
        found
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
