//! Free pages that the host is told of: listed for it, or shown to it in a map that both sides share.
//!
//! While a map is shared, every free page above a reserve is FREE in it, and either side may take it: this allocator
//! by moving it to USED, the host without a word. So the list of shown pages can be out of date. A page that the host
//! has turns out to be gone when it is taken, or when [`settle`](PageAllocator::settle) looks. The reserve, as many
//! pages as the high watermark, is USED in the map: the host cannot take the last free pages of a guest.

use std::sync::Arc;

use memvisor_wire::balloon::{FreeMap, PageState};
use memvisor_wire::claims::Words;
use memvisor_wire::{Gfn, GfnRun};

use super::super::lock;
use super::super::runs::FreeRuns;
use super::{PageAllocator, PageUse, State};

/// A map on words that somebody else changes too.
pub(in super::super) type SharedMap = FreeMap<Arc<dyn Words>>;

/// Pages looked at while the allocator is locked.
const SLICE: u32 = 4096;

/// What the host is shown.
#[derive(Debug)]
pub(super) struct Shown {
    map: SharedMap,
    /// Pages that were FREE in the map when the allocator last looked.
    runs: FreeRuns,
    /// Free pages that are kept from the host.
    reserve: u32,
}

impl State {
    /// A free page. Shown pages first, so that the reserve lasts.
    pub(super) fn take_free(&mut self) -> Option<Gfn> {
        while let Some(shown) = &mut self.shown
            && let Some(gfn) = shown.runs.take_one()
        {
            if shown.map.change(gfn, PageState::Free, PageState::Used) {
                return Some(gfn);
            }
            self.change(gfn, PageUse::Free, PageUse::Balloon);
        }
        self.free.take_one().or_else(|| self.dropped.take_one())
    }

    /// Free pages in one run.
    pub(super) fn take_free_run(&mut self, count: u32) -> Option<GfnRun> {
        let Some(shown) = &mut self.shown else {
            let run = self.free.take_run(count);
            return run.or_else(|| self.dropped.take_run(count));
        };
        let run = shown.runs.take_run(count)?;
        let (free, used) = (PageState::Free, PageState::Used);
        let moved = shown.map.change_run(run, free, used);
        if moved == count {
            return Some(run);
        }
        // The host has the page behind those. What is left of the run is free, or found to be gone by itself.
        let gone = Gfn(run.start.0 + moved);
        let back = GfnRun::new(run.start, moved);
        shown
            .runs
            .insert(GfnRun::new(Gfn(gone.0 + 1), count - moved - 1));
        self.change(gone, PageUse::Free, PageUse::Balloon);
        self.put_free(back);
        None
    }

    /// The longest run of free pages that hold memory, or of the others; at most `max` of them.
    pub(super) fn take_longest(&mut self, max: u32) -> Option<GfnRun> {
        let run = self.free.take_longest(max);
        run.or_else(|| self.dropped.take_longest(max))
    }

    /// Adds pages whose use is [`PageUse::Free`] already to the free ones.
    pub(super) fn put_free(&mut self, run: GfnRun) {
        let Some(shown) = &mut self.shown else {
            return self.free.insert(run);
        };
        let kept = shown
            .reserve
            .saturating_sub(self.free.pages())
            .min(run.count);
        self.free.insert(GfnRun::new(run.start, kept));
        let rest = GfnRun::new(Gfn(run.start.0 + kept), run.count - kept);
        let moved = shown.map.change_run(rest, PageState::Used, PageState::Free);
        shown.runs.insert(GfnRun::new(rest.start, moved));
        // Pages that cannot be shown, by whatever fault in the map, are still this guest's.
        self.free
            .insert(GfnRun::new(Gfn(rest.start.0 + moved), rest.count - moved));
    }

    /// Brings what is noted of a page into line with the map.
    fn settle(&mut self, gfn: Gfn) {
        let Some(shown) = &mut self.shown else {
            return;
        };
        match (self.uses[gfn.index()], shown.map.state(gfn)) {
            (PageUse::Balloon, PageState::Free) => {
                shown.runs.insert(GfnRun::single(gfn));
                self.change(gfn, PageUse::Balloon, PageUse::Free);
            }
            (PageUse::Free, PageState::Taken | PageState::Moving)
                if shown.runs.remove(GfnRun::single(gfn)) =>
            {
                self.change(gfn, PageUse::Free, PageUse::Balloon);
            }
            _ => {}
        }
    }
}

/// Takes the parts of `runs` out of a set of free pages that are there; at most `most` pages.
fn take_parts(free: &mut FreeRuns, runs: &[GfnRun], most: u32) -> Vec<GfnRun> {
    let (mut taken, mut left) = (Vec::new(), most);
    for run in runs {
        let mut at = run.start.0;
        while left > 0
            && let Some(found) = free.next(at, left)
            && u64::from(found.start.0) < run.end()
        {
            let end = run.end() - u64::from(found.start.0);
            let count = found.count.min(u32::try_from(end).unwrap_or(u32::MAX));
            let part = GfnRun::new(found.start, count);
            // It was found there just now.
            free.remove(part);
            taken.push(part);
            left -= count;
            at = found.start.0 + count;
        }
    }
    taken
}

