//! Several VMs at once: whether their workers, which share the pool, the cache and what is remembered, are
//! in each other's way.
//!
//! Each VM has a worker of its own, so a host is to do as many times the work as it has processors. What
//! it has of that is seen beside the same work on as many other VMs one by one, by one thread: the ratio is how
//! many workers' work is done. It can exceed the number of processors where one worker alone waits. The guests' part, freezing pages for
//! their workers, needs those processors as well.

use std::thread;
use std::time::Instant;

use super::clock::{allowed_cpus, rate};
use super::content::{Content, Source};
use super::report::{Case, Report};
use super::stage::{Actor, Stage};
use super::{Bench, BenchError};
use crate::engine::EngineError;

/// VMs at most: more processors are left to the guests.
const MOST: usize = 8;
/// What the other way is called where peers are.
pub(super) const ONE_BY_ONE: &str = "one by one";

/// Has a VM's worker do something; how many pages that were.
pub(super) type Work = fn(&Actor) -> Result<u64, EngineError>;

/// Measures `work`, called `what`, on VMs of `pages` pages together. Does nothing where there is
/// one processor.
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
            guest.puppet.verify()?;
        }
        stage.wait_until_empty()?;
    }
    Ok(())
}

/// Guests of which no two have an equal page.
fn filled(
    stage: &Stage<'_>,
    vms: usize,
    (source, round): (&Source, u32),
    pages: u32,
) -> Result<Vec<Actor>, BenchError> {
    let each = (pages as usize / vms).max(1);
    let each = u32::try_from(each).unwrap_or(u32::MAX);
    let guest = |number| {
        let mut guest = stage.guest(&format!("abreast-{number}"), each)?;
        let seed = u64::from(round) * 100 + number;
        guest.fill(&Content::unique(source.clone(), seed))?;
        Ok(guest)
    };
    (1..=vms as u64).map(guest).collect()
}

/// Works with a thread for each guest; the sum of what they did.
pub(super) fn at_once(
    guests: &[Actor],
    work: impl Fn(&Actor) -> Result<u64, EngineError> + Sync,
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
