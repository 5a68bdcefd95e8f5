//! `memvisor completions` and `memvisor man`: what a shell and a reader of manual pages are told, made from the
//! command line itself.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::exit::Exit;
use super::{Cli, print};
use crate::settings::TABLE;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The directory to write the pages into; it is made if it is not there.
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut completed(), "memvisor", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Exit::Success)
}

/// The command line without what is hidden, and with the names of settings, which `get` and `set` read themselves.
fn completed() -> Command {
    let all = Cli::command();
    let shown = |command: &&Command| !command.is_hide_set();
    let commands: Vec<_> = all.get_subcommands().filter(shown).cloned().collect();
    let names = || PossibleValuesParser::new(TABLE.iter().map(|spec| spec.name));
    (Command::new("memvisor").version(env!("CARGO_PKG_VERSION")))
        .subcommands(commands)
        .mut_subcommand("get", |get| {
            get.mut_arg("names", |arg| arg.value_parser(names()))
        })
        .mut_subcommand("set", |set| {
            // What is changed goes to the end, unless its place is said.
            set.mut_arg("name", |arg| arg.index(1).value_parser(names()))
                .mut_arg("value", |arg| arg.index(2))
        })
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let written = fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir));
    written.with_context(|| format!("cannot write manual pages to `{}`", args.dir.display()))?;
    Ok(Exit::Success)
}
