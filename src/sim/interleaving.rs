//! Guests, fault threads, workers and the policy as tasks, in any schedule.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use crossbeam::channel::Receiver;
use memvisor_guest_agent::protocol::balloon::{PageStatus, StatusRun};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle, yield_now};

use super::worker::{FAST, ask};
use super::{
    AddressSpace, FaultThread, Guest, GuestThread, Host, Memory, Op, Spec, Worker, scanning,
};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Urgency;
use crate::reclaim::{Job, WorkerHandle};
use crate::share::AttachRequest;
use crate::sync::{self, AtomicU32, Ordering};
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::{Eviction, Means, Vm};

/// Schedules of each test; `MEMVISOR_MODEL_ITERATIONS` replaces it.
const SCHEDULES: usize = 1_800;
const PAGES: u32 = 6;
const METADATA: u64 = 17;
/// Memory that is left to the guests then, when each has one page of its own in RAM or none.
const LEFT: u64 = 3 + RESERVE;
const RESERVE: u64 = 2;
const VMA_BUDGET: u32 = 100;
/// What each thread of a guest does in a schedule, and what the policy wants of both.
const OPS: usize = 6;
const ORDERS: usize = 12;
/// A thread that was not served after so many turns of all others never will be.
const PATIENCE: usize = 20_000;

/// Waits for an answer of a worker.
fn answer<T>(wait: &Receiver<T>) -> T {
    for _ in 0..PATIENCE {
        if let Ok(answer) = wait.try_recv() {
            return answer;
        }
        yield_now();
    }
    panic!("the worker does not answer");
}

/// How many threads of guests still run. Until there are none, all fault threads and workers do: memory
/// that one guest waits for may be another's.
type Running = Arc<AtomicU32>;

fn common(number: u32) -> PageBuf {
    PageBuf([number as u8 % 4 + 1; PAGE_SIZE])
}

/// Zero, common to many pages, half and hardly compressible.
fn content() -> PageBuf {
    match thread_rng().gen_range(0..8) {
        0 => PageBuf::zeroed(),
        number @ 1..=4 => common(number),
        5 | 6 => samples::mixed(thread_rng().gen_range(0..1000), 1800),
        _ => samples::mixed(thread_rng().gen_range(0..1000), 2200),
    }
}

/// A thread of a guest, with what its agents do for it.
struct Program {
    guest: GuestThread,
    number: u32,
    threads: u32,
    memory: Memory,
    space: Arc<AddressSpace>,
    worker: WorkerHandle,
}

impl Program {
    /// It owns every `threads`th page, so what it reads must be what it wrote.
    fn page(&self) -> Gfn {
        Gfn(thread_rng().gen_range(0..PAGES / self.threads) * self.threads + self.number)
    }

    fn run(mut self) {
        for _ in 0..OPS {
            let gfn = self.page();
            match thread_rng().gen_range(0..14) {
                0..6 => finish(&mut self.guest, gfn, Op::Write(Box::new(content()))),
                6..9 => finish(&mut self.guest, gfn, Op::Read),
                9 => self.guest.forget_mapping(gfn),
                10 => self.inflate(gfn),
                11 => {
                    answer(&self.deflate(gfn));
                }
                _ => self.attach(gfn),
            }
        }
    }

    /// Sometimes the agent wants the page back before it has the answer.
    fn inflate(&self, gfn: Gfn) {
        let run = GfnRun::single(gfn);
        self.space.set_unwanted(run, true);
        let inflated = ask(&self.worker, |answer| Job::Inflate(vec![run], answer));
        let deflated = thread_rng().gen_bool(0.3).then(|| self.deflate(gfn));
        let status = answer(&inflated).first().map(|run| run.status);
        if status == Some(PageStatus::Ok) {
            self.memory.forget(gfn);
        }
        self.space.set_unwanted(run, false);
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
        self.space.set_unwanted(pages, true);
        let request = AttachRequest { pages, source };
        if answer(&ask(&self.worker, |answer| Job::Attach(request, answer))) > 0 {
            self.memory.copy(source, gfn);
        }
        self.space.set_unwanted(pages, false);
    }
}

fn finish(guest: &mut GuestThread, gfn: Gfn, op: Op) {
    guest.begin(gfn, op);
    for _ in 0..PATIENCE {
        if guest.poll() {
            return;
        }
        yield_now();
    }
    panic!("{guest} waits, and nobody serves its fault");
}

