//! The guests of a run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memvisor_guest_agent::command::Exit;
use memvisor_guest_agent::guest::{GuestProgress, GuestReport};
use memvisor_wire::signals::Signals;
use nix::sys::signal::Signal;

use super::super::Guest;
use super::super::said::{OPERATIONS, said};
use super::{GRACE, Run, Stopped};
use crate::launch::{self, Child, Ended, GuestStart, Scratch, await_child, end_all};
use crate::recording::Said;

/// All guests that run.
#[derive(Debug)]
pub(super) struct Guests<'a> {
    program: &'a Path,
    all: &'a [Guest],
    seed: u64,
    interval: Duration,
    /// Where their output and logs go.
    dir: PathBuf,
    runtime_dir: PathBuf,
    files: String,
    running: Vec<Running>,
    /// How often each was started.
    starts: BTreeMap<String, u32>,
}

/// One that runs.
#[derive(Debug)]
struct Running {
    name: String,
    child: Child,
    /// How far its output was read.
    read: u64,
    latest: Option<GuestProgress>,
    asked: Asked,
}

/// What a guest was asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Run,
    End,
    Die,
}

impl<'a> Guests<'a> {
    pub(super) fn new(run: &Run<'a>, scratch: &Scratch, files: &Path) -> Result<Self, Stopped> {
        let dir = run.dir.join("guests");
        fs::create_dir(&dir).map_err(Stopped::system("make a directory for logs"))?;
        Ok(Self {
            program: run.program,
            all: &run.setup.guests,
            seed: run.seed,
            interval: run.setup.interval,
            dir,
            runtime_dir: scratch.runtime_dir().path().to_owned(),
            files: files.to_string_lossy().into_owned(),
            running: Vec::new(),
            starts: BTreeMap::new(),
        })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.running.len()
    }

    /// Starts a guest of the scenario.
    pub(super) fn start(&mut self, name: &str) -> Result<(), Stopped> {
        let Some(guest) = self.all.iter().find(|guest| guest.name == name) else {
            return Ok(());
        };
        let start = GuestStart {
            name,
            memory: guest.memory,
            workloads: &guest.workloads_in(&self.files),
            seed: self.seed.wrapping_add(guest.seed),
            duration: None,
        };
        let mut args = start.args();
        args.extend(launch::powered_on(&guest.patch, &self.runtime_dir));
        let interval = format!("{}us", self.interval.as_micros());
        args.extend(["--progress".to_owned(), interval]);
        args.extend((!guest.agent).then(|| "--no-agent".to_owned()));
        args.extend((!guest.inline).then(|| "--no-inline".to_owned()));
        let starts = self.starts.entry(name.to_owned()).or_default();
        *starts += 1;
        // What it said before it ended and was started again is kept.
        let log = match *starts {
            1 => name.to_owned(),
            again => format!("{name}.{again}"),
        };
        let child = Child::start(&log, self.program, args, &self.dir);
        self.running.push(Running {
            name: name.to_owned(),
            child: child.map_err(Stopped::system("start a guest"))?,
            read: 0,
            latest: None,
            asked: Asked::Run,
        });
        Ok(())
    }

    /// Asks a guest to end, if it runs.
    pub(super) fn stop(&mut self, name: &str) {
        self.ask(name, Asked::End, Signal::SIGTERM);
    }

    /// Asks all to end.
    pub(super) fn stop_all(&mut self) {
        for guest in &mut self.running {
            guest.ask(Asked::End, Signal::SIGTERM);
        }
    }

    /// Kills a guest, if it runs.
    pub(super) fn kill(&mut self, name: &str) {
        self.ask(name, Asked::Die, Signal::SIGKILL);
    }

    fn ask(&mut self, name: &str, asked: Asked, signal: Signal) {
        for guest in self.running.iter_mut().filter(|guest| guest.name == name) {
            guest.ask(asked, signal);
        }
    }

