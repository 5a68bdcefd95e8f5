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

use super::daemon::Host;
use super::member::Member;
use crate::page::Home;
use crate::policy::{FreeState, HostSnapshot, Plan, Stuck, Thresholds, VmPlan, VmSnapshot, plan};
use crate::reclaim::Job;
use crate::units::Pages;

/// How often the policy looks without being called.
const PERIOD: Duration = Duration::from_millis(250);
/// The shortest time between two looks: a host that is out of memory rings the alarm at each fault.
const MIN_PERIOD: Duration = Duration::from_millis(10);
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
    loop {
        let started = Instant::now();
        let members = host.members.all();
        let snapshot = snapshot(host, &members);
        let plan = plan(&snapshot, &host.policy);
        carry_out(host, &members, &plan);
        warn_stuck(host, plan.stuck, &mut warned);
        while !host.is_stopping() && started.elapsed() < MIN_PERIOD {
            thread::park_timeout(MIN_PERIOD.saturating_sub(started.elapsed()));
        }
        host.budget.wait_alarm(PERIOD);
        if host.is_stopping() {
            return;
        }
    }
}

/// The host as the policy sees it.
pub(super) fn snapshot(host: &Host, members: &[Arc<Member>]) -> HostSnapshot {
    HostSnapshot {
        budget: host.budget.total(),
        used: host.budget.used(),
        state: host.state(),
        vms: members.iter().map(|member| vm_snapshot(member)).collect(),
        seed: 0,
    }
}

fn vm_snapshot(member: &Member) -> VmSnapshot {
    let vm = &member.vm;
    let [
        untouched,
        zero,
        resident,
        shared,
        compressed,
        swapped,
        ballooned,
    ] = vm.table.counts().map(Pages);
    let (zip_pages, zip_max) = {
        let zip = vm.zip.lock();
        (u64::from(zip.pages_used()), u64::from(zip.max_pages()))
    };
    let swap = vm.swap.stats();
    let rooms = u64::from(!vm.is_unevictable());
    VmSnapshot {
        id: vm.id,
        size: Pages(u64::from(vm.params.pages)),
        reservation: Pages(u64::from(vm.params.reservation)),
        limit: Some(Pages(u64::from(vm.params.limit))),
        shares: vm.params.shares,
        resident,
        shared,
        sharing_saved: sharing_saved(member),
        compressed,
        zip_pages: Pages(zip_pages),
        zip_room: Pages(zip_max.saturating_sub(zip_pages) * rooms),
        swapped,
        ballooned,
        zero,
        untouched,
        agent_alive: member.balloon.attached.load(Ordering::Acquire),
        balloon_max: member.balloon.ceiling(),
        active: None,
        swap_room: Pages(swap.slots.saturating_sub(swap.used).0 * rooms),
        swap_failing: vm.is_swap_failing(),
    }
}

/// What sharing saves this VM: its part of what its pool saves, by the number of its shared pages.
/// Which frame has how many users is known, but adding that up page by page would cost more than the
/// policy gains by it; the sum over all VMs is exact.
pub(super) fn sharing_saved(member: &Member) -> Pages {
    let counts = member.vm.pool.counts();
    let shared = member
        .vm
        .table
        .count(Home::Shared(crate::units::FrameId(0)));
    let saved = counts.saved().0;
    Pages(shared.min(shared * saved / counts.refs.0.max(1)))
}

fn carry_out(host: &Host, members: &[Arc<Member>], plan: &Plan) {
    let before = host.set_state(plan.state);
    if before != plan.state {
        tracing::info!(from = %before, to = %plan.state, free = host.budget.free().0, "free state");
    }
    let thresholds = Thresholds::of(host.budget.total(), &host.policy);
    host.budget.set_alarm(
        host.budget
            .total()
            .saturating_sub(next_down(plan.state, &thresholds)),
    );
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
    for (member, vm_plan) in members.iter().zip(&plan.vms) {
        let rate = host
            .options
            .share
            .rate(member.vm.params.pages, host.ghz, count);
        member.worker.set_scan_rate(rate);
        give_orders(member, vm_plan);
    }
}

/// The free memory below which the next state down is entered.
const fn next_down(state: FreeState, thresholds: &Thresholds) -> Pages {
    match state {
        FreeState::High => thresholds.soft,
        FreeState::Soft => thresholds.hard,
        FreeState::Hard | FreeState::Low => thresholds.low,
    }
}

fn give_orders(member: &Member, plan: &VmPlan) {
    let (vm, balloon) = (&member.vm, &member.balloon);
    let orders = &vm.orders;
    let before = orders.balloon_target();
    orders.set_targets(plan.balloon_target, plan.target);
    let popped = vm.stats.pops.get() != balloon.told_pops.load(Ordering::Acquire);
    if orders.balloon_target() != before || popped {
        balloon.doorbell.ring();
    }
    orders.set_evict(plan.evict);
    if plan.evict > Pages(0) {
        member.worker.suggest(Job::Wake);
    }
    if orders.set_blocked(plan.blocked) {
        tracing::info!(vm = %vm.params.name, blocked = plan.blocked, "allocations");
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
