//! Random steps of several guests and of the daemon, one at a time, checked after each.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use memvisor_wire::balloon::{PageStatus, StatusRun};
use nix::errno::Errno;
use proptest::prelude::*;

use super::scenario::{Coverage, KINDS, search};
use super::worker::ask;
use super::{Countdown, Guest, Host, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineError;
use crate::page::Home;
use crate::reclaim::{Job, LargePages};
use crate::share::AttachRequest;
use crate::swap::CacheFile;
use crate::units::{Gfn, GfnRun, PageBuf, Pages, VmId};
use crate::vm::{Blocked, Means, Vm};

/// Guests that run at the same time; the last is in a sharing domain of its own.
const GUESTS: usize = 4;
const POOLS: usize = 2;
const CASES: u32 = 160;
const PAGES: u32 = 40;
/// Pages that are used more than others, so that much happens to the same page.
const HOT: u32 = 6;
const THREADS: usize = 2;
/// Memory for less than half of the pages of all guests.
const BUDGET: u64 = GUESTS as u64 * METADATA + 70;
const RESERVE: u64 = 6;
const METADATA: u64 = 17;
/// In how many rounds of its worker a cache comes down to its limit at the latest, once the swap file has room.
const TRIMS: u32 = 4;
/// Pages of a guest that are scanned in a second: so few that a pass takes several slices.
pub(super) const SCAN_RATE: u32 = 50;
/// Long, because sampled pages are closed, and most pages should be open most of the time.
const SAMPLE_PERIOD: Duration = Duration::from_secs(20);

/// What a guest writes. The contents are few, so that many pages are equal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Zero,
    Common(u8),
    Text(u64),
    Noise(u64),
}

impl Content {
    fn page(self) -> PageBuf {
        match self {
            Self::Zero => PageBuf::zeroed(),
            Self::Common(byte) => PageBuf([byte + 1; 4096]),
            // From a few to a little too many bytes: all sizes of slots.
            Self::Text(seed) => samples::mixed(seed, seed as usize * 97 % 2300),
            Self::Noise(seed) => samples::random(seed),
        }
    }
}

fn contents() -> impl Strategy<Value = Content> {
    prop_oneof![
        1 => Just(Content::Zero),
        3 => (0..4u8).prop_map(Content::Common),
        2 => (0..60u64).prop_map(Content::Text),
        1 => (0..20u64).prop_map(Content::Noise),
    ]
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Read(u32),
    /// Writes one page, or a run of pages as programs do.
    Write(GfnRun, Content),
    /// Begins a write and leaves it unfinished once its fault has been answered.
    WriteAndPause(u32, Content),
    /// This many milliseconds pass: scanning, sampling, stores and pauses become due.
    Wait(u64),
    /// The worker is asked for all of these at once.
    Ask(Vec<Request>),
    Evict(u64, Means),
    /// Swapped pages are to come back, so many a second, or no more.
    Unswap(Option<NonZeroU32>),
    /// Pages that were not touched for so many milliseconds leave, as long as no more than so many percent come back in
    /// an hour.
    Cold(u64, u32),
    /// What becomes of large pages from now on.
    Large(LargePages),
    SwapFails(Option<Errno>),
    /// The disk of the host cache fails.
    CacheFails(Option<Errno>),
    /// The host cache may have so many pages.
    CacheSize(u64),
    /// The guest's part of it may have so many.
    CacheCap(u32),
    ZipCap(u32),
    SwapSlots(u32),
    /// The guest's kernel maps this many more runs before it refuses one.
    Vmas(u32),
    /// The guest's kernel drops mappings of its own accord, and the guest goes on.
    ForgetMappings(GfnRun),
    /// The fault thread's time passes without a fault: credits of an inline guest that it did not use are due back.
    Rest,
    Block(Blocked),
    /// The guest may hold this many pages; `None`: no ceiling.
    Ceiling(Option<u64>),
    DieInWrites(u32, Content),
}

/// What a worker is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Inflate(GfnRun),
    Deflate(GfnRun),
    ReleaseAll,
    Attach(AttachRequest),
    /// To move to the pool of this number, or to share with nobody.
    Join(Option<usize>),
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        6 => runs().prop_map(Request::Inflate),
        6 => runs().prop_map(Request::Deflate),
        1 => Just(Request::ReleaseAll),
        8 => (runs(), gfn()).prop_map(|(pages, source)| {
            let pages = GfnRun::new(pages.start, pages.count.min(PAGES - source));
            Request::Attach(AttachRequest { pages, source: Gfn(source) })
        }),
        1 => prop::option::of(0..POOLS).prop_map(Request::Join),
    ]
}

