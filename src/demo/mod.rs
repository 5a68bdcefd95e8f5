//! `memvisor demo`: a host and a handful of guests that together want three times its memory.
//!
//! It is what a newcomer runs first, so it needs nothing: no privilege, no file from outside, no
//! second terminal. It makes a directory, writes synthetic files there for the guests to load, starts
//! this same executable as a host and as guests, and shows what the host reports. Everything that it
//! claims at the end is measured: the guests verify every page they wrote, and the savings are those of
//! the snapshot that saved most. The demo fails if a guest fails, if the host does not end cleanly, or if
//! nothing was verified.
//!
//! Nothing may be left behind. Every process is ended when its handle is dropped, and ends itself
//! when this process is gone. The directory is removed when its handle is dropped, or by the host if this
//! process is killed. Ctrl-C reaches only this process, because the children have process groups of
//! their own. So they end in order: guests, then host.

pub(crate) mod guests;
mod outcome;
mod processes;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memvisor_wire::signals::{ENDING, Event, Signals};
use nix::sys::signal::Signal;
use thiserror::Error;

pub use outcome::{DemoOutcome, Traffic};

use self::outcome::Watch;
use self::processes::Processes;
use crate::control::{Client, ClientError};
use crate::host::EngineChoice;
use crate::launch::{Scratch, ScratchError};
use crate::telemetry::HostStatus;
use crate::top::{PICTURE, Terminal, write_picture};
use crate::units::Bytes;

/// How long the whole demo may take beyond the running time of the guests: to write the files, to start,
/// and to verify at the end on a slow machine. With the default of 30 s that makes a minute.
const OVERHEAD_MAX: Duration = Duration::from_secs(30);

/// How long the host may take until it answers.
const START_MAX: Duration = Duration::from_secs(10);

/// How often the status is read.
const TICK: Duration = Duration::from_secs(1);

/// What a demo is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DemoOptions {
    /// The executable that is started as host and guests.
    pub program: PathBuf,
    /// The budget of the host.
    pub memory: Bytes,
    /// The number of guests.
    pub guests: u32,
    /// Memory of each guest.
    pub guest_memory: Bytes,
    /// How long the guests run.
    pub duration: Duration,
    /// The engine of the host.
    pub engine: EngineChoice,
    /// The file into which the screen on which most was saved is drawn.
    pub picture: Option<PathBuf>,
    /// Whether standard output is for the result alone.
    pub json: bool,
}

