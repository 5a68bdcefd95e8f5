//! The command line of a guest and how it ends: that of `memvisor-guest-agent`, which has nothing else, and of
//! `memvisor guest`.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use memvisor_wire::PAGE_SIZE;
use memvisor_wire::balloon::Protocol;
use memvisor_wire::memory::Shares;
use memvisor_wire::runtime_dir;
use memvisor_wire::signals::{ENDING, Signals, report_file_size_limit};
use memvisor_wire::units::{self, SIZES};
use memvisor_wire::vm_name::{NAME_MAX, check_vm_name};
use nix::sys::signal::Signal;
use thiserror::Error;

use crate::guest::{self, AgentChoice, GuestError, GuestOptions, GuestProgress, GuestReport};
use crate::workload::{long_help, short_help};

/// The part of `--help` about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the reason is on standard error
    2  the command line is wrong
    3  a guest read back other data than it had written
    4  the host is not running, does not answer, or went away
    5  a scenario, a replay or a suite ran to its end, but not as expected
  130  interrupted by a signal";

/// How a command ended: what a script can tell without reading the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed.
    Failure = 1,
    /// The command line is wrong; clap ends the process with this code too.
    Usage = 2,
    /// A guest found data that it had not written.
    Corrupt = 3,
    /// The host is not running, does not answer, or went away.
    HostGone = 4,
    /// A scenario, a replay or a suite ran to its end, but not as expected.
    Unexpected = 5,
    /// A signal came.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Option<Signal>> for Exit {
    /// For a command that runs until a signal comes or until its own end.
    fn from(signal: Option<Signal>) -> Self {
        signal.map_or(Self::Success, |_| Self::Interrupted)
    }
}

impl Exit {
    /// The code for an error of a guest; `None` if the error has no code of its own.
    #[must_use]
    pub fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        if cause.is::<UsageError>() {
            return Some(Self::Usage);
        }
        let error = cause.downcast_ref::<GuestError>()?;
        let gone = error.is_host_gone().then_some(Self::HostGone);
        gone.or(error.is_interrupted().then_some(Self::Interrupted))
    }
}

/// An argument that is wrong in a way clap cannot see.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The arguments of a guest.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// The name of the guest; no other running guest may have it.
    #[arg(long)]
    name: String,

    /// The memory of the guest, such as 256M.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: u32,

    #[arg(long, value_name = "SPEC", required = true, num_args = 1.., help = short_help(), long_help = long_help())]
    workload: Vec<String>,

    /// Share pages only with guests of the same salt [default: with those that have none].
    #[arg(long)]
    salt: Option<String>,

    /// The seed of the guest's random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// How long the guest runs, such as 30s [default: until it is interrupted].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Say what the workloads have done, as a line of JSON, this often [default: only at the end].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    progress: Option<Duration>,

    /// Memory that the guest is guaranteed.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    reservation: u32,

    /// Memory that the guest never exceeds, or unlimited [default: --memory].
    #[arg(long, value_name = "SIZE", value_parser = most::<1>, allow_negative_numbers = true)]
    limit: Option<Most>,

    /// The weight of the guest when memory is divided: low, normal, high or a number.
    #[arg(long, default_value = "normal")]
    shares: Shares,

    /// The resource pool that the guest starts in [default: none, beside the pools].
    #[arg(long, value_name = "NAME", value_parser = pool)]
    pool: Option<String>,

    /// The most memory that the balloon may take, or unlimited; 0 turns ballooning off [default: set by the host].
    #[arg(long, value_name = "SIZE", value_parser = most::<0>, allow_negative_numbers = true)]
    balloon_max: Option<Most>,

    /// Never share pages of the guest, not even with each other.
    #[arg(long)]
    no_sharing: bool,

    /// Run no balloon agent, like a guest without VMware Tools.
    #[arg(long)]
    no_agent: bool,

    /// How the balloon agent names pages to the host, as docs/balloon-protocol.md describes it; reporting is ranges, and
    /// besides gives memory back that the guest has free.
    #[arg(long, value_name = "NAME", default_value = "ranges", value_parser = protocols(), conflicts_with = "agent")]
    balloon_protocol: Protocol,

    /// Move pages of the balloon as fast as it goes; for benchmarks.
    #[arg(long, hide = true)]
    balloon_unpaced: bool,
    /// Run this command as the balloon agent, in place of the bundled one; docs/balloon-lab.md says what it is given.
    #[arg(long, value_name = "COMMAND", conflicts_with = "no_agent")]
    agent: Option<String>,

    /// Print the token with which a balloon agent can connect, once the guest is powered on.
    #[arg(long)]
    print_token: bool,

    /// Ask the host for every page. By default, where userfaultfd works, the thread that needs a page serves its fault
    /// itself: first touches, pages in the compression cache or the swap file, and copies of shared pages.
    #[arg(long)]
    no_inline: bool,

    /// Run without a host, on memory of this process, which the kernel may merge and page out unless
    /// --no-sharing forbids the merging.
    #[arg(long, conflicts_with_all = [
        "salt", "reservation", "limit", "shares", "pool", "balloon_max", "no_agent", "agent", "print_token", "no_inline",
        "runtime_dir", "memory_socket", "balloon_socket", "balloon_protocol",
    ])]
    bare: bool,

    /// Where the host's sockets are.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// The host's memory socket [default: memory.sock in the runtime directory].
    #[arg(long, value_name = "PATH")]
    memory_socket: Option<PathBuf>,

    /// The host's balloon socket [default: balloon.sock in the runtime directory].
    #[arg(long, value_name = "PATH")]
    balloon_socket: Option<PathBuf>,

    /// List what the guest accesses in this file, for `memvisor replay`: of each page the first access in ten
    /// milliseconds, in about 22 bytes.
    #[arg(long, value_name = "FILE")]
    record_accesses: Option<PathBuf>,

    /// Print the report as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// A size in whole pages, which may be 0.
