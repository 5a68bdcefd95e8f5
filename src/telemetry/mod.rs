//! One snapshot of the host that every reader renders: `top`, the API, the command line, reports.
//!
//! If each screen asked the mechanisms for its own numbers, two screens could disagree and neither
//! could be replayed. So the daemon fills one plain [`HostStatus`], pure functions here compute everything
//! that is derived from it ([`Totals::of`], [`Savings::of`], [`Rates::between`], [`Health::of_vm`]), and readers only format.
//! The types are `Serialize` because they are the body of the control API; the mechanisms' own types are not.
//!
//! Conventions: `*_pages` counts 4 KiB pages, `*_bytes` bytes, `*_ms` and `*_us` time; a field that
//! says "so far" only grows while the VM lives, any other is a state at the moment of the snapshot.
//! Nothing here locks, reads a clock or knows how a mechanism works.

mod balloon;
#[cfg(test)]
mod document;
#[cfg(test)]
pub(crate) mod fixture;
mod health;
mod host;
pub mod metrics;
mod model;
mod series;
mod sharing;
mod swap;
mod vm;

pub use balloon::BalloonSessionStatus;
pub use health::{Health, Reading};
pub use host::{
    FreeState, HostStatus, MachineStatus, Overcommit, PoolStatus, PressureLevel, PressureStatus,
    ShareStatus, Thresholds, Totals,
};
pub use model::{Rates, Savings, StallRates, VmRates, overcommit};
pub use series::Series;
pub use sharing::{
    EstimatedPages, LargeStatus, ScanStatus, ShareEstimate, SharingStatus, VmShareEstimate,
};
pub use swap::{SwapCacheStatus, SwapStatus};
pub use vm::{
    ActivityStatus, AllocationStatus, BalloonStatus, EvictStatus, FaultStatus, GuestClaims, Homes,
    LatencyStatus, StallStatus, VmStatus, ZipStatus,
};
