//! The processes of the demo: one host and its guests.

use std::time::{Duration, Instant};

use memvisor_guest_agent::command::Exit;
use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::signals::Signals;

use super::{DemoError, DemoOptions, guests};
use crate::launch::{
    self, Child, Ended, GuestStart, HostStart, Scratch, await_child, end_all, in_words,
};
use crate::settings::{Key, Profile, VmPatch};

/// How long guests, and then the host, may take to end when asked; then they are killed.
const GRACE: Duration = Duration::from_secs(3);

/// The processes; dropping them ends the guests and then the host.
#[derive(Debug)]
pub(super) struct Processes<'a> {
    signals: &'a Signals,
    guests: Vec<Child>,
    reports: Vec<GuestReport>,
    host: Child,
}

impl<'a> Processes<'a> {
    /// Starts the host. `signals` must contain SIGCHLD.
    pub(super) fn start_host(
        options: &DemoOptions,
        scratch: &Scratch,
        signals: &'a Signals,
    ) -> Result<Self, DemoError> {
        let host = start("host", options, scratch, &host_args(options, scratch))?;
        Ok(Self {
            signals,
            guests: Vec::new(),
            reports: Vec::new(),
            host,
        })
    }

    /// Starts the guests.
    pub(super) fn start_guests(
        &mut self,
        options: &DemoOptions,
        scratch: &Scratch,
    ) -> Result<(), DemoError> {
        for (seed, role) in (1u64..).zip(guests::roles(
            options.guests,
            options.guest_memory,
            scratch.path(),
        )) {
            let args = guest_args(options, scratch, &role, seed);
            self.guests
                .push(start(&role.name, options, scratch, &args)?);
        }
        Ok(())
    }

    /// The signals that the processes of the demo cause or wait for.
    pub(super) const fn signals(&self) -> &'a Signals {
        self.signals
    }

    /// Whether a guest still runs; the reports of guests that have ended are collected.
    ///
    /// # Errors
    /// If one has failed, or the host has ended.
    pub(super) fn any_guest_runs(&mut self) -> Result<bool, DemoError> {
        self.check_host()?;
        let mut at = 0;
        while let Some(guest) = self.guests.get_mut(at) {
            match guest.ended().map_err(DemoError::io("wait for a guest"))? {
                None => at += 1,
                Some(status) => {
                    let guest = self.guests.remove(at);
                    match report_of(&guest, status) {
                        Ok(report) => self.reports.push(report),
                        Err(error) if status.code() == Some(Exit::HostGone as i32) => {
                            return Err(self.explain_host(error));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(!self.guests.is_empty())
    }

    /// Fails if the host has ended.
    pub(super) fn check_host(&mut self) -> Result<(), DemoError> {
        let ended = self.host.ended();
        match ended.map_err(DemoError::io("wait for the host"))? {
            Some(status) => Err(failed(&self.host, status)),
            None => Ok(()),
        }
    }

    /// The reason for the end of the host, whose connections have closed; `error` if the host does not end.
    ///
    /// Waits a while, because the kernel closes the connections of a process before its parent can see that
    /// it has ended.
    pub(super) fn explain_host(&mut self, error: DemoError) -> DemoError {
        let limit = Instant::now() + GRACE;
        loop {
            if let Err(failed) = self.check_host() {
                return failed;
            }
            if !await_child(self.signals, limit) {
                return error;
            }
        }
    }

    /// Ends the host and returns what the guests reported, in the order of their ends.
    ///
    /// # Errors
    /// If the host does not end well.
    pub(super) fn finish(mut self) -> Result<Vec<GuestReport>, DemoError> {
        self.end_host();
        match self
            .host
            .ended()
            .map_err(DemoError::io("wait for the host"))?
        {
            Some(status) if status.success() => Ok(std::mem::take(&mut self.reports)),
            Some(status) => Err(failed(&self.host, status)),
            None => Err(overtime(&self.host, "end", GRACE)),
        }
    }

    fn end_host(&mut self) {
        let host = std::slice::from_mut(&mut self.host);
        end_in_time(host, self.signals);
    }

    /// The error for a host that does not come up.
    pub(super) fn overtime_of_host(&self, limit: Duration) -> DemoError {
        overtime(&self.host, "answer", limit)
    }

    /// The error for a guest that does not end.
    pub(super) fn overtime_of_guest(&self, limit: Duration) -> DemoError {
        let guest = self.guests.first().expect("only called while one runs");
        overtime(guest, "end", limit)
    }
}

impl Drop for Processes<'_> {
    fn drop(&mut self) {
        end_in_time(&mut self.guests, self.signals);
        self.end_host();
    }
}

/// Ends children, with some time to end by themselves; less if another signal to end comes.
fn end_in_time(children: &mut [Child], signals: &Signals) {
    let deadline = Instant::now() + GRACE;
    end_all(children, || await_child(signals, deadline));
}

fn start(
    name: &str,
    options: &DemoOptions,
    scratch: &Scratch,
    args: &[String],
) -> Result<Child, DemoError> {
    Child::start(name, &options.program, args, scratch.path())
        .map_err(DemoError::io("start a process"))
}

/// The arguments of the host. Scanning is as fast as possible, because a demo has seconds where a server has hours.
fn host_args(options: &DemoOptions, scratch: &Scratch) -> Vec<String> {
    let settings = [
        (Key::ShareScanTime, "3s"),
        (Key::ShareScanGHz, "32"),
        (Key::ShareRateMax, "32768"),
    ];
    let start = HostStart {
        memory: options.memory,
        engine: options.engine,
        profile: Profile::default(),
        policy: None,
        settings: &settings.map(|(key, value)| (key, value.to_owned())),
        http: None,
        runtime_dir: scratch.runtime_dir().path(),
        swap_dir: scratch.path(),
        swap_cache: None,
        scratch: Some(scratch.path()),
        configuration: None,
    };
    start.args()
}

fn guest_args(
    options: &DemoOptions,
    scratch: &Scratch,
    role: &guests::Role,
    seed: u64,
) -> Vec<String> {
    let start = GuestStart {
        name: &role.name,
        memory: options.guest_memory,
        workloads: std::slice::from_ref(&role.workload),
        seed,
        duration: Some(options.duration),
    };
    let mut args = start.args();
    let runtime_dir = scratch.runtime_dir().path();
    args.extend(launch::powered_on(&VmPatch::default(), runtime_dir));
    args
}

fn report_of(guest: &Child, status: std::process::ExitStatus) -> Result<GuestReport, DemoError> {
    let name = guest.name().to_owned();
    let ended = Ended::of(guest, status).map_err(DemoError::io("read a report"))?;
    match ended {
        Ended::Well(report) => Ok(report),
        Ended::Corrupt { pages, log } => Err(DemoError::Corrupt {
            name,
            message: format!("{pages} pages differ; {log}"),
        }),
        Ended::Silent => Err(DemoError::NoReport { name }),
        Ended::Told(_) | Ended::Badly { .. } => Err(failed(guest, status)),
    }
}

fn failed(child: &Child, status: std::process::ExitStatus) -> DemoError {
    DemoError::Failed {
        name: child.name().to_owned(),
        how: in_words(status),
        message: child.log_tail(),
    }
}

fn overtime(child: &Child, what: &'static str, limit: Duration) -> DemoError {
    DemoError::Overtime {
        name: child.name().to_owned(),
        what,
        limit,
        message: child.log_tail(),
    }
}
