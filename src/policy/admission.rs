//! Admission: whether one more reservation can be promised.
//!
//! A reservation is a promise that holds whatever the other VMs do, so it is checked once, before
//! the VM exists, against what is not promised yet. The memory that must stay free is never promised:
//! if it were, VMs that use their reservations would keep the host short for ever.

use thiserror::Error;

use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, Thresholds, total};
use crate::units::Pages;

/// What a new VM asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmParams {
    /// Its configured memory, in guest pages.
    pub size: Pages,
    /// Guest pages that are never taken from it once it holds them.
    pub reservation: Pages,
    /// The most guest pages that are ever backed. None: its size.
    pub limit: Option<Pages>,
    /// Host pages of metadata that it costs from the start.
    pub overhead: Pages,
}

/// Why a VM is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// It could never hold its reservation.
    #[error(
        "the reservation is {reservation}: at most {max} is allowed, the lesser of size and limit",
        reservation = .reservation.bytes(), max = .max.bytes()
    )]
    AboveMax {
        /// The reservation asked for.
        reservation: Pages,
        /// The lesser of size and limit.
        max: Pages,
    },
    /// It asks for more than is not promised yet.
    #[error(
        "reservation {reservation} and overhead {overhead} exceed the unreserved {unreserved}: \
         of the budget of {budget}, {reserved} is reserved, {metadata} is metadata and {kept_free} \
         stays free",
        reservation = .reservation.bytes(), overhead = .overhead.bytes(),
        unreserved = .unreserved.bytes(), budget = .budget.bytes(), reserved = .reserved.bytes(),
        metadata = .metadata.bytes(), kept_free = .kept_free.bytes()
    )]
    Unreserved {
        /// The reservation asked for.
        reservation: Pages,
        /// The metadata of the new VM.
        overhead: Pages,
        /// What could still be promised.
        unreserved: Pages,
        /// All the host pages the daemon may use.
        budget: Pages,
        /// The sum of the reservations of the VMs of this host.
        reserved: Pages,
        /// The host pages of metadata now.
        metadata: Pages,
        /// The free pages that targets aim for.
        kept_free: Pages,
    },
}

/// What of a host's memory is promised, and what can still be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promises {
    /// The sum of the reservations.
    pub reserved: Pages,
    /// The host pages of metadata.
    pub metadata: Pages,
    /// What targets leave free, and not only `minFree`: otherwise reservations could not be met without being short.
    pub kept_free: Pages,
    /// What is left for more reservations.
    pub unreserved: Pages,
}

impl Promises {
    /// Those of `host`.
    #[must_use]
    pub fn of(host: &HostSnapshot, config: &Config) -> Self {
        let reserved = total(host.vms.iter().map(VmSnapshot::min));
        let metadata = host.overhead();
        let kept_free = Thresholds::of(host.budget, config).aim;
        Self {
            reserved,
            metadata,
            kept_free,
            unreserved: (host.budget).saturating_sub(total([reserved, metadata, kept_free])),
        }
    }
}

/// Whether a VM can be started on this host.
///
/// # Errors
///
/// The sums that do not allow it.
pub fn admit(host: &HostSnapshot, config: &Config, vm: &VmParams) -> Result<(), Refusal> {
    let max = vm.limit.unwrap_or(vm.size).min(vm.size);
    if vm.reservation > max {
        return Err(Refusal::AboveMax {
            reservation: vm.reservation,
            max,
        });
    }
    let Promises {
        reserved,
        metadata,
        kept_free,
        unreserved,
    } = Promises::of(host, config);
    if total([vm.reservation, vm.overhead]) <= unreserved {
        return Ok(());
    }
    Err(Refusal::Unreserved {
        reservation: vm.reservation,
        overhead: vm.overhead,
        unreserved,
        budget: host.budget,
        reserved,
        metadata,
        kept_free,
    })
}
