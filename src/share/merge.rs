//! The second step of sharing: candidates are locked and frozen, and only then compared and mapped.

use crate::digest::digest;
use crate::engine::{EngineError, EngineKind};
use crate::page::{Home, PageGuard, Urgency};
use crate::remap::{FrameHold, Match, afford, freeze, place, rehome, room};
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, VmId, runs_of};
use crate::vm::Vm;

/// What the scanner thinks a page holds, from bytes that may have changed while it read them.
#[derive(Debug)]
pub(super) enum Guess<'a> {
    /// All zero.
    Zero,
    /// Equal to this frame.
    Frame(FrameHold<'a>),
    /// Equal, by this digest, to another page that is not shared yet: a frame is to be made.
    First(u64),
}

/// A page that may be worth sharing, locked.
type Held<'a> = (PageGuard<'a>, Guess<'a>);

/// Shares those candidates, ascending, that hold what the scanner thought, and returns how many. Pages that seemed to
/// have the content of a new frame are added to `nudges`.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub(super) fn merge(
    vm: &Vm,
    candidates: Vec<(Gfn, Guess<'_>)>,
    nudges: &mut Vec<(VmId, Gfn)>,
) -> Result<u64, EngineError> {
    let held = candidates.into_iter();
    let held = held.filter_map(|(gfn, guess)| Some((hold(vm, gfn)?, guess)));
    let held = affordable(vm, held.collect());
    if held.is_empty() {
        return Ok(0);
    }
    if !freeze(vm, held.iter().map(|(page, _)| page))? {
        held.iter()
            .for_each(|(page, _)| vm.table.refuse(page.gfn()));
        return Ok(0);
    }
    let mut zeroes = Vec::new();
    let mut matches: Vec<Match<'_>> = Vec::new();
    let mut content = PageBuf::zeroed();
    let pool = vm.pool();
    for (page, guess) in held {
        let gfn = page.gfn();
        // Read again, although the look has: the guest may have written the page until it was frozen.
        vm.engine.read(gfn, &mut content);
        let hold = match guess {
            Guess::Zero if content.is_zero() => {
                zeroes.push(page);
                continue;
            }
            Guess::Zero => Err(NoFrame::OtherBytes),
            Guess::Frame(hold) if pool.equals(hold.frame(), &content) => Ok(hold),
            Guess::Frame(_) => Err(NoFrame::OtherBytes),
            // The new frame would be published under a digest that it does not have.
            Guess::First(expected) if digest(&content) != expected => Err(NoFrame::OtherBytes),
            Guess::First(expected) => {
                let before = matches.last().map(|m| (m.page.gfn(), m.hold.frame()));
                let near = wanted_frame(vm, gfn, before);
                frame_of(vm, expected, &content, near, Urgency::Reclaim, nudges)
            }
        };
        match hold {
            Ok(hold) => matches.push(Match { page, hold }),
            Err(NoFrame::NoMemory) => vm.table.lack_frame(gfn),
            Err(NoFrame::OtherBytes) => {
                vm.stats.mismatched.one();
                vm.table.back_off(gfn);
            }
        }
    }
    Ok(drop_zeroes(vm, zeroes)? + share(vm, matches)?)
}

fn hold(vm: &Vm, gfn: Gfn) -> Option<PageGuard<'_>> {
    if vm.large.holds(gfn) {
        return None;
    }
    let page = vm.try_lock(gfn);
    if page.is_none() {
        // The scan has taken UNSEEN away, so without this note a busy page would not be scanned again.
        vm.table.note_written(gfn);
    }
    page.filter(|page| page.home() == Home::Resident)
}

