//! Why a replay ends early.

use std::io;

use thiserror::Error;

use crate::engine::EngineError;
use crate::fault::FaultError;
use crate::units::Bytes;

/// Why a story cannot be replayed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// This process has no memory for a VM.
    #[error("there is no memory here for the tables of VM `{vm}`")]
    Memory {
        /// Its name.
        vm: String,
        /// Why.
        source: io::Error,
    },
    /// The host has no memory for a VM.
    #[error("{memory} of memory are not enough for the tables of VM `{vm}`")]
    Tables {
        /// Its name.
        vm: String,
        /// The budget.
        memory: Bytes,
    },
    /// A page of a simulated guest was lost.
    #[error("a simulated page is lost")]
    Fault(#[source] FaultError),
    /// A worker failed.
    #[error("the worker of a simulated guest fails")]
    Worker(#[source] EngineError),
}
