//! A map of free pages, for an agent that is a program of its own.
//!
//! A kernel that shares a map shows its own free pages in it, and takes them out again whenever it allocates. A program
//! beside the kernel cannot: the kernel knows nothing of the map, and would use a page that is FREE there. So the program
//! pins pages before it shows them, and shows no more than its host lacks. What the host gives back, and what it has
//! left alone for a while, is unpinned.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{FreeMap, PageState, map_words};
use memvisor_wire::sys::SharedTable;
use memvisor_wire::{Gfn, GfnRun, RunsExt, runs_of};

use crate::balloon::{PageSource, Settled};
use crate::shim::map_shared_words;

/// How long a page is shown that the host does not take: two polls, if they come each second.
const SHOWN_FOR: Duration = Duration::from_secs(2);
/// How long an agent that stops using its map waits for pages that the host is just taking.
const HIDE_PATIENCE: Duration = Duration::from_secs(2);

/// The map, and the pinned pages that are shown in it.
#[derive(Debug)]
pub struct ShownPages {
    map: FreeMap<SharedTable>,
    /// Since when each is shown; `None` if the host had it at the latest look.
    pages: BTreeMap<u32, Option<Instant>>,
}

impl ShownPages {
    /// The map that came with `STARTED`, of a guest of so many pages. None is shown.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn new(map: &OwnedFd, pages: u32) -> io::Result<Self> {
        Ok(Self {
            map: FreeMap::new(map_shared_words(map, map_words(pages))?, pages),
            pages: BTreeMap::new(),
        })
    }

    /// Shows pages that have been pinned. Returns those that the map does not let be shown.
    #[must_use = "pages that are forgotten stay pinned for good"]
    fn show(&mut self, pinned: &[GfnRun]) -> Vec<GfnRun> {
        let now = Instant::now();
        let pages = pinned.iter().flat_map(|run| run.iter());
        let failed = pages.filter(|gfn| {
            let shown = self.map.change(*gfn, PageState::Used, PageState::Free);
            if shown {
                self.pages.insert(gfn.0, Some(now));
            }
            !shown
        });
        runs_of(failed.collect::<Vec<_>>())
    }

    /// Pins up to `max` more pages of `source` and shows them; how many.
    pub fn more(&mut self, max: u32, source: &dyn PageSource) -> u32 {
        let pinned = source.allocate(max, true);
        let failed = self.show(&pinned);
        if !failed.is_empty() {
            source.release(&failed);
        }
        (pinned.pages() - failed.pages()) as u32
    }

    /// Looks what the host has done. Returns that, and pages that are no longer shown: they are to be unpinned.
    #[must_use = "pages that are forgotten stay pinned for good"]
    pub fn settle(&mut self) -> (Settled, Vec<GfnRun>) {
        let now = Instant::now();
        let (mut settled, mut back) = (Settled::default(), Vec::new());
        let map = &self.map;
        self.pages.retain(|page, since| {
            let gfn = Gfn(*page);
            match (map.state(gfn), &since) {
                (PageState::Taken | PageState::Moving, _) => {
                    *since = None;
                    settled.taken += 1;
                    true
                }
                (PageState::Free, Some(shown)) if now.duration_since(*shown) < SHOWN_FOR => {
                    settled.shown += 1;
                    true
                }
                // The host may be faster, and want it after all.
                (PageState::Free, _) if !map.change(gfn, PageState::Free, PageState::Used) => true,
                _ => {
                    back.push(gfn);
                    false
                }
            }
        });
        (settled, runs_of(back))
    }

    /// Shows none any more, and takes back those that the host has: all are to be unpinned. Some stay if the host stands
    /// still while it takes them.
    #[must_use = "pages that are forgotten stay pinned for good"]
    pub fn hide(self) -> Vec<GfnRun> {
        let until = Instant::now() + HIDE_PATIENCE;
        let gfns: Vec<Gfn> = self.pages.into_keys().map(Gfn).collect();
        // First all that the host could still take.
        for gfn in &gfns {
            // Looked at again below.
            let _ = self.map.change(*gfn, PageState::Free, PageState::Used);
        }
        let is_back = |gfn: &Gfn| {
            loop {
                let used = self.map.state(*gfn) == PageState::Used || self.map.take_back(*gfn);
                if used || Instant::now() > until {
                    return used;
                }
                thread::yield_now();
            }
        };
        runs_of(gfns.into_iter().filter(is_back).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    const PAGES: u32 = 64;
    const PINNED: GfnRun = GfnRun::new(Gfn(10), 8);

    /// What the agent shows, and the host's map of it.
    fn shown() -> (ShownPages, FreeMap<SharedTable>) {
        let file = memfd_create(c"map", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(file.as_fd(), 4096).expect("it grows");
        let words = map_shared_words(&file, map_words(PAGES)).expect("a map");
        let mut ours = ShownPages::new(&file, PAGES).expect("a map");
        assert_eq!(ours.show(&[PINNED]), []);
        (ours, FreeMap::new(words, PAGES))
    }

    fn take(host: &FreeMap<SharedTable>, run: GfnRun) {
        assert_eq!(
            host.change_run(run, PageState::Free, PageState::Moving),
            run.count
        );
        assert_eq!(
            host.change_run(run, PageState::Moving, PageState::Taken),
            run.count
        );
    }

    #[test]
    fn pages_that_the_host_gives_back_are_no_longer_shown() {
        let (mut ours, host) = shown();
        take(&host, PINNED);
        let settled = |taken, shown| Settled { taken, shown };
        assert_eq!(ours.settle(), (settled(8, 0), vec![]));
        let back = GfnRun::new(Gfn(12), 3);
        assert_eq!(host.change_run(back, PageState::Taken, PageState::Free), 3);
        assert_eq!(ours.settle(), (settled(5, 0), vec![back]));
        assert_eq!(host.state(Gfn(12)), PageState::Used);
    }

    #[test]
    fn pages_that_the_host_does_not_want_are_shown_for_a_while() {
        let (mut ours, host) = shown();
        take(&host, GfnRun::single(Gfn(10)));
        assert_eq!(ours.settle().0, Settled { taken: 1, shown: 7 });
        for since in ours.pages.values_mut().flatten() {
            *since -= SHOWN_FOR;
        }
        let (settled, back) = ours.settle();
        assert_eq!(settled, Settled { taken: 1, shown: 0 });
        assert_eq!(back, [GfnRun::new(Gfn(11), 7)]);
    }

    #[test]
    fn nothing_is_shown_or_taken_afterwards() {
        let (ours, host) = shown();
        take(&host, GfnRun::new(Gfn(10), 4));
        assert_eq!(ours.hide(), [PINNED]);
        assert_eq!(host.next_free(Gfn(0), PAGES), None);
        assert!(PINNED.iter().all(|gfn| host.state(gfn) == PageState::Used));
    }
}
