//! Whatever guests and host did, the scanner finds everything that could be shared, and then comes to rest.
//!
//! Where the engine tells which pages were written, the scanner scans a page once and then not again until
//! it is written. So a page that any path forgets to mark is never shared. What a survey said before that sharing would
//! save must then be what it saves.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use super::random_steps::{SCAN_RATE, Step, World, salt_of, steps};
use super::scenario::{KINDS, alone, noise, search};
use super::survey::{self, Foreseen};
use super::worker::PAUSE;
use super::{Countdown, Guest, Host, Spec};
use crate::page::{Home, Standing};
use crate::reclaim::LargePages;
use crate::units::{Gfn, PageBuf};
use crate::vm::Blocked;

const CASES: u32 = 96;
/// Passes without news after which no page waits for another scan: the longest back-off.
const QUIET: u32 = 32;
/// Passes in which everything must be found: a few finds that wait for each other, each for up to the back-off.
const PASSES: u32 = 10 * QUIET;
/// Turns in which a worker ends a pass even if each slice has a single page.
const TURNS: u32 = 100;

/// Scans a VM once; whether any page was new, was shared, or waits for another scan.
fn pass(guest: &mut Guest) -> bool {
    let before = guest.vm.stats.passes.get();
    let ends = (0..TURNS).any(|_| {
        guest.worker.wait(PAUSE);
        guest.vm.stats.passes.get() > before
    });
    assert!(ends, "nobody scans");
    !guest.vm.settled.is(guest.vm.stats.served())
}

/// Removes all that stands in the way of sharing, and lets the guest finish what it does.
fn calm(host: &Host, place: usize, guest: &mut Guest) {
    guest.space.accepts.set(Countdown::NEVER);
    host.join(&guest.worker.handle, Some(salt_of(place)));
    guest.block(Blocked::No);
    // What leaves for its age is neither found nor saved.
    guest.cold(Duration::ZERO, 1);
    // Nothing is shared of a large page.
    guest
        .worker
        .handle
        .change(|it| it.large = LargePages::Break);
    // One thread may wait for what another has not yet confirmed.
    let threads = guest.threads.len();
    let waiting = |guest: &mut Guest| (0..threads).filter(|it| !guest.drive(*it)).count();
    let is_over = (0..threads).any(|_| waiting(guest) == 0);
    assert!(is_over, "there is memory for everybody");
}

/// Scans guests that do nothing until nothing new is found for long. Then no resident page may be zero, or
/// equal to a shared or another resident page. Returns whether a survey had said what this would save.
///
/// # Panics
/// When that is not so, or when the scanner does not come to rest.
pub(super) fn settle(host: &Host, mut guests: Vec<&mut Guest>, rate: u32) -> bool {
    let mut quiet = 0;
    let foreseen = Foreseen::by_survey(&mut guests);
    for guest in &guests {
        guest.worker.handle.change(|it| it.scan_rate = rate);
    }
    for _ in 0..PASSES {
        let mut news = false;
        for guest in &mut guests {
            news |= pass(guest);
        }
        quiet = if news { 0 } else { quiet + 1 };
        if quiet == QUIET {
            check_all_found(host, &guests);
            return foreseen.check(host, &guests);
        }
    }
    panic!("the scanner does not come to rest");
}

