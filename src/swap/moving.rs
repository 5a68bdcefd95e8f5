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

/// How far a move is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// Nothing is being moved.
    Idle,
    /// Go on: so many slots have not been looked at yet. None left means that somebody still reads
    /// from the old file.
    Moving {
        /// Slots to look at.
        left: Pages,
    },
    /// The new file is in use and the old one is closed. Said once.
    Done,
}

/// What the writer of a swap file keeps of a move.
#[derive(Debug, Default)]
pub(super) struct Moving {
    copy: Option<Target>,
    /// The file that was in use before. A reader may still have it, and the last one to let go of it
    /// closes it, which can take its time: that must not be a fault thread.
    old: Option<Arc<dyn Storage>>,
}

/// The new file, which is being filled.
#[derive(Debug)]
struct Target {
    to: Place,
    /// The pages of all slots below are in both files.
    cursor: u32,
    /// A write to the new file failed.
    failed: Option<SwapError>,
}

impl Moving {
    /// The new file, while it is being filled.
    pub(super) fn target(&self) -> Option<&Place> {
        self.copy.as_ref().map(|copy| &copy.to)
    }

    /// Begins a move into a file as long as the present one; one that was under way ends.
    pub(super) fn begin(&mut self, to: Place) {
        self.copy = Some(Target {
            to,
            cursor: 0,
            failed: None,
        });
    }

    /// Gives the new file up.
    pub(super) fn cancel(&mut self) {
        self.copy = None;
    }

    /// Whether a move into `dir` is under way.
    pub(super) fn is_to(&self, dir: &Path) -> bool {
        self.target().is_some_and(|to| to.dir == dir)
    }

    /// Pages were written to the file in use.
    pub(super) fn written(&mut self, run: SlotRun, pages: &[PageBuf]) {
        if let Some(copy) = &mut self.copy
            && run.start.0 < copy.cursor
            && let Err(source) = write_whole(&*copy.to.storage, pages, offset(run.start))
        {
            copy.failed = Some(SwapError::write(run, source));
        }
    }

    /// The file in use was cut to `slots`, behind which nothing is in use; so is the new one.
    pub(super) fn cut(&mut self, vm: &str, slots: u32) {
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.to.truncate(vm, slots)
        {
            copy.failed = Some(error);
        }
    }

    /// Copies up to `pages` pages of a file of `len` slots, and switches when there are no more.
    pub(super) fn step(
        &mut self,
        file: &SwapFile,
        len: u32,
        pages: u32,
    ) -> Result<Progress, SwapError> {
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
        if left > 0 || self.old.is_some() {
            let left = Pages(u64::from(left));
            return Ok(Progress::Moving { left });
        }
        if let Some(copy) = self.copy.take() {
            let old = mem::replace(&mut *file.place.lock(), copy.to);
            self.old = Some(old.storage);
        }
        self.step(file, len, 0)
    }

    /// Closes the old file if nobody reads from it any more; whether it did. Nobody can begin to: the
    /// file in use is another one.
    fn close_old(&mut self) -> bool {
        let free = self
            .old
            .as_ref()
            .is_some_and(|old| Arc::strong_count(old) == 1);
        if free && let Some(old) = self.old.take() {
            // A guest that reads its pages itself has it open until it ends. If it cannot be cut, its space comes free then.
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
            self.cursor = run.end();
            left -= run.len;
        }
        Ok(())
    }

    /// Copies neighbouring slots, verifies what was read, and what can be read from the new file:
    /// here a bad disk costs nothing yet. A slot that is freed meanwhile may hold anything.
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
