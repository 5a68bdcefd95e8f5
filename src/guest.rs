//! A guest process: [`memvisor_guest_agent::guest`] with the options and the report of this program.

use std::time::Duration;

use memvisor_guest_agent::guest;
use memvisor_guest_agent::guest::GuestReport;
use memvisor_guest_agent::shim::SessionEnd;
use memvisor_wire::signals::{ENDING, Signals, report_file_size_limit};
use thiserror::Error;

use crate::runtime_dir::RuntimeDir;
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
    /// Its salt; a guest without one shares with all others without one, unless the host decides otherwise.
    pub salt: Option<String>,
    /// The seed of its randomness.
    pub seed: u64,
    /// How long it runs; `None` until it is told to end.
    pub duration: Option<Duration>,
    /// Memory it is guaranteed.
    pub reservation: Bytes,
    /// Memory it never exceeds.
    pub limit: Option<Bytes>,
    /// Its weight when memory is divided.
    pub shares: u32,
    /// The most memory its balloon may take; `None` leaves that to the host.
    pub balloon_max: Option<Bytes>,
    /// Whether its pages may be shared.
    pub sharing: bool,
    /// Whether it runs a balloon agent.
    pub agent: bool,
    /// Whether it serves some of its faults itself, where the host allows it.
    pub inline: bool,
    /// Whether it runs without a host, on memory of its own process.
    pub bare: bool,
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
        matches!(self, Self::Guest(error) if error.is_host_gone())
    }

    /// Whether a signal ended it before it ran.
    #[must_use]
    pub const fn is_interrupted(&self) -> bool {
        matches!(self, Self::Guest(error) if error.is_interrupted())
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
    // Before any thread starts, because threads inherit the blocked signals.
    let signals = Signals::block(ENDING).map_err(GuestError::Signals)?;
    report_file_size_limit().map_err(GuestError::Signals)?;
    let outcome = guest::run(&agent_options(options)?, &signals, host_gone, |_| {})?;
    for bytes in &outcome.wrong {
        wrong(&bytes.to_string());
    }
    Ok(GuestReport::new(&options.name, &outcome))
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
        shares: options.shares,
        balloon_max: options.balloon_max.map(pages).transpose()?,
        sharing: options.sharing,
        agent: options.agent,
        inline: options.inline,
        bare: options.bare,
        memory_socket: options.runtime_dir.memory_socket(),
        balloon_socket: options.runtime_dir.balloon_socket(),
        // As large as its memory: the balloon may ask it to page out nearly all of that.
        swap_pages: size,
        swap_directory: std::env::temp_dir(),
    })
}