impl PageAllocator {
    /// At most `max` free pages from a page on, and the page at which to go on; `None` behind the last. With `fresh`, it
    /// lists only those that the host has not dropped. Any of them may be in use a moment later.
    pub(in super::super) fn list_free(
        &self,
        from: Gfn,
        max: u32,
        fresh: bool,
    ) -> (Vec<GfnRun>, Option<Gfn>) {
        let state = lock(&self.state);
        let (mut listed, mut left, mut at) = (Vec::new(), max, from.0);
        while left > 0 {
            let holding = state.free.next(at, left);
            let dropped = (!fresh).then(|| state.dropped.next(at, left)).flatten();
            let runs = holding.into_iter().chain(dropped);
            let Some(run) = runs.min_by_key(|run| run.start) else {
                return (listed, None);
            };
            at = run.start.0 + run.count;
            left -= run.count;
            listed.push(run);
        }
        (listed, Some(Gfn(at)))
    }

    /// Pins those of the pages that are free, but leaves the high watermark of free pages that hold memory.
    pub(in super::super) fn pin_free(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        let state = &mut *lock(&self.state);
        let spare = state.free.pages().saturating_sub(self.high_watermark());
        let mut pinned = take_parts(&mut state.free, runs, spare);
        pinned.extend(take_parts(&mut state.dropped, runs, u32::MAX));
        pinned.sort_unstable_by_key(|run| run.start);
        for run in &pinned {
            state.change_run(*run, PageUse::Free, PageUse::Balloon);
        }
        pinned
    }

    /// Notes that the host has dropped these free pages. One that is in use again by now is left out.
    pub(in super::super) fn note_dropped(&self, runs: &[GfnRun]) {
        let state = &mut *lock(&self.state);
        for run in take_parts(&mut state.free, runs, u32::MAX) {
            state.dropped.insert(run);
        }
    }

    /// Shows the free pages above the high watermark to the host. No page is shown or in the balloon before.
    pub(in super::super) fn show(&self, map: SharedMap) {
        let mut state = lock(&self.state);
        let all = GfnRun::new(Gfn(0), self.pages());
        // Left by a host that was moving them when it was lost: now it has emptied that balloon.
        for gfn in all
            .iter()
            .filter(|gfn| state.uses[gfn.index()] == PageUse::Balloon)
            .collect::<Vec<_>>()
        {
            state.change(gfn, PageUse::Balloon, PageUse::Free);
            state.free.insert(GfnRun::single(gfn));
        }
        let free = [
            std::mem::take(&mut state.free),
            std::mem::take(&mut state.dropped),
        ];
        state.shown = Some(Shown {
            map,
            runs: FreeRuns::default(),
            reserve: self.high_watermark(),
        });
        for run in free.iter().flat_map(FreeRuns::all) {
            state.put_free(run);
        }
    }

    /// Notes which pages the host has taken and given back since the last time. Returns how many it has, and how many
    /// more it may take.
    pub(in super::super) fn settle(&self) -> (u32, u32) {
        let pages = self.pages();
        let mut at = 0;
        while at < pages {
            let mut state = lock(&self.state);
            let end = at.saturating_add(SLICE).min(pages);
            (at..end).map(Gfn).for_each(|gfn| state.settle(gfn));
            self.tell_waiting(&state);
            at = end;
        }
        let state = lock(&self.state);
        let shown = state.shown.as_ref().map_or(0, |shown| shown.runs.pages());
        (state.usage.balloon, shown)
    }

    /// Shows the host nothing any more. Pages that it has are this guest's again, but for those that it is just taking;
    /// returns how many these are, and is to be called again then.
    pub(in super::super) fn hide(&self) -> u32 {
        let mut state = lock(&self.state);
        let Some(mut shown) = state.shown.take() else {
            return 0;
        };
        // From here on the host can take no page that it is not taking already.
        for run in std::mem::take(&mut shown.runs).all() {
            for gfn in run.iter() {
                if shown.map.change(gfn, PageState::Free, PageState::Used) {
                    state.free.insert(GfnRun::single(gfn));
                } else {
                    state.change(gfn, PageUse::Free, PageUse::Balloon);
                }
            }
        }
        let held = (0..self.pages()).map(Gfn);
        let held: Vec<Gfn> = held
            .filter(|gfn| state.uses[gfn.index()] == PageUse::Balloon)
            .collect();
        let mut moving = 0;
        for gfn in held {
            if !shown.map.take_back(gfn) {
                moving += 1;
                continue;
            }
            state.change(gfn, PageUse::Balloon, PageUse::Free);
            state.free.insert(GfnRun::single(gfn));
        }
        if moving > 0 {
            state.shown = Some(shown);
        }
        self.tell_waiting(&state);
        moving
    }
}
