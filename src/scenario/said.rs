//! The numbers that guests say of their work: their names in a recording, and what they mean.

use std::collections::BTreeMap;

use memvisor_guest_agent::guest::GuestProgress;

use crate::recording::Said;
use crate::telemetry::Series;

/// Operations that the workloads of a guest have completed since it started.
pub(super) const OPERATIONS: &str = "guest_operations_total";
/// Half of the operations of the latest interval took at most this long.
pub(super) const P50: &str = "guest_operation_p50_seconds";
/// 99 of 100 of them took at most this long.
pub(super) const P99: &str = "guest_operation_p99_seconds";

/// A series of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// What it counts in.
    pub(super) unit: &'static str,
    /// Whether it only grows.
    pub(super) is_counter: bool,
    /// Whether it is one of the host; else each VM has it.
    pub(super) is_of_host: bool,
}

/// All series that a recording can have, by name.
pub(super) fn known() -> BTreeMap<String, Known> {
    let of = |is_of_host| {
        move |series: Series| {
            let known = Known {
                unit: series.unit(),
                is_counter: series.is_counter(),
                is_of_host,
            };
            (series.name(), known)
        }
    };
    let said = [
        (OPERATIONS, "operations", true),
        (P50, "seconds", false),
        (P99, "seconds", false),
    ];
    let said = said.map(|(name, unit, is_counter)| {
        let is_of_host = false;
        let known = Known {
            unit,
            is_counter,
            is_of_host,
        };
        (name.to_owned(), known)
    });
    let host = Series::of_host().map(of(true));
    host.chain(Series::of_vm().map(of(false)))
        .chain(said)
        .collect()
}

/// What a guest says, as values of these series.
pub(super) fn said(progress: &GuestProgress) -> Said {
    let mut said = Said::from([(OPERATIONS.to_owned(), progress.operations as f64)]);
    if let Some(latency) = progress.latency {
        said.insert(P50.to_owned(), latency.p50_us / 1e6);
        said.insert(P99.to_owned(), latency.p99_us / 1e6);
    }
    said
}
