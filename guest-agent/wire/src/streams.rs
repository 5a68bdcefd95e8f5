//! Streams of faults: which pages a guest is going to touch next.
//!
//! A guest that touches page after page is going to touch the next ones too, so whoever serves its
//! faults should bring them with the page that is asked for. How many pages to bring depends on how
//! long the stream has been: at each fault one more than twice as many as at the last. A fault that
//! continues no stream brings no further page.
//!
//! The daemon uses this for the faults that it serves, and the signal handler for those that a guest
//! thread serves itself. In the handler several threads may use it at once. A stream is therefore one word,
//! and one thread may overwrite what another has noted. A lost note costs only a fault for a page that
//! might have come ahead.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Gfn;

/// Streams that are followed at once: a few threads each walk memory of their own.
const STREAMS: usize = 4;

/// The most pages that the daemon gives ahead; 64 KiB with the page of the fault. Pages that the guest then does not
/// touch are found to be zero and taken back. A guest looks at no more pages than these to see which ones came.
pub const MAX_AHEAD: u32 = 15;

/// The latest streams of faults.
#[derive(Debug)]
pub struct Streams {
    /// For each stream: in the upper half the page that will be touched next, in the lower half how many pages were
    /// worth giving ahead last time.
    streams: [AtomicU64; STREAMS],
    oldest: AtomicU32,
    most: u32,
}

/// A fault as [`Streams`] knows it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touched {
    at: usize,
    /// The page that was touched.
    pub gfn: Gfn,
    /// How many pages behind `gfn` are worth giving with it.
    pub ahead: u32,
}

impl Touched {
    /// The page to give next after `given` pages behind the touched one; `None` when it is not worth giving.
    #[must_use]
    pub fn behind(&self, given: u32) -> Option<Gfn> {
        let next = self.gfn.checked_add(given.saturating_add(1));
        next.filter(|_| given < self.ahead)
    }
}

impl Streams {
    /// No stream yet; at most `most` pages are worth giving ahead.
    #[must_use]
    pub const fn new(most: u32) -> Self {
        Self {
            // No guest has a page with this number, so no fault continues an unused stream.
            streams: [const { AtomicU64::new(u64::MAX) }; STREAMS],
            oldest: AtomicU32::new(0),
            most,
        }
    }

    /// Notes a fault on `gfn`. Async-signal-safe.
    #[must_use]
    pub fn touched(&self, gfn: Gfn) -> Touched {
        let known = self.streams.iter().enumerate().find_map(|(at, stream)| {
            // Relaxed: a stream is one word, and no other memory depends on it.
            let word = stream.load(Ordering::Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            let ahead = (word as u32).saturating_mul(2).saturating_add(1);
            (word >> 32 == u64::from(gfn.0)).then(|| (at, ahead.min(self.most)))
        });
        let oldest = || self.oldest.fetch_add(1, Ordering::Relaxed) as usize % STREAMS;
        let (at, ahead) = known.unwrap_or_else(|| (oldest(), 0));
        let touched = Touched { at, gfn, ahead };
        // Noted even if nothing is given: the stream goes on at the next page, however it is served.
        self.gave(touched, 0);
        touched
    }

    /// Notes how many pages behind the touched one were given with it. Async-signal-safe.
    pub fn gave(&self, touched: Touched, count: u32) {
        let next = touched.gfn.0.saturating_add(1).saturating_add(count);
        let word = u64::from(next) << 32 | u64::from(touched.ahead);
        // Pages that came ahead cause no fault, so the stream goes on behind them.
        self.streams[touched.at].store(word, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches page after page from `gfn` on, as a guest that always gets the pages worth giving.
    fn stream(streams: &Streams, gfn: &mut u32, faults: usize) -> Vec<u32> {
        let fault = |_| {
            let touched = streams.touched(Gfn(*gfn));
            streams.gave(touched, touched.ahead);
            *gfn += 1 + touched.ahead;
            touched.ahead
        };
        (0..faults).map(fault).collect()
    }

    #[test]
    fn stream_grows_to_the_most_and_scattered_touches_get_one_page() {
        let streams = Streams::new(MAX_AHEAD);
        assert_eq!(stream(&streams, &mut 100, 7), [0, 1, 3, 7, 15, 15, 15]);
        for gfn in [5000, 70, 9000, 301, 0] {
            assert_eq!(streams.touched(Gfn(gfn)).ahead, 0);
        }
    }

    #[test]
    fn stream_goes_on_behind_what_was_given() {
        let streams = Streams::new(MAX_AHEAD);
        assert_eq!(stream(&streams, &mut 100, 4), [0, 1, 3, 7]);
        let touched = streams.touched(Gfn(115));
        assert_eq!(touched.ahead, 15);
        streams.gave(touched, 2);
        assert_eq!(streams.touched(Gfn(118)).ahead, 15);
    }

    #[test]
    fn streams_of_several_threads_are_told_apart() {
        let streams = Streams::new(MAX_AHEAD);
        let (mut one, mut other) = (100, 9000);
        for _ in 0..6 {
            stream(&streams, &mut one, 1);
            stream(&streams, &mut other, 1);
        }
        assert_eq!(stream(&streams, &mut one, 1), [15]);
        assert_eq!(stream(&streams, &mut other, 1), [15]);
    }

    #[test]
    fn stream_at_the_last_page_number_ends_there() {
        let streams = Streams::new(7);
        let _ = streams.touched(Gfn(u32::MAX - 1));
        assert_eq!(streams.touched(Gfn(u32::MAX)).ahead, 1);
    }

    #[test]
    fn threads_that_meet_never_get_more_than_the_most() {
        let streams = Streams::new(7);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let streams = &streams;
                scope.spawn(move || {
                    for gfn in (0..1000).map(|gfn| gfn / 4 + start) {
                        let touched = streams.touched(Gfn(gfn));
                        assert!(touched.ahead <= 7);
                        streams.gave(touched, touched.ahead / 2);
                    }
                });
            }
        });
    }
}
