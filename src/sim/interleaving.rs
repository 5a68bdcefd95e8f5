//! Guests, fault threads and workers as tasks, in any schedule.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex};

use memvisor_guest_agent::protocol::balloon::{PageStatus, StatusRun};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle, yield_now};

use super::host::Switchboard;
use super::{AddressSpace, FaultThread, Guest, GuestThread, Host, Memory, Op, Spec, scanning};
use crate::balloon;
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Urgency;
use crate::reclaim::{Evictor, trim_cache};
use crate::sample::Sampler;
use crate::share::{self, AttachRequest, Leaver, Scanner};
use crate::sync::{self, AtomicU32, Mutex, Ordering};
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::{Means, Vm};

/// Schedules of each test; `MEMVISOR_MODEL_ITERATIONS` replaces it.
const SCHEDULES: usize = 1_800;
const PAGES: u32 = 6;
const METADATA: u64 = 17;
/// Memory that is left to the guests then, when each has one page of its own in RAM or none.
const LEFT: u64 = 3 + RESERVE;
const RESERVE: u64 = 2;
const VMA_BUDGET: u32 = 100;
/// What each thread of a guest does in a schedule, and at least each worker.
const OPS: usize = 6;
const JOBS: usize = 6;
/// A thread that was not served after so many turns of all others never will be.
const PATIENCE: usize = 20_000;

/// What the agents of a guest ask of its worker.
#[derive(Debug, Default)]
struct Desk {
    jobs: Mutex<VecDeque<(usize, Job)>>,
    answers: Mutex<HashMap<usize, Vec<StatusRun>>>,
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Inflate(GfnRun),
    Deflate(GfnRun),
    Attach(AttachRequest),
}

