//! What a guest is powered on with.

use std::path::PathBuf;
use std::time::Duration;

use memvisor_wire::balloon::Protocol;

/// What a guest is powered on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestOptions {
    /// The VM's name.
    pub name: String,
    /// Configured size in pages.
    pub pages: u32,
    /// The workloads it runs at the same time, one text for each sequence of workloads.
    pub workloads: Vec<String>,
    /// The salt of its sharing domain.
    pub salt: Option<String>,
    /// The seed of its randomness.
    pub seed: u64,
    /// How long it runs; `None`: until a signal.
    pub duration: Option<Duration>,
    /// How often it says what its workloads have done; `None`: only at the end.
    pub tell_every: Option<Duration>,
    /// Guaranteed memory in pages.
    pub reservation: u32,
    /// The most memory in pages.
    pub limit: u32,
    /// Its weight when memory is short.
    pub shares: u32,
    /// The resource pool that it is to be in; `None`: the root.
    pub resource_pool: Option<String>,
    /// The most pages its balloon may hold; `None` leaves that to the host.
    pub balloon_max: Option<u32>,
    /// Whether its pages may be shared.
    pub sharing: bool,
    /// The balloon agent that it runs.
    pub agent: AgentChoice,
    /// How the agent names pages.
    pub balloon_protocol: Protocol,
    /// Whether the agent bounds its own rate.
    pub balloon_paced: bool,
    /// Whether it serves some of its faults itself, provided that the host allows it.
    pub inline: bool,
    /// Whether it runs without a host, on memory of its own process, which the kernel may merge if `sharing`. Of
    /// the other options only size, workloads, seed, duration and swap disk then count.
    pub bare: bool,
    /// The host's memory socket.
    pub memory_socket: PathBuf,
    /// The host's balloon socket.
    pub balloon_socket: PathBuf,
    /// The directory of the files behind the guest's own disks.
    pub disk_directory: PathBuf,
    /// The size of the guest's own swap disk in pages.
    pub swap_pages: u32,
    /// Where its accesses are listed, if anywhere.
    pub accesses: Option<PathBuf>,
}

/// The balloon agent of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentChoice {
    /// None, as in a guest without VMware Tools.
    None,
    /// The one that comes with every guest.
    Bundled,
    /// A program, by its command line: [`crate::outside`].
    Program(String),
}
