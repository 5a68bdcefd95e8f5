//! Faults as the guest sees them: from the access to the next instruction, in random order.
//!
//! When another process serves a fault, most of the time is spent waking that process, which takes long if it
//! runs on another processor that is halted. So these faults are measured on one processor and on two, and
//! compared with the least that a userfaultfd can do: a bare loop that copies one page. Faults that the faulting
//! thread serves itself are compared with the least that a signal handler can do.

use super::content::{Class, Content, Dice, Maker, Source};
use super::driven::{Order, Touches, nanoseconds};
use super::merge::merge;
use super::peer::Peers;
use super::peer::ksm::Ksm;
use super::peer::signal::{self, Remedy};
use super::peer::uffd::BareUffd;
use super::report::{Case, Report};
use super::scan::{advise_merge, advise_small, write};
use super::stage::{Pinned, Place, Stage, StageGuest};
use super::{Bench, BenchError, Setup};
use crate::engine::EngineKind;
use crate::page::Home;
use crate::sys::PlainMemory;
use crate::units::{FrameId, Gfn, SlotId};
use crate::vm::Means;

/// The most pages touched, 32 MiB: breaking each of them may take a mapping, and mappings are limited.
const MOST: u64 = 8192;

/// The places in which faults served by the daemon are measured.
const SERVED: [Place; 2] = [Place::SameCpu, Place::TwoCpus];
/// The place of faults that the faulting thread serves.
const INLINE: &str = "inline";

const COMPRESS: Means = Means {
    compress: true,
    swap: false,
};

/// The cases of a fault: its median and its 99th percentile.
pub(super) fn cases(bench: Bench, case: &str) -> [Case; 2] {
    ["p50", "p99"].map(|metric| Case::less(bench, &case, metric, "us"))
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn note(
    report: &Report,
    cases: &[Case; 2],
    peer: Option<&'static str>,
    touches: Touches,
) {
    for (case, ns) in cases.iter().zip([touches.p50_ns, touches.p99_ns]) {
        report.note(case, peer, ns as f64 / 1e3);
    }
}

pub(super) fn run(setup: &Setup<'_>, peers: &Peers<'_>, report: &Report) -> Result<(), BenchError> {
    let pages = setup.pages(MOST);
    for source in setup.sources(&[Class::Heap]) {
        let stage = Stage::new(setup, pages.saturating_mul(2))?;
        let inline = (stage.host().engine() == EngineKind::Uffd).then_some(INLINE);
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Fault, &format!("{source}, round {round}"))?;
            let content = Content::unique(source.clone(), round.into());
            touch(&stage, &content, pages, report)?;
            refill(&stage, &content, pages, report)?;
            if inline.is_some() {
                refill_inline(&stage, &content, pages, report)?;
                setup.step(Bench::Fault, &format!("{source}, round {round}, uffd"))?;
                bare(setup, &source, pages, report)?;
            }
            if let Some(zram) = &peers.zram {
                setup.step(Bench::Fault, &format!("{source}, round {round}, zram"))?;
                let order = Dice::new(content.seed, 2).order(pages);
                let touches = zram.refill(&content, pages, &order)?;
                let places = SERVED.map(Place::name).into_iter().chain(inline);
                for place in places {
                    note(report, &refills(&source, place), Some("zram"), touches);
                }
            }
            setup.step(Bench::Fault, &format!("{source}, round {round}, breaks"))?;
            let by_host = [stage.guest("broken", pages)?, stage.guest("other", pages)?];
            breaks(&stage, by_host, &content, &broken(&source, ""), report)?;
            if inline.is_some() {
                let itself = [
                    stage.inline_guest("broken", pages)?,
                    stage.guest("other", pages)?,
                ];
                breaks(&stage, itself, &content, &broken(&source, INLINE), report)?;
            }
            if let Some(ksm) = &peers.ksm {
                setup.step(Bench::Fault, &format!("{source}, round {round}, ksm"))?;
                let touches = ksm_breaks(ksm, &content, pages)?;
                for place in [""].into_iter().chain(inline) {
                    note(report, &broken(&source, place), Some("ksm"), touches);
                }
            }
        }
    }
    Ok(())
}

fn touched(place: &str) -> [Case; 2] {
    cases(Bench::Fault, &format!("first touch, {place}"))
}

fn refills(source: &Source, place: &str) -> [Case; 2] {
    cases(
        Bench::Fault,
        &format!("refill from the cache, {place}, {source}"),
    )
}

fn broken(source: &Source, place: &str) -> [Case; 2] {
    let comma = if place.is_empty() { "" } else { ", " };
    let case = format!("break of a shared page, {place}{comma}{source}");
    cases(Bench::Fault, &case)
}

