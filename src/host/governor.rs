//! The policy thread: snapshot, plan, orders.
//!
//! The policy itself is pure ([`crate::policy`]); here its input is gathered and its output handed to
//! those who carry it out. It runs on a timer, and at once when an allocation makes free memory cross
//! the next threshold down.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::balance::Balance;
use super::daemon::Host;
use super::member::Member;
use super::snapshot::snapshot;
use super::vm_settings;
use crate::policy::{Config, HostSnapshot, Plan, Stuck, Thresholds, VmPlan, plan};
use crate::reclaim::{Job, ScanSettings};
use crate::settings::HostSettings;
use crate::units::Pages;
use crate::vm::{Blocked, Means};

/// How often the policy looks without being called.
const PERIOD: Duration = Duration::from_millis(250);
/// The shortest time between two looks: a host that is out of memory rings the alarm at each fault.
const MIN_PERIOD: Duration = Duration::from_millis(10);
/// How often the configuration file is looked at.
const FILE_PERIOD: Duration = Duration::from_secs(1);
/// How often the log says that nothing can be reclaimed.
const STUCK_WARNING: Duration = Duration::from_secs(10);

/// Starts the thread. It ends when the host stops.
pub(super) fn start(host: &Arc<Host>) -> io::Result<JoinHandle<()>> {
    let host = Arc::clone(host);
    thread::Builder::new()
        .name("policy".to_owned())
        .spawn(move || run(&host))
}

fn run(host: &Host) {
    let mut warned = None;
    let mut balance = Balance::default();
    let mut looked_at_file = Instant::now();
    loop {
        let started = Instant::now();
        if looked_at_file.elapsed() >= FILE_PERIOD {
            looked_at_file = started;
            host.follow_file();
        }
        let decision = decide(host, &mut balance, started);
        warn_stuck(host, decision.plan.stuck, &mut warned);
        host.set_latest(decision);
        while !host.is_stopping() && started.elapsed() < MIN_PERIOD {
            thread::park_timeout(MIN_PERIOD.saturating_sub(started.elapsed()));
        }
        host.budget.wait_alarm(PERIOD);
        if host.is_stopping() {
            return;
        }
    }
}

/// What was seen, by which settings, and what follows.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) snapshot: HostSnapshot,
    pub(super) config: Config,
    pub(super) plan: Plan,
}

/// One look: what is seen is planned for, and the plan is handed out.
fn decide(host: &Host, balance: &mut Balance, now: Instant) -> Decision {
    let settings = host.settings();
    let members = host.members.all();
    for member in &members {
        apply_settings(host, member, &settings, members.len());
        watch_balloon(member, now);
    }
    host.note_overcommit(now, &members);
    let asked = (host.state(), host.revision());
    let floor = settings.sample_active_pct_min;
    balance.look(now, settings.balance_period, asked, &members, floor);
    let snapshot = snapshot(host, &members, |vm| balance.active(vm));
    let config = settings.policy();
    let plan = plan(&snapshot, &config);
    carry_out(host, &members, &snapshot, (&config, &plan));
    Decision {
        snapshot,
        config,
        plan,
    }
}

