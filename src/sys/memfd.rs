//! Sparse anonymous files: guest RAM, the share pool, the compression arena.

use std::fs::{File, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::uio::preadv;

use crate::units::{Bytes, PAGE_SIZE, PageBuf, Pages};

/// A sparse file in memory of a fixed number of pages. A page that was never written, or was
/// punched, is a hole: it reads as zeroes and costs nothing.
#[derive(Debug)]
pub struct Memfd {
    file: File,
    pages: u32,
}

impl Memfd {
    /// Creates a file of `pages` holes, whose length nobody can change. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// What `memfd_create(2)`, `ftruncate(2)` or `fcntl(2)` says.
    pub fn create(name: &str, pages: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags)?);
        // Anybody may open a new one again by `/proc`, to write it too: a guest of another user must
        // not write the pool that it may read.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(u64::from(pages) * PAGE_SIZE as u64)?;
        // A guest gets its RAM's descriptor: cutting the file short would end the daemon by SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { file, pages })
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// The length of the file in pages, holes included.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Writes one page; fills the hole if there was one. No mapping needs to be writable for this.
    ///
    /// # Errors
    /// What `pwrite(2)` says: `ENOSPC`/`ENOMEM` when the machine itself is out of memory.
    pub fn write_page(&self, page: u32, content: &PageBuf) -> io::Result<()> {
        self.file
            .write_all_at(&content.0, u64::from(page) * PAGE_SIZE as u64)
    }

    /// Reads pages from `page` on. What is not mapped yet is not mapped by that, and a hole stays one.
    ///
    /// # Errors
    /// What `preadv(2)` says; `UnexpectedEof` when the file ends before.
    pub fn read_pages(&self, page: u32, into: &mut [PageBuf]) -> io::Result<()> {
        let offset = i64::from(page) * PAGE_SIZE as i64;
        let len = into.len() * PAGE_SIZE;
        let mut slices: Vec<_> = into
            .iter_mut()
            .map(|page| IoSliceMut::new(&mut page.0))
            .collect();
        if preadv(&self.file, &mut slices, offset)? == len {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Gives `count` pages from `start` on back to the machine.
    ///
    /// Every mapping of them, in any process, is dropped by the kernel in the same step. This and
    /// not `madvise(MADV_DONTNEED)`, which on a shared mapping frees nothing.
    ///
    /// # Errors
    /// What `fallocate(2)` says.
    pub fn punch(&self, start: u32, count: u32) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = i64::from(start) * PAGE_SIZE as i64;
        Ok(fallocate(
            &self.file,
            flags,
            offset,
            i64::from(count) * PAGE_SIZE as i64,
        )?)
    }

    /// The memory the kernel counts for this file now.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn allocated(&self) -> io::Result<Pages> {
        Ok(Bytes(self.file.metadata()?.blocks() * 512).pages())
    }

    /// A second descriptor of the same file that can be mapped and read but not written.
    ///
    /// # Errors
    /// What opening `/proc/self/fd/N` says.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(open(
            path.as_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?)
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memfd_is_its_owners_alone() {
        let memfd = Memfd::create("memvisor-mode", 1).expect("a memfd");
        let mode = memfd.file.metadata().expect("fstat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(memfd.read_only().is_ok(), "the owner can still open it");
    }
}
