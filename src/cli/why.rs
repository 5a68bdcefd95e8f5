//! `memvisor why` and `memvisor reload`.

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use super::exit::Exit;
use super::get::line;
use super::vm::{ClientArgs, output};
use super::{explained, print, share, show, values};
use crate::control::{Client, ReloadReport};
use crate::policy::Explanation;
use crate::telemetry::{Health, SharingStatus};

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// The VM.
    #[arg(value_parser = values::name)]
    name: String,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn why(args: WhyArgs) -> anyhow::Result<Exit> {
    let client = args.common.client()?;
    if args.json {
        let why = client.why(&args.name)?;
        print(&format!("{}\n", serde_json::to_string_pretty(&why)?))?;
    } else {
        print(&text(&client, &args.name)?)?;
    }
    Ok(Exit::Success)
}

/// What the host says about a VM, for people.
pub(super) fn text(client: &Client, name: &str) -> anyhow::Result<String> {
    let why: Why = serde_json::from_value(client.why(name)?)
        .context("the host explains itself in another way: is it of another version?")?;
    Ok(why.text(name))
}

/// How a VM and its host are, and what was decided about the VM.
#[derive(Deserialize)]
struct Why {
    health: Health,
    host_health: Health,
    sharing: SharingStatus,
    #[serde(flatten)]
    explanation: Explanation,
}

impl Why {
    fn text(&self, name: &str) -> String {
        format!(
            "VM {name} is {}\nThe host is {}\n\n{}\n{}",
            show::health(&self.health),
            show::health(&self.host_health),
            explained::text(name, &self.explanation),
            explained::sharing(&share::reasons(&self.sharing)),
        )
    }
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn reload(args: ReloadArgs) -> anyhow::Result<Exit> {
    let report = args.common.client()?.reload()?;
    output(&report, args.json, reloaded)?;
    Ok(Exit::Success)
}

fn reloaded(report: &ReloadReport) -> String {
    let mut text = format!("{}: read\n", report.file);
    if report.settings.is_empty() && report.vms.is_empty() && report.pools.is_empty() {
        text += "nothing has changed\n";
    }
    text.extend(report.settings.iter().map(line));
    let pools = report.pools.iter();
    text.extend(pools.map(|name| format!("resource pool {name}: is another now\n")));
    let vms = report.vms.iter();
    text.extend(vms.map(|name| format!("VM {name}: has other settings now\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Layers;

    #[test]
    fn report_of_a_reload_names_what_has_changed() {
        let mut report = ReloadReport {
            file: "/etc/host.toml".to_owned(),
            settings: Vec::new(),
            vms: Vec::new(),
            pools: Vec::new(),
        };
        assert!(reloaded(&report).contains("nothing has changed"));
        let view = Layers::default().view("Mem.IdleTax").expect("there is one");
        report.settings.push(view);
        report.vms.push("web".to_owned());
        let text = reloaded(&report);
        assert!(text.contains("Mem.IdleTax = 75 % (from profile"), "{text}");
        assert!(text.contains("VM web: has other settings"), "{text}");
    }
}
