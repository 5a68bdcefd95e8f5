//! The content of a real file, with which a guest's reads are compared.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memvisor_wire::{Gfn, PAGE_SIZE};
use xxhash_rust::xxh3::xxh3_64;

use super::{Failure, Mismatch, Work};

/// The table's entry for a page that has not been compared yet. A page whose hash has this value is
/// compared with the file each time.
const UNKNOWN: u64 = 0;

/// A file, and the hashes of the pages that were compared with it byte for byte. The hashes save reading
/// the file again. They guard against accidents, not against an attack.
#[derive(Debug)]
pub(super) struct Truth {
    path: PathBuf,
    file: File,
    len: u64,
    modified: (i64, i64),
    hashes: Box<[AtomicU64]>,
}

impl Truth {
    /// The truth about the first `max_pages` pages of a regular file.
    pub(super) fn open(path: &Path, max_pages: u32) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let pages = metadata
            .len()
            .div_ceil(PAGE_SIZE as u64)
            .min(u64::from(max_pages));
        Ok(Self {
            path: path.to_owned(),
            len: metadata.len(),
            modified: modified(&metadata),
            file,
            hashes: (0..pages).map(|_| AtomicU64::new(UNKNOWN)).collect(),
        })
    }

    pub(super) const fn pages(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Reads a page of the file itself. Bytes behind the end of the file are zero.
    pub(super) fn read(&self, page: u32, into: &mut [u8; PAGE_SIZE]) -> Result<(), Failure> {
        self.read_raw(page, into).map_err(|source| {
            Failure::Kernel(crate::kernel::KernelError::File {
                path: self.path.clone(),
                source,
            })
        })
    }

    fn read_raw(&self, page: u32, into: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        let start = u64::from(page) * PAGE_SIZE as u64;
        let len = self.len.saturating_sub(start).min(PAGE_SIZE as u64) as usize;
        into[len..].fill(0);
        match self.file.read_exact_at(&mut into[..len], start) {
            // The file became shorter; `judge` finds that out when the bytes differ.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            other => other,
        }
    }

    /// Compares the bytes that a guest read from a page with the file.
    pub(super) fn judge(
        &self,
        page: u32,
        found: &[u8; PAGE_SIZE],
        gfn: impl FnOnce() -> Option<Gfn>,
    ) -> Result<Work, Failure> {
        let known = &self.hashes[page as usize];
        let hash = xxh3_64(found);
        if hash != UNKNOWN && known.load(Ordering::Relaxed) == hash {
            return Ok(Work::verified(PAGE_SIZE));
        }
        let mut expected = [0; PAGE_SIZE];
        self.read(page, &mut expected)?;
        match Mismatch::of(&expected, found, 0) {
            None => {
                known.store(hash, Ordering::Relaxed);
                Ok(Work::verified(PAGE_SIZE))
            }
            Some(_) if self.has_changed() => Err(Failure::FileChanged(self.path.clone())),
            Some(mismatch) => Err(mismatch.on(page.into(), gfn(), 1).into()),
        }
    }

    fn has_changed(&self) -> bool {
        let same = |now: &Metadata| now.len() == self.len && modified(now) == self.modified;
        !self.file.metadata().is_ok_and(|now| same(&now))
    }
}

fn modified(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> [u8; PAGE_SIZE] {
        [byte; PAGE_SIZE]
    }

    #[test]
    fn truth_tells_a_wrong_page_from_a_changed_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        std::fs::write(&path, [page(1), page(2)].concat()).expect("a file");
        let truth = Truth::open(&path, 10).expect("it is there");
        assert_eq!(truth.pages(), 2);
        for _ in 0..2 {
            truth.judge(1, &page(2), || None).expect("it is right");
            let failure = truth.judge(1, &page(3), || None).expect_err("it is wrong");
            assert!(matches!(failure, Failure::Mismatch(_)), "{failure:?}");
        }
        std::fs::write(&path, page(9)).expect("a file");
        let failure = truth.judge(0, &page(1), || None).expect_err("not any more");
        assert!(matches!(failure, Failure::FileChanged(_)), "{failure:?}");
    }

    #[test]
    fn truth_of_a_directory_is_refused() {
        let error = Truth::open(Path::new("/"), 1).expect_err("no file");
        assert!(error.to_string().contains("regular"), "{error}");
    }
}
