//! Where the swapped pages of one VM are: in the host cache while it has room, else in the swap file.

use std::slice::from_mut;

use super::cache_file::CacheFile;
use super::error::SwapError;
use super::file::SwapFile;
use super::slots::SlotRun;
use crate::units::{Gfn, PageBuf, Pages, SlotId};

/// The stores of one VM's swapped pages. A slot says by itself in which of the two it is ([`SlotId::is_cached`]).
#[derive(Debug)]
pub struct Tiers {
    /// The swap file, which has a place for each page that may be swapped.
    pub file: SwapFile,
    /// Its part of the host cache, if there is one.
    pub cache: Option<CacheFile>,
}

impl From<SwapFile> for Tiers {
    fn from(file: SwapFile) -> Self {
        Self { file, cache: None }
    }
}

impl Tiers {
    /// Pages in both.
    #[must_use]
    pub fn used(&self) -> Pages {
        let cached = self.cache.as_ref().map(|cache| cache.stats().used);
        Pages(self.file.stats().used.0 + cached.unwrap_or_default().0)
    }

    /// How many more pages may be swapped. Each page in the host cache leaves a place in the swap file free, so the cache
    /// adds none.
    #[must_use]
    pub fn room(&self) -> Pages {
        self.file.stats().slots.saturating_sub(self.used())
    }

    /// Whether the next page that is swapped may go to the host cache.
    #[must_use]
    pub fn takes_cached(&self) -> bool {
        self.cache.as_ref().is_some_and(CacheFile::has_room)
    }

    /// Stores the first pages of these in the host cache, as far as it takes any, and returns their slots. If it fails,
    /// the error says why; pages that it did not take belong into the swap file.
    pub fn store_cached(
        &self,
        gfns: &[Gfn],
        pages: &[PageBuf],
        digests: &[u64],
    ) -> (Vec<SlotId>, Result<(), SwapError>) {
        let Some(cache) = &self.cache else {
            return (Vec::new(), Ok(()));
        };
        cache.store(self.room_at_most(), gfns, pages, digests)
    }

    /// Allocates up to `count` slots of the swap file for pages that are not in the cache; those go by
    /// [`SwapFile::allocate`].
    #[must_use]
    pub fn allocate(&self, count: u32) -> Vec<SlotRun> {
        self.file.allocate(count.min(self.room_at_most()))
    }

    /// Reads a slot back and verifies it. What `into` holds after an error means nothing.
    ///
    /// # Errors
    /// As [`SwapFile::read`]: the page is lost.
    pub fn read(&self, slot: SlotId, into: &mut PageBuf) -> Result<(), SwapError> {
        let run = SlotRun {
            start: slot,
            len: 1,
        };
        self.read_run(run, from_mut(into))
    }

    /// The same for neighbouring slots of one of the two, with one system call; as [`SwapFile::read_run`].
    ///
    /// # Errors
    /// As [`SwapFile::read_run`].
    pub fn read_run(&self, run: SlotRun, into: &mut [PageBuf]) -> Result<(), SwapError> {
        match self.cache_of(run.start) {
            Some(cache) => cache.read_run(run, into),
            None => self.file.read_run(run, into),
        }
    }

    /// Frees a slot.
    ///
    /// # Panics
    /// When it is free already.
    pub fn free(&self, slot: SlotId) {
        match self.cache_of(slot) {
            Some(cache) => cache.free(slot),
            None => self.file.free(slot),
        }
    }

    /// Gives all of the disk space back, as [`SwapFile::give_back`].
    ///
    /// # Errors
    /// The first of both.
    pub fn give_back(&self) -> Result<(), SwapError> {
        let cached = self.cache.as_ref().map_or(Ok(()), CacheFile::give_back);
        self.file.give_back().and(cached)
    }

    fn cache_of(&self, slot: SlotId) -> Option<&CacheFile> {
        let cache = || self.cache.as_ref().expect("a page is in it");
        slot.is_cached().then(cache)
    }

    fn room_at_most(&self) -> u32 {
        u32::try_from(self.room().0).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
