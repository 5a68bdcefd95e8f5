//! The choices of victims: faults per operation of real guests that are short of memory.
//!
//! The guests are key-value stores. With Zipf popularity, second chance should find out which pages are used. With
//! uniform popularity there is nothing to find out, and it only costs. Pages that came ahead of their faults count as
//! faults.

use super::super::report::{Case, Report};
use super::super::{Bench, BenchError, Setup};
use super::outcome::Side;
use super::steady::{self, Counts, Did};
use super::{Part, fleet};
use crate::reclaim::victims;
use crate::settings::Key;
use crate::units::Bytes;

/// Guests of a fleet.
const GUESTS: u64 = 4;
/// How guests use their pages, and the Zipf exponent of that.
const ACCESS: [(&str, &str); 2] = [("zipf", "0.99"), ("uniform", "0")];
/// The choice that counts as ours. All others are compared with it.
const OURS: &str = victims::SECOND_CHANCE;

pub(in super::super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let options = &setup.options.guests;
    let dir = setup.subdirectory("guests")?;
    for overcommit in &options.overcommit {
        for (access, exponent) in ACCESS {
            let each = Bytes(options.size.0 / GUESTS).pages().bytes();
            let fleet = fleet::stores(access, GUESTS, each, exponent);
            for round in 1..=options.rounds {
                for selection in victims::NAMES {
                    let side = match selection {
                        OURS => Side::Ours,
                        other => Side::With(other),
                    };
                    let mut settings = options.settings.clone();
                    settings.push((Key::Victims, selection.to_owned()));
                    let part = Part {
                        side,
                        settings: &settings,
                        ..Part::of_ours(setup, Bench::Victims, (&fleet, *overcommit), round)
                    };
                    if let Some(did) = steady::run(setup, &part, &dir, report)? {
                        note(report, &part, &did);
                    }
                }
            }
        }
    }
    Ok(())
}

fn note(report: &Report, part: &Part<'_>, did: &[Did]) {
    let on = format!("{} at {}x", part.fleet.name, part.overcommit);
    let counts = did
        .iter()
        .fold(Counts::default(), |sum, one| sum.plus(one.counts));
    let operations: f64 = did.iter().map(|one| one.operations).sum();
    let rate: f64 = did.iter().map(|one| one.operations / one.seconds).sum();
    let less = |metric, unit, of: f64| {
        let case = Case::less(Bench::Victims, &on, metric, unit);
        report.note(&case, part.side.peer(), of / operations.max(1.0));
    };
    less("faults", "/op", counts.faults);
    less(
        "faults that the daemon serves",
        "/op",
        counts.faults - counts.inline,
    );
    less("faults that guests serve", "/op", counts.inline);
    less("threads wait for closed pages", "us/op", counts.open_us);
    less("guests stand still", "us/op", counts.stalled_us);
    let case = Case::more(Bench::Victims, &on, "operations", "ops/s");
    report.note(&case, part.side.peer(), rate);
}
