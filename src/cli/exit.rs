//! Exit codes: what a script can tell without reading the output.

use std::io;

pub(super) use memvisor_guest_agent::command::{EXIT_CODES, Exit, UsageError};

use crate::bench::BenchError;
use crate::control::ClientError;
use crate::demo::DemoError;
use crate::top::TopError;

/// The part of `--help` about the environment.
pub(super) const ENVIRONMENT: &str = "\
Environment:
  MEMVISOR_RUNTIME_DIR  where the sockets are, if --runtime-dir is not given
  MEMVISOR_LOG          what to log on standard error, such as `debug` or `memvisor::share=trace`
  NO_COLOR              draw without colours
  XDG_CONFIG_HOME       where `memvisor/toprc` is, the configuration of `top`";

/// The code for an error, from the first cause that has one of its own.
pub(super) fn of_error(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failure)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<DemoError>() {
        return match error {
            DemoError::Interrupted => Some(Exit::Interrupted),
            DemoError::Corrupt { .. } => Some(Exit::Corrupt),
            DemoError::Io { .. } => None,
            // Not `HostGone`: the demo started this host itself, and the user had not.
            _ => Some(Exit::Failure),
        };
    }
    if let Some(TopError::NoScreen(_)) = cause.downcast_ref() {
        return Some(Exit::Usage);
    }
    if let Some(BenchError::Corrupt { .. }) = cause.downcast_ref() {
        return Some(Exit::Corrupt);
    }
    if let Some(error) = cause.downcast_ref::<ClientError>() {
        return error.is_gone().then_some(Exit::HostGone);
    }
    if let Some(exit) = Exit::of_cause(cause) {
        return Some(exit);
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
    use memvisor_guest_agent::guest::GuestError;
    use memvisor_guest_agent::shim::PowerOnError;

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
        check(
            GuestError::from(PowerOnError::Connect(refused)),
            Exit::HostGone,
        );
        for (silent, exit) in [
            (PowerOnError::Silent(Duration::ZERO), Exit::HostGone),
            (PowerOnError::Interrupted, Exit::Interrupted),
        ] {
            check(GuestError::from(silent), exit);
        }
        check(DemoError::Interrupted, Exit::Interrupted);
        check(TopError::NoScreen("x".to_owned()), Exit::Usage);
        check(DemoError::Client(ClientError::Timeout), Exit::Failure);
        let source = io::ErrorKind::BrokenPipe.into();
        let action = "print";
        check(DemoError::Io { action, source }, Exit::Success);
        check(io::Error::from(io::ErrorKind::BrokenPipe), Exit::Success);
        check(io::Error::from(io::ErrorKind::NotFound), Exit::Failure);
    }
}
