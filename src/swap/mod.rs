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
//! **Who does what.** The VM's worker writes pages and goes on with a move; its fault
//! thread reads and frees slots at any time, and must wait for neither a lock that is held across I/O
//! nor a disk that is not its own read's. So every method takes `&self`, and there are three locks:
//! one for the free slots and one for which file is in use, both held for a moment by either; and the
//! writer's, held across writes, which no reader takes. The order between writes and reads is the page
//! table's: a slot is named there only after its write is complete, and freed only when no entry
//! names it any more.
//!
//! **A length that changes** ([`SwapFile::resize`]). When the reservation is lowered, more may have to
//! be swapped: the file grows, on disk space that is reserved first. When it is raised, slots behind
//! the new end may be in use, and their pages could be anywhere else only by being written again. So
//! they stay; they are not given out again once they are free, and the end of the file is cut off as
//! it empties. In number, too, nothing more is given out until what is in use is within the new size.
//!
//! **A directory that changes** ([`SwapFile::begin_move`], [`SwapFile::step_move`]). Copying a file of
//! gigabytes at once would keep the worker from everything else, so it is copied in steps, from the
//! first slot to the last, and switched after the last step. What is written between the steps goes
//! to the old file, and if it is written behind the step that is to come next, to the new one as well.
//! To mark it as to be copied again would cost a read and a bitmap, and a move could be kept from ever
//! ending; so it ends after each slot was seen once. Readers hold a reference to the file they began
//! with: it keeps every page that was in use at the switch, for pages are only written into free
//! slots. The last reference is dropped by the worker, because closing a file without a name frees
//! its space on disk. What is copied is verified when it is read and read back when it is written,
//! since here a bad disk costs nothing yet; any error ends the move, and the old file stays in use.
//!
//! [`Storage`] is the seam below: tests and the simulator put their own there and make it fail.
//! What a slot holds is known by its digest, which is zero for a slot without a page.
//!
//! Absent on purpose: readahead (ESX never swaps in before the guest asks, and memory is short), and
//! keeping the slot of a page that was swapped in (its first write would have to find it again).

mod error;
#[cfg(test)]
pub(crate) mod faulty;
mod file;
mod moving;
mod place;
mod probe;
mod slots;
mod storage;

pub use error::SwapError;
pub use file::{SwapFile, SwapStats};
pub use moving::Progress;
pub use probe::{SwapDirReport, probe};
pub use slots::SlotRun;
pub use storage::Storage;
