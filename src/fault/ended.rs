//! Why a VM ended.

use std::io;

use memvisor_wire::system_error::SystemError;
use thiserror::Error;

use super::resolve::FaultError;
use crate::engine::EngineError;
use crate::units::Gfn;
use crate::vm::Vm;

/// Why a VM ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Ended {
    /// The guest's process is gone or has hung up.
    #[error("the guest is gone")]
    GuestGone,
    /// Somebody asked for the end.
    #[error("{0}")]
    Asked(String),
    /// A fault cannot be served, ever.
    #[error("a fault on {gfn} cannot be served")]
    Fault {
        /// Which page was asked for.
        gfn: Gfn,
        /// Why it cannot be given.
        source: FaultError,
    },
    /// The shim broke the protocol.
    #[error("the shim broke the protocol: {0}")]
    Protocol(String),
    /// The guest's kernel refused a mapping that the guest cannot go on without.
    #[error("the guest cannot map its own page: {0} (out of VMAs? see vm.max_map_count)")]
    Mapping(io::Error),
    /// A system call of the daemon failed.
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

impl Ended {
    /// A fault of `vm` on `gfn` failed for good.
    pub(super) fn of_fault(vm: &Vm, gfn: Gfn, source: FaultError) -> Self {
        // The guest died between its fault and the answer.
        if let FaultError::Engine(EngineError::Gone) = source {
            return Self::GuestGone;
        }
        let homes = vm.table.history().of(gfn);
        tracing::error!(vm = %vm.params.name, "a page cannot be served; {homes}");
        Self::Fault { gfn, source }
    }
}
