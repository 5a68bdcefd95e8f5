//! The daemon: owns the budget, admits guests, runs their threads and the policy.
//!
//! Threads:
//!
//! - `memory` and `balloon` accept connections; each connection gets a thread of its own.
//! - `memory-conn` shakes hands with a guest and then is its fault thread until the guest ends.
//! - `work-NAME` takes that guest's pages away ([`crate::reclaim`]).
//! - `balloon-conn` talks to a guest's agent ([`crate::balloon`]).
//! - `policy` takes a snapshot, plans, and hands out orders (`governor.rs`).
//! - `control` serves the API ([`crate::control`]).
//!
//! The main thread waits for a signal and then ends everything in order: guests first, each told why,
//! then the sockets.

mod admission;
mod averages;
mod balance;
mod balloon;
mod bare;
mod capability;
mod configuration;
mod daemon;
mod governor;
mod listen;
mod member;
mod options;
mod session;
mod snapshot;
mod status;
mod vm_settings;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;

use crate::control::{self, ServeError};
use crate::runtime_dir::RuntimeDirError;
use crate::signals::{ENDING, Event, Signals, report_file_size_limit};
use crate::units::Bytes;

pub use bare::{BareHost, BareVm};
use capability::Capabilities;
pub use capability::EngineUnavailable;
use daemon::Host;
use listen::Listeners;
pub use options::{EngineChoice, HostOptions};

/// The least budget: below it the reserve alone would be a large part.
pub const MIN_MEMORY: Bytes = Bytes::from_mib(4);
/// How long guests get to end when the daemon does.
const GUESTS_GRACE: Duration = Duration::from_secs(8);

/// Why the daemon could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// The budget does not even hold the reserve.
    #[error("a budget of {0} is too small: at least {MIN_MEMORY} is needed")]
    Memory(Bytes),
    /// The engine that was asked for does not work here.
    #[error(transparent)]
    Engine(#[from] EngineUnavailable),
    /// No swap file can be made.
    #[error("cannot make swap files in `{}`", dir.display())]
    SwapDir {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The control API cannot be served.
    #[error(transparent)]
    Control(#[from] ServeError),
    /// The kernel refused something else.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Kernel { what, source }
}

/// Runs the daemon until it is told to end by SIGINT, SIGTERM or SIGHUP. `ready` is called with the
/// capability table when guests can be started.
///
/// # Errors
/// [`HostError`]; nothing is left behind.
pub fn run(options: &HostOptions, ready: impl FnOnce(&str)) -> Result<(), HostError> {
    if options.memory < MIN_MEMORY {
        return Err(HostError::Memory(options.memory));
    }
    // Before any thread starts: threads inherit what is blocked.
    let signals = Signals::block(ENDING).map_err(kernel("wait for signals"))?;
    end_on_panic();
    raise_descriptor_limit();
    report_file_size_limit().map_err(kernel("block SIGXFSZ"))?;
    let held = options.runtime_dir.clone().claim()?;
    held.remove_sockets()?;
    let capabilities = Capabilities::probe(options)?;
    let host = Arc::new(Host::new(options, &capabilities));
    let policy = governor::start(&host).map_err(kernel("start the policy thread"))?;
    let listeners = Listeners::start(&host, held.dir()).map_err(kernel("listen for guests"))?;
    let daemon: Arc<dyn control::Daemon> = Arc::<Host>::clone(&host);
    let server = control::Server::start(&held.dir().control_socket(), daemon)?;
    ready(&capabilities.table(options));
    tracing::info!(memory = %options.memory, dir = %held.dir().path().display(), "host is up");

    let ended_by = wait_for_signal(&signals)?;
    tracing::info!(signal = ended_by.as_str(), "host ends");
    host.stop();
    listeners.stop();
    if !host.members.wait_until_empty(GUESTS_GRACE) {
        tracing::warn!("guests are still ending; they are left to the kernel");
    }
    drop(server);
    // A policy that panicked has nothing to clean up; the panic was printed when it happened.
    let _ = policy.join();
    Ok(())
}

/// A panic of any thread ends the daemon. It means that an invariant does not hold, and a daemon that
/// goes on could hand out wrong bytes; guests of one that is gone end with a message.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// A guest takes about 25 descriptors, and the usual soft limit of 1024 is for programs that select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays as it is; many guests may not fit");
    }
}

fn wait_for_signal(signals: &Signals) -> Result<nix::sys::signal::Signal, HostError> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    loop {
        let event = signals
            .wait(None, Instant::now() + DAY)
            .map_err(kernel("wait for signals"))?;
        if let Event::Signal(signal) = event {
            return Ok(signal);
        }
    }
}
