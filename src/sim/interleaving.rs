//! Guests, fault threads, workers and the policy as tasks, in any schedule.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use memvisor_wire::balloon::{PageStatus, StatusRun};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, Scope, yield_now};

use super::scenario::{Coverage, finish, order, serve, wait_for};
use super::worker::{FAST, ask};
use super::{Guest, GuestThread, Host, Op, Spec, scanning};
use crate::compress::samples;
use crate::engine::EngineKind::{self, Mprotect, Uffd};
use crate::page::Urgency;
use crate::reclaim::{Cold, Job, LargePages, WorkerHandle};
use crate::share::AttachRequest;
use crate::sync::{self, AtomicU32, Ordering};
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::Vm;

/// Schedules of each test, unless `MEMVISOR_MODEL_ITERATIONS` says otherwise.
const SCHEDULES: usize = 1_800;
const PAGES: u32 = 6;
const METADATA: u64 = 17;
/// Pages left to the guests once the rest of the host is taken, when each guest has one page of its own in RAM or none.
const LEFT: u64 = 3 + RESERVE;
const RESERVE: u64 = 2;
const VMA_BUDGET: u32 = 100;
/// How many things each thread of a guest does in a schedule, and how many orders the policy gives both guests.
const OPS: usize = 6;
const ORDERS: usize = 12;
/// What does not happen while disks work, or happens too seldom to be relied on.
const NEVER: [&str; 7] = [
    "evict_failed",
    "swap_errors",
    "cache_errors",
    "demoted",
    "mismatched",
    "enlarged",
    "broken",
];

/// What happens only to guests that serve themselves.
const INLINE: [&str; 4] = [
    "inline_touches",
    "inline_refills",
    "inline_swap_ins",
    "inline_breaks",
];

/// Waits for an answer of a worker.
fn answer<T>(wait: &Receiver<T>) -> T {
    wait_for("who has asked a worker", |_| wait.try_recv().ok())
}

fn common(number: u32) -> PageBuf {
    PageBuf([number as u8 % 4 + 1; PAGE_SIZE])
}

/// A page that is zero, common to many, compressible to about half, or hardly compressible.
fn content() -> PageBuf {
    match thread_rng().gen_range(0..8) {
        0 => PageBuf::zeroed(),
        number @ 1..=4 => common(number),
        5 | 6 => samples::mixed(thread_rng().gen_range(0..1000), 1800),
        _ => samples::mixed(thread_rng().gen_range(0..1000), 2200),
    }
}

/// The program of one thread of a guest, with what the agents of the guest do for it.
struct Program<'a> {
    guest: &'a mut GuestThread,
    threads: u32,
    worker: WorkerHandle,
}

impl Program<'_> {
    /// A page that only this thread uses: each thread owns every `threads`th page, so it must read what it wrote.
    fn page(&self) -> Gfn {
        let row = thread_rng().gen_range(0..PAGES / self.threads);
        Gfn(row * self.threads + self.guest.channel as u32)
    }

    fn run(self) {
        for _ in 0..OPS {
            let gfn = self.page();
            match thread_rng().gen_range(0..14) {
                0..6 => finish(self.guest, gfn, Op::Write(Box::new(content()))),
                6..9 => finish(self.guest, gfn, Op::Read),
                9 => self.guest.space.forget_mapping(gfn),
                10 => self.inflate(gfn),
                11 => drop(answer(&self.deflate(gfn))),
                _ => self.attach(gfn),
            }
        }
    }

    /// Gives a page to the balloon. Sometimes the agent wants it back before it has the answer.
    fn inflate(&self, gfn: Gfn) {
        let run = GfnRun::single(gfn);
        self.guest.space.set_unwanted(run, true);
        let inflated = ask(&self.worker, |answer| Job::Inflate(vec![run], answer));
        let deflated = thread_rng().gen_bool(0.3).then(|| self.deflate(gfn));
        let status = answer(&inflated).first().map(|run| run.status);
        if status == Some(PageStatus::Ok) {
            self.guest.space.memory()[gfn.index()] = PageBuf::zeroed();
        }
        self.guest.space.set_unwanted(run, false);
        if let Some(deflated) = &deflated {
            answer(deflated);
        }
    }

    fn deflate(&self, gfn: Gfn) -> Receiver<Vec<StatusRun>> {
        let run = GfnRun::single(gfn);
        ask(&self.worker, |answer| Job::Deflate(vec![run], answer))
    }

    fn attach(&self, gfn: Gfn) {
        let (pages, source) = (GfnRun::single(gfn), self.page());
        self.guest.space.set_unwanted(pages, true);
        let request = AttachRequest { pages, source };
        if answer(&ask(&self.worker, |answer| Job::Attach(request, answer))) > 0 {
            let mut pages = self.guest.space.memory();
            pages[gfn.index()] = pages[source.index()].clone();
        }
        self.guest.space.set_unwanted(pages, false);
    }
}

