//! The frames of one sharing domain and the references to them.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::counts::PoolCounts;
use super::extents::FreeFrames;
use super::hints::{Hint, Hinted, Hints, Mismatches};
use super::index::Index;
use super::seats::NOBODY;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, zeroes};
use crate::sys::{Mapping, Memfd};
use crate::units::{FrameId, Gfn, PageBuf, Pages, VmId};

/// What happened to a frame when a reference to it was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unref {
    /// The reference was the last one: the frame's memory is given back to the machine.
    Freed,
    /// Others still refer to the frame.
    StillUsed,
}

/// The share pool of one sharing domain.
///
/// A frame is *free*, *new* (one [`NewFrame`] has it, no reference) or *shared* (one reference or more;
/// immutable). References are held by [`FrameRef`]s while something is in flight, and by page table
/// entries, which keep only the [`FrameId`] and give the reference back by [`Pool::unref`].
#[derive(Debug)]
pub struct Pool {
    memfd: Memfd,
    mapping: Mapping,
    free: Mutex<FreeFrames>,
    index: Index,
    refs: Box<[AtomicU32]>,
    frames_used: AtomicU64,
    refs_total: AtomicU64,
}

impl Pool {
    /// A pool of up to `frames` frames, all free. A frame costs no memory before it is used, and then at most
    /// 24 bytes of metadata. `hints`, which other pools use too, keeps what the scanners see. `name` is what
    /// `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// When the memfd cannot be created or mapped, or there is no memory for the tables.
    pub fn new(name: &str, frames: u32, hints: &Arc<Hints>) -> io::Result<Self> {
        // A mapping cannot be empty.
        let memfd = Memfd::publish(name, frames.max(1))?;
        let mapping = Mapping::read_write(&memfd)?;
        Ok(Self {
            memfd,
            mapping,
            free: Mutex::new(FreeFrames::new(frames)?),
            index: Index::new(frames, hints)?,
            refs: zeroes(frames as usize)?,
            frames_used: AtomicU64::new(0),
            refs_total: AtomicU64::new(0),
        })
    }

