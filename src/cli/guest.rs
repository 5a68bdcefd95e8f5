//! `memvisor guest`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use memvisor_guest_agent::guest::Shares;
use memvisor_guest_agent::shim::SessionEnd;
use memvisor_guest_agent::workload::{long_help, short_help};

use super::exit::{Exit, UsageError};
use super::lifeline::Lifeline;
use super::values;
use super::{complain, print};
use crate::guest::GuestOptions;
use crate::runtime_dir::RuntimeDir;
use crate::units::Bytes;

#[derive(Debug, Args)]
pub(super) struct GuestArgs {
    /// The name of the guest; no other running guest may have it.
    #[arg(long, value_parser = values::name)]
    name: String,

    /// The memory of the guest, such as 256M.
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    memory: Bytes,

    #[arg(long, value_name = "SPEC", required = true, num_args = 1.., help = short_help(), long_help = long_help())]
    workload: Vec<String>,

    /// Share pages only with guests of the same salt [default: with those that have none].
    #[arg(long)]
    salt: Option<String>,

    /// The seed of the guest's random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// How long the guest runs, such as 30s [default: until it is interrupted].
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    duration: Option<Duration>,

    /// Memory that the guest is guaranteed.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = values::size)]
    reservation: Bytes,

    /// Memory that the guest never exceeds [default: --memory].
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    limit: Option<Bytes>,

    /// The weight of the guest when memory is divided: low, normal, high or a number.
    #[arg(long, default_value = "normal")]
    shares: Shares,

    /// The most memory that the balloon may take; 0 turns ballooning off [default: set by the host].
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    balloon_max: Option<Bytes>,

    /// Never share pages of the guest, not even with each other.
    #[arg(long)]
    no_sharing: bool,

    /// Run no balloon agent, like a guest without VMware Tools.
    #[arg(long)]
    no_agent: bool,

    /// Ask the host for every page. By default, where userfaultfd works, the thread that needs a page serves its fault
    /// itself: first touches, pages in the compression cache or the swap file, and copies of shared pages.
    #[arg(long)]
    no_inline: bool,

    /// Run without a host, on private memory of this process, as a baseline to compare a host with. The
    /// kernel may page this memory out, and may merge it unless --no-sharing is given.
    #[arg(long, conflicts_with_all = [
        "salt", "reservation", "limit", "shares", "balloon_max", "no_agent", "no_inline", "runtime_dir",
    ])]
    bare: bool,

    /// Where the host's sockets are.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// Print the report as a line of JSON.
    #[arg(long)]
    json: bool,

    /// Enter this cgroup before touching any memory; for programs that start guests.
    #[arg(long, hide = true, value_name = "DIR", requires = "bare")]
    cgroup: Option<PathBuf>,

    /// End when standard input ends; for programs that start guests.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

impl GuestArgs {
    pub(super) fn options(self) -> anyhow::Result<GuestOptions> {
        let most = self.limit.unwrap_or(self.memory);
        if most > self.memory {
            let (limit, memory) = (most, self.memory);
            return Err(
                UsageError(format!("--limit {limit} is more than --memory {memory}")).into(),
            );
        }
        if self.reservation > most {
            let reserved = self.reservation;
            return Err(UsageError(format!(
                "--reservation {reserved} is more than the {most} the guest can have"
            ))
            .into());
        }
        Ok(GuestOptions {
            name: self.name,
            memory: self.memory,
            workloads: self.workload,
            salt: self.salt,
            seed: self.seed,
            duration: self.duration,
            reservation: self.reservation,
            limit: self.limit,
            shares: self.shares.count(self.memory.pages().0),
            balloon_max: self.balloon_max,
            sharing: !self.no_sharing,
            agent: !self.no_agent,
            inline: !self.no_inline,
            bare: self.bare,
            runtime_dir: RuntimeDir::locate(self.runtime_dir)?,
        })
    }
}

pub(super) fn run(args: GuestArgs) -> anyhow::Result<Exit> {
    let json = args.json;
    let _lifeline = args
        .die_with_parent
        .then(Lifeline::watch)
        .transpose()
        .context("cannot watch the parent process")?;
    if let Some(dir) = &args.cgroup {
        // Zero stands for the process that writes it.
        std::fs::write(dir.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot enter the cgroup `{}`", dir.display()))?;
    }
    let options = args.options()?;
    let name = options.name.clone();
    let told = name.clone();
    let host_gone = move |end: SessionEnd| end_process(&told, &end);
    let wrong = |text: &str| complain(&format!("guest `{name}`: {text}"));
    let report =
        crate::guest::run(&options, host_gone, wrong).with_context(|| format!("guest `{name}`"))?;
    if json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&report.to_string())?;
    }
    Ok(match report {
        _ if report.mismatches > 0 => Exit::Corrupt,
        _ if report.interrupted => Exit::Interrupted,
        _ => Exit::Success,
    })
}

/// Ends this process because its host is gone: threads that wait for a page would wait for ever.
#[expect(clippy::exit, reason = "the main thread may be one of those that wait")]
fn end_process(name: &str, end: &SessionEnd) {
    complain(&format!("guest `{name}`: {end}"));
    std::process::exit(Exit::HostGone as i32);
}
