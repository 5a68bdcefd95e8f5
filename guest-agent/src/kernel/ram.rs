//! Guest RAM for tests: a plain vector.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};

use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};

use super::lock;
use crate::shim::Memory;

/// RAM whose pages hold garbage at first, as pages of any origin may, and that can be made to fail.
pub(crate) struct VecMemory {
    pages: Vec<Mutex<Box<[u8]>>>,
    faulty: AtomicBool,
    stall: Mutex<Stall>,
    changed: Condvar,
    /// The most pages that the host of this RAM attaches at once.
    attaches: AtomicU32,
}

/// The page that the host does not bring back, and how many threads wait for it.
#[derive(Default)]
struct Stall {
    page: Option<Gfn>,
    waiting: u32,
}

impl VecMemory {
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            pages: (0..pages)
                .map(|_| Mutex::new(vec![0xa5; PAGE_SIZE].into()))
                .collect(),
            faulty: AtomicBool::new(false),
            stall: Mutex::default(),
            changed: Condvar::new(),
            attaches: AtomicU32::new(0),
        }
    }

    /// From now on, whoever touches this page waits until the guard is dropped, be it by a panic.
    pub(crate) fn stall(&self, gfn: Gfn) -> StallGuard<'_> {
        lock(&self.stall).page = Some(gfn);
        StallGuard(self)
    }

    /// Waits until a thread waits for the stalled page.
    pub(crate) fn wait_stalled(&self) {
        let stall = lock(&self.stall);
        drop(self.changed.wait_while(stall, |stall| stall.waiting == 0));
    }

    fn enter(&self, gfn: Gfn) {
        let mut stall = lock(&self.stall);
        if stall.page == Some(gfn) {
            stall.waiting += 1;
            self.changed.notify_all();
            drop(
                self.changed
                    .wait_while(stall, |stall| stall.page == Some(gfn)),
            );
        }
    }

    /// Flips one bit of one byte behind the back of its owner.
    pub(crate) fn flip(&self, gfn: Gfn, at: usize) {
        lock(&self.pages[gfn.index()])[at] ^= 1;
    }

    /// From now on, the host attaches up to `pages` pages at once; at first it attaches none.
    pub(crate) fn attach_at_most(&self, pages: u32) {
        self.attaches.store(pages, Ordering::Relaxed);
    }

    /// From now on, the first byte of every read is wrong.
    pub(crate) fn break_reads(&self) {
        self.faulty.store(true, Ordering::Relaxed);
    }
}

/// Ends a stall when it is dropped.
pub(crate) struct StallGuard<'a>(&'a VecMemory);

impl Drop for StallGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.stall).page = None;
        self.0.changed.notify_all();
    }
}

impl Memory for VecMemory {
    fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        self.enter(gfn);
        into.copy_from_slice(&lock(&self.pages[gfn.index()])[at..at + into.len()]);
        if self.faulty.load(Ordering::Relaxed) {
            into[0] ^= 1;
        }
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        self.enter(gfn);
        lock(&self.pages[gfn.index()])[at..at + from.len()].copy_from_slice(from);
    }

    fn attach(&self, pages: GfnRun, source: Gfn) -> u32 {
        let count = pages.count.min(self.attaches.load(Ordering::Relaxed));
        for at in 0..count {
            let bytes = lock(&self.pages[source.index() + at as usize]).clone();
            *lock(&self.pages[pages.start.index() + at as usize]) = bytes;
        }
        count
    }
}
