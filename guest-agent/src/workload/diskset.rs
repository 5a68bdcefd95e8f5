//! Files on a disk of the guest whose every byte can be verified.
//!
//! A file consists of records, four to a page, each with a version of its own, so that pages are also
//! written in part. A page that is not cached must then be read before it is written: a page cache that
//! forgets this, or writes back an old page, loses a record. Versions go on counting when a file is
//! deleted: if a page of the old file shows up in the new one, its bytes are wrong.
//!
//! A file has a lock, which readers share. It is held over the disk, as a real file's is.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use memvisor_wire::PAGE_SIZE;

use super::content::Content;
use super::pageset::Share;
use super::{Failure, Mismatch, Work};
use crate::kernel::{DiskFile, Kernel, KernelError, Volume};

/// Bytes of a record.
const RECORD: usize = 1024;

/// Records of a page.
const A_PAGE: u32 = (PAGE_SIZE / RECORD) as u32;

/// A file, and how many records it has.
#[derive(Debug)]
struct Entry {
    file: DiskFile,
    records: u32,
}

/// A number of files of one size on a disk of their own.
#[derive(Debug)]
pub(super) struct DiskSet {
    volume: Volume,
    files: Box<[RwLock<Entry>]>,
    /// For each record of each file, how often it was written.
    versions: Box<[AtomicU32]>,
    file_pages: u32,
    content: Content,
}

impl DiskSet {
    /// As many files of `file_pages` pages as `pages` pages hold; if that is none, one of `pages` pages. A page of the
    /// disk takes `latency` at least.
    pub(super) fn create(
        kernel: &Arc<Kernel>,
        pages: u32,
        file_pages: u32,
        latency: Duration,
        content: Content,
    ) -> Result<Self, KernelError> {
        let file_pages = file_pages.min(pages);
        let count = pages / file_pages;
        let pages = count * file_pages;
        let volume = kernel.volume(pages, latency)?;
        let entry = |_| {
            let file = volume.create(file_pages);
            RwLock::new(Entry { file, records: 0 })
        };
        let records = pages as usize * A_PAGE as usize;
        Ok(Self {
            files: (0..count).map(entry).collect(),
            versions: (0..records).map(|_| AtomicU32::new(0)).collect(),
            volume,
            file_pages,
            content,
        })
    }

    /// How many files there are.
    pub(super) fn count(&self) -> u32 {
        self.files.len() as u32
    }

    /// The pages of all files together when they are full.
    pub(super) fn pages(&self) -> u32 {
        self.count() * self.file_pages
    }

    /// Records of a full file.
    pub(super) const fn records(&self) -> u32 {
        self.file_pages * A_PAGE
    }

    /// How many pages the files of one thread have.
    pub(super) fn pages_of(&self, share: Share) -> u32 {
        share.count(self.count()) * self.file_pages
    }

    /// The file and the page in it that is the `number`-th of a thread.
    const fn place(&self, share: Share, number: u32) -> (u32, u32) {
        (
            share.page(number / self.file_pages),
            number % self.file_pages,
        )
    }

