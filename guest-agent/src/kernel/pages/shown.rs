//! Free pages that the host is told of: listed for it, or shown to it in a map that both sides share.
//!
//! While a map is shared, every free page above a reserve is FREE in it, and either side may take it: this allocator
//! by moving it to USED, the host without a word. So the list of shown pages can be out of date. A page that the host
//! has turns out to be gone when it is taken, or when [`settle`](PageAllocator::settle) looks. The reserve, as many
//! pages as the high watermark, is USED in the map: the host cannot take the last free pages of a guest.

use std::sync::Arc;

use memvisor_wire::balloon::{FreeMap, PageState};
use memvisor_wire::claims::Words;
use memvisor_wire::{Gfn, GfnRun, runs_of};

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
        self.free.take_one()
    }

    /// Free pages in one run.
    pub(super) fn take_free_run(&mut self, count: u32) -> Option<GfnRun> {
        let Some(shown) = &mut self.shown else {
            return self.free.take_run(count);
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

    /// Whether the host has dropped a free page at the guest's report.
    fn is_reported(&self, gfn: Gfn) -> bool {
        let reported = self.reported.as_ref();
        reported.is_some_and(|reported| reported[gfn.index()])
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

impl PageAllocator {
    /// Free pages from a page on, and the page at which to go on; `None` behind the last. It looks at no more than `max`
    /// free pages. With `fresh`, it lists only those that were not reported. Any of them may be in use a moment later.
    pub(in super::super) fn list_free(
        &self,
        from: Gfn,
        max: u32,
        fresh: bool,
    ) -> (Vec<GfnRun>, Option<Gfn>) {
        let state = lock(&self.state);
        let (mut listed, mut left, mut at) = (Vec::new(), max, from.0);
        while left > 0 {
            let Some(run) = state.free.next(at, left) else {
                return (listed, None);
            };
            at = run.start.0 + run.count;
            left -= run.count;
            let pages = run.iter().filter(|gfn| !fresh || !state.is_reported(*gfn));
            listed.extend(runs_of(pages));
        }
        (listed, Some(Gfn(at)))
    }

    /// Pins those of the pages that are free.
    pub(in super::super) fn pin_free(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        let mut state = lock(&self.state);
        let mut pinned = Vec::new();
        for run in runs {
            let inside = run.iter().filter(|gfn| gfn.0 < self.pages());
            let free = inside.filter(|gfn| state.uses[gfn.index()] == PageUse::Free);
            for run in runs_of(free.collect::<Vec<_>>()) {
                if state.free.remove(run) {
                    state.change_run(run, PageUse::Free, PageUse::Balloon);
                    pinned.push(run);
                }
            }
        }
        pinned
    }

    /// Notes that the host has dropped these free pages. One that is in use again by now is left out.
    pub(in super::super) fn note_reported(&self, runs: &[GfnRun]) {
        let mut state = lock(&self.state);
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            let is_free = state.uses[gfn.index()] == PageUse::Free;
            let pages = state.uses.len();
            let reported = state
                .reported
                .get_or_insert_with(|| vec![false; pages].into());
            reported[gfn.index()] = is_free;
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
        let free = std::mem::take(&mut state.free);
        state.shown = Some(Shown {
            map,
            runs: FreeRuns::default(),
            reserve: self.high_watermark(),
        });
        let mut at = 0;
        while let Some(run) = free.next(at, u32::MAX) {
            at = run.start.0 + run.count;
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
        let mut at = 0;
        while let Some(run) = shown.runs.next(at, u32::MAX) {
            at = run.start.0 + run.count;
            for gfn in run.iter() {
                if shown.map.change(gfn, PageState::Free, PageState::Used) {
                    state.free.insert(GfnRun::single(gfn));
                } else {
                    state.change(gfn, PageUse::Free, PageUse::Balloon);
                }
            }
        }
        shown.runs = FreeRuns::default();
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
