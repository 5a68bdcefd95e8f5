//! Attaching: a guest asks that pages of its get the bytes of others, as shared pages from the start.
//!
//! A guest that boots copies an image into its memory, and so does the next one with the same image. Each page
//! costs a fault and a page of the host, until a scanner has found it and taken it back; while guests boot, a
//! host needs memory that it has again a minute later. A guest that reads an image knows better: it puts a part
//! of it on pages of its own and asks that others, which hold nothing, get the same bytes. Page by page the
//! worker
//!
//! 1. locks the page and copies the source out. What follows is about this copy, whatever the guest does;
//! 2. finds the frame with these bytes, every one compared, or makes one, next to the frame of the page before;
//! 3. maps runs of pages onto runs of frames, all by one command, as [`place`] does for every shared page.
//!
//! The first guest brings the frames into the pool, and all others find them there. Frames are found by what
//! they hold and not by the name of a file, so nothing can be out of date: an image that was changed is one of
//! other pages.
//!
//! The source is guest memory, which is charged already and which can be read without waiting for anybody. No
//! guest passes a file to the daemon: to close one can take as long as whoever serves it likes, see ADR 14.
//!
//! It is a favour. It ends at the first page for which it cannot be done (the page is busy or in a store, its
//! source is, there is no memory), and says how many there were before that one; the guest copies the rest, and
//! waits for memory there.
//!
//! A page that is resident may be attached too. Its guest has said that it holds nothing: a guest's kernel does
//! not know which of its free pages the host backs, and faults in a row are given pages ahead.

use super::Peers;
use super::merge::{drop_zeroes, frame_of, wanted_frame};
use crate::digest::digest;
use crate::engine::EngineError;
use crate::page::{Home, PageGuard, Urgency};
use crate::remap::{FrameHold, Match, freeze, place};
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, VmId};
use crate::vm::Vm;

/// Pages that are locked at once, as when candidates are merged.
const BATCH: usize = 256;

/// What a guest asks for: that `pages` get the bytes of as many pages from `source` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachRequest {
    /// The pages that hold nothing.
    pub pages: GfnRun,
    /// The first of the pages that hold the bytes.
    pub source: Gfn,
}

/// Attaches pages of the VM as far as that can be done now; how many, from the first on, hold their bytes.
/// Pages behind them may, too.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
///
/// # Panics
/// When the request names pages that the VM has not.
pub fn attach(vm: &Vm, peers: &dyn Peers, request: AttachRequest) -> Result<u32, EngineError> {
    let AttachRequest { pages, source } = request;
    let mut nudges = Vec::new();
    let attached = attach_all(vm, request, &mut nudges);
    // Also after a failure: nobody knows these pages by their content any more.
    for (id, gfn) in nudges {
        let is_source = id == vm.id && (source..Gfn(source.0 + pages.count)).contains(&gfn);
        if is_source {
            // Its guest is going to write it again, so merging it now would be for nothing.
            vm.table.note_written(gfn);
        } else {
            peers.nudge(id, gfn);
        }
    }
    attached
}

/// A page that can be attached, and where its bytes are; `None`: they are zero.
type Held<'a> = (PageGuard<'a>, Option<FrameHold<'a>>);

fn attach_all(
    vm: &Vm,
    AttachRequest { pages, source }: AttachRequest,
    nudges: &mut Vec<(VmId, Gfn)>,
) -> Result<u32, EngineError> {
    let pairs: Vec<(Gfn, Gfn)> = pages.iter().zip((source.0..).map(Gfn)).collect();
    let mut attached = 0;
    for batch in pairs.chunks(BATCH) {
        let count = attach_batch(vm, batch, nudges)?;
        attached += count;
        if (count as usize) < batch.len() {
            break;
        }
    }
    Ok(attached)
}

fn attach_batch(
    vm: &Vm,
    batch: &[(Gfn, Gfn)],
    nudges: &mut Vec<(VmId, Gfn)>,
) -> Result<u32, EngineError> {
    let held = hold(vm, batch, nudges);
    let reached = held.len();
    let resident = || {
        let pages = held.iter().map(|(page, _)| page);
        pages.filter(|page| page.home() == Home::Resident)
    };
    if !freeze(vm, resident())? {
        return Ok(0);
    }
    let (mut zeroes, mut matches) = (Vec::new(), Vec::new());
    for (page, hold) in held {
        match hold {
            Some(hold) => matches.push(Match { page, hold }),
            None if page.home() == Home::Resident => zeroes.push(page),
            None => {}
        }
    }
    drop_zeroes(vm, zeroes)?;
    let count = matches.len();
    let left = place(vm, matches)?;
    vm.stats.attached.add((count - left.len()) as u64);
    let first_left = left.iter().map(PageGuard::gfn).min();
    let is_before = |(gfn, _): &&(Gfn, Gfn)| first_left.is_none_or(|left| *gfn < left);
    let attached = batch.iter().take(reached).take_while(is_before).count();
    Ok(u32::try_from(attached).unwrap_or(u32::MAX))
}

/// Locks pages and finds or makes their frames, until one is not to be had.
fn hold<'a>(vm: &'a Vm, batch: &[(Gfn, Gfn)], nudges: &mut Vec<(VmId, Gfn)>) -> Vec<Held<'a>> {
    let mut held: Vec<Held<'_>> = Vec::with_capacity(batch.len());
    if !vm.is_sharing() || vm.is_blocked() || vm.vmas.is_exceeded(&vm.table) {
        return held;
    }
    let mut room = vm.orders.ceiling().0.saturating_sub(vm.held().0);
    let mut before: Option<(Gfn, FrameId)> = None;
    let mut content = PageBuf::zeroed();
    for &(gfn, source) in batch {
        // What it holds need not be kept anywhere.
        let is_empty = |home| matches!(home, Home::Untouched | Home::Zero | Home::Resident);
        let page = vm.try_lock(gfn).filter(|page| is_empty(page.home()));
        let Some(page) = page else { break };
        if !copy_out(vm, source, &mut content) {
            break;
        }
        let mut hold = None;
        if !content.is_zero() {
            // A page in RAM is counted as held already.
            if page.home() != Home::Resident {
                match room.checked_sub(1) {
                    Some(left) => room = left,
                    None => break,
                }
            }
            let near = wanted_frame(vm, gfn, before);
            let frame = frame_of(vm, digest(&content), &content, near, Urgency::Touch, nudges);
            let Some(frame) = frame else { break };
            before = Some((gfn, frame.frame()));
            hold = Some(frame);
        }
        held.push((page, hold));
    }
    held
}

/// Copies what a page of the guest holds, unless it is busy or in no memory; whether it did.
fn copy_out(vm: &Vm, gfn: Gfn, into: &mut PageBuf) -> bool {
    let Some(page) = vm.try_lock(gfn) else {
        return false;
    };
    match page.home() {
        Home::Resident => vm.engine.read(gfn, into),
        Home::Shared(frame) => vm.pool().read(frame, into),
        Home::Untouched | Home::Zero => *into = PageBuf::zeroed(),
        Home::Compressed(_) | Home::Swapped(_) | Home::Ballooned => return false,
    }
    true
}
