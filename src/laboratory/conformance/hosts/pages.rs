//! What hosts say of pages.

use memvisor_wire::balloon::{Capabilities, PageStatus, RangeBatch, ToHost};

use super::super::{Fault, must};
use super::Trial;
use super::end::{AgentEnd, batch};
use crate::laboratory::said::status_name;

/// How far a balloon may grow past its target.
const SLACK: u64 = 512;
const SOME: Capabilities = Capabilities::BATCHED;

fn session(trial: &Trial) -> Result<AgentEnd, Fault> {
    AgentEnd::started(trial, SOME).map(|(end, _)| end)
}

fn lock(ranges: &[(u32, u32)]) -> ToHost {
    ToHost::Lock(batch(ranges))
}

fn unlock(ranges: &[(u32, u32)]) -> ToHost {
    ToHost::Unlock(batch(ranges))
}

pub(super) fn locks(trial: &Trial) -> Result<(), Fault> {
    session(trial)?.all(&lock(&[(0, 64), (100, 1)]), PageStatus::Ok)
}

pub(super) fn unlocks(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial)?;
    end.all(&lock(&[(0, 64)]), PageStatus::Ok)?;
    end.all(&unlock(&[(0, 64)]), PageStatus::Ok)?;
    end.all(&lock(&[(0, 64)]), PageStatus::Ok)
}

pub(super) fn offered_twice(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial)?;
    end.all(&lock(&[(0, 64)]), PageStatus::Ok)?;
    end.all(&lock(&[(0, 64)]), PageStatus::AlreadyLocked)
}

pub(super) fn outside(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial)?;
    for ranges in [[(trial.pages, 4)], [(u32::MAX, 1)]] {
        end.all(&lock(&ranges), PageStatus::Invalid)?;
        end.all(&unlock(&ranges), PageStatus::Invalid)?;
    }
    Ok(())
}

pub(super) fn never_locked(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial)?;
    end.all(&lock(&[(0, 4)]), PageStatus::Ok)?;
    end.all(&unlock(&[(4, 4)]), PageStatus::NotLocked)
}

pub(super) fn exactly_the_pages(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial)?;
    end.all(&lock(&[(2, 2)]), PageStatus::Ok)?;
    let asked: [(u32, u32); 3] = [(0, 8), (20, 3), (trial.pages - 2, 4)];
    let pages: Vec<u32> = asked
        .iter()
        .flat_map(|(start, count)| *start..start + count)
        .collect();
    let runs = end.statuses(&lock(&asked))?;
    let said: Vec<u32> = runs
        .iter()
        .flat_map(|(start, count, _)| *start..start.saturating_add(*count))
        .collect();
    must(said == pages, || {
        format!("it speaks of pages {said:?}, and was asked about {pages:?}")
    })?;
    let status = |page: u32| {
        let run = runs
            .iter()
            .find(|(start, count, _)| (*start..start + count).contains(&page));
        run.map(|(.., status)| *status)
    };
    for (page, wanted) in [
        (0, PageStatus::Ok),
        (3, PageStatus::AlreadyLocked),
        (trial.pages, PageStatus::Invalid),
    ] {
        let is = status(page);
        must(is == Some(wanted), || {
            format!("page {page} is {is:?} and not {}", status_name(wanted))
        })?;
    }
    Ok(())
}

pub(super) fn start_empties(trial: &Trial) -> Result<(), Fault> {
    session(trial)?.all(&lock(&[(0, 64)]), PageStatus::Ok)?;
    session(trial)?.all(&lock(&[(0, 64)]), PageStatus::Ok)
}

/// Locks pages until the host wants no more; in which state each page of the last batch was.
fn fill(trial: &Trial) -> Result<(AgentEnd, u64, Vec<PageStatus>), Fault> {
    let (mut end, started) = AgentEnd::started(trial, SOME)?;
    if trial.set_target.is_some() {
        // Once the agent is connected: some hosts set no target of a VM that has none.
        trial.target(0)?;
    }
    let target = end.target(trial)?;
    let most = (target + SLACK).min(started.balloon_max);
    let needed = most + 64;
    if needed > trial.pages.into() {
        let pages = trial.pages;
        return Err(Fault::Untested(format!(
            "a target of {target} leaves no page of {pages}"
        )));
    }
    let mut locked = 0;
    loop {
        let start = locked as u32;
        let count = (needed - locked).min(4096) as u32;
        let runs = end.statuses(&lock(&[(start, count)]))?;
        let pages: Vec<PageStatus> = (runs.iter())
            .flat_map(|(_, count, status)| std::iter::repeat_n(*status, *count as usize))
            .collect();
        let ok = pages
            .iter()
            .filter(|status| **status == PageStatus::Ok)
            .count() as u64;
        locked += ok;
        if ok < u64::from(count) {
            return Ok((end, most.abs_diff(locked), pages));
        }
        must(locked < needed, || {
            format!("it takes {locked} pages for a target of {target}")
        })?;
    }
}

pub(super) fn not_needed(trial: &Trial) -> Result<(), Fault> {
    let (mut end, off, pages) = fill(trial)?;
    must(off == 0, || {
        format!("its balloon ends {off} pages from target + {SLACK}, or balloon_max")
    })?;
    let last = pages.last().copied();
    must(last == Some(PageStatus::NotNeeded), || {
        format!("the last page is {last:?}")
    })?;
    // Of those that are in it, it says that they are, however full it is.
    end.all(&lock(&[(0, 4)]), PageStatus::AlreadyLocked)
}

pub(super) fn from_the_first_page_on(trial: &Trial) -> Result<(), Fault> {
    let (_, _, pages) = fill(trial)?;
    let refused = pages.iter().position(|status| *status != PageStatus::Ok);
    let rest = &pages[refused.unwrap_or(pages.len())..];
    must(!rest.contains(&PageStatus::Ok), || {
        "it takes pages behind one that it refuses".to_owned()
    })
}

pub(super) fn most_ranges(trial: &Trial) -> Result<(), Fault> {
    let (mut end, started) = AgentEnd::started(trial, SOME)?;
    let ranges: Vec<(u32, u32)> = (0..started.max_ranges).map(|at| (2 * at, 1)).collect();
    let most: RangeBatch = batch(&ranges);
    end.statuses(&ToHost::Unlock(most)).map(drop)
}
