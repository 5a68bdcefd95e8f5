//! `memvisor balloon`: the balloon laboratory.

mod dump;

use clap::{Args, Subcommand};

use super::exit::Exit;

#[derive(Debug, Args)]
pub(super) struct BalloonArgs {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Show a session that `memvisor host --record-balloon` recorded.
    Dump(dump::DumpArgs),
}

pub(super) fn run(args: BalloonArgs) -> anyhow::Result<Exit> {
    match args.tool {
        Tool::Dump(args) => dump::run(&args),
    }
}
