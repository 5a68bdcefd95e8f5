//! Guests, fault threads and workers as tasks, in any schedule.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use memvisor_guest_agent::protocol::balloon::{PageStatus, StatusRun};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle, yield_now};

use super::host::Switchboard;
use super::{AddressSpace, FaultThread, Guest, GuestThread, Host, Memory, Op, Spec};
use crate::balloon;
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::reclaim::Evictor;
use crate::share::Scanner;
use crate::sync::{self, AtomicU32, Mutex, Ordering};
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::Vm;

/// Schedules of each test; `MEMVISOR_MODEL_ITERATIONS` replaces it.
const SCHEDULES: usize = 1_500;
const PAGES: u32 = 6;
const METADATA: u64 = 17;
/// What each thread of a guest does in a schedule, and at least each worker.
const OPS: usize = 6;
const JOBS: usize = 6;
/// A thread that was not served after so many turns of all others never will be.
const PATIENCE: usize = 2_000;

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

fn content() -> PageBuf {
    match thread_rng().gen_range(0..8u8) {
        0 => PageBuf::zeroed(),
        common @ 1..=4 => PageBuf([common % 2 + 1; PAGE_SIZE]),
        5 | 6 => samples::mixed(thread_rng().gen_range(0..1000), 100),
        _ => samples::mixed(thread_rng().gen_range(0..1000), 2200),
    }
}

/// A thread of a guest: it owns every `threads`th page, so what it reads must be what it wrote.
fn run_thread(mut guest: GuestThread, number: u32, threads: u32, memory: &Memory, desk: &Desk) {
    for _ in 0..OPS {
        let gfn = Gfn(thread_rng().gen_range(0..PAGES / threads) * threads + number);
        match thread_rng().gen_range(0..10) {
            0..5 => finish(&mut guest, gfn, Op::Write(Box::new(content()))),
            5..8 => finish(&mut guest, gfn, Op::Read),
            8 => {
                let answer = desk.ask(number as usize, Job::Inflate(GfnRun::single(gfn)));
                if answer.first().is_some_and(|run| run.status == PageStatus::Ok) {
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
}

impl Worker {
    fn run(mut self, running: &Running) -> Self {
        for _ in 0..JOBS {
            self.answer();
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
        match thread_rng().gen_range(0..5) {
            0..2 => {
                let found = self.scanner.scan(&self.vm, &*self.peers, PAGES);
                found.expect("the session lives");
            }
            2 => {
                let nudged = self.peers.nudged(self.vm.id);
                Scanner::follow(&self.vm, &*self.peers, nudged).expect("the session lives");
            }
            _ => self.evict(thread_rng().gen_range(1..4)),
        }
    }

    fn evict(&mut self, pages: u64) {
        let evicted = self.evictor.evict(&self.vm, Pages(pages));
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
    fn start(guest: Guest, peers: &Arc<Switchboard>, running: &Running) -> Self {
        let Guest {
            vm,
            salt,
            space,
            disk,
            memory,
            threads,
            faults,
            scanner,
            evictor,
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
                threads: Vec::new(),
                faults,
                scanner: worker.scanner,
                evictor: worker.evictor,
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
        vma_budget: 100,
        threads,
    }
}

/// Two guests in one sharing domain, with memory for about half of their pages.
fn run_guests(specs: [Spec; 2]) {
    let room = u64::from(PAGES) + 2;
    let host = Host::new(2 * METADATA + room, 2, 1, 64);
    let guests = (1..).zip(specs).map(|(id, spec)| {
        let guest = host.power_on(VmId(id), spec);
        guest.expect("memory for two page tables")
    });
    let running = Running::default();
    let start = |guest| Tasks::start(guest, &host.peers, &running);
    let tasks: Vec<Tasks> = guests.map(start).collect();
    let guests: Vec<Guest> = tasks.into_iter().map(Tasks::join).collect();
    host.check(&guests.iter().collect::<Vec<_>>());
    guests.into_iter().for_each(|guest| host.bury(guest));
    host.check_empty();
}

#[test]
fn uffd_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    sync::model(SCHEDULES, || {
        run_guests([spec(EngineKind::Uffd, 2), spec(EngineKind::Uffd, 1)]);
    });
}

#[test]
fn mprotect_guests_in_any_schedule_lose_no_byte_and_no_wakeup() {
    sync::model(SCHEDULES, || {
        run_guests([spec(EngineKind::Mprotect, 2), spec(EngineKind::Mprotect, 1)]);
    });
}

/// At once over their budget of VMAs, so that every break takes the end of its run along, which is
/// pages of the other thread.
#[test]
fn guests_short_of_vmas_in_any_schedule_lose_no_byte_and_no_wakeup() {
    sync::model(SCHEDULES / 3, || {
        let short = |kind, threads| Spec {
            vma_budget: 8,
            ..spec(kind, threads)
        };
        run_guests([short(EngineKind::Uffd, 2), short(EngineKind::Mprotect, 2)]);
    });
}
