//! `memvisor top`.

use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::values;
use super::vm::ClientArgs;
use crate::top::TopOptions;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Time between two screens.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::duration)]
    interval: Duration,

    /// Print one screen and end.
    #[arg(long)]
    once: bool,

    /// Print each screen as a line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn run(args: TopArgs) -> anyhow::Result<Exit> {
    let options = TopOptions {
        interval: args.interval,
        once: args.once,
        json: args.json,
    };
    let client = args.common.client()?;
    Ok(crate::top::run(&client, options)?.into())
}
