//! A guest's pages in the memory of this process: the address of each, and reading and writing its bytes.

use std::ptr;

use memvisor_wire::{Gfn, PAGE_SIZE};

use super::Memory;

/// A guest's pages at consecutive addresses.
#[derive(Debug)]
pub struct Linear {
    base: usize,
    pages: u32,
}

impl Linear {
    /// `pages` pages from the address `base` on.
    ///
    /// # Safety
    /// The pages are mapped as long as the result is used, and for the guest alone. An access that is not allowed
    /// raises a fault, and is tried again when somebody has resolved the fault.
    pub(super) const unsafe fn at(base: usize, pages: u32) -> Self {
        Self { base, pages }
    }

    /// The address of a page.
    pub(super) const fn address(&self, gfn: Gfn) -> usize {
        self.base + gfn.index() * PAGE_SIZE
    }

    /// The page at an address, or `None` for an address outside.
    pub(super) fn gfn_of(&self, address: usize) -> Option<Gfn> {
        let page = address.checked_sub(self.base)? / PAGE_SIZE;
        let gfn = u32::try_from(page).ok()?;
        (gfn < self.pages).then_some(Gfn(gfn))
    }

    fn byte(&self, gfn: Gfn, at: usize, len: usize) -> *mut u8 {
        let pages = self.pages;
        assert!(gfn.0 < pages, "{gfn} of a guest with {pages} pages");
        assert!(at + len <= PAGE_SIZE, "bytes {at}+{len} leave the page");
        (self.address(gfn) + at) as *mut u8
    }
}

impl Memory for Linear {
    fn pages(&self) -> u32 {
        self.pages
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        let from = self.byte(gfn, at, into.len()).cast_const();
        // SAFETY: `byte` checked that the range lies in one of the pages, which are mapped as `at` demands; `into` is
        // other memory. The trait's contract keeps writers from the same bytes.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        let into = self.byte(gfn, at, from.len());
        // SAFETY: as for `read`; the trait's contract keeps two threads from writing the same bytes.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
    }
}
