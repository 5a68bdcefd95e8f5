//! Finds by the digest of a page the frame with that content, or pages that may have it.

use std::io;
use std::sync::Arc;

use hashbrown::HashTable;

use super::hints::{Hint, Hinted, Hints, Mismatches};
use super::seats::DomainId;
use crate::sync::{AtomicU64, Mutex, Ordering, zeroes};
use crate::units::{FrameId, Gfn, VmId};

/// How many locks the index is divided among: enough that scanners, reclaim and breaks seldom meet.
const SHARDS: u64 = 64;
/// Where the bits of a digest begin that choose the shard. The tables of frames use other bits.
const SHARD_SHIFT: u32 = 40;

/// The digests of shared frames, and of pages that scanners have seen.
///
/// The tables use digests without hashing them again, because nobody outside knows them: see [`crate::digest`].
#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Mutex<HashTable<FrameId>>]>,
    /// The digest under which each shared frame was published. Relaxed is enough: it is written under the lock of the
    /// shard, and read under that lock or by whoever gave the last reference back.
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
    pub(super) fn take_seat(&self, vm: VmId) -> u16 {
        self.hints.take_seat(self.domain, vm)
    }

    /// Takes a seat back.
    pub(super) fn leave_seat(&self, seat: u16) {
        self.hints.leave_seat(seat);
    }

    /// How many hints name pages of the VM in this seat.
    pub(super) fn hints_of(&self, seat: u16) -> u64 {
        self.hints.seats().hints(seat.into())
    }

    /// How many hints this domain has.
    pub(super) fn hints(&self) -> u64 {
        self.hints.seats().count(self.domain)
    }

    /// Fetches into the processor's cache what a lookup of this digest needs.
    pub(super) fn prefetch(&self, digest: u64) {
        self.hints.prefetch(self.domain, digest);
    }

    /// The digest under which a frame was last published.
    pub(super) fn digest_of(&self, frame: FrameId) -> u64 {
        self.digests[frame.index()].load(Ordering::Relaxed)
    }

    /// The frame with this digest, if `take_reference` to it succeeds. That is called under the lock for which
    /// [`remove_frame`](Self::remove_frame) waits, so the frame still has the digest then.
    pub(super) fn find_frame(
        &self,
        digest: u64,
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Option<FrameId> {
        let frames = self.shard(digest).lock();
        let frame = self.find(&frames, digest);
        frame.filter(|&frame| take_reference(frame))
    }

    /// The same; if there is no frame, what [`Hints::offer`] says for `page`, which is the seat of its VM and its
    /// number. Both happen under one lock, so nobody can make a frame in between.
    pub(super) fn find_frame_or_hint(
        &self,
        digest: u64,
        page: (u16, Gfn),
        mismatches: &Mismatches,
        take_reference: impl FnOnce(FrameId) -> bool,
    ) -> Result<FrameId, Hint> {
        let frames = self.shard(digest).lock();
        let frame = self.find(&frames, digest);
        match frame.filter(|&frame| take_reference(frame)) {
            Some(frame) => Ok(frame),
            None => Err(self.hints.offer(self.domain, digest, page, mismatches)),
        }
    }

    /// Drops a hint that turned out to be false. A scanner may just now have found it still there, so the caller asks
    /// the hint's page once more.
    pub(super) fn drop_hint(&self, claim: &Hinted) {
        self.hints.drop_claim(claim);
    }

    /// Makes `frame` the one with this digest, and takes the digest's hints away. `None`: the digest has another frame
    /// that `is_live`, or there is no memory for one more entry.
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
        // Asked first, because an insertion that finds no memory would end the daemon.
        frames.try_reserve(1, digest_of).ok()?;
        frames.insert_unique(digest, frame, digest_of);
        // Under the lock of the shard still, so that no hint for this content comes between.
        Some(self.hints.take(self.domain, digest))
    }

    /// Removes the entry of this frame, if no other frame has replaced it.
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
