//! The directory of one run: sockets, files for the guests, logs, swap files.

use std::env;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use thiserror::Error;

use crate::runtime_dir::{RuntimeDir, RuntimeDirError};

/// The prefix of the names of all such directories. A host removes no other directory.
pub(crate) const SCRATCH_PREFIX: &str = "memvisor-run-";

/// Why there is no such directory.
#[derive(Debug, Error)]
pub enum ScratchError {
    /// It cannot be made.
    #[error("cannot make a directory for sockets and swap files")]
    Make(#[source] io::Error),
    /// It does not do as a runtime directory.
    #[error("cannot use a directory for sockets")]
    Runtime(#[from] RuntimeDirError),
}

/// The directory; dropping it removes it with all that is in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    runtime_dir: RuntimeDir,
}

impl Scratch {
    /// Makes the directory in the first place where that succeeds.
    ///
    /// `/var/tmp` is tried before `/tmp`, because `/tmp` is often in memory, and a swap file in memory would
    /// save nothing.
    pub(crate) fn new() -> Result<Self, ScratchError> {
        let chosen = env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
        let places = match chosen {
            Some(dir) => vec![PathBuf::from(dir)],
            None => vec![PathBuf::from("/var/tmp"), PathBuf::from("/tmp")],
        };
        let mut made = None;
        for place in places {
            made = Some(
                tempfile::Builder::new()
                    .prefix(SCRATCH_PREFIX)
                    .permissions(Permissions::from_mode(0o700))
                    .tempdir_in(place),
            );
            if matches!(made, Some(Ok(_))) {
                break;
            }
        }
        let dir = made
            .expect("there is always a place to try")
            .map_err(ScratchError::Make)?;
        let runtime_dir = RuntimeDir::new(dir.path().join("run"))?;
        Ok(Self { dir, runtime_dir })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the host of the demo has its sockets.
    pub(crate) const fn runtime_dir(&self) -> &RuntimeDir {
        &self.runtime_dir
    }
}
