//! Whatever guests and host did, the scanner finds everything that could be shared, and then comes to rest.
//!
//! Where the engine tells which pages were written, a page is looked at once and then not again before it
//! is written. So one that is forgotten on any of the ways a page can take is never shared.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::random_steps::{Step, World, steps};
use super::{Guest, Host};
use crate::page::Home;
use crate::units::{Gfn, PageBuf};
use crate::vm::Blocked;

const CASES: u32 = 96;
/// Passes without news until no page waits for another look: the longest back-off.
const QUIET: u32 = 32;
/// Passes in which everything is found: a few that wait for each other, each as long as the back-off.
const PASSES: u32 = 10 * QUIET;

/// One pass over a VM; whether anything was new, was shared, or waits.
fn pass(host: &Host, guest: &mut Guest) -> bool {
    let vm = std::sync::Arc::clone(&guest.vm);
    let mut news = false;
    loop {
        let found = guest.scanner.scan(&vm, &*host.peers, 7);
        let found = found.expect("the session lives");
        news |= found.changed > 0 || found.shared > 0 || found.waiting > 0;
        if found.pass_ended {
            break;
        }
    }
    let nudged = host.peers.nudged(vm.id);
    let followed = guest.scanner.follow(&vm, &*host.peers, nudged);
    news | (followed.expect("the session lives") > 0)
}

/// Nothing stands in the way of sharing any more, and no guest does anything.
fn calm(guest: &mut Guest) {
    guest.space.accept();
    guest.vm.orders.set_blocked(Blocked::No);
    guest.vm.parking.ring();
    for thread in 0..guest.threads.len() {
        assert!(guest.drive(thread), "there is memory for everybody");
    }
}

/// Scans guests that do nothing until nothing is new for long. Then nothing is resident that is zero, or
/// that equals what is shared or another resident page.
///
/// # Panics
/// When that is not so, or when the scanner does not come to rest.
pub(super) fn settle(host: &Host, mut guests: Vec<&mut Guest>) {
    let mut quiet = 0;
    for _ in 0..PASSES {
        let mut news = false;
        for guest in &mut guests {
            news |= pass(host, guest);
        }
        quiet = if news { 0 } else { quiet + 1 };
        if quiet == QUIET {
            return check_all_found(&guests);
        }
    }
    panic!("the scanner does not come to rest");
}

fn check_all_found(guests: &[&mut Guest]) {
    let mut seen: HashMap<(usize, [u8; 4096]), (u32, Gfn, Home)> = HashMap::new();
    for guest in guests {
        for gfn in (0..guest.vm.table.pages()).map(Gfn) {
            let home = guest.vm.table.entry(gfn).home();
            if !matches!(home, Home::Resident | Home::Shared(_)) {
                continue;
            }
            let content = guest.content_of(gfn, home);
            assert!(content != PageBuf::zeroed(), "{gfn} is zero and {home:?}");
            let here = (guest.vm.id.0, gfn, home);
            if let Some(there) = seen.insert((guest.salt, content.0), here) {
                let shared = (there.2, here.2);
                assert!(
                    matches!(shared, (Home::Shared(a), Home::Shared(b)) if a == b),
                    "equal and not shared: {there:?} and {here:?}; {}",
                    guest.vm.table.history().of(gfn)
                );
            }
        }
    }
}

#[test]
fn scanner_after_any_steps_finds_all_that_is_equal_and_comes_to_rest() {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(CASES)
    });
    let shared = std::cell::Cell::new(0);
    let result = runner.run(&(steps(), steps()), |(first, then)| {
        let mut world = World::roomy();
        for steps in [first, then] {
            for (place, step) in steps {
                // A guest that stays blocked would only do less.
                if !matches!(step, Step::Block(_) | Step::Ceiling(_)) {
                    world.step(place, step);
                }
            }
            world.guests.iter_mut().flatten().for_each(calm);
            settle(&world.host, world.guests.iter_mut().flatten().collect());
        }
        let merged = |guest: &Guest| guest.vm.stats.merged.get();
        let merged: u64 = world.guests.iter().flatten().map(merged).sum();
        shared.set(shared.get() + merged);
        world.end();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(shared.get() > 0, "nothing was ever shared");
}
