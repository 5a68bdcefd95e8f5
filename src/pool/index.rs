//! From the digest of a page to the frame of that content, or to pages that may have it.

use std::io;
use std::sync::Arc;

use hashbrown::HashTable;

use super::hints::{Claim, Doubts, Hint, Hints};
use super::seats::DomainId;
use crate::sync::{AtomicU64, Mutex, Ordering, zeroes};
use crate::units::{FrameId, Gfn, VmId};

/// Locks that the index is divided by: enough that scanner, reclaim workers and breaks seldom meet.
const SHARDS: u64 = 64;
/// The bits of a digest that choose the shard, not those that the tables of frames use.
const SHARD_SHIFT: u32 = 40;

/// The digests of shared frames, and of pages seen by the scanner.
///
/// Tables use digests as they are: nobody outside knows them, see [`crate::digest`].
#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Mutex<HashTable<FrameId>>]>,
    /// The digest a shared frame was published under. Relaxed is enough: it is written before the
    /// first reference exists and read under the lock of the shard, or by who gave the last one back.
    digests: Box<[AtomicU64]>,
    hints: Arc<Hints>,
    domain: DomainId,
}

impl Index {
    pub(super) fn new(frames: u32, hints: &Arc<Hints>) -> io::Result<Self> {
        Ok(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            digests: zeroes(frames as usize)?,
            hints: Arc::clone(hints),
            domain: hints.new_domain(),
        })
    }

    /// Gives a VM its seat.
    pub(super) fn sit_down(&self, vm: VmId) -> u16 {
        self.hints.sit_down(self.domain, vm)
    }

    /// Takes it back.
    pub(super) fn stand_up(&self, seat: u16) {
        self.hints.stand_up(seat);
    }

    /// How many hints there are.
    pub(super) fn hints(&self) -> u64 {
        self.hints.count(self.domain)
    }

    /// Brings near what a lookup of this digest needs.
    pub(super) fn prefetch(&self, digest: u64) {
        self.hints.prefetch(self.domain, digest);
    }

    /// The digest that a frame was published under last.
    pub(super) fn digest_of(&self, frame: FrameId) -> u64 {
        self.digests[frame.index()].load(Ordering::Relaxed)
    }

    /// The frame of this digest, if `take_reference` to it succeeds. It is called under the lock that
    /// [`remove_frame`](Self::remove_frame) waits for, so the frame is still the one of the digest.
    pub(super) fn find_frame(
        &self,
        digest: u64,
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Option<FrameId> {
        let frames = self.shard(digest).lock();
        let frame = self.find(&frames, digest);
        frame.filter(|&frame| take_reference(frame))
    }

    /// The same, or if there is none what the hints say of `page`, the seat of its VM and its number. Nobody
    /// can make a frame between the two.
    pub(super) fn find_frame_or_hint(
        &self,
        digest: u64,
        page: (u16, Gfn),
        doubts: &Doubts,
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Result<FrameId, Hint> {
        let frames = self.shard(digest).lock();
        let frame = self.find(&frames, digest);
        match frame.filter(|&frame| take_reference(frame)) {
            Some(frame) => Ok(frame),
            None => Err(self.hints.offer(self.domain, digest, page, doubts)),
        }
    }

    /// Drops a hint that turned out false. Its page may be looked at just now, and find it still there: the
    /// caller asks the page once more.
    pub(super) fn drop_hint(&self, claim: &Claim) {
        self.hints.drop_claim(claim);
    }

    /// Makes `frame` the one of this digest, and takes away the hints that it had; `None` when another frame
    /// is that `is_live`, or when there is no memory for one more entry.
    pub(super) fn insert_frame(
        &self,
        digest: u64,
        frame: FrameId,
        is_live: impl FnOnce(FrameId) -> bool,
    ) -> Option<Vec<(VmId, Gfn)>> {
        let mut frames = self.shard(digest).lock();
        if let Some(other) = self.find(&frames, digest) {
            if is_live(other) {
                return None;
            }
            remove(&mut frames, digest, other);
        }
        self.digests[frame.index()].store(digest, Ordering::Relaxed);
        let digest_of = |frame: &FrameId| self.digest_of(*frame);
        frames.try_reserve(1, digest_of).ok()?;
        frames.insert_unique(digest, frame, digest_of);
        Some(self.hints.take(self.domain, digest))
    }

    /// Removes the entry of this frame.
    pub(super) fn remove_frame(&self, frame: FrameId) {
        let digest = self.digest_of(frame);
        remove(&mut self.shard(digest).lock(), digest, frame);
    }

    fn find(&self, frames: &HashTable<FrameId>, digest: u64) -> Option<FrameId> {
        frames
            .find(digest, |frame| self.digest_of(*frame) == digest)
            .copied()
    }

    fn shard(&self, digest: u64) -> &Mutex<HashTable<FrameId>> {
        &self.shards[((digest >> SHARD_SHIFT) % SHARDS) as usize]
    }

    /// All entries of shared frames.
    #[cfg(test)]
    pub(super) fn frames(&self) -> Vec<(u64, FrameId)> {
        let shards = self.shards.iter();
        let frames = shards.flat_map(|shard| shard.lock().iter().copied().collect::<Vec<_>>());
        frames.map(|frame| (self.digest_of(frame), frame)).collect()
    }
}

/// Removes a frame from the table if it is there.
fn remove(frames: &mut HashTable<FrameId>, digest: u64, frame: FrameId) {
    if let Ok(entry) = frames.find_entry(digest, |other| *other == frame) {
        entry.remove();
    }
}
