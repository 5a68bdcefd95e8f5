//! Several VMs at once: whether their workers, which share the pool, the cache and the table of hints, are in
//! each other's way.
//!
//! Each VM has a worker of its own, so with N processors a host should do N times the work of one worker. To see
//! how close it comes, the same work is also done by one thread on the same number of other VMs, one by one. The
//! ratio of the two rates says how many workers' work was done. It can exceed the number of processors where a
//! worker alone would wait. The guests need the same processors for their part, freezing pages for their workers.

use std::thread;
use std::time::Instant;

use super::clock::{allowed_cpus, rate};
use super::content::{Content, Source};
use super::report::{Case, Report};
use super::stage::{Stage, StageGuest};
use super::{Bench, BenchError};
use crate::engine::EngineError;

/// The most VMs. Further processors are left to the guests.
const MOST: usize = 8;
/// The name of the other way, in the place of a peer.
pub(super) const ONE_BY_ONE: &str = "one by one";

/// Has a VM's worker do something; how many pages that were.
pub(super) type Work = fn(&StageGuest) -> Result<u64, EngineError>;

/// Measures `work`, called `what`, on VMs of `pages` pages together. Does nothing if there is only one
/// processor.
pub(super) fn run(
    stage: &Stage<'_>,
    (bench, what): (Bench, &str),
    (source, round): (&Source, u32),
    pages: u32,
    work: Work,
    report: &Report,
) -> Result<(), BenchError> {
    let cpus = allowed_cpus().map_err(BenchError::io("read which processors there are"))?;
    let vms = cpus.len().min(MOST);
    if vms < 2 {
        return Ok(());
    }
    let case = Case::more(
        bench,
        &format!("{what}, {vms} VMs at once, {source}"),
        "rate",
        "pages/s",
    );
    for peer in [None, Some(ONE_BY_ONE)] {
        let guests = filled(stage, vms, (source, round), pages)?;
        let start = Instant::now();
        let done = match peer {
            None => at_once(&guests, work),
            Some(_) => guests.iter().map(work).sum(),
        };
        report.note(&case, peer, rate(done?, start.elapsed()));
        for mut guest in guests {
            guest.driven.verify()?;
        }
        stage.wait_until_empty()?;
    }
    Ok(())
}

/// Guests without equal pages.
fn filled(
    stage: &Stage<'_>,
    vms: usize,
    (source, round): (&Source, u32),
    pages: u32,
) -> Result<Vec<StageGuest>, BenchError> {
    let each = (pages as usize / vms).max(1);
    let each = u32::try_from(each).unwrap_or(u32::MAX);
    let guest = |number| {
        let mut guest = stage.guest(&format!("many-{number}"), each)?;
        let seed = u64::from(round) * 100 + number;
        guest.fill(&Content::unique(source.clone(), seed))?;
        Ok(guest)
    };
    (1..=vms as u64).map(guest).collect()
}

/// Works with a thread for each guest; the sum of what they did.
pub(super) fn at_once(
    guests: &[StageGuest],
    work: impl Fn(&StageGuest) -> Result<u64, EngineError> + Sync,
) -> Result<u64, EngineError> {
    thread::scope(|scope| {
        let work = &work;
        let start = |guest| scope.spawn(move || work(guest));
        let workers: Vec<_> = guests.iter().map(start).collect();
        let done = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.sum()
    })
}
