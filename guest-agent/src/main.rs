//! `memvisor-guest-agent`: a guest and nothing else, without any code of the host.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use clap::error::ErrorKind;
use memvisor_guest_agent::guest::{self, GuestError, GuestOptions, GuestReport, Shares};
use memvisor_guest_agent::protocol::PAGE_SIZE;
use memvisor_guest_agent::shim::SessionEnd;
use memvisor_guest_agent::signals::{self, ENDING, Signals, report_file_size_limit};
use memvisor_guest_agent::workload::units::{self, SIZES};
use memvisor_guest_agent::workload::{long_help, short_help};
use nix::unistd::geteuid;
use tracing_subscriber::EnvFilter;

const HELP: &str = "\
Exit codes:
    0  done
    1  failed; the reason is on standard error
    2  the command line is wrong
    3  it read back other data than it had written
    4  the host is not running, does not answer, or went away
  130  interrupted by a signal";

const FAILED: u8 = 1;
const CORRUPT: u8 = 3;
const HOST_GONE: u8 = 4;
const INTERRUPTED: u8 = 130;

/// A memvisor guest: a process with memory of its own, backed by a host.
#[derive(Debug, Parser)]
#[command(version, after_help = HELP)]
struct Args {
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

    /// Memory that the guest is guaranteed.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    reservation: u32,

    /// Memory that the guest never exceeds [default: --memory].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    limit: Option<u32>,

    /// The weight of the guest when memory is divided: low, normal, high or a number.
    #[arg(long, default_value = "normal")]
    shares: Shares,

    /// The most memory that the balloon may take; 0 turns ballooning off [default: set by the host].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    balloon_max: Option<u32>,

    /// Never share pages of the guest, not even with each other.
    #[arg(long)]
    no_sharing: bool,

    /// Run no balloon agent, like a guest without VMware Tools.
    #[arg(long)]
    no_agent: bool,

    /// Ask the host for every page. By default, where userfaultfd works, the thread that needs a page serves its fault
    /// itself: first touches, pages in the compression cache or the swap file, and copies of shared pages.
    #[arg(long)]
    no_inline: bool,

    /// Run without a host, on memory of this process, which the kernel may merge and page out unless
    /// --no-sharing forbids the merging.
    #[arg(long, conflicts_with_all = [
        "salt", "reservation", "limit", "shares", "balloon_max", "no_agent", "no_inline", "runtime_dir",
        "memory_socket", "balloon_socket",
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

    /// Print the report as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// A size in whole pages, which may be 0.
fn size(text: &str) -> Result<u32, String> {
    let bytes = match text {
        "0" => 0,
        _ => units::parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size: {SIZES}"))?,
    };
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

/// A bare number counts seconds.
fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text)
        .or_else(|| units::parse_duration(&format!("{text}s")))
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("`{text}` is not a time above 0: {}", units::DURATIONS))
}

/// The directory in which a host of this user has its sockets, unless the host was told another.
fn default_runtime_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    set("MEMVISOR_RUNTIME_DIR")
        .map(PathBuf::from)
        .or_else(|| set("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("memvisor")))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/memvisor-{}", geteuid())))
}

impl Args {
    /// The limit and the reservation, if they fit the memory and each other.
    fn bounds(&self) -> Result<(u32, u32), String> {
        let limit = self.limit.unwrap_or(self.memory);
        if limit > self.memory {
            return Err(format!("--limit of {limit} pages is more than --memory"));
        }
        if self.reservation > limit {
            return Err(format!(
                "--reservation is more than the {limit} pages it can have"
            ));
        }
        Ok((limit, self.reservation))
    }

    fn options(self, (limit, reservation): (u32, u32)) -> GuestOptions {
        let dir = self.runtime_dir.unwrap_or_else(default_runtime_dir);
        let socket = |chosen: Option<PathBuf>, name| chosen.unwrap_or_else(|| dir.join(name));
        GuestOptions {
            memory_socket: socket(self.memory_socket, "memory.sock"),
            balloon_socket: socket(self.balloon_socket, "balloon.sock"),
            name: self.name,
            pages: self.memory,
            workloads: self.workload,
            salt: self.salt,
            seed: self.seed,
            duration: self.duration,
            reservation,
            limit,
            shares: self.shares.count(self.memory.into()),
            balloon_max: self.balloon_max,
            sharing: !self.no_sharing,
            agent: !self.no_agent,
            inline: !self.no_inline,
            bare: self.bare,
            // The host may balloon any part of the guest's memory, and the guest must be able to page it out.
            swap_pages: self.memory,
            swap_directory: env::temp_dir(),
        }
    }
}

fn main() -> ExitCode {
    signals::unblock_all();
    let args = Args::parse();
    let bounds = args.bounds().unwrap_or_else(|wrong| {
        use clap::CommandFactory;
        Args::command()
            .error(ErrorKind::ValueValidation, wrong)
            .exit()
    });
    let json = args.json;
    match run(&args.options(bounds), json) {
        Ok(code) => code.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            match error.downcast_ref::<GuestError>() {
                Some(error) if error.is_host_gone() => HOST_GONE,
                Some(error) if error.is_interrupted() => INTERRUPTED,
                _ => FAILED,
            }
            .into()
        }
    }
}

fn run(options: &GuestOptions, json: bool) -> anyhow::Result<u8> {
    log_to_stderr()?;
    // Before any thread starts, because threads inherit the set of blocked signals.
    let signals = Signals::block(ENDING).context("cannot wait for signals")?;
    report_file_size_limit().context("cannot block SIGXFSZ")?;
    let outcome = guest::run(options, &signals, |end| end_process(&end), |_| {})
        .with_context(|| format!("guest `{}`", options.name))?;
    for wrong in &outcome.wrong {
        complain(&wrong.to_string());
    }
    let report = GuestReport::new(&options.name, &outcome);
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(match report {
        _ if report.mismatches > 0 => CORRUPT,
        _ if report.interrupted => INTERRUPTED,
        _ => 0,
    })
}

fn log_to_stderr() -> anyhow::Result<()> {
    let filter = match env::var("MEMVISOR_LOG") {
        Ok(text) => text.parse::<EnvFilter>().context("MEMVISOR_LOG")?,
        Err(env::VarError::NotPresent) => EnvFilter::new("warn"),
        Err(error) => bail!("MEMVISOR_LOG: {error}"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Says on standard error what is wrong.
fn complain(text: &str) {
    // Ignored: if standard error is closed, nobody is left to tell.
    let _ = writeln!(io::stderr(), "memvisor-guest-agent: {text}");
}

/// Ends this process because its host is gone: threads that wait for a page would wait for ever.
fn end_process(end: &SessionEnd) {
    complain(&end.to_string());
    process::exit(HOST_GONE.into());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn command_line_becomes_a_guest() {
        Args::command().debug_assert();
        let line = "agent --name a --memory 1M --workload kv idle --shares high --duration 2 \
                    --runtime-dir /x --balloon-socket /y/b";
        let args = parse(line).expect("right");
        let bounds = args.bounds().expect("right");
        let options = args.options(bounds);
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
    fn wrong_values_are_refused_and_named() {
        for (wrong, named) in [
            ("--memory 12Q", "`12Q`"),
            ("--memory 0", "`0`"),
            ("--memory 4097", "`4097`"),
            ("--memory 1M --shares many", "`many`"),
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
            assert!(parse(&line).expect("parses").bounds().is_err(), "{wrong}");
        }
    }
}
