//! `memvisor vm`: requests to a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{Exit, UsageError};
use super::values::{self, BalloonSize};
use super::{print, show};
use crate::control::Client;
use crate::runtime_dir::RuntimeDir;
use crate::settings::VmPatch;
use crate::telemetry::VmStatus;

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    #[command(subcommand)]
    request: Request,

    #[command(flatten)]
    common: ClientArgs,

    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Where the daemon is.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientArgs {
    /// Where the host's sockets are.
    #[arg(long, value_name = "DIR", global = true)]
    runtime_dir: Option<PathBuf>,
}

impl ClientArgs {
    /// A client of the daemon, once it is sure that nobody else poses as the daemon.
    pub(super) fn client(self) -> anyhow::Result<Client> {
        let dir = RuntimeDir::locate(self.runtime_dir)?;
        if dir.path().exists() {
            dir.check()?;
        }
        Ok(Client::new(dir.control_socket())?)
    }
}

#[derive(Debug, Subcommand)]
enum Request {
    /// List the running VMs.
    Ls,
    /// Show everything about one VM.
    Show {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
    },
    /// Set the size of a VM's balloon by hand, or give it back to the policy.
    Balloon {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
        /// The size to reach, such as 64M, or `auto`.
        #[arg(value_parser = values::balloon)]
        size: BalloonSize,
    },
    /// Change settings of a VM, such as shares=high limit=128M; all of them or none.
    Set {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
        /// shares, reservation, limit, balloon-max, sharing, salt or swap-dir, or ESX's names, and
        /// the value.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// End a VM.
    Kill {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
    },
}

pub(super) fn run(args: VmArgs) -> anyhow::Result<Exit> {
    let patch = args.request.patch()?;
    let client = args.common.client()?;
    match args.request {
        Request::Set { name, .. } => {
            output(&client.set_vm(&name, &patch)?, args.json, settings)?;
        }
        Request::Ls => {
            let vms = client.vms()?;
            output(&vms, args.json, |vms| show::vm_list(vms))?;
        }
        Request::Show { name } => output(&client.vm(&name)?, args.json, show::vm)?,
        Request::Balloon { name, size } => {
            let vm = client.set_balloon(&name, size.0)?;
            output(&vm, args.json, balloon_set)?;
        }
        Request::Kill { name } => client.kill(&name)?,
    }
    Ok(Exit::Success)
}

impl Request {
    /// The settings to change; a fault in them is one of the command line.
    fn patch(&self) -> Result<VmPatch, UsageError> {
        let Self::Set { settings, .. } = self else {
            return Ok(VmPatch::default());
        };
        VmPatch::from_words(settings.iter().map(String::as_str))
            .map_err(|error| UsageError(error.in_full()))
    }
}

fn settings(vm: &VmStatus) -> String {
    let limit = vm.allocation.limit_pages;
    format!(
        "{}: {} shares, reservation {}, limit {}, balloon at most {}\n",
        vm.name,
        vm.allocation.shares,
        vm.allocation.reservation_pages.bytes(),
        limit.map_or_else(|| "none".to_owned(), |limit| limit.bytes().to_string()),
        vm.balloon.max_pages.bytes(),
    )
}

fn balloon_set(vm: &VmStatus) -> String {
    let by = vm.balloon.manual_pages.map_or("the policy", |_| "hand");
    format!(
        "{}: balloon is {}, target {}, set by {by}\n",
        vm.name,
        vm.balloon.size_pages.bytes(),
        vm.balloon.target_pages.bytes(),
    )
}

/// Prints data for people, or as JSON.
pub(super) fn output<T: Serialize>(
    data: &T,
    json: bool,
    text: fn(&T) -> String,
) -> anyhow::Result<()> {
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(data)?))?;
    } else {
        print(&text(data))?;
    }
    Ok(())
}
