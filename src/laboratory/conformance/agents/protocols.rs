//! What agents do in the protocols that are no ranges: lists, arrays and reports here, hints and maps beside.

use std::time::Duration;

use memvisor_wire::balloon::{Capabilities, ListedPage, PageStatus, Protocol, ToHost};

use super::super::{Fault, must};
use super::end::{HostEnd, Terms};
use super::{Trial, moves};
use crate::units::{Gfn, GfnRun, runs_of};

/// Polls for which an agent is watched that is to do nothing.
pub(super) const WATCHED: u32 = 5;

/// A session in a protocol; untested if the agent does not offer that.
pub(super) fn session(trial: &Trial, protocol: Protocol) -> Result<HostEnd<'_>, Fault> {
    let mut host = trial.accept()?;
    let start = host.welcome(Terms::of(protocol))?;
    must_offer(start.capabilities, protocol)?;
    Ok(host)
}

fn must_offer(offered: Capabilities, protocol: Protocol) -> Result<(), Fault> {
    let capability = match protocol {
        // Of arrays, how deflation goes is offered besides.
        Protocol::PfnArrays => Capabilities::PFN_ARRAYS,
        other => other.capabilities(),
    };
    if offered.contains(capability) {
        return Ok(());
    }
    let name = protocol.name();
    Err(Fault::Untested(format!("it does not offer {name}")))
}

pub(super) fn is_poll(message: &ToHost) -> bool {
    matches!(message, ToHost::GetTarget { .. })
}

/// Answers so many polls; `look` sees each message before its answer.
pub(super) fn watch(
    host: &mut HostEnd<'_>,
    polls: u32,
    mut look: impl FnMut(&HostEnd<'_>, &ToHost) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for _ in 0..polls {
        host.serve("a poll", |end, message| {
            look(end, message)?;
            Ok(is_poll(message))
        })?;
    }
    Ok(())
}

/// The pages that a message puts into the balloon, or that it says are not used.
pub(super) fn named(message: &ToHost) -> Vec<GfnRun> {
    let gfn = |page: &ListedPage| u32::try_from(page.page).ok().map(Gfn);
    match message {
        ToHost::Lock(batch) | ToHost::Report(batch) | ToHost::Give { ranges: batch, .. } => {
            batch.runs().to_vec()
        }
        ToHost::LockPages(pages) => runs_of(pages.iter().filter_map(gfn)),
        ToHost::Inflate(pages) => runs_of(pages.iter().copied()),
        _ => Vec::new(),
    }
}

/// Reaches a balloon of `size` pages; all that is named must be pinned in the guest.
pub(super) fn names_pinned_pages(host: &mut HostEnd<'_>, size: u64) -> Result<(), Fault> {
    host.target = size;
    host.serve("a full balloon", |end, message| {
        must(end.memory.has_pinned(&named(message)), || {
            let name = message.name();
            format!("it says {name} of pages that its guest has not pinned")
        })?;
        Ok(is_poll(message) && end.held.len() as u64 == size)
    })
}

pub(super) fn lists_inflate(trial: &Trial) -> Result<(), Fault> {
    moves::up_and_down(&mut session(trial, Protocol::PageLists)?)
}

pub(super) fn lists_lock_pinned_pages(trial: &Trial) -> Result<(), Fault> {
    names_pinned_pages(&mut session(trial, Protocol::PageLists)?, moves::SOME)
}

pub(super) fn lists_ask_without_status(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::PageLists)?;
    for target in [100, 0] {
        host.target = target;
        host.serve("the target", |end, message| {
            if let ToHost::LockPages(pages) | ToHost::UnlockPages(pages) = message {
                let is_asked = pages.iter().all(|page| page.status.is_none());
                must(is_asked, || {
                    format!("{} has pages with a status", message.name())
                })?;
            }
            Ok(is_poll(message) && end.held.len() as u64 == target)
        })?;
    }
    Ok(())
}

pub(super) fn lists_unlock_first(trial: &Trial) -> Result<(), Fault> {
    moves::deflates_in_order(&mut session(trial, Protocol::PageLists)?)
}

pub(super) fn lists_status_of_each_page(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::PageLists)?;
    host.lock = |gfn| {
        if gfn % 3 == 0 {
            PageStatus::Busy
        } else {
            PageStatus::Ok
        }
    };
    moves::keeps_what_was_taken(&mut host)
}

