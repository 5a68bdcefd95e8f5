//! Reads all pages of one VM to find out what sharing would save, and changes nothing.
//!
//! It works whether the VM is scanned or not, and trusts no notes of the scanner: these may be old, or there may be
//! none. It is read in slices between the other jobs of the worker, because only the worker can rely on a resident page
//! staying so ([`crate::page`]). No page is locked, frozen or marked, and no hint is made.
//!
//! Shared pages are not read: their frame has kept its digest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;

use super::sketch::{Frequent, Sketch};
use crate::digest::digest;
use crate::page::Home;
use crate::sync::Mutex;
use crate::units::{Gfn, PageBuf};
use crate::vm::Vm;

/// Pages that are read in one slice: about half a millisecond.
const READ: usize = 512;
/// Pages that are looked at in one slice, most of which cost nothing.
const LOOKED_AT: u32 = 1 << 15;

/// A sketch that several workers fill at once.
#[derive(Debug)]
pub struct SharedSketch {
    sketch: Mutex<Sketch>,
    /// [`Sketch::below`], or an older value of it, which only costs a look under the lock.
    below: AtomicU64,
}

impl Default for SharedSketch {
    fn default() -> Self {
        Self {
            sketch: Mutex::default(),
            below: AtomicU64::new(u64::MAX),
        }
    }
}

impl SharedSketch {
    /// Takes what was sampled, and leaves nothing.
    #[must_use]
    pub fn take(&self) -> Sketch {
        std::mem::take(&mut self.sketch.lock())
    }

    fn note(&self, vm: &Vm, digests: Vec<u64>) {
        if digests.is_empty() {
            return;
        }
        let mut sketch = self.sketch.lock();
        sketch.note(vm.id, digests);
        let below = sketch.below().unwrap_or(u64::MAX);
        self.below.store(below, Ordering::Relaxed);
    }
}

/// What was found in one VM, beside what is in the sketch.
#[derive(Clone, Debug, Default)]
pub struct Surveyed {
    /// Pages that were looked at: those in RAM of their own, and shared ones.
    pub pages: u64,
    /// Pages among them that hold only zeroes.
    pub zero: u64,
    /// The contents that most of the others have.
    pub frequent: Frequent,
}

/// A survey under way; belongs to the VM's worker.
#[derive(Debug)]
pub struct Survey {
    sketch: Arc<SharedSketch>,
    answer: Sender<Surveyed>,
    cursor: u32,
    found: Surveyed,
}

impl Survey {
    /// A survey that fills `sketch` and sends what else it has found.
    #[must_use]
    pub fn new(sketch: &Arc<SharedSketch>, answer: Sender<Surveyed>) -> Self {
        Self {
            sketch: Arc::clone(sketch),
            answer,
            cursor: 0,
            found: Surveyed::default(),
        }
    }

    /// Goes on for a slice; whether the survey is over.
    pub fn step(&mut self, vm: &Vm) -> bool {
        let end = self.cursor.saturating_add(LOOKED_AT).min(vm.table.pages());
        let (pool, below) = (vm.pool(), self.sketch.below.load(Ordering::Relaxed));
        let mut content = PageBuf::zeroed();
        let (mut read, mut sampled) = (0, Vec::new());
        while self.cursor < end && read < READ {
            let gfn = Gfn(self.cursor);
            self.cursor += 1;
            let digest = match vm.table.entry(gfn).home() {
                Home::Shared(frame) => Some(pool.digest(frame)),
                Home::Resident => {
                    read += 1;
                    vm.engine.read(gfn, &mut content);
                    (!content.is_zero()).then(|| digest(&content))
                }
                _ => continue,
            };
            self.found.pages += 1;
            let Some(digest) = digest else {
                self.found.zero += 1;
                continue;
            };
            self.found.frequent.note(digest);
            if digest < below {
                sampled.push(digest);
            }
        }
        self.sketch.note(vm, sampled);
        let is_over = self.cursor == vm.table.pages();
        if is_over {
            // An asker that has not waited needs no answer.
            let _ = self.answer.send(std::mem::take(&mut self.found));
        }
        is_over
    }
}
