//! Disk space of a swap file that stays when its VM is off, as an empty file with a name.
//!
//! Such a file never held a byte of a guest, and loses its name before it is used, so whatever has the name holds no data,
//! however the machine or the daemon ends. A file that does hold data is somebody else's. While it has its name, another
//! process can open it; then it is not used, because that process could read the memory of the guest that it is for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, geteuid, linkat, lseek};

use super::DirectFile;
use crate::units::{Bytes, PAGE_SIZE};

impl DirectFile {
    /// Names the file, into which nothing was written yet, `path`.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where its space is not reserved, [`io::ErrorKind::AlreadyExists`] when there is
    /// something of that name, else what `linkat(2)` says.
    pub fn keep(&self, path: &Path) -> io::Result<()> {
        if !self.is_reserved() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        Ok(linkat(AT_FDCWD, nameless.as_str(), AT_FDCWD, path, follow)?)
    }

    /// Takes the file that was [kept](Self::keep) as `path`, which then has no name any more, and its length. `None`
    /// when there is none, or when another process holds it open: that one is removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when what is there was not made by [`keep`](Self::keep), else what a system call
    /// says. It is left as it is.
    pub fn take(path: &Path) -> io::Result<Option<(Self, Bytes)>> {
        // Without waiting, in case it is a pipe or another process is just taking it.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        check_kept(&file)?;
        let len = Bytes(file.metadata()?.len());
        fs::remove_file(path)?;
        // Only now, because before anybody could have opened it right after the look.
        if !is_open_here_only(&file) {
            file.set_len(0)?;
            return Ok(None);
        }
        Ok(Some((Self::of(file)?, len)))
    }
}

/// Whether a file can only have been made by [`DirectFile::keep`]: nobody loses anything when it is used.
fn check_kept(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    let no = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if !found.is_file() || found.nlink() != 1 {
        return no("it is no file with one name");
    }
    if found.uid() != geteuid().as_raw() || found.mode() & 0o7777 != 0o600 {
        return no("it is not this user's alone");
    }
    if found.len() == 0 || found.len() % PAGE_SIZE as u64 != 0 {
        return no("its length is not that of whole pages");
    }
    // Zeroes that somebody read, as a backup does, count as data for as long as they are in the page cache.
    let drop_clean = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(file, 0, 0, drop_clean)?;
    match lseek(file, 0, Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(()),
        Ok(_) => no("there is data in it"),
        Err(error) => Err(error.into()),
    }
}

/// Whether nobody else holds this file open; `false` also where the kernel does not say.
fn is_open_here_only(file: &File) -> bool {
    // The kernel grants a lease to write to the only one that has a file open. Who opens it meanwhile makes the kernel
    // signal the holder, by SIGIO, which would end this process, unless another signal is set.
    const F_SETSIG: libc::c_int = 10;
    let fcntl = |command, argument: libc::c_int| {
        // SAFETY: the descriptor is open for as long as `file` is borrowed, and both commands take a number, not an
        // address.
        unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) != -1 }
    };
    fcntl(F_SETSIG, libc::SIGURG)
        && fcntl(libc::F_SETLEASE, libc::F_WRLCK)
        && fcntl(libc::F_SETLEASE, libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{FileExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;

    const LEN: Bytes = Bytes(16 * PAGE_SIZE as u64);

    /// Directories on a disk and in memory.
    fn dirs() -> [tempfile::TempDir; 2] {
        [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")].map(|dir| dir.unwrap())
    }

    /// A file that is kept in `dir`; where it is.
    fn kept(dir: &Path) -> PathBuf {
        let path = dir.join("a.vswp");
        let file = DirectFile::create(dir, LEN).unwrap();
        file.keep(&path).unwrap();
        path
    }

    #[test]
    fn kept_file_has_its_space_and_no_data_and_is_taken_once() {
        for dir in dirs() {
            let path = kept(dir.path());
            let found = fs::metadata(&path).unwrap();
            assert!(found.len() == LEN.0 && found.blocks() * 512 >= LEN.0);
            // Also after somebody has read it.
            assert_eq!(fs::read(&path).unwrap(), vec![0; LEN.0 as usize]);
            let (file, len) = DirectFile::take(&path).unwrap().expect("it was kept");
            assert_eq!(len, LEN);
            assert!(!path.exists() && DirectFile::take(&path).unwrap().is_none());
            assert!(file.file.metadata().unwrap().blocks() * 512 >= LEN.0);
        }
    }

    #[test]
    fn kept_file_that_somebody_holds_open_is_removed_and_not_used() {
        for dir in dirs() {
            let path = kept(dir.path());
            let reader = File::open(&path).unwrap();
            assert!(DirectFile::take(&path).unwrap().is_none());
            assert!(!path.exists());
            assert_eq!(reader.metadata().unwrap().len(), 0, "its space is free");
        }
    }

    #[test]
    fn what_has_the_name_and_was_not_kept_is_left_alone() {
        for dir in dirs() {
            let refused = |path: &Path, why: &str| {
                let error = DirectFile::take(path).expect_err(why);
                assert!(error.to_string().contains(why), "{error}");
                assert!(path.symlink_metadata().is_ok(), "{why}");
            };
            let path = kept(dir.path());
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_at(b"mine", 100).unwrap();
            refused(&path, "there is data in it");
            file.set_len(0).unwrap();
            refused(&path, "its length");
            fs::remove_file(&path).unwrap();

            kept(dir.path());
            fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            refused(&path, "not this user's alone");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let other = dir.path().join("b.vswp");
            fs::hard_link(&path, &other).unwrap();
            refused(&path, "one name");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&other, &path).unwrap();
            refused(&path, "Too many levels of symbolic links");
            let file = DirectFile::create(dir.path(), LEN).unwrap();
            let error = file.keep(&path).expect_err("the name is taken");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
    }
}
