//! A simulated guest: a VM of the daemon with its worker, on memory that is not there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::memory::Shares;
use memvisor_wire::streams::{MAX_AHEAD, Streams};

use super::Costs;
use super::content::{Disk, Ram};
use super::counts::Moves;
use super::error::ReplayError;
use super::story;
use crate::compress::{Worth, ZipCache};
use crate::fault::{Access, Outcome, complete, resolve_in_stream};
use crate::host::{first_ceiling, swap_slots};
use crate::page::{Budget, Home, Need, Parking, Urgency};
use crate::policy::ResourcePool;
use crate::pool::Pool;
use crate::reclaim::{Core, Queue, WorkerHandle, queue};
use crate::sample::Sampler;
use crate::settings::{ROOT_POOL, VmSettings};
use crate::share::Peers;
use crate::swap::{SwapFile, Tiers};
use crate::trace::format::VmFacts;
use crate::units::{Gfn, Pages, VmId};
use crate::vm::{Cause, Parts, Vm, VmParams};

/// Nobody shares in a replay.
struct Nobody;

impl Peers for Nobody {
    fn known_hash(&self, _: VmId, _: Gfn) -> Option<u32> {
        None
    }

    fn nudge(&self, _: VmId, _: Gfn) {}
}

/// See the module text.
pub(super) struct Guest {
    pub(super) vm: Arc<Vm>,
    pub(super) ram: Arc<Ram>,
    pub(super) settings: VmSettings,
    pub(super) worth: Worth,
    pub(super) worker: WorkerHandle,
    pub(super) moves: Arc<Moves>,
    /// When its worker has something to do, in microseconds of the replay.
    pub(super) due_us: u64,
    core: Core,
    queue: Queue,
    streams: Streams,
}

/// How an access ended.
pub(super) enum Ended {
    /// The page is there. For how long the thread has stood still for it.
    Served(Duration),
    /// There is no memory for it now.
    Starved,
}

impl Guest {
    /// Powers a VM on; `None`: there is no memory for its tables.
    pub(super) fn new(
        id: VmId,
        known: &story::Vm,
        budget: &Arc<Budget>,
        pool: &Arc<Pool>,
        now: Instant,
    ) -> Result<Option<Self>, ReplayError> {
        let params = VmParams {
            name: known.facts.name.clone(),
            pages: known.facts.pages,
            workload: String::new(),
            inline: false,
            cached: false,
        };
        if !budget.take(params.metadata().0, Urgency::Reclaim) {
            return Ok(None);
        }
        let settings = settings(&known.facts);
        let ram = Arc::new(Ram::new(known.sizes()));
        let moves = Arc::new(Moves::default());
        let memory = |source| ReplayError::Memory {
            vm: known.facts.name.clone(),
            source,
        };
        let slots = swap_slots(&params, &settings);
        let disk = Arc::new(Disk::default());
        let swap = SwapFile::on(disk, slots, params.pages);
        let parts = Parts {
            budget: Arc::clone(budget),
            pool: Arc::clone(pool),
            words: None,
            zip: ZipCache::new("memvisor-replay", params.pages).map_err(memory)?,
            swap: (swap.map(Tiers::from)).map_err(|error| memory(std::io::Error::other(error)))?,
            parking: Arc::new(Parking::new().map_err(memory)?),
            // A mapping of a guest that maps nothing costs nothing.
            vma_budget: u32::MAX,
            witness: Some(Arc::<Moves>::clone(&moves)),
        };
        let vm = Vm::new(id, params, Box::new(Arc::clone(&ram)), parts).map_err(memory)?;
        let vm = Arc::new(vm);
        let (worker, queue) = queue();
        let sampler = Sampler::new(id.0.into(), now, None);
        Ok(Some(Self {
            core: Core::new(Arc::clone(&vm), Arc::new(Nobody), sampler, &queue, now),
            queue,
            worker,
            worth: Worth::default(),
            streams: Streams::new(MAX_AHEAD),
            due_us: 0,
            vm,
            ram,
            moves,
            settings,
        }))
    }

    /// Holds it to what it may have until the first plan that knows it.
    pub(super) fn hold_to_first_ceiling(&self, pools: &[ResourcePool]) {
        self.vm
            .orders
            .set_ceiling(first_ceiling(pools, &self.settings));
    }

    /// Takes other settings.
    pub(super) fn change(&mut self, facts: &VmFacts) {
        self.settings = settings(facts);
    }

    /// Whether an access to the page goes through without anybody knowing.
    pub(super) fn is_open(&self, gfn: Gfn) -> bool {
        let entry = self.vm.table.entry(gfn);
        entry.is_open() && entry.home() == Home::Resident
    }

    /// Serves a fault, as the fault thread does.
    pub(super) fn fault(&self, gfn: Gfn, write: bool, costs: &Costs) -> Result<Ended, ReplayError> {
        let before = self.moves.counts();
        let was_there = self.vm.table.entry(gfn).home() == Home::Resident;
        let access = if write { Access::Write } else { Access::Any };
        let outcome = resolve_in_stream(&self.streams, &self.vm, gfn, access);
        match outcome.map_err(ReplayError::Fault)? {
            Outcome::Served { .. } => {}
            Outcome::Ask(_, pending) => complete(&self.vm, pending),
            Outcome::Busy | Outcome::Starved => return Ok(Ended::Starved),
        }
        let stall = match was_there {
            true => Duration::from_nanos(costs.open),
            false => costs.of(&before, &self.moves.counts()),
        };
        Ok(Ended::Served(stall))
    }

    /// Takes a place in the queue for memory, for one page.
    pub(super) fn wait(&self, cause: Cause) {
        let mut need = Need::default();
        let barred = !self.vm.may_have(cause.urgency());
        match cause.urgency() {
            _ if barred => {}
            Urgency::Touch => need.touch = 1,
            _ => need.refill = 1,
        }
        let promised = self.vm.held() < self.vm.orders.promised();
        self.vm
            .budget
            .wait(&self.vm.parking, need, barred, promised);
    }

    /// Collects what it was granted there.
    pub(super) fn begin_turn(&self) {
        let _ = self.vm.begin_turn();
    }

    /// Gives its place up, and what it was granted and did not use.
    pub(super) fn end_wait(&self) {
        self.vm.budget.leave(&self.vm.parking);
        self.vm.end_turn();
    }

    /// A step of its worker. Returns when the next one is due, and how many pages it has evicted.
    pub(super) fn work(&mut self, now: Instant) -> Result<(Instant, u64), ReplayError> {
        let before = self.moves.evicted();
        let due = self.core.step(now, &mut self.queue.jobs.try_iter());
        let due = due.map_err(ReplayError::Worker)?;
        let evicted = self.moves.evicted() - before;
        Ok((due.unwrap_or(now + Duration::from_secs(1)), evicted))
    }
}

fn settings(facts: &VmFacts) -> VmSettings {
    VmSettings {
        shares: Shares::Custom(facts.shares),
        reservation: facts.reservation,
        limit: facts
            .limit
            .filter(|limit| *limit < Pages(facts.pages.into())),
        sharing: false,
        pool: match facts.pool.as_str() {
            "" => ROOT_POOL.to_owned(),
            pool => pool.to_owned(),
        },
        ..VmSettings::default()
    }
}
