//! The scanner of one VM: walks its pages, looks at the resident ones, finds candidates.

use super::merge::{Candidate, Guess, merge};
use super::place::FrameHold;
use crate::digest::{digest, low_half};
use crate::engine::EngineError;
use crate::page::{Due, Home};
use crate::pool::Hint;
use crate::units::{Gfn, GfnRun, PageBuf, VmId};
use crate::vm::Vm;

/// Candidates that are frozen and compared at once: their guests' accesses wait meanwhile.
const BATCH: usize = 256;
/// Pages that are walked at once, 1 GiB: the worker has other things to do.
const PART: u32 = 1 << 18;
/// Pages of one page table of the kernel, if RAM is aligned to it.
const BLOCK: u32 = 512;

/// The other VMs, as far as a scanner needs them.
pub trait Peers: Send + Sync {
    /// Whether `gfn` of `vm` still seems to have content whose digest has this low half.
    fn seems_equal(&self, vm: VmId, gfn: Gfn, low_digest: u32) -> bool;

    /// Tells the worker of `vm` that a frame with the content of its page `gfn` exists now.
    fn nudge(&self, vm: VmId, gfn: Gfn);
}

/// What one slice of scanning found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Pages looked at.
    pub looked: u32,
    /// Pages whose content was new or had changed.
    pub changed: u32,
    /// Pages that have changed, or could not be merged, and are left alone for some passes.
    pub waiting: u32,
    /// Pages that were shared or dropped as zero.
    pub shared: u64,
    /// Whether the walk came to the end of the VM and starts again.
    pub pass_ended: bool,
}

/// The walk of one VM. See the [module of sharing](super).
#[derive(Debug, Default)]
pub struct Scanner {
    cursor: u32,
    /// Whether the engine has told which pages of the part that is walked were written.
    told: bool,
}

impl Scanner {
    /// Walks on, looks at up to `count` pages that are due, and shares what can be shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn scan(&mut self, vm: &Vm, peers: &dyn Peers, count: u32) -> Result<Found, EngineError> {
        let part = part_of(vm, self.cursor);
        if part.start.0 == self.cursor {
            // Before any of it is looked at: what is written after a look is told by the next pass.
            self.told = take_written(vm, part);
        }
        let mut found = Found::default();
        let mut look = Look::new(vm, peers, self.told);
        while u64::from(self.cursor) < part.end() && found.looked < count {
            let gfn = Gfn(self.cursor);
            match vm.table.due_for_scan(gfn, self.told) {
                Due::Now => {
                    found.looked += 1;
                    look.at(gfn);
                    found.shared += look.merge_if_full()?;
                }
                Due::Later => found.waiting += 1,
                Due::No => {}
            }
            self.cursor += 1;
        }
        found.shared += look.finish()?;
        found.changed = look.changed;
        if self.cursor == vm.table.pages() {
            found.pass_ended = true;
            self.cursor = 0;
        }
        Ok(found)
    }

    /// Looks at single pages that others have found to be equal to theirs; how many were shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn follow(
        &self,
        vm: &Vm,
        peers: &dyn Peers,
        mut gfns: Vec<Gfn>,
    ) -> Result<u64, EngineError> {
        gfns.sort_unstable();
        gfns.dedup();
        let mut shared = 0;
        let mut look = Look::new(vm, peers, self.told);
        for gfn in gfns {
            if vm.table.contains(gfn) && vm.table.entry(gfn).home() == Home::Resident {
                look.at(gfn);
                shared += look.merge_if_full()?;
            }
        }
        Ok(shared + look.finish()?)
    }
}

/// The part of a VM that is walked at once.
fn part_of(vm: &Vm, cursor: u32) -> GfnRun {
    let start = cursor / PART * PART;
    GfnRun::new(Gfn(start), PART.min(vm.table.pages() - start))
}

