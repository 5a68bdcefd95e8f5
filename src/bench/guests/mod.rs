//! What guests get done when memory is short: on a memvisor host, and by the kernel's own means with the same memory.
//!
//! # The problem
//!
//! Each mechanism may be as fast as the kernel's, and guests may still get only a tenth of the work done. Time is lost
//! between the mechanisms: in pacing, in waiting, in taking the wrong page. A benchmark of mechanisms does not see
//! that. And a comparison of whole systems is worth nothing if one of them has more memory, if it verifies less, or
//! if it ran on another machine.
//!
//! # The structure
//!
//! So the same guests run on both sides: same executable, kernel, workloads, seeds, size, and time from their
//! power-on. On our side they run on a separate daemon with a budget, the policy included (`ours`). On the other side
//! they run `--bare`, on private memory of their processes, in one memory cgroup, with KSM and with swap on zram, and
//! where that is not enough, on a file behind it (`kernel`). A search (`limit`) gives that side the same memory. Its
//! memory is the peak of the cgroup plus the most that zram took. Ours is the budget plus what the guest processes
//! have beside RAM (heaps, stacks, page tables), as the guests on our side report it. With an overcommitment below 1
//! there is no pressure, and the other side has no limit.
//!
//! The sides take turns, round by round, and nothing of one side is left when the other runs. What the guests
//! themselves report is compared: operations, how long each took, and what they got done in each second.

mod file;
mod fleet;
mod kernel;
mod limit;
mod ours;
mod outcome;
mod processes;
pub(super) mod sample;
pub(super) mod stalls;
mod steady;
pub(super) mod victims;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use memvisor_guest_agent::guest::GuestReport;

pub use file::FleetError;
pub use fleet::{Builtin, Fleet, FleetGuest};

use self::kernel::NotRun;
use self::limit::{Given, Search, TOLERANCE, Used};
use self::outcome::{Means, Side};
use super::report::Report;
use super::{Bench, BenchError, Setup, Vs};
use crate::policy::Policy;
use crate::settings::{Key, Profile};
use crate::units::Bytes;

/// The most tries in a round to make the other side use the same memory.
const TRIES: u32 = 5;

/// How many times the budget the guests want, in hundredths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overcommit(u32);

impl Overcommit {
    /// The least and the most.
    const RANGE: (f64, f64) = (0.1, 100.0);

    /// The budget for guests that want `wants`.
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
    /// The overcommitments. Each fleet is measured at each of them.
    pub overcommit: Vec<Overcommit>,
    /// How long guests run.
    pub time: Duration,
    /// How long the guest of the benchmark `sample` runs.
    pub sample_time: Duration,
    /// How often each side runs.
    pub rounds: u32,
    /// What the guests of a built-in fleet want together.
    pub size: Bytes,
    /// The profile of our host.
    pub profile: Profile,
    /// The policy of our host.
    pub policy: &'static dyn Policy,
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
    /// A run on our side, with the options of `setup`.
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

    /// Reports how far the run is. An error if it shall not go on.
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

/// The result of one run.
#[derive(Clone, Debug)]
struct Ran {
    /// What guests reported, in the order of the fleet.
    reports: Vec<GuestReport>,
    /// The most memory that was in use, in bytes, for guests and their processes.
    memory: u64,
    /// Processor time of whatever serves the guests: our daemon, or ksmd.
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
    // What the kernel lacks is said only once, because it would be the same for every fleet.
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
                // What the kernel lacks is only needed under pressure.
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

    /// A round of the kernel with the same memory as ours; `None` if that cannot be done, which a remark explains.
    fn kernel(&mut self, part: &Part<'_>, overhead: u64) -> Result<Option<Ran>, BenchError> {
        let with = |size: Bytes| (size.0 + overhead) as f64;
        let (target, wants) = (with(part.budget), with(self.fleet.wants()));
        let mut search = (self.search.take()).unwrap_or_else(|| Search::new(target, wants));
        let mut closest: Option<(Ran, Given, Used)> = None;
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let given = search.given();
            match kernel::run(self.setup, part, self.dir, given)? {
                Err(NotRun::TooLittle) => search.had_too_little(),
                Err(NotRun::Missing(why)) => {
                    self.missing = true;
                    let text = format!("not compared with kernel: {why}");
                    self.report.remark(text);
                    return Ok(None);
                }
                Ok((ran, used)) => {
                    let is_found = search.has_found(&used);
                    let miss = |used: &Used| search.miss(used).abs();
                    if is_found
                        || closest
                            .as_ref()
                            .is_none_or(|(.., best)| miss(&used) < miss(best))
                    {
                        closest = Some((ran, given, used));
                    }
                    if is_found {
                        break;
                    }
                }
            }
        }
        if let Some((ran, given, used)) = closest {
            self.say(part, &search, (given, used), tries);
            self.search = Some(search);
            return Ok(Some(ran));
        }
        let (name, target) = (&self.fleet.name, Bytes(search.target() as u64));
        self.report.remark(format!(
            "not compared with kernel: {name} at {}x does not run in {target}",
            self.overcommit
        ));
        Ok(None)
    }

    /// Says what memory the kernel had, and how that compares with ours.
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
