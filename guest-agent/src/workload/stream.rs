//! `stream`: rewrites memory from the first page to the last, again and again. This is the worst case
//! for any reclaim, because the page used longest ago is the next one needed.

use super::kind::{CONTENT, Kind, PAUSE, RATE, SIZE, THREADS};
use super::pageset::OwnPages;
use super::{Failure, Work, Worker};

pub(super) const KIND: Kind = Kind {
    usage: "stream",
    does: "rewrites memory from the first page to the last, again and again",
    parameters: &[SIZE, THREADS, RATE, PAUSE, CONTENT],
    build: |builder| Ok(builder.each_with_pages(|pages, _| Writer { pages, next: 0 })),
    ..Kind::PLAIN
};

/// One thread that goes through its pages.
#[derive(Debug)]
struct Writer {
    pages: OwnPages,
    next: u32,
}

impl Worker for Writer {
    fn pages(&self) -> Option<&OwnPages> {
        Some(&self.pages)
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let count = self.pages.count();
        if count == 0 {
            return Ok(None);
        }
        let number = self.next;
        self.next = (number + 1) % count;
        self.pages.rewrite(number).map(Some)
    }
}
