//! Scanning memory: how fast new pages are scanned, what another scan costs when nothing was written, and
//! how much memory the host needs for what it remembers.

use std::time::Duration;

use super::clock::{anonymous_bytes, rate, timed};
use super::content::{Class, Content, Maker, Source};
use super::peer::Peers;
use super::peer::ksm::Ksm;
use super::report::{Case, Report};
use super::stage::{NoPeers, Stage, StageGuest};
use super::{Bench, BenchError, Setup, many_vms};
use crate::engine::EngineError;
use crate::page::Home;
use crate::share::Scanner;
use crate::sys::{Advice, PlainMemory};
use crate::units::{Gfn, PAGE_SIZE, PageBuf, Pages};
use crate::vm::Vm;

/// Pages measured at most: 16 GiB.
const MOST: u64 = 1 << 22;
const GIB: f64 = 1_073_741_824.0;

pub(super) fn run(setup: &Setup<'_>, peers: &Peers<'_>, report: &Report) -> Result<(), BenchError> {
    let pages = setup.pages(MOST);
    for source in setup.sources(&[Class::Random]) {
        let before = own_bytes()?;
        // Tight, because the table of hints is sized by the host's budget and would count as memory for the guest.
        let stage = Stage::tight(setup, pages)?;
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Scan, &format!("{source}, round {round}"))?;
            let content = Content::unique(source.clone(), round.into());
            ours(&stage, &content, pages, before, report)?;
            if let Some(ksm) = &peers.ksm {
                setup.step(Bench::Scan, &format!("{source}, round {round}, ksm"))?;
                theirs(ksm, &content, pages, report)?;
            }
        }
        // Measured last: memory that these threads leave in this process must not count as memory for a guest.
        for round in 1..=setup.options.rounds {
            let step = format!("{source}, round {round}, VMs at once");
            setup.step(Bench::Scan, &step)?;
            let first = (Bench::Scan, "first look");
            many_vms::run(&stage, first, (&source, round), pages, first_scan, report)?;
        }
    }
    Ok(())
}

fn ours(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    before: u64,
    report: &Report,
) -> Result<(), BenchError> {
    let source = &content.source;
    let mut guest = stage.guest("scanned", pages)?;
    guest.fill(content)?;
    let vm = guest.vm();
    let mut scanner = Scanner::default();
    let (found, took) = timed(|| pass(&mut scanner, vm));
    found?;
    report.ours(&cold(source), rate(pages.into(), took.cpu));
    let (count, read) = timed(|| read_all(vm, pages));
    let (found, took) = timed(|| pass(&mut scanner, vm));
    found?;
    report.ours(&again(source), per_gib(took.cpu, pages));
    if count > 0 {
        // A page is the same number of bytes for both, so the rates can be compared.
        report.peer(&cold(source), "read", rate(count.into(), read.cpu));
        report.peer(&again(source), "read", per_gib(read.cpu, count));
    }
    let known = own_bytes()?.saturating_sub(before);
    report.ours(&memory(source), percent_of(known, pages));
    guest.driven.verify()?;
    drop(guest);
    stage.wait_until_empty()
}

fn own_bytes() -> Result<u64, BenchError> {
    anonymous_bytes().map_err(BenchError::io("read its own memory use"))
}

/// The first scan of a guest; how many pages it has.
fn first_scan(guest: &StageGuest) -> Result<u64, EngineError> {
    pass(&mut Scanner::default(), guest.vm())?;
    Ok(guest.vm().table.pages().into())
}

/// One walk over the whole VM.
fn pass(scanner: &mut Scanner, vm: &Vm) -> Result<(), EngineError> {
    while !scanner.scan(vm, &NoPeers, u32::MAX)?.pass_ended {}
    Ok(())
}

fn cold(source: &Source) -> Case {
    Case::more(Bench::Scan, source, "first look", "pages/s of a core")
}

fn again(source: &Source) -> Case {
    let metric = "look at what nobody wrote";
    Case::less(Bench::Scan, source, metric, "ms/GiB of a core")
}