    fn shared(&self, file: u32) -> RwLockReadGuard<'_, Entry> {
        let entry = self.files[file as usize].read();
        entry.unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self, file: u32) -> RwLockWriteGuard<'_, Entry> {
        let entry = self.files[file as usize].write();
        entry.unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, file: u32, record: u32) -> &AtomicU32 {
        &self.versions[(file * self.records() + record) as usize]
    }

    /// Fills the `number`-th page of a thread, unless another thread has done so.
    pub(super) fn load(&self, share: Share, number: u32) -> Result<Work, Failure> {
        let (file, page) = self.place(share, number);
        let mut entry = self.exclusive(file);
        if entry.records >= (page + 1) * A_PAGE {
            return Ok(Work::default());
        }
        // Another thread may have deleted the file, and then an earlier page is the next one.
        let next = entry.records;
        self.write_to(&mut entry, file, next..(next / A_PAGE + 1) * A_PAGE)
    }

    /// Reads these records and compares them; of a file that has too few, the last that it has.
    pub(super) fn read(&self, file: u32, records: Range<u32>) -> Result<Work, Failure> {
        let entry = self.shared(file);
        let end = records.end.min(entry.records);
        let start = end.saturating_sub(records.len() as u32);
        let mut done = Work::default();
        for part in pages_of(start..end) {
            done = done + self.compare(&entry, file, part)?;
        }
        Ok(done)
    }

    /// Writes these records. A file that has too few grows, from its end on.
    pub(super) fn write(&self, file: u32, records: Range<u32>) -> Result<Work, Failure> {
        let mut entry = self.exclusive(file);
        let start = records.start.min(entry.records);
        let end = (start + records.len() as u32).min(self.records());
        self.write_to(&mut entry, file, start..end)
    }

    /// Deletes the file and creates it anew, with these records.
    pub(super) fn replace(&self, file: u32, count: u32) -> Result<Work, Failure> {
        let mut entry = self.exclusive(file);
        *entry = Entry {
            file: self.volume.create(self.file_pages),
            records: 0,
        };
        self.write_to(&mut entry, file, 0..count.min(self.records()))
    }

    /// Writes back what is dirty of a file.
    pub(super) fn flush(&self, file: u32) -> Result<(), Failure> {
        Ok(self.shared(file).file.flush()?)
    }

    /// Verifies the `number`-th page of a thread: its records, and that the rest is zero.
    pub(super) fn verify(&self, share: Share, number: u32) -> Result<Work, Failure> {
        let (file, page) = self.place(share, number);
        let entry = self.shared(file);
        self.compare(&entry, file, page * A_PAGE..(page + 1) * A_PAGE)
    }

    /// Writes records page by page. If a page fails, those before it are written.
    fn write_to(&self, entry: &mut Entry, file: u32, records: Range<u32>) -> Result<Work, Failure> {
        let mut done = Work::default();
        for part in pages_of(records) {
            let mut page = [0; PAGE_SIZE];
            let bytes = &mut page[..part.len() * RECORD];
            let next = |record| {
                self.version(file, record)
                    .load(Ordering::Relaxed)
                    .wrapping_add(1)
            };
            self.fill(file, part.clone(), bytes, next);
            entry.file.write(offset(part.start), bytes)?;
            // After the bytes, so that a write that failed leaves the page verifiable. Relaxed, under the file's lock.
            for record in part.clone() {
                self.version(file, record)
                    .store(next(record), Ordering::Relaxed);
            }
            entry.records = entry.records.max(part.end);
            done = done + Work::written(part.len() * RECORD);
        }
        Ok(done)
    }

    /// Reads and compares records of one page.
    fn compare(&self, entry: &Entry, file: u32, part: Range<u32>) -> Result<Work, Failure> {
        let (mut found, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let len = part.len() * RECORD;
        let (found, expected) = (&mut found[..len], &mut expected[..len]);
        entry.file.read(offset(part.start), found)?;
        let version = |record| match record < entry.records {
            true => self.version(file, record).load(Ordering::Relaxed),
            false => 0,
        };
        self.fill(file, part.clone(), expected, version);
        let at = (part.start % A_PAGE) as usize * RECORD;
        match Mismatch::of(expected, found, at) {
            None => Ok(Work::verified(len)),
            Some(mismatch) => {
                let page = part.start / A_PAGE;
                let wrong = page * A_PAGE + mismatch.offset / RECORD as u32;
                let place = u64::from(file * self.file_pages + page);
                let gfn = entry.file.gfn_of(page);
                Err(mismatch.on(place, gfn, version(wrong)).into())
            }
        }
    }

    /// The bytes of records of one page, each in the version that the function says.
    fn fill(&self, file: u32, records: Range<u32>, bytes: &mut [u8], version: impl Fn(u32) -> u32) {
        for (record, bytes) in records.zip(bytes.chunks_exact_mut(RECORD)) {
            let item = u64::from(file * self.records() + record);
            let page = item / u64::from(A_PAGE);
            self.content.fill(page, item, version(record), bytes);
        }
    }
}

/// The byte of the file at which a record begins.
fn offset(record: u32) -> u64 {
    u64::from(record) * RECORD as u64
}

/// Cuts records at the page boundaries.
fn pages_of(records: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let mut next = records.start;
    std::iter::from_fn(move || {
        let part = next..records.end.min((next / A_PAGE + 1) * A_PAGE);
        next = part.end;
        (!part.is_empty()).then_some(part)
    })
}