fn run_faults(mut faults: FaultThread, running: &Running) -> FaultThread {
    loop {
        // Read first: what the last thread said before it ended is still served.
        let over = running.load(Ordering::SeqCst) == 0;
        let served = faults.turn().expect("the guest can go on");
        if !served {
            if over {
                return faults;
            }
            yield_now();
        }
    }
}

fn run_worker(mut worker: Worker, running: &Running) -> Worker {
    loop {
        let over = running.load(Ordering::SeqCst) == 0;
        if !worker.step() {
            if over {
                return worker;
            }
            yield_now();
        }
    }
}

/// The policy and the operator: what they want of two guests, and the time that passes.
struct Governor {
    host: Host,
    vms: Vec<(Arc<Vm>, WorkerHandle)>,
    is_short_of_vmas: bool,
}

impl Governor {
    fn run(self, running: &Running) {
        for (_, worker) in &self.vms {
            worker.set_scan_rate(FAST);
        }
        for _ in 0..ORDERS {
            let (vm, worker) = &self.vms[thread_rng().gen_range(0..self.vms.len())];
            self.order(vm, worker);
            self.host
                .clock
                .pass(Duration::from_millis(thread_rng().gen_range(0..100)));
            yield_now();
        }
        for (vm, worker) in &self.vms {
            vm.zip.lock().set_max_pages(1);
            worker.set_scan_rate(0);
            worker.set_sample_period(Duration::ZERO);
            self.join(worker, Some(0));
        }
        while running.load(Ordering::SeqCst) > 0 {
            // Not each time: in a schedule of equal turns every page could be taken back before the guest has
            // used it.
            let (vm, _) = &self.vms[thread_rng().gen_range(0..self.vms.len())];
            let is_short = self.host.budget.starving() > 0 && thread_rng().gen_bool(0.5);
            vm.orders.set_evict(Eviction::at_once(
                Pages(if is_short { 2 } else { 0 }),
                Means::ALL,
            ));
            self.host.clock.pass(Duration::from_millis(20));
            yield_now();
        }
    }

    fn order(&self, vm: &Vm, worker: &WorkerHandle) {
        match thread_rng().gen_range(0..10) {
            0 => {
                let rate = if thread_rng().gen_bool(0.7) { FAST } else { 0 };
                worker.set_scan_rate(rate);
            }
            1 => worker.set_sample_period(Duration::from_millis(50)),
            2 => vm.zip.lock().set_max_pages(thread_rng().gen_range(0..2)),
            3 => self.join(
                worker,
                [None, Some(0), Some(1)][thread_rng().gen_range(0..3)],
            ),
            4 if self.is_short_of_vmas => {
                vm.vmas
                    .set_budget([1, VMA_BUDGET][thread_rng().gen_range(0..2)]);
            }
            5..8 => vm.orders.set_evict(Eviction::at_once(
                Pages(thread_rng().gen_range(0..4)),
                Means::ALL,
            )),
            // Only time passes.
            _ => {}
        }
    }

    fn join(&self, worker: &WorkerHandle, pool: Option<usize>) {
        let pool = pool.map(|pool| Arc::clone(&self.host.pools[pool]));
        assert!(worker.suggest(Job::Join(pool)), "a queue with room");
    }
}

/// The tasks of one guest.
struct Tasks {
    threads: Vec<JoinHandle<()>>,
    faults: JoinHandle<FaultThread>,
    worker: JoinHandle<Worker>,
    rest: Box<dyn FnOnce(FaultThread, Worker) -> Guest>,
}

