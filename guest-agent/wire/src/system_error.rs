//! The error for a system call that failed where the process cannot go on without it.

use std::io;

use thiserror::Error;

/// The kernel refused what was tried.
#[derive(Debug, Error)]
#[error("cannot {what}")]
pub struct SystemError {
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// Turns an error of the kernel into a [`SystemError`] that says what was tried.
pub fn cannot<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SystemError {
    move |error| SystemError {
        what,
        source: error.into(),
    }
}
