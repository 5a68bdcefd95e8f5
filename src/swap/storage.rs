//! What is below a swap file: reads and writes of pages, and a length.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use crate::sys::DirectFile;
use crate::units::{Bytes, PAGE_SIZE, PageBuf};

/// Reads and writes of whole pages at byte offsets that are multiples of the page size, from any
/// number of threads. The real one is a [`DirectFile`].
pub trait Storage: fmt::Debug + Send + Sync {
    /// Writes pages one after the other. Returns the bytes written, which may be fewer than all.
    ///
    /// # Errors
    /// As `pwritev(2)`.
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize>;

    /// Reads pages one after the other. Returns the bytes read, which may be fewer than all.
    ///
    /// # Errors
    /// As `preadv(2)`.
    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize>;

    /// The same storage for a process that may only read it. It reads as this process does.
    ///
    /// # Errors
    /// As `openat(2)`.
    fn read_only(&self) -> io::Result<OwnedFd>;

    /// How much may still be written where this storage is.
    ///
    /// # Errors
    /// As `fstatvfs(3)`.
    fn available(&self) -> io::Result<Bytes>;

    /// Makes the storage longer, from `from` bytes, its present length, to `to` bytes, and reserves the space.
    /// After an error the storage is as it was.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    fn extend(&self, from: Bytes, to: Bytes) -> io::Result<()>;

    /// Cuts the storage to `len` bytes and gives the space behind them back.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn truncate(&self, len: Bytes) -> io::Result<()>;
}

impl Storage for DirectFile {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        self.write_pages(pages, offset)
    }

    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        self.read_pages(pages, offset)
    }

    fn read_only(&self) -> io::Result<OwnedFd> {
        self.read_only()
    }

    fn available(&self) -> io::Result<Bytes> {
        self.available()
    }

    fn extend(&self, from: Bytes, to: Bytes) -> io::Result<()> {
        self.extend(from, to)
    }

    fn truncate(&self, len: Bytes) -> io::Result<()> {
        self.truncate(len)
    }
}

/// Writes all pages.
///
/// A short write goes on from the last whole page, because direct I/O refuses offsets that are not aligned.
/// A write that wrote no whole page is tried once more, because the next call returns the error that stopped it.
pub(super) fn write_whole(
    storage: &dyn Storage,
    mut pages: &[PageBuf],
    mut offset: u64,
) -> io::Result<()> {
    let mut stuck = false;
    while !pages.is_empty() {
        let written = match storage.write_at(pages, offset) {
            // A page that was written in part is written again, because direct I/O takes whole pages only.
            Ok(bytes) => bytes / PAGE_SIZE,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // Once more and not for ever, where a call does nothing and names no error.
        if written == 0 && stuck {
            return Err(io::ErrorKind::WriteZero.into());
        }
        stuck = written == 0;
        pages = &pages[written..];
        offset += (written * PAGE_SIZE) as u64;
    }
    Ok(())
}

/// Reads all pages. A short read goes on from the last whole page. A read that read no whole page is tried
/// once more; if it does so again, that is the end of the file.
pub(super) fn read_whole(
    storage: &dyn Storage,
    mut pages: &mut [PageBuf],
    mut offset: u64,
) -> io::Result<()> {
    let mut stuck = false;
    while !pages.is_empty() {
        let read = match storage.read_at(pages, offset) {
            Ok(bytes) => bytes / PAGE_SIZE,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 && stuck {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stuck = read == 0;
        pages = &mut pages[read..];
        offset += (read * PAGE_SIZE) as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nix::errno::Errno;

    use super::*;
    use crate::swap::faulty::{Fault, FaultyStorage};

    fn faulty(faults: impl IntoIterator<Item = (usize, Fault)>) -> Arc<FaultyStorage> {
        Arc::new(FaultyStorage::new(faults))
    }

    fn pages() -> Vec<PageBuf> {
        (1..=5).map(|byte| PageBuf([byte; PAGE_SIZE])).collect()
    }

    #[test]
    fn write_whole_short_writes_go_on_from_a_whole_page() {
        let faults = [
            (0, Fault::Short(2 * PAGE_SIZE + 512)),
            (1, Fault::Short(100)),
        ];
        let storage = faulty(faults);
        write_whole(&storage, &pages(), 8192).unwrap();
        for (at, page) in (2..).zip(pages()) {
            assert!(storage.page(at) == page, "page {at}");
        }
        assert_eq!(storage.calls(), 3);
    }

    #[test]
    fn write_whole_interrupted_is_tried_again() {
        let storage = faulty([(0, Fault::Fail(Errno::EINTR))]);
        write_whole(&storage, &pages(), 0).unwrap();
        assert!(storage.page(4) == pages()[4]);
    }

    #[test]
    fn write_whole_that_makes_no_progress_ends() {
        let storage = faulty([(0, Fault::Short(0)), (1, Fault::Short(0))]);
        let error = write_whole(&storage, &pages(), 0).expect_err("stuck");
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn write_whole_short_then_refused_has_the_refusal() {
        let faults = [
            (0, Fault::Short(PAGE_SIZE)),
            (1, Fault::Fail(Errno::ENOSPC)),
        ];
        let storage = faulty(faults);
        let error = write_whole(&storage, &pages(), 0).expect_err("the disk is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn read_whole_short_reads_go_on_from_a_whole_page() {
        let storage = faulty([(1, Fault::Short(2 * PAGE_SIZE + 512)), (2, Fault::Short(9))]);
        write_whole(&storage, &pages(), 8192).unwrap();
        let mut read = vec![PageBuf::zeroed(); 5];
        read_whole(&storage, &mut read, 8192).unwrap();
        assert!(read == pages());
        assert_eq!(storage.calls(), 4);
    }

    #[test]
    fn read_whole_short_twice_is_an_end_of_file() {
        let mut pages = vec![PageBuf::zeroed(); 5];
        let once = faulty([(0, Fault::Short(10))]);
        read_whole(&once, &mut pages, 0).unwrap();
        let twice = faulty([(0, Fault::Short(10)), (1, Fault::Short(0))]);
        let error = read_whole(&twice, &mut pages, 0).expect_err("short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
