//! The guest processes of a fleet, on either side of the comparison.

use std::path::Path;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;

use super::super::{BenchError, Setup};
use super::Part;
use crate::launch::{Child, Ended, GuestStart};

/// How often it is checked whether guests still run.
const POLL: Duration = Duration::from_millis(100);
/// How often progress is reported.
const TELL: Duration = Duration::from_secs(2);
/// How long guests may take beyond their time: to start, to finish what they have begun, and to verify all their
/// memory, page by page from a disk.
const PATIENCE: Duration = Duration::from_secs(600);

/// Guests that run. Those that still run when this is dropped are killed.
#[derive(Debug)]
pub(super) struct Processes(Vec<Child>);

impl Processes {
    /// Starts all guests of a fleet, with `words` as options beside their own.
    pub(super) fn start(
        setup: &Setup<'_>,
        part: &Part<'_>,
        dir: &Path,
        words: &[String],
    ) -> Result<Self, BenchError> {
        let mut processes = Self(Vec::new());
        for guest in &part.fleet.guests {
            let start = GuestStart {
                name: &guest.name,
                memory: guest.memory,
                workloads: &guest.workloads,
                seed: guest.seed,
                duration: Some(part.time),
            };
            let mut args = start.args();
            args.extend(words.iter().cloned());
            let child = Child::start(&guest.name, &setup.program, args, dir);
            processes
                .0
                .push(child.map_err(BenchError::io("start a guest"))?);
        }
        Ok(processes)
    }

    /// Waits until all have ended; their reports, in the order of the fleet. `watch` is called often meanwhile.
    pub(super) fn finish(
        mut self,
        setup: &Setup<'_>,
        part: &Part<'_>,
        mut watch: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<Vec<GuestReport>, BenchError> {
        let start = Instant::now();
        let mut told = None;
        loop {
            let elapsed = start.elapsed();
            if told.is_none_or(|told| elapsed >= told + TELL) {
                told = Some(elapsed);
                part.tell(setup, elapsed)?;
            }
            watch()?;
            if let Some(reports) = self.reports()? {
                return Ok(reports);
            }
            if elapsed > part.time + PATIENCE {
                return Err(BenchError::Overtime {
                    what: "guests to end".to_owned(),
                    limit: part.time + PATIENCE,
                });
            }
            thread::sleep(POLL);
        }
    }

    /// The reports once all have ended. A guest that ended badly is an error at once, while others still run.
    fn reports(&mut self) -> Result<Option<Vec<GuestReport>>, BenchError> {
        let mut reports = Vec::new();
        for child in &mut self.0 {
            let ended = child.ended().map_err(BenchError::io("wait for a guest"))?;
            reports.extend(ended.map(|status| report_of(child, status)).transpose()?);
        }
        Ok(Some(reports).filter(|reports| reports.len() == self.0.len()))
    }
}

/// The report of a guest that has ended with `status`.
fn report_of(guest: &Child, status: ExitStatus) -> Result<GuestReport, BenchError> {
    let name = guest.name().to_owned();
    let failed = |how, message| BenchError::Failed {
        name: guest.name().to_owned(),
        how,
        message,
    };
    match Ended::of(guest, status).map_err(BenchError::io("read a report"))? {
        Ended::Well(report) => Ok(report),
        Ended::Corrupt { pages, .. } => Err(BenchError::Corrupt { name, pages }),
        Ended::Told(_) => Err(failed("a signal".to_owned(), guest.log_tail())),
        Ended::Badly { how, log } => Err(failed(how, log)),
        Ended::Silent => Err(failed("no report".to_owned(), guest.log_tail())),
    }
}
