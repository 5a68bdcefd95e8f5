//! What the share pool needs of the kernel, in a form that loom can follow: a page is one word of its content,
//! which is read and written without any ordering of its own. Loom reports a write that is concurrent with
//! another access.
#![allow(unsafe_code, reason = "loom's cell is for one thread, as that of std")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::units::{PageBuf, Pages};

/// A page, and the cell by which loom knows who accesses it.
#[derive(Debug, Default)]
struct Page {
    word: AtomicU64,
    access: UnsafeCell<()>,
}

// SAFETY: nothing is in the cell. Its `with` and `with_mut` only report accesses to loom, whose threads take turns on
// one thread of the system.
unsafe impl Sync for Page {}

impl Page {
    fn read(&self) -> u64 {
        self.access.with(|_| self.word.load(Ordering::Relaxed))
    }

    fn write(&self, word: u64) {
        self.access
            .with_mut(|_| self.word.store(word, Ordering::Relaxed));
    }
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct Memfd(Arc<[Page]>);

impl Memfd {
    /// A file of `pages` holes.
    ///
    /// # Errors
    /// None in a model.
    pub fn publish(_name: &str, pages: u32) -> io::Result<Self> {
        Ok(Self((0..pages).map(|_| Page::default()).collect()))
    }

    /// Makes pages holes again.
    ///
    /// # Errors
    /// None in a model.
    pub fn punch(&self, start: u32, count: u32) -> io::Result<()> {
        let pages = &self.0[start as usize..][..count as usize];
        pages.iter().for_each(|page| page.write(0));
        Ok(())
    }

    /// The pages that are no holes.
    ///
    /// # Errors
    /// None in a model.
    pub fn allocated(&self) -> io::Result<Pages> {
        let filled = self.0.iter().filter(|page| page.read() != 0);
        Ok(Pages(filled.count() as u64))
    }

    /// No model has a guest that maps the pool.
    ///
    /// # Errors
    /// Always.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A file as the process maps it.
#[derive(Debug)]
pub struct Mapping(Memfd);

impl Mapping {
    /// Maps the file.
    ///
    /// # Errors
    /// None in a model.
    pub fn read_write(memfd: &Memfd) -> io::Result<Self> {
        Ok(Self(memfd.clone()))
    }

    /// Copies the first word of a page out.
    pub fn read(&self, page: u32, into: &mut PageBuf) {
        let word = self.0.0[page as usize].read();
        into.0[..8].copy_from_slice(&word.to_le_bytes());
    }

    /// Copies the first word of a page in.
    pub fn write(&self, page: u32, from: &PageBuf) {
        let (words, _) = from.0.as_chunks::<8>();
        self.0.0[page as usize].write(u64::from_le_bytes(words[0]));
    }
}

/// Nothing is far away in a model.
pub fn prefetch<T>(_to: &T) {}
