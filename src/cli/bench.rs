//! `memvisor bench`, and the processes it starts.

mod guests;
mod running;

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use memvisor_guest_agent::shim::SessionEnd;
use memvisor_wire::balloon::Protocol;
use memvisor_wire::signals::{ENDING, Signals};

use self::running::Running;
use super::exit::{Exit, UsageError};
use super::{complain, print, values};
use crate::bench::content::{Class, Source};
use crate::bench::driven::{self, DrivenOptions};
use crate::bench::guard::{self, Guard, SCRATCH_PREFIX, Undo};
use crate::bench::peer::signal::{self, Remedy};
use crate::bench::report::Report;
use crate::bench::{self, Bench, BenchOptions, Machine, Setup, Vs, html};
use crate::host::EngineChoice;
use crate::units::Bytes;

/// Default size and rounds, without and with `--quick`.
const SIZE: Bytes = Bytes::from_mib(256);
const QUICK_SIZE: Bytes = Bytes::from_mib(32);
const ROUNDS: u32 = 5;
const QUICK_ROUNDS: u32 = 2;
/// A guest's memory is needed about four times: by the guest, for a copy of what is merged or paged out, by the
/// peer, and for files that are read.
const COPIES: u64 = 4;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure.
    #[arg(value_name = "BENCH", required = true, num_args = 1.., value_parser = names())]
    benches: Vec<String>,

    /// Compare with the kernel's KSM or zram, with the C library of LZ4, or, in the benchmark `guests`,
    /// with the kernel as a whole; may be given more than once. All but lz4 need root.
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    vs: Vec<Vs>,

    /// The content of memory: zero, filled, text, code, heap, random or mixed, or the path of a file
    /// or directory [default: chosen by each benchmark].
    #[arg(long, value_name = "CLASS|PATH")]
    content: Option<String>,

    /// In the benchmark `balloon`, compare protocols by which an agent names pages: ranges, page-lists, pfn-arrays,
    /// reporting, hints, bitmap or all; may be given more than once.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = protocols())]
    protocol: Vec<String>,

    /// Memory of all guests of a benchmark together [default: 256M; for fleets 1280M].
    #[arg(long, visible_alias = "memory", value_name = "SIZE", value_parser = values::memory)]
    size: Option<Bytes>,

    /// How often each case is measured, turn by turn with its peers [default: 5; for fleets 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Use smaller defaults: 32M and 2 rounds; for fleets 320M, 2 rounds and 5 s (sample: 16 s).
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    guests: guests::Args,

    /// How guest memory is controlled, as for `memvisor host`.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,

    /// Print the result as JSON, and nothing else on standard output.
    #[arg(long)]
    json: bool,

    /// Write the result to this file too, as an HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// The benchmarks, and `all`.
fn names() -> PossibleValuesParser {
    let each = Bench::value_variants().iter();
    let all =
        PossibleValue::new("all").help("All benchmarks up to plan, which run no guests for long");
    PossibleValuesParser::new(each.filter_map(Bench::to_possible_value).chain([all]))
}

/// The protocols of the balloon, and `all`.
fn protocols() -> PossibleValuesParser {
    PossibleValuesParser::new(Protocol::ALL.map(Protocol::name).into_iter().chain(["all"]))
}

impl BenchArgs {
    pub(super) fn options(&self) -> anyhow::Result<BenchOptions> {
        let (size, rounds) = if self.quick {
            (QUICK_SIZE, QUICK_ROUNDS)
        } else {
            (SIZE, ROUNDS)
        };
        let benches = self.benches();
        if !benches.contains(&Bench::Guests) && self.vs.contains(&Vs::Kernel) {
            let text = "--vs kernel is for the benchmark `guests` alone; allowed: ksm, zram, lz4";
            return Err(UsageError(text.to_owned()).into());
        }
        if !benches.contains(&Bench::Balloon) && !self.protocol.is_empty() {
            let text = "--protocol is for the benchmark `balloon` alone";
            return Err(UsageError(text.to_owned()).into());
        }
        let guests = self
            .guests
            .options((self.size, self.rounds), self.quick, &benches)?;
        Ok(BenchOptions {
            guests,
            benches,
            size: fitting(self.size.unwrap_or(size), Machine::available())?,
            rounds: self.rounds.unwrap_or(rounds),
            source: self.content.as_deref().map(source).transpose()?,
            vs: self.vs.clone(),
            protocols: self.protocols(),
            engine: self.engine,
        })
    }

