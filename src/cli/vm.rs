//! `memvisor vm`: requests to a running daemon.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::exit::{Exit, UsageError};
use super::values::{self, BalloonSize};
use super::{print, show};
use crate::control::Client;
use crate::runtime_dir::RuntimeDir;
use crate::settings::VmPatch;
use crate::telemetry::VmStatus;
use crate::units::{Bytes, Pages};

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
    /// A client of the daemon, after a check that no other user can pose as the daemon.
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
    /// Bring the swapped pages of a VM back while memory is free, without waiting for its guest to want them.
    Unswap {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
        /// How much comes back in a second, at most.
        #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = values::pages_per_second)]
        rate: NonZeroU32,
        /// Bring no more back.
        #[arg(long, conflicts_with = "rate")]
        stop: bool,
    },
    /// Change settings of a VM, such as shares=high limit=128M; all of them or none. The value `default` takes back
    /// what was set by hand, and the word `default` alone all of that.
    Set {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
        /// shares, reservation, limit, pool, balloon-max, sharing, salt, swap-dir or swap-persist, or ESX's
        /// names, and the value.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Print the token with which a balloon agent of your own can connect to a VM.
    Token {
        /// The VM.
        #[arg(value_parser = values::name)]
        name: String,
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
            let vm = client.set_vm(&name, &patch)?;
            if args.json {
                output(&vm, true, settings)?;
            } else {
                print(&format!(
                    "{}: {}\n{}",
                    vm.name,
                    changed(&patch),
                    settings(&vm)
                ))?;
            }
        }
        Request::Ls => {
            if args.json {
                output(&client.vms()?, true, |_| String::new())?;
            } else {
                print(&show::vm_list(&client.status()?))?;
            }
        }
        Request::Show { name } if args.json => {
            output(&client.vm(&name)?, true, |_| String::new())?;
        }
        Request::Show { name } => {
            let law = client.status()?.balloon_law;
            print(&show::vm(&client.vm(&name)?, &law))?;
        }
        Request::Balloon { name, size } => {
            let vm = client.set_balloon(&name, size.0)?;
            output(&vm, args.json, balloon_set)?;
        }
        Request::Unswap { name, rate, stop } => {
            let vm = client.set_unswap(&name, (!stop).then_some(rate))?;
            output(&vm, args.json, unswap_set)?;
        }
        Request::Token { name } => {
            output(&client.token(&name)?, args.json, |it| {
                format!("{}\n", it.token)
            })?;
        }
        Request::Kill { name } => client.kill(&name)?,
    }
    Ok(Exit::Success)
}

impl Request {
    /// The settings to change. A fault in them counts as a wrong command line.
    fn patch(&self) -> Result<VmPatch, UsageError> {
        let Self::Set { settings, .. } = self else {
            return Ok(VmPatch::default());
        };
        VmPatch::from_words(settings.iter().map(String::as_str))
            .map_err(|error| UsageError(error.in_full()))
    }
}

/// The keys that a patch sets, each with its value.
fn changed(patch: &VmPatch) -> String {
    let fields = serde_json::to_value(patch).unwrap_or_default();
    let word = |(key, value): (&String, &Value)| {
        let is_size = key != "shares";
        let value = match value {
            Value::Null => "none".to_owned(),
            Value::Number(bytes) if is_size => Bytes(bytes.as_u64().unwrap_or(0)).to_string(),
            Value::String(text) => text.escape_debug().to_string(),
            value => value.to_string(),
        };
        format!("{key} {value}")
    };
    let words: Vec<String> = fields.as_object().into_iter().flatten().map(word).collect();
    format!("set {}", words.join(", "))
}

/// The settings in force that say how much memory the VM may have.
fn settings(vm: &VmStatus) -> String {
    let limit = vm.allocation.limit_pages;
    format!(
        "{}: has {} shares, reservation {}, limit {}, balloon at most {}\n",
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

fn unswap_set(vm: &VmStatus) -> String {
    let swapped = vm.homes.swapped_pages.bytes();
    let rate = match vm.swap.unswap_rate {
        0 => "only what its guest asks for comes back".to_owned(),
        rate => {
            let rate = Pages(rate.into()).bytes();
            format!("{rate} a second come back while memory is free")
        }
    };
    format!("{}: {swapped} in the swap file, {rate}\n", vm.name)
}

/// Prints data as text for people, or as JSON.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_settings_are_named_with_what_they_are_set_to() {
        let words = [
            "shares=300",
            "sched.mem.min=16",
            "limit=-1",
            "sharing=false",
            "pool=default",
        ];
        let patch = VmPatch::from_words(words).expect("valid");
        let text = changed(&patch);
        for part in [
            "shares 300",
            "reservation 16.0 MiB",
            "limit none",
            "sharing false",
            "pool default",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        assert!(!text.contains("salt"), "{text}");
    }
}