/// Why a demo failed.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A signal came, or `q` was typed.
    #[error("interrupted")]
    Interrupted,
    /// A guest found other data than it had written.
    #[error("{name} found corrupt memory: {message}")]
    Corrupt {
        /// The guest.
        name: String,
        /// What it said.
        message: String,
    },
    /// A process failed.
    #[error("{name} ended with {how}: {message}")]
    Failed {
        /// The host or a guest.
        name: String,
        /// Its exit code or signal.
        how: String,
        /// The end of what it logged.
        message: String,
    },
    /// A guest ended well but did not say what it had verified.
    #[error("{name} ended without a report")]
    NoReport {
        /// The guest.
        name: String,
    },
    /// All guests ended well, but nothing was verified, so nothing is shown.
    #[error("the guests verified no page at all")]
    NothingVerified,
    /// A process does not come up or does not end.
    #[error("{name} took longer than {limit:?} to {what}: {message}")]
    Overtime {
        /// The host or a guest.
        name: String,
        /// What it had to do.
        what: &'static str,
        /// How long it could take.
        limit: Duration,
        /// The end of what it logged.
        message: String,
    },
    /// The host does not answer although it runs.
    #[error("the host does not answer")]
    Client(#[from] ClientError),
    /// There is no directory for the run.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The picture cannot be written.
    #[error("cannot write the picture to {path}")]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system refuses something.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DemoError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Runs the demo.
///
/// # Errors
/// [`DemoError`]; processes and files are gone by then.
pub fn run(options: &DemoOptions) -> Result<DemoOutcome, DemoError> {
    let began = Instant::now();
    let signals = Signals::block(ENDING.into_iter().chain([Signal::SIGCHLD]))
        .map_err(DemoError::io("wait for signals"))?;
    let news = News::of(options);
    let scratch = Scratch::new()?;
    news.tell("writing a boot image and files for the guests")?;
    guests::write_files(options.guest_memory, scratch.path(), || {
        stop_if_asked(&signals)
    })?;
    news.tell("starting the host")?;
    let mut processes = Processes::start_host(options, &scratch, &signals)?;
    let client = Client::new(scratch.runtime_dir().control_socket())?;
    let first = await_host(&mut processes, &client)?;
    news.tell(&format!(
        "host is up: {} of memory, engine {}; starting {} guests of {} for {:?}",
        first.budget_pages.bytes(),
        first.engine,
        options.guests,
        options.guest_memory,
        options.duration,
    ))?;
    processes.start_guests(options, &scratch)?;
    let limit = options.duration + OVERHEAD_MAX;
    let mut watch = Watch::new(options, first);
    follow(&mut processes, &client, &mut watch, began + limit, options)?;
    let reports = processes.finish()?;
    if let Some(path) = &options.picture {
        draw(&watch, path)?;
    }
    watch.outcome(reports, began.elapsed())
}

/// Writes the screen on which most was saved as an SVG picture.
fn draw(watch: &Watch, path: &Path) -> Result<(), DemoError> {
    write_picture(&watch.fullest_screen(PICTURE), path).map_err(|source| DemoError::Picture {
        path: path.to_owned(),
        source,
    })
}

/// Waits until the host answers.
fn await_host(processes: &mut Processes<'_>, client: &Client) -> Result<HostStatus, DemoError> {
    let limit = Instant::now() + START_MAX;
    loop {
        match client.status() {
            // Its socket is not there yet.
            Err(ClientError::NotRunning { .. }) => {}
            answer => return Ok(answer?),
        }
        // A host that has ended will never answer.
        processes.check_host()?;
        if Instant::now() > limit {
            return Err(processes.overtime_of_host(START_MAX));
        }
        let soon = Instant::now() + Duration::from_millis(50);
        let event = processes.signals().wait(None, soon);
        refuse_ending(event.map_err(DemoError::io("wait"))?)?;
    }
}

/// Shows the host until all guests have ended.
fn follow(
    processes: &mut Processes<'_>,
    client: &Client,
    watch: &mut Watch,
    limit: Instant,
    options: &DemoOptions,
) -> Result<(), DemoError> {
    let mut screen = Terminal::open(!options.json).map_err(DemoError::io("use the terminal"))?;
    let news = News::of(options);
    let mut due = Instant::now();
    while processes.any_guest_runs()? {
        if Instant::now() >= due {
            due = Instant::now() + TICK;
            watch.see(status_of(client, processes)?);
            if screen.is_live() {
                let drawn = screen.draw(&watch.screen(screen.screen()));
                drawn.map_err(DemoError::io("draw"))?;
            } else {
                news.tell(&watch.line())?;
            }
        }
        if Instant::now() > limit {
            return Err(processes.overtime_of_guest(options.duration + OVERHEAD_MAX));
        }
        pause(processes, &mut screen, due)?;
    }
    Ok(())
}

/// The status. If the host is gone, the error comes from its log, which knows more than the connection.
fn status_of(client: &Client, processes: &mut Processes<'_>) -> Result<HostStatus, DemoError> {
    match client.status() {
        Err(error) if error.is_gone() => Err(processes.explain_host(error.into())),
        answer => Ok(answer?),
    }
}

/// Waits for the next tick or until a child has ended.
fn pause(processes: &Processes<'_>, screen: &mut Terminal, due: Instant) -> Result<(), DemoError> {
    loop {
        let event = processes.signals().wait(screen.keyboard(), due);
        match event.map_err(DemoError::io("wait"))? {
            Event::Timeout | Event::Signal(Signal::SIGCHLD) => return Ok(()),
            Event::Readable if screen.quit_typed().map_err(DemoError::io("read a key"))? => {
                return Err(DemoError::Interrupted);
            }
            Event::Readable => {}
            Event::Signal(_) => return Err(DemoError::Interrupted),
        }
    }
}

fn stop_if_asked(signals: &Signals) -> Result<(), DemoError> {
    let event = signals.wait(None, Instant::now());
    refuse_ending(event.map_err(DemoError::io("wait"))?)
}

fn refuse_ending(event: Event) -> Result<(), DemoError> {
    match event {
        Event::Signal(signal) if signal != Signal::SIGCHLD => Err(DemoError::Interrupted),
        _ => Ok(()),
    }
}

/// Where progress is told: on standard output, or on standard error if standard output is for the result alone.
#[derive(Clone, Copy)]
struct News {
    quiet: bool,
}

impl News {
    const fn of(options: &DemoOptions) -> Self {
        Self {
            quiet: options.json,
        }
    }

    fn tell(self, line: &str) -> Result<(), DemoError> {
        let told = if self.quiet {
            writeln!(io::stderr(), "{line}")
        } else {
            writeln!(io::stdout(), "{line}")
        };
        told.map_err(DemoError::io("print"))
    }
}

#[cfg(test)]
mod tests;
