//! The daemon.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::runtime_dir::RuntimeDir;
use crate::units::Bytes;

/// Which engine handles the faults of guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineChoice {
    /// userfaultfd where the system allows it, else page protection.
    Auto,
    /// userfaultfd.
    Uffd,
    /// Page protection.
    Mprotect,
}

/// How fast the sharing scanner goes; the names are ESX's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ShareOptions {
    /// Time to scan a whole VM once (`Mem.ShareScanTime`).
    pub scan_time: Duration,
    /// MB/s scanned for each GHz of host CPU, over all VMs; 0 turns sharing off (`Mem.ShareScanGHz`).
    pub scan_ghz: u32,
    /// The most pages a second scanned of one VM; 0 turns sharing off (`Mem.ShareRateMax`).
    pub rate_max: u32,
}

/// What a daemon is started with.
#[derive(Clone, PartialEq, Debug)]
pub struct HostOptions {
    /// The budget for guest memory.
    pub memory: Bytes,
    /// The engine.
    pub engine: EngineChoice,
    /// Where swap files are made.
    pub swap_dir: PathBuf,
    /// Where the sockets are.
    pub runtime_dir: RuntimeDir,
    /// The most mappings sharing may cost one guest; `None` chooses by the kernel's limit.
    pub vma_budget: Option<u64>,
    /// Sharing scanner.
    pub share: ShareOptions,
    /// The most of a VM's size its compression cache may take, in percent (`Mem.MemZipMaxPct`).
    pub mem_zip_max_pct: u32,
    /// The most of a VM's size its balloon may take, in percent (`Mem.CtlMaxPercent`).
    pub ctl_max_percent: u32,
}

/// Why the daemon ended.
#[derive(Debug, Error)]
pub enum HostError {
    /// This build has no daemon.
    #[error("this build has no daemon")]
    Absent,
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// [`HostError`].
pub fn run(options: &HostOptions) -> Result<(), HostError> {
    tracing::debug!(?options, "asked to run");
    Err(HostError::Absent)
}
