//! `memvisor balloon conform`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::{ArgGroup, Args};

use crate::cli::exit::{Exit, UsageError};
use crate::cli::{print, values};
use crate::laboratory::conformance::hosts::{Lever, Trial};
use crate::laboratory::conformance::{self, Verdict, agents, hosts};
use crate::units::{Bytes, Pages};

/// What stands for a size in the command that sets the target.
const SIZE: &str = "{}";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("side").required(true).args(["agent", "host", "list"]))]
pub(super) struct ConformArgs {
    /// Test the agent that this command starts.
    #[arg(long, value_name = "COMMAND")]
    agent: Option<String>,

    /// Test the host that listens at this balloon socket.
    #[arg(long, value_name = "PATH", requires = "token")]
    host: Option<PathBuf>,

    /// List the cases, each with the sentence that it tests.
    #[arg(long)]
    list: bool,

    /// Of a host: the token of the VM whose balloon is tried; no agent may be connected to it.
    #[arg(long, value_name = "TOKEN", value_parser = super::token)]
    token: Option<u64>,

    /// Of a host: the memory of that VM.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = values::memory)]
    memory: Bytes,

    /// Of a host: a command that sets the target of that VM; {} stands for a number of bytes.
    #[arg(long, value_name = "COMMAND", value_parser = with_size)]
    set_target: Option<String>,

    /// Of a host: a command that has the guest touch a page of its balloon.
    #[arg(long, value_name = "COMMAND")]
    touch: Option<String>,

    /// Run this case; may be given several times [default: all].
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Write the result there as JUnit too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

fn with_size(command: &str) -> Result<String, String> {
    if command.contains(SIZE) {
        return Ok(command.to_owned());
    }
    Err(format!(
        "`{command}` has no {SIZE}, which stands for the target in bytes"
    ))
}

pub(super) fn run(args: &ConformArgs) -> anyhow::Result<Exit> {
    if args.list {
        print(&list())?;
        return Ok(Exit::Success);
    }
    let (verdicts, side) = match (&args.agent, &args.host) {
        (Some(command), _) => (agents::run(command, &args.case), "agent"),
        (None, Some(socket)) => (hosts::run(&trial(args, socket)?, &args.case), "host"),
        (None, None) => return Err(UsageError("--agent or --host is needed".to_owned()).into()),
    };
    let verdicts = verdicts.map_err(UsageError)?;
    if args.json {
        print(&(conformance::json(&verdicts).to_string() + "\n"))?;
    } else {
        print(&conformance::table(&verdicts))?;
    }
    if let Some(path) = &args.junit {
        let xml = conformance::junit(&verdicts, side)?;
        fs::write(path, xml).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let is_broken = verdicts.iter().any(Verdict::is_broken);
    Ok(if is_broken {
        Exit::Unexpected
    } else {
        Exit::Success
    })
}

fn trial(args: &ConformArgs, socket: &std::path::Path) -> anyhow::Result<Trial> {
    let pages = args.memory.pages().0;
    let lever = |command: &String| {
        let command = command.clone();
        move |size: Pages| shell(&command.replace(SIZE, &size.bytes().0.to_string()))
    };
    Ok(Trial {
        socket: socket.to_owned(),
        token: args.token.unwrap_or_default(),
        pages: u32::try_from(pages).map_err(|_| UsageError("--memory: at most 16T".to_owned()))?,
        set_target: args
            .set_target
            .as_ref()
            .map(|it| Box::new(lever(it)) as Lever<Pages>),
        touch: args.touch.as_ref().map(|it| {
            let lever = lever(it);
            Box::new(move |()| lever(Pages(0))) as Lever<()>
        }),
    })
}

fn shell(command: &str) -> Result<(), String> {
    let run = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output();
    let output = run.map_err(|error| format!("cannot run `{command}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{command}` fails: {}", said.trim()))
}

fn list() -> String {
    let of_agents = agents::RULES.iter().map(|rule| (rule.name, rule.sentence));
    let of_hosts = hosts::RULES.iter().map(|rule| (rule.name, rule.sentence));
    let line = |(name, sentence)| format!("{name}\n      {sentence}\n");
    of_agents.chain(of_hosts).map(line).collect()
}
