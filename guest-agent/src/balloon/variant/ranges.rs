//! Ranges, and ranges with free page reporting.

use memvisor_wire::balloon::{MAX_BATCH_PAGES, RangeBatch, ToAgent, ToHost, covers};
use memvisor_wire::{Gfn, GfnRun, RunsExt};

use super::super::link::{Link, LinkError, unexpected};
use super::{Answers, Variant, Work};

/// The agent names ranges, and the host says what became of each page.
#[derive(Debug)]
pub(super) struct Ranges;

impl Variant for Ranges {
    fn lock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        exchange(link, runs, ToHost::Lock)
    }

    fn unlock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        exchange(link, runs, ToHost::Unlock)
    }
}

fn exchange(link: &mut Link, runs: Vec<GfnRun>, message: fn(RangeBatch) -> ToHost) -> Answers {
    let mut answers = Answers::default();
    for batch in RangeBatch::split(runs, link.started().max_ranges) {
        if answers.error.is_none() {
            let question = message(batch.clone());
            let result = match link.ask(&question) {
                // An answer about other pages would have the agent free some that the host has taken.
                Ok(ToAgent::LockResult(result) | ToAgent::UnlockResult(result))
                    if covers(&result.runs, &batch) =>
                {
                    Ok(result)
                }
                Ok(other) => Err(unexpected(question.name(), &other)),
                Err(error) => Err(error),
            };
            match result {
                Ok(result) => {
                    answers.statuses.extend(result.runs);
                    continue;
                }
                Err(error) => answers.error = Some(error),
            }
        }
        answers.unanswered.extend_from_slice(batch.runs());
    }
    answers
}

/// As [`Ranges`], and besides the agent reports free pages that it has not reported since they came free.
///
/// While a report is under way its pages are pinned. Afterwards they are free as before, and the guest uses them
/// without asking.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    /// Where the next report begins.
    from: Gfn,
}

impl Variant for Reporting {
    fn lock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        Ranges.lock(link, runs)
    }

    fn unlock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        Ranges.unlock(link, runs)
    }

    fn follow(&mut self, work: &mut Work<'_>) -> Result<(), LinkError> {
        let Some(free) = work.source.free_pages() else {
            return Ok(());
        };
        // Once through RAM at most: what came free behind the hand is for the next poll.
        loop {
            let most = work.pace.report_left().min(MAX_BATCH_PAGES);
            if most == 0 {
                return Ok(());
            }
            let (listed, next) = free.list(self.from, most, true);
            self.from = next.unwrap_or_default();
            let pinned = free.pin(&listed);
            work.pace.reported(pinned.pages() as u32);
            work.ask_about(pinned, ToHost::Report, |batch, answer| match answer {
                ToAgent::Reported => {
                    free.dropped(batch.runs());
                    Ok(())
                }
                other => Err(unexpected("REPORT", &other)),
            })?;
            if next.is_none() {
                return Ok(());
            }
        }
    }
}