/// First touches in random order.
fn touch(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    for place in [
        Place::SameCpu,
        Place::TwoCpus,
        Place::GuestPinned,
        Place::Free,
    ] {
        let mut guest = stage.guest("touched", pages)?;
        if let Some(_pinned) = Pinned::new(guest.driven.pid(), place)? {
            let order = Order::Read(Dice::new(content.seed, 1).order(pages));
            let touches = guest.driven.touch(&order)?;
            note(report, &touched(place.name()), None, touches);
        }
        drop(guest);
        stage.wait_until_empty()?;
    }
    Ok(())
}

/// The pages of `guest` with a home of this kind, in random order.
pub(super) fn at_home(guest: &StageGuest, seed: u64, kind: Home) -> Vec<u32> {
    let table = &guest.vm().table;
    let is_there = |page: &u32| {
        std::mem::discriminant(&table.entry(Gfn(*page)).home()) == std::mem::discriminant(&kind)
    };
    let order = Dice::new(seed, 2).order(table.pages());
    order.into_iter().filter(is_there).collect()
}

fn refill(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let mut guest = stage.guest("refilled", pages)?;
    guest.fill(content)?;
    for place in SERVED {
        guest.evict_all(content.seed, COMPRESS)?;
        let order = at_home(&guest, content.seed, Home::Compressed(SlotId(0)));
        if let Some(_pinned) = Pinned::new(guest.driven.pid(), place)?
            && !order.is_empty()
        {
            let touches = guest.driven.touch(&Order::Read(order))?;
            note(
                report,
                &refills(&content.source, place.name()),
                None,
                touches,
            );
        }
    }
    guest.driven.verify()?;
    drop(guest);
    stage.wait_until_empty()
}

/// As [`refill`], but served by the thread that faults.
fn refill_inline(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let mut guest = stage.inline_guest("refilled", pages)?;
    guest.fill(content)?;
    guest.evict_all(content.seed, COMPRESS)?;
    let order = at_home(&guest, content.seed, Home::Compressed(SlotId(0)));
    if !order.is_empty() {
        let touches = guest.driven.touch(&Order::Read(order))?;
        note(report, &refills(&content.source, INLINE), None, touches);
    }
    guest.driven.verify()?;
    drop(guest);
    stage.wait_until_empty()
}

/// The least that a userfaultfd can do, and the least that a signal handler can do.
fn bare(setup: &Setup<'_>, source: &Source, pages: u32, report: &Report) -> Result<(), BenchError> {
    for place in SERVED {
        let mut bare = BareUffd::start(setup, pages)?;
        if let Some(_pinned) = Pinned::new(bare.driven().pid(), place)? {
            let order = Order::Read(Dice::new(1, 3).order(pages));
            let touches = bare.driven().touch(&order)?;
            note(
                report,
                &refills(source, place.name()),
                Some("uffd"),
                touches,
            );
            note(report, &touched(place.name()), Some("uffd"), touches);
        }
        bare.stop()?;
    }
    for (remedy, cases) in [
        (Remedy::Copy, refills(source, INLINE)),
        (Remedy::Map, broken(source, INLINE)),
    ] {
        let touches = signal::faults(setup, remedy, pages)?;
        note(report, &cases, Some(signal::NAME), touches);
    }
    Ok(())
}

/// Two guests have equal pages, and one of them writes all of them.
fn breaks(
    stage: &Stage<'_>,
    mut guests: [StageGuest; 2],
    content: &Content,
    cases: &[Case; 2],
    report: &Report,
) -> Result<(), BenchError> {
    for guest in &mut guests {
        guest.fill(content)?;
    }
    let pages = guests.iter().map(|guest| guest.vm().table.pages());
    merge(&guests, pages.map(u64::from).sum())?;
    let order = at_home(&guests[0], content.seed, Home::Shared(FrameId(0)));
    if !order.is_empty() {
        let touches = guests[0].driven.touch(&Order::Rewrite(order))?;
        note(report, cases, None, touches);
    }
    for guest in &mut guests {
        guest.driven.verify()?;
    }
    drop(guests);
    stage.wait_until_empty()
}

fn ksm_breaks(ksm: &Ksm<'_>, content: &Content, pages: u32) -> Result<Touches, BenchError> {
    let maker =
        Maker::new(content.clone(), pages).map_err(|error| BenchError::content(content, error))?;
    let memory = PlainMemory::private(pages * 2).map_err(BenchError::io("make memory for KSM"))?;
    advise_small(&memory)?;
    write(&memory, &maker, 0, pages);
    write(&memory, &maker, pages, pages);
    advise_merge(&memory)?;
    ksm.stop()?;
    ksm.start()?;
    ksm.wait("merge what is equal", |now| {
        now.merged >= u64::from(pages) * 2
    })?;
    // Paused, so that KSM does not merge again what is just being written.
    ksm.pause()?;
    let mut times = Vec::with_capacity(pages as usize);
    for page in Dice::new(content.seed, 2).order(pages) {
        let word = memory.touch(page);
        let start = std::time::Instant::now();
        memory.poke(page, word);
        times.push(nanoseconds(start));
    }
    ksm.stop()?;
    Ok(times.into())
}