impl Tasks {
    fn start(guest: Guest, running: &Running) -> Self {
        let Guest {
            vm,
            space,
            disk,
            memory,
            claims,
            threads,
            faults,
            worker,
        } = guest;
        let count = u32::try_from(threads.len()).expect("a few");
        running.fetch_add(count, Ordering::SeqCst);
        let threads = (0..).zip(threads).map(|(number, guest)| {
            let program = Program {
                guest,
                number,
                threads: count,
                memory: memory.clone(),
                space: Arc::clone(&space),
                worker: worker.handle.clone(),
            };
            let running = Arc::clone(running);
            thread::spawn(move || {
                program.run();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let threads = threads.collect();
        let (of_faults, of_worker) = (Arc::clone(running), Arc::clone(running));
        Self {
            threads,
            faults: thread::spawn(move || run_faults(faults, &of_faults)),
            worker: thread::spawn(move || run_worker(worker, &of_worker)),
            rest: Box::new(move |faults, worker| Guest {
                vm,
                space,
                disk,
                memory,
                claims,
                threads: Vec::new(),
                faults,
                worker,
            }),
        }
    }

    fn join(self) -> Guest {
        for thread in self.threads {
            thread.join().expect("a guest's thread ends");
        }
        let faults = self.faults.join().expect("a fault thread ends");
        let worker = self.worker.join().expect("a worker ends");
        (self.rest)(faults, worker)
    }
}

fn spec(kind: EngineKind, threads: usize) -> Spec {
    Spec {
        kind,
        pages: PAGES,
        salt: 0,
        swap_slots: PAGES,
        zip_pages: 1,
        vma_budget: VMA_BUDGET,
        threads,
        inline: false,
        ahead: 15,
    }
}

/// What happened in all schedules of a test together; what never happened was not tested.
#[derive(Debug, Default)]
struct Witness(StdMutex<BTreeMap<&'static str, u64>>);

/// How often each guest was seen by the [`Witness`].
const SEEN: &str = "guests";

impl Witness {
    fn note(&self, vm: &Vm) {
        let stats = &vm.stats;
        let mut seen = self.0.lock().expect("no holder panicked");
        for (what, count) in [
            ("faults that found their page busy", &stats.parked),
            ("faults that waited for memory", &stats.starved),
            ("breaks", &stats.breaks),
            ("merged", &stats.merged),
            ("attached", &stats.attached),
            ("frames made", &stats.first_users),
            ("zeroed", &stats.zeroed),
            ("refilled from the cache", &stats.refill_zip),
            ("refilled from swap", &stats.refill_swap),
            ("spilled", &stats.spilled),
            ("shared when evicted", &stats.evict_shared),
            ("inflated", &stats.inflated),
            ("deflated", &stats.deflated),
            ("popped", &stats.pops),
        ] {
            *seen.entry(what).or_default() += count.get();
        }
        if vm.table.claims().is_some() {
            *seen.entry("refilled by the guest").or_default() += stats.inline_refills.get();
            *seen.entry("broken by the guest").or_default() += stats.inline_breaks.get();
        }
        *seen.entry(SEEN).or_default() += 1;
    }

    fn check(&self) {
        let seen = self.0.lock().expect("no holder panicked");
        // Fewer schedules than usual are for repeating a failure.
        let all = seen[SEEN] < 2 * SCHEDULES as u64 || seen.values().all(|count| *count > 0);
        assert!(all, "never tested: {seen:?}");
    }
}

/// Two guests in one sharing domain, with memory for half of their pages.
#[derive(Clone, Copy)]
struct Scene {
    specs: [Spec; 2],
    /// Breaks take the end of their run along, which is pages of the other thread.
    is_short_of_vmas: bool,
    /// A third guest, which shares frames with the others, dies at some time.
    is_fatal: bool,
}

impl Scene {
    /// Plays the scene in any schedule.
    fn model(self) {
        let witness = Arc::new(Witness::default());
        let inside = Arc::clone(&witness);
        sync::model(SCHEDULES, move || self.play(&inside));
        witness.check();
    }

    fn play(self, witness: &Witness) {
        let (host, mut guests) = self.prepare();
        let elsewhere = host.budget.free().0 - LEFT;
        assert!(host.budget.take(elsewhere, Urgency::Touch));
        let doomed = guests.split_off(self.specs.len());
        let death = thread::spawn({
            let host = host.clone();
            move || {
                // Its memory comes free: not before the others have been short of some.
                for _ in 0..thread_rng().gen_range(0..30) {
                    yield_now();
                }
                doomed.into_iter().for_each(|guest| host.bury(guest));
            }
        });
        let running = Running::default();
        let governor = Governor {
            host: host.clone(),
            vms: guests
                .iter()
                .map(|guest| (Arc::clone(&guest.vm), guest.worker.handle.clone()))
                .collect(),
            is_short_of_vmas: self.is_short_of_vmas,
        };
        let tasks: Vec<Tasks> = guests
            .into_iter()
            .map(|guest| Tasks::start(guest, &running))
            .collect();
        let governor = thread::spawn(move || governor.run(&running));
        let mut guests: Vec<Guest> = tasks.into_iter().map(Tasks::join).collect();
        governor.join().expect("the policy ends");
        death.join().expect("a guest can die");
        host.budget.give(elsewhere);
        host.check(&guests.iter().collect::<Vec<_>>());
        for guest in &mut guests {
            guest
                .vm
                .orders
                .set_evict(Eviction::at_once(Pages(0), Means::ALL));
            guest.vm.vmas.set_budget(VMA_BUDGET);
            witness.note(&guest.vm);
        }
        scanning::settle(&host, guests.iter_mut().collect(), FAST);
        guests.into_iter().for_each(|guest| host.bury(guest));
        host.check_empty();
    }

    /// A host on which the guests share what they can, and have the rest in their caches.
    fn prepare(self) -> (Host, Vec<Guest>) {
        let third = self.is_fatal.then_some(self.specs[0]);
        let count = 2 + u64::from(self.is_fatal);
        let room = count * (METADATA + u64::from(PAGES)) + 4 + RESERVE;
        let host = Host::new(room, RESERVE, 2, 64);
        let mut guests: Vec<Guest> = Vec::new();
        for (id, spec) in (1..).zip(self.specs.into_iter().chain(third)) {
            let guest = host.power_on(VmId(id), spec);
            let mut guest = guest.expect("memory for its page table");
            prepare(&mut guest);
            guest.vm.take_back_credits();
            guests.push(guest);
        }
        for guest in &mut guests {
            guest.worker.turn();
            guest.evict(2);
        }
        (host, guests)
    }
}

/// Gives the guest pages to fight over: a run that the other has too, others for the cache.
fn prepare(guest: &mut Guest) {
    let threads = guest.threads.len();
    for gfn in 0..PAGES {
        let page = match gfn {
            0..4 => common(gfn),
            _ => samples::mixed(u64::from(guest.vm.id.0 * PAGES + gfn), 1800),
        };
        let thread = gfn as usize % threads;
        guest.threads[thread].begin(Gfn(gfn), Op::Write(Box::new(page)));
        assert!(guest.drive(thread), "there is memory");
    }
    guest.scan();
    guest.scan();
}

fn scene(first: EngineKind, second: EngineKind) -> Scene {
    Scene {
        specs: [spec(first, 2), spec(second, 1)],
        is_short_of_vmas: false,
        is_fatal: false,
    }
}

/// Plays a scene with a guest that serves itself in the schedule that runs.
pub(super) fn play_once() {
    let mut scene = scene(EngineKind::Uffd, EngineKind::Mprotect);
    scene.specs[0].inline = true;
    scene.play(&Witness::default());
}

#[test]
fn uffd_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    scene(EngineKind::Uffd, EngineKind::Uffd).model();
}

#[test]
fn mprotect_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    scene(EngineKind::Mprotect, EngineKind::Mprotect).model();
}

#[test]
fn guests_short_of_vmas_in_any_schedule_lose_no_byte_and_no_wakeup() {
    let scene = Scene {
        specs: [spec(EngineKind::Uffd, 2), spec(EngineKind::Mprotect, 2)],
        is_short_of_vmas: true,
        is_fatal: false,
    };
    scene.model();
}

#[test]
fn guests_beside_one_that_dies_in_any_schedule_lose_no_byte_and_no_wakeup() {
    let scene = Scene {
        is_fatal: true,
        ..scene(EngineKind::Mprotect, EngineKind::Uffd)
    };
    scene.model();
}

#[test]
fn guests_that_serve_themselves_in_any_schedule_lose_no_byte_and_no_wakeup() {
    let mut scene = scene(EngineKind::Uffd, EngineKind::Uffd);
    scene.specs.iter_mut().for_each(|spec| spec.inline = true);
    scene.model();
}

#[test]
fn guest_that_serves_itself_beside_one_that_dies_in_any_schedule_loses_no_byte_and_no_wakeup() {
    let mut scene = Scene {
        is_fatal: true,
        is_short_of_vmas: true,
        ..scene(EngineKind::Uffd, EngineKind::Mprotect)
    };
    scene.specs[0].inline = true;
    scene.model();
}
