//! How the agent of a script moves pages, in the protocol that was agreed on.
//!
//! What a script says of pages (inflate, deflate, lock, unlock) is said in ranges, lists or arrays, so each way to lie is
//! one in all three. What other protocols have beside is said by steps of its own.

use std::io;
use std::os::fd::OwnedFd;

use memvisor_wire::balloon::{
    FreeMap, ListedPage, MAX_BATCH_PAGES, MAX_LISTED, MAX_PFNS, PageState, PageStatus, Protocol,
    RangeBatch, StatusRun, ToAgent, ToHost, map_words,
};

use super::{Actor, Curtain};
use crate::sys::SharedWords;
use crate::units::{Gfn, GfnRun, runs_of};

/// Where pages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Into the balloon.
    In,
    /// Out of it.
    Out,
}

/// The map of free pages.
#[derive(Debug)]
pub(super) struct Map(FreeMap<SharedWords>);

impl Map {
    /// The map that came with `STARTED`, if one did.
    pub(super) fn of(descriptors: Vec<OwnedFd>, pages: u64) -> io::Result<Option<Self>> {
        let pages = u32::try_from(pages).map_err(io::Error::other)?;
        let words = |descriptor| SharedWords::of(descriptor, map_words(pages));
        let words = descriptors.into_iter().next().map(words).transpose()?;
        Ok(words.map(|words| Self(FreeMap::new(words, pages))))
    }

    pub(super) fn show(&self, gfn: Gfn) -> bool {
        self.0.change(gfn, PageState::Used, PageState::Free)
    }

    pub(super) fn take_back(&self, gfn: Gfn) -> bool {
        self.0.change(gfn, PageState::Taken, PageState::Used)
    }
}

