//! What a worker does next: its turn, without a thread, a queue or a clock of its own.
//!
//! Only the worker of a VM takes pages away from it and commands its shim. It works in small pieces, in this order: a
//! scan of pages that other VMs found to equal theirs; one job of the balloon's session or the guest, which wait for
//! the answer; eviction that the policy has ordered; a slice of scanning and a step of sampling when they are due;
//! what changed settings ask of sharing; a slice of a survey; what they ask of the stores; a cluster of pages to
//! demote; a slice of swapped pages to bring back; a slice of the VM to be looked through for cold pages; and a large
//! page to be made or broken.
//!
//! When a piece is due depends on the time, as do the pauses after something that could not be done. Each step is
//! given the time, and returns until when nothing is due. A thread with a queue sleeps until then
//! ([`Worker`](super::Worker)); a simulation with a clock of its own runs the same steps in every schedule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::atomic::AtomicCell;

use super::cold::{Cold, Hand};
use super::demote::Demoter;
use super::evict::Evictor;
use super::job::{Job, Queue, Routine};
use super::large::{self, LargeHand};
use super::pace::Pace;
use super::stores::Stores;
use super::unswap::Unswapper;
use super::victims::Choice;
use crate::balloon;
use crate::engine::EngineError;
use crate::sample::Sampler;
use crate::share::{self, Joining, Peers, Scanner, Survey};
use crate::units::{Gfn, Pages};
use crate::vm::{Eviction, Vm};

/// The most pages of nudges that are scanned together.
const NUDGES: usize = 512;
/// The longest sleep of a worker that has nothing to do.
/// It misses nothing: what is due earlier is known, and a job ends the sleep.
const IDLE: Duration = Duration::from_secs(10);
/// How long to leave eviction alone when nothing could be evicted.
const EVICT_PAUSE: Duration = Duration::from_millis(50);

/// The state of one worker. See the module text.
pub(crate) struct Core {
    vm: Arc<Vm>,
    peers: Arc<dyn Peers>,
    routine: Arc<AtomicCell<Routine>>,
    evictor: Evictor,
    scanner: Scanner,
    sampler: Sampler,
    pace: Pace,
    evict_after: Instant,
    joining: Option<Joining>,
    survey: Option<Box<Survey>>,
    stores: Stores,
    demoter: Demoter,
    unswapper: Unswapper,
    cold: Hand,
    large: LargeHand,
}

impl Core {
    /// The worker of `vm`. Its routine is the one that the handle of `queue` sets.
    pub(crate) fn new(
        vm: Arc<Vm>,
        peers: Arc<dyn Peers>,
        sampler: Sampler,
        queue: &Queue,
        now: Instant,
    ) -> Self {
        Self {
            // Each VM has dice of its own, and a simulation that runs again throws the same.
            evictor: Evictor::new(u64::from(vm.id.0) << 32 | 0x9e37_79b9),
            scanner: Scanner::default(),
            sampler,
            pace: Pace::new(vm.table.pages(), now),
            evict_after: now,
            joining: None,
            survey: None,
            stores: Stores::default(),
            demoter: Demoter::default(),
            unswapper: Unswapper::default(),
            cold: Hand::new(Cold::default(), now),
            large: LargeHand::default(),
            routine: Arc::clone(&queue.routine),
            vm,
            peers,
        }
    }