fn size(text: &str) -> Result<u32, String> {
    let bytes =
        units::parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size: {SIZES}"))?;
    if !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(format!("`{text}` is not a multiple of {PAGE_SIZE}"));
    }
    u32::try_from(bytes / PAGE_SIZE as u64).map_err(|_| format!("`{text}` is more than 16 TiB"))
}

fn memory(text: &str) -> Result<u32, String> {
    size(text).and_then(|pages| match pages {
        0 => Err(format!(
            "`{text}` is no memory at all: at least {PAGE_SIZE}"
        )),
        pages => Ok(pages),
    })
}

/// The most pages of something; `None`: as many as there are.
#[derive(Clone, Copy, Debug)]
struct Most(Option<u32>);

/// Reads a [`Most`] of at least so many pages.
fn most<const LEAST: u32>(text: &str) -> Result<Most, String> {
    if units::is_unlimited(text) {
        return Ok(Most(None));
    }
    let pages = if LEAST == 0 { size(text) } else { memory(text) };
    pages
        .map(|pages| Most(Some(pages)))
        .map_err(|error| format!("{error}, or unlimited, none or -1"))
}

/// The name of a resource pool.
fn pool(text: &str) -> Result<String, String> {
    check_vm_name(text).map(|()| text.to_owned()).map_err(|_| {
        let text = text.escape_debug();
        format!("`{text}` is no name of a resource pool: use 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, and begin with a letter or digit")
    })
}

/// The protocols by their names; clap says which is nearest to one that is wrong.
#[must_use]
pub fn protocols() -> impl TypedValueParser<Value = Protocol> {
    let names = PossibleValuesParser::new(Protocol::ALL.map(Protocol::name));
    names.try_map(|name| name.parse().map_err(|()| "no protocol has this name"))
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text)
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("`{text}` is not a time above 0: {}", units::DURATIONS))
}

/// Pages as they can be written on a command line.
fn shown(pages: u32) -> String {
    format!("{}K", u64::from(pages) * 4)
}

impl GuestArgs {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the guest is powered on with.
    ///
    /// # Errors
    /// [`UsageError`] if limit and reservation do not fit the memory and each other.
    pub fn options(self) -> Result<GuestOptions, UsageError> {
        let limit = self.limit.and_then(|Most(pages)| pages);
        let limit = limit.unwrap_or(self.memory);
        for (option, value, most) in [
            ("--limit", limit, self.memory),
            ("--reservation", self.reservation, limit),
        ] {
            if value > most {
                let (value, most) = (shown(value), shown(most));
                let text = format!("{option} {value} is too much: the guest can have {most}");
                return Err(UsageError(text));
            }
        }
        let dir = runtime_dir(self.runtime_dir);
        let socket = |chosen: Option<PathBuf>, name| chosen.unwrap_or_else(|| dir.join(name));
        Ok(GuestOptions {
            memory_socket: socket(self.memory_socket, "memory.sock"),
            balloon_socket: socket(self.balloon_socket, "balloon.sock"),
            name: self.name,
            pages: self.memory,
            workloads: self.workload,
            salt: self.salt,
            seed: self.seed,
            duration: self.duration,
            tell_every: self.progress,
            reservation: self.reservation,
            limit,
            shares: self.shares.count(self.memory.into()),
            resource_pool: self.pool,
            balloon_max: self.balloon_max.and_then(|Most(pages)| pages),
            sharing: !self.no_sharing,
            agent: match self.agent {
                Some(command) => AgentChoice::Program(command),
                None if self.no_agent => AgentChoice::None,
                None => AgentChoice::Bundled,
            },
            balloon_protocol: self.balloon_protocol,
            balloon_paced: !self.balloon_unpaced,
            inline: !self.no_inline,
            bare: self.bare,
            // The host may balloon any part of the guest's memory, and the guest must be able to page it out.
            swap_pages: self.memory,
            disk_directory: env::temp_dir(),
            accesses: self.record_accesses,
        })
    }
}

