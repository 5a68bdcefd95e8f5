//! The compression cache: a page that would go to swap stays in memory at half its size or less.
//!
//! A swap-in costs a disk's time, a decompression a few microseconds. But a cache of compressed
//! pages is itself memory, so it must be sure to gain some. Two naive ways lose. One stores whatever comes
//! out of the compressor: a page that shrinks to 80 % costs the work and gives nothing back, because
//! memory comes free only in whole 4 KiB pages. The other uses a heap of odd-sized pieces: after some churn
//! every arena page holds one survivor, and the cache keeps more memory than its pages once took.
//!
//! So, as ESX does it:
//! * A [`Compressor`] takes only pages that fit half a page ([`MAX_PAYLOAD`]); the others go to swap.
//! * A [`ZipCache`], one for each VM, keeps them in slots of 23 sizes. Eight adjacent arena pages are
//!   divided into slots of one size, some of which cross from one page into the next. Memory is taken and given
//!   back page by page, so an arena page is empty as soon as the last slot that touches it is freed. Among the
//!   partly used blocks the lowest is filled first, so that the high ones empty. Emptied pages are given back
//!   together ([`ZipCache::give_back`]), because giving back each alone would interrupt other processors each time.
//! * The size of the cache is counted in arena pages, which is what it costs, never in payload.
//! * The cache has a cap. When the cap is reached, the oldest entries go to swap. An entry leaves the cache
//!   when its guest touches it, so the order of arrival is the order of last use. When the cap falls below the
//!   size of the cache, the cache shrinks in the same way, a few pages at a time.
//! * The cache may also have a *limit* below the cap, when its oldest pages save less than their memory would
//!   elsewhere ([`Worth`]). A cache above its limit still takes pages; the worker moves the oldest on if the swap
//!   file takes them.
//!
//! The caller stores a 32-bit checksum with each page. Length and checksum live in a table beside
//! the arena, so that two payloads of 2048 bytes fill a page exactly. A stray write into the arena
//! is found at refill, where it stops one VM instead of handing it wrong bytes.
//!
//! A `ZipCache` has no lock of its own; its VM's lock protects it. The caller owns the order of steps: the
//! page table names a slot only after [`ZipCache::store`], and no longer when [`ZipCache::free`] is called.
//!
//! A page that repeats one word is kept as that word: eight bytes in the smallest slot.
//!
//! Absent on purpose: zero pages (they need no store), and writing compressed bytes to swap (a swap slot
//! is one 4 KiB page, read by one direct read).

mod arena;
mod compressor;
mod worth;
mod zip_cache;

#[cfg(test)]
pub(crate) use compressor::samples;
pub use compressor::{Compressor, MAX_PAYLOAD};
pub use worth::{Refills, Saves, Seen, Worth};
pub use zip_cache::{Edge, StoreRefused, ZipCache, ZipError};
