//! Merging: four guests that are equal in part are scanned until all that is equal is merged.
//!
//! First, one thread does the work of all the guests' workers without their pauses, as ksmd does for KSM. The
//! work of the guests' own threads, which map frames over their RAM, is counted too. Then the same with a
//! thread for each guest, as on a real host, where workers find each other's pages while they scan.

use std::collections::HashMap;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::clock::{process_cpu, thread_cpu};
use super::content::{Class, Content, Maker, Source};
use super::peer::Peers as Others;
use super::peer::ksm::Ksm;
use super::report::{Case, Report};
use super::scan::{advise_merge, advise_small, private, write};
use super::stage::{Stage, StageGuest};
use super::{Bench, BenchError, Setup, many_vms};
use crate::engine::EngineError;
use crate::page::Home;
use crate::share::{Peers, Scanner};
use crate::sys::{Memfd, PlainMemory};
use crate::units::{FrameId, Gfn, VmId};
use crate::vm::Vm;

/// Guests.
const GUESTS: u64 = 4;
/// Of a hundred groups of pages, how many are equal in all guests.
const COMMON: u8 = 50;
/// Pages of all guests together at most: 16 GiB.
const MOST: u64 = 1 << 22;
/// Pages of one guest scanned before it is another one's turn.
const SLICE: u32 = 4096;
/// Private pages, no two of them equal, that keep KSM passing over memory so that its passes can be counted.
const SEEN: u32 = 64;
/// After this many passes that found nothing, no more is expected.
const IDLE_PASSES: u32 = 3;
/// The same for workers side by side, as a time: one of them may have nothing to do while another finds pages.
const IDLE: Duration = Duration::from_secs(1);
/// How long a worker that found nothing waits before it looks again, because the others need the processors.
const PAUSE: Duration = Duration::from_millis(1);
const UNTIL_MERGED: &str = "until all is merged";

pub(super) fn run(
    setup: &Setup<'_>,
    peers: &Others<'_>,
    report: &Report,
) -> Result<(), BenchError> {
    let pages = (setup.pages(MOST) / 4).max(1);
    for source in setup.sources(&[Class::Random]) {
        let stage = Stage::new(setup, pages.saturating_mul(4))?;
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Merge, &format!("{source}, round {round}"))?;
            let contents = contents(&source, round);
            ours(&stage, &contents, pages, report)?;
            if let Some(ksm) = &peers.ksm {
                setup.step(Bench::Merge, &format!("{source}, round {round}, ksm"))?;
                theirs(ksm, &contents, pages, report)?;
            }
        }
    }
    Ok(())
}

fn contents(source: &Source, round: u32) -> Vec<Content> {
    let content = |guest| Content {
        source: source.clone(),
        seed: u64::from(round) * 100 + guest,
        common_percent: COMMON,
    };
    (1..=GUESTS).map(content).collect()
}

/// How many pages of all guests together are equal in all guests.
fn equal_pages(contents: &[Content], pages: u32) -> u64 {
    let of = |content: &Content| {
        let is_common = |number: &u64| content.is_common(*number);
        (0..u64::from(pages)).filter(is_common).count() as u64
    };
    contents.iter().map(of).sum()
}

/// Merges by one thread, as ksmd does it, and then by a thread for each guest, as a host does it.
fn ours(
    stage: &Stage<'_>,
    contents: &[Content],
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let source = &contents[0].source;
    let wanted = equal_pages(contents, pages);
    let guests = filled(stage, contents, pages)?;
    let merged = merge(&guests, wanted)?;
    note(report, source, &merged, wanted, None);
    let shared = shared_memory(source);
    report.ours(&shared, count(merged.pages));
    // Verified after each measurement, because a fast merge of wrong bytes is worth nothing.
    done(stage, guests)?;

    let guests = filled(stage, contents, pages)?;
    if let (Some(wall), true) = (merge_at_once(&guests, wanted)?, merged.pages >= wanted) {
        let on = format!("{GUESTS} guests and workers, half equal, {source}");
        let case = Case::less(Bench::Merge, &on, UNTIL_MERGED, "ms");
        report.ours(&case, millis(wall));
        report.peer(&case, many_vms::ONE_BY_ONE, millis(merged.wall));
    }
    done(stage, guests)
}