fn gfn() -> impl Strategy<Value = u32> {
    prop_oneof![0..PAGES, 0..HOT]
}

fn runs() -> impl Strategy<Value = GfnRun> {
    (gfn(), 1..12u32).prop_map(|(gfn, n)| run(gfn, n))
}

fn run(gfn: u32, count: u32) -> GfnRun {
    GfnRun::new(Gfn(gfn), count.min(PAGES - gfn))
}

fn means() -> impl Strategy<Value = Means> {
    let some = (any::<bool>(), any::<bool>());
    prop_oneof![
        3 => Just(Means::ALL),
        1 => some.prop_map(|(compress, swap)| Means { compress, swap }),
    ]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        10 => gfn().prop_map(Step::Read),
        14 => (gfn(), contents()).prop_map(|(gfn, content)| Step::Write(run(gfn, 1), content)),
        5 => (gfn(), 2..20u32, contents()).prop_map(|(gfn, n, c)| Step::Write(run(gfn, n), c)),
        3 => (gfn(), contents()).prop_map(|(gfn, content)| Step::WriteAndPause(gfn, content)),
        16 => (1..1500u64).prop_map(Step::Wait),
        9 => prop::collection::vec(requests(), 1..4).prop_map(Step::Ask),
        9 => (1..30u64, means()).prop_map(|(want, means)| Step::Evict(want, means)),
        2 => (0..100u32).prop_map(|rate| Step::Unswap(NonZeroU32::new(rate))),
        6 => (0..2000u64, prop::sample::select(vec![1, 1000, u32::MAX]))
            .prop_map(|(age, refaults)| Step::Cold(age, refaults)),
        4 => prop::sample::select(vec![
                LargePages::Break,
                LargePages::Keep,
                LargePages::Grow { all: false },
                LargePages::Grow { all: true },
            ])
            .prop_map(Step::Large),
        1 => prop::sample::select(vec![None, Some(Errno::ENOSPC), Some(Errno::EIO)])
            .prop_map(Step::SwapFails),
        1 => prop::sample::select(vec![None, None, Some(Errno::ENOSPC), Some(Errno::EIO)])
            .prop_map(Step::CacheFails),
        2 => prop::sample::select(vec![0, 0, 0, 0, 1, 9, 30, 200]).prop_map(Step::CacheSize),
        1 => prop::sample::select(vec![0, 3, 12, u32::MAX]).prop_map(Step::CacheCap),
        1 => (0..5u32).prop_map(Step::ZipCap),
        1 => (0..=PAGES).prop_map(Step::SwapSlots),
        1 => (0..4u32).prop_map(Step::Vmas),
        2 => Just(Step::Vmas(Countdown::NEVER)),
        2 => runs().prop_map(Step::ForgetMappings),
        1 => Just(Step::Rest),
        1 => prop::sample::select(vec![Blocked::No, Blocked::Touches, Blocked::All])
            .prop_map(Step::Block),
        1 => prop::option::of(0..u64::from(PAGES)).prop_map(Step::Ceiling),
        1 => (gfn(), contents()).prop_map(|(gfn, content)| Step::DieInWrites(gfn, content)),
    ];
    prop::collection::vec((0..GUESTS, step), 1..250)
}

/// The host, a place for each guest, and how many have been powered on.
pub(super) struct World {
    pub(super) host: Host,
    pub(super) guests: Vec<Option<Guest>>,
    powered_on: u32,
    /// VMAs that each pair of guests may take.
    vmas: [u32; GUESTS / 2],
}

impl World {
    pub(super) fn new() -> Self {
        // A period of sampling wants two VMAs for each page that it samples: 12 are too few for that, 200 are enough.
        Self::with(BUDGET, [12, 200])
    }

    /// A host with as much memory as its guests may want, whose guests are not short of VMAs.
    pub(super) fn roomy() -> Self {
        let each = METADATA + 2 * u64::from(PAGES);
        Self::with(GUESTS as u64 * each + RESERVE, [200; 2])
    }