    /// A descriptor of the pool for a guest, to map and read frames.
    ///
    /// # Errors
    /// What opening `/proc/self/fd/N` says.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        self.memfd.read_only()
    }

    /// A free frame to be filled and published: `wanted` itself if it is free, else the start of a
    /// new extent with room to grow, else any free frame; `None` when the pool is full.
    ///
    /// `wanted` is the frame after that of the guest page before this one.
    pub fn allocate_near(&self, wanted: Option<FrameId>) -> Option<NewFrame<'_>> {
        let frame = self.free.lock().take_near(wanted)?;
        Some(NewFrame {
            pool: self,
            frame,
            filled: false,
        })
    }

    /// The shared frame that was published under this hash, with a reference taken.
    ///
    /// Its bytes are most probably those of the page with this hash; [`equals`](Self::equals) decides.
    pub fn lookup_frame(&self, hash: u64) -> Option<FrameRef<'_>> {
        let frame = self.index.find_frame(hash, |frame| self.try_ref(frame))?;
        Some(FrameRef { pool: self, frame })
    }

    /// Takes another reference; `false` when the frame has none: it is new, free or about to be free.
    ///
    /// The caller must know that the frame is still the one it means: a number that was only
    /// remembered may name another content by now.
    pub fn try_ref(&self, frame: FrameId) -> bool {
        let refs = self.refs_of(frame);
        let mut seen = refs.load(Ordering::Relaxed);
        while seen > 0 {
            // Relaxed: the caller found the frame under the lock under which it was published, or holds a reference.
            let taken =
                refs.compare_exchange_weak(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                Ok(_) => {
                    self.refs_total.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Gives back a reference that the caller held. When the last one ends, nothing maps the frame any more: a guest
    /// that mapped it was told to map something else, and has confirmed that.
    ///
    /// # Panics
    /// When the frame had none.
    pub fn unref(&self, frame: FrameId) -> Unref {
        // Release: this holder has read the frame before it ends. Acquire: the frame ends after all the other
        // holders have read it.
        let before = self.refs_of(frame).fetch_sub(1, Ordering::AcqRel);
        assert!(
            before > 0,
            "frame {} had no reference to give back",
            frame.0
        );
        self.refs_total.fetch_sub(1, Ordering::Relaxed);
        if before > 1 {
            return Unref::StillUsed;
        }
        // Out of the index before it is freed: whoever found it there would read another page's bytes.
        self.index.remove_frame(frame);
        self.release(frame);
        Unref::Freed
    }

    /// The number of references to a frame; 0 means that it is free or new.
    #[must_use]
    pub fn refs(&self, frame: FrameId) -> u32 {
        self.refs_of(frame).load(Ordering::Relaxed)
    }

    /// The digest of what a frame holds. Without a reference to the frame it may be that of an earlier content.
    #[must_use]
    pub fn digest(&self, frame: FrameId) -> u64 {
        self.index.digest_of(frame)
    }

    /// Copies a frame out. The caller holds a reference.
    pub fn read(&self, frame: FrameId, into: &mut PageBuf) {
        // A frame that nobody holds is a hole, and to read it would allocate memory that nobody has charged.
        debug_assert!(self.refs(frame) > 0, "frame {} is read unheld", frame.0);
        self.mapping.read(frame.0, into);
    }

    /// Whether a frame holds exactly these bytes. The caller holds a reference.
    #[must_use]
    pub fn equals(&self, frame: FrameId, content: &PageBuf) -> bool {
        let mut shared = PageBuf::zeroed();
        self.read(frame, &mut shared);
        shared == *content
    }

    /// What the pool holds and saves.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            frames: Pages(self.frames_used.load(Ordering::Relaxed)),
            refs: Pages(self.refs_total.load(Ordering::Relaxed)),
        }
    }

    /// Pages known to the scanner that are not shared (ESX: hint frames). It adds up the seats of all VMs of the host,
    /// and takes some 50 us.
    #[must_use]
    pub fn hints(&self) -> Pages {
        Pages(self.index.hints())
    }

    /// Whether no frame is in use. Another thread may be taking the first one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames_used.load(Ordering::Relaxed) == 0
    }

    /// The memory that the kernel counts for the pool; equals the frames of [`counts`](Self::counts).
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn allocated(&self) -> io::Result<Pages> {
        self.memfd.allocated()
    }

    /// Ends a filled frame that nobody can find any more.
    fn release(&self, frame: FrameId) {
        self.memfd
            // Its memory first: the caller gives the page back to the budget, so it must be free by then.
            .punch(frame.0, 1)
            .expect("an own memfd can be punched inside its length");
        self.frames_used.fetch_sub(1, Ordering::Relaxed);
        self.free.lock().give(frame);
    }

    fn refs_of(&self, frame: FrameId) -> &AtomicU32 {
        let frames = self.refs.len();
        let refs = self.refs.get(frame.index());
        refs.unwrap_or_else(|| panic!("frame {} of a pool of {frames}", frame.0))
    }
}

/// A frame that only its owner knows of. If it is dropped unpublished, it is free again.
#[derive(Debug)]
pub struct NewFrame<'a> {
    pool: &'a Pool,
    frame: FrameId,
    filled: bool,
}

