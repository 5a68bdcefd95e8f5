//! How long threads stand still and for what cause, by a simulated clock.

use std::sync::Arc;
use std::time::Duration;

use super::scenario::{self, KINDS, SWAP, ZIP, alone, small};
use super::{Guest, Host, Op, Spec};
use crate::engine::EngineKind;
use crate::page::{Home, Urgency};
use crate::units::{FrameId, Gfn, PAGE_SIZE, PageBuf, Pages};
use crate::vm::{Blocked, Cause, Claimed, Stalled};

const PAGES: u32 = 8;
/// How long the fault thread takes for each event that it serves.
const STEP: Duration = Duration::from_micros(100);
const SECOND: Duration = Duration::from_secs(1);

fn spec(kind: EngineKind) -> Spec {
    Spec {
        threads: 3,
        ahead: 0,
        ..Spec::of(kind, PAGES)
    }
}

/// Runs `story` with a guest of each engine that has touched nothing yet.
fn each(story: impl Fn(&Host, &mut Guest)) {
    scenario::each(KINDS.map(spec), story);
}

fn write(guest: &mut Guest, thread: usize, gfn: u32) -> bool {
    guest.attempt(thread, gfn, Op::Write(Box::new(small(gfn))))
}

/// Lets time pass in which nothing is done.
fn pass(guest: &Guest, time: Duration) {
    guest.space.line.clock.pass(time);
}

/// Runs `act` while the fault thread takes [`STEP`] for each event.
fn timed(guest: &mut Guest, act: impl FnOnce(&mut Guest)) {
    guest.faults.takes = STEP;
    act(guest);
    guest.faults.takes = Duration::ZERO;
}

/// How long threads of the VM have stood still so far, and how long the VM was stalled.
fn stalled(guest: &Guest) -> Stalled {
    guest.vm.stalls.so_far(None, guest.space.line.clock.now())
}

/// The causes that have cost any time, and how much.
fn costs(of: impl Fn(Cause) -> Duration) -> Vec<(Cause, Duration)> {
    let costs = Cause::ALL.map(|cause| (cause, of(cause)));
    let costs = costs.into_iter().filter(|(_, time)| !time.is_zero());
    costs.collect()
}

/// The costs so far, and how long the VM was stalled.
fn seen(guest: &Guest) -> (Vec<(Cause, Duration)>, Duration) {
    let stalled = stalled(guest);
    (costs(|cause| stalled.threads[cause]), stalled.any)
}

/// What `act` costs, by cause.
fn cost(guest: &mut Guest, act: impl FnOnce(&mut Guest)) -> Vec<(Cause, Duration)> {
    let before = stalled(guest);
    timed(guest, act);
    let after = stalled(guest);
    costs(|cause| after.threads[cause] - before.threads[cause])
}

#[test]
fn service_counts_for_the_home_that_the_page_had() {
    each(|_, guest| {
        let touch = |guest: &mut Guest| cost(guest, |guest| assert!(write(guest, 0, 0)));
        assert_eq!(touch(guest), [(Cause::FirstTouch, STEP)]);
        for (means, cause) in [(ZIP, Cause::RefillZip), (SWAP, Cause::RefillSwap)] {
            assert_eq!(guest.evict_by(1, means), 1);
            assert_eq!(touch(guest), [(cause, STEP)]);
        }
        let period = Duration::from_millis(50);
        guest.worker.handle.change(|it| it.sample_period = period);
        guest.worker.wait(period);
        assert!(guest.vm.table.entry(Gfn(0)).is_sampled());
        assert_eq!(touch(guest), [(Cause::Open, STEP)]);
    });
}

#[test]
fn break_counts_until_its_thread_has_mapped_the_copy() {
    const MAPPING: Duration = Duration::from_micros(40);
    each(|_, guest| {
        (0..2).for_each(|gfn| guest.write(gfn, PageBuf([7; PAGE_SIZE])));
        guest.scan();
        guest.scan();
        assert_eq!(guest.vm.table.count(Home::Shared(FrameId(0))), 2);
        let cost = cost(guest, |guest| {
            let page = Box::new(PageBuf([8; PAGE_SIZE]));
            guest.threads[0].begin(Gfn(0), Op::Write(page));
            assert!(!guest.threads[0].poll());
            guest.turn();
            pass(guest, MAPPING);
            assert!(guest.drive(0));
            pass(guest, SECOND);
        });
        assert_eq!(cost, [(Cause::Break, STEP + MAPPING)]);
    });
}

#[test]
fn threads_of_a_blocked_vm_count_each_while_they_wait() {
    each(|_, guest| {
        guest.vm.orders.set_blocked(Blocked::Touches);
        for thread in 0..3 {
            assert!(!write(guest, thread as usize, thread));
            pass(guest, SECOND);
            assert_eq!(seen(guest).1, (thread + 1) * SECOND, "under way");
        }
        let blocked = vec![(Cause::Blocked, 6 * SECOND)];
        assert_eq!(seen(guest), (blocked, 3 * SECOND));
        guest.block(Blocked::No);
        timed(guest, |guest| assert!(guest.turn()));
        (0..3).for_each(|thread| assert!(guest.drive(thread)));
        pass(guest, SECOND);
        // Uffd wakes each thread when it is served, and the others wait meanwhile. With mprotect all threads read their
        // answers after the one call that served them all.
        let (served, waited) = match guest.vm.engine.kind() {
            EngineKind::Uffd => (STEP, 2 * STEP),
            EngineKind::Mprotect => (3 * STEP, Duration::ZERO),
        };
        let served = (Cause::FirstTouch, served);
        let blocked = (Cause::Blocked, 6 * SECOND + waited);
        assert_eq!(seen(guest), (vec![served, blocked], 3 * SECOND + STEP));
    });
}

