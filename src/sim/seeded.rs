//! Shows that the searches of this room find faults: each fault of [`Seeded`] is sown, and a search must find it.
//!
//! `cargo test --lib sim::seeded -- --nocapture` prints which search found which fault, after how many steps and
//! seconds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::{every_step, interleaving, random_steps};
use crate::engine::EngineKind;
use crate::seeded::Seeded;
use crate::sync;

/// A search that counts what it has tried, and panics when it finds something.
type Search = fn(&Arc<AtomicU64>);

/// Worlds of random steps; each world has up to 250 steps.
const WORLDS: u64 = 600;
const SCHEDULES: usize = 4_000;
const DEATHS: u32 = 1_000;

/// Random steps of several guests and of the daemon. The unit is a step.
fn random_steps(tried: &Arc<AtomicU64>) {
    let mut runner = TestRunner::deterministic();
    let strategy = random_steps::steps();
    for _ in 0..WORLDS {
        let steps = strategy.new_tree(&mut runner).expect("steps").current();
        let mut world = random_steps::World::new();
        for (place, step) in steps {
            tried.fetch_add(1, Ordering::Relaxed);
            world.step(place, step);
        }
        world.end();
    }
}

/// Guests, fault threads and workers in any schedule. The unit is a schedule.
fn schedules(tried: &Arc<AtomicU64>) {
    let tried = Arc::clone(tried);
    sync::model(SCHEDULES, move || {
        tried.fetch_add(1, Ordering::Relaxed);
        interleaving::play_once();
    });
}

/// A guest that dies at each step of a story. The unit is a death.
fn deaths(tried: &Arc<AtomicU64>) {
    for steps in 0..DEATHS {
        tried.fetch_add(1, Ordering::Relaxed);
        if !every_step::die_after(EngineKind::Uffd, 0, steps) {
            return;
        }
    }
}

/// Sows a fault, runs the search that must find it, and prints how the search found it.
fn find(fault: Seeded, name: &str, unit: &str, search: Search) {
    let tried = Arc::new(AtomicU64::new(0));
    let since = Instant::now();
    let found = fault.sow(|| catch_unwind(AssertUnwindSafe(|| search(&tried))));
    let seconds = since.elapsed().as_secs_f64();
    let tried = tried.load(Ordering::Relaxed);
    let panic = found.expect_err(&format!("{name} did not find {fault:?} in {tried} {unit}s"));
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    let said: String = said.unwrap_or_default().chars().take(90).collect();
    println!("seeded {fault:?}: found by {name}, {unit} {tried}, {seconds:.2} s: {said}");
}

#[test]
fn faults_that_steps_can_show_are_found_by_random_steps() {
    for fault in [
        Seeded::ForgottenWakeup,
        Seeded::EarlyUnlock,
        Seeded::LostDone,
        Seeded::EarlyPunch,
        Seeded::EarlyRelease,
        Seeded::CreditSpentTwice,
        Seeded::StaleSlot,
        Seeded::KeptSlot,
        Seeded::LostGrant,
    ] {
        find(fault, "random steps", "step", random_steps);
    }
}

#[test]
fn faults_that_take_an_unlucky_order_are_found_by_schedules() {
    for fault in [Seeded::MissedUnlock, Seeded::ForgottenWakeup] {
        find(fault, "schedules", "schedule", schedules);
    }
}

#[test]
fn faults_of_a_death_are_found_by_dying_at_every_step() {
    find(Seeded::LostCharge, "dying at every step", "death", deaths);
}
