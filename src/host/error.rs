//! Why the daemon does not run.

use std::io;
use std::path::PathBuf;

use memvisor_wire::system_error::SystemError;
use thiserror::Error;

use crate::control::ServeError;
use crate::policy::Refusal;
use crate::runtime_dir::RuntimeDirError;
use crate::units::Bytes;

/// The least budget: below it the reserve alone would be a large part.
pub const MIN_MEMORY: Bytes = Bytes::from_mib(4);

/// userfaultfd was asked for and is not to be had.
#[derive(Debug, Error)]
#[error("userfaultfd does not work here: {0}; use --engine mprotect")]
pub struct EngineUnavailable(pub(super) io::Error);

/// Why the daemon could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// The budget does not even hold the reserve.
    #[error("a budget of {0} is too small: at least {MIN_MEMORY} is needed")]
    Memory(Bytes),
    /// The budget is larger than what the daemon can keep tables for.
    #[error(
        "a budget of {memory} is too large for the daemon's tables; {} is sure to work",
        machine.map_or("less".to_owned(), |memory| format!("up to {memory}, what this machine gives it,"))
    )]
    Tables {
        /// The budget.
        memory: Bytes,
        /// The memory of the machine, or the less that the daemon's cgroup may use.
        machine: Option<Bytes>,
        /// Which table there is no memory for.
        source: io::Error,
    },
    /// The engine that was asked for does not work here.
    #[error(transparent)]
    Engine(#[from] EngineUnavailable),
    /// The trace cannot be written.
    #[error("cannot record a trace into `{}`", file.display())]
    Trace {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No swap file can be made.
    #[error("cannot make swap files in `{}`", dir.display())]
    SwapDir {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No file of the host cache can be made.
    #[error("cannot make files of the host cache in `{}`", dir.display())]
    SwapCache {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Balloon sessions cannot be recorded.
    #[error("cannot record balloon sessions in `{}`", dir.display())]
    RecordBalloon {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The resource pools of the configuration file reserve what the host has not got.
    #[error("the resource pools of the configuration file do not fit: {0}")]
    Pools(Refusal),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The control API cannot be served.
    #[error(transparent)]
    Control(#[from] ServeError),
    /// The kernel refused something else.
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_userfaultfd_is_told_with_the_way_out() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = EngineUnavailable(denied).to_string();
        assert!(error.contains("permission denied"), "{error}");
        assert!(error.contains("use --engine mprotect"), "{error}");
    }
}
