//! Scanning pages: reads them, and finds out which ones can be merged.
//!
//! A lookup costs two or three cache misses, each half as long as hashing a page takes. So many pages are read
//! before any of them is looked up. While one page is hashed, the start of the next page is fetched, and so is what
//! the lookups of the pages before it will need.
//!
//! Half of the time of a first scan of a page goes into the kernel, which maps pages into the daemon's view, 16 in
//! each fault. `MADV_POPULATE_READ` of a whole block takes longer, and `pread` longer still: they go page by page.

use std::sync::Arc;

use super::Peers;
use super::merge::{Guess, merge};
use crate::digest::{digest, low_half};
use crate::engine::EngineError;
use crate::pool::{Hint, Hinted, Membership, Mismatches};
use crate::remap::FrameHold;
use crate::units::{Gfn, PageBuf, VmId};
use crate::vm::Vm;

/// Candidates that are frozen and compared at once, or a few more. The guest's accesses to them wait meanwhile.
const BATCH: usize = 256;
/// What is noted of a page of zeroes in place of the low half of a digest. One in four billion digests has the same.
const ZEROES: u32 = 2;

/// The candidates of one scan, and the pages whose workers are to be told of new frames.
pub(super) struct Candidates<'a> {
    vm: &'a Vm,
    peers: &'a dyn Peers,
    writes_known: bool,
    membership: Arc<Membership>,
    batch: Vec<(Gfn, Guess<'a>)>,
    nudges: Vec<(VmId, Gfn)>,
    changed: u32,
    shared: u64,
    content: PageBuf,
}

impl<'a> Candidates<'a> {
    /// `writes_known`: the engine reports which pages were written.
    pub(super) fn new(vm: &'a Vm, peers: &'a dyn Peers, writes_known: bool) -> Self {
        Self {
            vm,
            peers,
            writes_known,
            // Stays right during the scan: only the worker moves its VM to another pool, and the worker is here.
            membership: vm.membership(),
            batch: Vec::new(),
            nudges: Vec::new(),
            changed: 0,
            shared: 0,
            content: PageBuf::zeroed(),
        }
    }

    /// Scans pages that the caller has found resident, ascending, and merges once there are enough candidates.
    pub(super) fn scan(&mut self, gfns: &[Gfn]) -> Result<(), EngineError> {
        let (vm, table) = (self.vm, &self.vm.table);
        vm.stats.scanned.add(gfns.len() as u64);
        // The pages with their digests; `None` for a page of zeroes.
        let mut read = Vec::with_capacity(gfns.len());
        for (at, &gfn) in gfns.iter().enumerate() {
            table.mark_seen(gfn);
            // The guest may be writing, so everything learned from this copy is a hint until the page stands still.
            vm.engine.read(gfn, &mut self.content);
            if let Some(next) = gfns.get(at + 1) {
                vm.engine.prefetch(*next);
            }
            // Zeroes need no digest, because they become a hole and no frame.
            let digest = (!self.content.is_zero()).then(|| digest(&self.content));
            if let Some(digest) = digest {
                self.membership.prefetch(digest);
            }
            read.push((gfn, digest));
        }
        for (gfn, digest) in read {
            self.judge(gfn, digest);
        }
        // Merged in large batches, because each batch costs a freeze and a mapping command.
        if self.batch.len() < BATCH {
            return Ok(());
        }
        self.merge()
    }

    /// Makes a candidate of a page if it is to become one now. Without a digest its bytes are zero.
    fn judge(&mut self, gfn: Gfn, digest: Option<u64>) {
        let table = &self.vm.table;
        // 0 means "never scanned", so a digest with a low half of 0, one in four billion, is noted as 1.
        let low = digest.map_or(ZEROES, |digest| low_half(digest).max(1));
        let last = table.note_hash(gfn, low);
        // A page that turned zero counts when it is dropped: one whose merge is always refused would count in every
        // pass.
        if let Some(digest) = digest
            && last != low
        {
            self.changed += 1;
            if let Some(witness) = table.witness() {
                witness.hashed(gfn, digest);
            }
        }
        // A page looked at for the first time is tried at once: it may be equal to others as it came. One that has
        // changed may change again, zeroes too: dropped in each pass, a page that its guest clears and fills by turns
        // would cost it a fault each time.
        if last != 0 && last != low {
            self.vm.stats.volatile.one();
            table.back_off(gfn);
            return;
        }
        let is_large = self.vm.large.holds(gfn);
        let Some(digest) = digest else {
            if !is_large {
                self.batch.push((gfn, Guess::Zero));
            }
            return;
        };
        // The hint that this leaves is for the time when the large page is broken, and for other VMs.
        if let Some(guess) = self.guess(gfn, digest, low) {
            if !is_large {
                self.batch.push((gfn, guess));
            }
        } else if last == low {
            table.settle(gfn, self.writes_known);
        }
    }

    fn guess(&self, gfn: Gfn, digest: u64, low: u32) -> Option<Guess<'a>> {
        if !self.vm.is_sharing() {
            return None;
        }
        let has = |claim: &Hinted| self.peers.known_hash(claim.vm, claim.gfn) == Some(low);
        let mut mismatches = Mismatches::default();
        loop {
            match self.membership.lookup(digest, gfn, &mismatches) {
                Ok(frame) => return Some(Guess::Frame(FrameHold::new(self.vm, frame))),
                Err(Hint::Other(claim)) if has(&claim) => return Some(Guess::First(digest)),
                Err(Hint::Other(claim)) => {
                    if !self.drop_if_stale(&claim) {
                        mismatches.add(claim);
                    }
                }
                Err(Hint::Full(claims)) => {
                    let dropped = claims.iter().filter(|claim| self.drop_if_stale(claim));
                    if dropped.count() == 0 {
                        mismatches.set_crowded();
                    }
                }
                // A doubted page may have got this content after it was asked. Then its scanner found its own hint, not
                // ours, so nobody but us can notice that the two are equal: ask once more.
                Err(Hint::Inserted | Hint::Same) => {
                    let is_there = mismatches.others().iter().any(has);
                    return is_there.then_some(Guess::First(digest));
                }
            }
        }
    }

    /// Drops a hint whose page has another content than the hint says; `false` if the hint may be true.
    fn drop_if_stale(&self, claim: &Hinted) -> bool {
        let fits = || {
            let known = self.peers.known_hash(claim.vm, claim.gfn);
            known.is_some_and(|known| claim.fits(known))
        };
        if fits() {
            return false;
        }
        self.membership.drop_hint(claim);
        if fits() {
            // The page has that content again, and its scanner may have found the hint just before it was dropped.
            self.peers.nudge(claim.vm, claim.gfn);
        }
        true
    }

    /// Merges the candidates that are left. Returns how many pages were new or had changed, and how many were shared.
    pub(super) fn finish(mut self) -> Result<(u32, u64), EngineError> {
        self.merge()?;
        Ok((self.changed, self.shared))
    }

    fn merge(&mut self) -> Result<(), EngineError> {
        // Taken even if the merge fails: their references to frames must end with it.
        let batch = std::mem::take(&mut self.batch);
        let shared = merge(self.vm, batch, &mut self.nudges);
        // After the merge: only now are the frames in use that the other workers are to find. After a failure too: the
        // hints for these pages are gone, so nothing else leads their workers to the frames.
        for (vm, gfn) in self.nudges.drain(..) {
            self.peers.nudge(vm, gfn);
        }
        self.shared += shared?;
        Ok(())
    }
}
