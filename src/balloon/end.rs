//! How sessions end.

use std::io;

use memvisor_wire::DecodeError;
use memvisor_wire::balloon::{self as protocol, ErrorCode};
use thiserror::Error;

use super::Refusal;

/// How a session ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The agent sent `STOP`; its balloon is empty.
    Stopped,
    /// The agent went away; its balloon is as it was.
    Closed,
}

impl SessionEnd {
    /// How the session ended, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "the agent said STOP",
            Self::Closed => "the agent closed the connection",
        }
    }
}

/// Why the host ended a session.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A message breaks the format or a limit.
    #[error("malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The agent and the host have no common version of the protocol.
    #[error(
        "the agent speaks versions {min} to {max} of the balloon protocol, this host speaks {}",
        protocol::VERSION
    )]
    Version {
        /// The agent's lowest version.
        min: u16,
        /// The agent's highest version.
        max: u16,
    },
    /// A message is not allowed now.
    #[error("{message} {why}")]
    Order {
        /// The name of the message.
        message: &'static str,
        /// Why it is not allowed.
        why: &'static str,
    },
    /// The agent is not welcome.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The VM or the daemon is going away.
    #[error("the VM or the host is shutting down")]
    Closing,
    /// The socket failed, or the agent does not read its replies.
    #[error("balloon socket: {0}")]
    Socket(#[from] io::Error),
}

impl SessionError {
    /// What the agent is told; `None` when it cannot be reached.
    pub(super) const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Malformed(_) => Some(ErrorCode::Malformed),
            Self::Version { .. } => Some(ErrorCode::Version),
            Self::Order { .. } => Some(ErrorCode::Order),
            Self::Refused(_) => Some(ErrorCode::Refused),
            Self::Closing => Some(ErrorCode::Closing),
            Self::Socket(_) => None,
        }
    }
}
