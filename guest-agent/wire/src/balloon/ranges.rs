//! Batches of page ranges and what became of them.

#[cfg(test)]
use proptest::prelude::*;

use super::declare::{ANY, Carried, Field, Limit, Of};
#[cfg(test)]
use super::document::Table;
use super::{MAX_BATCH_PAGES, MAX_RANGES, StatusRun};
use crate::{DecodeError, Gfn, GfnRun, Reader, RunsExt, Writer};

/// The ranges of one `LOCK` or `UNLOCK`, checked for form.
///
/// A batch has 1 to [`MAX_RANGES`] ranges. None of them is empty, none runs past the last gfn, they
/// ascend without overlap, and together they hold at most [`MAX_BATCH_PAGES`] pages. The pages need
/// not exist in the VM. Ranges ascend because the host locks pages in their order, and no guest may
/// make it deadlock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeBatch(Vec<GfnRun>);

impl RangeBatch {
    /// Checks `runs`.
    ///
    /// # Errors
    /// [`DecodeError::Value`] naming the rule that is broken.
    pub fn new(runs: Vec<GfnRun>) -> Result<Self, DecodeError> {
        let check = |name, value, limit| Of::part(name, "", limit).check(value);
        check("number of ranges", runs.len() as u64, Self::LIMIT)?;
        let mut end = 0;
        for run in &runs {
            check("range count", run.count.into(), 1..=u64::MAX)?;
            // Behind the range before it: ranges ascend without overlap.
            check("range start", run.start.0.into(), end..=u64::MAX)?;
            end = run.end();
        }
        // Once, behind the loop: ranges ascend, so no other ends later than the last.
        check("range end", end, 0..=1 << 32)?;
        check(
            "pages in one batch",
            runs.pages(),
            1..=MAX_BATCH_PAGES.into(),
        )?;
        Ok(Self(runs))
    }

    /// The ranges.
    #[must_use]
    pub fn runs(&self) -> &[GfnRun] {
        &self.0
    }

    /// How many pages are in the ranges, 1 to [`MAX_BATCH_PAGES`].
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.pages()
    }

    /// Puts any pages into the fewest batches that the limits allow. `max_ranges` is the number of
    /// ranges that the host accepts in a batch. Empty runs are left out, and runs past the last gfn are
    /// cut there. Pages given twice end up in two batches.
    #[must_use]
    pub fn split(mut runs: Vec<GfnRun>, max_ranges: u32) -> Vec<Self> {
        let max_ranges = (max_ranges as usize).clamp(1, MAX_RANGES);
        runs.sort_unstable_by_key(|run| run.start);
        let mut batches = Vec::new();
        let mut batch = Open::default();
        for run in runs.into_iter().map(clip) {
            let mut rest = run;
            while rest.count > 0 {
                match batch.add(rest, max_ranges) {
                    0 => batches.extend(batch.close()),
                    taken => {
                        rest =
                            GfnRun::new(Gfn(rest.start.0.wrapping_add(taken)), rest.count - taken);
                    }
                }
            }
        }
        batches.extend(batch.close());
        batches
    }
}

impl Carried for RangeBatch {
    type By = Vec<GfnRun>;
    const LIMIT: Limit = 1..=MAX_RANGES as u64;

    fn pack(&self) -> Vec<GfnRun> {
        self.0.clone()
    }

    fn unpack(runs: Vec<GfnRun>) -> Result<Self, DecodeError> {
        Self::new(runs)
    }

    #[cfg(test)]
    fn any_packed() -> BoxedStrategy<Vec<GfnRun>> {
        let runs = proptest::collection::vec((any::<u32>(), 1..9_u32), 1..MAX_RANGES);
        runs.prop_map(|runs| {
            let runs = runs
                .into_iter()
                .map(|(at, pages)| GfnRun::new(Gfn(at), pages));
            Self::split(runs.collect(), MAX_RANGES as u32).remove(0).0
        })
        .boxed()
    }
}

group! {
    /// A [`GfnRun`] in a message.
    pub(super) struct Range {
        /// first gfn
        start "range start": u32,
        /// pages
        count "range count": u32 [1..=u64::MAX],
    }
}

impl Carried for GfnRun {
    type By = Range;

    fn pack(&self) -> Range {
        let (start, count) = (self.start.0, self.count);
        Range { start, count }
    }

    fn unpack(Range { start, count }: Range) -> Result<Self, DecodeError> {
        Ok(Self::new(Gfn(start), count))
    }
}

fn clip(run: GfnRun) -> GfnRun {
    let room = (1_u64 << 32) - u64::from(run.start.0);
    let count = u64::from(run.count).min(room);
    GfnRun::new(run.start, u32::try_from(count).unwrap_or(u32::MAX))
}

/// A batch that is being filled.
#[derive(Default)]
struct Open {
    runs: Vec<GfnRun>,
    pages: u32,
}

impl Open {
    /// Takes pages from the start of `run`. Returns how many, or 0 when the batch must be closed first.
    fn add(&mut self, run: GfnRun, max_ranges: usize) -> u32 {
        let count = run.count.min(MAX_BATCH_PAGES - self.pages);
        let full = self.runs.len() == max_ranges;
        match self.runs.last_mut() {
            _ if count == 0 => return 0,
            Some(last) if last.end() > u64::from(run.start.0) => return 0,
            Some(last) if last.end() == u64::from(run.start.0) => last.count += count,
            _ if full => return 0,
            _ => self.runs.push(GfnRun::new(run.start, count)),
        }
        self.pages += count;
        count
    }

    fn close(&mut self) -> Option<RangeBatch> {
        let open = std::mem::take(self);
        (open.pages > 0).then_some(RangeBatch(open.runs))
    }
}

/// Whether `answer` covers exactly the pages of `request`, in the order of the request. The host may
/// cut them into other runs.
#[must_use]
pub fn covers(answer: &[StatusRun], request: &RangeBatch) -> bool {
    join(answer.iter().map(|status| status.run)) == join(request.runs().iter().copied())
}

/// Appends what became of some pages, to the last run if they go on with it.
pub fn push_status(runs: &mut Vec<StatusRun>, more: StatusRun) {
    match runs.last_mut() {
        Some(last)
            if last.status == more.status && last.run.end() == u64::from(more.run.start.0) =>
        {
            last.run.count += more.run.count;
        }
        _ => runs.push(more),
    }
}

fn join(runs: impl Iterator<Item = GfnRun>) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some((_, end)) if *end == u64::from(run.start.0) => *end = run.end(),
            _ => joined.push((u64::from(run.start.0), run.end())),
        }
    }
    joined
}
