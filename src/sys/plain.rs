//! Memory of this process that memvisor does not manage, but the kernel merges or pages out: benchmarks
//! compare memvisor with that.

use std::io;
use std::ptr::{self, NonNull};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};

use super::Memfd;
use crate::units::{PAGE_SIZE, PageBuf};

/// What the kernel is to do with the whole mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Merge pages of equal content: KSM.
    Merge,
    /// Page out what it holds, now.
    PageOut,
    /// Use no huge pages.
    SmallPages,
}

/// A mapping of this process alone, private or of a file in memory.
#[derive(Debug)]
pub struct PlainMemory {
    raw: MmapRaw,
    pages: u32,
}

impl PlainMemory {
    /// Private anonymous memory, as any process has it.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn private(pages: u32) -> io::Result<Self> {
        let raw = MmapMut::map_anon(pages as usize * PAGE_SIZE)?.into();
        Ok(Self { raw, pages })
    }

    /// Shared memory: all of a file in memory, as guest RAM is.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn shared(memfd: &Memfd) -> io::Result<Self> {
        let pages = memfd.pages();
        let mut options = MmapOptions::new();
        options.len(pages as usize * PAGE_SIZE);
        let raw = options.map_raw(memfd.file())?;
        Ok(Self { raw, pages })
    }

    /// How many pages it has.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Gives the kernel advice on the whole mapping.
    ///
    /// # Errors
    /// What `madvise(2)` says; `EINVAL` where the kernel was built without it.
    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        let advice = match advice {
            Advice::Merge => MmapAdvise::MADV_MERGEABLE,
            Advice::PageOut => MmapAdvise::MADV_PAGEOUT,
            Advice::SmallPages => MmapAdvise::MADV_NOHUGEPAGE,
        };
        let len = self.pages as usize * PAGE_SIZE;
        let start = NonNull::new(self.raw.as_mut_ptr().cast()).ok_or(Errno::EINVAL)?;
        // SAFETY: the range is exactly the mapping, which lives as long as `self`; none of the three
        // advices changes what the memory holds.
        unsafe { madvise(start, len, advice) }?;
        Ok(())
    }

    pub(super) fn word(&self, page: u32) -> *mut u64 {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let bytes = self
            .raw
            .as_mut_ptr()
            .wrapping_add(page as usize * PAGE_SIZE);
        bytes.cast()
    }

    /// Fills a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn write(&self, page: u32, content: &PageBuf) {
        let into = self.word(page).cast::<u8>();
        // SAFETY: `into` is the start of a page of the mapping (checked by `word`), which is writable
        // and lives as long as `self`; `content` is elsewhere.
        unsafe { ptr::copy_nonoverlapping(content.0.as_ptr(), into, PAGE_SIZE) };
    }

    /// Copies a page out.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn read(&self, page: u32, into: &mut PageBuf) {
        let from = self.word(page).cast::<u8>().cast_const();
        // SAFETY: `from` is the start of a page of the mapping (checked by `word`), which lives as long
        // as `self`; `into` is elsewhere; bytes have no invalid values.
        unsafe { ptr::copy_nonoverlapping(from, into.0.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Reads the first word of a page, even if the result is not used.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn touch(&self, page: u32) -> u64 {
        let from = self.word(page).cast_const();
        // SAFETY: `from` is the start of a page of the mapping (checked by `word`), so it is aligned
        // and inside; the mapping lives as long as `self`; any bits are a u64.
        unsafe { ptr::read_volatile(from) }
    }

    /// Writes the first word of a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn poke(&self, page: u32, word: u64) {
        let into = self.word(page);
        // SAFETY: `into` is the start of a page of the mapping (checked by `word`), so it is aligned
        // and inside; the mapping is writable and lives as long as `self`.
        unsafe { ptr::write_volatile(into, word) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_memory_keeps_what_is_written_whatever_is_advised() {
        let memfd = Memfd::create("plain", 3).expect("a memfd");
        let memories = [PlainMemory::private(3), PlainMemory::shared(&memfd)];
        for memory in memories.map(|memory| memory.expect("a mapping")) {
            let mut content = PageBuf([7; PAGE_SIZE]);
            memory.advise(Advice::SmallPages).expect("always allowed");
            memory.write(2, &content);
            memory.advise(Advice::PageOut).expect("always allowed");
            memory.poke(2, 9);
            assert_eq!((memory.touch(2), memory.touch(0)), (9, 0));
            let mut found = PageBuf::zeroed();
            memory.read(2, &mut found);
            content.0[..8].copy_from_slice(&9u64.to_ne_bytes());
            assert!(found == content);
        }
    }
}
