//! The share pool: the frames behind shared pages, and the index that finds them by content.
//!
//! # Hints and shared frames
//! The index knows two kinds of entry, as ESX does. A **hint** says that some guest page had this
//! hash when the scanner came by. The page stays writable, and nothing keeps the hint true: a false hint
//! costs one look at the page's entry in its page table, and is dropped. All pools of a host keep their
//! hints in one table of fixed size, [`Hints`]. A **shared frame** is a page of the [`Pool`] with a
//! reference count. Its content does not change as long as anybody refers to it, so its entry is never
//! false. A frame is written once, between [`Pool::allocate_near`] and [`NewFrame::publish`], while only
//! its writer knows of it. [`crate::share`] tells how pages come to be shared.
//!
//! # Salt
//! There is one pool for each sharing domain. Pages of different pools are never compared, found or
//! mapped together. So the time that its writes take tells a guest only about its own domain.
//!
//! # Extents
//! Guests map shared frames with `mmap(MAP_FIXED)`. Neighbouring guest pages on neighbouring frames take
//! one VMA together, other pages one each, and a process can have 65 530. In the memory of real guests the
//! pages that can be shared come in runs (of 17 to 60 pages on average, most of them in the few longest). So
//! a frame is asked for *near*: right behind the frame of the guest page before. Where that frame is taken,
//! or a run begins, the new frame opens an **extent** where the pool is emptiest: at the start of an aligned
//! piece of 4096, 512 or 64 free frames. Unused frames are holes and cost nothing, so the pool can
//! afford to leave room behind each start. Only a pool without such free pieces hands out single frames.
//!
//! # Lock order
//! The caller holds the lock bit of the guest page (it needs the page to stand still). Inside that lock, either an
//! index shard or the free frames are locked, never both, and neither across a system call. Counts and hints are
//! atomics. The lock of the seats is taken with no other lock of the pool, even for the sweep of hints.
//! A frame dies in an order that makes its reuse safe: its count reaches zero (from which it never
//! comes back), its entry leaves the index, its memory goes back to the machine, and only then is it free.

mod counts;
mod extents;
mod frames;
mod hints;
mod index;
mod seats;

pub use counts::PoolCounts;
pub use frames::{FrameRef, Membership, NewFrame, Pool, Unref};
pub use hints::{Hint, Hinted, Hints, Mismatches};
