//! Guest RAM for tests: a plain vector.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock;
use crate::protocol::{Gfn, PAGE_SIZE};
use crate::shim::Memory;

/// RAM whose pages hold garbage at first, as pages from anywhere do, and that can be made to
/// break.
pub(crate) struct VecMemory {
    pages: Vec<Mutex<Box<[u8]>>>,
    faulty: AtomicBool,
}

impl VecMemory {
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            pages: (0..pages)
                .map(|_| Mutex::new(vec![0xa5; PAGE_SIZE].into()))
                .collect(),
            faulty: AtomicBool::new(false),
        }
    }

    /// Flips one bit of one byte behind the back of its owner.
    pub(crate) fn flip(&self, gfn: Gfn, at: usize) {
        lock(&self.pages[gfn.index()])[at] ^= 1;
    }

    /// From now on, the first byte of what is read is wrong.
    pub(crate) fn break_reads(&self) {
        self.faulty.store(true, Ordering::Relaxed);
    }
}

impl Memory for VecMemory {
    fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&lock(&self.pages[gfn.index()])[at..at + into.len()]);
        if self.faulty.load(Ordering::Relaxed) {
            into[0] ^= 1;
        }
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        lock(&self.pages[gfn.index()])[at..at + from.len()].copy_from_slice(from);
    }
}