    fn with(budget: u64, vmas: [u32; GUESTS / 2]) -> Self {
        let mut world = Self {
            host: Host::new(budget, RESERVE, POOLS, 4 * PAGES),
            guests: Vec::new(),
            powered_on: 0,
            vmas,
        };
        for place in 0..GUESTS {
            let guest = world.power_on(place);
            world.guests.push(guest);
        }
        world
    }

    fn power_on(&mut self, place: usize) -> Option<Guest> {
        self.powered_on += 1;
        let spec = Spec {
            salt: salt_of(place),
            swap_slots: PAGES / 2,
            zip_pages: 4,
            vma_budget: self.vmas[place / 2],
            threads: THREADS,
            inline: place == 2,
            ..Spec::of(KINDS[place % 2], PAGES)
        };
        let guest = self.host.power_on(VmId(self.powered_on), spec)?;
        let rates = (SCAN_RATE, SAMPLE_PERIOD);
        let worker = &guest.worker.handle;
        worker.change(|it| (it.scan_rate, it.sample_period) = rates);
        Some(guest)
    }

    pub(super) fn step(&mut self, place: usize, step: Step) {
        if let Step::DieInWrites(gfn, content) = step {
            self.die(place, gfn, content);
        } else if let Some(guest) = &mut self.guests[place] {
            act(&self.host, guest, step);
        }
        let guests: Vec<&Guest> = self.guests.iter().flatten().collect();
        self.host.check(&guests);
    }

    fn die(&mut self, place: usize, gfn: u32, content: Content) {
        if let Some(mut guest) = self.guests[place].take() {
            for neighbour in gfn..(gfn + THREADS as u32).min(PAGES) {
                begin(&mut guest, neighbour, content);
            }
            self.host.bury(guest);
        }
        self.guests[place] = self.power_on(place);
    }

    pub(super) fn end(mut self) {
        self.host.end(self.guests.drain(..).flatten());
    }
}

pub(super) fn salt_of(place: usize) -> usize {
    usize::from(place == GUESTS - 1)
}

const fn thread_of(gfn: u32) -> usize {
    gfn as usize % THREADS
}

fn cache_of(vm: &Vm) -> &CacheFile {
    vm.swap
        .cache
        .as_ref()
        .expect("every simulated guest has one")
}

/// Does something, unless the thread of the page still waits.
fn access(guest: &mut Guest, gfn: u32, op: Op) {
    if guest.drive(thread_of(gfn)) {
        guest.attempt(thread_of(gfn), gfn, op);
    }
}

/// The same with a write that is left unfinished once its fault has been answered.
fn begin(guest: &mut Guest, gfn: u32, content: Content) {
    if guest.drive(thread_of(gfn)) {
        let thread = &mut guest.threads[thread_of(gfn)];
        thread.begin(Gfn(gfn), Op::Write(Box::new(content.page())));
        thread.poll();
        guest.turn();
    }
}

fn act(host: &Host, guest: &mut Guest, step: Step) {
    let vm = Arc::clone(&guest.vm);
    match step {
        Step::Read(gfn) => access(guest, gfn, Op::Read),
        Step::Write(run, content) => {
            for gfn in run.iter() {
                access(guest, gfn.0, Op::Write(Box::new(content.page())));
            }
        }
        Step::WriteAndPause(gfn, content) => begin(guest, gfn, content),
        Step::Wait(millis) => {
            guest.worker.wait(Duration::from_millis(millis));
            check_trimmed(guest);
        }
        Step::Ask(requests) => serve(host, guest, requests).expect("the session lives"),
        Step::Evict(want, means) => evict(guest, want, means),
        Step::Unswap(rate) => vm.orders.set_unswap(rate),
        Step::Cold(age, refaults) => guest.cold(Duration::from_millis(age), refaults),
        Step::Large(large) => guest.worker.handle.change(|it| it.large = large),
        Step::SwapFails(errno) => guest.disk.set_failing(errno),
        Step::CacheFails(errno) => guest.cache_disk.set_failing(errno),
        Step::CacheSize(pages) => host.cache.set_size(Pages(pages)),
        Step::CacheCap(pages) => cache_of(&vm).set_cap(pages),
        Step::ZipCap(pages) => {
            let mut zip = vm.zip.lock();
            zip.set_max_pages(pages);
            zip.set_limit((pages % 2 == 1).then_some(pages / 2));
        }
        Step::SwapSlots(slots) => vm.swap.file.resize(slots).expect("a disk with room"),
        Step::Vmas(runs) => guest.space.accepts.set(runs),
        Step::ForgetMappings(run) => {
            for gfn in run.iter() {
                guest.space.forget_mapping(gfn);
                access(guest, gfn.0, Op::Read);
            }
        }
        Step::Rest => {
            guest.space.line.clock.pass(Duration::from_secs(1));
            guest.turn();
        }
        Step::Block(blocked) => guest.block(blocked),
        Step::Ceiling(pages) => {
            vm.orders.set_ceiling(pages.map(Pages));
            vm.parking.ring();
        }
        Step::DieInWrites(..) => {}
    }
    // Threads that wait for memory get what this step has freed.
    for thread in 0..THREADS {
        let at = guest.threads[thread].at();
        if at.is_some_and(|at| guest.faults.core.waiting.is_starved(at)) {
            guest.drive(thread);
        }
    }
}

