//! The daemon's own view of a [`Memfd`]: raw pointers only, because a guest may be writing the same
//! bytes. Content is copied into a private [`PageBuf`] before anything looks at it.

use std::io;
use std::ptr;
use std::slice;

use memmap2::{MmapOptions, MmapRaw};

use super::Memfd;
use super::guard::Guard;
use super::prefetch::prefetch_at;
use crate::units::{PAGE_SIZE, PageBuf};

/// The bytes of a cache line, or of half a line.
const LINE: usize = 64;
/// How much of a page is fetched ahead. Once a page is being read, the processor itself prefetches the rest of it.
const AHEAD: usize = 16 * LINE;

/// A shared mapping of a whole [`Memfd`].
#[derive(Debug)]
pub struct Mapping {
    /// Declared before `raw`, so that it is dropped first: the handler must not replace what is unmapped.
    _guard: Guard,
    raw: MmapRaw,
    pages: u32,
    writable: bool,
}

impl Mapping {
    /// Maps `memfd` for reading only.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn read_only(memfd: &Memfd) -> io::Result<Self> {
        let raw = Self::options(memfd).map_raw_read_only(memfd.file())?;
        Self::guarded(raw, memfd, false)
    }

    /// Maps `memfd` for reading and writing.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn read_write(memfd: &Memfd) -> io::Result<Self> {
        let raw = Self::options(memfd).map_raw(memfd.file())?;
        Self::guarded(raw, memfd, true)
    }

    fn guarded(raw: MmapRaw, memfd: &Memfd, writable: bool) -> io::Result<Self> {
        Ok(Self {
            _guard: Guard::new(raw.as_ptr(), raw.len(), writable)?,
            raw,
            pages: memfd.pages(),
            writable,
        })
    }

    fn options(memfd: &Memfd) -> MmapOptions {
        let mut options = MmapOptions::new();
        options.len(memfd.pages() as usize * PAGE_SIZE);
        options
    }

    fn page(&self, page: u32) -> *mut u8 {
        assert!(
            page < self.pages,
            "page {page} of a mapping of {} pages",
            self.pages
        );
        self.raw
            .as_mut_ptr()
            .wrapping_add(page as usize * PAGE_SIZE)
    }

    /// The start of `len` bytes from byte `at` of a page on.
    fn part(&self, page: u32, at: usize, len: usize) -> *mut u8 {
        let rest = (self.pages.saturating_sub(page)) as usize * PAGE_SIZE;
        assert!(
            at.checked_add(len).is_some_and(|end| end <= rest),
            "{at}+{len} of page {page} leave a mapping of {} pages",
            self.pages
        );
        self.page(page).wrapping_add(at)
    }

    /// Copies one page out.
    ///
    /// Reading a hole makes the kernel allocate a page of zeroes there: read only pages that are
    /// known to be present. While somebody else writes the page, the copy may mix old and new
    /// bytes: then it is a hint and nothing else.
    ///
    /// # Panics
    /// When `page` is outside the mapping.
    pub fn read(&self, page: u32, into: &mut PageBuf) {
        let from = self.page(page).cast_const();
        // SAFETY: `from` is the start of a page inside the mapping (checked by `page`), which lives
        // as long as `self`; `into` is private to this process and so cannot overlap a mapping of
        // the memfd; u8 has no alignment and no invalid values, so a torn copy is still bytes.
        unsafe { ptr::copy_nonoverlapping(from, into.0.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Brings the beginning of a page that is going to be read soon into the processor's cache. Does nothing if the
    /// page is not mapped.
    ///
    /// # Panics
    /// When `page` is outside the mapping.
    pub fn prefetch(&self, page: u32) {
        let start = self.page(page).cast_const();
        (0..AHEAD)
            .step_by(LINE)
            .for_each(|at| prefetch_at(start.wrapping_add(at)));
    }

    /// Drops all that is mapped of the file now; it is mapped again where it is accessed. For use before many
    /// holes are punched: otherwise each hole would interrupt every processor that this process ran on.
    pub fn forget(&self) {
        let (start, len) = (self.raw.as_mut_ptr(), self.raw.len());
        // SAFETY: the range is the whole mapping, which lives as long as `self`; it is shared, so only page
        // table entries go, and the content stays in the file. The advice can only fail for other ranges.
        unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
    }

    /// Copies one page in. Only for a mapping made by [`Mapping::read_write`].
    ///
    /// # Panics
    /// When `page` is outside the mapping.
    pub fn write(&self, page: u32, from: &PageBuf) {
        assert!(self.writable, "the mapping is read-only");
        let into = self.page(page);
        // SAFETY: `into` is the start of a page inside the mapping (checked by `page`), which lives
        // as long as `self` and is writable (asserted); `from` is private, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.0.as_ptr(), into, PAGE_SIZE) };
    }

    /// Copies `into.len()` bytes out, from byte `at` of a page on, perhaps into the next one.
    ///
    /// # Panics
    /// When the range leaves the mapping.
    pub(super) fn read_part(&self, page: u32, at: usize, into: &mut [u8]) {
        let from = self.part(page, at, into.len()).cast_const();
        // SAFETY: the range lies inside the mapping (checked by `part`), which lives as long as `self`;
        // `into` is private and does not overlap it; bytes have no invalid values.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    /// `len` bytes from byte `at` of a page on, perhaps going on in the next one.
    ///
    /// # Panics
    /// When the range leaves the mapping.
    ///
    /// # Safety
    /// Nobody, in any process, writes or punches these bytes or cuts the file short as long as they are borrowed.
    pub(super) unsafe fn slice(&self, page: u32, at: usize, len: usize) -> &[u8] {
        let from = self.part(page, at, len).cast_const();
        // SAFETY: the range lies inside the mapping (checked by `part`), which lives as long as `self` and can be
        // read; bytes have no alignment and no invalid values; that they do not change is the caller's duty.
        unsafe { slice::from_raw_parts(from, len) }
    }

    /// Copies `from` in, from byte `at` of a page on, perhaps into the next one. Only for
    /// [`Mapping::read_write`].
    ///
    /// # Panics
    /// When the range leaves the mapping.
    pub(super) fn write_part(&self, page: u32, at: usize, from: &[u8]) {
        assert!(self.writable, "the mapping is read-only");
        let into = self.part(page, at, from.len());
        // SAFETY: the range lies inside the mapping (checked by `part`), which lives as long as `self` and
        // is writable (asserted); `from` is private and does not overlap it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
    }
}
