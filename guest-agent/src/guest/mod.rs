//! A guest, put together: virtual hardware, kernel, balloon agent, workloads.

mod accesses;
mod options;
mod pages;
mod process;
mod summary;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_wire::memory::{Hello, MAX_TEXT};
use memvisor_wire::signals::{Event, Signals};
use memvisor_wire::system_error::{SystemError, cannot};
use memvisor_wire::{Gfn, SeqPacket};
use thiserror::Error;

use crate::balloon::{Agent, AgentSettings, PageSource};
use crate::kernel::{Kernel, KernelError, KernelOptions, PressureHook};
use crate::outside::OutsideAgent;
use crate::shim::{self, Memory, PowerOnError, PoweredOn, Ram, SessionEnd, map_bare};
use crate::workload::{
    LastLook, Mismatch, Progress, Report, Runner, Sequence, SpecError, StartError,
};
use accesses::Writing;
use pages::{KernelPages, Relief};

pub use options::{AgentChoice, GuestOptions};
pub use process::ProcessUse;
pub use summary::{GuestProgress, GuestReport, WorkloadReport};

/// How often a running guest checks whether something is wrong.
const POLL: Duration = Duration::from_millis(200);
/// After how long a guest warns that its host does not answer. A host answers within milliseconds, or within some
/// seconds if it has no memory for another guest.
const SILENCE: Duration = Duration::from_secs(1);
/// After how long a guest gives up its host. The host may have to write a whole swap file before it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a guest could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A workload was not understood.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The host refused the guest or is not there.
    #[error(transparent)]
    PowerOn(#[from] PowerOnError),
    /// Its kernel could not boot.
    #[error("the guest's kernel cannot boot")]
    Kernel(#[from] KernelError),
    /// Its workloads could not start.
    #[error("the workloads cannot start")]
    Workload(#[from] StartError),
    /// A thread or descriptor could not be had.
    #[error(transparent)]
    System(#[from] SystemError),
    /// Its list of accesses could not be written.
    #[error("the list of accesses cannot be written")]
    Accesses(#[source] io::Error),
}

impl GuestError {
    /// Whether the guest failed because there is no host.
    #[must_use]
    pub const fn is_host_gone(&self) -> bool {
        matches!(
            self,
            Self::PowerOn(
                PowerOnError::Connect(_)
                    | PowerOnError::Silent(_)
                    | PowerOnError::Session(SessionEnd::Closed)
            )
        )
    }

    /// Whether a signal ended the guest before it ran.
    #[must_use]
    pub const fn is_interrupted(&self) -> bool {
        matches!(self, Self::PowerOn(PowerOnError::Interrupted))
    }
}

/// The result of a guest that ran.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// What its workloads did and found.
    pub report: Report,
    /// Wrong bytes, with the homes that their page has had.
    pub wrong: Vec<WrongBytes>,
    /// Whether a signal ended the guest before its time.
    pub interrupted: bool,
    /// The time from the start of its workloads until the guest was told to end.
    pub ran: Duration,
    /// What its process had used when the guest was told to end.
    pub used: ProcessUse,
}

/// A page that did not hold what the guest had written.
#[derive(Clone, PartialEq, Debug)]
pub struct WrongBytes {
    /// Where, what was expected and what was found.
    pub mismatch: Mismatch,
    /// The homes that the page has had lately, if the host knows.
    pub history: Option<String>,
}

impl fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mismatch)?;
        match &self.history {
            Some(history) => write!(f, "; {history}"),
            None => f.write_str("; the homes of the page are not known"),
        }
    }
}

