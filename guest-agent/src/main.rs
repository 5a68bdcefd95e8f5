//! `memvisor-guest-agent`: a guest and nothing else, without any code of the host.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use memvisor_guest_agent::command::{self, EXIT_CODES, Exit, GuestArgs};
use memvisor_guest_agent::log;
use memvisor_wire::signals;
use tracing::level_filters::LevelFilter;

/// A memvisor guest: a process with memory of its own, backed by a host.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    guest: GuestArgs,
}

fn main() -> ExitCode {
    signals::unblock_all();
    let args = Cli::parse().guest;
    let done = log::to_stderr(LevelFilter::WARN)
        .map_err(anyhow::Error::from)
        .and_then(|()| command::run(args, complain));
    let exit = done.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        let code = error.chain().find_map(Exit::of_cause);
        code.unwrap_or(Exit::Failure)
    });
    exit.into()
}

/// Says on standard error what is wrong.
fn complain(text: &str) {
    // Ignored: if standard error is closed, nobody is left to tell.
    let _ = writeln!(io::stderr(), "memvisor-guest-agent: {text}");
}
