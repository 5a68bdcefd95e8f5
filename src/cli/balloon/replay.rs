//! `memvisor balloon replay`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::dump::load;
use crate::cli::exit::{Exit, UsageError};
use crate::cli::{complain, print};
use crate::laboratory::dump;
use crate::laboratory::peer::Ears;
use crate::laboratory::replay::{Report, Speed, agent, host};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("other").required(true).args(["agent", "host"]))]
pub(super) struct ReplayArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Play the host of the recording to the agent that this command starts.
    #[arg(long, value_name = "COMMAND")]
    agent: Option<String>,

    /// Play the agent of the recording to the host that listens at this balloon socket.
    #[arg(long, value_name = "PATH", requires = "token")]
    host: Option<PathBuf>,

    /// The token of the VM at that host, which is not in the recording.
    #[arg(long, value_name = "TOKEN", value_parser = super::token)]
    token: Option<u64>,

    /// As fast as the other side answers, not at the speed of the recording.
    #[arg(long)]
    fast: bool,

    /// Other targets than the recorded ones are no difference.
    #[arg(long)]
    ignore_target: bool,

    /// Print all that is said.
    #[arg(long, conflicts_with = "json")]
    trace: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<Exit> {
    let tape = load(&args.file)?;
    if !tape.stop.is_whole() {
        complain(&format!("`{}` is {}", args.file.display(), tape.stop));
    }
    let speed = if args.fast {
        Speed::Fast
    } else {
        Speed::Recorded
    };
    let trace = args.trace;
    let ears: Ears = Box::new(move |heard| {
        if trace {
            let _ = print(&(dump::line(heard) + "\n"));
        }
    });
    let report = match (&args.agent, &args.host) {
        (Some(command), _) => {
            host::run(&tape, command, speed, ears).context("cannot play to the agent")?
        }
        (None, Some(socket)) => {
            let against = agent::Against {
                socket,
                token: args.token.unwrap_or_default(),
                speed,
                ignores_target: args.ignore_target,
            };
            agent::run(&tape, &against, ears).context("cannot play to the host")?
        }
        (None, None) => return Err(UsageError("--agent or --host is needed".to_owned()).into()),
    };
    let text = if args.json {
        as_json(&report)
    } else {
        as_text(&report)
    };
    print(&text)?;
    Ok(if report.is_same() {
        Exit::Success
    } else {
        Exit::Unexpected
    })
}

fn as_json(report: &Report) -> String {
    let object = json!({
        "compared": report.compared,
        "differences": report.differences,
        "more_polls": report.more_polls,
        "fewer_polls": report.fewer_polls,
        "complete": report.is_complete,
    });
    format!("{object}\n")
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for difference in &report.differences {
        text += &format!("differs  {difference}\n");
    }
    let (compared, differences) = (report.compared, report.differences.len());
    text += &format!("{compared} messages compared, {differences} differences");
    if report.more_polls + report.fewer_polls > 0 {
        text += &format!(
            "; {} polls more, {} fewer",
            report.more_polls, report.fewer_polls
        );
    }
    if !report.is_complete {
        text += "; not played to the end";
    }
    text + "\n"
}
