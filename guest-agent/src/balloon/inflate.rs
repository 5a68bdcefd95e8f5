//! The pages in the balloon, and how they get in and out.

use std::cmp::Ordering;

use memvisor_wire::balloon::{MAX_BATCH_PAGES, PageStatus, StatusRun};
use memvisor_wire::{Gfn, GfnRun, RunsExt};

use super::PageSource;
use super::link::{Link, LinkError};
use super::pace::Pace;
use super::relief::ReliefRequests;
use super::variant::{self, Variant, Work};

/// How many refused pages end the inflation in this window: the host has other worries, or a different
/// idea of this guest. VMware's drivers use the same number.
const MAX_REFUSALS: u64 = 16;
/// A balloon that is less than this over its target is left alone, unless the target is 0. These 2 MiB
/// keep a fluctuating target from moving pages to and fro.
const DEFLATE_GAP: u64 = 512;

/// The balloon of this guest.
pub(super) struct Balloon<'s> {
    source: &'s dyn PageSource,
    relief: &'s ReliefRequests,
    pace: Pace,
    held: Held,
    /// Pages of a question that a host did not answer in time. It may read the question later, and drop them then. So
    /// they stay pinned until a host says `STARTED`: then it has done with the session before.
    in_doubt: Vec<GfnRun>,
    /// How pages are named, once that is agreed on.
    variant: Option<Box<dyn Variant>>,
    /// The target below which the guest has deflated by itself, for want of memory: it does not inflate again before
    /// the host wants something else.
    ceded: Option<u64>,
}

/// The pages in the balloon. The last page in is the first page out: the guest does not care which
/// pages come back, and this order costs nothing to keep.
#[derive(Default)]
struct Held {
    runs: Vec<GfnRun>,
    pages: u64,
}

impl Held {
    fn add(&mut self, run: GfnRun) {
        self.pages += u64::from(run.count);
        self.runs.push(run);
    }

    /// Takes out up to `max` pages.
    fn take(&mut self, max: u32) -> Vec<GfnRun> {
        let mut taken = Vec::new();
        let mut left = max;
        while left > 0
            && let Some(run) = self.runs.pop()
        {
            // From the end of a run, which leaves the rest of it in one piece.
            let count = run.count.min(left);
            let rest = run.count - count;
            if rest > 0 {
                self.runs.push(GfnRun::new(run.start, rest));
            }
            taken.push(GfnRun::new(Gfn(run.start.0 + rest), count));
            left -= count;
        }
        self.pages -= taken.pages();
        taken
    }
}

impl<'s> Balloon<'s> {
    pub(super) fn new(
        source: &'s dyn PageSource,
        relief: &'s ReliefRequests,
        is_paced: bool,
    ) -> Self {
        Self {
            source,
            relief,
            pace: Pace::new(source.total_pages(), is_paced),
            held: Held::default(),
            in_doubt: Vec::new(),
            variant: None,
            ceded: None,
        }
    }

    /// Begins an empty balloon, by the protocol that the host has agreed to.
    pub(super) fn begin(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let known = std::mem::take(&mut self.in_doubt);
        if !known.is_empty() {
            self.source.release(&known);
        }
        let shared = link.take_shared();
        self.variant = Some(variant::begin(link.started(), shared, self.source)?);
        Ok(())
    }

    /// The pages in the balloon, as far as the agent knows.
    pub(super) fn pages(&mut self) -> u64 {
        let others = self
            .variant
            .as_mut()
            .map_or(0, |variant| variant.pages(self.source));
        self.held.pages + others
    }

    /// Begins the window of a new poll, in which the whole rates are available again.
    pub(super) fn open_window(&mut self) {
        self.pace.open_window();
    }

    /// Moves towards the host's target as far as the pace allows.
    pub(super) fn adjust(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let Some(variant) = &mut self.variant else {
            return Ok(());
        };
        variant.follow(&mut Work {
            link,
            source: self.source,
            pace: &mut self.pace,
            in_doubt: &mut self.in_doubt,
        })?;
        if !variant.is_held_by_agent() {
            return Ok(());
        }
        loop {
            let target = link.target();
            if self.ceded.is_some_and(|ceded| ceded != target) {
                self.ceded = None;
            }
            match target.cmp(&self.held.pages) {
                Ordering::Greater if self.ceded.is_some() => {}
                Ordering::Greater => self.inflate(link)?,
                Ordering::Less if target == 0 || self.held.pages - target >= DEFLATE_GAP => {
                    self.deflate(link)?;
                }
                _ => {}
            }
            // Replies carry the target too, and a change of direction must not wait for the next
            // poll. The loop ends: a new target needs a request, and the pace bounds the requests.
            if link.target() == target {
                return Ok(());
            }
        }
    }

    /// Deflates to the host's target at once, ignoring the pace, because the guest waits for the pages. Returns
    /// how many came back.
    ///
    /// `before` is what the balloon held when the guest asked.
    pub(super) fn relieve(&mut self, link: &mut Link, before: u64) -> Result<u64, LinkError> {
        while self.held.pages > link.target() {
            let want = chunk(self.held.pages - link.target(), u32::MAX);
            // The host keeps some for now. To ask again at once would only be refused again.
            if self.unlock(link, want)?.1 > 0 {
                break;
            }
        }
        Ok(before.saturating_sub(self.pages()))
    }