/// Runs a guest until its time is over, one of `signals` arrives or it finds wrong bytes. Then its
/// workloads verify all that they own; `progress` is called with how far they are. Until then, `tell` is called as often
/// as the options say. `powered_on` is called with the token of its balloon, if it has a host.
///
/// `host_gone` is called on another thread if the session with the host ends. It should end the
/// process, because threads that wait for a page then wait for ever.
///
/// # Errors
/// [`GuestError`] when it could not be powered on.
pub fn run(
    options: &GuestOptions,
    signals: &Signals,
    host_gone: impl FnOnce(SessionEnd) + Send + 'static,
    powered_on: impl FnOnce(u64),
    mut tell: impl FnMut(&GuestProgress),
    progress: impl FnMut(Progress),
) -> Result<Outcome, GuestError> {
    let sequences: Vec<Sequence> = options
        .workloads
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let (memory, host) = if options.bare {
        let ram = map_bare(options.pages, options.sharing).map_err(cannot("map guest RAM"))?;
        (Arc::new(ram) as Arc<dyn Memory>, None)
    } else {
        let (ram, token) = power_on(options, signals, host_gone)?;
        powered_on(token);
        (Arc::new(ram) as Arc<dyn Memory>, Some((ram, token)))
    };
    let (memory, listing) = listed(memory, options)?;
    let kernel_options = KernelOptions {
        swap_pages: options.swap_pages,
        disk_directory: options.disk_directory.clone(),
    };
    let kernel = Kernel::new(memory, &kernel_options)?;
    let relief = match host {
        Some((_, token)) => start_agent(options, token, &kernel)?,
        None => None,
    };
    let started = Instant::now();
    let runner = Runner::start(&kernel, &sequences, options.seed)?;
    let interrupted = wait(options, signals, &runner, &mut tell)?;
    let (ran, used) = (started.elapsed(), ProcessUse::now());
    let report = runner.stop(progress);
    let wrong = report
        .mismatches
        .iter()
        .map(|mismatch| with_history(host.map(|(ram, _)| ram), mismatch))
        .collect();
    // The agent lives until here, because the last pass may need relief too.
    drop(relief);
    if let Some(listing) = listing {
        let lost = listing.end().map_err(GuestError::Accesses)?;
        if lost > 0 {
            tracing::warn!(
                lost,
                "accesses are missing in the list: they came too fast to be written"
            );
        }
    }
    Ok(Outcome {
        report,
        wrong,
        interrupted,
        ran,
        used,
    })
}

/// The memory, with its accesses listed if the options say so.
fn listed(
    memory: Arc<dyn Memory>,
    options: &GuestOptions,
) -> Result<(Arc<dyn Memory>, Option<Writing>), GuestError> {
    let Some(file) = &options.accesses else {
        return Ok((memory, None));
    };
    let recorded = accesses::record(memory, &options.name, file);
    let (recorded, listing) = recorded.map_err(GuestError::Accesses)?;
    Ok((Arc::new(recorded), Some(listing)))
}

/// Powers the guest on: the host backs the RAM from now on. Returns the RAM and the token for the balloon.
fn power_on(
    options: &GuestOptions,
    signals: &Signals,
    host_gone: impl FnOnce(SessionEnd) + Send + 'static,
) -> Result<(Ram, u64), GuestError> {
    let guest = shim::power_on(&options.memory_socket, hello(options), |host| {
        await_host(host, signals, SILENCE, PATIENCE)
    })?;
    let powered = (guest.ram, guest.welcome.token);
    serve(guest, host_gone)?;
    Ok(powered)
}

/// Waits until the host says something. Logs a warning after `silence`, and gives up after `patience` or when a signal
/// comes.
fn await_host(
    host: BorrowedFd<'_>,
    signals: &Signals,
    silence: Duration,
    patience: Duration,
) -> Result<(), PowerOnError> {
    let since = Instant::now();
    for (until, is_last) in [(silence, false), (patience, true)] {
        let event = signals.wait(Some(host), since + until);
        match event.map_err(cannot("wait for the host"))? {
            Event::Readable => return Ok(()),
            Event::Signal(_) => return Err(PowerOnError::Interrupted),
            Event::Timeout if is_last => break,
            Event::Timeout => {
                tracing::warn!("the host does not answer; waiting for it for up to {patience:?}");
            }
        }
    }
    Err(PowerOnError::Silent(patience))
}

