//! The work for each page: to hash it, to check whether it is zero, to compare it with a frame, to look its hash
//! up, to move it from one home to the next, and to let a guest claim it.
//!
//! ```text
//! cargo bench --bench kernels [-- FILTER]
//! ```
//!
//! `memvisor bench` measures whole mechanisms, compression and the plans of the policy.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvisor::bench::content::{Class, Content, Dice, Maker, Source};
use memvisor::digest::digest;
use memvisor::page::{Attempt, Home, PageTable, Parking};
use memvisor::pool::{Hints, Membership, Mismatches, Pool};
use memvisor::sys::SharedWords;
use memvisor::units::{Gfn, PAGE_SIZE, PageBuf, Pages, SlotId, VmId};
use memvisor_wire::claims::{self, Claimer};
use xxhash_rust::xxh3::xxh3_64_with_secret;

/// How many pages are taken in turn: so few that they fit the processor's cache, or so many that they do not.
const IN_CACHE: u32 = 8;
const IN_MEMORY: u32 = 1 << 16;
/// Hashes that the index knows.
const HINTS: u32 = 1 << 18;

fn pages(class: Class, count: u32) -> Vec<PageBuf> {
    let content = Content::unique(Source::Class(class), 1);
    let maker = Maker::new(content, count).expect("no file is read");
    let make = |number: u32| {
        let mut page = PageBuf::zeroed();
        maker.make(number.into(), &mut page);
        page
    };
    (0..count).map(make).collect()
}

/// Gives one page after the other, for ever.
fn in_turn<'a>(pages: &'a [PageBuf]) -> impl FnMut() -> &'a PageBuf {
    let mut turns = pages.iter().cycle();
    move || turns.next().expect("a cycle has no end")
}

fn looking(criterion: &mut Criterion) {
    for (place, count) in [("cache", IN_CACHE), ("memory", IN_MEMORY)] {
        let mut group = criterion.benchmark_group(format!("look at a page in {place}"));
        group.throughput(Throughput::Bytes(PAGE_SIZE as u64));
        let (random, zero) = (pages(Class::Random, count), pages(Class::Zero, count));
        let mut next = in_turn(&random);
        group.bench_function("hash", |bencher| bencher.iter(|| digest(next())));
        let mut next = in_turn(&random);
        group.bench_function("hash by xxhash-rust", |bencher| {
            bencher.iter(|| xxh3_64_with_secret(&next().0, &[7; 192]));
        });
        let mut next = in_turn(&zero);
        group.bench_function("zero check", |bencher| bencher.iter(|| next().is_zero()));
        let hints = Arc::new(Hints::new(Pages(count.into())).expect("memory"));
        let pool = Pool::new("memvisor-bench", count, &hints).expect("a pool");
        let mut frames = Vec::new();
        for (hash, page) in (1..).zip(&random) {
            let mut frame = pool.allocate_near(None).expect("a free frame");
            frame.fill(page);
            frames.push(frame.publish(hash).expect("a new hash").0.keep());
        }
        let mut both = random.iter().zip(&frames).cycle();
        group.bench_function("compare with a frame", |bencher| {
            bencher.iter(|| {
                let (page, frame) = both.next().expect("a cycle has no end");
                pool.equals(*frame, page)
            });
        });
        group.finish();
    }
}

fn looking_up(criterion: &mut Criterion) {
    let hints = Arc::new(Hints::new(Pages(HINTS.into())).expect("memory"));
    let pool = Pool::new("memvisor-bench", 16, &hints).expect("a pool");
    let pool = Arc::new(pool);
    let [one, two] = [1, 2].map(|vm| Membership::new(Arc::clone(&pool), VmId(vm)));
    let none = Mismatches::default();
    let mut dice = Dice::new(1, 1);
    let hashes: Vec<u64> = (0..HINTS).map(|_| dice.next()).collect();
    for (gfn, hash) in (0..).map(Gfn).zip(&hashes) {
        let _ = one.lookup(*hash, gfn, &none);
    }
    let mut group = criterion.benchmark_group("index of 262144 hints");
    let mut known = (0..).map(Gfn).zip(&hashes).cycle();
    group.bench_function("a hint that is known", |bencher| {
        bencher.iter(|| {
            let (gfn, hash) = known.next().expect("a cycle has no end");
            two.lookup(*hash, gfn, &none).is_ok()
        });
    });
    group.bench_function("a frame that is not there", |bencher| {
        bencher.iter(|| pool.lookup_frame(dice.next()).is_some());
    });
    group.finish();
}

