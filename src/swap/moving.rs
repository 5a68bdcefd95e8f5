//! Moving a swap file to another directory while its VM runs.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::error::SwapError;
use super::file::{SwapFile, offset};
use super::place::Place;
use super::slots::SlotRun;
use super::storage::{Storage, write_whole};
use crate::units::{Bytes, PageBuf, Pages};

/// Pages copied by one write, 256 KiB of buffer.
const CLUSTER: u32 = 64;

/// How far a move has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// Nothing is being moved.
    Idle,
    /// The move is under way: `left` slots have not been looked at yet. Zero means that somebody still reads
    /// from the old file.
    Moving {
        /// Slots to look at.
        left: Pages,
    },
    /// The new file is in use and the old one is closed. This is returned once.
    Done,
}

/// What the writer of a swap file keeps for a move.
#[derive(Debug, Default)]
pub(super) struct Moving {
    copy: Option<Target>,
    /// The file that was in use before. A reader may still hold it. Whoever drops it last closes it, which can
    /// take long, so that must not be a fault thread.
    old: Option<Arc<dyn Storage>>,
}

/// The new file, which is being filled.
#[derive(Debug)]
struct Target {
    to: Place,
    /// The pages of all slots below this one are in both files.
    cursor: u32,
    /// A write to the new file failed.
    failed: Option<SwapError>,
}

impl Moving {
    /// The new file, while it is being filled.
    pub(super) fn target(&self) -> Option<&Place> {
        self.copy.as_ref().map(|copy| &copy.to)
    }

    /// Begins a move into a file as long as the one in use. A move that was under way ends.
    pub(super) fn begin(&mut self, to: Place) {
        self.copy = Some(Target {
            to,
            cursor: 0,
            failed: None,
        });
    }

    /// Gives up the new file.
    pub(super) fn cancel(&mut self) {
        self.copy = None;
    }

    /// Whether a move into `dir` is under way.
    pub(super) fn is_to(&self, dir: &Path) -> bool {
        self.target().is_some_and(|to| to.dir == dir)
    }

    /// Writes pages that were written to the file in use to the new file too, if the copying has passed their slots.
    pub(super) fn written(&mut self, run: SlotRun, pages: &[PageBuf]) {
        if let Some(copy) = &mut self.copy
            // A run can begin below the cursor and end behind it. What is written behind it is copied once more.
            && run.start.0 < copy.cursor
            && let Err(source) = write_whole(&*copy.to.storage, pages, offset(run.start))
        {
            // No error for whoever wrote: the file in use has the pages. The next step gives the move up.
            copy.failed = Some(SwapError::write(run, source));
        }
    }

    /// Cuts the new file to `slots`, as the file in use was cut; no slot behind them is in use.
    pub(super) fn cut(&mut self, vm: &str, slots: u32) {
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.to.truncate(vm, slots)
        {
            copy.failed = Some(error);
        }
    }

    /// Copies up to `pages` pages of a file of `len` slots, and switches files when there are no more.
    pub(super) fn step(
        &mut self,
        file: &SwapFile,
        len: u32,
        pages: u32,
    ) -> Result<Progress, SwapError> {
        // At each step, because nobody tells when the last reader of the old file is done.
        let closed = self.close_old();
        let Some(copy) = &mut self.copy else {
            return Ok(match (closed, &self.old) {
                (true, _) => Progress::Done,
                (false, Some(_)) => Progress::Moving { left: Pages(0) },
                (false, None) => Progress::Idle,
            });
        };
        if let Err(error) = copy.step(file, len, pages) {
            self.cancel();
            return Err(error);
        }
        let left = len.saturating_sub(copy.cursor);
        // A switch would need a second place for an old file that somebody still reads.
        if left > 0 || self.old.is_some() {
            let left = Pages(u64::from(left));
            return Ok(Progress::Moving { left });
        }
        if let Some(copy) = self.copy.take() {
            // Kept and not dropped here: readers may hold it, and closing it can take long.
            let old = mem::replace(&mut *file.place.lock(), copy.to);
            self.old = Some(old.storage);
        }
        // Without a pause: where nobody reads the old file now, the move is over.
        self.step(file, len, 0)
    }

    /// Closes the old file if nobody reads from it any more; whether it did. No new reader can come, because
    /// another file is in use.
    fn close_old(&mut self) -> bool {
        let free = self
            .old
            .as_ref()
            .is_some_and(|old| Arc::strong_count(old) == 1);
        if free && let Some(old) = self.old.take() {
            // A guest that reads its pages itself keeps the file open until it ends, so the file is cut to give its
            // space back now. If that fails, the space comes free when the guest ends.
            let _ = old.truncate(Bytes(0));
        }
        free
    }
}

impl Target {
    fn step(&mut self, file: &SwapFile, len: u32, pages: u32) -> Result<(), SwapError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let from = file.storage();
        let mut left = pages;
        while left > 0 {
            let Some(run) = file.next_run(self.cursor..len, left.min(CLUSTER)) else {
                self.cursor = len;
                break;
            };
            self.copy_run(file, &*from, run)?;
            // It never goes back: later writes below it go to both files, so a move ends however much is written.
            self.cursor = run.end();
            left -= run.len;
        }
        Ok(())
    }

    /// Copies neighbouring slots. Verifies what was read, and then what the new file returns, because at this
    /// point a bad disk costs nothing yet. A slot that is freed meanwhile may hold anything.
    fn copy_run(&self, file: &SwapFile, from: &dyn Storage, run: SlotRun) -> Result<(), SwapError> {
        let mut pages = vec![PageBuf::zeroed(); run.len as usize];
        for (slot, page) in run.slots().zip(&mut pages) {
            file.read_if_held(from, slot, page)?;
        }
        let to = &*self.to.storage;
        write_whole(to, &pages, offset(run.start))
            .map_err(|source| SwapError::write(run, source))?;
        for (slot, page) in run.slots().zip(&mut pages) {
            file.read_if_held(to, slot, page)?;
        }
        Ok(())
    }
}
