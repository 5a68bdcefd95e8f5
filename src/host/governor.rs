//! The policy thread: snapshot, plan, orders.
//!
//! The policy itself is pure ([`crate::policy`]); here its input is gathered and its output is handed to
//! the workers, fault paths and balloons. It runs on a timer, and at once when an allocation makes free
//! memory cross the next threshold down.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::averages::Averages;
use super::balance::Balance;
use super::caches;
use super::configuration::Configuration;
use super::laws::Laws;
use super::member::Member;
use super::members::Members;
use super::orders;
use super::placement::Placement;
use super::pools::Pools;
use super::service::Pulse;
use super::snapshot::snapshot;
use super::tiers::Division;
use super::vm_settings;
use super::vm_status::note_rates;
use super::watchdog::Watchdog;
use crate::page::Budget;
use crate::policy::{Config, FreeState, HostSnapshot, Plan, Stuck, Thresholds, VmPlan, VmSnapshot};
use crate::reclaim::{Job, LargePages, Routine, ScanSettings, host_ghz};
use crate::settings::{Domain, HostSettings, VmSettings};
use crate::telemetry::{self, Overcommit};
use crate::throttle::Throttle;
use crate::units::Pages;

/// How often the policy plans without being called.
pub(crate) const PERIOD: Duration = Duration::from_millis(250);
/// The shortest time between two plans: a host that is out of memory rings the alarm at each fault.
pub(crate) const MIN_PERIOD: Duration = Duration::from_millis(10);
/// Guests that take and free memory can change the state, and block and unblock each other, at every plan.
static STATES: Throttle = Throttle::new(100, Duration::from_secs(1));
static BLOCKS: Throttle = Throttle::new(100, Duration::from_secs(1));
/// Pages that must be free beside what a host needs to become high for large pages to be made: the kernel has two copies
/// of what it puts into one, and several VMs may do that at once. Their copies must not take the host out of high.
const SPARE_FOR_COPIES: u64 = 2048;
/// How often the log says that nothing can be reclaimed.
const STUCK_WARNING: Duration = Duration::from_secs(10);

/// What was seen, the settings in force, and the plan that follows.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) snapshot: HostSnapshot,
    pub(super) config: Config,
    pub(super) plan: Plan,
}

/// What the policy thread keeps from plan to plan.
#[derive(Debug)]
struct Known {
    balance: Balance,
    laws: Laws,
    watchdog: Watchdog,
    division: Division,
    placement: Placement,
}

impl Known {
    fn new() -> Self {
        Self {
            balance: Balance::default(),
            laws: Laws::default(),
            watchdog: Watchdog::new(),
            division: Division::default(),
            placement: Placement::default(),
        }
    }
}

