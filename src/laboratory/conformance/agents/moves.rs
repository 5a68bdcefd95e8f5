//! How agents move pages.

use memvisor_wire::balloon::{Capabilities, PageStatus, ToHost};

use super::super::{Fault, must};
use super::Trial;
use super::end::{HostEnd, Terms};
use super::protocols::names_pinned_pages;

/// A balloon of more pages than a batch has ranges, and of fewer than a batch has pages.
pub(super) const SOME: u64 = 1500;

pub(super) fn inflates(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(SOME, SOME)?;
    host.reach(3 * SOME, 3 * SOME)
}

/// The balloon reaches targets above and below.
pub(super) fn up_and_down(host: &mut HostEnd<'_>) -> Result<(), Fault> {
    host.reach(SOME, SOME)?;
    host.reach(3 * SOME, 3 * SOME)?;
    host.reach(0, 0)?;
    must(host.memory.pinned() == 0, || {
        "it keeps pages pinned".to_owned()
    })
}

pub(super) fn locks_pinned_pages(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    names_pinned_pages(&mut host, SOME)
}

/// Inflates and deflates under `terms`, with at most `most` ranges in a batch.
fn within(trial: &Trial, terms: Terms, most: usize, size: u64) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(terms)?;
    for target in [size, 0] {
        host.target = target;
        host.serve("the target", |end, message| {
            if let ToHost::Lock(batch) | ToHost::Unlock(batch) = message {
                let ranges = batch.runs().len();
                let name = message.name();
                must(ranges <= most, || {
                    format!("{name} has {ranges} ranges; {most} were agreed on")
                })?;
            }
            Ok(matches!(message, ToHost::GetTarget { .. }) && end.held.len() as u64 == target)
        })?;
    }
    Ok(())
}

pub(super) fn max_ranges(trial: &Trial) -> Result<(), Fault> {
    let terms = Terms {
        max_ranges: 7,
        ..Terms::default()
    };
    within(trial, terms, 7, 100)
}

pub(super) fn one_range(trial: &Trial) -> Result<(), Fault> {
    let terms = Terms {
        capabilities: Capabilities::empty(),
        ..Terms::default()
    };
    within(trial, terms, 1, 40)
}

pub(super) fn believes_what_it_holds(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(SOME, SOME)?;
    host.serve("two polls", |end, message| {
        let ToHost::GetTarget { balloon_pages, .. } = message else {
            return Ok(false);
        };
        let held = end.held.len() as u64;
        must(*balloon_pages == held, || {
            format!("it believes to hold {balloon_pages} pages, and {held} were locked")
        })?;
        Ok(true)
    })
}

pub(super) fn unlocks_first(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    deflates_in_order(&mut host)
}

/// The guest uses a page of the balloon only once the host knows.
pub(super) fn deflates_in_order(host: &mut HostEnd<'_>) -> Result<(), Fault> {
    host.reach(2 * SOME, 2 * SOME)?;
    host.target = SOME - 600;
    host.serve("a balloon that deflates", |end, message| {
        let pinned = end.memory.pinned();
        let held = end.held.len() as u64;
        // What it holds for the host is pinned until it has heard that it is unlocked.
        must(pinned >= held, || {
            format!(
                "its guest uses {} pages that it has not unlocked",
                held - pinned
            )
        })?;
        // An agent may leave a small balloon too many alone.
        Ok(matches!(message, ToHost::GetTarget { .. }) && held < end.target + 512)
    })?;
    host.serve("two polls", |end, message| {
        let (pinned, held) = (end.memory.pinned(), end.held.len() as u64);
        must(pinned == held, || {
            format!("{pinned} pages are pinned, and {held} are in the balloon")
        })?;
        Ok(matches!(message, ToHost::GetTarget { .. }))
    })
}

pub(super) fn deflates_to_nothing(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(100, 100)?;
    host.reach(0, 0)?;
    must(host.memory.pinned() == 0, || {
        "it keeps pages pinned".to_owned()
    })?;
    host.reach(50, 50)
}

pub(super) fn follows_past_the_maximum(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms {
        balloon_max: 10,
        ..Terms::default()
    })?;
    host.reach(200, 200)
}

/// Refuses pages with `status` until one was refused, then looks at what is pinned two polls later.
fn refusing(trial: &Trial, status: super::end::Status) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.lock = status;
    host.welcome(Terms::default())?;
    host.target = 64;
    host.serve("an offer", |_, message| {
        Ok(matches!(message, ToHost::Lock(_)))
    })?;
    // Before the next offer, so that nothing is under way.
    host.target = 0;
    host.unlock = |_| PageStatus::Busy;
    for _ in 0..2 {
        host.serve("a poll", |_, message| {
            Ok(matches!(message, ToHost::GetTarget { .. }))
        })?;
    }
    host.serve("a poll", |end, message| {
        let (pinned, held) = (end.memory.pinned(), end.held.len() as u64);
        must(pinned == held, || {
            format!("{pinned} pages are pinned, and {held} are in the balloon")
        })?;
        Ok(matches!(message, ToHost::GetTarget { .. }))
    })
}

pub(super) fn refused_pages_go_back(trial: &Trial) -> Result<(), Fault> {
    refusing(trial, |_| PageStatus::NotNeeded)
}

pub(super) fn already_locked_pages_stay(trial: &Trial) -> Result<(), Fault> {
    refusing(trial, |_| PageStatus::AlreadyLocked)
}

pub(super) fn busy_pages_stay(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(SOME, SOME)?;
    host.unlock = |_| PageStatus::Busy;
    host.target = 0;
    host.serve("an UNLOCK", |_, message| {
        Ok(matches!(message, ToHost::Unlock(_)))
    })?;
    host.serve("a poll", |end, message| {
        let (pinned, held) = (end.memory.pinned(), end.held.len() as u64);
        must(pinned == held, || {
            format!("{held} pages are in the balloon, and {pinned} are pinned")
        })?;
        Ok(matches!(message, ToHost::GetTarget { .. }))
    })?;
    host.unlock = |_| PageStatus::Ok;
    host.reach(0, 0)
}

pub(super) fn runs_cut_anyhow(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.cuts = true;
    // One page in three is busy, so that good and bad ones follow each other.
    host.lock = |gfn| {
        if gfn % 3 == 0 {
            PageStatus::Busy
        } else {
            PageStatus::Ok
        }
    };
    host.welcome(Terms::default())?;
    keeps_what_was_taken(&mut host)
}

/// What is pinned is what the host has taken, of pages of which it takes some.
pub(super) fn keeps_what_was_taken(host: &mut HostEnd<'_>) -> Result<(), Fault> {
    host.target = 12;
    host.serve("some pages", |end, message| {
        Ok(matches!(message, ToHost::GetTarget { .. }) && !end.held.is_empty())
    })?;
    host.serve("a poll", |end, message| {
        let (pinned, held) = (end.memory.pinned(), end.held.len() as u64);
        let is_poll = matches!(message, ToHost::GetTarget { .. });
        must(!is_poll || pinned == held, || {
            format!("{held} pages are in the balloon, and {pinned} are pinned")
        })?;
        Ok(is_poll)
    })?;
    host.reach(0, 0)
}