/// Finds out whether its balloon is to be waited for.
fn watch_balloon(member: &Member, now: Instant) {
    let (target, size) = (member.balloon_target(), member.ballooned());
    let changed = member.balloon.look(now, target, size);
    let is_stuck = changed == Some(false) && member.balloon.attached.load(Ordering::Acquire);
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

/// Lets a VM's own threads know what the settings are now.
fn apply_settings(host: &Host, member: &Member, settings: &HostSettings, vms: usize) {
    let own = member.settings();
    let rate = if own.sharing {
        let vms = u32::try_from(vms).unwrap_or(u32::MAX);
        let scan = ScanSettings {
            scan_time: settings.share_scan_time,
            scan_ghz: settings.share_scan_ghz,
            rate_max: settings.share_rate_max,
        };
        scan.rate(member.vm.params.pages, host.ghz, vms)
    } else {
        0
    };
    member.worker.set_scan_rate(rate);
    member.worker.set_sample_period(settings.sample_period);
    set_zip_max(member, zip_max(member, settings));
    vm_settings::set_balloon_max(member, &own, settings);
    vm_settings::move_domain(host, member, &own);
}

fn set_zip_max(member: &Member, pages: u32) {
    let mut zip = member.vm.zip.lock();
    if zip.max_pages() != pages {
        zip.set_max_pages(pages);
    }
    let above = zip.is_above_cap();
    drop(zip);
    if above {
        member.worker.suggest(Job::Wake);
    }
}

/// The most pages of a VM's compression cache: a part of its size (`Mem.MemZipMaxPct`) and of what it
/// holds (`Mem.MemZipMaxAllocPct`).
fn zip_max(member: &Member, settings: &HostSettings) -> u32 {
    let size = u64::from(member.vm.params.pages);
    let vm = &member.vm;
    let held = vm.held().0 + u64::from(vm.zip.lock().pages_used());
    let by_size = size * u64::from(settings.mem_zip_max_pct) / 100;
    let by_held = held * u64::from(settings.mem_zip_max_alloc_pct) / 100;
    u32::try_from(by_size.min(by_held)).unwrap_or(u32::MAX)
}

fn carry_out(
    host: &Host,
    members: &[Arc<Member>],
    snapshot: &HostSnapshot,
    (config, plan): (&Config, &Plan),
) {
    let before = host.set_state(plan.state);
    if before != plan.state {
        tracing::info!(from = %before, to = %plan.state, free = host.budget.free().0, "free state");
    }
    let total = host.budget.total();
    let below = Thresholds::of(total, config).below(plan.state);
    host.budget.set_alarm(total.saturating_sub(below));
    for ((member, vm_plan), seen) in members.iter().zip(&plan.vms).zip(&snapshot.vms) {
        // What its compression cache takes counts as well, and cannot be held in a fault.
        let ceiling = vm_plan.ceiling;
        let ceiling = ceiling.map(|pages| pages.saturating_sub(seen.zip_pages));
        member.vm.orders.set_ceiling(ceiling);
        give_orders(member, vm_plan, plan.stuck);
    }
}

fn give_orders(member: &Member, plan: &VmPlan, stuck: Option<Stuck>) {
    let (vm, balloon) = (&member.vm, &member.balloon);
    let orders = &vm.orders;
    let before = orders.balloon_target();
    orders.set_targets(plan.balloon_target, plan.target, plan.swap_target);
    let popped = vm.stats.pops.get() != balloon.told_pops.load(Ordering::Acquire);
    if orders.balloon_target() != before || popped {
        balloon.doorbell.ring();
    }
    let means = Means {
        compress: plan.means.compress,
        swap: plan.means.swap,
    };
    orders.set_evict(plan.evict, means);
    if plan.evict > Pages(0) {
        member.worker.suggest(Job::Wake);
    }
    let blocked = match (plan.blocked, stuck) {
        (false, _) => Blocked::No,
        (true, None) => Blocked::All,
        (true, Some(_)) => Blocked::Touches,
    };
    if orders.set_blocked(blocked) {
        tracing::info!(vm = %vm.params.name, ?blocked, "allocations");
        // Faults that waited may go on, or look again in vain.
        vm.parking.ring();
    }
}

fn warn_stuck(host: &Host, stuck: Option<Stuck>, warned: &mut Option<Instant>) {
    let Some(stuck) = stuck else { return };
    if host.budget.starving() == 0 || warned.is_some_and(|at| at.elapsed() < STUCK_WARNING) {
        return;
    }
    *warned = Some(Instant::now());
    tracing::warn!(
        why = ?stuck,
        free_pages = host.budget.free().0,
        starving_vms = host.budget.starving(),
        "memory is short and nothing can be reclaimed: end a guest, or give swap room"
    );
}
