//! Guests on a memvisor host: the daemon runs as a process of its own, as it does for a user.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;

use super::super::clock::{anonymous_bytes_of, whole_cpu};
use super::super::{BenchError, Setup};
use super::processes::Processes;
use super::{Part, Ran};
use crate::control::{Client, ClientError};
use crate::launch::{self, Child, HostStart, end_all, in_words};
use crate::runtime_dir::RuntimeDir;
use crate::settings::VmPatch;
use crate::telemetry::HostStatus;

/// How long the host may take until it answers.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end once its guests have ended.
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// How often the host's state is read.
const STATUS: Duration = Duration::from_millis(500);

/// Runs the fleet on a host with the budget of `part`. `see` is called with the host's status now and then.
pub(super) fn run(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    mut see: impl FnMut(&HostStatus),
) -> Result<Ran, BenchError> {
    let (mut used, mut own, mut due) = (0, 0, Instant::now());
    let (reports, cpu) = serve(setup, part, dir, |client, pid| {
        if Instant::now() < due {
            return Ok(());
        }
        due = Instant::now() + STATUS;
        // An error is ignored here: if the host has ended, the next check of its process reports that.
        if let Ok(status) = client.status() {
            used = used.max(status.used_pages.bytes().0);
            see(&status);
        }
        own = own.max(anonymous_bytes_of(pid).unwrap_or(0));
        Ok(())
    })?;
    let guests: u64 = reports.iter().map(|report| report.own_bytes).sum();
    Ok(Ran {
        reports,
        memory: used + guests,
        cpu,
        own,
    })
}

/// Runs the fleet on a host with the budget of `part`; the reports of the guests, and the host's processor time.
/// `watch` is called often meanwhile, with the host's control API and pid.
pub(super) fn serve(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    mut watch: impl FnMut(&Client, u32) -> Result<(), BenchError>,
) -> Result<(Vec<GuestReport>, Duration), BenchError> {
    let runtime = RuntimeDir::new(dir.join("run"))
        .map_err(|error| BenchError::io("use a directory")(std::io::Error::other(error)))?;
    let mut host = Host::start(setup, part, dir, &runtime)?;
    let mut words = launch::powered_on(&VmPatch::default(), runtime.path());
    words.extend((!setup.options.guests.inline).then(|| "--no-inline".to_owned()));
    let processes = Processes::start(setup, part, dir, &words)?;
    let reports = processes.finish(setup, part, || {
        host.check()?;
        watch(&host.client, host.child.pid())
    });
    // If the host has failed too, its error explains why the guest did.
    let reports = reports.or_else(|error| host.check().and(Err(error)))?;
    let cpu = whole_cpu(host.child.pid()).map_err(BenchError::io("read processor time"))?;
    host.end()?;
    Ok((reports, cpu))
}

struct Host {
    child: Child,
    client: Client,
}

impl Host {
    fn start(
        setup: &Setup<'_>,
        part: &Part<'_>,
        dir: &Path,
        runtime: &RuntimeDir,
    ) -> Result<Self, BenchError> {
        let options = &setup.options.guests;
        let start = HostStart {
            memory: part.budget,
            engine: setup.options.engine,
            profile: options.profile,
            policy: Some(options.policy),
            settings: part.settings,
            http: None,
            runtime_dir: runtime.path(),
            swap_dir: dir,
            swap_cache: None,
            scratch: None,
            configuration: None,
        };
        let child = Child::start("host", &setup.program, start.args(), dir);
        let mut host = Self {
            child: child.map_err(BenchError::io("start a host"))?,
            client: Client::new(runtime.control_socket())?,
        };
        let limit = Instant::now() + START;
        loop {
            match host.client.status() {
                Err(ClientError::NotRunning { .. }) if Instant::now() < limit => {}
                Err(ClientError::NotRunning { .. }) => {
                    return Err(BenchError::Overtime {
                        what: "the host to answer".to_owned(),
                        limit: START,
                    });
                }
                answer => {
                    answer?;
                    return Ok(host);
                }
            }
            host.check()?;
            thread::sleep(POLL);
        }
    }

    /// Fails if the host has ended.
    fn check(&mut self) -> Result<(), BenchError> {
        match self
            .child
            .ended()
            .map_err(BenchError::io("wait for the host"))?
        {
            None => Ok(()),
            Some(status) => Err(BenchError::Failed {
                name: "host".to_owned(),
                how: in_words(status),
                message: self.child.log_tail(),
            }),
        }
    }

    /// Ends the host in order.
    fn end(mut self) -> Result<(), BenchError> {
        let limit = Instant::now() + END;
        end_all(std::slice::from_mut(&mut self.child), || {
            thread::sleep(POLL);
            Instant::now() < limit
        });
        match self.child.ended() {
            Ok(Some(status)) if status.success() => Ok(()),
            _ => self.check(),
        }
    }
}
