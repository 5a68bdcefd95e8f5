//! `memvisor balloon agent`.

use std::env;
use std::fs;
use std::io::{self, BufReader, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use memvisor_guest_agent::command::protocols;
use memvisor_guest_agent::outside::{self, Pipe, Unasked};
use memvisor_wire::balloon::Protocol;
use memvisor_wire::signals::{ENDING, Event, Signals};

use crate::cli::exit::{Exit, UsageError};
use crate::cli::{print, table, values};
use crate::laboratory::actor::{Curtain, Identity};
use crate::laboratory::dump;
use crate::laboratory::memory::{Memory, SimulatedMemory};
use crate::laboratory::peer::Ears;
use crate::laboratory::play::Play;
use crate::laboratory::script::{self, BEHAVIOURS, Script, Spoken};
use crate::units::Bytes;

/// The memory of a guest that is not there, unless it is told otherwise.
const MEMORY: Bytes = Bytes::from_mib(256);
/// Longer than any agent runs.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// How it behaves; --list shows all.
    #[arg(long, value_name = "NAME", default_value = "well-behaved", value_parser = named)]
    behaviour: String,

    /// How it behaves, by a file.
    #[arg(long, value_name = "FILE", conflicts_with = "behaviour")]
    script: Option<PathBuf>,

    /// List the behaviours.
    #[arg(long)]
    list: bool,

    /// Print the script of the behaviour, to begin one's own with.
    #[arg(long, conflicts_with_all = ["list", "script"])]
    print: bool,

    /// How it names pages, if the host agrees to that [default: ranges, or what the script says].
    #[arg(long, value_name = "NAME", value_parser = protocols())]
    protocol: Option<Protocol>,

    /// The host's balloon socket [default: $MEMVISOR_BALLOON_SOCKET].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The token of the VM [default: $MEMVISOR_BALLOON_TOKEN].
    #[arg(long, value_name = "TOKEN", value_parser = super::token)]
    token: Option<u64>,

    /// Give pages of a guest of this size that is not there [default: 256M, or the guest that started this program].
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    memory: Option<Bytes>,

    /// What the guest is called.
    #[arg(long, default_value = "laboratory")]
    name: String,

    /// Die after it has said so many messages, without waiting for an answer; not if it is well-behaved or slow.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    die_after: Option<u32>,

    /// Print what is said as JSON.
    #[arg(long)]
    json: bool,
}

fn named(name: &str) -> Result<String, String> {
    script::behaviour(name).map(|_| name.to_owned())
}

impl AgentArgs {
    fn script(&self) -> anyhow::Result<Script> {
        let Some(path) = &self.script else {
            let text = script::behaviour(&self.behaviour).map_err(UsageError)?;
            return Script::parse(text).context("a behaviour of this program");
        };
        let wrong = || format!("cannot use the script `{}`", path.display());
        let text = fs::read_to_string(path).with_context(wrong)?;
        Script::parse(&text).with_context(wrong)
    }

    /// The socket and the token.
    fn host(&self) -> Result<(PathBuf, u64), UsageError> {
        let needed = |option, name| UsageError(format!("{option} is needed, or ${name}"));
        let socket = self
            .socket
            .clone()
            .or_else(|| env::var_os(outside::SOCKET).map(PathBuf::from));
        let socket = socket.ok_or_else(|| needed("--socket PATH", outside::SOCKET))?;
        let token = match (self.token, env::var(outside::TOKEN)) {
            (Some(token), _) => token,
            (None, Ok(text)) => super::token(&text).map_err(UsageError)?,
            (None, Err(_)) => return Err(needed("--token TOKEN", outside::TOKEN)),
        };
        Ok((socket, token))
    }
}

pub(super) fn run(args: &AgentArgs) -> anyhow::Result<Exit> {
    if args.list {
        print(&list())?;
        return Ok(Exit::Success);
    }
    if args.print {
        print(script::behaviour(&args.behaviour).map_err(UsageError)?)?;
        return Ok(Exit::Success);
    }
    let mut script = args.script()?;
    if let Some(protocol) = args.protocol {
        script.protocol = Spoken(protocol);
    }
    let (socket, token) = args.host()?;
    if args.die_after.is_some() && script.bundled {
        let text = "--die-after needs a behaviour that is a script, such as follower";
        return Err(UsageError(text.to_owned()).into());
    }
    // Before any thread starts, because threads inherit the set of blocked signals.
    let signals = Signals::block(ENDING).context("cannot wait for signals")?;
    let is_lent = args.memory.is_none() && env::var_os(outside::PAGES).is_some();
    let (memory, unasked) = if is_lent {
        lent().context("cannot speak with the guest")?
    } else {
        let pages = args.memory.unwrap_or(MEMORY).pages().0;
        let pages =
            u32::try_from(pages).map_err(|_| UsageError("--memory: at most 16T".to_owned()))?;
        let memory: Arc<dyn Memory> = Arc::new(SimulatedMemory::new(pages));
        (memory, until_signal(signals)?)
    };
    let name = if is_lent {
        env::var(outside::NAME).unwrap_or_default()
    } else {
        args.name.clone()
    };
    let play = Play {
        script,
        memory,
        me: Identity { token, name },
        socket,
        messages: args.die_after,
    };
    let json = args.json;
    // Standard output is the guest's where it lends its memory.
    match play.run(unasked, || ears(json, is_lent)) {
        Ok(()) | Err(Curtain::Died | Curtain::Stopped) => Ok(Exit::Success),
        Err(Curtain::Left) if is_lent => Ok(Exit::Success),
        Err(Curtain::Left) => Ok(Exit::Interrupted),
        Err(error @ (Curtain::Closed | Curtain::Silent(_))) => {
            super::super::complain(&error.to_string());
            Ok(Exit::HostGone)
        }
        Err(error) => Err(error.into()),
    }
}

fn ears(json: bool, is_lent: bool) -> Ears {
    Box::new(move |heard| {
        if is_lent {
            return;
        }
        let line = if json {
            dump::json(heard).to_string()
        } else {
            dump::line(heard)
        };
        // An agent goes on even if nobody reads what it says.
        let _ = print(&(line + "\n"));
    })
}

/// The memory of the guest that started this program.
fn lent() -> anyhow::Result<(Arc<dyn Memory>, Receiver<Unasked>)> {
    if io::stdin().is_terminal() {
        let text = format!(
            "${} is set, but standard input is a terminal and no guest",
            outside::PAGES
        );
        return Err(UsageError(text).into());
    }
    let (pipe, unasked) = Pipe::new(BufReader::new(io::stdin()), io::stdout())?;
    Ok((Arc::new(pipe), unasked))
}

/// Says that the agent should leave when a signal comes.
fn until_signal(signals: Signals) -> io::Result<Receiver<Unasked>> {
    let (say, unasked) = channel();
    let wait = move || {
        while matches!(
            signals.wait(None, Instant::now() + FOR_EVER),
            Ok(Event::Timeout | Event::Readable)
        ) {}
        // Nobody is left to be told when the agent has ended.
        let _ = say.send(Unasked::Leave);
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(unasked)
}

fn list() -> String {
    let row = |(name, script): &(&str, &str)| [(*name).to_owned(), script::about(script)];
    table::aligned(&BEHAVIOURS.iter().map(row).collect::<Vec<_>>())
}