impl<'a> NewFrame<'a> {
    /// Copies the content in. From here on the frame costs memory.
    pub fn fill(&mut self, content: &PageBuf) {
        self.pool.mapping.write(self.frame.0, content);
        if !mem::replace(&mut self.filled, true) {
            self.pool.frames_used.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes the frame immutable, and findable under `hash`, the digest of its content. Returned with it are the
    /// pages that may have this content. Their hints are gone, so nobody but the caller can tell their workers of
    /// the frame.
    ///
    /// `None` when another frame was published under that hash meanwhile and is in use: this one
    /// is free again, and [`Pool::lookup_frame`] finds the other, of equal content or not. Also `None` when the index
    /// finds no memory to grow; then less is shared.
    ///
    /// # Panics
    /// When the frame was not filled.
    #[must_use]
    pub fn publish(self, hash: u64) -> Option<(FrameRef<'a>, Vec<(VmId, Gfn)>)> {
        assert!(
            self.filled,
            "frame {} is published without content",
            self.frame.0
        );
        let (pool, frame) = (self.pool, self.frame);
        // Relaxed: nobody finds the frame before it is in the index, and the index's lock orders this and the content.
        pool.refs_of(frame).store(1, Ordering::Relaxed);
        let is_live = |other| pool.refs(other) > 0;
        let Some(known) = pool.index.insert_frame(hash, frame, is_live) else {
            pool.refs_of(frame).store(0, Ordering::Relaxed);
            return None;
        };
        pool.refs_total.fetch_add(1, Ordering::Relaxed);
        mem::forget(self);
        Some((FrameRef { pool, frame }, known))
    }
}

/// The place of one VM in the pool of its sharing domain. The VM leaves when this is dropped, if not before; its hints
/// then count for nothing.
#[derive(Debug)]
pub struct Membership {
    pool: Arc<Pool>,
    seat: AtomicU32,
}

impl Membership {
    /// Lets a VM take part in a pool.
    #[must_use]
    pub fn new(pool: Arc<Pool>, vm: VmId) -> Self {
        let seat = AtomicU32::new(pool.index.take_seat(vm).into());
        Self { pool, seat }
    }

    /// Leaves the pool. Whoever still has the membership can find frames, but leaves no hints.
    pub fn leave(&self) {
        let seat = self.seat.swap(NOBODY.into(), Ordering::Relaxed);
        self.pool.index.leave_seat(seat_number(seat));
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Pages of the VM that hints name, stale ones included; none once it has left.
    #[must_use]
    pub fn hinted(&self) -> Pages {
        let seat = seat_number(self.seat.load(Ordering::Relaxed));
        Pages(self.pool.index.hints_of(seat))
    }

    /// [`Pool::lookup_frame`] for the content of a page of the VM. If there is no frame, the [`Hint`] names another
    /// page that may have the content, apart from those in `mismatches`; if there is none either, it makes this page
    /// the known one, and whoever makes a frame of that content later learns of the page.
    ///
    /// # Errors
    /// The [`Hint`] when there is no frame.
    pub fn lookup(
        &self,
        hash: u64,
        gfn: Gfn,
        mismatches: &Mismatches,
    ) -> Result<FrameRef<'_>, Hint> {
        let pool = &*self.pool;
        let take = |frame| pool.try_ref(frame);
        let page = (seat_number(self.seat.load(Ordering::Relaxed)), gfn);
        let frame = (pool.index).find_frame_or_hint(hash, page, mismatches, take)?;
        Ok(FrameRef { pool, frame })
    }

    /// Fetches into the processor's cache what a lookup of this hash will need.
    pub fn prefetch(&self, hash: u64) {
        self.pool.index.prefetch(hash);
    }

    /// Drops a hint whose page seems to have other content than the hint says. The page's scanner may be looking
    /// just now and may still have found the hint, so whoever drops a hint must ask its page once more.
    pub fn drop_hint(&self, claim: &Hinted) {
        self.pool.index.drop_hint(claim);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The seat in the word of an atomic, which is wider than a seat.
#[expect(clippy::cast_possible_truncation, reason = "made of 16 bits")]
const fn seat_number(seat: u32) -> u16 {
    seat as u16
}

impl Drop for NewFrame<'_> {
    fn drop(&mut self) {
        if self.filled {
            self.pool.release(self.frame);
        } else {
            self.pool.free.lock().give(self.frame);
        }
    }
}

/// A reference to a shared frame, which is given back when dropped. A clone is another reference.
#[derive(Debug)]
pub struct FrameRef<'a> {
    pool: &'a Pool,
    frame: FrameId,
}

impl FrameRef<'_> {
    /// Which frame it refers to.
    #[must_use]
    pub const fn id(&self) -> FrameId {
        self.frame
    }

    /// Hands the reference over to a page table entry, which gives it back by [`Pool::unref`].
    #[must_use]
    pub fn keep(self) -> FrameId {
        let frame = self.frame;
        mem::forget(self);
        frame
    }
}

impl Clone for FrameRef<'_> {
    fn clone(&self) -> Self {
        // Relaxed: the reference in hand keeps the frame as it is.
        self.pool
            .refs_of(self.frame)
            .fetch_add(1, Ordering::Relaxed);
        self.pool.refs_total.fetch_add(1, Ordering::Relaxed);
        Self { ..*self }
    }
}

