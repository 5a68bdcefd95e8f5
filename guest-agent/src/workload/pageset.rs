//! Memory whose every page has a version, so that it can be verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memvisor_wire::PAGE_SIZE;

use super::content::Content;
use super::{Failure, Mismatch, Work};
use crate::kernel::{AnonRegion, Kernel};

/// Anonymous memory that is written in whole pages. The workloads ensure that a page belongs to one
/// thread at a time, so a page and its version need no lock.
#[derive(Debug)]
pub(super) struct PageSet {
    region: AnonRegion,
    versions: Box<[AtomicU32]>,
    content: Content,
}

impl PageSet {
    pub(super) fn map(kernel: &Arc<Kernel>, pages: u32, content: Content) -> Self {
        Self {
            region: kernel.map_anon(pages),
            versions: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            content,
        }
    }

    pub(super) fn pages(&self) -> u32 {
        self.region.pages()
    }

    /// Writes the next version of a page.
    pub(super) fn write(&self, page: u32) -> Result<Work, Failure> {
        let version = &self.versions[page as usize];
        let next = version.load(Ordering::Relaxed).wrapping_add(1);
        let mut bytes = [0; PAGE_SIZE];
        self.content
            .fill(u64::from(page), u64::from(page), next, &mut bytes);
        self.region
            .write(u64::from(page) * PAGE_SIZE as u64, &bytes)?;
        // After the bytes, so that a write that failed leaves the page verifiable. Relaxed: a page has one thread.
        version.store(next, Ordering::Relaxed);
        Ok(Work::written(PAGE_SIZE))
    }

    /// Reads a page and compares it with the content of its version.
    pub(super) fn verify(&self, page: u32) -> Result<Work, Failure> {
        let mut found = [0; PAGE_SIZE];
        self.region
            .read(u64::from(page) * PAGE_SIZE as u64, &mut found)?;
        let version = self.versions[page as usize].load(Ordering::Relaxed);
        let mut expected = [0; PAGE_SIZE];
        self.content
            .fill(u64::from(page), u64::from(page), version, &mut expected);
        match Mismatch::of(&expected, &found, 0) {
            None => Ok(Work::verified(PAGE_SIZE)),
            Some(mismatch) => Err(mismatch
                .on(page.into(), self.region.gfn_of(page), version)
                .into()),
        }
    }

    /// Verifies a page and writes its next version. It also writes after a mismatch, so that a wrong page
    /// is reported once only.
    pub(super) fn rewrite(&self, page: u32) -> Result<Work, Failure> {
        let verified = self.verify(page);
        // A page with wrong bytes is written all the same: then it is reported once, and not at each visit.
        if let Err(Failure::Kernel(_)) = verified {
            return verified;
        }
        let written = self.write(page)?;
        verified.map(|verified| verified + written)
    }
}

/// The pages of one of several threads: every `threads`-th page, from the number of the thread on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) thread: u32,
    pub(super) threads: u32,
}

impl Share {
    /// How many of the first `pages` pages this thread has.
    pub(super) const fn count(self, pages: u32) -> u32 {
        (pages + self.threads - 1 - self.thread) / self.threads
    }

    /// The `number`-th page of this thread, counted from 0.
    pub(super) const fn page(self, number: u32) -> u32 {
        number * self.threads + self.thread
    }
}

/// The pages of a set that one thread has. Their numbers count from 0.
#[derive(Debug)]
pub(super) struct OwnPages {
    pub(super) set: Arc<PageSet>,
    pub(super) share: Share,
}

impl OwnPages {
    pub(super) fn count(&self) -> u32 {
        self.share.count(self.set.pages())
    }

    pub(super) fn write(&self, number: u32) -> Result<Work, Failure> {
        self.set.write(self.share.page(number))
    }

    pub(super) fn verify(&self, number: u32) -> Result<Work, Failure> {
        self.set.verify(self.share.page(number))
    }

    pub(super) fn rewrite(&self, number: u32) -> Result<Work, Failure> {
        self.set.rewrite(self.share.page(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all_threads_are_every_page_once() {
        for (pages, threads) in [(10, 1), (10, 3), (2, 3), (64, 64), (65, 64)] {
            let mut all: Vec<u32> = (0..threads)
                .map(|thread| Share { thread, threads })
                .flat_map(|share| (0..share.count(pages)).map(move |n| share.page(n)))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..pages).collect::<Vec<_>>(), "{pages}/{threads}");
        }
    }
}
