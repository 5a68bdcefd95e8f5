//! A guest process: [`memvisor_guest_agent::guest`] with the options and the report of this program.

use std::time::Duration;

use memvisor_guest_agent::guest::{self, Outcome};
use memvisor_guest_agent::shim::SessionEnd;
use memvisor_guest_agent::signals::{ENDING, Signals, report_file_size_limit};
use serde_json::{Value, json};
use thiserror::Error;

use crate::runtime_dir::RuntimeDir;
use crate::telemetry::{GuestReport, WorkloadReport};
use crate::units::{Bytes, Pages};
use crate::vm::MAX_PAGES;

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
    /// It has more memory than memvisor can map.
    #[error("{0} of memory are too much: a guest has at most {max}", max = Pages(u64::from(MAX_PAGES)).bytes())]
    TooLarge(Bytes),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// It could not run.
    #[error(transparent)]
    Guest(#[from] guest::GuestError),
}

impl GuestError {
    /// Whether it failed because there is no host.
    #[must_use]
    pub const fn is_host_gone(&self) -> bool {
        use memvisor_guest_agent::shim::AttachError;
        matches!(
            self,
            Self::Guest(guest::GuestError::Attach(
                AttachError::Connect(_) | AttachError::Session(SessionEnd::Closed)
            ))
        )
    }
}

/// Runs a guest until its time is over or it is told to end. `host_gone` must end the process;
/// `wrong` is told of wrong bytes.
///
/// # Errors
/// [`GuestError`].
pub fn run(
    options: &GuestOptions,
    host_gone: impl FnOnce(SessionEnd) + Send + 'static,
    mut wrong: impl FnMut(&str),
) -> Result<GuestReport, GuestError> {
    // Before any thread starts: threads inherit what is blocked.
    let signals = Signals::block(ENDING).map_err(GuestError::Signals)?;
    report_file_size_limit().map_err(GuestError::Signals)?;
    let outcome = guest::run(&agent_options(options)?, &signals, host_gone, |_| {})?;
    for bytes in &outcome.wrong {
        wrong(&bytes.to_string());
    }
    Ok(report(&options.name, &outcome))
}

fn pages(size: Bytes) -> Result<u32, GuestError> {
    let pages = u32::try_from(size.pages().0)
        .ok()
        .filter(|pages| *pages <= MAX_PAGES);
    pages.ok_or(GuestError::TooLarge(size))
}

fn agent_options(options: &GuestOptions) -> Result<guest::GuestOptions, GuestError> {
    let size = pages(options.memory)?;
    Ok(guest::GuestOptions {
        name: options.name.clone(),
        pages: size,
        workloads: options.workloads.clone(),
        salt: options.salt.clone(),
        seed: options.seed,
        duration: options.duration,
        reservation: pages(options.reservation)?,
        limit: pages(options.limit.unwrap_or(options.memory))?,
        shares: u32::try_from(options.shares).unwrap_or(u32::MAX),
        memory_socket: options.runtime_dir.memory_socket(),
        balloon_socket: options.runtime_dir.balloon_socket(),
        // A guest can be asked to page out all that the host may balloon.
        swap_pages: size,
        swap_directory: std::env::temp_dir(),
    })
}

fn report(name: &str, outcome: &Outcome) -> GuestReport {
    let workloads: Vec<WorkloadReport> = outcome
        .report
        .workloads
        .iter()
        .map(|workload| WorkloadReport {
            workload: workload.name.clone(),
            operations: workload.operations,
            pages_verified: workload.pages_verified,
            mismatches: workload.mismatches,
            other: match json!(workload) {
                Value::Object(mut fields) => {
                    for told in ["name", "operations", "pages_verified", "mismatches"] {
                        fields.remove(told);
                    }
                    fields
                }
                _ => serde_json::Map::new(),
            },
        })
        .collect();
    GuestReport {
        name: name.to_owned(),
        duration_ms: u64::try_from(outcome.ran.as_millis()).unwrap_or(u64::MAX),
        pages_verified: workloads
            .iter()
            .map(|workload| workload.pages_verified)
            .sum(),
        mismatches: workloads.iter().map(|workload| workload.mismatches).sum(),
        interrupted: outcome.interrupted,
        workloads,
        other: serde_json::Map::new(),
    }
}
