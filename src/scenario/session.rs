//! One repetition of one variant: a host, its guests, what changes, and the samples.
//!
//! Guests end when they are told to and not by a clock of their own, so that a guest that ends by itself is a failure
//! whenever that happens. What was recorded is kept however the run ends: an error is a part of the result.

mod guests;
mod host;

use std::fs;
use std::io;
use std::iter;
use std::path::Path;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::signals::{Event, Signals};
use nix::sys::signal::Signal;
use thiserror::Error;

use self::guests::Guests;
use self::host::Host;
use super::read::Time;
use super::store::{Store, StoreError};
use super::{Action, Setup};
use crate::chain::chain;
use crate::control::ClientError;
use crate::launch::content::write_file;
use crate::launch::{Scratch, ScratchError, await_child};
use crate::recording::Recording;
use crate::telemetry::{FreeState, HostStatus};

/// How long guests may take to verify all their memory, page by page from a disk.
const VERIFY: Duration = Duration::from_secs(600);
/// How long processes may take to end when a run is interrupted or has failed.
const GRACE: Duration = Duration::from_secs(3);

/// How often a guest is looked for that is to be changed as soon as it is powered on.
const POWER_ON: Duration = Duration::from_millis(20);

/// Something to do, and when.
type Due = (Duration, Action);