fn memory(source: &Source) -> Case {
    Case::less(Bench::Scan, source, "memory for it", "% of the guest's")
}

/// Copies every resident page into a buffer that stays in the processor's cache, which measures the bandwidth
/// of reading; how many pages were copied. Pages found to be zero are holes by now, and reading would fill them.
fn read_all(vm: &Vm, pages: u32) -> u32 {
    let mut page = PageBuf::zeroed();
    let (mut count, mut sum) = (0, 0);
    for gfn in (0..pages).map(Gfn) {
        if vm.table.entry(gfn).home() == Home::Resident {
            vm.engine.read(gfn, &mut page);
            sum ^= u64::from(page.0[PAGE_SIZE / 2]);
            count += 1;
        }
    }
    std::hint::black_box(sum);
    count
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn gib(pages: u32) -> f64 {
    Pages(pages.into()).bytes().0 as f64 / GIB
}

fn per_gib(time: Duration, pages: u32) -> f64 {
    time.as_secs_f64() * 1e3 / gib(pages)
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn percent_of(bytes: u64, pages: u32) -> f64 {
    bytes as f64 / GIB / gib(pages) * 100.0
}

/// KSM's first pass over the same pages, and a later one. In its first pass KSM only remembers a checksum, and
/// looks for equal pages from the second on. Our first scan does both.
fn theirs(ksm: &Ksm<'_>, content: &Content, pages: u32, report: &Report) -> Result<(), BenchError> {
    let source = &content.source;
    let memory = private(content, pages)?;
    ksm.stop()?;
    let start = (ksm.progress()?, ksm.cpu()?);
    ksm.start()?;
    let first = ksm.wait("look at all pages", |now| {
        now.scanned - start.0.scanned >= pages.into()
    })?;
    let took = ksm.cpu()?.saturating_sub(start.1);
    let scanned = first.scanned - start.0.scanned;
    report.peer(&cold(source), "ksm", rate(scanned, took));
    let passes = ksm.progress()?.passes;
    ksm.wait("look again", |now| now.passes >= passes + 2)?;
    let start = (ksm.progress()?, ksm.cpu()?);
    let end = ksm.wait("look once more", |now| now.passes > start.0.passes)?;
    let took = ksm.cpu()?.saturating_sub(start.1);
    let scanned = u32::try_from(end.scanned - start.0.scanned).unwrap_or(u32::MAX);
    report.peer(&again(source), "ksm", per_gib(took, scanned));
    ksm.stop()?;
    drop(memory);
    Ok(())
}

/// Private memory of this process that wants to be merged, as KSM needs it.
pub(super) fn private(content: &Content, pages: u32) -> Result<PlainMemory, BenchError> {
    let maker =
        Maker::new(content.clone(), pages).map_err(|error| BenchError::content(content, error))?;
    let memory = PlainMemory::private(pages).map_err(BenchError::io("make memory for KSM"))?;
    advise_small(&memory)?;
    write(&memory, &maker, 0, pages);
    advise_merge(&memory)?;
    Ok(memory)
}

/// Fills `count` pages from `first` on with the first pages of a content.
pub(super) fn write(memory: &PlainMemory, maker: &Maker, first: u32, count: u32) {
    let mut page = PageBuf::zeroed();
    for number in 0..count {
        maker.make(number.into(), &mut page);
        memory.write(first + number, &page);
    }
}

/// Asks for small pages, because huge pages would be measured differently. Must be called before memory is filled.
pub(super) fn advise_small(memory: &PlainMemory) -> Result<(), BenchError> {
    let advised = memory.advise(Advice::SmallPages);
    advised.map_err(BenchError::io("make memory for KSM"))
}

/// From here on KSM scans this memory.
pub(super) fn advise_merge(memory: &PlainMemory) -> Result<(), BenchError> {
    let advised = memory.advise(Advice::Merge);
    advised.map_err(BenchError::io("make memory for KSM"))
}
