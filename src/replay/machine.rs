//! Plays a story to the code of the daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::content::Size;
use super::counts::Counts;
use super::error::ReplayError;
use super::guest::{Ended, Guest};
use super::over_time::OverTime;
use super::story::{Doing, Step, Story};
use super::{Costs, Options};
use crate::fault::{Access, cause_at};
use crate::host::{
    Balance, MIN_PERIOD, PERIOD, bound_cache, give_orders, place_of_pool, price_of_memory, reserve,
    set_marks, snapshot_of,
};
use crate::page::{Budget, Urgency};
use crate::policy::{FreeState, HostSnapshot, Policy, ResourcePool, VmSnapshot};
use crate::pool::{Hints, Pool};
use crate::reclaim::victims::Choice;
use crate::reclaim::{Job, LargePages, Routine};
use crate::settings::HostSettings;
use crate::units::{Gfn, Pages, VmId};
use crate::vm::Cause;

/// The longest that a fault waits for memory. A host in which nothing can be reclaimed would have it wait for ever.
const LONGEST_WAIT: u64 = 5_000_000;

/// What a replay has found.
#[derive(Debug)]
pub(super) struct Played {
    /// What happened to pages, VM by VM.
    pub(super) counts: Vec<Counts>,
    /// For how long threads stood still, VM by VM.
    pub(super) stalled: Vec<Duration>,
    /// Faults that found no memory.
    pub(super) starved: u64,
    /// Faults that found none for so long that their accesses were left out.
    pub(super) unserved: u64,
    /// The most memory that was used.
    pub(super) peak: Pages,
    pub(super) over_time: OverTime,
}

