//! What guests get done when memory is short: on a host of ours, and on the kernel's own means with as much.
//!
//! # The problem
//!
//! A mechanism alone may be as fast as the kernel's, and guests may still get a tenth as much done, because what is
//! lost is lost between the mechanisms: in pacing, in waiting, in taking the wrong page. A benchmark of mechanisms
//! does not see that. And a comparison of whole systems is worth nothing if one of them has more memory, or if
//! it verifies less, or if the machine was another one.
//!
//! # The structure
//!
//! So the same guests run on both sides: same executable, kernel, workloads, seeds, size, and time from their
//! power-on. On our side a daemon of its own has a budget, policy and all (`ours`). On the other one guests
//! run `--bare`, on private memory of their processes, in one memory cgroup, with KSM, with swap on zram, and where
//! that is not enough on a file behind it (`kernel`). The memory of that side is made equal by a search
//! (`limit`): the peak of the cgroup and the most that zram took are together our budget and what the processes of
//! guests have beside RAM, which the guests of our side tell: heaps, stacks, page tables. With an overcommitment below 1
//! there is no pressure, and the other side is not held to anything.
//!
//! Sides take turns, round by round; nothing of one is left when the other runs. What is compared is what guests
//! report themselves: operations, how long each took, and what they got done in each second.

mod crew;
mod file;
mod fleet;
mod kernel;
mod limit;
mod ours;
mod outcome;
pub(super) mod sample;
pub(super) mod stalls;
mod steady;
pub(super) mod victims;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

pub use file::FleetError;
pub use fleet::{Builtin, Fleet, FleetGuest, MAX_GUESTS};

use self::kernel::Hindrance;
use self::limit::{Given, Search, TOLERANCE, Used};
use self::outcome::{Means, Side};
use super::report::Report;
use super::{Bench, BenchError, Setup, Vs};
use crate::settings::{Key, Profile};
use crate::telemetry::GuestReport;
use crate::units::Bytes;

/// The most tries that a round of the other side takes to use as much memory.
const TRIES: u32 = 5;

/// How many times the budget guests want, in hundredths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overcommit(u32);

impl Overcommit {
    /// The least and the most.
    const RANGE: (f64, f64) = (0.1, 100.0);

    /// The budget for guests that want so much.
    #[must_use]
    pub const fn budget(self, wants: Bytes) -> Bytes {
        Bytes(wants.0 * 100 / self.0 as u64).pages().bytes()
    }

    /// Whether memory is short.
    const fn is_pressure(self) -> bool {
        self.0 >= 100
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 100.0)
    }
}

impl FromStr for Overcommit {
    type Err = String;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked before the cast"
    )]
    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = Self::RANGE;
        let number = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
        let number = number.filter(|number| (least..=most).contains(number));
        number
            .map(|number| Self((number * 100.0).round() as u32))
            .ok_or_else(|| format!("`{text}` is no overcommitment; allowed: {least} to {most}"))
    }
}

/// A fleet as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// One that comes with memvisor.
    Builtin(Builtin),
    /// One from a file.
    File(Fleet),
}

/// What to measure of guests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestsOptions {
    /// The fleets.
    pub fleets: Vec<Chosen>,
    /// How many times the budget each wants, one measurement each.
    pub overcommit: Vec<Overcommit>,
    /// How long guests run.
    pub time: Duration,
    /// How long the guest runs that is sampled.
    pub sample_time: Duration,
    /// How often each side runs.
    pub rounds: u32,
    /// What the guests of a fleet want together, unless that comes from a file.
    pub size: Bytes,
    /// The profile of our host.
    pub profile: Profile,
    /// Settings of our host.
    pub settings: Vec<(Key, String)>,
    /// Whether guests serve some of their faults themselves.
    pub inline: bool,
}

/// One run of one side.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    bench: Bench,
    fleet: &'a Fleet,
    overcommit: Overcommit,
    budget: Bytes,
    time: Duration,
    round: u32,
    side: Side,
    /// Settings of our host.
    settings: &'a [(Key, String)],
}

impl<'a> Part<'a> {
    /// A run of ours with what `setup` says.
    fn of_ours(
        setup: &Setup<'a>,
        bench: Bench,
        (fleet, overcommit): (&'a Fleet, Overcommit),
        round: u32,
    ) -> Self {
        let options = &setup.options.guests;
        Self {
            bench,
            fleet,
            overcommit,
            budget: overcommit.budget(fleet.wants()),
            time: options.time,
            round,
            side: Side::Ours,
            settings: &options.settings,
        }
    }

    /// Says how far it is; whether to go on.
    fn tell(&self, setup: &Setup<'_>, elapsed: Duration) -> Result<(), BenchError> {
        let Self {
            fleet,
            overcommit,
            time,
            round,
            side,
            ..
        } = self;
        let (name, rounds) = (&fleet.name, setup.options.guests.rounds);
        let now = match elapsed.checked_sub(*time) {
            None => format!("{} of {} s", elapsed.as_secs(), time.as_secs_f64()),
            Some(_) => format!("verifying, {} s", elapsed.as_secs()),
        };
        let text = format!("{name} at {overcommit}x, round {round} of {rounds}, {side}: {now}");
        setup.step(self.bench, &text)
    }
}

/// What came of it.
#[derive(Clone, Debug)]
struct Ran {
    /// What guests reported, in the order of the fleet.
    reports: Vec<GuestReport>,
    /// Memory that was in use at most, in bytes, for guests and their processes.
    memory: u64,
    /// Processor time of what serves the guests: our daemon, or ksmd.
    cpu: Duration,
    /// Memory of our daemon beside its budget, in bytes.
    own: u64,
}

impl Ran {
    /// Memory of the processes of guests beside their RAM, on our side.
    fn overhead(&self) -> u64 {
        self.reports.iter().map(|report| report.own_bytes).sum()
    }
}

/// Measures all fleets at all overcommitments.
pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let options = &setup.options.guests;
    let dir = setup.subdirectory("guests")?;
    // Said once: the other fleets would say the same.
    let mut missing = false;
    for overcommit in &options.overcommit {
        let mut means = Means::default();
        for chosen in &options.fleets {
            let fleet = match chosen {
                Chosen::File(fleet) => fleet.clone(),
                Chosen::Builtin(builtin) => {
                    builtin.write_files(setup, options.size)?;
                    builtin.fleet(options.size, options.time, &setup.scratch)
                }
            };
            let mut pair = Pair {
                setup,
                report,
                dir: &dir,
                fleet: &fleet,
                overcommit: *overcommit,
                search: None,
                // What the kernel lacks under pressure is not needed without.
                missing: !setup.wants(Vs::Kernel) || (missing && overcommit.is_pressure()),
            };
            for round in 1..=options.rounds {
                pair.round(round, &mut means)?;
            }
            missing |= pair.missing;
        }
        means.note(report, *overcommit);
    }
    Ok(())
}

