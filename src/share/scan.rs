//! The scanner of one VM: walks its pages and scans the resident ones.

use super::candidates::Candidates;
use crate::engine::EngineError;
use crate::page::{Due, Home};
use crate::units::{Gfn, GfnRun, VmId};
use crate::vm::Vm;

/// Pages that are read before any of them is looked up: what the lookups of the first ones need is fetched meanwhile.
const AT_ONCE: usize = 128;
/// The part of a VM about which the engine is asked at once, 1 GiB. A slice ends with it: the worker has other things
/// to do.
const PART: u32 = 1 << 18;
/// Pages that one page table of the kernel maps, if RAM is aligned to it.
const BLOCK: u32 = 512;

/// The other VMs, as far as a scanner needs them.
pub trait Peers: Send + Sync {
    /// What [`PageTable::known_hash`](crate::page::PageTable::known_hash) says about page `gfn` of `vm`; also `None`
    /// when there is no such page.
    fn known_hash(&self, vm: VmId, gfn: Gfn) -> Option<u32>;

    /// Tells the worker of `vm` that a frame with the content of its page `gfn` exists now.
    fn nudge(&self, vm: VmId, gfn: Gfn);
}

/// What one slice of scanning found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Pages scanned.
    pub scanned: u32,
    /// Pages whose content was new or had changed.
    pub changed: u32,
    /// Pages that have changed, or could not be merged, and are left alone for some passes.
    pub waiting: u32,
    /// Pages that were shared or dropped as zero.
    pub shared: u64,
    /// Whether the walk came to the end of the VM and starts again.
    pub pass_ended: bool,
}

/// The walk of one VM. See the [module of sharing](super).
#[derive(Debug, Default)]
pub struct Scanner {
    cursor: u32,
    /// Whether the group of neighbours in which the cursor is rests in this pass.
    rests: bool,
    /// Whether the engine has reported which pages of the current part were written.
    writes_known: bool,
}

impl Scanner {
    /// Walks on, scans up to `count` pages that are due, and shares what can be shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn scan(&mut self, vm: &Vm, peers: &dyn Peers, count: u32) -> Result<Found, EngineError> {
        let part = part_of(vm, self.cursor);
        // Once for each part, because the kernel forgets what it has told.
        if part.start.0 == self.cursor {
            // Before any page of the part is scanned: a write after the scan is then reported in the next pass.
            self.writes_known = take_written(vm, part);
        }
        let mut found = Found::default();
        let mut candidates = Candidates::new(vm, peers, self.writes_known);
        let mut due = Vec::with_capacity(AT_ONCE);
        while u64::from(self.cursor) < part.end() && found.scanned < count {
            let gfn = Gfn(self.cursor);
            self.cursor += 1;
            self.rests = vm.table.begin_group(gfn).unwrap_or(self.rests);
            match vm.table.due_for_scan(gfn, self.writes_known) {
                Due::Now if self.rests => found.waiting += 1,
                Due::Now => {
                    found.scanned += 1;
                    due.push(gfn);
                }
                Due::Later => found.waiting += 1,
                Due::No => {}
            }
            if due.len() == AT_ONCE {
                candidates.scan(&due)?;
                due.clear();
            }
        }
        candidates.scan(&due)?;
        (found.changed, found.shared) = candidates.finish()?;
        if self.cursor == vm.table.pages() {
            found.pass_ended = true;
            self.cursor = 0;
        }
        Ok(found)
    }

    /// Scans single pages that others have found to be equal to theirs, and returns how many were shared.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn scan_nudged(
        &self,
        vm: &Vm,
        peers: &dyn Peers,
        mut gfns: Vec<Gfn>,
    ) -> Result<u64, EngineError> {
        // Nudges come in any order and several times; candidates must be ascending for runs to form.
        gfns.sort_unstable();
        gfns.dedup();
        let is_resident =
            |gfn| vm.table.contains(gfn) && vm.table.entry(gfn).home() == Home::Resident;
        gfns.retain(|gfn| is_resident(*gfn));
        // The page was scanned already. Without a note it would not be scanned when its group has rested.
        let resting = gfns.extract_if(.., |gfn| vm.table.is_resting(*gfn));
        resting.for_each(|gfn| vm.table.note_written(gfn));
        let mut candidates = Candidates::new(vm, peers, self.writes_known);
        gfns.chunks(AT_ONCE)
            .try_for_each(|gfns| candidates.scan(gfns))?;
        let (_, shared) = candidates.finish()?;
        Ok(shared)
    }
}

/// The part of a VM in which the cursor is.
fn part_of(vm: &Vm, cursor: u32) -> GfnRun {
    let start = cursor / PART * PART;
    GfnRun::new(Gfn(start), PART.min(vm.table.pages() - start))
}

/// Notes which pages of `part` were written; `false`: the engine cannot tell.
///
/// Only blocks in which a page is resident are asked about, because the kernel makes page tables for whatever it is
/// asked about.
fn take_written(vm: &Vm, part: GfnRun) -> bool {
    let blocks = (part.start.0..part.start.0 + part.count).step_by(BLOCK as usize);
    let mut asked: Vec<GfnRun> = Vec::new();
    for start in blocks {
        let block = GfnRun::new(Gfn(start), BLOCK.min(part.start.0 + part.count - start));
        match asked.last_mut() {
            _ if !vm.table.has_resident(block) => {}
            Some(before) if before.end() == u64::from(start) => before.count += block.count,
            _ => asked.push(block),
        }
    }
    asked.into_iter().all(|run| {
        vm.engine.take_written(run, &mut |written| {
            written.iter().for_each(|gfn| vm.table.note_written(gfn));
        })
    })
}
