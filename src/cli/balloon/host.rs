//! `memvisor balloon host`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use memvisor_guest_agent::balloon::{AgentSettings, PageSource};
use memvisor_guest_agent::outside::OutsideAgent;
use memvisor_wire::SeqPacketListener;
use memvisor_wire::signals::{ENDING, Event, Signals};

use crate::balloon::{Tap, serve};
use crate::cli::exit::{Exit, UsageError};
use crate::cli::{complain, print, values};
use crate::laboratory::alone::Alone;
use crate::laboratory::dump;
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::record::Recorder;
use crate::laboratory::schedule::{Change, Schedule};
use crate::laboratory::tape::{Heard, Side};
use crate::units::{Bytes, Pages};

/// How often it is looked whether the agent that was started has ended.
const LOOK: Duration = Duration::from_millis(100);
/// The most of its guest that a balloon takes unless it is told otherwise, in percent.
const MAX_PERCENT: u64 = 65;

#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// Where agents connect; the path must not exist.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// The memory of the VM.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = values::memory)]
    memory: Bytes,

    /// The most that its balloon may hold [default: 65 % of the memory].
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    balloon_max: Option<Bytes>,

    /// Targets and their times, such as 0s=0,5s=64M.
    #[arg(long, value_name = "SCHEDULE", default_value = "0s=64M")]
    target: Schedule,

    /// What happens, and when, by a file.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    schedule: Option<PathBuf>,

    /// How often agents are to ask for their target.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::duration)]
    poll: Duration,

    /// The token of the VM [default: a random one].
    #[arg(long, value_name = "TOKEN", value_parser = super::token)]
    token: Option<u64>,

    /// Start this command as the agent, and lend it the pages of a guest that is not there; ends when it ends.
    #[arg(long, value_name = "COMMAND")]
    agent: Option<String>,

    /// How long it runs [default: until it is interrupted].
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    duration: Option<Duration>,

    /// Record each session in a file of its own in this directory.
    #[arg(long, value_name = "DIR")]
    record_balloon: Option<PathBuf>,

    /// Print what is said as JSON.
    #[arg(long)]
    json: bool,
}

impl HostArgs {
    fn schedule(&self) -> anyhow::Result<Schedule> {
        let Some(path) = &self.schedule else {
            return Ok(self.target.clone());
        };
        let wrong = || format!("cannot use the schedule `{}`", path.display());
        let text = fs::read_to_string(path).with_context(wrong)?;
        Schedule::parse(&text).with_context(wrong)
    }
}

pub(super) fn run(args: &HostArgs) -> anyhow::Result<Exit> {
    let schedule = args.schedule()?;
    let total = args.memory.pages();
    let many =
        u32::try_from(total.0).map_err(|_| UsageError("--memory: at most 16T".to_owned()))?;
    let max = args
        .balloon_max
        .map_or(Pages(total.0 * MAX_PERCENT / 100), Bytes::pages);
    let token = args.token.unwrap_or_else(rand::random);
    // Before any thread starts, because threads inherit the set of blocked signals.
    let signals = Signals::block(ENDING).context("cannot wait for signals")?;
    let recorder = args
        .record_balloon
        .as_deref()
        .map(Recorder::new)
        .transpose();
    let recorder = recorder.context("cannot record sessions")?;
    let (json, began) = (args.json, Instant::now());
    let taps = move || -> Option<Box<dyn Tap>> {
        let recording = recorder.as_ref().and_then(Recorder::begin);
        Some(Box::new(Printer {
            json,
            began,
            recording,
        }))
    };
    let host = Arc::new(Alone::new(token, total, max, Box::new(taps))?);
    let listener = SeqPacketListener::bind(&args.socket)?;
    if json {
        print(&format!("{{\"token\":\"{token:#018x}\"}}\n"))?;
    } else {
        let (memory, socket) = (args.memory, args.socket.display());
        print(&format!("token {token:#018x}, {memory} at {socket}\n"))?;
    }
    // Before an agent is served: what is so from the beginning must not depend on who is faster.
    let mut changes = schedule.0.iter().copied().peekable();
    apply_due(args, &host, began, &mut changes)?;
    // Never joined: it waits for agents for as long as the process lives.
    let (theirs, poll) = (Arc::clone(&host), args.poll);
    thread::Builder::new()
        .name("balloon".into())
        .spawn(move || accept(&theirs, &listener, poll))?;
    let _path = RemovedAtEnd(args.socket.clone());
    let agent = args.agent.as_ref().map(|command| {
        let settings = AgentSettings::new(token, "laboratory".to_owned());
        let memory: Arc<dyn PageSource> = Arc::new(SimulatedMemory::new(many));
        OutsideAgent::start(command, &settings, &args.socket, memory)
    });
    let agent = agent.transpose().context("cannot start the agent")?;
    follow(args, &host, changes, &signals, began, agent)
}

