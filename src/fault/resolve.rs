//! Serves one fault, by the home that its page has now.

use thiserror::Error;

use super::give::give;
use crate::compress::ZipError;
use crate::engine::{EngineError, EngineKind, Reply};
use crate::page::{Entry, Home, KeptPage, PageGuard};
use crate::seeded::Seeded;
use crate::swap::SwapError;
use crate::units::{FrameId, Gfn, GfnRun, SlotId};
use crate::vm::{Cause, LockError, Vm};

/// What the guest tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// An access to a page that was not there. It waits in the kernel, which does not say whether it reads or writes.
    Any,
    /// A read of a page that the guest may not read. Its thread asks over a channel.
    Read,
    /// A write to a page that the guest may not write. Its thread asks over a channel.
    Write,
}

/// How a fault ended for now.
#[derive(Debug)]
pub enum Outcome {
    /// The guest can access the page.
    Served {
        /// How many pages behind it were given with it.
        behind: u32,
    },
    /// The faulting thread must change a mapping as this reply says, and confirm that.
    Ask(Reply, Pending),
    /// The page is being moved; its unlock calls the fault thread.
    Busy,
    /// There is no memory for this VM now.
    Starved,
}

/// Pages that stay locked until the faulting thread has confirmed their mapping.
#[derive(Debug, Default)]
#[must_use = "complete it, or its pages are locked for ever"]
pub struct Pending {
    pages: Vec<KeptPage>,
    /// Whether the pages were only closed, and stay shared.
    revealed: bool,
}

impl Outcome {
    /// How many pages behind `gfn`, the page of the fault, came with it.
    pub(super) fn behind(&self, gfn: Gfn) -> u32 {
        match self {
            Self::Served { behind } => *behind,
            Self::Ask(_, pending) => {
                let last = pending.pages.last().map_or(gfn, KeptPage::gfn);
                last.0.saturating_sub(gfn.0)
            }
            Self::Busy | Self::Starved => 0,
        }
    }
}

