//! The swap file: where a page goes that nothing cheaper can take.
//!
//! Each VM has one file, created at power-on and sized configured memory - reservation, so that everything
//! that the host may ever take from the guest has a place (ESX: no swap file, no power-on). A naive file
//! fails in four ways, and each has its answer here:
//! * A disk that is full when memory is short: the whole length is reserved at power-on, and a full
//!   disk refuses the power-on. A filesystem that cannot reserve is reported ([`probe()`]).
//! * Pages that "left" memory for the page cache: the file is opened with `O_DIRECT`. A filesystem
//!   that refuses is reported too.
//! * One seek for each page: [`SwapFile::allocate`] hands out the longest runs it has, and a run is written
//!   by one call.
//! * A disk that returns something else than was written: the digest of each page stays in memory,
//!   8 bytes for 4096, and is verified at swap-in. The guest never gets a wrong page: the page stops its VM.
//!
//! The file has no name (`O_TMPFILE`), so a daemon that is killed leaves nothing behind. A guest cannot
//! outlive its daemon's swap file, and a swap file is never read by another daemon. Its disk space can be kept while the
//! VM is off (`kept.rs`).
//!
//! **Who does what.** The VM's worker writes pages and goes on with a move. Its fault thread reads and
//! frees slots at any time, and must wait neither for a lock that is held across I/O nor for any disk
//! operation but its own read. So every method takes `&self`, and there are three locks. The lock of the
//! free slots and the lock of the file in use are held only for a moment, by either thread. The writer's
//! lock is held across writes, and no reader takes it. The page table orders writes and reads: a slot is
//! named there only after its write is complete, and freed only when no entry names it any more.
//!
//! **A length that changes** ([`SwapFile::resize`]). When the reservation is lowered, more may have to
//! be swapped: the file grows, on disk space that is reserved first. When the reservation is raised, slots
//! behind the new end may be in use, and to move their pages would mean to write them again. So the pages
//! stay. Slots behind the end are not given out again once they are free, and the end of the file is cut off
//! as it empties. Nor is any other slot given out while more slots are in use than the new size allows.
//!
//! **A directory that changes** ([`SwapFile::begin_move`], [`SwapFile::step_move`]). Copying a file of
//! gigabytes at once would keep the worker from everything else. So the file is copied in steps, from the
//! first slot to the last, and switched after the last step. A page that is written between two steps goes
//! to the old file and, if its slot has been passed already, to the new file as well. To mark the slot for
//! another copy instead would cost a read and a bitmap, and could keep a move from ever ending; as it is, a
//! move ends once each slot was seen. Readers hold a reference to the file with which they began. That file
//! keeps every page that was in use at the switch, because pages are only written into free slots. The worker
//! drops the last reference, because closing a file without a name frees its space on disk, which takes time.
//! A copied page is verified when it is read, and read back after it is written, because at this point a bad
//! disk costs nothing yet. Any error ends the move, and the old file stays in use.
//!
//! **A fast disk before a slow one** ([`Tiers`]). A disk that is large enough for all swap files may be slow. So a VM can
//! have a second file, its part of the [`HostCache`], to which its pages are swapped first ([`CacheFile`]). Two stores
//! that each lend a page's only copy could both be full when one is to take over from the other. Therefore the pages of
//! both together are never more than the swap file has places for. The second file is a [`SwapFile`] too; what it has
//! besides is a bound that all VMs share, and the order in which its pages came. What moves pages from one to the other
//! is the worker (`src/reclaim/demote.rs`), because that changes the page table.
//!
//! [`Storage`] is the seam below: tests and the simulator put their own storage there and make it fail.
//! The digest of a slot tells whether the slot holds a page: it is zero for an empty slot.
//!
//! Absent on purpose: readahead (ESX never swaps in before the guest asks, and memory is short), and
//! keeping the slot of a page that was swapped in (its first write would have to find it again).

mod ages;
mod cache_file;
mod error;
#[cfg(test)]
pub(crate) mod faulty;
mod file;
mod host_cache;
mod kept;
mod length;
mod moving;
mod place;
mod probe;
mod slots;
mod storage;
mod tiers;

pub use cache_file::{CacheFile, Trouble, Victim};
pub use error::SwapError;
pub use file::{SwapFile, SwapStats};
pub use host_cache::HostCache;
pub use moving::Progress;
pub use probe::{SwapDirReport, probe};
pub use slots::SlotRun;
pub use storage::Storage;
pub use tiers::Tiers;
