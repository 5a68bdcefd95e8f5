//! What the host on trial's other end answers, in each protocol.

use memvisor_wire::balloon::{
    BatchResult, Listed, ListedPage, PageState, PageStatus, Protocol, RangeBatch, StatusRun,
    ToAgent, ToHost, Wanted,
};

use super::super::Fault;
use super::end::{HostEnd, Status};
use crate::units::{Gfn, GfnRun, runs_of};

impl HostEnd<'_> {
    /// Answers one request. The answer to one that names pages moves what is held.
    pub(super) fn answer(&mut self, seq: u32, message: &ToHost) -> Result<(), Fault> {
        let reply = match message {
            ToHost::Stats(_) => return Ok(()),
            ToHost::GetTarget { .. } | ToHost::Relief { .. } => {
                ToAgent::Target { pages: self.target }
            }
            ToHost::Stop => ToAgent::Stopped,
            ToHost::Start(_) => return Err("it says START again, unasked".into()),
            other => self.moves(other).ok_or_else(|| {
                let name = other.name();
                format!("it says {name}, of a protocol that was not agreed on")
            })?,
        };
        self.say(seq, &reply)
    }

    /// The answer to a message of the agreed protocol; `None` if it is of another.
    fn moves(&mut self, message: &ToHost) -> Option<ToAgent> {
        let target = self.target;
        let reply = match (self.protocol, message) {
            (Protocol::Ranges | Protocol::Reporting, ToHost::Lock(batch)) => {
                let runs = self.lock_runs(batch);
                ToAgent::LockResult(BatchResult { target, runs })
            }
            (Protocol::Ranges | Protocol::Reporting, ToHost::Unlock(batch)) => {
                let runs = self.unlock_runs(batch);
                ToAgent::UnlockResult(BatchResult { target, runs })
            }
            (Protocol::Reporting, ToHost::Report(_)) => ToAgent::Reported,
            (Protocol::PageLists, ToHost::LockPages(pages)) => {
                let pages = self.list(pages, self.lock, Self::lock_page);
                ToAgent::PagesLocked(Listed { target, pages })
            }
            (Protocol::PageLists, ToHost::UnlockPages(pages)) => {
                let pages = self.list(pages, self.unlock, Self::unlock_page);
                ToAgent::PagesUnlocked(Listed { target, pages })
            }
            (Protocol::PfnArrays, ToHost::Inflate(pages)) => {
                self.held.extend(pages.iter().map(|gfn| gfn.0));
                ToAgent::Used
            }
            (Protocol::PfnArrays, ToHost::Deflate(pages)) => {
                self.held.retain(|page| !pages.contains(&Gfn(*page)));
                ToAgent::Used
            }
            (Protocol::Hints, ToHost::Offer(batch)) => {
                self.want(batch);
                ToAgent::Wanted(self.wanted.clone())
            }
            (Protocol::Hints, ToHost::Give { epoch, ranges }) => {
                let runs = self.take_given(*epoch, ranges);
                ToAgent::Given(BatchResult { target, runs })
            }
            _ => return None,
        };
        Some(reply)
    }

    fn lock_page(&mut self, page: u32, status: PageStatus) {
        if matches!(status, PageStatus::Ok | PageStatus::AlreadyLocked) {
            self.held.insert(page);
        }
    }

    fn unlock_page(&mut self, page: u32, status: PageStatus) {
        if matches!(status, PageStatus::Ok | PageStatus::NotLocked) {
            self.held.remove(&page);
        }
    }

    fn lock_runs(&mut self, batch: &RangeBatch) -> Vec<StatusRun> {
        let runs = self.statuses(batch, self.lock);
        for part in &runs {
            for gfn in part.run.iter() {
                self.lock_page(gfn.0, part.status);
            }
        }
        runs
    }

    fn unlock_runs(&mut self, batch: &RangeBatch) -> Vec<StatusRun> {
        let runs = self.statuses(batch, self.unlock);
        for part in &runs {
            for gfn in part.run.iter() {
                self.unlock_page(gfn.0, part.status);
            }
        }
        runs
    }

    fn statuses(&self, batch: &RangeBatch, status: Status) -> Vec<StatusRun> {
        let mut runs: Vec<StatusRun> = Vec::new();
        for gfn in batch.runs().iter().flat_map(|run| run.iter()) {
            let status = status(gfn.0);
            match runs.last_mut() {
                Some(last)
                    if !self.cuts
                        && last.status == status
                        && last.run.end() == u64::from(gfn.0) =>
                {
                    last.run.count += 1;
                }
                _ => runs.push(StatusRun {
                    run: GfnRun::single(gfn),
                    status,
                }),
            }
        }
        runs
    }

    fn list(
        &mut self,
        pages: &[ListedPage],
        status: Status,
        note: fn(&mut Self, u32, PageStatus),
    ) -> Vec<ListedPage> {
        let mut answered = Vec::new();
        for page in pages {
            let status = match u32::try_from(page.page) {
                Ok(gfn) => {
                    note(self, gfn, status(gfn));
                    status(gfn)
                }
                Err(_) => PageStatus::Invalid,
            };
            answered.push(page.answered(status));
        }
        answered
    }

    /// Wants of an offer what the balloon lacks.
    fn want(&mut self, offer: &RangeBatch) {
        let missing = self.target.saturating_sub(self.held.len() as u64);
        let pages = offer.runs().iter().flat_map(|run| run.iter());
        let lacking = pages.filter(|gfn| !self.held.contains(&gfn.0));
        self.wanted = Wanted {
            epoch: self.wanted.epoch + 1,
            missing,
            ranges: runs_of(lacking.take(missing as usize)),
        };
    }

    /// Whether pages are wanted in this epoch, all of them.
    pub(super) fn wants(&self, epoch: u32, pages: &RangeBatch) -> bool {
        let has = |run: &GfnRun, gfn: Gfn| gfn >= run.start && u64::from(gfn.0) < run.end();
        let is_wanted = |gfn: Gfn| self.wanted.ranges.iter().any(|run| has(run, gfn));
        let mut pages = pages.runs().iter().flat_map(|run| run.iter());
        epoch == self.wanted.epoch && pages.all(is_wanted)
    }

    fn take_given(&mut self, epoch: u32, pages: &RangeBatch) -> Vec<StatusRun> {
        let status = if self.wants(epoch, pages) {
            PageStatus::Ok
        } else {
            PageStatus::NotNeeded
        };
        for gfn in pages.runs().iter().flat_map(|run| run.iter()) {
            self.lock_page(gfn.0, status);
        }
        // Each epoch is given once.
        self.wanted.ranges.clear();
        let part = |run: &GfnRun| StatusRun { run: *run, status };
        pages.runs().iter().map(part).collect()
    }

    /// Moves the balloon to its target without a word, where the agent does not hold the pages.
    pub(super) fn follow_target(&mut self) {
        let target = self.target as usize;
        match (self.protocol, &self.map) {
            // Each of them is the guest's already.
            (Protocol::Hints, _) => {
                while self.held.len() > target {
                    self.held.pop_last();
                }
            }
            (_, Some(map)) => {
                while self.held.len() < target
                    && let Some(run) = map.next_free(Gfn(0), 1)
                    && map.change(run.start, PageState::Free, PageState::Moving)
                {
                    // It is nobody else's by now, if the agent keeps the rules.
                    let _ = map.change(run.start, PageState::Moving, PageState::Taken);
                    self.held.insert(run.start.0);
                }
                while self.held.len() > target
                    && let Some(page) = self.held.pop_last()
                {
                    let _ = map.change(Gfn(page), PageState::Taken, PageState::Free);
                }
            }
            _ => {}
        }
    }
}
