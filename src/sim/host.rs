//! A simulated host: budget, pools, guests, and the check that every counter is right.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::claim_table;
use super::{AddressSpace, Clock, FaultThread, GuestThread, Op, View, Worker};
use crate::compress::ZipCache;
use crate::engine::EngineKind;
use crate::page::{Budget, Home, KINDS, Parking, Standing, Urgency};
use crate::pool::{Hints, Pool};
use crate::reclaim::victims::{self, Choice};
use crate::reclaim::{Job, WorkerHandle};
use crate::share::Peers;
use crate::swap::faulty::FaultyStorage;
use crate::swap::{CacheFile, HostCache, SwapFile, Tiers};
use crate::sync::Mutex;
use crate::units::{FrameId, Gfn, PageBuf, Pages, VmId};
use crate::vm::{Blocked, Parts, Vm, VmParams};

/// Pages that the table of hints has room for.
const HINTED: u64 = 4096;

/// How a guest is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) kind: EngineKind,
    pub(super) pages: u32,
    /// The number of its sharing domain.
    pub(super) salt: usize,
    pub(super) swap_slots: u32,
    pub(super) zip_pages: u32,
    pub(super) vma_budget: u32,
    pub(super) threads: usize,
    /// Whether its threads serve some of their faults themselves.
    pub(super) inline: bool,
    /// The most pages that it is given ahead, before it asks for them.
    pub(super) ahead: u32,
    /// How many pages a large page has.
    pub(super) large_page: u32,
}

/// The other VMs as a scanner sees them, and their workers.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<HashMap<VmId, (Arc<Vm>, WorkerHandle)>>);

impl Registry {
    pub(super) fn get(&self, vm: VmId) -> Option<(Arc<Vm>, WorkerHandle)> {
        self.0.lock().get(&vm).cloned()
    }
}

impl Peers for Registry {
    fn known_hash(&self, vm: VmId, gfn: Gfn) -> Option<u32> {
        self.get(vm)?.0.table.known_hash(gfn)
    }

    fn nudge(&self, vm: VmId, gfn: Gfn) {
        if let Some((vm, worker)) = self.get(vm)
            && !worker.suggest(Job::Nudge(gfn))
        {
            vm.table.note_written(gfn);
        }
    }
}

/// One guest with all its threads, and the daemon's threads for it.
pub(super) struct Guest {
    pub(super) vm: Arc<Vm>,
    pub(super) space: Arc<AddressSpace>,
    pub(super) disk: Arc<FaultyStorage>,
    /// The disk of its part of the host cache.
    pub(super) cache_disk: Arc<FaultyStorage>,
    pub(super) threads: Vec<GuestThread>,
    pub(super) faults: FaultThread,
    pub(super) worker: Worker,
}

/// The host. See the [module text](super).
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) budget: Arc<Budget>,
    pub(super) pools: Vec<Arc<Pool>>,
    pub(super) peers: Arc<Registry>,
    pub(super) clock: Clock,
    /// Without a size, so that swapped pages go to swap files, unless a test gives it one.
    pub(super) cache: Arc<HostCache>,
}

impl Host {
    /// A host without guests, with one pool of `frames` frames for each salt.
    pub(super) fn new(total: u64, reserve: u64, salts: usize, frames: u32) -> Self {
        // Roomy, so that no true hint is ever displaced.
        let hints = Arc::new(Hints::new(Pages(HINTED)).expect("memory"));
        let pool = |salt| Pool::new(&format!("sim-{salt}"), frames, &hints).expect("a small memfd");
        Self {
            budget: Arc::new(Budget::new(Pages(total), Pages(reserve))),
            pools: (0..salts).map(|salt| Arc::new(pool(salt))).collect(),
            peers: Arc::default(),
            clock: Clock::default(),
            cache: Arc::new(HostCache::new(Path::new("cache"))),
        }
    }