/// The candidates that may be frozen. Without userfaultfd a frozen run takes a VMA of its own, whether it is shared
/// later or not, so the budget of VMAs must be kept here already.
fn affordable<'a>(vm: &Vm, mut held: Vec<Held<'a>>) -> Vec<Held<'a>> {
    if vm.engine.kind() != EngineKind::Mprotect {
        return held;
    }
    let runs = runs_of(held.iter().map(|(page, _)| page.gfn()));
    // Half of the room is left for mapping frames over them.
    let (_, dropped) = afford(vm, runs, room(vm) / 2, |run| *run);
    held.retain(|(page, _)| {
        let gfn = page.gfn();
        let has = |run: &GfnRun| run.start <= gfn && u64::from(gfn.0) < run.end();
        let is_dropped = dropped.iter().any(has);
        if is_dropped {
            vm.table.refuse(gfn);
        }
        !is_dropped
    });
    held
}

pub(super) fn drop_zeroes(vm: &Vm, zeroes: Vec<PageGuard<'_>>) -> Result<u64, EngineError> {
    let count = zeroes.len() as u64;
    let moves = zeroes.into_iter().map(|page| (page, Home::Zero)).collect();
    rehome(vm, moves)?;
    vm.stats.zeroed.add(count);
    Ok(count)
}

fn share<'a>(vm: &'a Vm, matches: Vec<Match<'a>>) -> Result<u64, EngineError> {
    let count = matches.len();
    let left = place(vm, matches)?;
    left.iter().for_each(|page| vm.table.refuse(page.gfn()));
    let shared = (count - left.len()) as u64;
    vm.stats.merged.add(shared);
    Ok(shared)
}

/// Why a page that seemed to equal others gets no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoFrame {
    /// It has other bytes than it seemed to have, or a frame of other bytes has its digest.
    OtherBytes,
    /// There is no memory for a frame, or the pool has none left.
    NoMemory,
}

/// The frame with this content, which has this digest; if there is none, a new one, at `near` if that frame is free;
/// if somebody else is faster, theirs.
pub(super) fn frame_of<'a>(
    vm: &'a Vm,
    digest: u64,
    content: &PageBuf,
    near: Option<FrameId>,
    urgency: Urgency,
    nudges: &mut Vec<(VmId, Gfn)>,
) -> Result<FrameHold<'a>, NoFrame> {
    let pool = vm.pool();
    let find = || FrameHold::find(vm, digest);
    // Equal digests are no proof.
    let checked = |hold: FrameHold<'a>| {
        let is_equal = pool.equals(hold.frame(), content);
        if is_equal {
            Ok(hold)
        } else {
            Err(NoFrame::OtherBytes)
        }
    };
    if let Some(hold) = find() {
        return checked(hold);
    }
    if !vm.budget.take(1, urgency) {
        return Err(NoFrame::NoMemory);
    }
    let Some(mut new) = pool.allocate_near(near) else {
        vm.budget.give(1);
        return Err(NoFrame::NoMemory);
    };
    new.fill(content);
    let Some((published, known)) = new.publish(digest) else {
        // Somebody else was faster, or the index cannot grow.
        vm.budget.give(1);
        // Their frame may have the bytes that we wanted to publish.
        return find().map_or(Err(NoFrame::NoMemory), checked);
    };
    nudges.extend(known);
    vm.stats.first_users.one();
    Ok(FrameHold::new(vm, published))
}

/// The frame that would continue the run of a neighbouring page, so that both share a VMA. `before` is the last page
/// that is about to be shared, and its frame.
pub(super) fn wanted_frame(vm: &Vm, gfn: Gfn, before: Option<(Gfn, FrameId)>) -> Option<FrameId> {
    let previous = gfn.0.checked_sub(1).map(Gfn)?;
    if let Some((_, frame)) = before.filter(|(page, _)| *page == previous) {
        return frame.0.checked_add(1).map(FrameId);
    }
    if let Home::Shared(frame) = vm.table.entry(previous).home() {
        return frame.0.checked_add(1).map(FrameId);
    }
    let next = gfn.checked_add(1).filter(|next| vm.table.contains(*next))?;
    match vm.table.entry(next).home() {
        Home::Shared(frame) => frame.0.checked_sub(1).map(FrameId),
        _ => None,
    }
}
