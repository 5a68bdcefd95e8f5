//! The command line: it parses, validates, calls one function and says how that went.
//!
//! Nothing else knows about clap, anyhow or exit codes, except for the command line of a guest, which two executables
//! have ([`memvisor_guest_agent::command`]). Arguments are checked here as far as
//! they can be checked without a host. The host checks what depends on its state.

mod balloon;
mod bench;
mod compare;
mod demo;
mod exit;
mod explained;
mod get;
mod guest;
mod host;
mod lifeline;
mod phrases;
mod plan;
mod policies;
mod pool;
mod replay;
mod run;
mod share;
mod shell;
mod show;
mod table;
mod top;
mod trace;
mod values;
mod vm;
mod why;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use memvisor_guest_agent::log;
use memvisor_wire::signals;
use tracing::level_filters::LevelFilter;

use self::exit::Exit;

/// Memory overcommitment as VMware ESX does it, in user space, on stock Linux.
#[derive(Debug, Parser)]
#[command(name = "memvisor", version, after_help = help(), arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon that owns a memory budget and backs the guests; SIGHUP reloads its
    /// configuration file, SIGINT and SIGTERM end it.
    Host(host::HostArgs),
    /// Run a guest: a process with memory of its own, backed by the host.
    Guest(guest::GuestCommand),
    /// Look at running VMs, change their settings and balloons, end them.
    Vm(vm::VmArgs),
    /// Look at resource pools, add, change and remove them.
    Pool(pool::PoolArgs),
    /// Show why pages are not shared, and what sharing would save.
    Share(share::ShareArgs),
    /// Look at recorded balloon sessions, repeat them, provoke agents and hosts, and judge them.
    Balloon(balloon::BalloonArgs),
    /// Show settings of the host.
    Get(get::GetArgs),
    /// Change a setting of the host until it ends.
    Set(get::SetArgs),
    /// Show what the policy decided about a VM, and why.
    Why(why::WhyArgs),
    /// Work out what the policy would do on a host described in a file. Needs no running host.
    Plan(plan::PlanArgs),
    /// List the policies by which a host can divide memory.
    Policies(policies::PoliciesArgs),
    /// Have the host read its configuration file again.
    Reload(why::ReloadArgs),
    /// Show the memory of the host and its VMs, as esxtop does.
    Top(top::TopArgs),
    /// Run a host with overcommitted guests for half a minute and show what it saves.
    Demo(demo::DemoArgs),
    /// Measure the mechanisms, and compare them with those of the kernel or a C library.
    Bench(bench::BenchArgs),
    /// Run an experiment from a file, record it, and judge what the file expects of it.
    Run(run::RunArgs),
    /// Put recorded experiments, or the variants of one, side by side.
    Compare(compare::CompareArgs),
    /// Look at a trace that a host has recorded.
    Trace(trace::TraceArgs),
    /// Replay recorded guests under other policies, other choices of victims or with other memory.
    Replay(replay::ReplayArgs),
    /// Print a script that completes memvisor's command line in a shell.
    Completions(shell::CompletionsArgs),
    /// Write a manual page of each command.
    Man(shell::ManArgs),
    /// The process that restores the machine after a benchmark.
    #[command(hide = true)]
    BenchGuard,
    /// A guest of a benchmark.
    #[command(hide = true)]
    BenchGuest(bench::GuestArgs),
    /// A process of a benchmark that serves its own faults.
    #[command(hide = true)]
    BenchSignal(bench::SignalArgs),
}

fn help() -> String {
    format!("{}\n\n{}", exit::ENVIRONMENT, exit::EXIT_CODES)
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    signals::unblock_all();
    let command = Cli::parse().command;
    let done = log_to_stderr(&command).and_then(|()| perform(command));
    let exit = done.unwrap_or_else(|error| {
        let exit = exit::of_error(&error);
        if exit != Exit::Success {
            complain(&format!("{error:#}"));
        }
        exit
    });
    exit.into()
}

fn perform(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Host(args) => host::run(args),
        Command::Guest(args) => guest::run(args),
        Command::Vm(args) => vm::run(args),
        Command::Pool(args) => pool::run(args),
        Command::Share(args) => share::run(args),
        Command::Balloon(args) => balloon::run(args),
        Command::Get(args) => get::get(args),
        Command::Set(args) => get::set(&args),
        Command::Why(args) => why::why(args),
        Command::Plan(args) => plan::run(&args),
        Command::Policies(args) => policies::run(&args),
        Command::Reload(args) => why::reload(args),
        Command::Top(args) => top::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::BenchGuard => Ok(bench::run_guard()),
        Command::BenchGuest(args) => bench::run_guest(args),
        Command::BenchSignal(args) => bench::run_signal(&args),
    }
}

fn log_to_stderr(command: &Command) -> anyhow::Result<()> {
    log::to_stderr(match command {
        Command::Host(_) => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    })?;
    Ok(())
}

/// Says on standard error what is wrong.
fn complain(text: &str) {
    // Errors are ignored: if standard error is closed, nobody is left to be told.
    let _ = writeln!(io::stderr(), "memvisor: {text}");
}

/// Prints `text` as it is.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests;
