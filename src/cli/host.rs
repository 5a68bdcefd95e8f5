//! `memvisor host`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::exit::{Exit, UsageError};
use super::lifeline::Lifeline;
use super::{print, values};
use crate::host::{EngineChoice, HostOptions};
use crate::launch::SCRATCH_PREFIX;
use crate::machine::{BudgetChoice, Machine};
use crate::policy::{Policy, policies};
use crate::runtime_dir::RuntimeDir;
use crate::settings::{ConfigFile, HttpAddress, Key, Layer, Layers, Profile};
use crate::trace::Limits;
use crate::units::Bytes;

#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// Memory that all guests together may use: a size such as 512M; a part of the machine's memory, or of what this
    /// process's cgroup allows if that is less, such as 60%; or auto, which leaves what the host itself needs, and
    /// follows that limit. May be set in the --config file instead.
    #[arg(long, value_name = "SIZE", value_parser = values::budget, allow_negative_numbers = true)]
    memory: Option<BudgetChoice>,

    /// A TOML file with settings of the host and its VMs.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The set of defaults: lab, with which memory moves within seconds; esx, as ESX ships; or throughput, for guests
    /// that get as much done as possible [default: lab].
    #[arg(long)]
    profile: Option<Profile>,

    /// The policy by which memory is divided [default: esx; stall with --profile throughput]; `memvisor policies` lists
    /// them.
    #[arg(long, value_name = "NAME", value_parser = policies::named)]
    policy: Option<&'static dyn Policy>,

    /// A setting, such as Mem.IdleTax=50; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    set: Vec<(Key, String)>,

    /// How guest memory is controlled: uffd, by userfaultfd (Linux 5.14, and permission to handle faults of user
    /// code); mprotect, by page protection (any Linux); or auto, which is uffd where it works [default: auto].
    #[arg(long)]
    engine: Option<EngineChoice>,

    /// Where swap files are made; should be a disk, not a tmpfs [default: RUNTIME_DIR].
    #[arg(long, value_name = "DIR")]
    swap_dir: Option<PathBuf>,

    /// Where swapped pages go first, as far as --swap-cache-size lets them: a directory on a faster disk than that of the
    /// swap files [default: none].
    #[arg(long, value_name = "DIR")]
    swap_cache: Option<PathBuf>,

    /// How much the swapped pages of all guests together may take there, in whole MiB; the setting
    /// Memvisor.SwapCacheSize.
    #[arg(long, value_name = "SIZE", value_parser = values::mebibytes)]
    swap_cache_size: Option<String>,

    /// Where the sockets are made.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// Serve metrics, health and a live page at this address, such as 127.0.0.1:9464 or [::1]:9464; a port alone is one of
    /// the loopback interface [default: none].
    #[arg(long, value_name = "ADDRESS")]
    http: Option<HttpAddress>,

    /// Record each session of a balloon agent in a file of its own in this directory, for `memvisor balloon dump`.
    #[arg(long, value_name = "DIR")]
    record_balloon: Option<PathBuf>,

    /// The most memory mappings that sharing may cost one guest [default: by the kernel's limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    vma_budget: Option<u32>,

    /// Record what happens to pages into this file, for `memvisor trace` and `memvisor replay`; about 4 bytes an event.
    #[arg(long, value_name = "FILE")]
    record_trace: Option<PathBuf>,

    /// The most that --record-trace writes.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = values::memory, requires = "record_trace")]
    record_trace_max: Bytes,

    #[arg(long, value_name = "MIN", help = values::help(Key::ShareScanTime), value_parser = values::setting(Key::ShareScanTime))]
    share_scan_time: Option<String>,

    #[arg(long, value_name = "N", help = values::help(Key::ShareScanGHz), value_parser = values::setting(Key::ShareScanGHz))]
    share_scan_ghz: Option<String>,

    #[arg(long, value_name = "N", help = values::help(Key::ShareRateMax), value_parser = values::setting(Key::ShareRateMax))]
    share_rate_max: Option<String>,

    #[arg(long, value_name = "PERCENT", help = values::help(Key::MemZipMaxPct), value_parser = values::setting(Key::MemZipMaxPct))]
    mem_zip_max_pct: Option<String>,

    #[arg(long, value_name = "PERCENT", help = values::help(Key::CtlMaxPercent), value_parser = values::setting(Key::CtlMaxPercent))]
    ctl_max_percent: Option<String>,

    /// End when standard input ends; for programs that start a host.
    #[arg(long, hide = true)]
    die_with_parent: bool,

    /// With --die-with-parent: a directory of the parent to remove when the parent is gone.
    #[arg(long, hide = true, value_name = "DIR", requires = "die_with_parent")]
    scratch: Option<PathBuf>,
}