fn filled(
    stage: &Stage<'_>,
    contents: &[Content],
    pages: u32,
) -> Result<Vec<StageGuest>, BenchError> {
    let guest = |(number, content)| {
        let mut guest = stage.guest(&format!("merged-{number}"), pages)?;
        guest.fill(content)?;
        Ok(guest)
    };
    (1..).zip(contents).map(guest).collect()
}

fn done(stage: &Stage<'_>, guests: Vec<StageGuest>) -> Result<(), BenchError> {
    for mut guest in guests {
        guest.driven.verify()?;
    }
    // The next measurement must not share the host with guests that are still ending.
    stage.wait_until_empty()
}

/// What merging came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    pages: u64,
    wall: Duration,
    cpu: Duration,
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
const fn count(pages: u64) -> f64 {
    pages as f64
}

fn note(
    report: &Report,
    source: &Source,
    merged: &Merged,
    wanted: u64,
    peer: Option<&'static str>,
) {
    let on = format!("{GUESTS} guests, half equal, {source}");
    let time = Case::less(Bench::Merge, &on, UNTIL_MERGED, "ms");
    let cpu = Case::less(Bench::Merge, &on, "processor time for it", "ms");
    let part = Case::more(Bench::Merge, &on, "equal pages merged", "%");
    let part_of = count(merged.pages.min(wanted)) * 100.0 / count(wanted.max(1));
    let values = [(part, part_of), (cpu, millis(merged.cpu))];
    // A time is noted only if all was merged: the time for a part of the work cannot be compared with anything.
    let done = merged.pages >= wanted;
    let time = done.then_some((time, millis(merged.wall)));
    for (case, value) in time.into_iter().chain(values) {
        report.note(&case, peer, value);
    }
}

fn shared_memory(source: &Source) -> Case {
    let on = format!("guests of shared memory, {source}");
    Case::more(Bench::Merge, &on, "pages merged", "pages")
}

/// Merges what is equal in these guests until `wanted` pages are, or nothing more is found.
pub(crate) fn merge(guests: &[StageGuest], wanted: u64) -> Result<Merged, BenchError> {
    let registry = Registry::of(guests);
    let mut scanners: Vec<Scanner> = guests.iter().map(|_| Scanner::default()).collect();
    let cpu = processor_time(guests)?;
    let start = Instant::now();
    let mut idle = 0;
    let mut merged = merged_pages(guests);
    // Several passes without news: a page that was seen changing is left alone for some passes.
    while merged < wanted && idle < IDLE_PASSES {
        pass(guests, &mut scanners, &registry, || {
            merged_pages(guests) >= wanted
        })?;
        let now = merged_pages(guests);
        idle = if now == merged { idle + 1 } else { 0 };
        merged = now;
    }
    Ok(Merged {
        pages: merged,
        wall: start.elapsed(),
        cpu: processor_time(guests)?.saturating_sub(cpu),
    })
}

/// The same with a thread for each guest; how long it took, if all was merged.
fn merge_at_once(guests: &[StageGuest], wanted: u64) -> Result<Option<Duration>, BenchError> {
    let registry = Registry::of(guests);
    let is_done = || merged_pages(guests) >= wanted;
    let start = Instant::now();
    many_vms::at_once(guests, |guest| {
        let (guest, mut scanner) = (slice::from_ref(guest), [Scanner::default()]);
        // Another worker may find what this one then has to map.
        let mut last = (merged_pages(guests), Instant::now());
        while !is_done() && last.1.elapsed() < IDLE {
            pass(guest, &mut scanner, &registry, is_done)?;
            let merged = merged_pages(guests);
            if merged == last.0 {
                thread::sleep(PAUSE);
            } else {
                last = (merged, Instant::now());
            }
        }
        Ok(0)
    })?;
    Ok(is_done().then(|| start.elapsed()))
}

