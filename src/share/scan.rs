//! The scanner of one VM: walks its pages, looks at the resident ones, finds candidates.

use super::merge::{Candidate, Guess, merge};
use super::place::FrameHold;
use crate::digest::{digest, low_half};
use crate::engine::EngineError;
use crate::page::Home;
use crate::pool::Hint;
use crate::units::{Gfn, PageBuf, VmId};
use crate::vm::Vm;

/// Candidates that are frozen and compared at once: their guests' accesses wait meanwhile.
const BATCH: usize = 256;

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
    /// Pages passed, looked at or not.
    pub passed: u32,
    /// Pages whose content was new or had changed.
    pub changed: u32,
    /// Pages that were shared or dropped as zero.
    pub shared: u64,
    /// Whether the walk came to the end of the VM and starts again.
    pub pass_ended: bool,
}

/// The walk of one VM. See the [module of sharing](super).
#[derive(Debug, Default)]
pub struct Scanner {
    cursor: u32,
}

impl Scanner {
    /// Walks on over `count` pages and shares what can be shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn scan(&mut self, vm: &Vm, peers: &dyn Peers, count: u32) -> Result<Found, EngineError> {
        let end = self.cursor.saturating_add(count).min(vm.table.pages());
        let mut found = Found {
            passed: end - self.cursor,
            ..Found::default()
        };
        let mut look = Look::new(vm, peers);
        for gfn in (self.cursor..end).map(Gfn) {
            if vm.table.entry(gfn).home() == Home::Resident && vm.table.due_for_scan(gfn) {
                look.at(gfn);
                found.shared += look.merge_if_full()?;
            }
        }
        found.shared += look.finish()?;
        found.changed = look.changed;
        found.pass_ended = end == vm.table.pages();
        self.cursor = if found.pass_ended { 0 } else { end };
        Ok(found)
    }

    /// Looks at single pages that others have found to be equal to theirs; how many were shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn follow(vm: &Vm, peers: &dyn Peers, mut gfns: Vec<Gfn>) -> Result<u64, EngineError> {
        gfns.sort_unstable();
        gfns.dedup();
        let mut shared = 0;
        let mut look = Look::new(vm, peers);
        for gfn in gfns {
            if vm.table.contains(gfn) && vm.table.entry(gfn).home() == Home::Resident {
                look.at(gfn);
                shared += look.merge_if_full()?;
            }
        }
        Ok(shared + look.finish()?)
    }
}

/// One walk's candidates and the peers to be told.
struct Look<'a> {
    vm: &'a Vm,
    peers: &'a dyn Peers,
    candidates: Vec<Candidate<'a>>,
    nudges: Vec<(VmId, Gfn)>,
    changed: u32,
    content: PageBuf,
}

impl<'a> Look<'a> {
    fn new(vm: &'a Vm, peers: &'a dyn Peers) -> Self {
        let (candidates, nudges) = (Vec::new(), Vec::new());
        Self {
            vm,
            peers,
            candidates,
            nudges,
            changed: 0,
            content: PageBuf::zeroed(),
        }
    }

    fn at(&mut self, gfn: Gfn) {
        self.vm.stats.scanned.one();
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
        let last = self.vm.table.entry(gfn).last_hash();
        self.vm.table.note_hash(gfn, low);
        if last != low {
            self.changed += 1;
        }
        if last != 0 && last != low {
            self.vm.stats.volatile.one();
            self.vm.table.back_off(gfn);
            return;
        }
        if let Some(guess) = self.guess(gfn, digest, low) {
            self.candidates.push(Candidate { gfn, digest, guess });
        } else if last == low {
            self.vm.table.settle(gfn);
        }
    }

    fn guess(&mut self, gfn: Gfn, digest: u64, low: u32) -> Option<Guess<'a>> {
        let vm = self.vm;
        if let Some(hold) = FrameHold::find(vm, digest) {
            return Some(Guess::Frame(hold));
        }
        if !vm.is_sharing() {
            return None;
        }
        let pool = vm.pool();
        let index = pool.index();
        let Hint::Other(other, other_gfn) = index.hint(digest, vm.id, gfn) else {
            return None;
        };
        if self.peers.seems_equal(other, other_gfn, low) {
            self.nudges.push((other, other_gfn));
            return Some(Guess::First);
        }
        // Stale: our page takes the place of the hint.
        index.drop_hint(digest, other, other_gfn);
        index.hint(digest, vm.id, gfn);
        None
    }

    fn merge_if_full(&mut self) -> Result<u64, EngineError> {
        if self.candidates.len() < BATCH {
            Ok(0)
        } else {
            self.finish()
        }
    }

    fn finish(&mut self) -> Result<u64, EngineError> {
        let shared = merge(self.vm, std::mem::take(&mut self.candidates))?;
        // Only now do the frames exist that the others shall find.
        for (vm, gfn) in self.nudges.drain(..) {
            self.peers.nudge(vm, gfn);
        }
        Ok(shared)
    }
}