/// Evicts, and checks that no page left by means that the order forbids.
fn evict(guest: &mut Guest, want: u64, means: Means) {
    let by_means = |guest: &Guest| {
        let stats = &guest.vm.stats;
        let swapped = stats.evict_swap.get() + stats.spilled.get();
        (stats.evict_zip.get(), swapped)
    };
    // A cache above its cap or its limit is trimmed by swapping, whatever the order says.
    guest.worker.wait(Duration::ZERO);
    let trims = {
        let zip = guest.vm.zip.lock();
        zip.is_above_limit() || zip.limit().is_some()
    };
    let (before, cold) = (by_means(guest), guest.vm.stats.cold.get());
    assert!(guest.evict_by(want, means) <= want);
    let after = by_means(guest);
    // Cold pages leave by means of their own.
    let cold = guest.vm.stats.cold.get() > cold;
    assert!(means.compress || cold || after.0 == before.0, "compressed");
    assert!(
        means.swap || cold || trims || after.1 == before.1,
        "swapped"
    );
}

/// Whether the answer to a request has come by now. If it has, it is compared with what became of the pages; the slice
/// has their homes before the step that answered.
type Asked = Box<dyn Fn(&Guest, &[Home]) -> bool>;

fn when<T: 'static>(answer: Receiver<T>, check: impl Fn(&Guest, &[Home], T) + 'static) -> Asked {
    Box::new(move |guest, before| {
        let answer = answer.try_recv();
        answer.map(|it| check(guest, before, it)).is_ok()
    })
}

/// Asks for everything at once, and lets the worker go on step by step; each step answers one request at most.
pub(super) fn serve(
    host: &Host,
    guest: &mut Guest,
    requests: Vec<Request>,
) -> Result<(), EngineError> {
    let asked = requests.into_iter();
    let mut asked: Vec<Asked> = asked.map(|request| request.ask(host, guest)).collect();
    loop {
        let before: Vec<Home> = guest.homes().map(|(_, home)| home).collect();
        let may_hold = guest.vm.held().max(guest.vm.orders.ceiling());
        let goes_on = guest.worker.try_step()?;
        assert!(guest.vm.held() <= may_hold, "{:?}", guest.vm.held());
        asked.retain(|is_answered| !is_answered(guest, &before));
        if !goes_on {
            break;
        }
    }
    assert!(asked.is_empty(), "the worker rests and has not answered");
    Ok(())
}

impl Request {
    fn ask(self, host: &Host, guest: &Guest) -> Asked {
        let worker = &guest.worker.handle;
        match self {
            Self::Inflate(run) => {
                guest.space.set_unwanted(run, true);
                let answer = ask(worker, |answer| Job::Inflate(vec![run], answer));
                when(answer, move |guest, before, statuses| {
                    guest.space.set_unwanted(run, false);
                    check_ballooned(guest, run, &statuses, before, true);
                })
            }
            Self::Deflate(run) => {
                let answer = ask(worker, |answer| Job::Deflate(vec![run], answer));
                when(answer, move |guest, before, statuses| {
                    check_ballooned(guest, run, &statuses, before, false);
                })
            }
            Self::Attach(request) => {
                guest.space.set_unwanted(request.pages, true);
                let answer = ask(worker, |answer| Job::Attach(request, answer));
                when(answer, move |guest, _, attached| {
                    guest.space.set_unwanted(request.pages, false);
                    check_attached(guest, request, attached);
                })
            }
            Self::ReleaseAll => when(ask(worker, Job::ReleaseAll), |_, _, ()| {}),
            Self::Join(pool) => {
                host.join(worker, pool);
                Box::new(|_, _| true)
            }
        }
    }
}

