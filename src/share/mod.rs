//! Page sharing: one frame behind all guest pages of equal content.
//!
//! The naive way hashes guest pages and merges those whose hashes agree. It is wrong twice and slow
//! twice. Equal hashes are not equal bytes, and a guest can make them differ on purpose. A page that was
//! hashed a microsecond ago may hold something else now. Protecting every page that was looked at,
//! so that it cannot change, costs a fault on each later write to it. And frames taken as they come
//! scatter a guest's pages over the pool, so that each of them needs a mapping of its own.
//!
//! # Hints and shared frames
//! The [`Index`] knows two kinds of entry, as ESX does. A **hint** says that some guest page had this
//! hash when the scanner came by. The page stays writable and nothing keeps the hint true: a false one
//! costs one comparison, and is dropped. A **shared frame** is a page of the [`Pool`] with a
//! reference count. Its content does not change as long as anybody refers to it, so its entry is never
//! false. Only shared frames are mapped by guests, and a page costs its first write fault only once
//! it is really shared.
//!
//! # Bytes are compared while nobody can write them
//! The index proposes, the bytes decide. The candidate page is frozen first (its guest's accesses
//! wait), copied out, and compared with the frame ([`Pool::equals`]); the first of a pair is frozen and
//! copied into a new frame, and then the second is compared with that. A frame is written once, between
//! [`Pool::allocate_near`] and [`NewFrame::publish`], while only its writer knows of it. Two contents
//! of one hash: the second is simply not shared.
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
//! index shard or the free frames; never both, and neither across a system call. Counts are atomics.
//! A frame dies in an order that makes its reuse safe: its count reaches zero (from which it never
//! comes back), its entry leaves the index, its memory goes to the machine, and only then it is free.

mod extents;
mod index;
mod pool;

pub use index::{Hint, Index};
pub use pool::{FrameRef, NewFrame, Pool, PoolCounts, Unref};