/// Runs the guest and prints its report; `complain` says on standard error what is wrong.
///
/// # Errors
/// Anything that keeps the guest from running; [`Exit::of_cause`] knows the codes.
pub fn run(args: GuestArgs, complain: fn(&str)) -> anyhow::Result<Exit> {
    let (json, print_token) = (args.json, args.print_token);
    let options = args.options()?;
    let told = format!("guest `{}`", options.name);
    // Before any thread starts, because threads inherit the set of blocked signals.
    let signals = Signals::block(ENDING).context("cannot wait for signals")?;
    report_file_size_limit().context("cannot block SIGXFSZ")?;
    let name = told.clone();
    // Ends this process, because threads that wait for a page would wait for ever.
    let host_gone = move |end| {
        complain(&format!("{name}: {end}"));
        process::exit(Exit::HostGone as i32)
    };
    // Errors are ignored: a guest must run even if nobody reads its output.
    let tell = |progress: &GuestProgress| {
        let _ = print(&format!("{}\n", progress.line()));
    };
    let powered_on = |token| {
        if print_token {
            let text = match json {
                true => format!("{{\"token\":\"{token:#018x}\"}}\n"),
                false => format!("token {token:#018x}\n"),
            };
            let _ = print(&text);
        }
    };
    let outcome = guest::run(&options, &signals, host_gone, powered_on, tell, |_| {})
        .context(told.clone())?;
    for wrong in &outcome.wrong {
        complain(&format!("{told}: {wrong}"));
    }
    let report = GuestReport::new(&options.name, &outcome);
    let text = if json {
        serde_json::to_string(&report)? + "\n"
    } else {
        report.to_string()
    };
    print(&text)?;
    Ok(match report {
        _ if report.mismatches > 0 => Exit::Corrupt,
        _ if report.interrupted => Exit::Interrupted,
        _ => Exit::Success,
    })
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: GuestArgs,
    }

    fn parse(line: &str) -> Result<GuestArgs, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.args)
    }

    #[test]
    fn command_line_becomes_a_guest() {
        let line = "agent --name a --memory 1M --workload kv idle --shares high --duration 2 \
                    --runtime-dir /x --balloon-socket /y/b";
        let options = parse(line).expect("right").options().expect("right");
        assert_eq!(
            (options.pages, options.limit, options.shares),
            (256, 256, 20)
        );
        assert_eq!(options.workloads, ["kv", "idle"]);
        assert_eq!(options.duration, Some(Duration::from_secs(2)));
        assert_eq!(options.memory_socket, PathBuf::from("/x/memory.sock"));
        assert_eq!(options.balloon_socket, PathBuf::from("/y/b"));
    }

    #[test]
    fn esx_says_unlimited_and_minus_one() {
        for text in ["unlimited", "none", "-1"] {
            let line =
                format!("a --name a --memory 1M --workload kv --limit {text} --balloon-max={text}");
            let options = parse(&line).expect(text).options().expect(text);
            assert_eq!((options.limit, options.balloon_max), (256, None), "{text}");
        }
    }

    #[test]
    fn wrong_values_are_refused_and_named() {
        for (wrong, named) in [
            ("--memory 12Q", "`12Q`"),
            ("--memory 0", "`0`"),
            ("--memory 4097", "`4097`"),
            ("--memory 1M --shares many", "`many`"),
            ("--memory 1M --limit -2", "`-2`"),
            ("--memory 1M --limit 0", "unlimited"),
            ("--memory 1M --duration 0s", "`0s`"),
            ("--memory 1M --bare --no-inline", "'--bare'"),
            ("--memory 1M --bare --balloon-socket /b", "'--bare'"),
        ] {
            let line = format!("agent --name a --workload idle {wrong}");
            let error = parse(&line).expect_err(wrong).to_string();
            assert!(error.contains(named), "{error}");
        }
        for wrong in [
            "--limit 2M",
            "--reservation 2M",
            "--reservation 8K --limit 4K",
        ] {
            let line = format!("agent --name a --memory 1M --workload idle {wrong}");
            assert!(parse(&line).expect("parses").options().is_err(), "{wrong}");
        }
    }
}