    /// Deflates without asking the host, if the protocol has a guest do so that is out of memory; how many pages came
    /// back. `None` if the host is to be asked.
    pub(super) fn cede(&mut self, link: &mut Link) -> Option<Result<u64, LinkError>> {
        let most = self.variant.as_ref()?.deflates_on_oom()?;
        self.ceded = Some(link.target());
        Some(self.unlock(link, most).map(|(freed, _)| freed.into()))
    }

    /// Gives everything back to the guest without telling the host, whose books are void. Only pages in doubt stay.
    pub(super) fn release_all(&mut self) {
        self.ceded = None;
        if let Some(mut variant) = self.variant.take() {
            variant.end(self.source);
        }
        let held = std::mem::take(&mut self.held);
        if !held.runs.is_empty() {
            self.source.release(&held.runs);
        }
    }

    fn inflate(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let mut refused = 0;
        // A guest that waits for relief must not lose more pages before the agent has asked for it.
        while !self.relief.is_wanted() {
            let gap = link.target().saturating_sub(self.held.pages);
            let want = chunk(gap, self.pace.inflate_left());
            if want == 0 {
                break;
            }
            let runs = self.source.allocate(want, self.pace.may_reclaim());
            let got = u32::try_from(runs.pages()).unwrap_or(u32::MAX);
            self.pace.inflated(want, got);
            refused += self.lock(link, runs)?;
            if refused >= MAX_REFUSALS {
                self.pace.end_inflate();
            }
        }
        Ok(())
    }

    /// Offers pages to the host. Returns how many the host refused; the guest has these back.
    fn lock(&mut self, link: &mut Link, runs: Vec<GfnRun>) -> Result<u64, LinkError> {
        let answers = match &mut self.variant {
            Some(variant) => variant.lock(link, runs),
            None => variant::Answers::none(runs),
        };
        let (mut refused, in_doubt) = match &answers.error {
            Some(error) if error.leaves_doubt() => (Vec::new(), answers.unanswered),
            _ => (answers.unanswered, Vec::new()),
        };
        self.in_doubt.extend(in_doubt);
        for StatusRun { run, status } in answers.statuses {
            match status {
                // Locked before, of which this agent knows nothing: it is the host's all the same.
                PageStatus::Ok | PageStatus::AlreadyLocked => self.held.add(run),
                _ => refused.push(run),
            }
        }
        if !refused.is_empty() {
            self.source.release(&refused);
        }
        answers.error.map_or(Ok(refused.pages()), Err)
    }

    fn deflate(&mut self, link: &mut Link) -> Result<(), LinkError> {
        loop {
            let gap = self.held.pages.saturating_sub(link.target());
            let want = chunk(gap, self.pace.deflate_left());
            if want == 0 {
                return Ok(());
            }
            let (freed, failed) = self.unlock(link, want)?;
            self.pace.deflated(freed, failed);
        }
    }

    /// Takes up to `want` pages back from the host. Returns how many the guest has now, and how many
    /// stay in the balloon because the host keeps them.
    fn unlock(&mut self, link: &mut Link, want: u32) -> Result<(u32, u32), LinkError> {
        let runs = self.held.take(want);
        let answers = match &mut self.variant {
            Some(variant) => variant.unlock(link, runs),
            None => variant::Answers::none(runs),
        };
        let (mut freed, mut kept) = (Vec::new(), answers.unanswered);
        for StatusRun { run, status } in answers.statuses {
            match status {
                PageStatus::Ok | PageStatus::NotLocked => freed.push(run),
                _ => kept.push(run),
            }
        }
        if !freed.is_empty() {
            self.source.release(&freed);
        }
        let counts = (pages(&freed), pages(&kept));
        // Pages without an answer stay in the balloon: the host may believe that they are.
        kept.into_iter().for_each(|run| self.held.add(run));
        // The error last: what was answered before it counts.
        answers.error.map_or(Ok(counts), Err)
    }
}

/// How many pages the next request asks for.
fn chunk(gap: u64, left: u32) -> u32 {
    let gap = u32::try_from(gap).unwrap_or(u32::MAX);
    gap.min(left).min(MAX_BATCH_PAGES)
}

fn pages(runs: &[GfnRun]) -> u32 {
    u32::try_from(runs.pages()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_take_splits_the_last_run_and_counts() {
        let mut held = Held::default();
        held.add(GfnRun::new(Gfn(10), 4));
        held.add(GfnRun::new(Gfn(20), 4));
        let expected = [GfnRun::new(Gfn(20), 4), GfnRun::new(Gfn(13), 1)];
        assert_eq!(held.take(5), expected);
        assert_eq!(held.pages, 3);
        assert_eq!(held.take(99), [GfnRun::new(Gfn(10), 3)]);
        assert_eq!(held.pages, 0);
    }
}