impl Desk {
    fn ask(&self, asker: usize, job: Job) -> Vec<StatusRun> {
        self.jobs.lock().push_back((asker, job));
        for _ in 0..PATIENCE {
            if let Some(answer) = self.answers.lock().remove(&asker) {
                return answer;
            }
            yield_now();
        }
        panic!("{job:?} was not answered");
    }
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

/// A thread of a guest: it owns every `threads`th page, so what it reads must be what it wrote.
fn run_thread(mut guest: GuestThread, number: u32, threads: u32, memory: &Memory, desk: &Desk) {
    for _ in 0..OPS {
        let gfn = Gfn(thread_rng().gen_range(0..PAGES / threads) * threads + number);
        match thread_rng().gen_range(0..14) {
            0..6 => finish(&mut guest, gfn, Op::Write(Box::new(content()))),
            6..9 => finish(&mut guest, gfn, Op::Read),
            12.. => {
                let source = Gfn(thread_rng().gen_range(0..PAGES / threads) * threads + number);
                let pages = GfnRun::single(gfn);
                let job = Job::Attach(AttachRequest { pages, source });
                if !desk.ask(number as usize, job).is_empty() {
                    memory.copy(source, gfn);
                }
            }
            9 => guest.forget_mapping(gfn),
            10 => {
                let answer = desk.ask(number as usize, Job::Inflate(GfnRun::single(gfn)));
                if answer
                    .first()
                    .is_some_and(|run| run.status == PageStatus::Ok)
                {
                    memory.forget(gfn);
                }
            }
            _ => {
                desk.ask(number as usize, Job::Deflate(GfnRun::single(gfn)));
            }
        }
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

struct Worker {
    vm: Arc<Vm>,
    space: Arc<AddressSpace>,
    peers: Arc<Switchboard>,
    desk: Arc<Desk>,
    scanner: Scanner,
    evictor: Evictor,
    sampler: Sampler,
    is_short_of_vmas: bool,
}

impl Worker {
    fn run(mut self, running: &Running) -> Self {
        for job in 0..JOBS {
            self.answer();
            if self.is_short_of_vmas {
                self.vm
                    .vmas
                    .set_budget(if job % 2 == 0 { 1 } else { VMA_BUDGET });
            }
            self.something();
        }
        while running.load(Ordering::SeqCst) > 0 {
            self.answer();
            // Not each time: in a schedule of equal turns it could take every page back before the
            // guest has used it.
            if self.vm.budget.starving() > 0 && thread_rng().gen_bool(0.5) {
                self.evict(2);
            }
            yield_now();
        }
        self
    }

    fn something(&mut self) {
        match thread_rng().gen_range(0..8) {
            // As when the cap of its cache falls for a moment.
            5 => {
                self.vm.zip.lock().set_max_pages(0);
                trim_cache(&self.vm, 2);
                self.vm.zip.lock().set_max_pages(1);
            }
            0..2 => {
                let found = self.scanner.scan(&self.vm, &*self.peers, PAGES);
                found.expect("the session lives");
            }
            2 => {
                let nudged = self.peers.nudged(self.vm.id);
                self.scanner
                    .follow(&self.vm, &*self.peers, nudged)
                    .expect("the session lives");
            }
            4 => {
                let mut leaver = Leaver::default();
                leaver.step(&self.vm).expect("the session lives");
            }
            3 => self
                .sampler
                .next_period(&self.vm)
                .expect("the session lives"),
            _ => self.evict(thread_rng().gen_range(1..4)),
        }
    }

    fn evict(&mut self, pages: u64) {
        let evicted = self.evictor.evict(&self.vm, Pages(pages), Means::ALL);
        evicted.expect("the session lives");
    }

    fn answer(&self) {
        let job = self.desk.jobs.lock().pop_front();
        let Some((asker, job)) = job else { return };
        let answer = match job {
            Job::Inflate(run) => {
                self.space.set_giving_up(true);
                let statuses = balloon::inflate(&self.vm, &[run]).expect("the session lives");
                self.space.set_giving_up(false);
                statuses
            }
            Job::Deflate(run) => balloon::deflate(&self.vm, &[run]),
            Job::Attach(request) => {
                self.space.set_attaching(true);
                let attached = share::attach(&self.vm, &*self.peers, request);
                self.space.set_attaching(false);
                let run = GfnRun {
                    count: attached.expect("the session lives"),
                    ..request.pages
                };
                let status = PageStatus::Ok;
                let is_any = run.count > 0;
                is_any
                    .then_some(StatusRun { run, status })
                    .into_iter()
                    .collect()
            }
        };
        self.desk.answers.lock().insert(asker, answer);
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
    fn start(
        guest: Guest,
        peers: &Arc<Switchboard>,
        running: &Running,
        is_short_of_vmas: bool,
    ) -> Self {
        let Guest {
            vm,
            salt,
            space,
            disk,
            memory,
            claims,
            threads,
            faults,
            scanner,
            evictor,
            sampler,
        } = guest;
        let desk = Arc::new(Desk::default());
        let count = u32::try_from(threads.len()).expect("a few");
        running.fetch_add(count, Ordering::SeqCst);
        let threads = (0..).zip(threads).map(|(number, guest)| {
            let (memory, desk) = (memory.clone(), Arc::clone(&desk));
            let running = Arc::clone(running);
            thread::spawn(move || {
                run_thread(guest, number, count, &memory, &desk);
                running.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let threads = threads.collect();
        let worker = Worker {
            vm: Arc::clone(&vm),
            space: Arc::clone(&space),
            peers: Arc::clone(peers),
            desk,
            scanner,
            evictor,
            sampler,
            is_short_of_vmas,
        };
        let (of_faults, of_worker) = (Arc::clone(running), Arc::clone(running));
        Self {
            threads,
            faults: thread::spawn(move || run_faults(faults, &of_faults)),
            worker: thread::spawn(move || worker.run(&of_worker)),
            rest: Box::new(move |faults, worker| Guest {
                vm,
                salt,
                space,
                disk,
                memory,
                claims,
                threads: Vec::new(),
                faults,
                scanner: worker.scanner,
                evictor: worker.evictor,
                sampler: worker.sampler,
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
            move || doomed.into_iter().for_each(|guest| host.bury(guest))
        });
        let running = Running::default();
        let start = |guest| Tasks::start(guest, &host.peers, &running, self.is_short_of_vmas);
        let tasks: Vec<Tasks> = guests.into_iter().map(start).collect();
        let mut guests: Vec<Guest> = tasks.into_iter().map(Tasks::join).collect();
        death.join().expect("a guest can die");
        host.budget.give(elsewhere);
        host.check(&guests.iter().collect::<Vec<_>>());
        guests.iter().for_each(|guest| witness.note(&guest.vm));
        let vmas = guests.iter().map(|guest| &guest.vm.vmas);
        vmas.for_each(|vmas| vmas.set_budget(VMA_BUDGET));
        scanning::settle(&host, guests.iter_mut().collect());
        guests.into_iter().for_each(|guest| host.bury(guest));
        host.check_empty();
    }

    /// A host on which the guests share what they can, and have the rest in their caches.
    fn prepare(self) -> (Host, Vec<Guest>) {
        let third = self.is_fatal.then_some(self.specs[0]);
        let count = 2 + u64::from(self.is_fatal);
        let room = count * (METADATA + u64::from(PAGES)) + 4 + RESERVE;
        let host = Host::new(room, RESERVE, 1, 64);
        let mut guests: Vec<Guest> = Vec::new();
        for (id, spec) in (1..).zip(self.specs.into_iter().chain(third)) {
            let guest = host.power_on(VmId(id), spec);
            let mut guest = guest.expect("memory for its page table");
            prepare(&host, &mut guest);
            guests.push(guest);
        }
        for guest in &mut guests {
            let nudged = host.peers.nudged(guest.vm.id);
            guest
                .scanner
                .follow(&guest.vm, &*host.peers, nudged)
                .expect("the session lives");
            let evicted = guest.evictor.evict(&guest.vm, Pages(2), Means::ALL);
            evicted.expect("the session lives");
        }
        (host, guests)
    }
}

/// Gives the guest pages to fight over: a run that the other has too, others for the cache.
fn prepare(host: &Host, guest: &mut Guest) {
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
    for _ in 0..2 {
        let found = guest.scanner.scan(&guest.vm, &*host.peers, PAGES);
        found.expect("the session lives");
    }
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
