//! Traces of what reclamation did: recorded from a live host, read back, and taken over from others.
//!
//! The problem: whether another policy or another choice of victims would have done better can only be told on what
//! guests really did. A host that is asked afterwards knows counters, and counters cannot be run again. So a host can
//! write down, page by page, what happened: first touches, refills, breaks, evictions, balloons, and what a page
//! compressed to. The naive way, a line of text an event from the thread that serves the fault, would cost more than
//! the fault. And a recorder that waits for its disk would stop the guests.
//!
//! The structure:
//!
//! - The page table tells a [`Witness`](crate::page::Witness) of each move. The one of a recorded VM ([`Recorder`])
//!   notes it with the time in a bounded queue without locks, and returns. Where the queue is full the note is lost, and
//!   how many were is in the trace.
//! - One thread of low urgency drains the queues and writes blocks ([`Writer`]).
//! - A block is whole or it is nothing ([`format`](mod@format)): it carries a checksum, and times and page numbers in it are
//!   differences, which makes an event about four bytes. A [`Reader`] goes as far as blocks are whole, and says where and
//!   why it stopped.
//!
//! A host does not see accesses to pages that are resident. So a trace of a host is not yet a list of accesses
//! (ADR 23). Such lists come from guests or from others: [`csv`] reads page accesses, which guests of memvisor write too,
//! and [`damon`] reads records of the kernel's DAMON.

pub mod csv;
pub mod damon;
pub mod format;
mod reader;
mod recorder;
mod writer;

pub use reader::{Block, Reader, Record, Stop};
pub use recorder::{Limits, Recorder};
pub use writer::Writer;

use thiserror::Error;

/// A list of page accesses that others have made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accesses {
    /// The names of the VMs, or of what stands for them.
    pub vms: Vec<String>,
    /// The accesses, in the order of their times.
    pub accesses: Vec<Access>,
    /// What a reader should know of how the list was made.
    pub remarks: Vec<String>,
}

/// An access to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// When, in microseconds of the clock of whoever recorded it.
    pub at_us: u64,
    /// Whose page: an index of [`Accesses::vms`].
    pub vm: u32,
    /// Which page.
    pub gfn: u32,
    /// Whether it was written.
    pub write: bool,
}

/// Why a list of accesses cannot be taken over.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}:{place}: {why}")]
pub struct ImportError {
    /// The file.
    pub file: String,
    /// The line, from 1, or in a binary file the byte, from 0.
    pub place: String,
    /// What is wrong there, and what is allowed.
    pub why: String,
}