impl Drop for FrameRef<'_> {
    fn drop(&mut self) {
        self.pool.unref(self.frame);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::compress::samples;
    use crate::digest::digest;
    use crate::sync::model;
    use crate::units::PAGE_SIZE;

    fn pool(frames: u32) -> Pool {
        let hints = Arc::new(Hints::new(Pages(16)).unwrap());
        Pool::new("pool-test", frames, &hints).unwrap()
    }

    fn tagged(tag: u64) -> PageBuf {
        let mut page = PageBuf::zeroed();
        let (words, _) = page.0.as_chunks_mut::<8>();
        words.fill(tag.to_le_bytes());
        page
    }

    fn share<'a>(pool: &'a Pool, content: &PageBuf, hash: u64) -> Option<FrameRef<'a>> {
        let mut frame = pool.allocate_near(None)?;
        frame.fill(content);
        frame.publish(hash).map(|(frame, _)| frame)
    }

    /// Derives from the counts of references what else the pool keeps, and compares.
    fn verify(pool: &Pool) {
        let shared: Vec<_> = (0..pool.refs.len() as u32)
            .map(FrameId)
            .filter(|&frame| pool.refs(frame) > 0)
            .collect();
        let counts = pool.counts();
        assert_eq!(counts.frames, Pages(shared.len() as u64));
        assert_eq!(pool.allocated().unwrap(), counts.frames);
        let refs = shared.iter().map(|&frame| u64::from(pool.refs(frame)));
        assert_eq!(counts.refs, Pages(refs.sum()));
        let mut indexed = pool.index.frames();
        indexed.sort_by_key(|&(_, frame)| frame);
        let named = shared
            .iter()
            .map(|&frame| (pool.index.digest_of(frame), frame));
        assert_eq!(indexed, named.collect::<Vec<_>>());
        let mut free = pool.free.lock();
        let unused: Vec<_> = (0..).map_while(|_| free.take_near(None)).collect();
        assert_eq!(unused.len() + shared.len(), pool.refs.len());
        unused.into_iter().for_each(|frame| free.give(frame));
    }

    #[test]
    fn frame_every_class_of_content_is_found_equal() {
        let pool = pool(64);
        let contents = [
            PageBuf::zeroed(),
            samples::text(1),
            samples::code(1),
            samples::random(1),
        ];
        for content in &contents {
            let frame = share(&pool, content, digest(content)).unwrap().keep();
            let found = pool.lookup_frame(digest(content)).unwrap();
            assert_eq!((found.id(), pool.refs(frame)), (frame, 2));
            assert!(pool.equals(frame, content));
            assert!(!pool.equals(frame, &samples::text(2)));
        }
        let expected = PoolCounts {
            frames: Pages(4),
            refs: Pages(4),
        };
        assert_eq!(pool.counts(), expected);
        verify(&pool);
    }

    #[test]
    fn hinted_counts_the_pages_of_each_member_until_it_leaves() {
        let pool = Arc::new(pool(4));
        let [a, b] = [1, 2].map(|id| Membership::new(Arc::clone(&pool), VmId(id)));
        let none = Mismatches::default();
        for (member, hash, gfn) in [(&a, 1, 5), (&b, 2, 6), (&b, 3, 7)] {
            let hint = member.lookup(hash, Gfn(gfn), &none).err();
            assert_eq!(hint, Some(Hint::Inserted));
        }
        assert_eq!((a.hinted(), b.hinted()), (Pages(1), Pages(2)));
        assert_eq!(pool.hints(), Pages(3));
        b.leave();
        assert_eq!((a.hinted(), b.hinted()), (Pages(1), Pages(0)));
    }

    #[test]
    fn counts_saved_is_references_less_frames() {
        let pool = pool(8);
        let first = share(&pool, &tagged(1), 1).unwrap();
        let others = [(); 9].map(|()| first.clone());
        assert_eq!(pool.counts().saved(), Pages(9));
        drop(others);
        assert_eq!(pool.counts().saved(), Pages(0));
    }

    #[test]
    fn unref_of_the_last_frees_memory_index_and_frame() {
        let pool = pool(1);
        let frame = share(&pool, &tagged(1), 1).unwrap().keep();
        assert!(pool.try_ref(frame));
        assert_eq!(pool.unref(frame), Unref::StillUsed);
        assert_eq!(pool.unref(frame), Unref::Freed);
        assert!(!pool.try_ref(frame));
        assert!(pool.lookup_frame(1).is_none());
        verify(&pool);
        assert_eq!(share(&pool, &tagged(2), 2).unwrap().id(), frame);
    }

    #[test]
    #[should_panic(expected = "frame 0 had no reference to give back")]
    fn unref_of_a_free_frame_panics() {
        pool(1).unref(FrameId(0));
    }

    #[test]
    fn new_frame_dropped_is_free_and_costs_nothing() {
        let pool = pool(1);
        drop(pool.allocate_near(None).unwrap());
        let mut filled = pool.allocate_near(None).unwrap();
        filled.fill(&tagged(1));
        assert!(pool.allocate_near(None).is_none(), "the pool is full");
        drop(filled);
        verify(&pool);
    }

    #[test]
    fn publish_under_a_hash_in_use_is_refused_and_frees() {
        let pool = pool(2);
        let first = share(&pool, &tagged(1), 7).unwrap();
        assert!(share(&pool, &tagged(2), 7).is_none());
        let found = pool.lookup_frame(7).unwrap();
        assert_eq!(found.id(), first.id());
        assert!(
            !pool.equals(found.id(), &tagged(2)),
            "other bytes: not shared"
        );
        drop(found);
        verify(&pool);
    }

    #[test]
    fn read_only_fd_shows_frames_and_cannot_write() {
        let pool = pool(4);
        let frame = share(&pool, &tagged(3), 3).unwrap();
        let file = File::from(pool.read_only_fd().unwrap());
        let mut page = PageBuf::zeroed();
        let offset = u64::from(frame.id().0) * PAGE_SIZE as u64;
        file.read_exact_at(&mut page.0, offset).unwrap();
        assert!(page == tagged(3));
        assert!(file.write_at(&[1], offset).is_err());
    }

    #[test]
    fn pool_of_no_frames_is_full() {
        assert!(pool(0).allocate_near(None).is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Share(u64, Option<u32>),
        Lookup(u64),
        Drop(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let hash = || 0..12u64;
        let wanted = prop::option::of((0..FRAMES).prop_map(|frame| frame + 1));
        let step = prop_oneof![
            (hash(), wanted).prop_map(|(hash, wanted)| Step::Share(hash, wanted)),
            hash().prop_map(Step::Lookup),
            any::<usize>().prop_map(Step::Drop),
        ];
        prop::collection::vec(step, 0..150)
    }

    const FRAMES: u32 = 6;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a map from hash to references: found exactly while referred to, with its bytes.
        #[test]
        fn pool_any_steps_agree_with_the_model(steps in steps()) {
            let pool = pool(FRAMES);
            let mut held: Vec<(u64, FrameId)> = Vec::new();
            let mut model: HashMap<u64, u32> = HashMap::new();
            for step in steps {
                match step {
                    Step::Share(hash, wanted) => {
                        let full = model.len() == FRAMES as usize;
                        let Some(mut frame) = pool.allocate_near(wanted.map(FrameId)) else {
                            prop_assert!(full);
                            continue;
                        };
                        frame.fill(&tagged(hash));
                        let taken = model.contains_key(&hash);
                        if let Some((frame, _)) = frame.publish(hash) {
                            prop_assert!(!taken);
                            model.insert(hash, 1);
                            held.push((hash, frame.keep()));
                        } else {
                            prop_assert!(taken);
                        }
                    }
                    Step::Lookup(hash) => {
                        let found = pool.lookup_frame(hash);
                        prop_assert_eq!(found.is_some(), model.contains_key(&hash));
                        if let Some(found) = found {
                            *model.entry(hash).or_default() += 1;
                            held.push((hash, found.keep()));
                        }
                    }
                    Step::Drop(pick) if !held.is_empty() => {
                        let (hash, frame) = held.swap_remove(pick % held.len());
                        let refs = model.get_mut(&hash).expect("held");
                        *refs -= 1;
                        let last = *refs == 0;
                        if last {
                            model.remove(&hash);
                        }
                        let expected = if last { Unref::Freed } else { Unref::StillUsed };
                        prop_assert_eq!(pool.unref(frame), expected);
                    }
                    Step::Drop(_) => {}
                }
                for (hash, frame) in &held {
                    prop_assert_eq!(pool.refs(*frame), model[hash]);
                    prop_assert!(pool.equals(*frame, &tagged(*hash)));
                }
                verify(&pool);
            }
        }
    }

    /// What scanner and breaks do in one pass: find a frame with the hash or make one, look at its
    /// bytes, give one reference back and keep another.
    fn find_or_share(pool: &Pool, hash: u64) -> Option<FrameId> {
        let found = pool.lookup_frame(hash);
        let frame = found.or_else(|| share(pool, &tagged(hash), hash))?;
        assert!(
            pool.equals(frame.id(), &tagged(hash)),
            "the frame of {hash} holds another"
        );
        let kept = frame.clone().keep();
        drop(frame);
        assert!(
            pool.equals(kept, &tagged(hash)),
            "the frame of {hash} was reused"
        );
        Some(kept)
    }

    /// Three tasks share two contents in two frames, so that frames die and are reused while other tasks
    /// look for them. All frames that are held at the end are there, and are found.
    #[test]
    fn tasks_that_race_never_see_a_frame_of_other_content() {
        model(4000, || {
            let pool = Arc::new(pool(2));
            let tasks = [[1, 2, 1], [2, 1, 1], [1, 1, 2]].map(|hashes| {
                let pool = Arc::clone(&pool);
                shuttle::thread::spawn(move || {
                    let mut kept = None;
                    for hash in hashes {
                        kept.take().map(|frame| pool.unref(frame));
                        kept = find_or_share(&pool, hash);
                    }
                    kept
                })
            });
            let kept: Vec<_> = tasks
                .into_iter()
                .filter_map(|task| task.join().expect("the task ends"))
                .collect();
            verify(&pool);
            for frame in kept {
                pool.unref(frame);
            }
            assert_eq!(pool.counts(), PoolCounts::default());
            assert_eq!(pool.hints(), Pages(0));
            verify(&pool);
        });
    }

    /// The holder of a reference never loses the frame, however other references come and go.
    #[test]
    fn tasks_that_race_for_a_held_frame_never_free_it() {
        model(500, || {
            let pool = Arc::new(pool(3));
            let held = share(&pool, &tagged(1), 1).unwrap().keep();
            let tasks = [(); 3].map(|()| {
                let pool = Arc::clone(&pool);
                shuttle::thread::spawn(move || {
                    assert!(pool.try_ref(held), "it is held");
                    assert_eq!(find_or_share(&pool, 1), Some(held));
                    assert_eq!(pool.unref(held), Unref::StillUsed);
                    assert_eq!(pool.unref(held), Unref::StillUsed);
                })
            });
            for task in tasks {
                task.join().expect("the task ends");
            }
            assert_eq!(pool.refs(held), 1);
            verify(&pool);
            assert_eq!(pool.unref(held), Unref::Freed);
        });
    }
}