/// The listener's thread is not joined, so its socket is removed here.
struct RemovedAtEnd(PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        // It may be gone already, and there is nobody to tell.
        let _ = fs::remove_file(&self.0);
    }
}

type Step = (Duration, Change);
type Changes<I> = std::iter::Peekable<I>;

/// Does what the schedule says should have been done by now.
fn apply_due(
    args: &HostArgs,
    host: &Alone,
    began: Instant,
    changes: &mut Changes<impl Iterator<Item = Step>>,
) -> anyhow::Result<()> {
    while let Some((time, change)) = changes.next_if(|(time, _)| began.elapsed() >= *time) {
        if !args.json {
            print(&format!("{} # {}\n", dump::moment(time), shown(change)))?;
        }
        host.apply(change);
    }
    Ok(())
}

/// Does what the schedule says until the end.
fn follow(
    args: &HostArgs,
    host: &Alone,
    mut changes: Changes<impl Iterator<Item = Step>>,
    signals: &Signals,
    began: Instant,
    mut agent: Option<OutsideAgent>,
) -> anyhow::Result<Exit> {
    let end = args.duration.map(|time| began + time);
    loop {
        apply_due(args, host, began, &mut changes)?;
        if let Some(status) = agent.as_mut().and_then(OutsideAgent::ended) {
            print_end(args, host)?;
            return Ok(if status.success() {
                Exit::Success
            } else {
                Exit::Failure
            });
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            drop(agent);
            print_end(args, host)?;
            return Ok(Exit::Success);
        }
        let next = changes.peek().map(|(time, _)| began + *time);
        let look = Instant::now() + LOOK;
        let until = [next, end].into_iter().flatten().fold(look, Instant::min);
        if let Event::Signal(_) = signals.wait(None, until)? {
            drop(agent);
            return Ok(Exit::Interrupted);
        }
    }
}

fn print_end(args: &HostArgs, host: &Alone) -> anyhow::Result<()> {
    if !args.json {
        print(&format!(
            "the balloon holds {}\n",
            Pages(host.locked()).bytes()
        ))?;
    }
    Ok(())
}

fn shown(change: Change) -> String {
    match change {
        Change::Target(pages) => format!("target {} ({} pages)", pages.bytes(), pages.0),
        Change::BalloonMax(pages) => format!("balloon-max {}", pages.bytes()),
        Change::Busy(pages) => format!("busy {}", pages.bytes()),
        Change::Reset => "reset".to_owned(),
        Change::Short(short) => format!("short {short}"),
        Change::Close => "close".to_owned(),
    }
}

fn accept(host: &Arc<Alone>, listener: &SeqPacketListener, poll: Duration) {
    while let Ok(socket) = listener.accept() {
        let host = Arc::clone(host);
        let session = move || serve(&socket, &*host, poll);
        if let Err(error) = thread::Builder::new().name("session".into()).spawn(session) {
            complain(&format!("cannot serve an agent: {error}"));
        }
    }
}

/// Prints what is said in a session, and records it if it is to be.
struct Printer {
    json: bool,
    began: Instant,
    recording: Option<crate::laboratory::record::Recording>,
}

impl Printer {
    fn print(&self, by: Side, datagram: &[u8]) {
        let heard = Heard {
            at: self.began.elapsed(),
            by,
            bytes: datagram.to_vec(),
        };
        let line = if self.json {
            dump::json(&heard).to_string()
        } else {
            dump::line(&heard)
        };
        // A host goes on even if nobody reads what it says.
        let _ = print(&(line + "\n"));
    }
}

impl Tap for Printer {
    fn received(&mut self, datagram: &[u8]) {
        self.recording
            .iter_mut()
            .for_each(|recording| recording.received(datagram));
        self.print(Side::Agent, datagram);
    }

    fn sent(&mut self, datagram: &[u8]) {
        self.recording
            .iter_mut()
            .for_each(|recording| recording.sent(datagram));
        self.print(Side::Host, datagram);
    }

    fn ended(&mut self, why: &str) {
        self.recording
            .iter_mut()
            .for_each(|recording| recording.ended(why));
        if !self.json {
            let _ = print(&format!(
                "{} # ended: {why}\n",
                dump::moment(self.began.elapsed())
            ));
        }
    }
}