fn check_all_found(host: &Host, guests: &[&mut Guest]) {
    let mut seen: HashMap<(usize, [u8; 4096]), (u32, Gfn, Home)> = HashMap::new();
    for guest in guests {
        let domain = survey::domain(host, guest);
        guest.vm.table.visit_standings(|_, entry, standing| {
            let is_unique = matches!(standing, Standing::Elsewhere | Standing::Unique);
            assert!(is_unique, "{:?} is {standing:?}", entry.home());
        });
        for gfn in (0..guest.vm.table.pages()).map(Gfn) {
            let home = guest.vm.table.entry(gfn).home();
            if !matches!(home, Home::Resident | Home::Shared(_)) {
                continue;
            }
            let content = guest.content_of(gfn, home);
            assert!(content != PageBuf::zeroed(), "{gfn} is zero and {home:?}");
            let here = (guest.vm.id.0, gfn, home);
            if let Some(there) = seen.insert((domain, content.0), here) {
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

/// Rounds in which a page is filled and cleared.
const CHURN: u32 = 64;

/// Dropped each time, the pages would cost their guest a fault each time.
#[test]
fn page_that_is_cleared_and_filled_by_turns_is_dropped_ever_more_seldom() {
    for (kind, inline) in [(KINDS[0], true), (KINDS[0], false), (KINDS[1], false)] {
        // What is given ahead is zero, and nobody writes it.
        let spec = Spec {
            inline,
            ahead: 0,
            ..Spec::of(kind, 16)
        };
        alone(spec, |host, guest| {
            guest.worker.handle.change(|it| it.scan_rate = SCAN_RATE);
            for round in 0..CHURN {
                for content in [noise(round), PageBuf::zeroed()] {
                    guest.write(0, content);
                    // As the policy has it done.
                    guest.vm.settle_done();
                    pass(guest);
                }
            }
            let often = u64::from(CHURN.ilog2() + 1);
            let dropped = guest.vm.stats.zeroed.get();
            assert!(dropped <= often, "{kind:?}: {dropped}");
            settle(host, vec![guest], SCAN_RATE);
        });
    }
}

/// Pages that are written together lie together. By its own back-off each page would be merged and broken once, but after
/// the first ones their neighbours are left alone.
#[test]
fn neighbours_of_pages_that_were_broken_are_not_merged() {
    const PAGES: u32 = 16;
    for (kind, inline) in [(KINDS[0], true), (KINDS[0], false), (KINDS[1], false)] {
        let spec = Spec {
            inline,
            ahead: 0,
            ..Spec::of(kind, PAGES + 1)
        };
        alone(spec, |host, guest| {
            guest.worker.handle.change(|it| it.scan_rate = SCAN_RATE);
            guest.write_all(noise);
            for _ in 0..3 {
                pass(guest);
            }
            for gfn in 0..PAGES {
                // It becomes equal to the last page, waits because it has changed, and is merged.
                guest.write(gfn, noise(PAGES));
                for _ in 0..3 {
                    pass(guest);
                }
                guest.write(gfn, noise(PAGES + 1 + gfn));
                // As the policy has it done.
                guest.vm.settle_done();
            }
            let broken = guest.vm.stats.breaks.get();
            let some = 1..=u64::from(PAGES / 2);
            assert!(
                some.contains(&broken),
                "{kind:?}, inline {inline}: {broken}"
            );
            settle(host, vec![guest], SCAN_RATE);
        });
    }
}

#[test]
fn scanner_after_any_steps_finds_all_that_is_equal_and_comes_to_rest() {
    let (shared, foreseen) = (Cell::new(0), Cell::new(0));
    search(CASES, (steps(), steps()), |(first, then)| {
        let mut world = World::roomy();
        for steps in [first, then] {
            for (place, step) in steps {
                // A guest that stays blocked or at a ceiling would only do less.
                if !matches!(step, Step::Block(_) | Step::Ceiling(_)) {
                    world.step(place, step);
                }
            }
            for (place, guest) in world.guests.iter_mut().enumerate() {
                guest
                    .iter_mut()
                    .for_each(|guest| calm(&world.host, place, guest));
            }
            let guests = world.guests.iter_mut().flatten().collect();
            foreseen.set(foreseen.get() + u32::from(settle(&world.host, guests, SCAN_RATE)));
        }
        let merged = |guest: &Guest| guest.vm.stats.merged.get();
        let merged: u64 = world.guests.iter().flatten().map(merged).sum();
        shared.set(shared.get() + merged);
        world.end();
    });
    assert!(shared.get() > 0, "nothing was ever shared");
    assert!(foreseen.get() > CASES, "of {} settled hosts", 2 * CASES);
}
