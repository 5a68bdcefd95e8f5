//! `memvisor guest`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use memvisor_guest_agent::command;

use super::exit::{Exit, UsageError};
use super::lifeline::Lifeline;
use super::{complain, values};

#[derive(Debug, Args)]
pub(super) struct GuestCommand {
    #[command(flatten)]
    pub(super) guest: command::GuestArgs,

    /// Enter this cgroup before touching any memory; for programs that start guests.
    #[arg(long, hide = true, value_name = "DIR", requires = "bare")]
    cgroup: Option<PathBuf>,

    /// End when standard input ends; for programs that start guests.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

pub(super) fn run(args: GuestCommand) -> anyhow::Result<Exit> {
    values::name(args.guest.name()).map_err(UsageError)?;
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
    command::run(args.guest, complain)
}
