//! `memvisor balloon`: the balloon laboratory.

mod agent;
mod conform;
mod dump;
mod host;
mod laws;
mod replay;

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
    /// Play one side of a recorded session again, and say what the other side answers differently.
    Replay(replay::ReplayArgs),
    /// Run an agent that behaves as it is told, well or badly.
    Agent(agent::AgentArgs),
    /// Run a host without guests, whose target follows a schedule, for agents to be tried against.
    Host(host::HostArgs),
    /// Hold an agent or a host to docs/balloon-protocol.md, rule by rule.
    Conform(conform::ConformArgs),
    /// Run control laws through incidents that others had, simulated, and compare them in one table.
    Laws(laws::LawsArgs),
}

pub(super) fn run(args: BalloonArgs) -> anyhow::Result<Exit> {
    match args.tool {
        Tool::Dump(args) => dump::run(&args),
        Tool::Replay(args) => replay::run(&args),
        Tool::Agent(args) => agent::run(&args),
        Tool::Host(args) => host::run(&args),
        Tool::Conform(args) => conform::run(&args),
        Tool::Laws(args) => laws::run(&args),
    }
}

/// A token, as `memvisor vm token` prints it.
fn token(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let wrong = |_| {
        format!("`{text}` is no token: up to 16 hexadecimal digits, such as 0x0123456789abcdef")
    };
    u64::from_str_radix(digits, 16).map_err(wrong)
}
