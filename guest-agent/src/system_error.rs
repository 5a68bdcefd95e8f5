//! What is said where the kernel denies something that cannot be done without.

use std::io;

use thiserror::Error;

/// The kernel denied what was tried.
#[derive(Debug, Error)]
#[error("cannot {what}")]
pub struct SystemError {
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// Makes what the kernel said the error of who tried to do `what`.
pub fn cannot<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SystemError {
    move |error| SystemError {
        what,
        source: error.into(),
    }
}