/// What a host is told that has the size of a host cache and no place for it.
const NO_CACHE: &str = "the host cache has a size (--swap-cache-size or Memvisor.SwapCacheSize) but no directory: \
                        --swap-cache DIR is needed, or swap-cache in [host] of a --config FILE";

impl HostArgs {
    pub(super) fn options(self) -> anyhow::Result<HostOptions> {
        let command_line = self.layer()?;
        let config = self.config.as_deref().map(ConfigFile::load).transpose()?;
        let (start, file) = config.as_ref().map_or_else(Default::default, |config| {
            (config.start.clone(), config.settings.clone())
        });
        let budget = self.memory.or(start.memory).ok_or_else(|| {
            UsageError("--memory SIZE is needed, or memory in [host] of a --config FILE".to_owned())
        })?;
        let memory = budget.on(&Machine::at(Path::new("/")))?;
        let profile = self.profile.or(start.profile).unwrap_or_default();
        let layers = Layers::new(profile, file, command_line);
        let runtime_dir = RuntimeDir::locate(self.runtime_dir)?;
        let swap_dir = self.swap_dir.or(start.swap_dir);
        let swap_cache = self.swap_cache.or(start.swap_cache);
        if swap_cache.is_none() && layers.effective().swap_cache_size > 0 {
            return Err(UsageError(NO_CACHE.to_owned()).into());
        }
        let engine = self.engine.or(start.engine);
        Ok(HostOptions {
            memory,
            budget,
            policy: (self.policy.or(start.policy)).unwrap_or_else(|| profile.policy()),
            engine: engine.unwrap_or(EngineChoice::Auto),
            swap_dir: swap_dir.unwrap_or_else(|| runtime_dir.path().to_owned()),
            swap_cache,
            runtime_dir,
            record_balloon: self.record_balloon.or(start.record_balloon),
            http: self.http.or(start.http).map(|HttpAddress(address)| address),
            vma_budget: self.vma_budget,
            layers,
            config,
            trace: self.record_trace.map(|file| Limits {
                file,
                most: self.record_trace_max,
            }),
        })
    }

    /// The settings of the command line, each given once.
    fn layer(&self) -> Result<Layer, UsageError> {
        let shorthands = [
            (Key::ShareScanTime, &self.share_scan_time),
            (Key::ShareScanGHz, &self.share_scan_ghz),
            (Key::ShareRateMax, &self.share_rate_max),
            (Key::MemZipMaxPct, &self.mem_zip_max_pct),
            (Key::CtlMaxPercent, &self.ctl_max_percent),
            (Key::SwapCacheSize, &self.swap_cache_size),
        ];
        let given = shorthands
            .iter()
            .filter_map(|(key, text)| Some((*key, text.as_ref()?)));
        let mut layer = Layer::default();
        for (key, text) in given.chain(self.set.iter().map(|(key, text)| (*key, text))) {
            let name = key.spec().name;
            let before = layer
                .put(name, text)
                .map_err(|e| UsageError(e.to_string()))?;
            if before.is_some() {
                return Err(UsageError(format!("{name} is given twice")));
            }
        }
        Ok(layer)
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
        // Errors are ignored: a host must work even if nobody reads its output.
        let _ = print(table);
    });
    if let Some(dir) = scratch
        // Only if the parent is gone: otherwise it removes its directory itself, and may still read there.
        && lifeline.is_some_and(|line| line.is_cut())
        && let Err(error) = std::fs::remove_dir_all(&dir)
    {
        tracing::warn!(dir = %dir.display(), %error, "the parent's directory is left behind");
    }
    ended?;
    Ok(Exit::Success)
}

/// Refuses any directory that no demo or experiment has made, because this directory will be removed.
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