/// Why a run ended early.
#[derive(Debug, Error)]
pub(super) enum Stopped {
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// A guest found other bytes than it had written.
    #[error("guest `{name}` found {pages} pages with other bytes than it had written: {log}")]
    Corrupt {
        name: String,
        pages: u64,
        log: String,
    },
    /// A process ended that should not have.
    #[error("{name} ended with {how}: {log}")]
    Died {
        name: String,
        how: String,
        log: String,
    },
    /// A process does not come up or does not end.
    #[error("{name} took longer than {limit:?} to {what}: {log}")]
    Overtime {
        name: String,
        what: &'static str,
        limit: Duration,
        log: String,
    },
    /// A guest did not say what it had verified, or could not verify all.
    #[error("guest `{name}` {how}")]
    Unverified { name: String, how: String },
    /// The host refuses a change.
    #[error("at {at}, `{action}` was refused")]
    Refused {
        at: Time,
        action: String,
        #[source]
        source: ClientError,
    },
    #[error("the host does not answer")]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error("cannot {action}")]
    System {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Stopped {
    pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Progress {
    /// Time since the guests started.
    pub elapsed: Duration,
    /// How long the run is.
    pub duration: Duration,
    /// The state of the host; `None` while guests verify their memory at the end.
    pub state: Option<FreeState>,
    /// Running VMs.
    pub vms: usize,
}

/// What to run.
pub(super) struct Run<'a> {
    pub(super) program: &'a Path,
    pub(super) setup: &'a Setup,
    /// The seed of this repetition.
    pub(super) seed: u64,
    /// Where results and logs go.
    pub(super) dir: &'a Path,
    /// Blocked, SIGCHLD among them.
    pub(super) signals: &'a Signals,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Ran {
    pub(super) recording: Recording,
    /// What guests said when they ended, in this order.
    pub(super) reports: Vec<GuestReport>,
    /// The engine of the host.
    pub(super) engine: String,
    /// Why it ended early, if it did.
    pub(super) stopped: Option<Stopped>,
}

impl Run<'_> {
    /// Runs it. `tell` is called with each sample, and while guests verify their memory.
    pub(super) fn run(&self, mut tell: impl FnMut(&Progress)) -> Ran {
        let mut ran = Ran::default();
        let done = self.into(&mut ran, &mut tell);
        ran.stopped = done.err();
        ran
    }

    fn into(&self, ran: &mut Ran, tell: &mut dyn FnMut(&Progress)) -> Result<(), Stopped> {
        let scratch = Scratch::new()?;
        let files = scratch.path().join("files");
        self.write_files(&files)?;
        let mut store = Store::create(self.dir)?;
        let mut host = Host::start(self, &scratch)?;
        ran.engine = host.client.status()?.engine.to_string();
        let mut guests = Guests::new(self, &scratch, &files)?;
        let mut live = Live {
            run: self,
            began: Instant::now(),
            host: &mut host,
            guests: &mut guests,
            store: &mut store,
            ran,
        };
        let followed = live.follow(tell).and_then(|()| live.wind_down(tell));
        let followed = followed.map_err(|stopped| live.explained(stopped));
        if followed.is_err() {
            guests.end(self.signals);
        }
        let ended = host.end(self.signals);
        // Written although the run failed, and after its own error: that one came first.
        let stored = store.finish(&ran.recording);
        followed.and(ended)?;
        Ok(stored?)
    }

    fn write_files(&self, dir: &Path) -> Result<(), Stopped> {
        if dir.to_string_lossy().contains(',') {
            let source = io::Error::other("TMPDIR must not contain a comma");
            return Err(Stopped::system("name files for the guests")(source));
        }
        fs::create_dir(dir).map_err(Stopped::system("make a directory for files"))?;
        for (number, (name, size)) in (0..).zip(&self.setup.files) {
            write_file::<Unwritten>(&dir.join(name), *size, number, || {
                self.go_on().map_err(Unwritten)
            })
            .map_err(|Unwritten(why)| why)?;
        }
        Ok(())
    }

    /// An error if a signal has come.
    fn go_on(&self) -> Result<(), Stopped> {
        self.wait(Instant::now())
    }

    /// Waits until a time, or until a child may have ended. An error if a signal has come.
    fn wait(&self, until: Instant) -> Result<(), Stopped> {
        let event = self.signals.wait(None, until);
        match event.map_err(Stopped::system("wait"))? {
            Event::Signal(signal) if signal != Signal::SIGCHLD => Err(Stopped::Interrupted),
            _ => Ok(()),
        }
    }
}

/// Why writing a file ended early.
struct Unwritten(Stopped);

impl From<io::Error> for Unwritten {
    fn from(source: io::Error) -> Self {
        Self(Stopped::system("write files for the guests")(source))
    }
}

/// A run that is under way.
struct Live<'a, 'r> {
    run: &'a Run<'r>,
    began: Instant,
    host: &'a mut Host,
    guests: &'a mut Guests<'r>,
    store: &'a mut Store,
    ran: &'a mut Ran,
}

impl Live<'_, '_> {
    /// Does what is to be done at its time, and samples, until the end of the run.
    fn follow(&mut self, tell: &mut dyn FnMut(&Progress)) -> Result<(), Stopped> {
        let setup = self.run.setup;
        let mut timeline = setup.timeline().into_iter().peekable();
        let (mut sample, mut due) = (Duration::ZERO, Vec::new());
        loop {
            let now = self.began.elapsed();
            let is_over = now >= setup.duration;
            due.extend(iter::from_fn(|| timeline.next_if(|(at, _)| *at <= now)));
            due = self.act_on(due, is_over)?;
            self.host.check()?;
            self.ran.reports.extend(self.guests.reap()?);
            if now >= sample || is_over {
                let status = self.host.client.status()?;
                self.sample(&status)?;
                tell(&Progress {
                    elapsed: now,
                    duration: setup.duration,
                    state: Some(status.free_state),
                    vms: status.vms.len(),
                });
                // Samples that would be late are left out.
                while sample <= now {
                    sample += setup.interval;
                }
            }
            if is_over {
                return Ok(());
            }
            let next = timeline.peek().map_or(setup.duration, |(at, _)| *at);
            let next = if due.is_empty() { next } else { now + POWER_ON };
            self.run
                .wait(self.began + next.min(sample).min(setup.duration))?;
        }
    }

    fn sample(&mut self, status: &HostStatus) -> Result<(), Stopped> {
        let said = self
            .guests
            .said()
            .map_err(Stopped::system("read what guests say"))?;
        let at = self.at_ms();
        self.ran.recording.push(at, status, &said);
        Ok(self.store.add(&self.ran.recording, status)?)
    }