    /// Powers a guest on; `None` when there is no memory for its page table.
    pub(super) fn power_on(&self, id: VmId, spec: Spec) -> Option<Guest> {
        let params = VmParams {
            name: format!("vm-{id}"),
            pages: spec.pages,
            workload: String::new(),
            // Not even for an inline guest: its claim table is a model here, and nobody charges memory for it.
            inline: false,
            cached: false,
        };
        if !self.budget.take(params.metadata().0, Urgency::Touch) {
            return None;
        }
        let disk = Arc::new(FaultyStorage::of(spec.swap_slots, u32::MAX));
        let cache_disk = Arc::new(FaultyStorage::of(0, u32::MAX));
        let cache = Arc::new(Arc::clone(&cache_disk));
        let swap = Tiers {
            file: SwapFile::over(Arc::new(Arc::clone(&disk)), spec.swap_slots, spec.pages),
            cache: Some(CacheFile::over(&self.cache, cache, spec.pages)),
        };
        let zip = ZipCache::new("sim-zip", spec.zip_pages).expect("a small memfd");
        let claims = spec
            .inline
            .then(|| claim_table::share(spec.pages, &disk, &zip));
        let words = claims.as_ref().map(|it| Arc::new(it.table().clone()) as _);
        let space = Arc::new(AddressSpace::new(&spec, &self.pools, claims));
        let parts = Parts {
            budget: Arc::clone(&self.budget),
            pool: Arc::clone(&self.pools[spec.salt]),
            words,
            zip,
            swap,
            parking: Arc::new(Parking::new().expect("an eventfd")),
            vma_budget: spec.vma_budget,
            witness: None,
        };
        let vm = Vm::new(id, params, Box::new(Arc::clone(&space)), parts).expect("memory");
        let vm = Arc::new(vm);
        let worker = Worker::new(&vm, Arc::clone(&self.peers) as _, self.clock.clone());
        // Every choice of victims is tested by every search: guests have them by turns.
        let names = victims::NAMES;
        let name = names[(id.0 as usize + 1) % names.len()];
        worker
            .handle
            .change(|it| it.victims = Choice::named(name).expect("it is one"));
        let member = (Arc::clone(&vm), worker.handle.clone());
        self.peers.0.lock().insert(id, member);
        let thread = |channel| GuestThread::new(&vm, &space, channel);
        Some(Guest {
            threads: (0..spec.threads).map(thread).collect(),
            faults: FaultThread::new(&vm, &space, &worker.handle, &spec),
            worker,
            vm,
            space,
            disk,
            cache_disk,
        })
    }

    /// Ends a guest as if its process had died, whatever its threads were doing.
    pub(super) fn bury(&self, guest: Guest) {
        self.peers.0.lock().remove(&guest.vm.id);
        guest.faults.core.end();
        guest.space.life.set(0);
        guest.vm.tear_down();
    }

    /// Moves a worker's VM to the pool of this number, or to none, where it shares with nobody.
    pub(super) fn join(&self, worker: &WorkerHandle, pool: Option<usize>) {
        let pool = pool.map(|pool| Arc::clone(&self.pools[pool]));
        assert!(worker.suggest(Job::Join(pool)), "a queue with room");
    }

    /// Compares every counter with what is there, and every page with what its guest wrote. Nobody may be
    /// moving pages meanwhile; faults may be unconfirmed.
    ///
    /// # Panics
    /// When something differs.
    pub(super) fn check(&self, guests: &[&Guest]) {
        guests.iter().for_each(|guest| guest.check());
        let private: u64 = guests.iter().map(|guest| guest.charged()).sum();
        let mut frames_used = 0;
        for pool in &self.pools {
            let is_user = |guest: &&&Guest| Arc::ptr_eq(&guest.vm.pool(), pool);
            let users = guests.iter().filter(is_user);
            frames_used += check_pool(pool, users.flat_map(|guest| guest.frames()));
        }
        let in_use = private + frames_used + self.budget.granted().0;
        assert_eq!(self.budget.used().0, in_use, "charged, and in use");
        let cached = guests
            .iter()
            .filter_map(|guest| guest.vm.swap.cache.as_ref());
        let cached: u64 = cached.map(|cache| u64::from(cache.len())).sum();
        assert_eq!(self.cache.taken().0, cached, "taken of the host cache");
        assert!(self.budget.used() <= self.budget.total());
    }

    /// Checks that nothing is left once all guests are buried.
    pub(super) fn check_empty(&self) {
        self.check(&[]);
        assert_eq!(self.budget.used(), Pages(0));
        assert_eq!(self.budget.starving(), 0);
        for pool in &self.pools {
            assert_eq!(pool.counts(), crate::pool::PoolCounts::default());
            assert_eq!(pool.hints(), Pages(0));
        }
    }
}

