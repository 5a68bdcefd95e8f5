//! Exit codes: what a script can tell without reading the output.

use std::io;
use std::process::ExitCode;

use nix::sys::signal::Signal;
use thiserror::Error;

use crate::bench::BenchError;
use crate::control::ClientError;
use crate::demo::DemoError;
use crate::guest::GuestError;

/// The part of `--help` about exit codes.
pub(super) const HELP: &str = "\
Environment:
  MEMVISOR_RUNTIME_DIR  where the sockets are, if --runtime-dir is not given
  MEMVISOR_LOG          what to log on standard error, such as `debug` or `memvisor::share=trace`
  NO_COLOR              draw without colours

Exit codes:
    0  done
    1  failed; the reason is on standard error
    2  the command line is wrong
    3  a guest read back other data than it had written
    4  the host is not running, does not answer, or went away
  130  interrupted by a signal";

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// Done.
    Success = 0,
    /// Failed.
    Failure = 1,
    /// The command line is wrong; clap ends the process with this code too.
    Usage = 2,
    /// A guest found data that it had not written.
    Corrupt = 3,
    /// The host is not running, does not answer, or went away.
    HostGone = 4,
    /// A signal came.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Option<Signal>> for Exit {
    /// For a command that runs until a signal comes or until its own end.
    fn from(signal: Option<Signal>) -> Self {
        signal.map_or(Self::Success, |_| Self::Interrupted)
    }
}

/// An argument that is wrong in a way clap cannot see.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct UsageError(pub(super) String);

/// The code for an error, from the first cause that has one of its own.
pub(super) fn of_error(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failure)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<UsageError>() {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<DemoError>() {
        return match error {
            DemoError::Interrupted => Some(Exit::Interrupted),
            DemoError::Corrupt { .. } => Some(Exit::Corrupt),
            DemoError::Io { .. } => None,
            // Not `HostGone`: the demo started this host itself, and the user had not.
            _ => Some(Exit::Failure),
        };
    }
    if let Some(BenchError::Corrupt { .. }) = cause.downcast_ref() {
        return Some(Exit::Corrupt);
    }
    if let Some(error) = cause.downcast_ref::<GuestError>() {
        let gone = error.is_host_gone().then_some(Exit::HostGone);
        return gone.or(error.is_interrupted().then_some(Exit::Interrupted));
    }
    if let Some(error) = cause.downcast_ref::<ClientError>() {
        return error.is_gone().then_some(Exit::HostGone);
    }
    // A closed pipe is a success: in `memvisor top | head`, the reader has seen enough.
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    cause
        .downcast_ref::<io::Error>()
        .filter(|error| closed(error))
        .map(|_| Exit::Success)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context;
    use memvisor_guest_agent::shim::AttachError;

    use super::*;

    fn check(error: impl Into<anyhow::Error>, expected: Exit) {
        let error = Err::<(), _>(error.into())
            .context("outer")
            .expect_err("is one");
        assert_eq!(of_error(&error), expected, "{error:#}");
    }

    #[test]
    fn error_is_told_apart_by_its_cause() {
        let path = std::path::PathBuf::from("/x");
        check(UsageError("bad".to_owned()), Exit::Usage);
        check(ClientError::NotRunning { path }, Exit::HostGone);
        check(ClientError::Timeout, Exit::Failure);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let gone = memvisor_guest_agent::guest::GuestError::from(AttachError::Connect(refused));
        check(GuestError::from(gone), Exit::HostGone);
        for (silent, exit) in [
            (AttachError::Silent(Duration::ZERO), Exit::HostGone),
            (AttachError::Interrupted, Exit::Interrupted),
        ] {
            let silent = memvisor_guest_agent::guest::GuestError::from(silent);
            check(GuestError::from(silent), exit);
        }
        check(DemoError::Interrupted, Exit::Interrupted);
        check(DemoError::Client(ClientError::Timeout), Exit::Failure);
        let source = io::ErrorKind::BrokenPipe.into();
        let action = "print";
        check(DemoError::Io { action, source }, Exit::Success);
        check(io::Error::from(io::ErrorKind::BrokenPipe), Exit::Success);
        check(io::Error::from(io::ErrorKind::NotFound), Exit::Failure);
    }
}
