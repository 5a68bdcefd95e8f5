//! `stream`: rewrites memory from the first page to the last, again and again. This is the worst case
//! for any reclaim, because the page used longest ago is the next one needed. `idle` fills memory once
//! and does nothing more.

use std::sync::Arc;

use super::pageset::{PageSet, Share};
use super::{Failure, Work, Worker};

/// One thread that goes through its share of memory.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) set: Arc<PageSet>,
    pub(super) share: Share,
    pub(super) next: u32,
    /// Whether the thread is idle once memory is filled.
    pub(super) idle: bool,
}

impl Worker for Stream {
    fn to_load(&self) -> u32 {
        self.share.count(self.set.pages())
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.write(self.share.page(number))
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let count = self.share.count(self.set.pages());
        if self.idle || count == 0 {
            return Ok(None);
        }
        let page = self.share.page(self.next % count);
        self.next = (self.next + 1) % count;
        self.set.rewrite(page).map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.to_load()
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.verify(self.share.page(number))
    }
}