    fn protocols(&self) -> Vec<Protocol> {
        let wanted = |name: &str| self.protocol.iter().any(|given| given == name);
        let all = Protocol::ALL.into_iter();
        all.filter(|protocol| wanted("all") || wanted(protocol.name()))
            .collect()
    }

    fn benches(&self) -> Vec<Bench> {
        let all = self.benches.iter().any(|name| name == "all");
        let is_wanted = |bench: &Bench| {
            all && !bench.runs_guests() || self.benches.contains(&bench.to_string())
        };
        let benches = Bench::value_variants().iter().copied();
        benches.filter(is_wanted).collect()
    }
}

/// The size, if there is memory for it.
fn fitting(size: Bytes, available: Bytes) -> anyhow::Result<Bytes> {
    let most = Bytes(available.0 / COPIES);
    if size > most {
        return Err(UsageError(format!(
            "--size {size} is too much: {available} of memory are free, of which a benchmark needs \
             {COPIES} times its size; allowed: up to {most}"
        ))
        .into());
    }
    Ok(size)
}

/// A class by its name, or else a path, which must exist.
fn source(text: &str) -> anyhow::Result<Source> {
    if let Ok(class) = Class::from_str(text, false) {
        return Ok(Source::Class(class));
    }
    let path = PathBuf::from(text);
    if let Err(error) = path.metadata() {
        let classes = bench::names::<Class>();
        return Err(UsageError(format!(
            "--content `{text}` is neither a class ({classes}) nor a file or directory that can be \
             read: {error}"
        ))
        .into());
    }
    Ok(Source::Path(path))
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<Exit> {
    let options = args.options()?;
    let program = env::current_exe().context("cannot find this executable")?;
    // Blocked before any thread starts, because threads inherit the blocked signals.
    let signals = Signals::block(ENDING).context("cannot wait for signals")?;
    let guard = Guard::start(&program).context("cannot start the process that cleans up")?;
    let scratch = scratch(&guard)?;
    let page = args.html.as_deref().map(Page::create).transpose()?;
    // Its load is that before the benchmarks.
    let machine = Machine::here();
    let benches = options.benches.clone();
    let bench = Arc::new(Running::new());
    let measure = {
        let bench = Arc::clone(&bench);
        move || {
            let progress = |of: Bench, text: &str| bench.step(of, text);
            let setup = Setup {
                options: &options,
                program,
                scratch,
                guard: &guard,
                progress: &progress,
            };
            let measured = bench::run(&setup, &bench.report);
            // Restored in any case, but the error of the benchmark is reported first.
            let restored = guard.finish();
            measured?;
            restored.context("the machine is not as it was")
        }
    };
    let ended = bench.until_end(&signals, measure);
    bench.line.clear();
    // From here on signals end the process again, even if it hangs in printing because nobody reads.
    drop(signals);
    let report = &bench.report;
    if !matches!(ended, Ok(Exit::Success)) {
        report.remark(bench.missing(&benches));
    }
    // What was measured before a failure may have taken an hour.
    if ended.is_ok() || !report.entries().is_empty() {
        print_report(report, &machine, page, args.json)?;
    }
    ended
}

fn print_report(
    report: &Report,
    machine: &Machine,
    page: Option<Page>,
    json: bool,
) -> anyhow::Result<()> {
    report.remarks().iter().for_each(|remark| complain(remark));
    if let Some(page) = page {
        page.write(&html::page(report, machine, &command()))?;
    }
    if json {
        let entries = report.entries();
        print(&format!("{}\n", serde_json::to_string_pretty(&entries)?))?;
    } else {
        print(&format!("{machine}\n{}", report.table()))?;
    }
    Ok(())
}

/// The file for the page. It is opened early, so that a wrong path is an error before minutes are spent on measuring.
struct Page {
    path: PathBuf,
    file: File,
}

impl Page {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).map_err(|error| {
            let path = path.display();
            UsageError(format!("--html `{path}` cannot be written: {error}"))
        })?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    fn write(mut self, text: &str) -> anyhow::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

/// The command line, without the path of the executable.
fn command() -> String {
    let words = env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    std::iter::once("memvisor".to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A directory for swap files and sockets, on a disk if there is one; the guard removes it.
fn scratch(guard: &Guard) -> anyhow::Result<PathBuf> {
    let chosen = env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    let places = match chosen {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![PathBuf::from("/var/tmp"), PathBuf::from("/tmp")],
    };
    let make = |place: &Path| {
        // The name is chosen before the directory exists, so that the guard hears of it first.
        let name = format!("{SCRATCH_PREFIX}{:016x}", rand::random::<u64>());
        let path = place.join(name);
        guard.undo(Undo::RemoveDir(path.clone()))?;
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&path)?;
        Ok::<_, io::Error>(path)
    };
    let mut made = Err(io::Error::from(io::ErrorKind::NotFound));
    for place in &places {
        made = make(place);
        if made.is_ok() {
            break;
        }
    }
    made.context("cannot make a directory for the benchmark")
}

/// `memvisor bench-guard`: restores the machine. See [`crate::bench::guard`].
pub(super) fn run_guard() -> Exit {
    if guard::run(io::stdin().lock(), io::stdout().lock(), complain) {
        Exit::Success
    } else {
        Exit::Failure
    }
}

#[derive(Debug, Args)]
pub(super) struct GuestArgs {
    #[arg(long, value_parser = values::name)]
    name: String,

    #[arg(long)]
    pages: u32,

    #[arg(long)]
    socket: PathBuf,

    #[arg(long)]
    inline: bool,
}

/// `memvisor bench-guest`: a guest that does what a benchmark tells it.
pub(super) fn run_guest(args: GuestArgs) -> anyhow::Result<Exit> {
    let options = DrivenOptions {
        name: args.name,
        pages: args.pages,
        memory_socket: args.socket,
        inline: args.inline,
    };
    driven::run(&options, |end| end_process(&end))?;
    Ok(Exit::Success)
}

#[derive(Debug, Args)]
pub(super) struct SignalArgs {
    handler: Remedy,

    pages: u32,
}

/// `memvisor bench-signal`: see [`signal`].
pub(super) fn run_signal(args: &SignalArgs) -> anyhow::Result<Exit> {
    let touches = signal::run(args.handler, args.pages)?;
    print(&serde_json::to_string(&touches)?)?;
    Ok(Exit::Success)
}

/// Ends this process because its host is gone: threads that wait for a page would wait for ever.
#[expect(clippy::exit, reason = "the main thread may be one of those that wait")]
fn end_process(end: &SessionEnd) {
    // Not worth a warning: the benchmark ends its guests by ending the session.
    tracing::debug!(%end, "the session ended");
    std::process::exit(Exit::HostGone as i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_that_does_not_fit_is_refused_with_what_does() {
        assert!(fitting(Bytes::from_mib(256), Bytes::from_mib(1024)).is_ok());
        let error = fitting(Bytes::from_mib(257), Bytes::from_mib(1024)).expect_err("too much");
        assert!(error.is::<UsageError>());
        let text = error.to_string();
        assert!(
            text.contains("257.0 MiB") && text.contains("up to 256.0 MiB"),
            "{text}"
        );
    }

    #[test]
    fn content_is_a_class_or_a_path_that_is_there() {
        assert_eq!(source("heap").expect("a class"), Source::Class(Class::Heap));
        assert!(matches!(source("/proc/self"), Ok(Source::Path(_))));
        let error = source("haep").expect_err("neither").to_string();
        for part in ["`haep`", "zero, filled, text, code, heap, random, mixed"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