    /// Does the next of `jobs`, and a piece of everything that is due at `now`. Returns until when the worker may
    /// sleep if no job comes; `None`: the worker is no longer wanted.
    ///
    /// # Errors
    /// [`EngineError`]: the VM cannot go on.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        jobs: &mut impl Iterator<Item = Job>,
    ) -> Result<Option<Instant>, EngineError> {
        let (nudged, job) = next(jobs);
        if !nudged.is_empty() && self.scanner.scan_nudged(&self.vm, &*self.peers, nudged)? > 0 {
            self.vm.settled.note(None);
        }
        match job {
            Some(Job::End) => return Ok(None),
            Some(job) => self.job(job, now)?,
            None => {}
        }
        let routine = self.routine.load();
        if self.evict_due().is_some_and(|due| now >= due) {
            self.evict(now, routine.victims)?;
        }
        let rate = routine.scan_rate;
        if self.scan_due(rate).is_some_and(|due| now >= due) {
            self.scan(now, rate)?;
        }
        self.sampler.tick(&self.vm, now, routine.sample_period)?;
        if let Some(joining) = &mut self.joining
            && joining.step(&self.vm, now)?
        {
            self.joining = None;
            // A pass from the start: what was looked at during the move was not looked up in any pool.
            self.scanner = Scanner::default();
            self.pace = Pace::new(self.vm.table.pages(), now);
        }
        if let Some(survey) = &mut self.survey
            && survey.step(&self.vm)
        {
            self.survey = None;
        }
        self.stores.step(&self.vm, now);
        self.demoter.step(&self.vm, now);
        self.unswapper.step(&self.vm, now, routine.unswap_rate);
        let evictor = &mut self.evictor;
        self.cold.step(&self.vm, evictor, now, routine.cold)?;
        if let Some(broken) = self.large.step(&self.vm, now, routine.large)?
            && routine.scan_rate > 0
        {
            let pages = broken.iter().collect();
            self.scanner.scan_nudged(&self.vm, &*self.peers, pages)?;
        }
        self.vm.give_back_emptied();
        Ok(Some(self.due(now, routine)))
    }

    /// When there is something to do again if no job comes.
    fn due(&self, now: Instant, routine: Routine) -> Instant {
        let period = routine.sample_period;
        let sample = (!period.is_zero()).then(|| self.sampler.due(&self.vm, now, period));
        let joining = self.joining.as_ref().map(Joining::due);
        let scan = self.scan_due(routine.scan_rate);
        let survey = self.survey.as_ref().map(|_| now);
        let stores = [self.stores.due(), self.demoter.due()];
        let stores = stores
            .into_iter()
            .chain([self.unswapper.due(), self.cold.due()]);
        let large = self.large.due(&self.vm, routine.large);
        let all = [self.evict_due(), scan, sample, joining, survey, large];
        let all = all.into_iter().chain(stores);
        all.flatten().fold(now + IDLE, Instant::min)
    }

    /// Whether faults wait for memory, and it is to free some.
    pub(super) fn is_waited_for(&self) -> bool {
        self.vm.budget.starving() > 0 && self.evict_due().is_some()
    }

    fn evict_due(&self) -> Option<Instant> {
        let Eviction { pages, always, .. } = self.vm.orders.evict();
        let is_due = pages > Pages(0) && (always || self.vm.budget.is_below_aim());
        is_due.then_some(self.evict_after)
    }

    fn scan_due(&self, rate: u32) -> Option<Instant> {
        (rate > 0).then(|| self.pace.due(rate, self.vm.stats.served()))
    }

    fn job(&mut self, job: Job, now: Instant) -> Result<(), EngineError> {
        let vm = &self.vm;
        // Failed sends are ignored: an asker that is gone needs no answer.
        match job {
            Job::Inflate(runs, answer) => {
                let _ = answer.send(balloon::inflate(vm, &runs)?);
            }
            Job::Deflate(runs, answer) => {
                let _ = answer.send(balloon::deflate(vm, &runs));
            }
            Job::ReleaseAll(answer) => {
                balloon::release_all(vm);
                let _ = answer.send(());
            }
            Job::Attach(request, answer) => {
                let attached = share::attach(vm, &*self.peers, request)?;
                // The source pages are to be scanned again, so the VM is not settled.
                vm.settled.note(None);
                let _ = answer.send(attached);
                vm.parking.ring();
            }
            Job::Join(pool) => {
                self.joining = Some(Joining::begin(vm, pool, now));
                vm.settled.note(None);
            }
            Job::Survey(survey) => self.survey = Some(survey),
            // `step` has done these already.
            Job::Nudge(_) | Job::End | Job::Wake => {}
        }
        Ok(())
    }

    fn evict(&mut self, now: Instant, victims: Choice) -> Result<(), EngineError> {
        let Eviction { pages, means, .. } = self.vm.orders.evict();
        large::make_choice(&self.vm, pages)?;
        let evicted = self.evictor.evict(&self.vm, pages, means, victims)?;
        self.vm.orders.evicted(evicted);
        // Not in vain: the pages wait in the second queue, and the next batch may find one that has waited long enough.
        if evicted == Pages(0) && self.evictor.has_deferred() {
            return Ok(());
        }
        self.vm.note_evicted(evicted, means, now);
        if evicted == Pages(0) {
            self.evict_after = now + EVICT_PAUSE;
        } else if evicted >= pages && self.vm.budget.is_below_aim() {
            // The order is carried out, yet memory is short: guests took more than it foresaw. Get the next order at
            // once.
            self.vm.budget.ring_alarm();
        }
        Ok(())
    }

    fn scan(&mut self, now: Instant, rate: u32) -> Result<(), EngineError> {
        let vm = &self.vm;
        // Before the scan: a page that becomes resident during it may be missed, so the VM is not settled then.
        let faults = vm.stats.served();
        let found = self.scanner.scan(vm, &*self.peers, Pace::slice(rate))?;
        if found.changed > 0 || found.shared > 0 {
            vm.settled.note(None);
        }
        let settled = self.pace.note(now, found, rate, faults);
        if found.pass_ended {
            vm.stats.passes.one();
            // A pass during a move, when nothing may be shared, says nothing about the new pool.
            vm.settled.note(settled.filter(|_| self.joining.is_none()));
        }
        Ok(())
    }
}

/// The pages of nudges that are next in the queue, together, and the job behind them if there is one.
fn next(jobs: &mut impl Iterator<Item = Job>) -> (Vec<Gfn>, Option<Job>) {
    let mut nudged = Vec::new();
    while nudged.len() < NUDGES {
        match jobs.next() {
            Some(Job::Nudge(gfn)) => nudged.push(gfn),
            other => return (nudged, other),
        }
    }
    (nudged, None)
}
