//! `memvisor top`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::exit::Exit;
use super::vm::ClientArgs;
use super::{values, why};
use crate::top::{Mode, TopOptions};

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Time between two screens; else what the configuration says, or 1s.
    #[arg(short = 'd', long, visible_alias = "delay", value_name = "TIME", value_parser = values::duration)]
    interval: Option<Duration>,

    /// End after so many screens, lines of JSON or of CSV.
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print one screen as text and end.
    #[arg(long, conflicts_with_all = ["count", "interval"], group = "mode")]
    once: bool,

    /// Print the status and the rates as a line of JSON instead of each screen.
    #[arg(long, group = "mode")]
    json: bool,

    /// Print all fields as a line of CSV instead of each screen, as esxtop's batch mode does.
    #[arg(short = 'b', long, group = "mode")]
    batch: bool,

    /// Show what `--batch` has recorded in FILE.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "interval"], group = "mode")]
    replay: Option<PathBuf>,

    /// Draw one screen as an SVG picture into FILE.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "interval"], group = "mode")]
    picture: Option<PathBuf>,

    /// The file with the choice of fields, which the key W writes; else toprc in
    /// $XDG_CONFIG_HOME/memvisor or ~/.config/memvisor.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn run(args: TopArgs) -> anyhow::Result<Exit> {
    let mode = if args.once {
        Mode::Once
    } else if args.json {
        Mode::Json
    } else if args.batch {
        Mode::Batch
    } else if let Some(path) = args.replay {
        Mode::Replay(path)
    } else if let Some(path) = args.picture {
        Mode::Picture(path)
    } else {
        Mode::Screen
    };
    let options = TopOptions {
        mode,
        interval: args.interval,
        count: args.count,
        config: args.config,
        explain: |client, name| why::text(client, name).map_err(|error| format!("{error:#}")),
    };
    let client = args.common.client()?;
    Ok(crate::top::run(&client, &options)?.into())
}