/// A simulated host. See the text of [`replay`](super).
pub(super) struct Machine<'a> {
    story: &'a Story,
    policy: &'static dyn Policy,
    victims: Choice,
    settings: &'a HostSettings,
    costs: Costs,
    budget: Arc<Budget>,
    pool: Arc<Pool>,
    guests: Vec<Option<Guest>>,
    resource_pools: &'a [ResourcePool],
    balance: Balance,
    state: FreeState,
    /// The moment at which the story begins.
    base: Instant,
    now_us: u64,
    /// When something is due that no access causes.
    due_us: u64,
    plan_due: u64,
    planned: u64,
    plans: u64,
    played: Played,
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        story: &'a Story,
        options: &'a Options,
        policy: &'static dyn Policy,
        victims: Choice,
    ) -> Result<Self, ReplayError> {
        let memory = |source| ReplayError::Memory {
            vm: String::new(),
            source,
        };
        let hints = Arc::new(Hints::new(Pages(1)).map_err(memory)?);
        let pool = Pool::new("memvisor-replay-pool", 1, &hints).map_err(memory)?;
        let budget = Budget::new(options.memory, reserve(options.memory));
        let overhead = story.host.as_ref().map_or(Pages(0), |host| host.overhead);
        // It cannot fail: nothing is used yet, and where it is too much, no VM will fit.
        let _ = budget.take(overhead.0.min(options.memory.0), Urgency::Reclaim);
        let vms = story.vms.len();
        Ok(Self {
            story,
            policy,
            victims,
            settings: &options.settings,
            costs: options.costs,
            budget: Arc::new(budget),
            pool: Arc::new(pool),
            guests: (0..vms).map(|_| None).collect(),
            resource_pools: &[],
            balance: Balance::default(),
            state: FreeState::default(),
            base: Instant::now(),
            now_us: 0,
            due_us: 0,
            plan_due: 0,
            planned: 0,
            plans: 0,
            played: Played {
                counts: vec![Counts::default(); vms],
                stalled: vec![Duration::ZERO; vms],
                starved: 0,
                unserved: 0,
                peak: Pages(0),
                over_time: OverTime::new(story),
            },
        })
    }

    /// Plays the whole story.
    pub(super) fn play(mut self) -> Result<Played, ReplayError> {
        for step in &self.story.steps {
            if step.at_us >= self.due_us {
                self.pass_until(step.at_us)?;
            }
            // Never back: a fault that waited may have taken longer than the next step is away.
            self.now_us = self.now_us.max(step.at_us);
            if step.what == Doing::Pools {
                let pools = self.story.pools.get(step.gfn as usize);
                self.resource_pools = pools.map_or(&[], Vec::as_slice);
                self.plan_soon();
                continue;
            }
            let gfn = Gfn(step.gfn);
            match (step.what, &mut self.guests[usize::from(step.vm)]) {
                (Doing::Read | Doing::Write, Some(guest)) if !guest.is_open(gfn) => {
                    self.fault(step)?;
                }
                (Doing::Size, Some(guest)) => guest.ram.set(gfn, Size(step.size)),
                (Doing::Appear, None) => self.appear(step.vm.into())?,
                (Doing::Change, Some(guest)) => {
                    let vm = &self.story.vms[usize::from(step.vm)];
                    if let Some(facts) = vm.change(step.gfn) {
                        guest.change(facts);
                    }
                }
                (Doing::Leave, Some(_)) => self.leave(step.vm.into()),
                _ => {}
            }
        }
        (0..self.guests.len()).for_each(|vm| self.leave(vm));
        Ok(self.played)
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.now_us)
    }

    fn appear(&mut self, vm: usize) -> Result<(), ReplayError> {
        let known = &self.story.vms[vm];
        let id = VmId(u32::try_from(vm + 1).unwrap_or(u32::MAX));
        let until = self.now_us + LONGEST_WAIT;
        loop {
            let guest = Guest::new(id, known, &self.budget, &self.pool, self.now())?;
            if let Some(guest) = guest {
                guest.hold_to_first_ceiling(self.resource_pools);
                self.guests[vm] = Some(guest);
                self.plan_soon();
                return Ok(());
            }
            if self.now_us >= until {
                return Err(ReplayError::Tables {
                    vm: known.facts.name.clone(),
                    memory: self.budget.total().bytes(),
                });
            }
            self.pass_to_next()?;
        }
    }

    fn leave(&mut self, vm: usize) {
        if let Some(guest) = self.guests[vm].take() {
            self.played.counts[vm] = guest.moves.counts();
            guest.vm.tear_down();
            self.plan_soon();
        }
    }

    /// Serves a fault. It waits until there is memory, and everybody else with it.
    fn fault(&mut self, step: &Step) -> Result<(), ReplayError> {
        let (vm, gfn) = (usize::from(step.vm), Gfn(step.gfn));
        let write = step.what == Doing::Write;
        let began = self.now_us;
        let mut waited = false;
        loop {
            let Some(guest) = &self.guests[vm] else {
                return Ok(());
            };
            let home = guest.vm.table.entry(gfn).home();
            let cause = cause_at(home, Access::Any);
            if waited {
                guest.begin_turn();
            }
            let ended = guest.fault(gfn, write, &self.costs)?;
            if waited {
                guest.end_wait();
            }
            if let Ended::Served(stall) = ended {
                let waits = Duration::from_micros(self.now_us - began);
                self.stalled(vm, cause, stall, waits);
                break;
            }
            self.played.starved += u64::from(!waited);
            waited = true;
            if self.now_us - began >= LONGEST_WAIT {
                self.played.unserved += 1;
                self.stalled(
                    vm,
                    cause,
                    Duration::ZERO,
                    Duration::from_micros(LONGEST_WAIT),
                );
                break;
            }
            guest.wait(cause);
            self.heed_alarm();
            self.pass_to_next()?;
        }
        self.heed_alarm();
        Ok(())
    }

    /// Notes that a thread of a VM stood still, for its page and before that for memory.
    fn stalled(&mut self, vm: usize, cause: Cause, page: Duration, memory: Duration) {
        self.played.stalled[vm] += page + memory;
        let now = self.now();
        let Some(guest) = &self.guests[vm] else {
            return;
        };
        for (cause, from, time) in [(Cause::Memory, now - memory, memory), (cause, now, page)] {
            if !time.is_zero() {
                let stall = guest.vm.stalls.begin(cause, from);
                guest.vm.stalls.end(stall, from + time);
            }
        }
    }

    /// Has the policy plan as soon as it may if the budget has called it.
    fn heed_alarm(&mut self) {
        self.played.peak = self.played.peak.max(self.budget.used());
        if self.budget.take_alarm() {
            self.plan_soon();
        }
    }

    fn plan_soon(&mut self) {
        let soonest = self.planned + micros(MIN_PERIOD);
        self.plan_due = self.plan_due.min(soonest);
        self.due_us = self.due_us.min(self.plan_due);
    }

    /// Lets time pass, and does what becomes due meanwhile.
    fn pass_until(&mut self, at_us: u64) -> Result<(), ReplayError> {
        while self.due_us <= at_us {
            self.pass_to_next()?;
        }
        Ok(())
    }

    /// Lets time pass until something is due, and does it.
    fn pass_to_next(&mut self) -> Result<(), ReplayError> {
        self.now_us = self.now_us.max(self.due_us);
        if self.played.over_time.due_us() <= self.now_us {
            self.sample();
        }
        if self.plan_due <= self.now_us {
            self.plan();
        }
        for at in 0..self.guests.len() {
            self.work(at)?;
        }
        let workers = self.guests.iter().flatten().map(|guest| guest.due_us);
        let due = workers.chain([self.plan_due, self.played.over_time.due_us()]);
        self.due_us = due.min().unwrap_or(self.plan_due);
        Ok(())
    }

    /// Lets a worker take a step if it is due.
    fn work(&mut self, at: usize) -> Result<(), ReplayError> {
        let now = self.now();
        let Some(guest) = self.guests[at]
            .as_mut()
            .filter(|guest| guest.due_us <= self.now_us)
        else {
            return Ok(());
        };
        let (due, evicted) = guest.work(now)?;
        let due = due.saturating_duration_since(self.base);
        // Upwards: just before its time it would do nothing, again and again.
        let due = u64::try_from(due.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let busy = (evicted * self.costs.evict).div_ceil(1000).max(1);
        guest.due_us = due.max(self.now_us + busy);
        self.heed_alarm();
        Ok(())
    }

    /// Takes a snapshot, plans, and hands out the plan, as the daemon's policy thread does.
    fn plan(&mut self) {
        let now = self.now();
        let settings = self.settings;
        let routine = Routine {
            scan_rate: 0,
            sample_period: settings.sample_period,
            victims: self.victims,
            unswap_rate: settings.unswap_pages(),
            cold: settings.cold(),
            large: LargePages::Break,
        };
        let floor = settings.sample_active_pct_min;
        let mut estimates = HashMap::new();
        let guests = self.guests.iter().flatten();
        let price = price_of_memory(guests.map(|guest| (&*guest.vm, guest.settings.limit)));
        for guest in self.guests.iter_mut().flatten() {
            guest.worker.change(|it| *it = routine);
            let stalled = guest.vm.stalled(|| 1, now);
            bound_cache(
                &guest.vm,
                &mut guest.worth,
                settings,
                (&stalled, price),
                now,
            );
            let size = Pages(guest.vm.params.pages.into());
            estimates.insert(guest.vm.id, guest.vm.activity.pages(size, floor));
        }
        let question = (self.state, 0);
        self.balance
            .refresh(now, settings.balance_period, question, estimates);
        let active = |vm| self.balance.active(vm);
        let vms = self.guests.iter().flatten().map(|guest| {
            let vm = &guest.vm;
            VmSnapshot {
                resource_pool: place_of_pool(self.resource_pools, &guest.settings.pool),
                ..snapshot_of(vm, &guest.settings, now, active(vm.id))
            }
        });
        let snapshot = HostSnapshot {
            budget: self.budget.total(),
            used: self.budget.used(),
            least_free: Some(self.budget.take_least_free()),
            resource_pools: self.resource_pools.to_vec(),
            state: self.state,
            vms: vms.collect(),
            seed: self.plans,
        };
        let config = settings.policy();
        let plan = self.policy.plan(&snapshot, &config);
        set_marks(&self.budget, &snapshot, &config, &plan);
        let guests = self.guests.iter_mut().flatten();
        for ((guest, vm_plan), seen) in guests.zip(&plan.vms).zip(&snapshot.vms) {
            let _ = give_orders(&guest.vm, vm_plan, seen, plan.stuck);
            guest.worker.suggest(Job::Wake);
            guest.due_us = self.now_us;
        }
        self.state = plan.state;
        self.plans += 1;
        self.planned = self.now_us;
        self.plan_due = self.now_us + micros(PERIOD);
    }

    /// Notes how things are, unless the last VM has left.
    fn sample(&mut self) {
        let host = (&*self.budget, self.state);
        let at = (self.now_us, self.now());
        self.played.over_time.sample(at, host, &self.guests);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
