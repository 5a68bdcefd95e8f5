//! Large pages: how fast a guest jumps about in its memory with them and without, and how long sharing waits until they
//! are broken.
//!
//! Both are measured in turns, with the same guest and the same content: first in small pages, then in large ones, which
//! the guest's own worker makes and breaks.

use std::time::{Duration, Instant};

use super::content::{Class, Content, Source};
use super::report::{Case, Report};
use super::stage::{Stage, StageGuest, wait_for};
use super::{Bench, BenchError, Setup};
use crate::page::Home;
use crate::reclaim::LargePages;
use crate::sys::large_pages;
use crate::units::FrameId;

/// Pages measured at most: 4 GiB.
const MOST: u64 = 1 << 20;
/// Words that are read or written for one measurement: some tenths of a second.
const WORDS: u32 = 1 << 21;
/// Pages scanned in a second: a GiB in ten seconds.
const SCAN_RATE: u32 = 1 << 15;
/// The peer.
const SMALL: &str = "small pages";

pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let large = match large_pages() {
        Ok(large) => large,
        Err(why) => {
            report.remark(format!("large: no large pages here: {why}"));
            return Ok(());
        }
    };
    // All of it is to be large.
    let pages = setup.pages(MOST).next_multiple_of(large);
    for source in setup.sources(&[Class::Random]) {
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Large, &format!("{source}, round {round}, jumps"))?;
            let stage = Stage::new(setup, pages)?;
            jumps(
                &stage,
                &Content::unique(source.clone(), round.into()),
                pages,
                report,
            )?;
            drop(stage);
            for with in [false, true] {
                let kind = if with { "large" } else { "small" };
                let step = format!("{source}, round {round}, sharing of {kind} pages");
                setup.step(Bench::Large, &step)?;
                let half = (pages / 2).next_multiple_of(large);
                let stage = Stage::new(setup, 2 * half)?;
                sharing(&stage, &source, (round, with), half, report)?;
            }
        }
    }
    Ok(())
}

/// Reads and writes of random words, in small pages and then in large ones.
fn jumps(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let mut guest = stage.inline_guest("jumps", pages)?;
    guest.fill(content)?;
    let on = &content.source;
    let case = |metric| Case::less(Bench::Large, on, metric, "ns");
    let cases = [
        (false, case("read a random word")),
        (true, case("write a random word")),
    ];
    for (write, case) in &cases {
        report.peer(case, SMALL, guest.driven.jump(WORDS, *write)?);
    }
    let took = grow(&guest)?;
    for (write, case) in &cases {
        report.ours(case, guest.driven.jump(WORDS, *write)?);
    }
    let gib = f64::from(pages) / f64::from(1 << 18);
    let case = Case::less(Bench::Large, on, "make large pages", "s/GiB");
    report.ours(&case, took.as_secs_f64() / gib);
    guest.driven.verify()
}

/// Waits until all memory of a guest is in large pages; how long that took.
fn grow(guest: &StageGuest) -> Result<Duration, BenchError> {
    let (vm, start) = (guest.vm(), Instant::now());
    guest
        .vm
        .worker()
        .change(|it| it.large = LargePages::Grow { all: true });
    // The kernel may hold a page of a region for long, and refuses that one meanwhile.
    let most = vm.large.regions() * 19 / 20;
    wait_for("nearly all memory to be in large pages", || {
        (vm.large.count() >= most).then_some(())
    })?;
    Ok(start.elapsed())
}

/// Two guests with equal content: how long it takes from the moment at which the host wants its memory back until the
/// first page is shared, and until nearly all are.
fn sharing(
    stage: &Stage<'_>,
    source: &Source,
    (round, with): (u32, bool),
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let content = Content::unique(source.clone(), round.into());
    let mut guests = [stage.guest("first", pages)?, stage.guest("second", pages)?];
    guests
        .iter_mut()
        .try_for_each(|guest| guest.fill(&content))?;
    let scan = |rate| {
        let workers = guests.iter().map(|guest| guest.vm.worker());
        workers.for_each(|worker| worker.change(|it| it.scan_rate = rate));
    };
    if with {
        guests.iter().try_for_each(|guest| grow(guest).map(drop))?;
        // The scanner leaves its hints meanwhile.
        scan(SCAN_RATE);
        wait_for("a pass over all pages", || {
            let passes = guests.iter().map(|guest| guest.vm().stats.passes.get());
            (passes.min() >= Some(2)).then_some(())
        })?;
    }
    let start = Instant::now();
    for guest in &guests {
        guest.vm.worker().change(|it| it.large = LargePages::Break);
    }
    scan(SCAN_RATE);
    let until = |share: u64| {
        wait_for("equal pages to be shared", || {
            // Pages of zeroes share nothing: they are dropped.
            let shared = |guest: &StageGuest| {
                let table = &guest.vm().table;
                table.count(Home::Shared(FrameId(0))) + table.count(Home::Zero)
            };
            let all: u64 = guests.iter().map(shared).sum();
            (all >= share).then(|| start.elapsed().as_secs_f64() * 1e3)
        })
    };
    // Nearly all: a page whose worker is told of a frame while it is busy waits for the next pass.
    let (first, most) = (until(1)?, until(u64::from(pages) * 2 * 9 / 10)?);
    let case = |metric| Case::less(Bench::Large, source, metric, "ms");
    for (metric, took) in [
        ("until the first page is shared", first),
        ("until 90 % are shared", most),
    ] {
        if with {
            report.ours(&case(metric), took);
        } else {
            report.peer(&case(metric), SMALL, took);
        }
    }
    guests
        .iter_mut()
        .try_for_each(|guest| guest.driven.verify())
}
