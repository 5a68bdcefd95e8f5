//! Random steps of several guests and of the daemon, one at a time, checked after each.

use memvisor_guest_agent::protocol::balloon::{PageStatus, StatusRun};
use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{Guest, Host, Op, Spec};
use crate::balloon;
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::reclaim::trim_cache;
use crate::share::{self, AttachRequest, Leaver, Left};
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, Pages, VmId};
use crate::vm::{Blocked, Means};

/// Guests that run at a time; the last has a salt of its own.
const GUESTS: usize = 4;
const CASES: u32 = 96;
const PAGES: u32 = 40;
/// Pages that are used more than others, so that one of them has many adventures.
const HOT: u32 = 6;
const THREADS: usize = 2;
/// All pages of all guests would need more than twice as much.
const BUDGET: u64 = GUESTS as u64 * METADATA + 70;
const RESERVE: u64 = 6;
const METADATA: u64 = 17;

/// What a guest writes; few contents, so that pages meet others like them.
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

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Read(u32),
    Write(u32, Content),
    /// Writes a run of pages, as programs do.
    WriteRun(u32, u32, Content),
    /// Begins a write and leaves it when the fault has been answered.
    WriteAndPause(u32, Content),
    Scan(u32),
    Follow,
    Evict(u64, Means),
    /// Shared pages get memory of their own.
    Leave,
    /// A period of sampling ends and another begins.
    Sample,
    Inflate(u32, u32),
    Deflate(u32, u32),
    ReleaseAll,
    /// So many pages get the bytes of those from the last number on.
    Attach(u32, u32, u32),
    SwapFails(Option<bool>),
    ZipCap(u32),
    TrimCache(u32),
    SwapSlots(u32),
    RefuseVmas(u32),
    AcceptVmas,
    /// The guest's kernel drops mappings of its own accord, and the guest goes on.
    ForgetMappings(u32, u32),
    /// A guest with memory of its own has not used it for a while.
    Rest,
    Block(Blocked),
    /// So many pages may be held; `None`: all.
    Ceiling(Option<u64>),
    DieInWrites(u32, Content),
}

fn means() -> impl Strategy<Value = Means> {
    let some = (any::<bool>(), any::<bool>());
    prop_oneof![
        3 => Just(Means::ALL),
        1 => some.prop_map(|(compress, swap)| Means { compress, swap }),
    ]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let gfn = || prop_oneof![0..PAGES, 0..HOT];
    let step = prop_oneof![
        10 => gfn().prop_map(Step::Read),
        14 => (gfn(), contents()).prop_map(|(gfn, content)| Step::Write(gfn, content)),
        5 => (gfn(), 2..20u32, contents()).prop_map(|(gfn, n, c)| Step::WriteRun(gfn, n, c)),
        3 => (gfn(), contents()).prop_map(|(gfn, content)| Step::WriteAndPause(gfn, content)),
        10 => (1..2 * PAGES).prop_map(Step::Scan),
        5 => Just(Step::Follow),
        9 => (1..30u64, means()).prop_map(|(want, means)| Step::Evict(want, means)),
        4 => Just(Step::Sample),
        1 => Just(Step::Leave),
        3 => (gfn(), 1..10u32).prop_map(|(gfn, count)| Step::Inflate(gfn, count)),
        3 => (gfn(), 1..10u32).prop_map(|(gfn, count)| Step::Deflate(gfn, count)),
        1 => Just(Step::ReleaseAll),
        5 => (gfn(), 1..12u32, gfn()).prop_map(|(gfn, n, source)| Step::Attach(gfn, n, source)),
        1 => prop::option::of(any::<bool>()).prop_map(Step::SwapFails),
        1 => (0..5u32).prop_map(Step::ZipCap),
        2 => (1..9u32).prop_map(Step::TrimCache),
        1 => (0..=PAGES).prop_map(Step::SwapSlots),
        1 => (0..4u32).prop_map(Step::RefuseVmas),
        2 => Just(Step::AcceptVmas),
        2 => (gfn(), 1..12u32).prop_map(|(gfn, count)| Step::ForgetMappings(gfn, count)),
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
        // A period of sampling wants two for each of its pages.
        Self::with(BUDGET, [12, 200])
    }

    /// A host with as much memory as its guests may want, whose guests are not short of VMAs.
    pub(super) fn roomy() -> Self {
        let each = METADATA + 2 * u64::from(PAGES);
        Self::with(GUESTS as u64 * each + RESERVE, [200; 2])
    }

    fn with(budget: u64, vmas: [u32; GUESTS / 2]) -> Self {
        let mut world = Self {
            host: Host::new(budget, RESERVE, 2, 4 * PAGES),
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
            kind: [EngineKind::Uffd, EngineKind::Mprotect][place % 2],
            pages: PAGES,
            salt: usize::from(place == GUESTS - 1),
            swap_slots: PAGES / 2,
            zip_pages: 4,
            vma_budget: self.vmas[place / 2],
            threads: THREADS,
            inline: place == 2,
            ahead: 15,
        };
        self.host.power_on(VmId(self.powered_on), spec)
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
        for guest in self.guests.drain(..).flatten() {
            self.host.bury(guest);
        }
        self.host.check_empty();
    }
}