fn check_attached(guest: &Guest, request: AttachRequest, attached: u32) {
    let AttachRequest { pages, source } = request;
    assert!(attached <= pages.count);
    // Pages that the guest brought by itself are in RAM, but have their old home until they are settled.
    guest.vm.settle_done();
    let sources = guest.space.memory()[source.index()..][..pages.count as usize].to_vec();
    for ((at, gfn), source) in (0..).zip(pages.iter()).zip(sources) {
        let content = guest.content_of(gfn, guest.vm.table.entry(gfn).home());
        let page = &mut guest.space.memory()[gfn.index()];
        // Pages behind the reported ones may have been attached too, or are as they were.
        if at < attached || content != *page {
            assert!(content == source, "{gfn} has neither bytes");
            *page = source;
        }
    }
}

/// Checks that each page of a run went into the balloon, or came out of it, as the answer says.
fn check_ballooned(
    guest: &Guest,
    run: GfnRun,
    statuses: &[StatusRun],
    before: &[Home],
    inflated: bool,
) {
    let told = statuses.iter().flat_map(|it| it.run.iter());
    assert!(told.eq(run.iter()), "each once");
    let of_each = |it: &StatusRun| vec![it.status; it.run.count as usize];
    for (gfn, status) in run.iter().zip(statuses.iter().flat_map(of_each)) {
        let (before, entry) = (before[gfn.index()], guest.vm.table.entry(gfn));
        let is_right = match (status, inflated) {
            (PageStatus::Ok, true) => {
                guest.space.memory()[gfn.index()] = PageBuf::zeroed();
                entry.home() == Home::Ballooned
            }
            (PageStatus::Ok, false) => (before, entry.home()) == (Home::Ballooned, Home::Untouched),
            (PageStatus::AlreadyLocked, true) => before == Home::Ballooned,
            (PageStatus::NotLocked, false) => before != Home::Ballooned,
            (PageStatus::Busy, true) => entry.home() != Home::Ballooned,
            (PageStatus::Busy, false) => entry.is_locked() || guest.space.is_taken(gfn),
            _ => false,
        };
        assert!(is_right, "{gfn} is {status:?}: {before:?}, {entry:?}");
    }
}

/// Checks that the cache is trimmed once the worker's pause is over. It may stay above its cap or limit only if swap
/// takes nothing, or if the guest has claimed a page. The daemon itself has no compressed page locked here.
fn check_trimmed(guest: &mut Guest) {
    // More than once, because pages that come back from the swap file make room there after the cache was trimmed in the
    // same turn, in vain. That is tried again after a pause.
    for _ in 0..TRIMS {
        guest.worker.wait(super::worker::PAUSE);
        // Once more, because cold pages come last in a turn and may just have filled the cache beyond its limit.
        guest.worker.wait(Duration::ZERO);
        let vm = &guest.vm;
        let is_taking = guest.homes().any(|(gfn, _)| guest.space.is_taken(gfn));
        let is_refused = vm.is_swap_failing() || vm.swap.room() == Pages(0);
        if !vm.zip.lock().is_above_limit() || is_refused || is_taking {
            return;
        }
    }
    panic!("the cache stays above its limit, and the swap file has room");
}

/// What a search is not required to see.
const NEVER: [&str; 6] = [
    // Two threads that run at once.
    "mismatched",
    "parked",
    // A handful of times in a search, and so now and then not at all; each has searches of its own.
    "broken",
    "cache_errors",
    "cold_back",
    "inline_swap_ins",
];

#[test]
fn guests_any_steps_lose_no_byte_and_nothing_is_miscounted() {
    let coverage = Coverage::default();
    search(CASES, steps(), |steps| {
        let mut world = World::new();
        for (place, step) in steps {
            world.step(place, step);
        }
        let guests = world.guests.iter().flatten();
        guests.for_each(|guest| coverage.note(&guest.vm));
        world.end();
    });
    coverage.check(&NEVER);
}