pub(super) fn arrays_inflate(trial: &Trial) -> Result<(), Fault> {
    moves::up_and_down(&mut session(trial, Protocol::PfnArrays)?)
}

pub(super) fn arrays_name_pinned_pages(trial: &Trial) -> Result<(), Fault> {
    names_pinned_pages(&mut session(trial, Protocol::PfnArrays)?, moves::SOME)
}

/// A session with arrays, and besides with what `wanted` says of deflation.
fn arrays<'t>(trial: &'t Trial, wanted: Capabilities, name: &str) -> Result<HostEnd<'t>, Fault> {
    let mut host = trial.accept()?;
    let start = host.welcome(Terms::of(Protocol::PfnArrays))?;
    must_offer(start.capabilities, Protocol::PfnArrays)?;
    if start.capabilities.contains(wanted) {
        return Ok(host);
    }
    Err(Fault::Untested(format!("it does not offer {name}")))
}

pub(super) fn arrays_must_tell(trial: &Trial) -> Result<(), Fault> {
    let mut host = arrays(trial, Capabilities::MUST_TELL_HOST, "MUST_TELL_HOST")?;
    moves::deflates_in_order(&mut host)
}

pub(super) fn arrays_stay_pinned(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::PfnArrays)?;
    host.reach(600, 600)?;
    watch(&mut host, WATCHED, |end, message| {
        let (pinned, held) = (end.memory.pinned(), end.held.len() as u64);
        must(pinned == held, || {
            format!("{pinned} pages are pinned, and it has named {held}")
        })?;
        match message {
            ToHost::GetTarget { balloon_pages, .. } => must(*balloon_pages == held, || {
                format!("it believes to hold {balloon_pages} pages, and has named {held}")
            }),
            _ => Ok(()),
        }
    })
}

pub(super) fn arrays_deflate_on_oom(trial: &Trial) -> Result<(), Fault> {
    let mut host = arrays(trial, Capabilities::DEFLATE_ON_OOM, "DEFLATE_ON_OOM")?;
    host.reach(600, 600)?;
    let _ = trial.agent().relieve(5, Duration::ZERO);
    host.serve("DEFLATE of 256 pages", |end, message| {
        must(!matches!(message, ToHost::Relief { .. }), || {
            "it says RELIEF".to_owned()
        })?;
        Ok(is_poll(message) && end.held.len() == 600 - 256)
    })?;
    watch(&mut host, WATCHED, |_, message| {
        must(!matches!(message, ToHost::Inflate(_)), || {
            "it inflates again, and the target has not changed".to_owned()
        })
    })?;
    host.reach(601, 601)
}

/// A session in which pages are reported, once some have been.
fn reporting(trial: &Trial, target: u64) -> Result<HostEnd<'_>, Fault> {
    let mut host = session(trial, Protocol::Reporting)?;
    host.target = target;
    host.serve("REPORT", |_, message| {
        Ok(matches!(message, ToHost::Report(_)))
    })?;
    Ok(host)
}

pub(super) fn reports_whatever_the_target(trial: &Trial) -> Result<(), Fault> {
    reporting(trial, 0).map(drop)
}

pub(super) fn reports_isolated_pages(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Reporting)?;
    let mut reports = 0;
    host.serve("REPORT", |end, message| {
        must(end.memory.has_pinned(&named(message)), || {
            "it reports pages that its guest has not isolated".to_owned()
        })?;
        reports += u32::from(matches!(message, ToHost::Report(_)));
        Ok(is_poll(message) && reports > 0)
    })
}

pub(super) fn reported_pages_go_back(trial: &Trial) -> Result<(), Fault> {
    let mut host = reporting(trial, 0)?;
    watch(&mut host, 2, |end, message| {
        let pinned = end.memory.pinned();
        must(!is_poll(message) || pinned == 0, || {
            format!("{pinned} pages are pinned after REPORTED, and none is in the balloon")
        })
    })
}

pub(super) fn reports_beside_a_balloon(trial: &Trial) -> Result<(), Fault> {
    let mut host = reporting(trial, 300)?;
    host.reach(300, 300)?;
    host.reach(0, 0)
}

pub(super) fn no_report(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    let start = host.welcome(Terms::default())?;
    must_offer(start.capabilities, Protocol::Reporting)?;
    // An answer to it would be refused as one of a protocol that was not agreed on.
    watch(&mut host, 2 * WATCHED, |_, _| Ok(()))
}
