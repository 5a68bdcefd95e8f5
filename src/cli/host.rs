//! `memvisor host`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::exit::{Exit, UsageError};
use super::lifeline::Lifeline;
use super::{print, values};
use crate::demo::SCRATCH_PREFIX;
use crate::host::{EngineChoice, HostOptions, ShareOptions};
use crate::runtime_dir::RuntimeDir;
use crate::units::Bytes;

/// How guest memory is controlled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Engine {
    /// userfaultfd where this system allows it, else page protection.
    Auto,
    /// userfaultfd: needs Linux 5.14 and leave to handle faults of user code.
    Uffd,
    /// Page protection: any Linux, no privilege.
    Mprotect,
}

impl From<Engine> for EngineChoice {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::Uffd => Self::Uffd,
            Engine::Mprotect => Self::Mprotect,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// Memory that all guests together may use, such as 512M.
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    memory: Bytes,

    /// How guest memory is controlled.
    #[arg(long, value_enum, default_value = "auto")]
    engine: Engine,

    /// Where swap files are made; should be a disk, not a tmpfs [default: RUNTIME_DIR].
    #[arg(long, value_name = "DIR")]
    swap_dir: Option<PathBuf>,

    /// Where the sockets are made.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// The most memory mappings that sharing may cost one guest [default: by the kernel's limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    vma_budget: Option<u32>,

    /// Time to scan a whole VM for shared pages once (Mem.ShareScanTime); minutes, or a time such
    /// as 30s. ESX's own default is 60 minutes; this one lets you watch.
    #[arg(long, value_name = "MIN", default_value = "4s", value_parser = values::minutes)]
    share_scan_time: std::time::Duration,

    /// MB/s scanned for each GHz of the host's processors; 0 turns sharing off (Mem.ShareScanGHz).
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=32))]
    share_scan_ghz: u32,

    /// The most pages a second scanned of one VM; 0 turns sharing off (Mem.ShareRateMax).
    #[arg(long, value_name = "N", default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(0..=32_768))]
    share_rate_max: u32,

    /// The most of a VM's size that its compression cache may take, in percent (Mem.MemZipMaxPct).
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(5..=100))]
    mem_zip_max_pct: u32,

    /// The most of a VM's size that its balloon may take, in percent (Mem.CtlMaxPercent).
    #[arg(long, value_name = "PERCENT", default_value_t = 65, value_parser = clap::value_parser!(u32).range(0..=99))]
    ctl_max_percent: u32,

    /// End when standard input does; for programs that start a host.
    #[arg(long, hide = true)]
    die_with_parent: bool,

    /// With --die-with-parent: a directory of the parent to remove when the parent is gone.
    #[arg(long, hide = true, value_name = "DIR", requires = "die_with_parent")]
    scratch: Option<PathBuf>,
}

impl HostArgs {
    pub(super) fn options(self) -> anyhow::Result<HostOptions> {
        let runtime_dir = RuntimeDir::locate(self.runtime_dir)?;
        Ok(HostOptions {
            memory: self.memory,
            engine: self.engine.into(),
            swap_dir: self
                .swap_dir
                .unwrap_or_else(|| runtime_dir.path().to_owned()),
            runtime_dir,
            vma_budget: self.vma_budget,
            share: ShareOptions {
                scan_time: self.share_scan_time,
                scan_ghz: self.share_scan_ghz,
                rate_max: self.share_rate_max,
            },
            mem_zip_max_pct: self.mem_zip_max_pct,
            ctl_max_percent: self.ctl_max_percent,
        })
    }
}

pub(super) fn run(mut args: HostArgs) -> anyhow::Result<Exit> {
    let scratch = args.scratch.take();
    if let Some(dir) = &scratch {
        check_scratch(dir)?;
    }
    let lifeline = args
        .die_with_parent
        .then(Lifeline::watch)
        .transpose()
        .context("cannot watch the parent process")?;
    let ended = crate::host::run(&args.options()?, |table| {
        // A host whose output nobody reads works all the same.
        let _ = print(table);
    });
    if let Some(dir) = scratch
        && lifeline.is_some_and(|line| line.is_cut())
        && let Err(error) = std::fs::remove_dir_all(&dir)
    {
        tracing::warn!(dir = %dir.display(), %error, "the parent's directory is left behind");
    }
    ended?;
    Ok(Exit::Success)
}

/// Refuses to be told to remove anything but what a demo made.
fn check_scratch(dir: &Path) -> Result<(), UsageError> {
    let name = dir.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| name.starts_with(SCRATCH_PREFIX)) {
        return Ok(());
    }
    let dir = dir.display();
    Err(UsageError(format!(
        "--scratch `{dir}`: the directory's name must begin with {SCRATCH_PREFIX}"
    )))
}
