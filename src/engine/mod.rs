//! How the daemon controls guest memory: one trait, two engines.
//!
//! | step | uffd | mprotect |
//! |---|---|---|
//! | provide a page | `UFFDIO_ZEROPAGE` / `COPY` / `CONTINUE` | write it to the file; the guest thread opens it |
//! | freeze | shim: `madvise(DONTNEED)`, the next access is a minor fault | shim: `mprotect(NONE)` |
//! | thaw | not needed: the next access maps the page | shim: `mprotect(READ, WRITE)` |
//! | enlarge | shim: `madvise(COLLAPSE)`; writes are not tracked there | shim: `madvise(COLLAPSE)` |
//! | dissolve | copy out, punch, write page by page | the same |
//! | share, attach | shim: map pool frames read-only over RAM | the same |
//! | close, reveal | shim: `mprotect(NONE)`, `mprotect(READ)` of frames | the same |
//! | break | write the copy to the file; the guest thread maps RAM back | the same |
//! | take away | punch a hole into the file | the same |
//! | written pages | the kernel tells, where it can | unknown |
//!
//! Who calls what: only the *worker* of the VM commands the shim (freeze, map shared, map private) and
//! punches holes; only the *fault thread* provides pages. Both do so only with the page locked. Hence a
//! page that the worker has seen resident stays resident while the worker looks at it, locked or not.
//!
//! Nobody may read a page of the RAM file that is not resident, because the kernel would allocate it.

mod link;
mod mprotect;
mod ram;
mod shim;
mod uffd;

use std::io;
use std::os::fd::BorrowedFd;

use memvisor_wire::memory::{self, Ack, MAX_RUNS, Op, Remap};
use memvisor_wire::system_error::SystemError;
use thiserror::Error;

pub use link::Link;
pub use memory::{Engine as EngineKind, Reply};
pub use mprotect::MprotectProvider;
pub use ram::Ram;
pub use shim::{Provider, ShimEngine};
pub use uffd::UffdProvider;

use crate::units::{FrameId, Gfn, GfnRun, PageBuf};

/// Why an engine could not do what it was told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The guest's process or its session is gone.
    #[error("the guest is gone")]
    Gone,
    /// A system call of the guest's memory thread failed.
    #[error("the guest cannot {what} at {run:?}")]
    Refused {
        /// What it was told to do.
        what: &'static str,
        /// The pages at which it failed.
        run: GfnRun,
        /// How many runs it has done before that one.
        done: usize,
        /// What the guest's kernel said; ENOMEM usually means the limit of VMAs.
        #[source]
        source: io::Error,
    },
    /// The shim broke the protocol.
    #[error("the shim answered {got} to command {seq}")]
    Protocol {
        /// The answer that came.
        got: String,
        /// The command that it should have answered.
        seq: u32,
    },
    /// A system call of the daemon failed.
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

/// What a page is to hold when the guest gets it.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Zeroes. The page is a hole so far.
    Zero,
    /// These bytes. The page is a hole so far.
    Bytes(&'a PageBuf),
    /// What the RAM file holds already.
    Present,
}

/// Pages and the run of pool frames behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedRun {
    /// The pages of the guest.
    pub run: GfnRun,
    /// The frame behind the first page; the other frames follow in order.
    pub frame: FrameId,
}

