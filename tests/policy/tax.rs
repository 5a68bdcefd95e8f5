//! The idle memory tax: a guest that does not use its memory loses it to one that does, and gets it back.

use std::time::{Duration, Instant};

use memvisor::telemetry::{HostStatus, VmStatus};
use memvisor::units::Pages;

use super::rig::{Host, eventually};
use super::{PATIENCE, are_about_equal, end, filled, host, line, mib, pair, shown};

in_one_engine!(
    idle_tax_takes_memory_from_the_idle,
    busy_guest_takes_memory_and_the_idle_one_gets_it_back_when_it_wakes,
);

/// What the first of two VMs with equal shares holds, given the `active` memory of both, by section 5.2 of
/// OSDI 2002: searches the level at which both parts add up to `total`.
fn part(active: [f64; 2], total: f64, tax: f64) -> f64 {
    let at = |active: f64, level: f64| {
        let idle = (level - active).max(0.0);
        level.min(active) + idle * (1.0 - tax)
    };
    let (mut low, mut high) = (0.0, total / (1.0 - tax) + total);
    for _ in 0..100 {
        let level = f64::midpoint(low, high);
        if at(active[0], level) + at(active[1], level) < total {
            low = level;
        } else {
            high = level;
        }
    }
    at(active[0], low)
}

/// The formula gives the numbers of the paper: of 344 MB, the one VM uses 10 and the other 200.
#[test]
fn formula_of_the_test_gives_the_published_numbers() {
    assert!((part([10.0, 200.0], 344.0, 0.75) - 100.75).abs() < 0.01);
    assert!((part([10.0, 200.0], 358.0, 0.0) - 179.0).abs() < 0.01);
}

const NAMES: [&str; 2] = ["idle", "busy"];

/// Waits until both VMs have equal targets and hold about that much, and the host has given out its memory.
/// Tolerances are wide: a balloon stops a little above a target that rose, and a guest that uses all it has
/// gives slowly.
fn equal(host: &Host, what: &str) -> HostStatus {
    let since = Instant::now();
    let mut next = Duration::ZERO;
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        if since.elapsed() >= next {
            eprintln!("{what}: at {next:?} {}", line(&status));
            next += Duration::from_secs(5);
        }
        let [idle, busy] = pair(&status, NAMES)?;
        let held = idle.consumed_pages.0 + busy.consumed_pages.0;
        let settled = held * 100 >= status.budget_pages.0 * 85
            && are_about_equal(idle.consumed_pages, target(idle), 15)
            && are_about_equal(busy.consumed_pages, target(busy), 15)
            && are_about_equal(target(idle), target(busy), 10)
            // The estimates must tell already which of them is idle.
            && active(idle)? * 2.5 < active(busy)?;
        settled.then_some(status)
    });
    eprintln!("{what} after {:.1?}: {}", since.elapsed(), line(&status));
    status
}

fn active(vm: &VmStatus) -> Option<f64> {
    vm.activity.active_pages.map(shown)
}

fn target(vm: &VmStatus) -> Pages {
    vm.allocation.target_pages
}

/// Figure 7 of OSDI 2002 at an eighth of its size: two VMs with equal shares on a host that is too small for
/// both. Both fill all their memory. Then, in each period of sampling, one touches a few per cent of it and the
/// other nearly all.
fn idle_tax_takes_memory_from_the_idle(engine: &str) {
    let host = host(engine, "44M", &["Mem.IdleTax=0"]);
    let start = |name, rate| {
        let words = "--memory 32M --workload toucher,size=29M,content=random,rate=";
        host.guest(name, &format!("{words}{rate}"))
    };
    let guests = [start("idle", "3M"), start("busy", "160M")];
    let before = equal(&host, &format!("{engine}: equal without a tax"));
    let held = |status: &HostStatus| {
        let vms = pair(status, NAMES).expect("both run");
        vms.map(|vm| vm.consumed_pages)
    };

    host.set("Mem.IdleTax", "75");
    let since = Instant::now();
    let what = format!("{engine}: as the formula has it at 75 %");
    let (taxed, formula) = eventually(&what, PATIENCE, || {
        let status = host.status();
        let [idle, busy] = pair(&status, NAMES)?;
        let total = shown(target(idle)) + shown(target(busy));
        let formula = part([active(idle)?, active(busy)?], total, 0.75);
        let settled = (shown(target(idle)) - formula).abs() <= formula * 0.1
            && idle.consumed_pages.0 * 10 <= target(idle).0 * 11
            // Not only targets: memory must have moved.
            && idle.consumed_pages < held(&before)[0]
            && busy.consumed_pages.0 * 10 >= held(&before)[1].0 * 11;
        settled.then_some((status, formula))
    });
    let took = since.elapsed();
    eprintln!("{what} after {took:.1?}: {}", line(&taxed));
    eprintln!("{what}: the idle one is to hold {formula:.1} MiB by it");

    host.set("Mem.IdleTax", "0");
    equal(&host, &format!("{engine}: equal again without a tax"));

    end(host, guests, &[]);
}

/// How many seconds the sleeper sleeps in each try. It wakes by the clock, so a slow machine needs a longer sleep.
const SLEEPS: [u64; 3] = [12, 30, 60];

fn busy_guest_takes_memory_and_the_idle_one_gets_it_back_when_it_wakes(engine: &str) {
    let done = SLEEPS
        .into_iter()
        .any(|sleep| sleep_and_wake(engine, sleep));
    assert!(
        done,
        "a minute was not enough to take memory from an idle guest"
    );
}

/// Whether the busy guest had its memory before the sleeper woke.
fn sleep_and_wake(engine: &str, sleep: u64) -> bool {
    let host = host(engine, "44M", &[]);
    let sleeper = format!(
        "--memory 32M --workload toucher,size=29M,content=random,rate=100M,active=1M,then=29M@{sleep}s"
    );
    let sleeper = host.guest("idle", &sleeper);
    filled(&host, "idle", 29);
    let fell_asleep = Instant::now();
    let wakes = Duration::from_secs(sleep);
    let busy = host.guest(
        "busy",
        "--memory 32M --workload toucher,size=27M,content=random,rate=100M",
    );
    let taken = eventually("the busy guest has what it needs", wakes + PATIENCE, || {
        let status = host.status();
        if fell_asleep.elapsed() + Duration::from_millis(500) > wakes {
            return Some(None);
        }
        let [idle, busy] = pair(&status, NAMES)?;
        let has = busy.consumed_pages >= mib(25) && idle.consumed_pages <= mib(16);
        has.then_some(Some(status))
    });
    let Some(taken) = taken else {
        eprintln!("{engine}: the sleeper woke after {sleep} s, before the other had its memory");
        end(host, [sleeper, busy], &[]);
        return false;
    };
    let took = fell_asleep.elapsed();
    eprintln!(
        "{engine}: taken from the idle guest in {took:.1?}: {}",
        line(&taken)
    );

    let what = "the one that woke has its part back";
    let back = eventually(what, wakes + PATIENCE, || {
        let status = host.status();
        let [woken, busy] = pair(&status, NAMES)?;
        // Both use all they have, so their targets are equal. A balloon stops a little above its target, so the guest
        // holds a little less.
        let has = are_about_equal(target(woken), target(busy), 10)
            && woken.consumed_pages.0 * 100 >= target(woken).0 * 85;
        has.then_some(status)
    });
    let took = fell_asleep.elapsed().saturating_sub(wakes);
    eprintln!(
        "{engine}: given back to the woken guest in {took:.1?}: {}",
        line(&back)
    );
    end(host, [sleeper, busy], &[]);
    true
}
