//! Page sharing: one frame behind many guest pages of equal content.
//!
//! Guests write at any moment, so neither a hash nor a comparison of a live page means anything a
//! microsecond later. The naive way, comparing two pages and mapping one for both, loses a write
//! that falls between the two steps. Protecting every page that is scanned would cost a fault
//! for each later write, and most pages are never shared. So sharing takes two steps, as in ESX:
//!
//! 1. *Scan* (no locks, no protection): copy the page out, hash the copy. A hash is looked up among the
//!    *shared frames* and then among the *hints*, "page G of VM V had this hash". All of this
//!    may be stale; a stale hint costs one comparison.
//! 2. *Merge* (a batch at once): lock the candidates, *freeze* them, so that their guest waits if it
//!    touches them, and compare every byte with the frame. Frames never change while anybody refers to
//!    them. Equal pages are mapped onto the pool, switch their home and give their memory back.
//!
//! When a page matches a hint, a new frame is made from *that page's own* frozen bytes. The frame replaces the hint,
//! and the worker of the VM whose page the hint named is *nudged*: it scans its page and finds the frame.
//! So no VM is ever stopped for another: each worker freezes pages of its own guest only.
//!
//! *Which pages*: scanning everything again and again costs time in proportion to memory, even for guests that
//! sleep. Where the engine tells which pages were written, a page is scanned after it was written or became
//! resident, and then not again. So no page may be forgotten: it is *unseen* until a scan has found it shared, or
//! has made it the known page of its content; a page that is to be tried again later stays unseen.
//! Where nobody tells, a page that does not change is scanned ever more seldom.
//!
//! All-zero pages need no frame: they become [`Zero`](crate::page::Home::Zero), a hole.
//!
//! *Extents*: each run of shared pages costs the guest a VMA, and a process can have 65 530. A frame is
//! allocated next to the frame of the page's neighbour, so that runs of pages map runs of frames. When
//! the budget of VMAs runs short, the longest runs are mapped and the shortest wait.
//!
//! *Attaching*: a guest that boots says itself which pages it will have in common with others, and shares
//! them without ever having had pages of its own for them. `attach.rs` tells how.
//!
//! *Volatile pages*: a page that changed between two scans, or was broken out of sharing, is left
//! alone for a growing number of passes. So is a page that is cleared and filled by turns: dropped whenever a pass finds
//! zeroes, it would cost its guest a fault each time. A guest writes neighbours together, so when many merges of one
//! group of neighbours are undone, the whole group is left alone (`src/page/table/groups.rs`).
//!
//! *A hint may be wrong* in three ways. Its page has changed since: the page's entry has another hash, and the hint is
//! dropped. Its page has another content whose hint looks the same: the hint stays, and ours is put beside it. Its page
//! is changing just now: a scanner notes a page's hash before it looks for hints, and whoever drops a hint, or puts one
//! beside another, asks that page once more afterwards. So of two pages that get equal contents, one finds the other.
//!
//! *Why not*: of each page that it leaves alone the scanner notes the cause, so a host can say why its pages are not shared
//! (`src/page/table/standing.rs`). What sharing would save is estimated without any scan by it (`sketch.rs`, `survey.rs`).
//!
//! Lock order: page locks of one VM, ascending, never waited for; inside them the index of the pool.
//!
//! Absent on purpose: a merge without a comparison of bytes; sharing across sharing domains; a back
//! map from frames to pages (as in ESX, a count is enough: a page finds its frame, never the other way).

mod attach;
mod candidates;
mod join;
mod merge;
mod scan;
mod sketch;
mod survey;

pub use attach::{AttachRequest, attach};
pub use join::Joining;
pub use scan::{Found, Peers, Scanner};
pub use sketch::{Estimate, Frequent, Sketch};
pub use survey::{SharedSketch, Survey, Surveyed};
