//! `churn`: allocates memory, fills it, verifies it and frees it. This keeps the free list moving and
//! makes pages change owners all the time.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::content::{Content, Mix, hash};
use super::kind::{CONTENT, Kind, PAUSE, RATE, SIZE, THREADS};
use super::pageset::PageSet;
use super::{Failure, Work, Worker};
use crate::kernel::Kernel;

pub(super) const KIND: Kind = Kind {
    usage: "churn",
    does: "allocates, fills, verifies and frees",
    parameters: &[SIZE, THREADS, RATE, PAUSE, CONTENT],
    build: |builder| {
        Ok(builder.each(|share, random| Churner {
            kernel: Arc::clone(builder.kernel),
            pages: share.count(builder.pages),
            content: builder.spec.content,
            domain: hash(builder.domain, share.thread.into()),
            random,
            round: 0,
            region: None,
        }))
    },
    ..Kind::PLAIN
};

/// One thread with at most one region at a time.
#[derive(Debug)]
struct Churner {
    kernel: Arc<Kernel>,
    /// The size of the largest region. Each region has a random size from half of this up to this.
    pages: u32,
    content: Mix,
    domain: u64,
    random: StdRng,
    round: u64,
    region: Option<Region>,
}

/// The memory of one round, and how far the round is.
#[derive(Debug)]
struct Region {
    set: PageSet,
    filled: u32,
    verified: u32,
}

impl Churner {
    fn map(&mut self) -> Region {
        self.round += 1;
        let pages = self
            .random
            .random_range(self.pages.div_ceil(2)..=self.pages);
        let content = Content::new(self.content, hash(self.domain, self.round));
        Region {
            set: PageSet::map(&self.kernel, pages, content),
            filled: 0,
            verified: 0,
        }
    }
}

impl Worker for Churner {
    fn step(&mut self) -> Result<Option<Work>, Failure> {
        if self.pages == 0 {
            return Ok(None);
        }
        let mut region = match self.region.take() {
            Some(region) => region,
            None => self.map(),
        };
        let done = if region.filled < region.set.pages() {
            region
                .set
                .write(region.filled)
                .inspect(|_| region.filled += 1)
        } else {
            let done = region.set.verify(region.verified);
            // A wrong page counts as verified, or it would be reported again and again.
            region.verified += u32::from(!matches!(done, Err(Failure::Kernel(_))));
            done
        };
        // Otherwise it is dropped here, which frees it.
        if region.verified < region.set.pages() {
            self.region = Some(region);
        }
        done.map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.region.as_ref().map_or(0, |region| region.filled)
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        match &self.region {
            Some(region) => region.set.verify(number),
            None => Ok(Work::default()),
        }
    }
}