/// Compares a pool with the frames that its guests refer to; how many frames there are.
fn check_pool(pool: &Pool, named: impl Iterator<Item = FrameId>) -> u64 {
    let mut users: HashMap<FrameId, u32> = HashMap::new();
    named.for_each(|frame| *users.entry(frame).or_default() += 1);
    for (frame, count) in &users {
        assert_eq!(pool.refs(*frame), *count, "references to frame {}", frame.0);
    }
    let counts = pool.counts();
    let frames = users.len() as u64;
    let refs: u32 = users.values().sum();
    assert_eq!((counts.refs.0, counts.frames.0), (u64::from(refs), frames));
    let allocated = pool.allocated().expect("fstat works");
    assert_eq!(allocated, counts.frames, "as the kernel counts it");
    frames
}

impl Guest {
    pub(super) fn homes(&self) -> impl Iterator<Item = (Gfn, Home)> {
        let gfns = (0..self.vm.table.pages()).map(Gfn);
        gfns.map(|gfn| (gfn, self.vm.table.entry(gfn).home()))
    }

    /// The pages of the budget that the guest holds, except frames and pages granted to it but not collected.
    pub(super) fn charged(&self) -> u64 {
        self.vm.settle_done();
        let zip = u64::from(self.vm.zip.lock().pages_used());
        self.vm.params.metadata().0 + zip + self.space.allocated().0 + self.credits()
    }

    /// Credits that the guest holds and that are not yet pages of its RAM.
    fn credits(&self) -> u64 {
        let Some(claims) = self.vm.table.claims() else {
            return 0;
        };
        // A claimed page of another home that is already filled is counted as RAM, so its credit must not count again.
        // A frozen page is resident: it has its memory, and its claim uses no credit.
        let is_filled = |(gfn, home): &(Gfn, Home)| {
            *home != Home::Resident
                && self.space.is_taken(*gfn)
                && self.space.content(*gfn).is_some()
        };
        claims.held() - self.homes().filter(is_filled).count() as u64
    }

    fn frames(&self) -> impl Iterator<Item = FrameId> {
        self.homes().filter_map(|(_, home)| match home {
            Home::Shared(frame) => Some(frame),
            _ => None,
        })
    }

    fn check(&self) {
        let vm = &self.vm;
        vm.settle_done();
        let counts = vm.table.counts();
        assert_eq!(vm.table.recount(), counts);
        // Why pages are not shared: each page has one reason, and only those in RAM need any.
        let mut homes = [0; KINDS];
        vm.table.visit_standings(|_, entry, standing| {
            let home = entry.home();
            assert_eq!(
                standing == Standing::Elsewhere,
                home != Home::Resident,
                "{home:?} {standing:?}"
            );
            homes[home.kind()] += 1;
        });
        assert_eq!(homes, counts);
        assert_eq!(counts.iter().sum::<u64>(), u64::from(vm.table.pages()));
        let opens = vm.engine.kind() == EngineKind::Mprotect;
        let mapped = vm.table.count_vmas(opens);
        assert!(vm.vmas.upper_bound() >= mapped, "{mapped} VMAs");
        for (gfn, home) in self.homes() {
            self.check_page(gfn, home);
            // A large page is one until it is broken, and nobody has taken a part of it.
            let is_large = vm.large.holds(gfn);
            assert!(
                is_large || !self.space.is_large(gfn),
                "{gfn} is in a large page"
            );
            assert!(!is_large || home == Home::Resident, "{gfn} is {home:?}");
        }
        let (given_up, refused) = (self.space.given_up(), self.space.refused.get());
        assert_eq!(given_up, refused, "claims given up, and refused");
        let zip = vm.zip.lock();
        assert_eq!(zip.stored().0, counts[4], "pages in the cache");
        let allocated = zip.allocated().expect("fstat works");
        assert_eq!(allocated.0, u64::from(zip.pages_used()));
        assert_eq!(vm.swap.used().0, counts[5], "pages that are swapped");
        let is_cached = |home| matches!(home, Home::Swapped(slot) if slot.is_cached());
        let named = self.homes().filter(|(_, home)| is_cached(*home)).count() as u64;
        let cached = vm.swap.cache.as_ref().map(|cache| cache.stats().used);
        assert_eq!(cached, Some(Pages(named)), "pages in the host cache");
    }