fn hello(options: &GuestOptions) -> Hello {
    let mut workload = options.workloads.join(" ");
    workload.truncate(workload.floor_char_boundary(MAX_TEXT));
    Hello {
        name: options.name.clone(),
        pages: options.pages,
        // `shim::power_on` sets it.
        uffd: false,
        reservation: options.reservation,
        limit: options.limit,
        shares: options.shares,
        balloon_max: options.balloon_max.unwrap_or(u32::MAX),
        sharing: options.sharing,
        salt: options.salt.clone(),
        workload,
        inline: options.inline,
        resource_pool: options.resource_pool.clone().unwrap_or_default(),
    }
}

fn serve(
    guest: PoweredOn,
    host_gone: impl FnOnce(SessionEnd) + Send + 'static,
) -> Result<(), GuestError> {
    thread::Builder::new()
        .name("memory".to_owned())
        .spawn(move || host_gone(guest.serve()))
        .map_err(cannot("start the memory thread"))?;
    Ok(())
}

fn start_agent(
    options: &GuestOptions,
    token: u64,
    kernel: &Arc<Kernel>,
) -> Result<Option<Arc<Relief>>, GuestError> {
    let settings = AgentSettings {
        token,
        name: options.name.clone(),
        protocol: options.balloon_protocol,
        is_paced: options.balloon_paced,
    };
    let source: Arc<dyn PageSource> = Arc::new(KernelPages::new(Arc::clone(kernel)));
    let socket = options.balloon_socket.clone();
    let relief = match &options.agent {
        AgentChoice::None => return Ok(None),
        AgentChoice::Bundled => {
            Agent::start(settings, source, move || SeqPacket::connect(&socket)).map(Relief::Bundled)
        }
        AgentChoice::Program(command) => {
            OutsideAgent::start(command, &settings, &socket, source).map(Relief::Program)
        }
    };
    let relief = Arc::new(relief.map_err(cannot("start the balloon agent"))?);
    let hook: Arc<dyn PressureHook> = Arc::<Relief>::clone(&relief);
    kernel.set_pressure_hook(Arc::downgrade(&hook));
    Ok(Some(relief))
}

/// Waits for the end of the guest. Returns whether a signal caused it. Wrong bytes end a guest at once,
/// because the host remembers only the latest homes of a page.
fn wait(
    options: &GuestOptions,
    signals: &Signals,
    runner: &Runner,
    tell: &mut impl FnMut(&GuestProgress),
) -> Result<bool, GuestError> {
    let start = Instant::now();
    let end = options.duration.map(|duration| start + duration);
    let mut last = LastLook::default();
    let mut due = options.tell_every.map(|every| start + every);
    loop {
        let poll = Instant::now() + POLL;
        let until = [end, due].into_iter().flatten().fold(poll, Instant::min);
        match signals
            .wait(None, until)
            .map_err(cannot("wait for signals"))?
        {
            Event::Signal(_) => return Ok(true),
            Event::Readable | Event::Timeout => {}
        }
        if let Some((every, at)) = options.tell_every.zip(due)
            && Instant::now() >= at
        {
            tell(&GuestProgress::new(start.elapsed(), runner.look(&mut last)));
            // What is late is left out: two lines at once would say nothing new.
            due = Some((at + every).max(Instant::now()));
        }
        let wrong = runner.wait_mismatch(Duration::ZERO).is_some();
        if wrong || end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}

fn with_history(ram: Option<Ram>, mismatch: &Mismatch) -> WrongBytes {
    let history = (ram.zip(mismatch.gfn)).and_then(|(ram, gfn)| ram.history(Gfn(gfn)));
    WrongBytes {
        mismatch: mismatch.clone(),
        history,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn host_is_waited_for_until_it_answers_or_patience_or_a_signal_ends_that() {
        let signals = Signals::block([Signal::SIGUSR1]).expect("block");
        let (host, mut says) = std::io::pipe().expect("a pipe");
        let wait = |patience| await_host(host.as_fd(), &signals, SHORT, patience);
        let silent = wait(2 * SHORT);
        assert!(matches!(silent, Err(PowerOnError::Silent(_))), "{silent:?}");
        raise(Signal::SIGUSR1).expect("raise");
        let ended = wait(LONG);
        assert!(matches!(ended, Err(PowerOnError::Interrupted)), "{ended:?}");
        says.write_all(b"WELCOME").expect("room");
        wait(LONG).expect("it answers");
    }
}