const fn thread_of(gfn: u32) -> usize {
    gfn as usize % THREADS
}

/// Lets the thread of the page end what it does; `false`: it must wait.
fn is_free(guest: &mut Guest, gfn: u32) -> bool {
    guest.threads.len() > thread_of(gfn) && guest.drive(thread_of(gfn))
}

fn access(guest: &mut Guest, gfn: u32, op: Op) {
    if is_free(guest, gfn) {
        guest.threads[thread_of(gfn)].begin(Gfn(gfn), op);
        guest.drive(thread_of(gfn));
    }
}

fn begin(guest: &mut Guest, gfn: u32, content: Content) {
    if is_free(guest, gfn) {
        let thread = &mut guest.threads[thread_of(gfn)];
        thread.begin(Gfn(gfn), Op::Write(Box::new(content.page())));
        thread.poll();
        guest.turn();
    }
}

fn act(host: &Host, guest: &mut Guest, step: Step) {
    let vm = std::sync::Arc::clone(&guest.vm);
    let run = |gfn: u32, count: u32| GfnRun::new(Gfn(gfn), count.min(PAGES - gfn));
    match step {
        Step::Read(gfn) => access(guest, gfn, Op::Read),
        Step::Write(gfn, content) => access(guest, gfn, Op::Write(Box::new(content.page()))),
        Step::WriteRun(gfn, count, content) => {
            for gfn in run(gfn, count).iter() {
                access(guest, gfn.0, Op::Write(Box::new(content.page())));
            }
        }
        Step::WriteAndPause(gfn, content) => begin(guest, gfn, content),
        Step::Scan(count) => {
            let found = guest.scanner.scan(&vm, &*host.peers, count);
            found.expect("the session lives");
        }
        Step::Follow => {
            let nudged = host.peers.nudged(vm.id);
            let followed = guest.scanner.follow(&vm, &*host.peers, nudged);
            followed.expect("the session lives");
        }
        Step::Evict(want, means) => evict(guest, want, means),
        Step::Leave => leave(host, guest),
        Step::Sample => guest.sampler.next_period(&vm).expect("the session lives"),
        Step::Inflate(gfn, count) => inflate(guest, run(gfn, count)),
        Step::Deflate(gfn, count) => deflate(guest, run(gfn, count)),
        Step::ReleaseAll => balloon::release_all(&vm),
        Step::Attach(gfn, count, source) => {
            attach(host, guest, run(gfn, count.min(PAGES - source)), source);
        }
        Step::SwapFails(how) => {
            let errno = how.map(|full| if full { Errno::ENOSPC } else { Errno::EIO });
            guest.disk.set_failing(errno);
        }
        Step::ZipCap(pages) => vm.zip.lock().set_max_pages(pages),
        Step::TrimCache(limit) => trim(guest, limit),
        Step::SwapSlots(slots) => vm.swap.resize(slots).expect("a disk with room"),
        Step::RefuseVmas(after) => guest.space.refuse_after(after),
        Step::AcceptVmas => guest.space.accept(),
        Step::ForgetMappings(gfn, count) => {
            for gfn in run(gfn, count).iter() {
                guest.space.forget_mapping(gfn);
                access(guest, gfn.0, Op::Read);
            }
        }
        Step::Rest => guest.faults.rest().expect("the guest can go on"),
        Step::Block(blocked) => {
            vm.orders.set_blocked(blocked);
            vm.parking.ring();
        }
        Step::Ceiling(pages) => {
            vm.orders.set_ceiling(pages.map(Pages));
            vm.parking.ring();
        }
        Step::DieInWrites(..) => {}
    }
    // Whatever came free is found by who waits for it.
    for thread in 0..THREADS {
        if guest.threads[thread]
            .at()
            .is_some_and(|at| guest.faults.is_starved(at))
        {
            guest.drive(thread);
        }
    }
}

