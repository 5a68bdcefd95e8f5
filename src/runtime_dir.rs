//! The directory in which daemon, guests and clients meet: three sockets and a lock.
//!
//! Whoever can write there can pose as the daemon, so the directory belongs to one user and is closed to all
//! others. One daemon holds it at a time, by an advisory lock on a file. The kernel drops the lock when the
//! process ends, however it ends. So a socket file without a lock holder is a leftover that the
//! next daemon may replace. With a pid file, one would have to guess whether that pid is still the daemon.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use thiserror::Error;

/// The longest path of a Unix socket: `sun_path` has 108 bytes and ends with a zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// The name of the file whose lock says that a daemon runs.
const LOCK: &str = "lock";

/// The longest file name this module appends to the directory.
const LONGEST_SOCKET: &str = "control.sock";

/// Why the runtime directory cannot be used.
#[derive(Debug, Error)]
pub enum RuntimeDirError {
    /// A socket in it would have a path that the kernel does not take.
    #[error(
        "runtime directory `{path}` is too long: its sockets would have paths of {length} bytes, \
         and a Unix socket takes at most {SOCKET_PATH_MAX}"
    )]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// Length of the longest socket path in it.
        length: usize,
    },
    /// It cannot be made, read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a file, a symbolic link or the like.
    #[error("`{path}` is not a directory")]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// The lock file is a symbolic link, which no daemon makes.
    #[error("`{path}` is a symbolic link, and the lock file must be a file: remove it")]
    Link {
        /// The lock file.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("runtime directory `{path}` belongs to user {owner}, but this process is user {user}")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Others may enter it.
    #[error(
        "runtime directory `{path}` is open to other users (mode {mode:04o}): make it 0700 or \
         choose another"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A daemon holds it.
    #[error("a memvisor host{} is already running in `{path}`", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// The directory.
        path: PathBuf,
        /// The pid of that daemon, if it had time to write it.
        pid: Option<u32>,
    },
}

/// Where the sockets are. Making one checks the length of the path, and neither checks nor creates anything else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuntimeDir {
    path: PathBuf,
}

impl RuntimeDir {
    /// Uses `path`.
    ///
    /// # Errors
    /// [`RuntimeDirError::TooLong`].
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, RuntimeDirError> {
        let path = path.into();
        let length = path.join(LONGEST_SOCKET).as_os_str().as_bytes().len();
        if length > SOCKET_PATH_MAX {
            return Err(RuntimeDirError::TooLong { path, length });
        }
        Ok(Self { path })
    }

    /// Uses the first of these that is set: `chosen`, `$MEMVISOR_RUNTIME_DIR`, `$XDG_RUNTIME_DIR/memvisor`,
    /// `/tmp/memvisor-UID`.
    ///
    /// # Errors
    /// [`RuntimeDirError::TooLong`].
    pub fn locate(chosen: Option<PathBuf>) -> Result<Self, RuntimeDirError> {
        Self::new(memvisor_wire::runtime_dir(chosen))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where shims connect.
    #[must_use]
    pub fn memory_socket(&self) -> PathBuf {
        self.path.join("memory.sock")
    }

    /// Where balloon agents connect.
    #[must_use]
    pub fn balloon_socket(&self) -> PathBuf {
        self.path.join("balloon.sock")
    }

    /// Where the control API is served.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(LONGEST_SOCKET)
    }

    /// Makes the directory if it is missing, checks that it is ours alone, and takes its lock.
    ///
    /// # Errors
    /// Any of [`RuntimeDirError`].
    pub fn claim(self) -> Result<HeldRuntimeDir, RuntimeDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(io_error("create", &self.path))?;
        let lock = self.lock(&self.open()?)?;
        Ok(HeldRuntimeDir { dir: self, lock })
    }

    /// Checks that it is a directory, and that no other user owns it or may enter it.
    ///
    /// # Errors
    /// Any of [`RuntimeDirError`] but `TooLong` and `Held`.
    pub fn check(&self) -> Result<(), RuntimeDirError> {
        self.open().map(drop)
    }

    /// Opens the directory and checks it. What is opened is what was checked, whatever its name leads to later.
    fn open(&self) -> Result<File, RuntimeDirError> {
        let path = || self.path.clone();
        // Opened once and then used by its descriptor: a path could lead elsewhere a moment later.
        let as_it_is = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(as_it_is.bits())
            .open(&self.path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotADirectory => RuntimeDirError::NotDirectory { path: path() },
                _ => io_error("examine", &self.path)(error),
            })?;
        let found = dir.metadata().map_err(io_error("examine", &self.path))?;
        let (owner, user) = (found.uid(), geteuid().as_raw());
        if owner != user {
            return Err(RuntimeDirError::Owner {
                path: path(),
                owner,
                user,
            });
        }
        let mode = found.mode() & 0o7777;
        // Refused and not repaired: whoever could write there may have left something.
        if mode & 0o077 != 0 {
            return Err(RuntimeDirError::Open { path: path(), mode });
        }
        Ok(dir)
    }

    /// Takes the lock, on a file in `dir` itself and not through a link, or another file would be emptied and locked.
    fn lock(&self, dir: &File) -> Result<Flock<File>, RuntimeDirError> {
        let path = self.path.join(LOCK);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: File = openat(dir, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| match errno {
                Errno::ELOOP => RuntimeDirError::Link { path: path.clone() },
                errno => io_error("open", &path)(errno.into()),
            })?
            .into();
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                write_pid(&mut lock).map_err(io_error("write", &path))?;
                Ok(lock)
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(RuntimeDirError::Held {
                path: self.path.clone(),
                pid: read_pid(&mut file),
            }),
            Err((_, errno)) => Err(io_error("lock", &path)(errno.into())),
        }
    }
}