/// Why a VM cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FaultError {
    /// A page of the compression cache is damaged.
    #[error("the page is lost")]
    Zip(#[from] ZipError),
    /// A page of the swap file is damaged or cannot be read.
    #[error("the page is lost")]
    Swap(#[from] SwapError),
    /// The page could not be handed over.
    #[error("the page cannot be given to the guest")]
    Engine(#[from] EngineError),
}

/// What a thread stands still for while its access to `gfn` is served.
pub(super) fn cause(vm: &Vm, gfn: Gfn, access: Access) -> Cause {
    cause_at(vm.table.entry(gfn).home(), access)
}

/// The same for an access to a page with this home.
pub(crate) fn cause_at(home: Home, access: Access) -> Cause {
    match home {
        Home::Untouched | Home::Zero | Home::Ballooned => Cause::FirstTouch,
        Home::Compressed(_) => Cause::RefillZip,
        Home::Swapped(_) => Cause::RefillSwap,
        Home::Shared(_) if access == Access::Write => Cause::Break,
        Home::Shared(_) | Home::Resident => Cause::Open,
    }
}

/// Serves a fault, or says what it waits for. If its page is not there, up to `ahead` pages behind it come with it.
/// Never blocks, except to read the swap file.
///
/// # Errors
/// [`FaultError`]: the guest cannot go on.
///
/// # Panics
/// When `gfn` is not RAM of the guest.
pub fn resolve(vm: &Vm, gfn: Gfn, access: Access, ahead: u32) -> Result<Outcome, FaultError> {
    let page = loop {
        match vm.lock(gfn) {
            Ok(page) => break page,
            // A thread of the guest is bringing the page. The access that is tried again finds the page, or waits for
            // that thread.
            Err(LockError::Claimed) => return Ok(retry(vm, gfn)),
            Err(LockError::Busy) if vm.table.park(gfn) => return Ok(Outcome::Busy),
            // It was unlocked in between: lock it again.
            Err(LockError::Busy) => {}
        }
    };
    match page.home() {
        Home::Shared(frame) if access == Access::Write => break_shared(vm, page, frame),
        // The sampling mark says that the page is closed, so it stays until the guest has opened the page.
        Home::Shared(_) if access == Access::Read && page.entry().is_sampled() => {
            Ok(ask(vm, Reply::Reveal(GfnRun::single(gfn)), [page]))
        }
        // The page has been mapped since, or its thread must ask over a channel: in both cases the access is tried
        // again.
        Home::Shared(_) => Ok(retry(vm, gfn)),
        // Another thread's fault has brought it. Not so with userfaultfd: there an open page can lose its mapping
        // behind our back (the kernel swaps it, or could not populate it), and the fault that follows must be served.
        Home::Resident if page.entry().is_open() && vm.engine.kind() == EngineKind::Mprotect => {
            Ok(Outcome::Served { behind: 0 })
        }
        _ if vm.engine.kind() == EngineKind::Mprotect && vm.vmas.is_exceeded(&vm.table) => {
            give_block(vm, page)
        }
        home => give_run(vm, page, home, ahead),
    }
}

fn retry(vm: &Vm, gfn: Gfn) -> Outcome {
    // Nothing is provided here, which would have woken the thread, and it may wait in the kernel.
    vm.engine.wake(GfnRun::single(gfn));
    Outcome::Served { behind: 0 }
}

/// `count` pages from `start` on, cut at the end of RAM.
fn run_from(vm: &Vm, start: Gfn, count: u32) -> GfnRun {
    GfnRun::new(start, count.min(vm.table.pages() - start.0))
}

/// Gives a page and up to `ahead` pages behind it that have the same kind of home. Swapped pages must lie side by
/// side in the swap file, so that they cost no further read.
fn give_run(vm: &Vm, page: PageGuard<'_>, home: Home, ahead: u32) -> Result<Outcome, FaultError> {
    let start = page.gfn();
    let is_alike = |gfn: Gfn, entry: Entry| match (home, entry.home()) {
        (Home::Swapped(first), Home::Swapped(slot)) => {
            slot == SlotId(first.0.wrapping_add(gfn.0 - start.0))
        }
        // A page that is open already needs nothing.
        (home, other) => home.kind() == other.kind() && !entry.is_open(),
    };
    let range = run_from(vm, start, ahead.saturating_add(1));
    give(vm, page, range, &is_alike)
}

/// Pages that are opened together near the limit of VMAs: an aligned block of 64 KiB.
const BLOCK: u32 = 16;

/// Without userfaultfd each boundary between open and closed pages is a VMA, and a guest that touches
/// single pages all over its RAM would run out of them. Near the limit its faults bring whole blocks.
fn give_block(vm: &Vm, page: PageGuard<'_>) -> Result<Outcome, FaultError> {
    let block = run_from(vm, Gfn(page.gfn().0 / BLOCK * BLOCK), BLOCK);
    let is_ram = |_, entry: Entry| !matches!(entry.home(), Home::Shared(_) | Home::Ballooned);
    give(vm, page, block, &is_ram)
}

/// The longest rest of a run that is broken together, 128 KiB.
const MAX_BREAK: u32 = 32;

/// Gives a page that the guest wrote a copy of its own.
///
/// A page that is broken out of the middle of a run costs two more VMAs. Breaking everything behind it too costs none,
/// so near the limit of VMAs the rest of the run is broken too, unless it is so long that the split is worth its VMAs.
fn break_shared(vm: &Vm, page: PageGuard<'_>, frame: FrameId) -> Result<Outcome, FaultError> {
    let start = page.gfn();
    let continues = |gfn: Gfn, entry: Entry| {
        entry.home() == Home::Shared(FrameId(frame.0.wrapping_add(gfn.0 - start.0)))
    };
    let first_left = start
        .checked_add(MAX_BREAK)
        .filter(|gfn| vm.table.contains(*gfn));
    let is_longer = || first_left.is_some_and(|gfn| continues(gfn, vm.table.entry(gfn)));
    let is_taken = vm.vmas.is_exceeded(&vm.table) && !is_longer();
    let count = if is_taken { MAX_BREAK } else { 1 };
    give(vm, page, run_from(vm, start, count), &continues)
}

/// Has the faulting thread map or open pages, which stay locked until it has confirmed that.
pub(super) fn ask<'a>(
    vm: &Vm,
    reply: Reply,
    pages: impl IntoIterator<Item = PageGuard<'a>>,
) -> Outcome {
    // Ended by `complete`.
    vm.vmas.begin(1);
    let pages = pages.into_iter().map(PageGuard::keep).collect();
    let revealed = matches!(reply, Reply::Reveal(_));
    Outcome::Ask(reply, Pending { pages, revealed })
}

/// Ends what was pending, when the faulting thread has confirmed its mapping or is gone. The pages become resident and
/// open, and the frames that they shared are released. Dropping the locks wakes the faults that wait for the pages.
pub fn complete(vm: &Vm, pending: Pending) {
    // Before the loop: once its last shared page is gone, the VM may leave this pool at any moment.
    let pool = vm.pool();
    for kept in pending.pages {
        let page = vm.table.resume(kept);
        vm.note_touch(&page);
        if pending.revealed {
            continue;
        }
        if let Home::Shared(frame) = page.home() {
            page.set_home(Home::Resident);
            if !Seeded::EarlyRelease.is_sown() {
                vm.release_frame_of(&pool, frame);
            }
            // The guest writes this page: the scanner would merge it only for the next break.
            vm.table.note_undone(page.gfn());
            vm.stats.breaks.one();
        }
        page.set_open();
    }
    // Behind the loop: a count of VMAs may cover this change only when the table shows all of it.
    vm.vmas.end(1);
}