fn leave(host: &Host, guest: &mut Guest) {
    let mut leaver = Leaver::default();
    let vm = std::sync::Arc::clone(&guest.vm);
    vm.set_sharing(false);
    let found = guest.scanner.scan(&vm, &*host.peers, PAGES);
    found.expect("the session lives");
    let left = leaver.step(&vm).expect("the session lives");
    let shared = vm.table.count(Home::Shared(FrameId(0)));
    assert!(left != Left::Everything || shared == 0);
    vm.set_sharing(true);
}

/// Evicts, and looks that no page left by what it may not.
fn evict(guest: &mut Guest, want: u64, means: Means) {
    let by_means = |guest: &Guest| {
        let stats = &guest.vm.stats;
        let swapped = stats.evict_swap.get() + stats.spilled.get();
        (stats.evict_zip.get(), swapped)
    };
    let before = by_means(guest);
    let evicted = guest.evictor.evict(&guest.vm, Pages(want), means);
    assert!(evicted.expect("the session lives") <= Pages(want));
    let after = by_means(guest);
    assert!(means.compress || after.0 == before.0, "compressed");
    assert!(means.swap || after.1 == before.1, "swapped");
}

fn attach(host: &Host, guest: &Guest, pages: GfnRun, source: u32) {
    let vm = &guest.vm;
    let home = |gfn: Gfn| vm.table.entry(gfn).home();
    let before: Vec<Home> = pages.iter().map(home).collect();
    let sources = guest.memory.pages()[source as usize..][..pages.count as usize].to_vec();
    let may_hold = vm.held().max(vm.orders.ceiling());
    let request = AttachRequest {
        pages,
        source: Gfn(source),
    };
    guest.space.set_attaching(true);
    let attached = share::attach(vm, &*host.peers, request).expect("the session lives");
    guest.space.set_attaching(false);
    assert!(attached <= pages.count);
    assert!(vm.held() <= may_hold, "{:?}", vm.held());
    for ((at, gfn), (before, source)) in (0..).zip(pages.iter()).zip(before.iter().zip(sources)) {
        // Pages behind those that are told of have the bytes, or are as they were.
        if at < attached || home(gfn) != *before {
            guest.memory.pages()[gfn.index()] = source;
        }
    }
}

fn pages_of(statuses: &[StatusRun]) -> impl Iterator<Item = (Gfn, PageStatus)> {
    let pages = |run: &StatusRun| {
        let status = run.status;
        run.run.iter().map(move |gfn| (gfn, status))
    };
    statuses.iter().flat_map(pages)
}

fn inflate(guest: &mut Guest, run: GfnRun) {
    let before: Vec<Home> = run
        .iter()
        .map(|gfn| guest.vm.table.entry(gfn).home())
        .collect();
    guest.space.set_giving_up(true);
    let statuses = balloon::inflate(&guest.vm, &[run]).expect("the session lives");
    guest.space.set_giving_up(false);
    let mut pages = pages_of(&statuses);
    for (gfn, before) in run.iter().zip(before) {
        let (named, status) = pages.next().expect("every page has a status");
        assert_eq!(named, gfn);
        let entry = guest.vm.table.entry(gfn);
        match status {
            PageStatus::Ok => {
                assert_eq!(entry.home(), Home::Ballooned);
                guest.memory.forget(gfn);
            }
            PageStatus::AlreadyLocked => assert_eq!(before, Home::Ballooned),
            PageStatus::Busy => assert_eq!(entry.home(), before),
            other => panic!("{gfn} is {other:?}"),
        }
    }
    assert_eq!(pages.next(), None);
}

