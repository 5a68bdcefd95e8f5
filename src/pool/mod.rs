//! The share pool: the frames behind shared pages, and the index that finds them by content.
//!
//! # Hints and shared frames
//! The index knows two kinds of entry, as ESX does. A **hint** says that some guest page had this
//! hash when the scanner came by. The page stays writable and nothing keeps the hint true: a false one
//! costs a question to the page, and is dropped. All pools of a host keep theirs in one table of fixed size,
//! [`Hints`]. A **shared frame** is a page of the [`Pool`] with a
//! reference count. Its content does not change as long as anybody refers to it, so its entry is never
//! false. A frame is written once, between [`Pool::allocate_near`] and [`NewFrame::publish`], while only
//! its writer knows of it. How pages come to be shared is told in [`crate::share`].
//!
//! # Salt
//! There is one pool for each sharing domain. What lies in different pools is never compared, found or
//! mapped together, so a guest can measure only its own domain by the time its writes take.
//!
//! # Extents
//! Guests map shared frames with `mmap(MAP_FIXED)`: neighbouring guest pages on neighbouring frames take
//! one VMA, others one each, and a process has 65 530 of them. In memory of real guests the pages that
//! can be shared come in runs (of 17 to 60 pages on average, most of them in the longest few). So a
//! frame is asked for *near*: right behind the frame of the guest page before it. Where that is taken,
//! or a run begins, the frame opens an **extent** where the pool is emptiest: the start of an aligned
//! piece of 4096, 512 or 64 free frames. Unused frames are holes and cost nothing, so the pool can
//! afford to leave room behind each start. Only a pool without free pieces hands out single frames.
//!
//! # Lock order
//! The caller holds the lock bit of the guest page (it needs the page to stand still). Below that, an
//! index shard or the free frames; never both, and neither across a system call. Counts and hints are atomics.
//! The seats of VMs are locked alone, also while hints of those that are gone are swept away.
//! A frame dies in an order that makes its reuse safe: its count reaches zero (from which it never
//! comes back), its entry leaves the index, its memory goes to the machine, and only then it is free.

mod extents;
mod frames;
mod hints;
mod index;
mod seats;

pub use frames::{FrameRef, Membership, NewFrame, Pool, PoolCounts, Unref};
pub use hints::{Claim, Doubts, Hint, Hints};