    fn at_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Does what is due. What is about a VM waits until its guest is powered on and its agent connected, and so does what is
    /// behind it about the same guest: all that is returned.
    fn act_on(&mut self, due: Vec<Due>, is_over: bool) -> Result<Vec<Due>, Stopped> {
        let mut early: Vec<Due> = Vec::new();
        for (at, action) in due {
            let guest = action.guest();
            let is_behind =
                guest.is_some() && early.iter().any(|(_, other)| other.guest() == guest);
            if is_behind && !is_over {
                early.push((at, action));
                continue;
            }
            match self.act(at, &action) {
                // It comes, or has died and is reaped. The host's refusal counts if neither is so until the end.
                Err(Stopped::Refused { source, .. })
                    if guest.is_some() && source.is_early() && !is_over =>
                {
                    early.push((at, action));
                }
                done => done?,
            }
        }
        Ok(early)
    }

    /// Does one thing.
    fn act(&mut self, at: Duration, action: &Action) -> Result<(), Stopped> {
        let client = &self.host.client;
        let done = match action {
            Action::Set(key, value) => client.set_setting(*key, value).map(drop),
            Action::SetVm(name, _, patch) => client.set_vm(name, patch).map(drop),
            Action::SetPool(name, _, patch) => client.set_pool(name, patch).map(drop),
            Action::Balloon(name, target) => client.set_balloon(name, *target).map(drop),
            Action::Start(name) => {
                self.guests.start(name)?;
                Ok(())
            }
            Action::Stop(name) => {
                self.guests.stop(name);
                Ok(())
            }
            Action::Kill(name) => {
                self.guests.kill(name);
                Ok(())
            }
        };
        done.map_err(|source| Stopped::Refused {
            at: Time(at),
            action: action.to_string(),
            source,
        })?;
        // Guests that are there from the start are no change.
        if at > Duration::ZERO || !matches!(action, Action::Start(_)) {
            let at = self.at_ms();
            self.ran.recording.mark(at, action.to_string());
        }
        Ok(())
    }

    /// Has all guests verify their memory and end.
    fn wind_down(&mut self, tell: &mut dyn FnMut(&Progress)) -> Result<(), Stopped> {
        self.guests.stop_all();
        let limit = Instant::now() + VERIFY;
        let mut told = Instant::now();
        loop {
            self.host.check()?;
            self.ran.reports.extend(self.guests.reap()?);
            if self.guests.is_empty() {
                return Ok(());
            }
            if Instant::now() > limit {
                return Err(self.guests.overtime(VERIFY));
            }
            if Instant::now() >= told {
                told = Instant::now() + Duration::from_secs(1);
                tell(&Progress {
                    elapsed: self.began.elapsed(),
                    duration: self.run.setup.duration,
                    state: None,
                    vms: self.guests.len(),
                });
            }
            self.run.wait(Instant::now() + Duration::from_millis(100))?;
        }
    }

    /// The reason for an error: if the host has ended, guests and connections end because of that.
    fn explained(&mut self, stopped: Stopped) -> Stopped {
        let may_follow = match &stopped {
            Stopped::Died { .. } => true,
            Stopped::Client(error) | Stopped::Refused { source: error, .. } => error.is_gone(),
            _ => false,
        };
        if !may_follow {
            return stopped;
        }
        // The kernel closes the connections of a process before its parent can see that it has ended.
        let limit = Instant::now() + GRACE;
        loop {
            if let Err(died) = self.host.check() {
                return died;
            }
            if self.host.client.status().is_ok() || !await_child(self.run.signals, limit) {
                return stopped;
            }
        }
    }
}

impl Ran {
    /// Why it ended early, with all causes.
    pub(super) fn why(&self) -> Option<String> {
        self.stopped.as_ref().map(|stopped| chain(stopped))
    }
}
