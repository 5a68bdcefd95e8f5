//! What hosts do in the protocol with hints.

use memvisor_wire::balloon::{Capabilities, PageStatus, RangeBatch, ToAgent, ToHost, Wanted};

use super::super::{Fault, must};
use super::Trial;
use super::end::{AgentEnd, batch};
use super::protocols::{no_reset, session, unlike};
use crate::laboratory::said::status_name;
use crate::units::GfnRun;

/// Offers pages of which the host wants some.
fn offer(end: &mut AgentEnd, ranges: &[(u32, u32)]) -> Result<Wanted, Fault> {
    let question = ToHost::Offer(batch(ranges));
    match end.ask(&question)? {
        ToAgent::Wanted(wanted) => Ok(wanted),
        other => Err(unlike(&question, &other)),
    }
}

/// Gives pages, all of which must get this status.
fn give(
    end: &mut AgentEnd,
    epoch: u32,
    ranges: RangeBatch,
    wanted: PageStatus,
) -> Result<(), Fault> {
    let question = ToHost::Give { epoch, ranges };
    let result = match end.ask(&question)? {
        ToAgent::Given(result) => result,
        other => return Err(unlike(&question, &other)),
    };
    let other = result.runs.iter().find(|part| part.status != wanted);
    other.map_or(Ok(()), |part| {
        let (run, is, wanted) = (part.run, status_name(part.status), status_name(wanted));
        Err(format!("GIVE: {run:?} is {is} and not {wanted}").into())
    })
}

/// A session with hints whose target is so many pages.
fn hints(trial: &Trial, target: u64) -> Result<AgentEnd, Fault> {
    let end = session(trial, Capabilities::HINTS)?;
    trial.target(target)?;
    Ok(end)
}

fn wanted_batch(wanted: &Wanted) -> Result<RangeBatch, Fault> {
    RangeBatch::new(wanted.ranges.clone())
        .map_err(|_| "the ranges of WANTED are none, or out of order".into())
}

pub(super) fn wanted(trial: &Trial) -> Result<(), Fault> {
    let mut end = hints(trial, 24)?;
    let wanted = offer(&mut end, &[(0, 64)])?;
    let pages: u32 = wanted.ranges.iter().map(|run| run.count).sum();
    must(pages == 24, || {
        format!("it wants {pages} pages, and lacks 24")
    })?;
    let of_offer = |run: &GfnRun| run.end() <= 64;
    must(wanted.ranges.iter().all(of_offer), || {
        "it wants pages that were not offered".to_owned()
    })?;
    give(
        &mut end,
        wanted.epoch,
        wanted_batch(&wanted)?,
        PageStatus::Ok,
    )
}

pub(super) fn epochs(trial: &Trial) -> Result<(), Fault> {
    let mut end = hints(trial, 24)?;
    let first = offer(&mut end, &[(0, 64)])?;
    let second = offer(&mut end, &[(100, 64)])?;
    must(first.epoch != second.epoch, || {
        format!("both offers are of epoch {}", first.epoch)
    })?;
    give(
        &mut end,
        first.epoch,
        wanted_batch(&first)?,
        PageStatus::NotNeeded,
    )
}

pub(super) fn given_once(trial: &Trial) -> Result<(), Fault> {
    let mut end = hints(trial, 24)?;
    let wanted = offer(&mut end, &[(0, 64)])?;
    let pages = wanted_batch(&wanted)?;
    give(&mut end, wanted.epoch, pages.clone(), PageStatus::Ok)?;
    give(&mut end, wanted.epoch, pages, PageStatus::NotNeeded)
}

pub(super) fn not_wanted(trial: &Trial) -> Result<(), Fault> {
    let mut end = hints(trial, 24)?;
    let wanted = offer(&mut end, &[(0, 64)])?;
    let mut ranges: Vec<_> = (wanted.ranges.iter())
        .map(|run| (run.start.0, run.count))
        .collect();
    // One page that was offered to nobody.
    ranges.push((200, 1));
    give(
        &mut end,
        wanted.epoch,
        batch(&ranges),
        PageStatus::NotNeeded,
    )
}

pub(super) fn may_touch(trial: &Trial) -> Result<(), Fault> {
    no_reset(trial, Capabilities::HINTS | Capabilities::DOORBELL, |end| {
        let wanted = offer(end, &[(0, 8)])?;
        match wanted_batch(&wanted) {
            Ok(pages) => give(end, wanted.epoch, pages, PageStatus::Ok),
            // Its target is 0; a touch of no page is no reason either.
            Err(_) => Ok(()),
        }
    })
}