    fn check_page(&self, gfn: Gfn, home: Home) {
        let (entry, view) = (self.vm.table.entry(gfn), self.space.view(gfn));
        let text = || format!("VM {}: {gfn} {entry:?} {view:?}", self.vm.id);
        // Of a page that a thread is just bringing, only its content is known: that of its home.
        if !self.space.is_taken(gfn) {
            let is_present = self.space.content(gfn).is_some();
            let breaking = entry.is_locked() && matches!(home, Home::Shared(_));
            assert_eq!(is_present, home == Home::Resident || breaking, "{}", text());
            let is_right = match home {
                Home::Shared(frame) => {
                    let closed = entry.is_sampled() && view == View::ClosedPool(frame);
                    closed || view == View::Pool(frame)
                }
                Home::Resident => !view.is_pool(),
                _ => view == View::Closed,
            };
            assert!(is_right, "{}", text());
            // Otherwise its faults would be answered with "retry" for ever. Not for userfaultfd, where the kernel may
            // drop a mapping behind our back.
            let is_told = entry.is_open() && self.vm.engine.kind() == EngineKind::Mprotect;
            assert!(!is_told || view == View::Open, "{}", text());
        }
        let history = || self.vm.table.history().of(gfn);
        let is_whole = self.content_of(gfn, home) == self.space.memory()[gfn.index()];
        assert!(is_whole, "{} lost bytes; {}", text(), history());
    }

    /// What the guest would read, found without a fault.
    pub(super) fn content_of(&self, gfn: Gfn, home: Home) -> PageBuf {
        let mut content = PageBuf::zeroed();
        match home {
            Home::Untouched | Home::Zero | Home::Ballooned => {}
            Home::Resident => content = *self.space.content(gfn).expect("checked before"),
            Home::Shared(frame) => self.vm.pool().read(frame, &mut content),
            Home::Compressed(slot) => {
                let zip = self.vm.zip.lock();
                zip.load(slot, &mut content).expect("an intact cache");
            }
            Home::Swapped(slot) => {
                let swap = &self.vm.swap;
                swap.read(slot, &mut content).expect("an intact swap file");
            }
        }
        content
    }

    /// Lets one thread and the fault thread run until the thread has ended or can go no further;
    /// `true`: it has ended.
    ///
    /// # Panics
    /// When the thread waits and has no reason to.
    pub(super) fn drive(&mut self, thread: usize) -> bool {
        loop {
            if self.threads[thread].poll() {
                // Lets the fault thread receive the thread's last confirmation.
                self.turn();
                return true;
            }
            if !self.turn() && !self.threads[thread].can_go_on() {
                self.check_waits(thread);
                return false;
            }
        }
    }

    /// Has a thread begin `op` and go on as far as it can; whether `op` has ended.
    pub(super) fn attempt(&mut self, thread: usize, gfn: u32, op: Op) -> bool {
        self.threads[thread].begin(Gfn(gfn), op);
        self.drive(thread)
    }

    /// Lets the fault thread serve what it can.
    pub(super) fn turn(&mut self) -> bool {
        self.faults.turn().expect("the guest can go on")
    }

    /// Sets which faults wait by order of the policy, and calls the fault thread for those that need not any more.
    pub(super) fn block(&self, blocked: Blocked) {
        self.vm.orders.set_blocked(blocked);
        self.vm.parking.ring();
    }

    fn check_waits(&self, thread: usize) {
        let vm = &self.vm;
        let gfn = self.threads[thread].at().expect("it is at a page");
        let stopped = vm.is_blocked() || vm.is_at_ceiling();
        let short = stopped || vm.budget.spare() == Pages(0);
        let waiting = &self.faults.core.waiting;
        let waits = waiting.is_starved(gfn) && short
            || waiting.is_busy(gfn) && vm.table.entry(gfn).is_locked()
            || self.space.is_taken(gfn);
        let who = &self.threads[thread];
        assert!(waits, "{who} waits and nobody will wake it");
    }
}