/// The runtime directory of a running daemon; dropping it removes the sockets and frees the lock.
///
/// The lock file stays: removing it would let a second daemon lock a new file of that name while a
/// third still waits with the old one open.
#[derive(Debug)]
pub struct HeldRuntimeDir {
    dir: RuntimeDir,
    lock: Flock<File>,
}

impl HeldRuntimeDir {
    /// The directory.
    #[must_use]
    pub const fn dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// Removes sockets that an earlier daemon left behind; to be called before new ones are bound.
    ///
    /// # Errors
    /// [`RuntimeDirError::Io`] if one is there and cannot be removed.
    pub fn remove_sockets(&self) -> Result<(), RuntimeDirError> {
        for path in [
            self.dir.memory_socket(),
            self.dir.balloon_socket(),
            self.dir.control_socket(),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for HeldRuntimeDir {
    fn drop(&mut self) {
        if let Err(error) = self.remove_sockets() {
            tracing::warn!(%error, "a socket is left behind; the next daemon replaces it");
        }
        // Emptied, so that a daemon that is refused before the next holder has written its pid is not told ours.
        if let Err(error) = self.lock.set_len(0) {
            tracing::debug!(%error, "the lock file keeps an old pid");
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    // The file may hold anything; a number is shorter than that.
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeDirError {
    let path = path.to_owned();
    move |source| RuntimeDirError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn dir_in(parent: &tempfile::TempDir) -> RuntimeDir {
        RuntimeDir::new(parent.path().join("run")).expect("short enough")
    }

    #[test]
    fn claim_makes_a_private_directory_and_drop_removes_the_sockets() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = dir_in(&parent);
        let held = dir.clone().claim().expect("claim");
        let mode = fs::metadata(dir.path()).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let _socket = UnixListener::bind(dir.balloon_socket()).expect("bind");
        drop(held);
        assert!(!dir.balloon_socket().exists());
        dir.claim().expect("free again");
    }

    #[test]
    fn claim_twice_is_refused_and_names_the_holder() {
        let parent = tempfile::tempdir().expect("tempdir");
        let held = dir_in(&parent).claim().expect("claim");
        let error = dir_in(&parent).claim().expect_err("held");
        let me = std::process::id();
        assert!(
            matches!(error, RuntimeDirError::Held { pid: Some(pid), .. } if pid == me),
            "{error}"
        );
        assert!(
            error.to_string().contains(&format!("(pid {me})")),
            "{error}"
        );
        drop(held);
    }

    #[test]
    fn claim_after_a_crash_removes_the_stale_sockets() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = dir_in(&parent);
        fs::create_dir(dir.path()).expect("mkdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        drop(UnixListener::bind(dir.memory_socket()).expect("bind"));
        assert!(
            dir.memory_socket().exists(),
            "a closed socket stays as a file"
        );
        let held = dir.clone().claim().expect("nobody holds the lock");
        held.remove_sockets().expect("removable");
        assert!(!dir.memory_socket().exists());
    }

    #[test]
    fn claim_of_what_is_open_to_others_or_no_directory_is_refused() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = dir_in(&parent);
        fs::create_dir(dir.path()).expect("mkdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let error = dir.clone().claim().expect_err("open to others");
        assert!(error.to_string().contains("mode 0755"), "{error}");

        fs::remove_dir(dir.path()).expect("rmdir");
        std::os::unix::fs::symlink(parent.path(), dir.path()).expect("symlink");
        let error = dir.claim().expect_err("a link");
        assert!(
            matches!(error, RuntimeDirError::NotDirectory { .. }),
            "{error}"
        );
    }

    #[test]
    fn lock_file_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = dir_in(&parent);
        drop(dir.clone().claim().expect("claim"));
        let precious = parent.path().join("precious");
        fs::write(&precious, "content").expect("write");
        let lock = dir.path().join("lock");
        fs::remove_file(&lock).expect("there");
        std::os::unix::fs::symlink(&precious, &lock).expect("symlink");
        let error = dir.claim().expect_err("a link");
        assert!(error.to_string().contains("is a symbolic link"), "{error}");
        let content = fs::read_to_string(&precious).expect("still there");
        assert_eq!(content, "content");
    }

    #[test]
    fn path_as_long_as_a_socket_may_be_works_and_one_more_is_refused() {
        let fits = String::from("/") + &"d".repeat(SOCKET_PATH_MAX - LONGEST_SOCKET.len() - 2);
        let dir = RuntimeDir::new(&fits).expect("fits exactly");
        assert_eq!(dir.control_socket().as_os_str().len(), SOCKET_PATH_MAX);
        let error = RuntimeDir::new(fits + "d").expect_err("one too many");
        assert!(error.to_string().contains("108 bytes"), "{error}");
        assert!(error.to_string().contains("at most 107"), "{error}");
    }
}
