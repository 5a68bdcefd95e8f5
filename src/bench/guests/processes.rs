//! The guest processes of a fleet, on either side of the comparison.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;

use super::super::{BenchError, Setup};
use super::Part;
use crate::child::{Child, in_words};

/// The exit code of a guest that found wrong bytes.
const CORRUPT: i32 = 3;
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
            let mut args: Vec<String> = ["guest", "--die-with-parent", "--json"]
                .map(str::to_owned)
                .into();
            let time = format!("{}ms", part.time.as_millis());
            let own = [
                ("--name", guest.name.clone()),
                ("--memory", guest.memory.0.to_string()),
                ("--seed", guest.seed.to_string()),
                ("--duration", time),
            ];
            args.extend(
                own.into_iter()
                    .flat_map(|(key, value)| [key.to_owned(), value]),
            );
            for workload in &guest.workloads {
                args.extend(["--workload".to_owned(), workload.clone()]);
            }
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
            if !self.any_runs()? {
                return self.0.iter_mut().map(report_of).collect();
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

    /// Whether one still runs. A guest that ended badly is an error at once, while others still run.
    fn any_runs(&mut self) -> Result<bool, BenchError> {
        let mut any = false;
        for child in &mut self.0 {
            match child.ended().map_err(BenchError::io("wait for a guest"))? {
                None => any = true,
                Some(_) => drop(report_of(child)?),
            }
        }
        Ok(any)
    }
}

/// The report of a guest that has ended.
fn report_of(child: &mut Child) -> Result<GuestReport, BenchError> {
    let status = child.ended().map_err(BenchError::io("wait for a guest"))?;
    let output = child.output().map_err(BenchError::io("read a report"))?;
    let report = GuestReport::last_in(&output);
    let mismatches = report.as_ref().map_or(0, |report| report.mismatches);
    let is_corrupt = status.is_some_and(|status| status.code() == Some(CORRUPT));
    if is_corrupt || mismatches > 0 {
        return Err(BenchError::Corrupt {
            name: child.name().to_owned(),
            pages: mismatches,
        });
    }
    match (status, report) {
        (Some(status), Some(report)) if status.success() => Ok(report),
        (status, _) => Err(BenchError::Failed {
            name: child.name().to_owned(),
            how: status.map_or_else(|| "no report".to_owned(), in_words),
            message: child.log_tail(),
        }),
    }
}