/// One pass over all guests, slice by slice, and over the pages that other scanners have nudged meanwhile.
fn pass(
    guests: &[StageGuest],
    scanners: &mut [Scanner],
    registry: &Registry,
    is_done: impl Fn() -> bool,
) -> Result<(), EngineError> {
    let mut ended = vec![false; guests.len()];
    while ended.contains(&false) && !is_done() {
        for ((guest, scanner), ended) in guests.iter().zip(&mut *scanners).zip(&mut ended) {
            if !*ended {
                *ended = scanner.scan(guest.vm(), registry, SLICE)?.pass_ended;
            }
        }
        for (guest, scanner) in guests.iter().zip(&*scanners) {
            scanner.scan_nudged(guest.vm(), registry, registry.nudged(guest.vm().id))?;
        }
    }
    Ok(())
}

fn merged_pages(guests: &[StageGuest]) -> u64 {
    let table = |guest: &StageGuest| {
        let table = &guest.vm().table;
        table.count(Home::Shared(FrameId(0))) + table.count(Home::Zero)
    };
    guests.iter().map(table).sum()
}

fn processor_time(guests: &[StageGuest]) -> Result<Duration, BenchError> {
    let mut total = thread_cpu();
    for guest in guests {
        total += process_cpu(guest.driven.pid()).map_err(BenchError::io("read processor time"))?;
    }
    Ok(total)
}

/// The other guests as each scanner sees them, and the nudges that scanners gave each other.
struct Registry {
    vms: HashMap<VmId, Arc<Vm>>,
    nudges: Mutex<HashMap<VmId, Vec<Gfn>>>,
}

impl Registry {
    fn of(guests: &[StageGuest]) -> Self {
        let vms = guests
            .iter()
            .map(|guest| (guest.vm().id, Arc::clone(guest.vm())));
        Self {
            vms: vms.collect(),
            nudges: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Vec<Gfn>>> {
        self.nudges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nudged(&self, vm: VmId) -> Vec<Gfn> {
        self.lock().remove(&vm).unwrap_or_default()
    }
}

impl Peers for Registry {
    fn known_hash(&self, vm: VmId, gfn: Gfn) -> Option<u32> {
        self.vms.get(&vm)?.table.known_hash(gfn)
    }

    fn nudge(&self, vm: VmId, gfn: Gfn) {
        self.lock().entry(vm).or_default().push(gfn);
    }
}

/// KSM on the same pages in private memory, and then in shared memory, which is what guests of memvisor have.
fn theirs(
    ksm: &Ksm<'_>,
    contents: &[Content],
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let io = BenchError::io("make memory for KSM");
    let all = pages.saturating_mul(u32::try_from(contents.len()).unwrap_or(u32::MAX));
    let wanted = equal_pages(contents, pages);
    let source = &contents[0].source;
    let memory = PlainMemory::private(all).map_err(&io)?;
    fill(&memory, contents, pages)?;
    ksm.stop()?;
    let cpu = ksm.cpu()?;
    let start = Instant::now();
    ksm.start()?;
    let end = ksm.wait("merge what is equal", |now| now.merged >= wanted)?;
    let merged = Merged {
        pages: end.merged,
        wall: start.elapsed(),
        cpu: ksm.cpu()?.saturating_sub(cpu),
    };
    note(report, source, &merged, wanted, Some("ksm"));
    ksm.stop()?;
    drop(memory);

    let memfd = Memfd::create("memvisor-bench", all).map_err(&io)?;
    let shared = PlainMemory::shared(&memfd).map_err(&io)?;
    fill(&shared, contents, pages)?;
    // KSM does not run at all for shared memory alone, so it gets a little private memory to look at.
    let unique = Content::unique(Source::Class(Class::Random), 0);
    let seen = private(&unique, SEEN)?;
    let before = ksm.progress()?;
    ksm.start()?;
    let end = ksm.wait("pass twice", |now| now.passes >= before.passes + 2)?;
    report.peer(&shared_memory(source), "ksm", count(end.merged));
    ksm.stop()?;
    drop(seen);
    Ok(())
}

fn fill(memory: &PlainMemory, contents: &[Content], pages: u32) -> Result<(), BenchError> {
    advise_small(memory)?;
    for (guest, content) in (0..).zip(contents) {
        let maker = Maker::new(content.clone(), pages)
            .map_err(|error| BenchError::content(content, error))?;
        write(memory, &maker, guest * pages, pages);
    }
    advise_merge(memory)
}