#[test]
fn wait_for_memory_is_told_from_one_by_order_whenever_that_changes() {
    each(|host, guest| {
        let free = host.budget.free().0;
        assert!(host.budget.take(free, Urgency::Reclaim));
        assert!(!write(guest, 0, 0));
        pass(guest, 2 * SECOND);
        guest.block(Blocked::All);
        guest.turn();
        pass(guest, 3 * SECOND);
        // A ceiling is an order too.
        guest.vm.orders.set_ceiling(Some(Pages(0)));
        guest.block(Blocked::No);
        guest.turn();
        pass(guest, SECOND);
        let memory = (Cause::Memory, 2 * SECOND);
        let blocked = (Cause::Blocked, 4 * SECOND);
        assert_eq!(seen(guest).0, [blocked, memory]);
        guest.vm.orders.set_ceiling(None);
        host.budget.give(free);
        guest.vm.parking.ring();
        timed(guest, |guest| assert!(guest.drive(0)));
        let touched = (Cause::FirstTouch, STEP);
        assert_eq!(seen(guest).0, [touched, blocked, memory]);
    });
}

#[test]
fn threads_that_wait_for_one_page_that_is_moved_count_each() {
    each(|_, guest| {
        let vm = Arc::clone(&guest.vm);
        let moved = vm.try_lock(Gfn(0)).expect("nobody is at it");
        for thread in 0..2 {
            assert!(!guest.attempt(thread, 0, Op::Read));
        }
        pass(guest, SECOND);
        let busy = (Cause::Busy, 2 * SECOND);
        assert_eq!(seen(guest), (vec![busy], SECOND));
        drop(moved);
        timed(guest, |guest| {
            (0..2).for_each(|thread| assert!(guest.drive(thread)));
        });
        pass(guest, SECOND);
        let (causes, any) = seen(guest);
        // Uffd reads once and wakes both. With mprotect the first thread opens the page while the second waits for an
        // answer of its own.
        let (last, both) = match guest.vm.engine.kind() {
            EngineKind::Uffd => (STEP, 2 * STEP),
            EngineKind::Mprotect => (3 * STEP, 4 * STEP),
        };
        let all = stalled(guest).threads.sum();
        assert_eq!((any, all), (SECOND + last, 2 * SECOND + both), "{causes:?}");
    });
}

/// Runs `story` with a guest that is sampled in periods of this length.
fn sampled(period: Duration, story: impl FnOnce(&mut Guest)) {
    alone(spec(EngineKind::Uffd), |_, guest| {
        guest.worker.handle.change(|it| it.sample_period = period);
        guest.worker.wait(Duration::ZERO);
        story(guest);
    });
}

/// A guest that waits touches nothing, but that says nothing about what it uses.
#[test]
fn time_in_which_a_guest_stood_still_is_no_time_of_sampling() {
    let period = Duration::from_millis(80);
    sampled(period, |guest| {
        let ends = |guest: &mut Guest, time| {
            guest.worker.wait(time);
            guest.vm.activity.estimate().is_some()
        };
        let start = guest.worker.clock.now();
        let stall = guest.vm.stalls.begin(Cause::Memory, start);
        guest.vm.stalls.end(stall, start + period * 3 / 4);
        assert!(!ends(guest, period), "a quarter was running time");
        assert!(!ends(guest, period / 2));
        assert!(ends(guest, period / 4));
        // However long it stands still, a period ends now and then.
        let fast = |guest: &Guest| guest.vm.activity.estimate();
        let before = fast(guest);
        let now = guest.worker.clock.now();
        let _stall = guest.vm.stalls.begin(Cause::Memory, now);
        write(guest, 0, 0);
        for _ in 0..4 {
            let now = guest.worker.clock.now() + period;
            let _ = guest.vm.stalls.so_far(None, now);
            guest.worker.wait(period);
        }
        assert_ne!(fast(guest), before, "no period ended");
    });
}

/// The stalls that an inline guest reports are read only from time to time, so they may cover more time than has passed
/// since the sampler last looked.
#[test]
fn stalls_that_an_inline_guest_tells_of_late_are_no_time_of_sampling() {
    let (period, look) = (Duration::from_millis(80), Duration::from_millis(5));
    sampled(period, |guest| {
        let mut claimed = Claimed {
            threads: 1,
            ..Claimed::default()
        };
        for at in 1..=40 {
            if at % 4 == 0 {
                // It stood still for all of the time since the last report.
                claimed.words[0] += 4 * 5000;
                let now = guest.worker.clock.now() + look;
                let _ = guest.vm.stalls.so_far(Some(claimed), now);
            }
            guest.worker.wait(look);
        }
        // A quarter of 200 ms is less than a period.
        assert_eq!(guest.vm.activity.estimate(), None);
    });
}
