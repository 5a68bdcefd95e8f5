//! The compression cache: what it costs to put a page in and to get it back, and how much it saves.

use std::hint::black_box;

use memvisor_wire::payload::checksum;

use super::clock::timed;
use super::content::{Class, Content, Dice, Maker, Source};
use super::peer::lz4;
use super::report::{Case, Report};
use super::{Bench, BenchError, Setup, Vs};
use crate::compress::{Compressor, ZipCache};
use crate::units::{Gfn, PAGE_SIZE, PageBuf, SlotId};

/// Pages measured at most: 32 MiB, more than caches hold.
const MOST: u64 = 8192;

pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let usual = [
        Class::Zero,
        Class::Text,
        Class::Code,
        Class::Heap,
        Class::Random,
    ];
    let count = setup.pages(MOST);
    for source in setup.sources(&usual) {
        let content = Content::unique(source.clone(), 0);
        let maker = Maker::new(content.clone(), count)
            .map_err(|error| BenchError::content(&content, error))?;
        let mut pages = vec![PageBuf::zeroed(); count as usize];
        for (number, page) in (0..).zip(&mut pages) {
            maker.make(number, page);
        }
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Compress, &format!("{source}, round {round}"))?;
            ours(&source, &pages, report)?;
            if setup.wants(Vs::Lz4) {
                theirs(&source, &pages, report);
            }
        }
    }
    Ok(())
}

/// Microseconds of processor time for each of `count`.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn each(took: std::time::Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e6 / count.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn percent(part: usize, of: usize) -> f64 {
    part as f64 * 100.0 / of.max(1) as f64
}

fn ours(source: &Source, pages: &[PageBuf], report: &Report) -> Result<(), BenchError> {
    let mut compressor = Compressor::new();
    let (halved, took) = timed(|| {
        let halves = |page: &&PageBuf| compressor.compress(page).is_some();
        pages.iter().filter(halves).count()
    });
    report.ours(&compress_time(source), each(took.cpu, pages.len()));
    report.ours(&halves(source), percent(halved, pages.len()));
    let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let io = BenchError::io("make a compression cache");
    let mut cache = ZipCache::new("memvisor-bench-zip", count).map_err(io)?;
    let (stored, took) = timed(|| store(&mut cache, &mut compressor, pages));
    let whole = Case::less(Bench::Compress, source, "compress and store", "us/page");
    report.ours(&whole, each(took.cpu, pages.len()));
    if stored.is_empty() {
        return Ok(());
    }
    let kept = cache.pages_used() as usize;
    let metric = "cache of what is stored";
    let saved = Case::less(Bench::Compress, source, metric, "% of its size");
    report.ours(&saved, percent(kept, stored.len()));
    let mut page = PageBuf::zeroed();
    let (loaded, took) = timed(|| {
        let load = |slot: &&SlotId| cache.load(**slot, &mut page).is_ok();
        stored.iter().filter(load).count()
    });
    black_box(&page);
    report.ours(&load_time(source), each(took.cpu, stored.len()));
    if loaded < stored.len() {
        return Err(BenchError::Corrupt {
            name: "compression cache".to_owned(),
            pages: (stored.len() - loaded) as u64,
        });
    }
    let [thinned, refilled] = churn(&mut cache, &mut compressor, pages, stored);
    for (metric, percent) in [
        ("cache after half left at random", thinned),
        ("cache after others came", refilled),
    ] {
        report.ours(
            &Case::less(Bench::Compress, source, metric, "% of its size"),
            percent,
        );
    }
    Ok(())
}

/// What the cache costs once a random half of its pages has left, and once other pages have taken their place.
fn churn(
    cache: &mut ZipCache,
    compressor: &mut Compressor,
    pages: &[PageBuf],
    mut stored: Vec<SlotId>,
) -> [f64; 2] {
    let all = stored.len();
    let mut dice = Dice::new(1, 0);
    while stored.len() > all / 2 {
        cache.free(stored.swap_remove(dice.below(stored.len())));
    }
    // The freed pages are not credited anywhere, because this cache is charged to no budget.
    let _given = cache.give_back();
    let thinned = percent(cache.pages_used() as usize, stored.len());
    while stored.len() < all {
        let page = &pages[dice.below(pages.len())..][..1];
        stored.extend(store(cache, compressor, page));
    }
    [thinned, percent(cache.pages_used() as usize, stored.len())]
}

fn store(cache: &mut ZipCache, compressor: &mut Compressor, pages: &[PageBuf]) -> Vec<SlotId> {
    let mut slots = Vec::with_capacity(pages.len());
    for (gfn, page) in (0..).map(Gfn).zip(pages) {
        let Some(payload) = compressor.compress(page) else {
            continue;
        };
        let sum = checksum(&page.0);
        slots.extend(cache.store(gfn, payload, sum, true).ok());
    }
    slots
}

fn compress_time(source: &Source) -> Case {
    Case::less(Bench::Compress, source, "compress", "us/page")
}

fn halves(source: &Source) -> Case {
    Case::more(Bench::Compress, source, "pages that halve", "%")
}

fn load_time(source: &Source) -> Case {
    Case::less(Bench::Compress, source, "decompress", "us/page")
}

/// The C library with the same bound, half a page. Unlike ours, it verifies no checksum.
fn theirs(source: &Source, pages: &[PageBuf], report: &Report) {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut output = vec![0; PAGE_SIZE / 2];
    let (halved, took) = timed(|| {
        let halves = |page: &&PageBuf| lz4::compress(page, &mut output).is_some();
        pages.iter().filter(halves).count()
    });
    report.peer(
        &compress_time(source),
        lz4::NAME,
        each(took.cpu, pages.len()),
    );
    report.peer(&halves(source), lz4::NAME, percent(halved, pages.len()));
    for page in pages {
        blocks.extend(lz4::compress(page, &mut output).map(|len| output[..len].to_vec()));
    }
    if blocks.is_empty() {
        return;
    }
    let mut page = PageBuf::zeroed();
    let (_, took) = timed(|| {
        let whole = |block: &&Vec<u8>| lz4::decompress(block, &mut page);
        blocks.iter().filter(whole).count()
    });
    black_box(&page);
    report.peer(&load_time(source), lz4::NAME, each(took.cpu, blocks.len()));
}
