//! The host's half of the seam between what all balloon sessions have in common and how one protocol names pages.
//!
//! **The problem.** Protocols differ in how a page is named, who chooses it, when the guest may use it again and what
//! the host answers. All else is the same for each: targets and how long relief lowers them, the limits of a balloon,
//! the rate of a session, resets, statistics, and that the page table alone says what a balloon holds.
//!
//! **Why the naive way fails.** A session per protocol repeats the rules that keep a lying guest harmless, and gets
//! one of them wrong in one of them.
//!
//! **The structures.** A session keeps what is common. A [`Variant`] is given the messages that name pages, and may
//! act between messages where the host chooses pages itself. It reaches pages by [`batch`](super::batch) and
//! [`BalloonVm`] alone, so it cannot take a page past a limit or one of another VM, and keeps no count of its own.
//!
//! | | names pages by | chosen by | guest uses a page again | acknowledged |
//! |---|---|---|---|---|
//! | [`Ranges`] | ranges | guest | after `UNLOCK_RESULT` | by a status a page |
//! | [`PageLists`] | single pages | guest | after `PAGES_UNLOCKED` | by a status a page |
//! | [`PfnArrays`] | single pages | guest | after `USED`, or at any time | that it was read |
//! | [`Reporting`] | ranges | guest | after `REPORTED` | that it was read |
//! | [`Hints`] | ranges | guest, then host | after `GIVEN`, without asking | by a status a page |
//! | [`Bitmap`] | a map | host | once the map says FREE | by the map |

mod bitmap;
mod hints;
mod lists;
mod ranges;

use std::os::fd::BorrowedFd;

use memvisor_wire::balloon::{
    BatchResult, Capabilities, MAX_BATCH_PAGES, Protocol, RangeBatch, StatusRun, ToAgent, ToHost,
};
use memvisor_wire::claims::Words;

use self::bitmap::Bitmap;
use self::hints::Hints;
use self::lists::{PageLists, PfnArrays};
use self::ranges::{Ranges, Reporting};
use super::BalloonVm;
use super::batch::pages_ok;
use super::counters::add;
use crate::units::{Gfn, runs_of};

/// A host gives pages back by itself only if it has so many too many, or none are wanted. Agents leave the same gap.
const GIVE_BACK_GAP: u64 = 512;

/// How one protocol names pages, for the life of one `START`.
pub(super) trait Variant {
    /// Serves a message that names pages; `None` if the protocol has no such message.
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent>;

    /// Moves pages that the host chooses, towards the target, at most a batch. Returns for how many it has worked;
    /// 0 if there is nothing to do now.
    fn act(&mut self, _vm: &dyn BalloonVm) -> u64 {
        0
    }

    /// Whether the guest may touch a page of the balloon without having asked: that takes the page out, and is no
    /// reason for a reset.
    fn may_touch(&self) -> bool {
        false
    }

    /// Whether the agent knows how many pages its balloon holds.
    fn is_counted_by_agent(&self) -> bool {
        true
    }

    /// The words that both sides share, and how many there are, for whoever records the session.
    fn shared(&self) -> Option<(&dyn Words, u32)> {
        None
    }

    /// What goes to the agent with `STARTED`.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The protocol for an agent with these capabilities, and those of them that are in use.
pub(super) fn choose(
    vm: &dyn BalloonVm,
    offered: Capabilities,
) -> (Box<dyn Variant>, Capabilities) {
    let protocol = Protocol::of(offered);
    let used = protocol.chosen_from(offered);
    let variant: Box<dyn Variant> = match protocol {
        Protocol::Ranges => Box::new(Ranges),
        Protocol::PageLists => Box::new(PageLists),
        Protocol::PfnArrays => Box::new(PfnArrays::new(used)),
        Protocol::Reporting => Box::new(Reporting),
        Protocol::Hints => Box::new(Hints::default()),
        Protocol::Bitmap => match Bitmap::new(vm) {
            Ok(bitmap) => Box::new(bitmap),
            Err(error) => {
                tracing::warn!(vm = %vm.id(), %error, "no memory for a map of free pages: this balloon uses ranges");
                return (Box::new(Ranges), Protocol::Ranges.chosen_from(offered));
            }
        },
    };
    (variant, used)
}

/// The pages that the balloon should hold now.
pub(super) fn target(vm: &dyn BalloonVm) -> u64 {
    vm.target().min(vm.balloon_max())
}

/// The answer to a batch.
fn result(vm: &dyn BalloonVm, runs: Vec<StatusRun>) -> BatchResult {
    let target = target(vm);
    BatchResult { target, runs }
}

/// Gives the guest up to a batch of pages back that the balloon has too many of. `from` is where to look first, and is
/// moved on. Returns what became of them.
fn give_back(vm: &dyn BalloonVm, from: &mut u32) -> Vec<StatusRun> {
    let (target, locked) = (target(vm), vm.locked());
    let excess = locked.saturating_sub(target);
    if excess == 0 || target > 0 && excess < GIVE_BACK_GAP {
        return Vec::new();
    }
    let most = excess.min(MAX_BATCH_PAGES.into()) as usize;
    let pages = u32::try_from(vm.total_pages()).unwrap_or(u32::MAX);
    let start = (*from).min(pages);
    let around = (start..pages).chain(0..start).map(Gfn);
    let mut held: Vec<Gfn> = around.filter(|gfn| vm.holds(*gfn)).take(most).collect();
    *from = held.last().map_or(0, |gfn| gfn.0 + 1);
    held.sort_unstable();
    if held.is_empty() {
        return Vec::new();
    }
    let answer = vm.unlock(&runs_of(held));
    add(&vm.counters().deflated_pages, pages_ok(&answer));
    answer
}

/// How many pages a message names.
pub(super) fn pages_named(message: &ToHost) -> u64 {
    match message {
        ToHost::Lock(batch)
        | ToHost::Unlock(batch)
        | ToHost::Report(batch)
        | ToHost::Offer(batch)
        | ToHost::Give { ranges: batch, .. } => batch.pages(),
        ToHost::LockPages(pages) | ToHost::UnlockPages(pages) => pages.len() as u64,
        ToHost::Inflate(pfns) | ToHost::Deflate(pfns) => pfns.len() as u64,
        ToHost::Start(_)
        | ToHost::GetTarget { .. }
        | ToHost::Stats(_)
        | ToHost::Relief { .. }
        | ToHost::Stop => 0,
    }
}

/// One batch of single pages, ascending and without repetition.
fn batch_of(mut pages: Vec<Gfn>) -> Option<RangeBatch> {
    pages.sort_unstable();
    pages.dedup();
    // Refused only if there are none: no message names so many that they would not fit.
    RangeBatch::new(runs_of(pages)).ok()
}

#[cfg(test)]
mod tests;