/// A fleet at an overcommitment, on both sides.
struct Pair<'a> {
    setup: &'a Setup<'a>,
    report: &'a Report,
    dir: &'a Path,
    fleet: &'a Fleet,
    overcommit: Overcommit,
    /// The search for what the kernel is given, from the first round on.
    search: Option<Search>,
    missing: bool,
}

impl Pair<'_> {
    fn round(&mut self, round: u32, means: &mut Means) -> Result<(), BenchError> {
        let fleet = (self.fleet, self.overcommit);
        let ours = Part::of_ours(self.setup, Bench::Guests, fleet, round);
        let part = |side| Part { side, ..ours };
        let ours = ours::run(self.setup, &part(Side::Ours), self.dir, |_| ())?;
        outcome::note(self.report, &part(Side::Ours), &ours, means);
        if self.missing {
            return Ok(());
        }
        if !self.overcommit.is_pressure() {
            let part = part(Side::Bare);
            let bare = kernel::unlimited(self.setup, &part, self.dir)?;
            outcome::note(self.report, &part, &bare, means);
            return Ok(());
        }
        let part = part(Side::Kernel);
        if let Some(kernel) = self.kernel(&part, ours.overhead())? {
            outcome::note(self.report, &part, &kernel, means);
        }
        Ok(())
    }

    /// A round of the kernel with as much memory as ours; `None` where that cannot be, which a remark explains.
    fn kernel(&mut self, part: &Part<'_>, overhead: u64) -> Result<Option<Ran>, BenchError> {
        let with = |size: Bytes| (size.0 + overhead) as f64;
        let (target, wants) = (with(part.budget), with(self.fleet.wants()));
        let mut search = (self.search.take()).unwrap_or_else(|| Search::new(target, wants));
        for tries in 1..=TRIES {
            let given = search.given();
            match kernel::run(self.setup, part, self.dir, given)? {
                Err(Hindrance::TooLittle) => search.had_too_little(),
                Err(Hindrance::Missing(why)) => {
                    self.missing = true;
                    let text = format!("not compared with kernel: {why}");
                    self.report.remark(text);
                    return Ok(None);
                }
                Ok((ran, used)) => {
                    if search.has_found(&used) || tries == TRIES {
                        self.say(part, &search, (given, used), tries);
                        self.search = Some(search);
                        return Ok(Some(ran));
                    }
                }
            }
        }
        let (name, target) = (&self.fleet.name, Bytes(search.target() as u64));
        self.report.remark(format!(
            "not compared with kernel: {name} at {}x does not run in {target}",
            self.overcommit
        ));
        Ok(None)
    }

    /// Says what the kernel had, and how that compares.
    fn say(&self, part: &Part<'_>, search: &Search, (given, used): (Given, Used), tries: u32) {
        let size = |bytes: f64| Bytes(bytes as u64);
        let budget = part.budget;
        let each = (search.target() - budget.0 as f64) / self.fleet.guests.len() as f64;
        let miss = search.miss(&used);
        let off = if miss.abs() > TOLERANCE {
            ", which is not the same"
        } else {
            ""
        };
        let file = if given.file > 0.0 { "a" } else { "no" };
        self.report.remark(format!(
            "{} at {}x, round {}: budget {budget} and {} a process; kernel: {} in its cgroup, zram for {} took {}, \
             {file} swap file; together {:+.1} %{off}, after {tries} tries",
            self.fleet.name,
            self.overcommit,
            part.round,
            size(each),
            size(used.cgroup),
            size(given.zram),
            size(used.zram),
            miss * 100.0,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overcommitment_divides_what_is_wanted() {
        for (text, mib, shown) in [("2", 50, "2"), ("2.5x", 40, "2.5"), ("0.5", 200, "0.5")] {
            let overcommit: Overcommit = text.parse().expect(text);
            assert_eq!(
                overcommit.budget(Bytes::from_mib(100)),
                Bytes::from_mib(mib)
            );
            assert_eq!(overcommit.to_string(), shown);
            assert_eq!(overcommit.is_pressure(), text != "0.5");
        }
        for text in ["0", "", "-1", "101", "NaN", "two", "xx"] {
            let error = text.parse::<Overcommit>().expect_err(text);
            assert!(error.contains(&format!("`{text}`")), "{error}");
            assert!(error.contains("0.1 to 100"), "{error}");
        }
    }
}