    /// What guests have said lately of their work, by name.
    pub(super) fn said(&mut self) -> io::Result<BTreeMap<String, Said>> {
        let mut all = BTreeMap::new();
        for guest in &mut self.running {
            let text = guest.child.output_after(&mut guest.read)?;
            let news = text.lines().filter_map(GuestProgress::read).next_back();
            let is_new = news.is_some();
            guest.latest = news.or(guest.latest.take());
            if let Some(latest) = &guest.latest {
                let mut said = said(latest);
                // Its operations are still as many, but how long they took belongs to an earlier sample.
                said.retain(|name, _| is_new || name == OPERATIONS);
                all.insert(guest.name.clone(), said);
            }
        }
        Ok(all)
    }

    /// The reports of guests that have ended as they should.
    ///
    /// # Errors
    /// One has ended otherwise.
    pub(super) fn reap(&mut self) -> Result<Vec<GuestReport>, Stopped> {
        let mut reports = Vec::new();
        let mut at = 0;
        while let Some(guest) = self.running.get_mut(at) {
            let ended = guest.child.ended();
            match ended.map_err(Stopped::system("wait for a guest"))? {
                None => at += 1,
                Some(status) => {
                    let guest = self.running.remove(at);
                    if guest.asked != Asked::Die {
                        let ended = Ended::of(&guest.child, status);
                        let ended = ended.map_err(Stopped::system("read a report"))?;
                        reports.push(guest.report(ended)?);
                    }
                }
            }
        }
        Ok(reports)
    }

    /// Ends all, with little time to do so.
    pub(super) fn end(&mut self, signals: &Signals) {
        let limit = Instant::now() + GRACE;
        let mut children: Vec<Child> = self.running.drain(..).map(|guest| guest.child).collect();
        end_all(&mut children, || await_child(signals, limit));
    }

    /// The error for guests that do not end.
    pub(super) fn overtime(&self, limit: Duration) -> Stopped {
        let guest = self.running.first();
        Stopped::Overtime {
            name: guest.map_or_else(String::new, |guest| format!("guest `{}`", guest.name)),
            what: "verify its memory",
            limit,
            log: guest.map_or_else(String::new, |guest| guest.child.log_tail()),
        }
    }
}

impl Running {
    fn ask(&mut self, asked: Asked, signal: Signal) {
        self.asked = asked;
        self.child.signal(signal);
    }

    /// The report of a guest that ended in this way.
    fn report(&self, ended: Ended) -> Result<GuestReport, Stopped> {
        let name = self.name.clone();
        let died = |how, log| Stopped::Died {
            name: format!("guest `{}`", self.name),
            how,
            log,
        };
        let log = || self.child.log_tail();
        match ended {
            Ended::Told(report) | Ended::Well(report) if self.asked == Asked::End => {
                let unverified = unverified(&report);
                let how = format!("could not read {unverified} pages to verify them");
                let whole = unverified == 0;
                whole
                    .then_some(report)
                    .ok_or(Stopped::Unverified { name, how })
            }
            Ended::Told(_) => Err(died("a signal that nobody here sent".to_owned(), log())),
            Ended::Well(_) => Err(died("code 0 before its time".to_owned(), log())),
            Ended::Corrupt { pages, log } => Err(Stopped::Corrupt { name, pages, log }),
            // Before its memory was there, a signal ends it without a report.
            Ended::Badly { how, log } if self.asked == Asked::End && self.ended_early(&how) => {
                let how = format!("ended before it ran ({log})");
                Err(Stopped::Unverified { name, how })
            }
            Ended::Badly { how, log } => Err(died(how, log)),
            Ended::Silent => {
                let how = "ended without a report".to_owned();
                Err(Stopped::Unverified { name, how })
            }
        }
    }

    fn ended_early(&self, how: &str) -> bool {
        self.latest.is_none() && how == format!("code {}", Exit::Interrupted as i32)
    }
}

/// Pages that a guest could not verify.
fn unverified(report: &GuestReport) -> u64 {
    let of_one = report.workloads.iter().map(|workload| {
        let unverified = workload.other.get("pages_unverified");
        unverified.and_then(serde_json::Value::as_u64).unwrap_or(0)
    });
    of_one.sum()
}