/// The daemon has no page locked that is compressed, so either the cache comes down, or swap takes nothing,
/// or the guest is bringing a page back.
fn trim(guest: &Guest, limit: u32) {
    let vm = &guest.vm;
    vm.give_back_emptied();
    let (before, above) = {
        let zip = vm.zip.lock();
        (zip.stored(), zip.is_above_cap())
    };
    let moved = trim_cache(vm, limit);
    assert!(moved <= Pages(u64::from(limit)) && (above || moved == Pages(0)));
    assert_eq!(vm.zip.lock().stored().0, before.0 - moved.0);
    let swap = vm.swap.stats();
    let is_taking = guest.homes().any(|(gfn, _)| guest.is_taken(gfn));
    let is_refused = vm.is_swap_failing() || swap.used >= swap.slots;
    assert!(moved > Pages(0) || !above || is_refused || is_taking);
}

fn deflate(guest: &Guest, run: GfnRun) {
    let before: Vec<Home> = run
        .iter()
        .map(|gfn| guest.vm.table.entry(gfn).home())
        .collect();
    let statuses = balloon::deflate(&guest.vm, &[run]);
    for ((gfn, status), before) in pages_of(&statuses).zip(before) {
        let entry = guest.vm.table.entry(gfn);
        match status {
            PageStatus::Ok => {
                assert_eq!((before, entry.home()), (Home::Ballooned, Home::Untouched));
            }
            PageStatus::NotLocked => assert_ne!(before, Home::Ballooned),
            PageStatus::Busy => assert!(entry.is_locked() || guest.is_taken(gfn)),
            other => panic!("{gfn} is {other:?}"),
        }
    }
}

/// What happened in all runs together; what never happened was not tested.
fn witnessed(guest: &Guest) -> [(&'static str, u64); 23] {
    let stats = &guest.vm.stats;
    [
        ("first_touch", stats.first_touch.get()),
        ("refill_zip", stats.refill_zip.get()),
        ("refill_swap", stats.refill_swap.get()),
        ("breaks", stats.breaks.get()),
        ("inline_refills", stats.inline_refills.get()),
        ("inline_breaks", stats.inline_breaks.get()),
        ("pops", stats.pops.get()),
        ("merged", stats.merged.get()),
        ("attached", stats.attached.get()),
        ("first_users", stats.first_users.get()),
        ("zeroed", stats.zeroed.get()),
        ("volatile", stats.volatile.get()),
        ("vma_refused", stats.vma_refused.get()),
        ("evict_zero", stats.evict_zero.get()),
        ("evict_shared", stats.evict_shared.get()),
        ("evict_zip", stats.evict_zip.get()),
        ("evict_swap", stats.evict_swap.get()),
        ("spilled", stats.spilled.get()),
        ("evict_failed", stats.evict_failed.get()),
        ("inflated", stats.inflated.get()),
        ("deflated", stats.deflated.get()),
        ("double_paged", stats.double_paged.get()),
        (
            "estimates",
            u64::from(guest.vm.activity.estimate().is_some_and(|e| e.fast > 0.0)),
        ),
    ]
}

#[test]
fn guests_any_steps_lose_no_byte_and_nothing_is_miscounted() {
    let all = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    });
    let result = runner.run(&steps(), |steps| {
        let mut world = World::new();
        for (place, step) in steps {
            world.step(place, step);
        }
        for (name, count) in world.guests.iter().flatten().flat_map(witnessed) {
            *all.borrow_mut().entry(name).or_insert(0) += count;
        }
        world.end();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let all = all.into_inner();
    assert!(
        all.values().all(|count| *count > 0),
        "never tested: {all:?}"
    );
}
