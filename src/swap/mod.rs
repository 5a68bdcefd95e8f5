//! The swap file: where a page goes that nothing cheaper can take.
//!
//! Each VM has one file, created at power-on and sized configured memory - reservation, so that whatever
//! the host may ever take from the guest has a place (ESX: no swap file, no power-on). The naive file
//! fails in four ways, and each has its answer here:
//! * A disk that is full when memory is short: the whole length is reserved at power-on, and a full
//!   disk refuses the power-on. A filesystem that cannot reserve is reported ([`probe()`]).
//! * Pages that "left" memory for the page cache: the file is opened with `O_DIRECT`. A filesystem
//!   that refuses is reported too.
//! * One seek a page: [`SwapFile::allocate`] hands out the longest runs it has, and a run is written
//!   by one call.
//! * A disk that returns something else than was written: the digest of each page stays in memory,
//!   8 bytes for 4096, and is verified at swap-in. A wrong page stops its VM and never runs.
//!
//! The file has no name (`O_TMPFILE`), so a daemon that is killed leaves nothing behind; a guest cannot
//! outlive its daemon's swap file, and a swap file is never read by another daemon.
//!
//! Writes come from the reclaim workers while faults read, so every method takes `&self`. The order
//! between them is the page table's: a slot is named there only after its write is complete, and
//! freed only when no entry names it any more. Inside, one lock guards the free runs; no lock is held
//! across I/O.
//!
//! [`Storage`] is the seam below: tests and the simulator put their own there and make it fail.
//!
//! Absent on purpose: readahead (ESX never swaps in before the guest asks, and memory is short), and
//! keeping the slot of a page that was swapped in (its first write would have to find it again).

#[cfg(test)]
pub(crate) mod faulty;
mod file;
mod probe;
mod slots;
mod storage;

pub use file::{SwapError, SwapFile, SwapStats};
pub use probe::{SwapDirReport, probe};
pub use slots::SlotRun;
pub use storage::Storage;
