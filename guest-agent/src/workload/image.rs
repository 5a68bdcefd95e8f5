//! `image`: copies a file into memory, as a boot does, then re-reads that slowly. All guests with
//! the same image begin with equal memory.

use std::sync::Arc;

use super::pageset::Share;
use super::truth::Truth;
use super::{Failure, Work, Worker};
use crate::kernel::AnonRegion;
use crate::protocol::PAGE_SIZE;

/// The thread that boots.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) truth: Arc<Truth>,
    pub(super) region: Arc<AnonRegion>,
    pub(super) share: Share,
    pub(super) next: u32,
    /// Pages that have been copied: a guest can be told to end while it boots.
    pub(super) loaded: u32,
}

impl Worker for Image {
    fn to_load(&self) -> u32 {
        self.share.count(self.truth.pages())
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        let page = self.share.page(number);
        let mut bytes = [0; PAGE_SIZE];
        self.truth.read(page, &mut bytes)?;
        self.region
            .write(u64::from(page) * PAGE_SIZE as u64, &bytes)?;
        self.loaded = number + 1;
        Ok(Work::written(PAGE_SIZE))
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let count = self.to_load();
        if count == 0 {
            return Ok(None);
        }
        let number = self.next % count;
        self.next = (number + 1) % count;
        self.verify(number).map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.loaded
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        let page = self.share.page(number);
        let mut found = [0; PAGE_SIZE];
        self.region
            .read(u64::from(page) * PAGE_SIZE as u64, &mut found)?;
        self.truth.judge(page, &found, || self.region.gfn_of(page))
    }
}
