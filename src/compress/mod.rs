//! The compression cache: a page that would go to swap stays in memory at half its size or less.
//!
//! A swap-in costs a disk's time, a decompression a few microseconds. But a cache of compressed
//! pages is itself memory, so it must be sure to gain. Two naive ways lose: storing whatever comes
//! out of the compressor (a page that shrinks to 80 % costs the work and gives nothing back, because
//! memory is only free again in whole 4 KiB pages), and a heap of odd-sized pieces (after some churn
//! every arena page holds one survivor, and the cache keeps more memory than its pages once took).
//!
//! So, as ESX does it:
//! * A [`Compressor`] takes only pages that fit half a page ([`MAX_PAYLOAD`]); the others go to swap.
//! * A [`ZipCache`], one for each VM, keeps them in slots of 23 sizes. Eight adjacent arena pages are
//!   divided into slots of one size, some of which cross from one page into the next. Memory is had and given
//!   back page by page, so an arena page is empty as soon as the last slot that touches it is freed. Among the
//!   partly used blocks the lowest is filled first: that empties the high ones. Emptied pages are given back
//!   together ([`ZipCache::give_back`]), because each alone would interrupt other processors.
//! * The size of the cache is counted in arena pages, which is what it costs, never in payload.
//! * The cache has a cap. When it is reached, the oldest entries go to swap. An entry leaves the cache
//!   when its guest touches it, so the order of arrival is the order of last use. A cap that falls
//!   below what the cache has is brought about in the same way, a few pages at a time.
//! * It may also have a *limit* below that, when its oldest pages save less than their memory would elsewhere
//!   ([`Worth`]). A cache above its limit still takes pages; the worker moves its oldest on, if the swap file takes them.
//!
//! The caller gives a 32-bit checksum of the page with it; length and checksum live in a table beside
//! the arena, so that two payloads of 2048 bytes fill a page exactly. A stray write into the arena
//! is found at refill, where it stops one VM instead of handing it wrong bytes.
//!
//! A `ZipCache` has no lock of its own: it lives inside its VM's. The caller owns the order of steps:
//! the page table names a slot only after [`ZipCache::store`], and no longer before [`ZipCache::free`].
//!
//! A page of one word again and again is kept as that word, eight bytes in the smallest slot.
//!
//! Absent on purpose: zero pages (they need no store), and writing compressed bytes to swap (a swap slot
//! is one 4 KiB page, read by one direct read).

mod arena;
mod compressor;
mod ghosts;
mod worth;
mod zip_cache;

#[cfg(test)]
pub(crate) use compressor::samples;
pub use compressor::{Compressor, MAX_PAYLOAD};
pub use ghosts::Ghosts;
pub use worth::{Refills, Saves, Seen, Worth};
pub use zip_cache::{Edge, StoreRefused, ZipCache, ZipError};