fn moving(criterion: &mut Criterion) {
    let parking = Arc::new(Parking::new().expect("an eventfd"));
    let table = PageTable::new(IN_MEMORY, parking).expect("memory");
    let mut gfns = (0..IN_MEMORY).map(Gfn).cycle();
    let mut group = criterion.benchmark_group("page table");
    group.bench_function("read an entry", |bencher| {
        bencher.iter(|| {
            let gfn = gfns.next().expect("a cycle has no end");
            table.entry(gfn).home()
        });
    });
    group.bench_function("lock and unlock", |bencher| {
        bencher.iter(|| {
            let gfn = gfns.next().expect("a cycle has no end");
            table.try_lock(gfn).is_some()
        });
    });
    group.bench_function("lock, make resident, make zero, unlock", |bencher| {
        bencher.iter(|| {
            let gfn = gfns.next().expect("a cycle has no end");
            let page = table.try_lock(gfn).expect("nobody else has it");
            page.set_home(Home::Resident);
            page.set_home(Home::Zero);
        });
    });
    group.finish();
}

/// Pages that a guest brings before the daemon looks: the number of credits that a guest gets at first.
const HELD: u32 = 16;

/// A page table of compressed pages that are all offered, and the words of the claim table that the guest sees.
fn offered() -> (PageTable, Arc<SharedWords>) {
    let words = SharedWords::new("memvisor-bench", claims::words(IN_MEMORY)).expect("a memfd");
    let words = Arc::new(words);
    let table =
        PageTable::new(IN_MEMORY, Arc::new(Parking::new().expect("an eventfd"))).expect("memory");
    let table = table.offering(Arc::clone(&words) as _);
    for gfn in (0..IN_MEMORY).map(Gfn) {
        let page = table.try_lock(gfn).expect("nobody else has it");
        page.set_home(Home::Resident);
        page.set_home(Home::Compressed(SlotId(gfn.0)));
    }
    (table, words)
}

fn claiming(criterion: &mut Criterion) {
    let (table, words) = offered();
    let daemon = table.claims().expect("it offers");
    let claimer = Claimer::new(&*words);
    let mut gfns = (0..IN_MEMORY).map(Gfn).cycle();
    let mut group = criterion.benchmark_group("claim table");
    group.bench_function("guest: claim a page and be done", |bencher| {
        bencher.iter_custom(|pages| {
            let mut took = Duration::ZERO;
            for first in (0..pages).step_by(HELD as usize) {
                daemon.grant(HELD, || true);
                let held = gfns
                    .by_ref()
                    .take(HELD.min((pages - first) as u32) as usize);
                let held: Vec<Gfn> = held.collect();
                let start = Instant::now();
                for gfn in &held {
                    let offer = claimer.state(*gfn);
                    let claims::Attempt::Claimed(claim) = claimer.claim(*gfn, offer) else {
                        panic!("{gfn} is offered and there are credits");
                    };
                    claimer.done(black_box(claim));
                }
                took += start.elapsed();
                // Restores the offers, outside the measured time. The page table keeps the pages as compressed.
                for gfn in held {
                    let Attempt::Done(page) = table.attempt(gfn) else {
                        panic!("{gfn} was brought");
                    };
                    drop(page.settle().expect("with a credit that was granted"));
                }
            }
            took
        });
    });
    group.bench_function("daemon: lock and unlock, so revoke and offer", |bencher| {
        bencher.iter(|| {
            let gfn = gfns.next().expect("a cycle has no end");
            table.try_lock(gfn).is_some()
        });
    });
    let _ = daemon.take_back();
    group.bench_function("daemon: grant 16 credits and take them back", |bencher| {
        bencher.iter(|| {
            daemon.grant(HELD, || true);
            daemon.take_back()
        });
    });
    group.finish();
}

criterion_group!(benches, looking, looking_up, moving, claiming);
criterion_main!(benches);
