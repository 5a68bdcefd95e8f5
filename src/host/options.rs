//! The options that the daemon is started with, checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::machine::BudgetChoice;
use crate::policy::Policy;
use crate::runtime_dir::RuntimeDir;
pub use crate::settings::EngineChoice;
use crate::settings::{ConfigFile, Layers};
use crate::trace::Limits;
use crate::units::Bytes;

/// What a daemon is started with.
#[derive(Clone, PartialEq, Debug)]
pub struct HostOptions {
    /// The budget for guest memory.
    pub memory: Bytes,
    /// How that was given.
    pub budget: BudgetChoice,
    /// The policy.
    pub policy: &'static dyn Policy,
    /// The engine.
    pub engine: EngineChoice,
    /// Where swap files are made.
    pub swap_dir: PathBuf,
    /// Where the host cache of swapped pages is, if there is one.
    pub swap_cache: Option<PathBuf>,
    /// Where the sockets are.
    pub runtime_dir: RuntimeDir,
    /// Where sessions of balloon agents are recorded, if at all.
    pub record_balloon: Option<PathBuf>,
    /// Where metrics are served, if anywhere.
    pub http: Option<SocketAddr>,
    /// The most mappings sharing may cost one guest; `None` chooses by the kernel's limit.
    pub vma_budget: Option<u32>,
    /// The host settings, by where they were given.
    pub layers: Layers,
    /// The configuration file that was read.
    pub config: Option<ConfigFile>,
    /// Where a trace is recorded, if anywhere.
    pub trace: Option<Limits>,
}
