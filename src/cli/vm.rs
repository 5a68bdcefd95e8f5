//! `memvisor vm`: requests to a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::Exit;
use super::values::{self, BalloonSize};
use super::{print, show};
use crate::control::Client;
use crate::runtime_dir::RuntimeDir;
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
#[derive(Debug, Args)]
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
    /// End a VM.
    Kill {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
    },
}

pub(super) fn run(args: VmArgs) -> anyhow::Result<Exit> {
    let client = args.common.client()?;
    match args.request {
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

fn balloon_set(vm: &VmStatus) -> String {
    let by = vm.balloon.manual_pages.map_or("the policy", |_| "hand");
    format!(
        "{}: balloon is {}, target {}, set by {by}\n",
        vm.name,
        vm.balloon.size_pages.bytes(),
        vm.balloon.target_pages.bytes(),
    )
}

fn output<T: Serialize>(data: &T, json: bool, text: fn(&T) -> String) -> anyhow::Result<()> {
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(data)?))?;
    } else {
        print(&text(data))?;
    }
    Ok(())
}
