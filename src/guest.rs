//! A guest process.

use std::time::Duration;

use thiserror::Error;

use crate::runtime_dir::RuntimeDir;
use crate::telemetry::GuestReport;
use crate::units::Bytes;

/// What a guest is started with.
#[derive(Clone, PartialEq, Debug)]
pub struct GuestOptions {
    /// Its name.
    pub name: String,
    /// Its configured size.
    pub memory: Bytes,
    /// What it runs, one text each.
    pub workloads: Vec<String>,
    /// Its sharing domain; `None` shares with all others that have none.
    pub salt: Option<String>,
    /// Where its randomness begins.
    pub seed: u64,
    /// How long it runs; `None` until it is told to end.
    pub duration: Option<Duration>,
    /// Memory it is guaranteed.
    pub reservation: Bytes,
    /// Memory it never exceeds.
    pub limit: Option<Bytes>,
    /// Its weight when memory is divided.
    pub shares: u64,
    /// Where the host's sockets are.
    pub runtime_dir: RuntimeDir,
}

/// Why a guest failed.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The host is not there or went away.
    #[error("the host is gone: {0}")]
    HostGone(String),
}

/// Runs a guest until its time is over or it is told to end.
///
/// # Errors
/// [`GuestError`].
pub fn run(options: &GuestOptions) -> Result<GuestReport, GuestError> {
    Err(GuestError::HostGone(format!(
        "nobody listens at `{}`",
        options.runtime_dir.memory_socket().display()
    )))
}
