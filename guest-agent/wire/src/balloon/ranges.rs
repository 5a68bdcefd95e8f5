//! Batches of page ranges and what became of them.

use super::{DecodeError, MAX_BATCH_PAGES, MAX_RANGES, Reader, Writer, value};
use crate::{Gfn, GfnRun, RunsExt};

pub(super) const RANGE_BYTES: usize = 8;
pub(super) const STATUS_RUN_BYTES: usize = 12;

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
        check_number(runs.len() as u64)?;
        let mut end = 0;
        for run in &runs {
            if run.count == 0 {
                return Err(value("range count", 0_u32, "1 and up"));
            }
            if u64::from(run.start.0) < end {
                let allowed = "a gfn behind the range before it: ranges ascend without overlap";
                return Err(value("range start", run.start.0, allowed));
            }
            end = run.end();
        }
        if end > 1 << 32 {
            return Err(value("range end", end, "at most 2^32"));
        }
        match runs.pages() {
            0..=LIMIT => Ok(Self(runs)),
            pages => Err(value("pages in one batch", pages, "1 to 4096")),
        }
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

    pub(super) fn write(&self, to: &mut Writer) {
        to.u32(self.0.len() as u32);
        for run in &self.0 {
            to.u32(run.start.0).u32(run.count);
        }
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = from.u32("number of ranges")?;
        check_number(u64::from(number))?;
        let runs: Result<_, _> = (0..number).map(|_| read_run(from)).collect();
        Self::new(runs?)
    }
}

const LIMIT: u64 = MAX_BATCH_PAGES as u64;

fn check_number(number: u64) -> Result<(), DecodeError> {
    if (1..=MAX_RANGES as u64).contains(&number) {
        return Ok(());
    }
    Err(value("number of ranges", number, "1 to 512"))
}

fn read_run(from: &mut Reader<'_>) -> Result<GfnRun, DecodeError> {
    let start = Gfn(from.u32("range start")?);
    Ok(GfnRun::new(start, from.u32("range count")?))
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

/// What became of one page of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageStatus {
    /// The page was locked or unlocked, as the request asked.
    Ok = 0,
    /// The page is not in the RAM of this VM.
    Invalid = 1,
    /// `LOCK`: the page is in the balloon already.
    AlreadyLocked = 2,
    /// `UNLOCK`: the page is not in the balloon, so the guest may use it.
    NotLocked = 3,
    /// The host is using the page just now. The agent may offer it again later.
    Busy = 4,
    /// `LOCK`: the balloon is large enough without this page.
    NotNeeded = 5,
}

impl PageStatus {
    const ALL: [Self; 6] = [
        Self::Ok,
        Self::Invalid,
        Self::AlreadyLocked,
        Self::NotLocked,
        Self::Busy,
        Self::NotNeeded,
    ];
}

/// Neighbouring pages with the same status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRun {
    /// The pages.
    pub run: GfnRun,
    /// What became of each of them.
    pub status: PageStatus,
}

/// Whether `answer` covers exactly the pages of `request`, in the order of the request. The host may
/// cut them into other runs.
#[must_use]
pub fn covers(answer: &[StatusRun], request: &RangeBatch) -> bool {
    join(answer.iter().map(|status| status.run)) == join(request.runs().iter().copied())
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

pub(super) fn write_statuses(runs: &[StatusRun], to: &mut Writer) {
    to.u32(runs.len() as u32);
    for StatusRun { run, status } in runs {
        to.u32(run.start.0).u32(run.count).u32(*status as u32);
    }
}

pub(super) fn read_statuses(from: &mut Reader<'_>) -> Result<Vec<StatusRun>, DecodeError> {
    let number = from.u32("number of runs")?;
    if !(1..=MAX_BATCH_PAGES).contains(&number) {
        return Err(value("number of runs", number, "1 to 4096"));
    }
    (0..number).map(|_| read_status(from)).collect()
}

fn read_status(from: &mut Reader<'_>) -> Result<StatusRun, DecodeError> {
    let run = read_run(from)?;
    if run.count == 0 {
        return Err(value("range count", 0_u32, "1 and up"));
    }
    let number = from.u32("status")?;
    let status = PageStatus::ALL
        .into_iter()
        .find(|status| *status as u32 == number)
        .ok_or_else(|| value("status", number, "0 to 5"))?;
    Ok(StatusRun { run, status })
}
