//! Attaching: a guest asks that some of its pages get the bytes of others, as shared pages from the start.
//!
//! A guest that boots copies an image into its memory, and so does the next guest with the same image. Each page
//! costs a fault and a page of the host, until a scanner has found the page and shared it. So while guests boot, a
//! host needs memory that is free again a minute later. A guest that reads an image can avoid that: it reads a part
//! of the image into pages of its own, and asks that other pages, which hold nothing, get the same bytes. For each
//! page the worker
//!
//! 1. locks the page and copies its source out. The next steps use this copy, whatever the guest does meanwhile;
//! 2. finds the frame with these bytes, comparing every byte, or makes one, next to the frame of the page before;
//! 3. maps runs of pages onto runs of frames, all by one command, as [`place`] does for every shared page.
//!
//! The first guest brings the frames into the pool, and all others find them there. Frames are found by what
//! they hold and not by the name of a file, so nothing can be out of date: a changed image has other pages.
//!
//! The source is guest memory, which is charged already and which can be read without waiting for anybody. Guests
//! do not pass files to the daemon, because closing a file can take as long as whoever serves it likes (ADR 14).
//!
//! Attaching is a favour. It ends at the first page for which it cannot be done (the page or its source is busy or
//! in a store, or there is no memory), and the answer says how many pages came before that one. The guest copies
//! the rest itself; there it can wait for memory.
//!
//! A resident page may be attached too, because its guest has said that the page holds nothing. A guest's kernel does
//! not know which of its free pages the host backs, and sequential faults are given pages ahead.

use super::Peers;
use super::merge::{drop_zeroes, frame_of, wanted_frame};
use crate::digest::digest;
use crate::engine::EngineError;
use crate::page::{Home, PageGuard, Urgency};
use crate::remap::{FrameHold, Match, break_under, freeze, place};
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, VmId, runs_of};
use crate::vm::Vm;

/// Pages that are locked at once; as many as when candidates are merged.
const BATCH: usize = 256;

/// What a guest asks for: that `pages` get the bytes of the pages from `source` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachRequest {
    /// The pages that hold nothing.
    pub pages: GfnRun,
    /// The first of the pages that hold the bytes.
    pub source: Gfn,
}

/// Attaches pages of the VM as far as that can be done now. Returns how many pages, counted from the first, hold their
/// bytes; some pages behind those may hold theirs too.
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
    // After a failure too: the hints for these pages are gone, so nothing else leads to the new frames.
    for (id, gfn) in nudges {
        let is_source = id == vm.id && (source..Gfn(source.0 + pages.count)).contains(&gfn);
        if is_source {
            // The guest is going to overwrite its source pages, so merging this one now would be wasted work.
            vm.table.note_written(gfn);
        } else {
            peers.nudge(id, gfn);
        }
    }
    attached
}

/// A page that can be attached, and the frame with its bytes; `None`: they are zero.
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
    break_under(vm, &runs_of(batch.iter().map(|(gfn, _)| *gfn)))?;
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
            // Zero bytes for a page with no memory are there already, so only a resident one has anything to give up.
            None if page.home() == Home::Resident => zeroes.push(page),
            None => {}
        }
    }
    drop_zeroes(vm, zeroes)?;
    let count = matches.len();
    let left = place(vm, matches)?;
    vm.stats.attached.add((count - left.len()) as u64);
    // The answer is one number, so pages behind the first that was left do not count, although some may be attached.
    let first_left = left.iter().map(PageGuard::gfn).min();
    let is_before = |(gfn, _): &&(Gfn, Gfn)| first_left.is_none_or(|left| *gfn < left);
    let attached = batch.iter().take(reached).take_while(is_before).count();
    Ok(u32::try_from(attached).unwrap_or(u32::MAX))
}

/// Locks pages and finds or makes their frames, up to the first page for which that fails.
fn hold<'a>(vm: &'a Vm, batch: &[(Gfn, Gfn)], nudges: &mut Vec<(VmId, Gfn)>) -> Vec<Held<'a>> {
    let mut held: Vec<Held<'_>> = Vec::with_capacity(batch.len());
    // Attaching is a favour, and must not take what faults wait for.
    if !vm.is_sharing() || vm.is_blocked() || vm.vmas.is_exceeded(&vm.table) {
        return held;
    }
    let mut room = vm.orders.ceiling().0.saturating_sub(vm.held().0);
    let mut before: Option<(Gfn, FrameId)> = None;
    let mut content = PageBuf::zeroed();
    for &(gfn, source) in batch {
        // A page with one of these homes has no slot or frame that would have to be given up.
        let is_empty = |home| matches!(home, Home::Untouched | Home::Zero | Home::Resident);
        let page = vm.try_lock(gfn).filter(|page| is_empty(page.home()));
        let page = page.filter(|_| !vm.large.holds(gfn));
        let Some(page) = page else { break };
        // Copied after the page is locked, and used from here on: the guest may write the source meanwhile.
        if !copy_out(vm, source, &mut content) {
            break;
        }
        let mut hold = None;
        if !content.is_zero() {
            // A resident page already counts as held by the VM.
            if page.home() != Home::Resident {
                match room.checked_sub(1) {
                    Some(left) => room = left,
                    None => break,
                }
            }
            let near = wanted_frame(vm, gfn, before);
            let frame = frame_of(vm, digest(&content), &content, near, Urgency::Touch, nudges);
            let Ok(frame) = frame else { break };
            before = Some((gfn, frame.frame()));
            hold = Some(frame);
        }
        held.push((page, hold));
    }
    held
}

/// Copies what a page of the guest holds. `false`: the page is busy, in a store or in the balloon.
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
