//! The map of free pages of a replay, beside that of the recording.
//!
//! The other side chooses pages of its own, so pages are not compared one by one. A part is played by how many pages it
//! moves, on the recorded pages where these are there to be moved and on others where not, and the other side is held to
//! how many pages the host has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{FreeMap, PageState};

use crate::laboratory::map::{Moved, Seen, WordRun};
use crate::sys::SharedWords;
use crate::units::Gfn;

/// The pause between two looks at the map.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

pub(super) type Map = FreeMap<Arc<SharedWords>>;

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Shared {
    recorded: Seen,
    live: Option<Map>,
}

/// How many pages the host moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ByHost {
    pub(super) taken: u32,
    pub(super) given: u32,
}

impl Shared {
    /// A session begins, with a map or without one.
    pub(super) fn begin(&mut self, live: Option<Map>) {
        self.recorded.begin();
        self.live = live;
    }

    pub(super) const fn live(&self) -> Option<&Map> {
        self.live.as_ref()
    }

    /// Takes over what was recorded.
    pub(super) fn take(&mut self, runs: &[WordRun]) -> Vec<Moved> {
        self.recorded.take(runs)
    }

    /// Moves pages as the recorded guest did.
    pub(super) fn play_guest(&self, moves: &[Moved]) {
        let Some(live) = &self.live else {
            return;
        };
        for moved in moves {
            let gfns = moved.run.iter().filter(|gfn| gfn.0 < live.pages());
            for gfn in gfns {
                match (moved.from, moved.to) {
                    (_, PageState::Used) => use_page(live, gfn, moved.from),
                    // Whatever the host has done with it since, the guest freed it first.
                    (PageState::Used, _) => {
                        let _ = live.change(gfn, PageState::Used, PageState::Free);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Waits until the host has as many pages as in the recording. Otherwise how many it has, and how many it had.
    pub(super) fn await_host(&self, within: Duration) -> Result<(), (u64, u64)> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let was = self.recorded.count(PageState::Taken);
        let deadline = Instant::now() + within;
        loop {
            let taken = (0..live.pages()).filter(|gfn| live.state(Gfn(*gfn)) == PageState::Taken);
            let is = taken.count() as u64;
            if is == was {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err((is, was));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Gives up to `most` pages back as the host; how many.
    pub(super) fn give(&self, most: u32) -> u32 {
        self.moved(most, PageState::Taken, PageState::Free)
    }

    /// Takes up to `most` free pages as the host; how many.
    pub(super) fn take_free(&self, most: u32) -> u32 {
        let moving = self.moved(most, PageState::Free, PageState::Moving);
        self.moved(moving, PageState::Moving, PageState::Taken)
    }

    fn moved(&self, most: u32, from: PageState, to: PageState) -> u32 {
        let Some(live) = &self.live else {
            return 0;
        };
        let mut left = most;
        for gfn in (0..live.pages()).map(Gfn) {
            if left == 0 {
                break;
            }
            left -= u32::from(live.change(gfn, from, to));
        }
        most - left
    }
}

/// The guest uses a page: the recorded one, or another one that is free.
fn use_page(live: &Map, gfn: Gfn, from: PageState) {
    let has = match from {
        // It left, or the host gave the page back first.
        PageState::Taken => live.take_back(gfn),
        _ => live.change(gfn, PageState::Free, PageState::Used),
    };
    if !has && let Some(free) = live.next_free(Gfn(0), 1) {
        let _ = live.change(free.start, PageState::Free, PageState::Used);
    }
}

/// How many pages the host has moved.
pub(super) fn by_host(moves: &[Moved]) -> ByHost {
    let mut sums = ByHost::default();
    for moved in moves {
        match (moved.from, moved.to) {
            (from, PageState::Taken) if from != PageState::Taken => sums.taken += moved.run.count,
            (PageState::Taken, PageState::Free) => sums.given += moved.run.count,
            _ => {}
        }
    }
    sums
}
