//! How well a directory is suited for swap files.

use std::io;
use std::path::Path;

use crate::sys::{DirectFile, Filesystem};
use crate::units::{Bytes, PAGE_SIZE};

/// What was found out about a directory for swap files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwapDirReport {
    /// Whether files there can bypass the page cache. If not, memory that was swapped out may stay in
    /// use as page cache.
    pub direct_io: bool,
    /// Whether files there can have their space reserved. If not, a disk that fills up later
    /// shows as failed swap-outs instead of a refused power-on.
    pub reserves: bool,
    /// Whether files there live in memory. If so, swapping to them frees none.
    pub in_memory: bool,
    /// What may still be written there.
    pub available: Bytes,
    /// The name of the filesystem.
    pub filesystem: String,
}

/// Probes `dir` by making a swap file of one page there. Nothing is left of the file.
///
/// # Errors
/// When `dir` is no directory in which this user can make a file, or has no room for a page.
pub fn probe(dir: &Path) -> io::Result<SwapDirReport> {
    let filesystem = Filesystem::of(dir)?;
    let file = DirectFile::create(dir, Bytes(PAGE_SIZE as u64))?;
    Ok(SwapDirReport {
        direct_io: file.is_direct(),
        reserves: file.is_reserved(),
        in_memory: filesystem.in_memory,
        available: filesystem.available,
        filesystem: filesystem.name,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::read_dir;

    use super::*;

    #[test]
    fn probe_of_shared_memory_says_so_and_leaves_nothing() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let report = probe(dir.path()).unwrap();
        assert_eq!(report.filesystem, "tmpfs");
        assert!(report.in_memory && report.reserves && report.available > Bytes(0));
        assert_eq!(read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn probe_of_a_directory_without_files_fails() {
        assert!(probe(Path::new("/proc")).is_err());
    }
}
