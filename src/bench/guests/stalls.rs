//! What it costs a guest that its stalls are accounted for all the time.
//!
//! Accounting cannot be switched off, so there is nothing to compare with. Instead its work for one fault is timed
//! alone, and multiplied by the number of faults of real guests that are short of memory. The timed work is the most
//! that a fault can need, and includes readings of the clock that the latency of a fault needs anyway. So the real
//! share is at most as large as shown. Openings of frozen pages are not counted as faults. Here each microsecond of
//! them counts as one opening, because a microsecond is the least that is noted.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use memvisor_wire::claims::{Claimer, FIRST_STALL, StallCause, Words};

use super::super::report::{Case, Report};
use super::super::{Bench, BenchError, Setup};
use super::steady::{self, Did};
use super::{Part, fleet};
use crate::units::Bytes;
use crate::vm::{Cause, Stalls};

/// Guests of the fleet.
const GUESTS: u64 = 4;
/// Faults that are timed together.
const FAULTS: u32 = 200_000;

pub(in super::super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let options = &setup.options.guests;
    let dir = setup.subdirectory("guests")?;
    let each = Bytes(options.size.0 / GUESTS).pages().bytes();
    let fleet = fleet::stores("zipf", GUESTS, each, "0.99");
    for overcommit in &options.overcommit {
        for round in 1..=options.rounds {
            let part = Part::of_ours(setup, Bench::Stalls, (&fleet, *overcommit), round);
            setup.step(Bench::Stalls, &format!("one fault, round {round}"))?;
            let cost = Cost::take();
            let of_fault = |on: &str, ns| {
                let case = Case::less(Bench::Stalls, &on, "accounting", "ns/fault");
                report.ours(&case, ns);
            };
            of_fault("a fault that the daemon serves", cost.daemon_ns);
            of_fault("a fault that a guest serves", cost.guest_ns);
            let Some(did) = steady::run(setup, &part, &dir, report)? else {
                continue;
            };
            for (guest, did) in fleet.guests.iter().zip(did) {
                let on = format!("{} at {overcommit}x, {}", fleet.name, guest.name);
                let put = |metric, unit, value| {
                    report.ours(&Case::less(Bench::Stalls, &on, metric, unit), value);
                };
                put("faults", "/s", did.counts.faults / did.seconds);
                put("accounting", "% of its time", cost.percent(&did));
            }
        }
    }
    Ok(())
}

/// What accounting for one fault takes.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Cost {
    daemon_ns: f64,
    guest_ns: f64,
}

impl Cost {
    fn take() -> Self {
        Self {
            daemon_ns: each(daemon(&Stalls::new(Instant::now()))),
            guest_ns: each(guest(&Claimer::new(&Sums::default()))),
        }
    }

    /// The part of the guest's time that accounting takes.
    fn percent(&self, did: &Did) -> f64 {
        let counts = did.counts;
        let inline = counts.inline + counts.open_us;
        let ns = (counts.faults - counts.inline).mul_add(self.daemon_ns, inline * self.guest_ns);
        ns / (did.seconds * 1e9) * 100.0
    }
}

/// Nanoseconds of one fault, as a mean over many.
fn each(mut fault: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..FAULTS).for_each(|_| fault());
    start.elapsed().as_secs_f64() * 1e9 / f64::from(FAULTS)
}

/// A fault that finds no memory at first, which takes the most steps.
fn daemon(stalls: &Stalls) -> impl FnMut() + '_ {
    || {
        let since = Instant::now();
        let mut stall = stalls.begin(black_box(Cause::RefillZip), since);
        stalls.change(&mut stall, black_box(Cause::Memory), since);
        let now = Instant::now();
        stalls.change(&mut stall, black_box(Cause::RefillZip), now);
        stalls.end(stall, now);
    }
}

fn guest<'a>(claimer: &'a Claimer<'_, Sums>) -> impl FnMut() + 'a {
    || {
        let began = Instant::now();
        claimer.add_stall(black_box(StallCause::Refill), began.elapsed());
    }
}

/// The words of a claim table in which threads of a guest add up their time.
#[derive(Debug, Default)]
struct Sums([AtomicU32; StallCause::ALL.len()]);

impl Sums {
    fn at(&self, word: u32) -> &AtomicU32 {
        &self.0[(word - FIRST_STALL) as usize]
    }
}

impl Words for Sums {
    fn load(&self, at: u32) -> u32 {
        // Acquire, as the real table has it, whose cost is measured.
        self.at(at).load(Ordering::Acquire)
    }

    fn store(&self, at: u32, word: u32) {
        // Release, as the real table has it.
        self.at(at).store(word, Ordering::Release);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        let word = self.at(at);
        // AcqRel and Acquire, as the real table has them.
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::super::steady::Counts;
    use super::*;

    #[test]
    fn cost_of_a_fault_is_of_what_the_product_does() {
        let (stalls, start) = (Stalls::new(Instant::now()), Instant::now());
        (0..100).for_each(|_| daemon(&stalls)());
        let seen = stalls.so_far(None, Instant::now());
        let both = seen.threads[Cause::RefillZip] + seen.threads[Cause::Memory];
        assert!(seen.threads[Cause::Memory] > std::time::Duration::ZERO);
        assert!(both == seen.any && both <= start.elapsed(), "{seen:?}");
        let sums = Sums::default();
        Claimer::new(&sums).add_stall(StallCause::Refill, std::time::Duration::from_micros(3));
        assert_eq!(sums.load(StallCause::Refill.word()), 3);
    }

    #[test]
    fn share_is_of_both_ways_to_serve_a_fault_and_of_openings() {
        let cost = Cost {
            daemon_ns: 100.0,
            guest_ns: 10.0,
        };
        let counts = Counts {
            faults: 3e5,
            inline: 1e5,
            open_us: 1e5,
            stalled_us: 0.0,
        };
        let did = Did {
            seconds: 2.0,
            operations: 1.0,
            counts,
        };
        // 20 ms and 2 ms of two seconds.
        assert!((cost.percent(&did) - 1.1).abs() < 1e-9);
    }
}
