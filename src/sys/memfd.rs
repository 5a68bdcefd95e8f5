//! Sparse files in memory: guest RAM, the share pool, the compression arena, the claim table.
//!
//! The memory of such a file lives as long as any process has a descriptor or a mapping of it. A guest's process
//! can be killed, but a child that it has forked, which the daemon does not know, could go on filling holes. By then
//! that memory has been given to other VMs. So when the daemon lets go of a file that it has lent, it cuts the file
//! down to nothing, and nobody can make the file longer again. A guest can cut its own files short too, because a
//! seal against that would bind the daemon as well: so the daemon guards what it maps ([`super::guard`]).

use std::fs::{self, File, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::uio::preadv;

use super::private_tmpfs::PrivateTmpfs;
use crate::units::{Bytes, PAGE_SIZE, PageBuf, Pages};

/// Whether the kernel may back such files with huge pages: then one written byte fills a whole huge page.
#[must_use]
pub fn files_in_memory_are_huge() -> bool {
    let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    // A kernel without huge pages has no such file.
    let choices = fs::read_to_string(path).unwrap_or_default();
    ["[always]", "[within_size]", "[force]"]
        .iter()
        .any(|chosen| choices.contains(chosen))
}

/// A sparse file in memory of a fixed number of pages. A page that was never written, or was
/// punched, is a hole: it reads as zeroes and costs nothing.
#[derive(Debug)]
pub struct Memfd {
    file: File,
    pages: u32,
    /// The descriptor that readers get opened again, if that is not `file`.
    reader: Option<OwnedFd>,
    /// Whether dropping it takes its memory away from everybody.
    is_lent: bool,
}

impl Memfd {
    /// A file of `pages` holes that this process keeps to itself. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// What `memfd_create(2)`, `ftruncate(2)` or `fcntl(2)` says.
    pub fn create(name: &str, pages: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags)?);
        // By default every user who has a descriptor may open it again by `/proc`, for writing too: a guest of
        // another user must not write what it may only read.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(u64::from(pages) * PAGE_SIZE as u64)?;
        // No further seals: a guest must not seal the file against being cut down to nothing.
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self {
            file,
            pages,
            reader: None,
            is_lent: false,
        })
    }

    /// A file of so many pages that somebody else has made.
    ///
    /// # Errors
    /// When it is shorter, or its length cannot be read.
    pub(super) fn of(fd: OwnedFd, pages: u32) -> io::Result<Self> {
        let file = File::from(fd);
        let (has, needs) = (file.metadata()?.len(), u64::from(pages) * PAGE_SIZE as u64);
        if has < needs {
            let text = format!("the file has {has} bytes and not {needs}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self {
            file,
            pages,
            reader: None,
            is_lent: false,
        })
    }

    /// A file that a guest gets to read and to write. Dropping it takes its memory away from whoever still
    /// has a descriptor or a mapping of it.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn lend(name: &str, pages: u32) -> io::Result<Self> {
        let mut memfd = Self::create(name, pages)?;
        memfd.is_lent = true;
        Ok(memfd)
    }

    /// A file that guests get [to read](Self::read_only). Where this process may mount, they cannot write it
    /// ([`readers_cannot_write`](super::readers_cannot_write)). Dropping it is as for [`lend`](Self::lend).
    ///
    /// # Errors
    /// As for [`create`](Self::create), and what `openat(2)` says.
    pub fn publish(name: &str, pages: u32) -> io::Result<Self> {
        let Ok(tmpfs) = PrivateTmpfs::get() else {
            return Self::lend(name, pages);
        };
        let (file, reader) = tmpfs.create(name)?;
        file.set_len(u64::from(pages) * PAGE_SIZE as u64)?;
        Ok(Self {
            file,
            pages,
            reader: Some(reader),
            is_lent: true,
        })
    }

    /// Takes all of its memory from every process that maps it, for good: an access raises SIGBUS there, and
    /// finds zeroes here.
    ///
    /// # Errors
    /// What `ftruncate(2)` says.
    pub fn revoke(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Whether a process that got it [to read](Self::read_only) might write it.
    pub(super) const fn readers_can_write(&self) -> bool {
        self.reader.is_none()
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

    /// Reads pages from `page` on. This maps nothing, and a hole stays a hole.
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
    /// The kernel drops every mapping of them, in any process, in the same step. `madvise(MADV_DONTNEED)` would
    /// not do: on a shared mapping it frees nothing.
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
        // Blocks of stat(2) have 512 bytes, whatever the filesystem says its block size is.
        Ok(Bytes(self.file.metadata()?.blocks() * 512).pages())
    }

    /// A second descriptor of the same file that can be mapped and read but not written.
    ///
    /// # Errors
    /// What opening `/proc/self/fd/N` says.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        let reader = self.reader.as_ref().map_or(self.as_fd(), AsFd::as_fd);
        // Opened anew and not duplicated: a duplicate would keep the right to write.
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
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

impl Drop for Memfd {
    fn drop(&mut self) {
        if self.is_lent {
            self.revoke().expect("an own file can be cut short");
        }
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

    #[test]
    fn memory_of_a_file_that_was_lent_ends_with_it_and_comes_back_to_nobody() {
        for make in [Memfd::lend, Memfd::publish] {
            let memfd = make("memvisor-lent", 4).expect("a file");
            memfd
                .write_page(3, &PageBuf([1; PAGE_SIZE]))
                .expect("a page");
            let other = File::from(memfd.as_fd().try_clone_to_owned().expect("a descriptor"));
            assert_eq!(memfd.allocated().expect("fstat"), Pages(1));
            drop(memfd);
            let left = other.metadata().expect("fstat");
            assert_eq!((left.len(), left.blocks()), (0, 0));
        }
        let memfd = Memfd::lend("memvisor-lent", 4).expect("a file");
        memfd.revoke().expect("an own file");
        assert!(memfd.file.set_len(4096).is_err(), "it is sealed");
        assert!(
            memfd.write_page(0, &PageBuf::zeroed()).is_err(),
            "a write makes it longer"
        );
    }
}