/// Notes which pages of `part` were written; `false`: nobody knows.
///
/// Asked are only blocks in which something is resident: the kernel makes page tables for what it is
/// asked about.
fn take_written(vm: &Vm, part: GfnRun) -> bool {
    let blocks = (part.start.0..part.start.0 + part.count).step_by(BLOCK as usize);
    let mut asked: Vec<GfnRun> = Vec::new();
    for start in blocks {
        let block = GfnRun::new(Gfn(start), BLOCK.min(part.start.0 + part.count - start));
        match asked.last_mut() {
            _ if !vm.table.has_resident(block) => {}
            Some(before) if before.end() == u64::from(start) => before.count += block.count,
            _ => asked.push(block),
        }
    }
    asked.into_iter().all(|run| {
        vm.engine.take_written(run, &mut |written| {
            written.iter().for_each(|gfn| vm.table.note_written(gfn));
        })
    })
}

/// One walk's candidates and the pages that are to be told of new frames.
struct Look<'a> {
    vm: &'a Vm,
    peers: &'a dyn Peers,
    told: bool,
    candidates: Vec<Candidate<'a>>,
    nudges: Vec<(VmId, Gfn)>,
    changed: u32,
    content: PageBuf,
}

impl<'a> Look<'a> {
    fn new(vm: &'a Vm, peers: &'a dyn Peers, told: bool) -> Self {
        let (candidates, nudges) = (Vec::new(), Vec::new());
        Self {
            vm,
            peers,
            told,
            candidates,
            nudges,
            changed: 0,
            content: PageBuf::zeroed(),
        }
    }

    fn at(&mut self, gfn: Gfn) {
        let table = &self.vm.table;
        self.vm.stats.scanned.one();
        table.begin_look(gfn);
        // The guest may be writing: whatever follows is a hint until the page stands still.
        self.vm.engine.read(gfn, &mut self.content);
        if self.content.is_zero() {
            // Not a change: it counts when it is dropped, and may be refused for ever.
            self.candidates.push(Candidate {
                gfn,
                digest: 0,
                guess: Guess::Zero,
            });
            return;
        }
        let digest = digest(&self.content);
        // Zero means "never looked at"; one page in four billion is looked at once more for it.
        let low = low_half(digest).max(1);
        let last = table.entry(gfn).last_hash();
        table.note_hash(gfn, low);
        if last != low {
            self.changed += 1;
        }
        if last != 0 && last != low {
            self.vm.stats.volatile.one();
            table.back_off(gfn);
            return;
        }
        if let Some(guess) = self.guess(gfn, digest, low) {
            self.candidates.push(Candidate { gfn, digest, guess });
        } else if last == low {
            table.settle(gfn, self.told);
        }
    }

    fn guess(&self, gfn: Gfn, digest: u64, low: u32) -> Option<Guess<'a>> {
        if !self.vm.is_sharing() {
            return None;
        }
        loop {
            match FrameHold::find_for(self.vm, gfn, digest) {
                Ok(hold) => return Some(Guess::Frame(hold)),
                Err(Hint::Other(other, at)) if self.peers.seems_equal(other, at, low) => {
                    return Some(Guess::First);
                }
                // Stale: our page takes its place, unless another one is faster.
                Err(Hint::Other(other, at)) => self.vm.pool().index().drop_hint(digest, other, at),
                Err(Hint::Inserted | Hint::Same) => return None,
            }
        }
    }

    fn merge_if_full(&mut self) -> Result<u64, EngineError> {
        if self.candidates.len() < BATCH {
            Ok(0)
        } else {
            self.finish()
        }
    }

    fn finish(&mut self) -> Result<u64, EngineError> {
        let candidates = std::mem::take(&mut self.candidates);
        let shared = merge(self.vm, candidates, &mut self.nudges);
        // Only now are the frames in use that the others shall find. Also after a failure: nobody knows these
        // pages by their content any more.
        for (vm, gfn) in self.nudges.drain(..) {
            self.peers.nudge(vm, gfn);
        }
        shared
    }
}
