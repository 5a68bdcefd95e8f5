//! `memvisor policies`.

use clap::Args;
use serde::Serialize;

use super::exit::Exit;
use super::table;
use super::vm::output;
use crate::policy::policies;

#[derive(Debug, Args)]
pub(super) struct PoliciesArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    about: &'static str,
}

pub(super) fn run(args: &PoliciesArgs) -> anyhow::Result<Exit> {
    let rows = policies::ALL.iter().map(|policy| Row {
        name: policy.name(),
        about: policy.about(),
    });
    output(&rows.collect::<Vec<_>>(), args.json, |rows| {
        let rows = rows
            .iter()
            .map(|row| [row.name, row.about].map(str::to_owned));
        table::aligned(&rows.collect::<Vec<_>>())
    })?;
    Ok(Exit::Success)
}