/// Control over the memory of one guest. See the module text for who may call what.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Which of the two engines it is.
    fn kind(&self) -> EngineKind;

    /// Has the guest's memory thread execute one command, of at most [`MAX_RUNS`] runs.
    ///
    /// # Errors
    /// [`EngineError::Gone`] or [`EngineError::Protocol`]; the session is over.
    fn command(&self, op: Op, runs: &[Remap]) -> Result<Ack, EngineError>;

    /// Makes accesses to these resident pages wait, so that their content stands still.
    ///
    /// # Errors
    /// [`EngineError`]; some runs may be frozen then.
    fn freeze(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        remap(self, Op::Freeze, &plain(runs))
    }

    /// Maps pool frames over frozen pages or holes. Returns how many runs were mapped; fewer than all if the guest's
    /// kernel refused one at its limit of VMAs.
    ///
    /// # Errors
    /// [`EngineError`] other than a refusal.
    fn map_shared(&self, runs: &[SharedRun]) -> Result<usize, EngineError> {
        let frame_of = |shared: &SharedRun| Remap {
            run: shared.run,
            frame: shared.frame.0,
        };
        let remaps: Vec<Remap> = runs.iter().map(frame_of).collect();
        match remap(self, Op::MapShared, &remaps) {
            Ok(()) => Ok(runs.len()),
            // No failure for the caller: pages that are not mapped stay resident, which is what they were.
            Err(EngineError::Refused { done, .. }) => Ok(done),
            Err(error) => Err(error),
        }
    }

    /// Maps RAM back over shared pages. Their RAM is holes, so accesses fault.
    ///
    /// # Errors
    /// [`EngineError`].
    fn map_private(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        remap(self, Op::MapPrivate, &plain(runs))
    }

    /// Makes accesses to shared pages wait too, reads included.
    ///
    /// # Errors
    /// [`EngineError`]; some runs may be closed then.
    fn close(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        remap(self, Op::Close, &plain(runs))
    }

    /// Lets the guest read shared pages that were closed.
    ///
    /// # Errors
    /// [`EngineError`]; some runs may be open then.
    fn reveal(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        remap(self, Op::Reveal, &plain(runs))
    }

    /// Lets the guest access resident pages, frozen or not, which its kernel maps one by one. With userfaultfd, writes
    /// to them are noted from here on.
    ///
    /// # Errors
    /// [`EngineError`]; some runs may be open then.
    fn thaw(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        remap(self, Op::Open, &plain(runs))
    }

    /// How many neighbouring pages, aligned to that, the machine can map as one large page; `None`: it has none.
    fn large_page(&self) -> Option<u32>;

    /// Backs a run of that length by a large page, and has the guest map it as such. The guest must be able to access
    /// each of these pages: a hole among them would be filled with zeroes. With userfaultfd, writes to them are not
    /// noted from here on, because the kernel notes writes for small pages only.
    ///
    /// # Errors
    /// [`EngineError`]. After [`EngineError::Refused`] all is as it was, except that mappings may be gone.
    fn enlarge(&self, run: GfnRun) -> Result<(), EngineError> {
        remap(self, Op::Enlarge, &plain(&[run]))
    }

    /// Moves what a run of frozen pages holds from a large page to small ones. From then on a hole frees a page.
    ///
    /// The kernel would split a large page when a hole is punched into it. But it gives up if anybody uses the large
    /// page at that moment, and then the hole is a page of zeroes that costs memory.
    ///
    /// # Errors
    /// [`EngineError::Kernel`] when the machine is out of memory: the content is lost, and the VM must end.
    fn dissolve(&self, run: GfnRun) -> Result<(), EngineError>;

    /// Has the guest map frames from another pool from now on. No page may be mapped from the pool that it has.
    ///
    /// # Errors
    /// [`EngineError`].
    fn set_pool(&self, pool: BorrowedFd<'_>) -> Result<(), EngineError>;

    /// Copies a resident page out of the RAM file.
    fn read(&self, gfn: Gfn, into: &mut PageBuf);

    /// Copies out resident pages that are about to be punched. It does not map them into the daemon, because the punch
    /// would have to undo that.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    ///
    /// # Panics
    /// When the run and `into` are not equally many pages.
    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError>;

    /// Begins to fetch a resident page that is to be read next.
    fn prefetch(&self, gfn: Gfn);

    /// Drops the daemon's own mapping of RAM. To be called before many holes are punched: each hole at a page that the
    /// daemon maps interrupts every processor on which the daemon runs.
    fn forget(&self);

    /// Punches a hole where pages were. Their memory is free then, and every mapping of them is gone.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    fn punch(&self, run: GfnRun) -> Result<(), EngineError>;

    /// Takes all RAM from every process that still maps it, for good: the VM has ended, but processes that have its
    /// memory may not have ended with it.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    fn revoke(&self) -> Result<(), EngineError>;

    /// Gives the guest a page that is not mapped from the pool. With userfaultfd the guest can access the page then,
    /// and threads that waited for it are woken. In engine mprotect the faulting thread must open the page and
    /// confirm that; the caller keeps the page locked until then.
    ///
    /// # Errors
    /// [`EngineError`].
    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError>;

    /// Writes to RAM the private copy of a page that is mapped from the pool. Mapping the copy is always left to the
    /// faulting thread.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError>;

    /// Has threads that wait in the kernel for these pages access them again.
    fn wake(&self, run: GfnRun);

    /// Tells `each`, in runs, which resident pages of `run` the guest may have written since the last call. Other
    /// pages may be among them. What is written from here on is told by the next call. `false`: the engine cannot
    /// tell, and any page may have been written.
    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool;
}

fn plain(runs: &[GfnRun]) -> Vec<Remap> {
    let plain = |run: &GfnRun| Remap {
        run: *run,
        frame: 0,
    };
    runs.iter().map(plain).collect()
}

/// Has all `runs` remapped, in as few commands as possible.
///
/// # Errors
/// [`EngineError::Refused`] names the run that failed; with [`EngineError::Gone`] or
/// [`EngineError::Protocol`] the session is over.
fn remap(engine: &(impl Engine + ?Sized), op: Op, runs: &[Remap]) -> Result<(), EngineError> {
    for (number, batch) in runs.chunks(MAX_RUNS).enumerate() {
        let ack = engine.command(op, batch)?;
        let done = usize::try_from(ack.done).unwrap_or(usize::MAX);
        match batch.get(done) {
            None if ack.errno == 0 && done == batch.len() => {}
            Some(failed) if ack.errno != 0 => {
                // A number that is no errno is the shim's mistake. The run has failed all the same.
                let errno = i32::try_from(ack.errno).unwrap_or(libc::EIO);
                return Err(EngineError::Refused {
                    what: name(op),
                    run: failed.run,
                    done: number * MAX_RUNS + done,
                    source: io::Error::from_raw_os_error(errno),
                });
            }
            // Runs left without an error, or an error without a run that it is about: the shim contradicts itself.
            _ => {
                return Err(EngineError::Protocol {
                    got: format!("{ack:?}"),
                    seq: ack.seq,
                });
            }
        }
    }
    Ok(())
}

const fn name(op: Op) -> &'static str {
    match op {
        Op::Freeze => "freeze",
        Op::MapShared => "map shared frames",
        Op::MapPrivate => "map RAM back",
        Op::Close => "close",
        Op::Reveal => "reveal",
        Op::Open => "open",
        Op::Enlarge => "enlarge",
    }
}
