//! `memvisor run`.

use std::env;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::exit::{Exit, UsageError};
use super::{complain, print};
use crate::chain::chain;
use crate::scenario::run::{Place, Progress, RunError, RunOptions};
use crate::scenario::{self, Fits, Results, Scenario, run};

/// Where scenarios are looked for if no directory is named.
const EXPERIMENTS: &str = "docs/experiments";

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The experiment, as docs/scenarios.md describes it; with --all a directory of such files
    /// [default with --all: docs/experiments].
    #[arg(value_name = "SCENARIO", required_unless_present = "all")]
    scenario: Option<PathBuf>,

    /// Run all scenarios of a directory, one after the other.
    #[arg(long)]
    all: bool,

    /// The results directory, which must not exist; with --all one that gets a directory for each scenario
    /// [default: a new one in results].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Say what is wrong, or what would run, and run nothing.
    #[arg(long)]
    check: bool,

    /// Run only this variant; may be given more than once.
    #[arg(long, value_name = "NAME")]
    variant: Vec<String>,

    /// How often each variant runs [default: as the scenario says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: Option<u32>,

    /// Print the results as JSON, and nothing else on standard output.
    #[arg(long, conflicts_with = "all")]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    let named = args.scenario.as_deref();
    if !args.all {
        let path = named.context("clap demands a scenario")?;
        let scenario = args.scenario(path)?;
        return args.one(&scenario, args.out.clone()).map(|done| done.exit);
    }
    let dir = named.unwrap_or(Path::new(EXPERIMENTS));
    let mut scenarios = Vec::new();
    // All are read before the first runs: a mistake in the last one is told now.
    for path in files(dir)? {
        scenarios.push(args.scenario(&path)?);
    }
    let mut exit = Exit::Success;
    let mut lines = String::new();
    for scenario in &scenarios {
        let out = args.out.as_ref().map(|out| out.join(&scenario.name));
        let done = args.one(scenario, out)?;
        lines += &format!("{}: {}\n", scenario.name, done.said);
        if done.exit != Exit::Success && exit != Exit::Corrupt {
            exit = done.exit;
        }
        if done.exit == Exit::Interrupted {
            break;
        }
    }
    if scenarios.len() > 1 && !args.check {
        print(&format!("\n{lines}"))?;
    }
    Ok(exit)
}

/// The scenarios of a directory.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        let mut paths: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
            .collect();
        paths.sort();
        Ok(paths)
    };
    let shown = dir.display();
    let found = list().map_err(|error| UsageError(format!("cannot read `{shown}`: {error}")))?;
    if found.is_empty() {
        let text = format!("there is no scenario in `{shown}`: no file there ends with .toml");
        return Err(UsageError(text).into());
    }
    Ok(found)
}

/// What became of a scenario.
struct Done {
    exit: Exit,
    /// The same in a line.
    said: String,
}

impl RunArgs {
    /// Reads a scenario, with what options say in the place of what it says.
    fn scenario(&self, path: &Path) -> anyhow::Result<Scenario> {
        let scenario = scenario::load(path);
        let mut scenario = scenario.map_err(|error| UsageError(chain(&error)))?;
        scenario.repeat = self.repeat.unwrap_or(scenario.repeat);
        for name in &self.variant {
            let mut known = scenario.variants.iter().map(|variant| &variant.name);
            if !known.any(|known| known == name) {
                let known = scenario
                    .variants
                    .iter()
                    .map(|variant| variant.name.as_str());
                let known: Vec<_> = known.filter(|name| !name.is_empty()).collect();
                let known = match &known[..] {
                    [] => "it has no variants".to_owned(),
                    known => format!("allowed: {}", known.join("; ")),
                };
                let path = path.display();
                let text = format!("--variant `{name}`: there is none in {path}; {known}");
                return Err(UsageError(text).into());
            }
        }
        if !self.variant.is_empty() {
            let is_wanted = |name: &String| self.variant.contains(name);
            scenario.variants.retain(|variant| is_wanted(&variant.name));
            // What needs another variant cannot be judged.
            scenario.expects.retain(|expect| {
                let figures = std::iter::once(&expect.figure).chain(&expect.per);
                let mut variants = figures.filter_map(|figure| figure.variant.as_ref());
                variants.all(is_wanted)
            });
        }
        Ok(scenario)
    }