/// The owner of what the policy decides. Its locks are taken one at a time.
#[derive(Debug)]
pub(super) struct Governor {
    budget: Arc<Budget>,
    members: Arc<Members>,
    configuration: Arc<Configuration>,
    pools: Arc<Pools>,
    ghz: f64,
    state: Mutex<FreeState>,
    /// What was decided last.
    latest: Mutex<Option<Decision>>,
    /// When that was; before the first plan, when the daemon started.
    planned: Mutex<Instant>,
    overcommit: Mutex<Averages>,
    /// Changes with each snapshot, so that no VM always bears the odd page.
    seed: AtomicU64,
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Governor {
    pub(super) fn new(
        budget: &Arc<Budget>,
        members: &Arc<Members>,
        configuration: &Arc<Configuration>,
        pools: &Arc<Pools>,
    ) -> Self {
        Self {
            budget: Arc::clone(budget),
            members: Arc::clone(members),
            configuration: Arc::clone(configuration),
            pools: Arc::clone(pools),
            ghz: host_ghz(),
            state: Mutex::default(),
            latest: Mutex::default(),
            planned: Mutex::new(Instant::now()),
            overcommit: Mutex::default(),
            seed: AtomicU64::new(0),
        }
    }

    /// Starts the policy thread, which tells `pulse` of each plan. It ends when the registry is closed and it is
    /// woken.
    pub(super) fn start(self: &Arc<Self>, pulse: Pulse) -> io::Result<JoinHandle<()>> {
        let this = Arc::clone(self);
        thread::Builder::new()
            .name("policy".to_owned())
            .spawn(move || this.run(pulse))
    }

    fn run(&self, mut pulse: Pulse) {
        let mut warned = None;
        let mut known = Known::new();
        loop {
            let started = Instant::now();
            let decision = self.decide(&mut known, started);
            self.warn_stuck(decision.plan.stuck, &mut warned);
            pulse.beat(started, decision.plan.state, decision.snapshot.vms.len());
            *lock(&self.latest) = Some(decision);
            *lock(&self.planned) = Instant::now();
            // In a loop, because a parked thread may wake for no reason.
            while !self.members.is_closed() && started.elapsed() < MIN_PERIOD {
                thread::park_timeout(MIN_PERIOD.saturating_sub(started.elapsed()));
            }
            self.budget.wait_alarm(PERIOD);
            if self.members.is_closed() {
                return;
            }
        }
    }

    /// Makes the policy plan at once.
    pub(super) fn wake(&self) {
        self.budget.ring_alarm();
    }

    /// How short the host is of memory.
    pub(super) fn state(&self) -> FreeState {
        *lock(&self.state)
    }

    /// What was decided last; `None` before the first plan.
    pub(super) fn latest(&self) -> Option<Decision> {
        lock(&self.latest).clone()
    }

    /// When something was decided last; before the first plan, when the daemon started.
    pub(super) fn planned(&self) -> Instant {
        *lock(&self.planned)
    }

    /// By how much the configured memory of the running VMs exceeds the budget.
    pub(super) fn overcommit(&self) -> Overcommit {
        lock(&self.overcommit).status()
    }

    fn note_overcommit(&self, members: &[Arc<Member>], now: Instant) {
        let sizes = members.iter().map(|member| member.vm.params.pages);
        let requested = Pages(sizes.map(u64::from).sum());
        let level = telemetry::overcommit(requested, self.budget.total());
        lock(&self.overcommit).note(now, level);
    }

    /// Takes a snapshot, plans, and hands out the plan.
    fn decide(&self, known: &mut Known, now: Instant) -> Decision {
        let balance = &mut known.balance;
        let settings = self.configuration.settings();
        let members = self.members.all();
        let floor = settings.sample_active_pct_min;
        let price = caches::price(members.iter().map(|it| (&*it.vm, it.settings().limit)));
        let mut stalls = Vec::with_capacity(members.len());
        for member in &members {
            self.apply_settings(member, &settings, members.len());
            watch_balloon(member, now);
            // Taken at each plan, so that its shares are of regular intervals whether a client asks or not.
            let stalled = member.stalled();
            caches::apply(member, &settings, (&stalled, price), now);
            note_rates(member, floor, now);
            stalls.push((member, stalled));
        }
        known.placement.look(&stalls, settings.place_guests, now);
        let cache = self.configuration.swap_cache.as_deref();
        known.division.apply(cache, &settings, &members);
        self.note_overcommit(&members, now);
        let asked = (self.state(), self.configuration.revision());
        let estimate = |member: &Arc<Member>| (member.vm.id, member.active(floor));
        let estimates = members.iter().map(estimate).collect();
        balance.refresh(now, settings.balance_period, asked, estimates);
        let resource_pools = self.configuration.resource_pools.list();
        let seen = (asked.0, self.seed.fetch_add(1, Ordering::Relaxed));
        let mut snapshot = HostSnapshot {
            least_free: Some(self.budget.take_least_free()),
            ..snapshot(&self.budget, &members, &resource_pools, seen, now, |vm| {
                balance.active(vm)
            })
        };
        let config = settings.policy();
        known.laws.recall(&mut snapshot, config.law, now);
        let plan = self.configuration.policy.plan(&snapshot, &config);
        known.laws.keep(&plan, config.law, now);
        self.carry_out(&members, &snapshot, (&config, &plan));
        known.watchdog.check(&members, &snapshot, plan.state, now);
        Decision {
            snapshot,
            config,
            plan,
        }
    }

    /// Tells a VM's own threads what the settings are now.
    fn apply_settings(&self, member: &Member, settings: &HostSettings, vms: usize) {
        let own = member.settings();
        let scan_rate = if own.sharing {
            let vms = u32::try_from(vms).unwrap_or(u32::MAX);
            let scan = ScanSettings {
                scan_time: settings.share_scan_time,
                scan_ghz: settings.share_scan_ghz,
                rate_max: settings.share_rate_max,
                part: if self.rests(settings) {
                    settings.scan_at_rest
                } else {
                    100
                },
            };
            scan.rate(member.vm.params.pages, self.ghz, vms)
        } else {
            0
        };
        let large = self.large_pages(settings);
        member.worker.change(|routine| {
            *routine = Routine {
                scan_rate,
                sample_period: settings.sample_period,
                victims: settings.victims,
                unswap_rate: settings.unswap_pages(),
                cold: settings.cold(),
                large,
            }
        });
        let pages = member.vm.params.pages;
        member.set_balloon_max(vm_settings::balloon_max(pages, &own, settings));
        self.move_domain(member, &own);
    }

    /// Whether the host is at rest: not short, and with `minFree` free.
    fn rests(&self, settings: &HostSettings) -> bool {
        let saved = self.pools.saved();
        let thresholds = Thresholds::sharing(self.budget.total(), saved, &settings.policy());
        !self.state().is_short() && self.budget.free() >= thresholds.min_free
    }

    /// What becomes of large pages: in high they stay, as in ESX, and as long as there is more free than a host needs to
    /// become high, more are made.
    fn large_pages(&self, settings: &HostSettings) -> LargePages {
        let is_high = self.state() == FreeState::High;
        if !settings.alloc_guest_large_page || !is_high {
            return LargePages::Break;
        }
        let saved = self.pools.saved();
        let thresholds = Thresholds::sharing(self.budget.total(), saved, &settings.policy());
        if self.budget.free().0 < thresholds.to_high.0 + SPARE_FOR_COPIES {
            return LargePages::Keep;
        }
        LargePages::Grow {
            all: settings.cold_age.is_zero(),
        }
    }

    /// Moves the VM to the sharing domain that its settings and the host's say.
    fn move_domain(&self, member: &Member, settings: &VmSettings) {
        let id = member.vm.id;
        let domain = self.configuration.domain(id, settings);
        if domain == member.domain() {
            return;
        }
        match self.pools.get(id, &domain) {
            Ok(pool) => {
                let shares = domain != Domain::None;
                let join = Job::Join(shares.then_some(pool));
                // A worker that is too far behind takes no job: the next plan tries again.
                if member.worker.suggest(join) {
                    member.set_domain(domain);
                }
            }
            Err(error) => {
                let name = &member.vm.params.name;
                tracing::error!(vm = %name, %error, "no pool can be made; its sharing stays as it is");
            }
        }
    }

    fn carry_out(
        &self,
        members: &[Arc<Member>],
        snapshot: &HostSnapshot,
        (config, plan): (&Config, &Plan),
    ) {
        let before = std::mem::replace(&mut *lock(&self.state), plan.state);
        if before != plan.state {
            let free = self.budget.free().0;
            STATES.line(|unsaid| {
                tracing::info!(from = %before, to = %plan.state, free, unsaid, "free state");
            });
        }
        orders::set_marks(&self.budget, snapshot, config, plan);
        for ((member, vm_plan), seen) in members.iter().zip(&plan.vms).zip(&snapshot.vms) {
            give_orders(member, vm_plan, seen, plan.stuck);
        }
    }

    fn warn_stuck(&self, stuck: Option<Stuck>, warned: &mut Option<Instant>) {
        let Some(stuck) = stuck else { return };
        // A host that is short, but in which nobody waits, harms nobody.
        if self.budget.starving() == 0 || warned.is_some_and(|at| at.elapsed() < STUCK_WARNING) {
            return;
        }
        *warned = Some(Instant::now());
        tracing::warn!(
            why = ?stuck,
            free_pages = self.budget.free().0,
            starving_vms = self.budget.starving(),
            "memory is short and nothing can be reclaimed: end a guest, or give swap room"
        );
    }
}

/// Finds out whether the balloon of a VM is to be waited for.
fn watch_balloon(member: &Member, now: Instant) {
    let (target, size) = (member.balloon_target(), member.ballooned());
    let changed = member.balloon.note_progress(now, target, size);
    let is_stuck = changed == Some(false) && member.balloon.connected.load(Ordering::Relaxed);
    let vm = &member.vm.params.name;
    if is_stuck {
        tracing::info!(
            vm,
            target = target.0,
            size = size.0,
            "its balloon does not move: not waited for"
        );
    } else if changed == Some(true) {
        tracing::debug!(vm, "its balloon is waited for");
    }
}

fn give_orders(member: &Member, plan: &VmPlan, seen: &VmSnapshot, stuck: Option<Stuck>) {
    let (vm, balloon) = (&member.vm, &member.balloon);
    let before = vm.orders.balloon_target();
    let blocked = orders::give(vm, plan, seen, stuck);
    let popped = vm.stats.pops.get() != balloon.told_pops.load(Ordering::Relaxed);
    // A popped page is no change of the target, but the agent must learn that its balloon is void.
    if vm.orders.balloon_target() != before || popped {
        balloon.doorbell.ring();
    }
    // With each plan: a sleeping worker reckoned its alarm from an older order, or while enough was free.
    if plan.evict > Pages(0) {
        member.worker.suggest(Job::Wake);
    }
    if let Some(blocked) = blocked {
        BLOCKS.line(|unsaid| tracing::info!(vm = %vm.params.name, ?blocked, unsaid, "allocations"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, hello};
    use super::*;
    use crate::page::Urgency;

    fn governor(rig: &Rig) -> Governor {
        Governor::new(&rig.budget, &rig.members, &rig.configuration, &rig.pools)
    }

    #[test]
    fn decision_hands_out_the_free_state_and_the_settings() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 1024));
        let governor = governor(&rig);
        let mut known = Known::new();
        rig.configuration
            .set("Memvisor.ScanAtRest", "5")
            .expect("in range");
        let decision = governor.decide(&mut known, Instant::now());
        assert_eq!(decision.snapshot.vms.len(), 1);
        assert_eq!(governor.state(), FreeState::High);
        assert_eq!(vm.balloon.max(), Pages(1024 * 65 / 100));
        assert_eq!(vm.worker.routine().scan_rate, 17, "nobody needs memory");

        assert!(rig.budget.take(rig.budget.free().0, Urgency::Reclaim));
        rig.configuration
            .set("Mem.CtlMaxPercent", "10")
            .expect("in range");
        let next = governor.decide(&mut known, Instant::now());
        assert_eq!(governor.state(), FreeState::Low);
        assert_eq!(vm.balloon.max(), Pages(102));
        assert_ne!(next.snapshot.seed, decision.snapshot.seed);
        assert_eq!(vm.worker.routine().scan_rate, 341, "1024 pages in 3 s");
        rig.budget
            .give(rig.budget.used().0 - vm.vm.params.metadata().0);
    }

    #[test]
    fn thread_plans_until_the_registry_is_closed() {
        let rig = Rig::new(None);
        let governor = Arc::new(governor(&rig));
        let thread = governor.start(Pulse::default()).expect("a thread");
        while governor.latest().is_none() {
            thread::yield_now();
        }
        rig.members.close("the test ends");
        governor.wake();
        thread.join().expect("it ends");
    }
}
