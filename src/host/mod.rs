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
//! The main thread follows the configuration file and waits for a signal, and then ends everything in
//! order: guests first, each told why, then the sockets.
//!
//! The state that these threads share has owners, each with a lock of its own. An owner knows only those above
//! it in this table:
//!
//! | owner | owns |
//! |---|---|
//! | [`Budget`](crate::page::Budget) | the memory |
//! | `members.rs` | the registry of VMs (`member.rs`): names, and what each runs with |
//! | `configuration.rs` | the settings in force, of the host and in the file |
//! | `pools.rs` | the share pool of each sharing domain |
//! | `admission.rs` | promises of memory: power-on and changes of settings, one at a time |
//! | `governor.rs` | the free state, the latest plan, the policy thread |
//!
//! `daemon.rs` puts them together. Above it are the API (`api.rs`, `status.rs`), the sessions of guests
//! (`session.rs`) and agents (`balloon.rs`), the listeners, and this file.

mod admission;
mod api;
mod averages;
mod balance;
mod balloon;
mod bare;
mod caches;
mod capability;
mod census;
mod configuration;
mod daemon;
mod error;
mod governor;
mod laws;
mod listen;
mod member;
mod members;
mod options;
mod orders;
mod placement;
mod pools;
mod recent;
mod reserve;
mod resource_pools;
#[cfg(test)]
mod rig;
mod service;
mod session;
mod snapshot;
mod status;
mod surroundings;
mod survey;
mod tiers;
mod traced;
mod vm_settings;
mod vm_status;
mod watchdog;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::privacy;
use memvisor_wire::signals::{ENDING, Event, Signals, report_file_size_limit};
use memvisor_wire::system_error::cannot;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::control;
use crate::sys::readers_cannot_write;

pub(crate) use balance::Balance;
pub use bare::{BareHost, BareVm};
pub(crate) use caches::{bound as bound_cache, price as price_of_memory};
use capability::Capabilities;
use daemon::{GUESTS_GRACE, Host, KILLED_GRACE};
pub use error::{EngineUnavailable, HostError, MIN_MEMORY};
pub(crate) use governor::{MIN_PERIOD, PERIOD};
pub(crate) use laws::Laws;
use listen::Listeners;
pub use options::{EngineChoice, HostOptions};
pub(crate) use orders::{give as give_orders, set_marks};
pub(crate) use reserve::reserve;
pub(crate) use resource_pools::{first_ceiling, place as place_of_pool};
use service::{Manager, Pulse};
pub(crate) use snapshot::of_vm as snapshot_of;
pub(crate) use traced::pools_of;
pub(crate) use vm_settings::swap_slots;

/// How often the configuration file and the machine are looked at.
const FILE_PERIOD: Duration = Duration::from_secs(1);

/// Runs the daemon until SIGINT or SIGTERM tells it to end; SIGHUP reloads the configuration file. `ready` is called
/// with the capability table when guests can be started.
///
/// # Errors
/// [`HostError`]; nothing is left behind.
pub fn run(options: &HostOptions, ready: impl FnOnce(&str)) -> Result<(), HostError> {
    if options.memory < MIN_MEMORY {
        return Err(HostError::Memory(options.memory));
    }
    // Before any thread starts, because threads inherit the blocked signals.
    let signals = Signals::block(ENDING).map_err(cannot("wait for signals"))?;
    end_on_panic();
    raise_descriptor_limit();
    report_file_size_limit().map_err(cannot("block SIGXFSZ"))?;
    close_to_others();
    let manager = Manager::of_environment().map_err(cannot("find the service manager"))?;
    let manager = manager.map(Arc::new);
    let held = options.runtime_dir.clone().claim()?;
    // Only the holder of the directory may remove them: they could be those of a daemon that runs.
    held.remove_sockets()?;
    let capabilities = Capabilities::probe(options)?;
    if let Some(why) = capabilities.machine.objection(options.memory) {
        let budget = options.memory;
        tracing::warn!(%budget, %why, "the budget does not fit: the kernel may end guests or the host");
    }
    let host = Arc::new(Host::new(options, &capabilities)?);
    let pulse = Pulse::new(manager.clone());
    let policy = (host.governor.start(pulse)).map_err(cannot("start the policy thread"))?;
    let listeners = Listeners::start(&host, held.dir()).map_err(cannot("listen for guests"))?;
    let daemon: Arc<dyn control::Daemon> = Arc::<Host>::clone(&host);
    let server = control::Server::start(&held.dir().control_socket(), options.http, daemon)?;
    if let Some(address) = server.http() {
        tell_of(address);
    }
    ready(&capabilities.table(options));
    let (memory, given) = (options.memory, options.budget);
    tracing::info!(%memory, %given, dir = %held.dir().path().display(), "host is up");
    let tell = |news| manager.iter().for_each(|manager| manager.insist(news));
    tell("READY=1");

    let ended_by = follow_until_signal(&host, &signals)?;
    tracing::info!(signal = ended_by.as_str(), "host ends");
    tell("STOPPING=1");
    host.stop();
    // Before the guests are waited for, so that no new ones come.
    listeners.stop();
    let mut all_ended = host.members.wait_until_empty(GUESTS_GRACE);
    if !all_ended {
        host.members.kill();
        all_ended = host.members.wait_until_empty(KILLED_GRACE);
    }
    if !all_ended {
        tracing::warn!("guests are still ending; they are left to the kernel");
    }
    drop(server);
    if let Some(recorder) = &host.recorder {
        recorder.end();
    }
    // A policy that panicked has nothing to clean up; the panic was printed when it happened.
    let _ = policy.join();
    Ok(())
}

/// Says where metrics and the live page are, and who can read them.
fn tell_of(address: SocketAddr) {
    tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics are served");
    tracing::info!(url = %format_args!("http://{address}/"), "a live page is served");
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(%address, "no loopback address: whoever reaches it reads what is served there, without a password");
    }
}

/// Makes a panic of any thread end the daemon. A panic means that an invariant does not hold, and a daemon that
/// went on could hand out wrong bytes; guests whose daemon is gone end with a message.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Closes this process to others of its user, which could reach the memory of all guests through it.
fn close_to_others() {
    // First the mounts, which a closed process cannot make any more. The capability table reports a failure.
    let _ = readers_cannot_write();
    let closed = privacy::keep_out_of_dumps().and_then(|()| privacy::close_to_others());
    if let Err(error) = closed {
        tracing::warn!(%error, "this process stays open to others of its user");
    }
}

/// Raises the limit of open files. A guest takes about 25 descriptors, and the usual soft limit of 1024 is meant
/// for programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays as it is; many guests may not fit");
    }
}

/// Reloads the configuration file whenever it changes or SIGHUP comes, until a signal comes that ends the
/// daemon.
fn follow_until_signal(host: &Host, signals: &Signals) -> Result<Signal, HostError> {
    loop {
        let event = signals
            .wait(None, Instant::now() + FILE_PERIOD)
            .map_err(cannot("wait for signals"))?;
        match event {
            Event::Signal(Signal::SIGHUP) => {
                tracing::info!("SIGHUP: reloading the configuration file");
                host.reload_unasked();
            }
            Event::Signal(signal) => return Ok(signal),
            Event::Readable | Event::Timeout => {
                host.surroundings.look(&host.admission, &host.governor);
                if host.configuration.poll_file() {
                    host.reload_unasked();
                }
            }
        }
    }
}