/// Starts the tasks of one guest: its threads, its fault thread and its worker. `running` counts the threads of all
/// guests; fault threads and workers go on until it is zero, because a guest may wait for memory that another holds.
fn start<'a>(scope: &'a Scope<'a, '_>, guest: &'a mut Guest, running: &'a AtomicU32) {
    let threads = u32::try_from(guest.threads.len()).expect("a few");
    for thread in &mut guest.threads {
        let program = Program {
            guest: thread,
            threads,
            worker: guest.worker.handle.clone(),
        };
        scope.spawn(move || {
            program.run();
            running.fetch_sub(1, Ordering::SeqCst);
        });
    }
    let (faults, worker) = (&mut guest.faults, &mut guest.worker);
    scope.spawn(|| serve(running, || faults.turn().expect("the guest can go on")));
    scope.spawn(|| serve(running, || worker.step()));
}

fn spec(kind: EngineKind, threads: usize) -> Spec {
    Spec {
        zip_pages: 1,
        vma_budget: VMA_BUDGET,
        threads,
        // The least there can be: seldom are many neighbours in RAM here.
        large_page: 2,
        ..Spec::of(kind, PAGES)
    }
}

/// Two guests in one sharing domain, with memory for half of their pages.
#[derive(Clone, Copy)]
struct Scene {
    specs: [Spec; 2],
    /// The VMA budget falls at times. Then a break also breaks the rest of its run, with pages of the other thread.
    is_short_of_vmas: bool,
    /// A third guest, which shares frames with the others, dies at some time.
    is_fatal: bool,
}

impl Scene {
    /// Plays the scene in any schedule.
    fn model(self) {
        let coverage = Arc::new(Coverage::default());
        let inside = Arc::clone(&coverage);
        let schedules = sync::model(SCHEDULES, move || self.play(&inside));
        let mut never = NEVER.to_vec();
        if !self.specs[0].inline {
            never.extend(INLINE);
        }
        if !self.is_short_of_vmas {
            never.push("vma_refused");
        }
        // Fewer than usual are for repeating a failure.
        if schedules >= SCHEDULES {
            coverage.check(&never);
        }
    }

    fn play(self, coverage: &Coverage) {
        let (host, mut guests) = self.prepare();
        let elsewhere = host.budget.free().0 - LEFT;
        assert!(host.budget.take(elsewhere, Urgency::Touch));
        let doomed = guests.split_off(self.specs.len());
        let threads: usize = guests.iter().map(|guest| guest.threads.len()).sum();
        let running = AtomicU32::new(u32::try_from(threads).expect("a few"));
        thread::scope(|scope| {
            scope.spawn(|| die(&host, doomed));
            for guest in &mut guests {
                start(scope, guest, &running);
            }
            self.govern(&host, &running);
        });
        host.budget.give(elsewhere);
        host.check(&guests.iter().collect::<Vec<_>>());
        for guest in &mut guests {
            order(&guest.vm, 0);
            guest.vm.vmas.set_budget(VMA_BUDGET);
            // A running fault thread takes unused credits back after a rest. Here they must be back at once, because a
            // guest that leaves its pool needs the memory.
            guest.vm.take_back_credits();
            coverage.note(&guest.vm);
        }
        scanning::settle(&host, guests.iter_mut().collect(), FAST);
        host.end(guests);
    }

    /// Plays the policy and the operator: gives orders to both guests and lets time pass.
    fn govern(self, host: &Host, running: &AtomicU32) {
        let vms = [VmId(1), VmId(2)].map(|id| host.peers.get(id).expect("it lives"));
        let any = || &vms[thread_rng().gen_range(0..vms.len())];
        let pass = |millis| host.clock.pass(Duration::from_millis(millis));
        vms.iter()
            .for_each(|(_, worker)| worker.change(|it| it.scan_rate = FAST));
        for _ in 0..ORDERS {
            let (vm, worker) = any();
            self.order(host, vm, worker);
            pass(thread_rng().gen_range(0..100));
            yield_now();
        }
        for (vm, worker) in &vms {
            vm.zip.lock().set_max_pages(1);
            vm.orders.set_unswap(None);
            worker.change(|it| it.scan_rate = 0);
            worker.change(|it| it.sample_period = Duration::ZERO);
            worker.change(|it| it.cold = Cold::default());
            worker.change(|it| it.large = LargePages::Break);
            host.join(worker, Some(0));
        }
        while running.load(Ordering::SeqCst) > 0 {
            // Not every time: if all tasks take equal turns, each page could be evicted again before its guest has
            // used it.
            let is_short = host.budget.starving() > 0 && thread_rng().gen_bool(0.5);
            order(&any().0, if is_short { 2 } else { 0 });
            pass(20);
            yield_now();
        }
    }