    fn one(&self, scenario: &Scenario, out: Option<PathBuf>) -> anyhow::Result<Done> {
        if self.check {
            let fits = run::check(scenario).map_err(refused)?;
            print(&checked(scenario, &fits))?;
            let said = "could run".to_owned();
            let exit = Exit::Success;
            return Ok(Done { exit, said });
        }
        let options = RunOptions {
            program: env::current_exe().context("cannot find this executable")?,
            out,
            command: command(),
        };
        let line = Line::new();
        let ran = run::run(scenario, &options, |place, progress| {
            line.show(&scenario.name, place, progress);
        });
        line.clear();
        let (results, dir) = ran.map_err(refused)?;
        if self.json {
            print(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
        } else {
            print(&summary(&results, &dir))?;
        }
        Ok(ended(&results))
    }
}

/// What cannot run is no fault of the program.
fn refused(error: RunError) -> anyhow::Error {
    match error {
        RunError::Misfit(_) | RunError::Exists(_) => UsageError(chain(&error)).into(),
        other => other.into(),
    }
}

/// What would run.
fn checked(scenario: &Scenario, fits: &Fits) -> String {
    let names = fits.variants.iter().filter(|name| !name.is_empty());
    let names: Vec<&str> = names.map(String::as_str).collect();
    let variants = match &names[..] {
        [] => String::new(),
        names => format!("{} variants ({}), ", names.len(), names.join("; ")),
    };
    let times = match scenario.repeat {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    format!(
        "{}: {variants}{times}, {:?} without starting and verifying; {} of memory, {} on disk\n",
        scenario.path.display(),
        fits.time,
        fits.memory,
        fits.disk
    )
}

/// Says how a run ended, and complains about what is wrong.
fn ended(results: &Results) -> Done {
    let all = results.verdicts.iter().filter_map(|verdict| verdict.holds);
    let held = all.clone().filter(|holds| *holds).count();
    let judged = format!("{held} of {} expectations hold", all.count());
    if let Some(why) = &results.why {
        complain(why);
        let exit = match (results.corrupt, results.interrupted) {
            (true, _) => Exit::Corrupt,
            (_, true) => Exit::Interrupted,
            _ => Exit::Failure,
        };
        let said = format!("unfinished; {judged}");
        return Done { exit, said };
    }
    if results.holds() {
        let exit = Exit::Success;
        return Done { exit, said: judged };
    }
    complain(&format!("{}: {judged}", results.name));
    let exit = Exit::Unexpected;
    Done { exit, said: judged }
}

/// The results in lines.
fn summary(results: &Results, dir: &Path) -> String {
    let mut text = format!("{}\n", results.heading());
    for verdict in &results.verdicts {
        let holds = match verdict.holds {
            Some(true) => "holds",
            Some(false) => "FAILS",
            None => "is",
        };
        let variant = match verdict.variant.as_str() {
            "" => String::new(),
            name => format!(" [{name}]"),
        };
        text += &format!(
            "  {holds:5} {}{variant}: {}{}\n",
            verdict.text,
            verdict.measured(),
            verdict.allowed()
        );
    }
    text + &format!("  report: {}\n", dir.join("report.html").display())
}

/// The command line, without the path of the executable.
fn command() -> String {
    let words = env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let words = std::iter::once("memvisor".to_owned()).chain(words);
    words.collect::<Vec<_>>().join(" ")
}

/// The line on standard error that says what is running: one that changes on a terminal, else one a run.
struct Line {
    live: bool,
    told: std::cell::Cell<usize>,
}

impl Line {
    fn new() -> Self {
        Self {
            live: io::stderr().is_terminal(),
            told: std::cell::Cell::new(0),
        }
    }

    fn show(&self, name: &str, place: &Place<'_>, progress: &Progress) {
        let variant = match place.variant {
            "" => String::new(),
            variant => format!(" {variant}"),
        };
        let place_text = format!("{name}{variant}, run {} of {}", place.run, place.of);
        // Errors are ignored: if standard error is closed, nobody is left to be told.
        if !self.live {
            if self.told.replace(place.run) != place.run {
                let _ = writeln!(io::stderr(), "{place_text}: {:?}", progress.duration);
            }
            return;
        }
        let left = progress.duration.saturating_sub(progress.elapsed);
        let left = Duration::from_secs(left.as_secs_f64().ceil() as u64);
        let now = match progress.state {
            Some(state) => {
                let s = if progress.vms == 1 { "" } else { "s" };
                format!("{left:?} left, {} VM{s}, {state}", progress.vms)
            }
            None => format!("{} guests verify their memory", progress.vms),
        };
        let _ = write!(io::stderr(), "\r\x1b[K{place_text}: {now}");
    }

    fn clear(&self) {
        if self.live {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
