//! Free pages in two phases: the agent offers what is free, and gives what the host wants and is still free.
//!
//! An offered page may be used at any time. A given one is pinned from the moment at which the kernel says that it is
//! still free, until the host has answered. So the host never drops a page that the guest has begun to use. The agent
//! holds nothing after that: the guest uses given pages without asking, which takes them out of the balloon. Each costs
//! a fault, so the kernel is told which these are, and uses other free pages first.

use memvisor_wire::balloon::{
    MAX_BATCH_PAGES, MAX_RANGES, PageStatus, RangeBatch, StatusRun, ToAgent, ToHost, Wanted, covers,
};
use memvisor_wire::{Gfn, GfnRun, RunsExt};

use super::super::FreePages;
use super::super::link::{LinkError, unexpected};
use super::{Variant, Work};

/// See the module text.
#[derive(Debug)]
pub(super) struct Hints;

impl Variant for Hints {
    fn is_held_by_agent(&self) -> bool {
        false
    }

    fn follow(&mut self, work: &mut Work<'_>) -> Result<(), LinkError> {
        let Some(free) = work.source.free_pages() else {
            return Ok(());
        };
        // Once with the pages that are free, and once more with those that reclaim makes free.
        while work.link.target() > 0 {
            let missing = offer_all(work, free)?.min(work.pace.inflate_left());
            if missing == 0 {
                break;
            }
            let may_reclaim = work.pace.may_reclaim();
            let freed = if may_reclaim {
                free.reclaim(missing)
            } else {
                0
            };
            work.pace.inflated(missing, freed);
            if may_reclaim && freed == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Offers all free pages until the host lacks none, or the pace has no more. Returns how many it still lacks.
fn offer_all(work: &mut Work<'_>, free: &dyn FreePages) -> Result<u32, LinkError> {
    let (mut missing, mut from) = (0, Some(Gfn(0)));
    while let Some(at) = from {
        let most = work.pace.inflate_left().min(MAX_BATCH_PAGES);
        if most == 0 {
            return Ok(0);
        }
        let (listed, next) = free.list(at, most, false);
        from = next;
        for batch in RangeBatch::split(listed, MAX_RANGES as u32) {
            let wanted = offer(work, &batch)?;
            let given = give(work, free, &wanted)?;
            missing = u32::try_from(wanted.missing).unwrap_or(u32::MAX);
            missing = missing.saturating_sub(given);
            if missing == 0 {
                return Ok(0);
            }
        }
    }
    Ok(missing)
}

fn offer(work: &mut Work<'_>, batch: &RangeBatch) -> Result<Wanted, LinkError> {
    match work.link.ask(&ToHost::Offer(batch.clone()))? {
        ToAgent::Wanted(wanted) => Ok(wanted),
        other => Err(unexpected("OFFER", &other)),
    }
}

/// Gives those of the wanted pages that are still free; how many the host has taken.
fn give(work: &mut Work<'_>, free: &dyn FreePages, wanted: &Wanted) -> Result<u32, LinkError> {
    let pinned = free.pin(&wanted.ranges);
    let mut taken = 0;
    let epoch = wanted.epoch;
    let question = |ranges| ToHost::Give { epoch, ranges };
    // One batch: the host wants no more ranges or pages than were offered. Pages that came to be used in between cut
    // ranges, so a second is possible, and the host refuses it: an epoch is given once.
    work.ask_about(pinned, question, |ranges, answer| match answer {
        ToAgent::Given(result) if covers(&result.runs, ranges) => {
            let is_taken = |part: &&StatusRun| part.status == PageStatus::Ok;
            let parts = result.runs.iter().filter(is_taken);
            let parts: Vec<GfnRun> = parts.map(|part| part.run).collect();
            free.dropped(&parts);
            taken += parts.pages() as u32;
            Ok(())
        }
        other => Err(unexpected("GIVE", &other)),
    })?;
    work.pace.inflated(0, taken);
    Ok(taken)
}