    fn order(self, host: &Host, vm: &Vm, worker: &WorkerHandle) {
        match thread_rng().gen_range(0..14) {
            0 => worker.change(|it| it.scan_rate = FAST * u32::from(thread_rng().gen_bool(0.7))),
            1 => worker.change(|it| it.sample_period = Duration::from_millis(50)),
            2 => vm.zip.lock().set_max_pages(thread_rng().gen_range(0..2)),
            3 => {
                let pool = thread_rng().gen_range(0..3_usize).checked_sub(1);
                host.join(worker, pool);
            }
            4 if self.is_short_of_vmas => {
                vm.vmas
                    .set_budget([1, VMA_BUDGET][thread_rng().gen_range(0..2)]);
            }
            5..8 => order(vm, thread_rng().gen_range(0..4)),
            8 => {
                vm.orders.set_unswap(NonZeroU32::new(FAST));
                worker.suggest(Job::Wake);
            }
            9 => worker.change(|it| {
                it.cold = Cold {
                    age: Duration::from_millis(50),
                    refaults: u32::MAX,
                    compress: true,
                }
            }),
            10 | 13 => host.cache.set_size(Pages(thread_rng().gen_range(0..4))),
            11 | 12 => worker.change(|it| {
                it.large = match thread_rng().gen_range(0..4) {
                    0 => LargePages::Break,
                    1 => LargePages::Keep,
                    _ => LargePages::Grow { all: true },
                }
            }),
            // Only time passes.
            _ => {}
        }
    }

    /// A host whose guests share what they can and have the rest in their caches, so that every task has pages to
    /// contend for.
    fn prepare(self) -> (Host, Vec<Guest>) {
        let third = self.is_fatal.then_some(self.specs[0]);
        let count = 2 + u64::from(self.is_fatal);
        let room = count * (METADATA + u64::from(PAGES)) + 4 + RESERVE;
        let host = Host::new(room, RESERVE, 2, 64);
        let mut guests: Vec<Guest> = Vec::new();
        for (id, spec) in (1..).zip(self.specs.into_iter().chain(third)) {
            let mut guest = host.start(id, spec);
            // A run that all guests have in common, then pages of its own.
            guest.write_all(|gfn| match gfn {
                0..4 => common(gfn),
                _ => samples::mixed(u64::from(id * PAGES + gfn), 1800),
            });
            guest.scan();
            guest.scan();
            guest.vm.take_back_credits();
            guests.push(guest);
        }
        for guest in &mut guests {
            guest.worker.wait(Duration::ZERO);
            guest.evict(2);
        }
        (host, guests)
    }
}

/// A guest dies after a random number of turns. Until then its memory is missing to the others, which have too little.
fn die(host: &Host, doomed: Vec<Guest>) {
    for _ in 0..thread_rng().gen_range(0..30) {
        yield_now();
    }
    doomed.into_iter().for_each(|guest| host.bury(guest));
}

/// A scene with guests of these engines, the first `inline` of which serve themselves.
fn scene(kinds: [EngineKind; 2], inline: usize) -> Scene {
    let mut specs = [spec(kinds[0], 2), spec(kinds[1], 1)];
    specs[..inline].iter_mut().for_each(|it| it.inline = true);
    Scene {
        specs,
        is_short_of_vmas: false,
        is_fatal: false,
    }
}

/// Plays a scene with a guest that serves itself once, in the current schedule.
pub(super) fn play_once() {
    scene([Uffd, Mprotect], 1).play(&Coverage::default());
}

#[test]
fn uffd_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    scene([Uffd, Uffd], 0).model();
}

#[test]
fn mprotect_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    scene([Mprotect, Mprotect], 0).model();
}

#[test]
fn guests_short_of_vmas_in_any_schedule_lose_no_byte_and_no_wakeup() {
    let mut scene = scene([Uffd, Mprotect], 0);
    (scene.is_short_of_vmas, scene.specs[1].threads) = (true, 2);
    scene.model();
}

#[test]
fn guests_beside_one_that_dies_in_any_schedule_lose_no_byte_and_no_wakeup() {
    let mut scene = scene([Mprotect, Uffd], 0);
    scene.is_fatal = true;
    scene.model();
}

#[test]
fn guests_that_serve_themselves_in_any_schedule_lose_no_byte_and_no_wakeup() {
    scene([Uffd, Uffd], 2).model();
}

#[test]
fn guest_that_serves_itself_beside_one_that_dies_in_any_schedule_loses_no_byte_and_no_wakeup() {
    let mut scene = scene([Uffd, Mprotect], 1);
    (scene.is_fatal, scene.is_short_of_vmas) = (true, true);
    scene.model();
}
