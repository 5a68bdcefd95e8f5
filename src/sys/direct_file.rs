//! Files on disk that bypass the page cache: the swap files. They have no name while they are in use; an empty one
//! can have one (`kept_file.rs`).

use std::fs::{File, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::{preadv, pwritev};

use crate::units::{Bytes, PAGE_SIZE, PageBuf};

/// The most buffers one `pwritev(2)` or `preadv(2)` takes (`IOV_MAX`).
const MAX_PAGES_AT_ONCE: usize = 1024;

/// A file of whole pages without a name, so that nothing is left of it however its owner ends.
#[derive(Debug)]
pub struct DirectFile {
    pub(super) file: File,
    direct: bool,
    reserved: bool,
}

impl DirectFile {
    /// Creates a file of `len` bytes in `dir` that only this user can open.
    ///
    /// The whole length is reserved on disk where the filesystem can do that, and the page cache is
    /// bypassed where it allows that; see [`is_reserved`](Self::is_reserved) and
    /// [`is_direct`](Self::is_direct).
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::QuotaExceeded`] when there is no room for
    /// `len` bytes, else what the system call says.
    pub fn create(dir: &Path, len: Bytes) -> io::Result<Self> {
        let file = tempfile::tempfile_in(dir)?;
        // It has no name, but `/proc` leads to it, for every user that its mode lets in.
        file.set_permissions(Permissions::from_mode(0o600))?;
        // Direct I/O is tried on a page that is there: no filesystem refuses a read behind the end.
        file.set_len(PAGE_SIZE as u64)?;
        let mut file = Self::of(file)?;
        file.truncate(Bytes(0))?;
        file.reserved = reserve(&file.file, Bytes(0), len)?;
        Ok(file)
    }

    /// A file that has a page and whose space is reserved.
    pub(super) fn of(file: File) -> io::Result<Self> {
        Ok(Self {
            direct: go_direct(&file)?,
            file,
            reserved: true,
        })
    }

    /// Whether reads and writes go past the page cache. Where they do not, what was written out may
    /// stay in memory until the kernel wants that memory.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether the disk space is set aside. Where it is not, a write can find the disk full.
    #[must_use]
    pub const fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// The file opened once more, for reading only, and past the page cache if this descriptor goes past it.
    ///
    /// # Errors
    /// What opening `/proc/self/fd/N` says.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let direct = if self.direct {
            OFlag::O_DIRECT
        } else {
            OFlag::empty()
        };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | direct;
        Ok(open(path.as_str(), flags, Mode::empty())?)
    }

    /// What may still be written to the filesystem of this file.
    ///
    /// # Errors
    /// What `fstatvfs(3)` says.
    pub fn available(&self) -> io::Result<Bytes> {
        let room = fstatvfs(&self.file)?;
        Ok(Bytes(
            room.blocks_available().saturating_mul(room.fragment_size()),
        ))
    }

    /// Makes the file longer, from `from` bytes, which it has, to `to`. The new part is reserved as
    /// [`create`](Self::create) does it. After an error the file is as it was.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn extend(&self, from: Bytes, to: Bytes) -> io::Result<()> {
        reserve(&self.file, from, to).map(drop).inspect_err(|_| {
            // Releases what was reserved before the disk was full. If even this fails, that part lies behind the
            // end, where nothing is read or written, until the next cut of the file releases it.
            let _ = self.file.set_len(from.0);
        })
    }

    /// Cuts the file to `len` bytes and gives back the disk space behind them.
    ///
    /// # Errors
    /// What `ftruncate(2)` says.
    pub fn truncate(&self, len: Bytes) -> io::Result<()> {
        self.file.set_len(len.0)
    }

    /// Writes pages one after the other from byte `offset` on, in one system call. Returns the bytes
    /// written, which may be fewer than all.
    ///
    /// # Errors
    /// What `pwritev(2)` says.
    pub fn write_pages(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        let pages = pages.iter().take(MAX_PAGES_AT_ONCE);
        let slices: Vec<_> = pages.map(|page| IoSlice::new(&page.0)).collect();
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        Ok(pwritev(&self.file, &slices, offset)?)
    }

    /// Reads pages one after the other from byte `offset` on, in one system call. Returns the bytes
    /// read, which may be fewer than all.
    ///
    /// # Errors
    /// What `preadv(2)` says.
    pub fn read_pages(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        let pages = pages.iter_mut().take(MAX_PAGES_AT_ONCE);
        let mut slices: Vec<_> = pages.map(|page| IoSliceMut::new(&mut page.0)).collect();
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        Ok(preadv(&self.file, &mut slices, offset)?)
    }
}

/// Makes the file longer and reserves disk space for the new part; `false` where the filesystem cannot
/// reserve any, and the new part is sparse.
fn reserve(file: &File, from: Bytes, to: Bytes) -> io::Result<bool> {
    if to <= from {
        return Ok(true);
    }
    let start = i64::try_from(from.0).map_err(|_| Errno::EFBIG)?;
    let end = i64::try_from(to.0).map_err(|_| Errno::EFBIG)?;
    loop {
        match fallocate(file, FallocateFlags::empty(), start, end - start) {
            Ok(()) => return Ok(true),
            Err(Errno::EINTR) => {}
            // A length alone will do there, but the disk can then be full at any write.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                file.set_len(to.0)?;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Switches the page cache off; `false` where the filesystem refuses that, or then refuses to read an
/// aligned page (on a device with larger sectors).
fn go_direct(file: &File) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    match fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)) {
        Ok(_) => {}
        Err(Errno::EINVAL) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match file.read_at(&mut PageBuf::zeroed().0, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            fcntl(file, FcntlArg::F_SETFL(flags))?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_dir;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::units::Pages;

    fn create(dir: &Path, pages: u64) -> DirectFile {
        DirectFile::create(dir, Pages(pages).bytes()).unwrap()
    }

    #[test]
    fn create_leaves_no_name_and_lets_nobody_else_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(dir.path(), 4);
        assert_eq!(read_dir(dir.path()).unwrap().count(), 0);
        let metadata = file.file.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(
            (metadata.nlink(), metadata.len()),
            (0, 4 * PAGE_SIZE as u64)
        );
    }

    #[test]
    fn create_with_reservation_holds_its_blocks_before_any_write() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(dir.path(), 64);
        let blocks = file.file.metadata().unwrap().blocks() * 512;
        let whole = blocks >= 64 * PAGE_SIZE as u64;
        assert_eq!(file.is_reserved(), whole, "{blocks} bytes on disk");
    }

    #[test]
    fn create_of_no_bytes_is_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(dir.path(), 0);
        assert_eq!(file.file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn extend_reserves_the_new_part_and_truncate_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(dir.path(), 8);
        let page = PageBuf([9; PAGE_SIZE]);
        file.write_pages(std::slice::from_ref(&page), 7 * PAGE_SIZE as u64)
            .unwrap();
        let blocks = || file.file.metadata().unwrap().blocks() * 512;
        let bytes = |pages| Pages(pages).bytes();
        file.extend(bytes(8), bytes(264)).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), bytes(264).0);
        if file.is_reserved() {
            assert!(blocks() >= bytes(264).0, "{} bytes on disk", blocks());
        }
        file.truncate(bytes(8)).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), bytes(8).0);
        assert!(blocks() < bytes(264).0, "{} bytes on disk", blocks());
        let mut read = PageBuf::zeroed();
        file.read_pages(std::slice::from_mut(&mut read), 7 * PAGE_SIZE as u64)
            .unwrap();
        assert!(read == page);
    }

    #[test]
    fn extend_that_is_refused_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = create(dir.path(), 8);
        let far = Bytes(1 << 62);
        file.extend(Pages(8).bytes(), far).expect_err("4 EiB");
        assert_eq!(file.file.metadata().unwrap().len(), 8 * PAGE_SIZE as u64);
        assert!(file.available().unwrap() < far);
    }

    #[test]
    fn create_in_a_missing_directory_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let error = DirectFile::create(&dir.path().join("no"), Bytes(4096)).expect_err("no dir");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn pages_over_the_system_limit_are_fewer_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let count = MAX_PAGES_AT_ONCE + 1;
        let file = create(dir.path(), count as u64);
        let pages = vec![PageBuf([7; PAGE_SIZE]); count];
        let written = file.write_pages(&pages, 0).unwrap();
        assert_eq!(written, MAX_PAGES_AT_ONCE * PAGE_SIZE);
        let mut read = vec![PageBuf::zeroed(); count];
        assert_eq!(file.read_pages(&mut read, 0).unwrap(), written);
        assert!(read[..MAX_PAGES_AT_ONCE] == pages[..MAX_PAGES_AT_ONCE]);
        assert!(read[MAX_PAGES_AT_ONCE] == PageBuf::zeroed());
    }
}