impl Actor<'_> {
    pub(super) fn inflate(&mut self, pages: Option<u32>) -> Result<(), Curtain> {
        let held = self.held.len() as u64;
        let gap = self.target.saturating_sub(held);
        let mut left = pages.map_or(gap, u64::from);
        while left > 0 {
            let want = u32::try_from(left).unwrap_or(u32::MAX);
            let runs = self.memory.allocate(want.min(MAX_BATCH_PAGES), true);
            let mut taken = 0;
            for part in self.parts(&runs) {
                let answer = self.exchange(&part, Way::In)?;
                taken += self.locked(&part, answer);
            }
            // The guest has no more, or the host takes no more.
            if taken == 0 {
                break;
            }
            left = left.saturating_sub(taken);
        }
        Ok(())
    }

    /// Notes what became of pages that were offered. Returns how many the host took.
    fn locked(&mut self, offered: &[GfnRun], answer: Option<Vec<StatusRun>>) -> u64 {
        let Some(runs) = answer else {
            self.memory.release(offered);
            return 0;
        };
        let mut taken = 0;
        for part in runs {
            if matches!(part.status, PageStatus::Ok | PageStatus::AlreadyLocked) {
                self.held.extend(part.run.iter().map(|gfn| gfn.0));
                taken += u64::from(part.run.count);
            } else {
                self.memory.release(&[part.run]);
            }
        }
        taken
    }

    pub(super) fn deflate(&mut self, pages: Option<u32>) -> Result<(), Curtain> {
        let gap = (self.held.len() as u64).saturating_sub(self.target);
        let many = pages.unwrap_or_else(|| u32::try_from(gap).unwrap_or(u32::MAX));
        for part in self.parts(&self.some_held(many)) {
            let Some(runs) = self.exchange(&part, Way::Out)? else {
                return Ok(());
            };
            let free = |status| matches!(status, PageStatus::Ok | PageStatus::NotLocked);
            let freed = runs.iter().filter(|part| free(part.status));
            let freed: Vec<GfnRun> = freed.map(|part| part.run).collect();
            self.give_back(&freed);
        }
        Ok(())
    }

    /// Names pages to the host, whoever has them, and does not look at what became of them.
    pub(super) fn name(&mut self, runs: &[GfnRun], way: Way) -> Result<(), Curtain> {
        for part in self.parts(runs) {
            self.exchange(&part, way)?;
        }
        Ok(())
    }

    /// The pages, as many at once as a message of the protocol holds.
    fn parts(&self, runs: &[GfnRun]) -> Vec<Vec<GfnRun>> {
        let most = match self.protocol() {
            Protocol::PageLists => MAX_LISTED,
            Protocol::PfnArrays => MAX_PFNS,
            _ => {
                let batches = RangeBatch::split(runs.to_vec(), self.started.max_ranges);
                return batches.iter().map(|batch| batch.runs().to_vec()).collect();
            }
        };
        let pages: Vec<Gfn> = runs.iter().flat_map(|run| run.iter()).collect();
        let parts = pages.chunks(most);
        parts.map(|part| runs_of(part.iter().copied())).collect()
    }

    fn protocol(&self) -> Protocol {
        Protocol::of(self.started.capabilities)
    }

    /// What becomes of one message of pages; `None` if a reset took the place of the answer.
    fn exchange(&mut self, pages: &[GfnRun], way: Way) -> Result<Option<Vec<StatusRun>>, Curtain> {
        let question = self.question(pages, way);
        let (target, runs) = match self.ask(&question)? {
            None => return Ok(None),
            Some(ToAgent::LockResult(result) | ToAgent::UnlockResult(result)) => {
                (result.target, result.runs)
            }
            Some(ToAgent::PagesLocked(listed) | ToAgent::PagesUnlocked(listed)) => {
                let part = |page: &ListedPage| {
                    let run = GfnRun::single(Gfn(u32::try_from(page.page).ok()?));
                    page.status.map(|status| StatusRun { run, status })
                };
                (
                    listed.target,
                    listed.pages.iter().filter_map(part).collect(),
                )
            }
            // Nothing is said of any page.
            Some(ToAgent::Used) => {
                let ok = |run: &GfnRun| StatusRun {
                    run: *run,
                    status: PageStatus::Ok,
                };
                (self.target, pages.iter().map(ok).collect())
            }
            Some(other) => return Err(Curtain::Unexpected(question.name(), other.name())),
        };
        self.target = target;
        Ok(Some(runs))
    }

    fn question(&self, pages: &[GfnRun], way: Way) -> ToHost {
        let gfns = pages.iter().flat_map(|run| run.iter());
        let listed = || {
            let gfns = pages.iter().flat_map(|run| run.iter());
            gfns.map(|gfn| ListedPage::asked(gfn.0.into())).collect()
        };
        match (self.protocol(), way) {
            (Protocol::PageLists, Way::In) => ToHost::LockPages(listed()),
            (Protocol::PageLists, Way::Out) => ToHost::UnlockPages(listed()),
            (Protocol::PfnArrays, Way::In) => ToHost::Inflate(gfns.collect()),
            (Protocol::PfnArrays, Way::Out) => ToHost::Deflate(gfns.collect()),
            (_, way) => {
                let batch = RangeBatch::new(pages.to_vec()).expect("a part of a batch");
                match way {
                    Way::In => ToHost::Lock(batch),
                    Way::Out => ToHost::Unlock(batch),
                }
            }
        }
    }

    pub(super) fn offer(&mut self, pages: &RangeBatch) -> Result<(), Curtain> {
        match self.ask(&ToHost::Offer(pages.clone()))? {
            Some(ToAgent::Wanted(wanted)) => self.wanted = Some(wanted),
            Some(other) => return Err(Curtain::Unexpected("OFFER", other.name())),
            None => {}
        }
        Ok(())
    }

    /// Gives what the host wants of the latest offer.
    pub(super) fn give(&mut self) -> Result<(), Curtain> {
        let Some(wanted) = self.wanted.take() else {
            return Ok(());
        };
        let epoch = wanted.epoch;
        // Nothing, if it wants none.
        match RangeBatch::new(wanted.ranges) {
            Ok(ranges) => self.ask(&ToHost::Give { epoch, ranges }).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Changes pages in the shared map, as far as they are in the state for it; none without a map.
    pub(super) fn change(
        &self,
        runs: &[GfnRun],
        change: fn(&Map, Gfn) -> bool,
    ) -> Result<(), Curtain> {
        let pages = self.memory.total_pages();
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            if let Some(map) = &self.map
                && u64::from(gfn.0) < pages
            {
                change(map, gfn);
            }
        }
        Ok(())
    }

    /// The first pages that it holds.
    pub(super) fn some_held(&self, pages: u32) -> Vec<GfnRun> {
        runs_of(self.held.iter().copied().take(pages as usize).map(Gfn))
    }

    pub(super) fn give_back(&mut self, runs: &[GfnRun]) {
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            self.held.remove(&gfn.0);
        }
        if !runs.is_empty() {
            self.memory.release(runs);
        }
    }

    pub(super) fn release_all(&mut self) {
        self.give_back(&self.some_held(u32::MAX));
    }
}
