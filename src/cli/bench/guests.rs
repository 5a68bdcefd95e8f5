//! The options of `memvisor bench guests` and of the other benchmarks that run guests.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use super::super::exit::UsageError;
use super::super::values;
use crate::bench::guests::{Builtin, Chosen, Fleet, GuestsOptions, Overcommit};
use crate::bench::{Bench, Machine};
use crate::chain::chain;
use crate::policy::{Policy, policies};
use crate::settings::{Key, Profile};
use crate::units::Bytes;

/// What the guests of a fleet want together, how long they run and how often, without and with `--quick`.
const SIZE: Bytes = Bytes::from_mib(1280);
const QUICK_SIZE: Bytes = Bytes::from_mib(320);
const TIME: Duration = Duration::from_secs(20);
const QUICK_TIME: Duration = Duration::from_secs(5);
/// How long the guest of `sample` runs. Its sampling is on and off for four seconds each.
const SAMPLE_TIME: Duration = Duration::from_secs(40);
const QUICK_SAMPLE_TIME: Duration = Duration::from_secs(16);
const ROUNDS: u32 = 3;
const QUICK_ROUNDS: u32 = 2;
/// A fleet's memory exists at most twice at the same time: in use, and in swap or in files.
const COPIES: u64 = 2;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of guests")]
pub(super) struct Args {
    /// Which guests: kv-text, kv-mixed, kv-random, clones, demo, phases, bully, all, or the path of a TOML
    /// file; may be given more than once [default: kv-text,kv-mixed].
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    fleet: Vec<String>,

    /// Memory that the guests want, in multiples of the host's budget, such as 1.5,2,3; below 1 there is no
    /// pressure [default: 2].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    overcommit: Vec<Overcommit>,

    /// How long guests run [default: 20s; sample 40s].
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    time: Option<Duration>,

    /// The set of defaults of the host, as for `memvisor host`.
    #[arg(long)]
    profile: Option<Profile>,

    /// The policy of the host, as for `memvisor host` [default: that of the profile].
    #[arg(long, value_name = "NAME", value_parser = policies::named)]
    policy: Option<&'static dyn Policy>,

    /// A setting of the host, as for `memvisor host`; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    set: Vec<(Key, String)>,

    /// Guests ask for every page, as with `memvisor guest --no-inline`.
    #[arg(long)]
    no_inline: bool,
}

impl Args {
    /// The options, with defaults for those not given. An error if one is given that no benchmark of `benches` has.
    pub(super) fn options(
        &self,
        (size, rounds): (Option<Bytes>, Option<u32>),
        quick: bool,
        benches: &[Bench],
    ) -> anyhow::Result<GuestsOptions> {
        if let Some((option, of)) = self.first_astray(benches) {
            let names: Vec<String> = of.iter().map(|bench| format!("`{bench}`")).collect();
            let text = format!("--{option} is for {} alone", names.join(", "));
            return Err(UsageError(text).into());
        }
        let (usual_size, usual_rounds) = if quick {
            (QUICK_SIZE, QUICK_ROUNDS)
        } else {
            (SIZE, ROUNDS)
        };
        let size = size.unwrap_or(usual_size);
        let fleets = self.fleets()?;
        if benches.contains(&Bench::Guests) {
            for fleet in &fleets {
                let (name, wants) = match fleet {
                    Chosen::Builtin(builtin) => (builtin.to_string(), size),
                    Chosen::File(fleet) => (fleet.name.clone(), fleet.wants()),
                };
                fits(&name, wants, Machine::available())?;
            }
        }
        let others = |bench: &&Bench| bench.runs_guests() && **bench != Bench::Guests;
        for bench in benches.iter().filter(others) {
            fits(&bench.to_string(), size, Machine::available())?;
        }
        let (time, sample_time) = if quick {
            (QUICK_TIME, QUICK_SAMPLE_TIME)
        } else {
            (TIME, SAMPLE_TIME)
        };
        let profile = self.profile.unwrap_or_default();
        let two = || "2".parse().map_err(UsageError);
        Ok(GuestsOptions {
            fleets,
            overcommit: match &self.overcommit[..] {
                [] => vec![two()?],
                given => given.to_vec(),
            },
            time: self.time.unwrap_or(time),
            sample_time: self.time.unwrap_or(sample_time),
            rounds: rounds.unwrap_or(usual_rounds),
            size,
            profile,
            policy: self.policy.unwrap_or_else(|| profile.policy()),
            settings: self.set.clone(),
            inline: !self.no_inline,
        })
    }

    /// The first option that is given although none of `benches` has it, and the benchmarks that have it.
    fn first_astray(&self, benches: &[Bench]) -> Option<(&'static str, &'static [Bench])> {
        const ALL: &[Bench] = &[Bench::Guests, Bench::Victims, Bench::Stalls, Bench::Sample];
        const UNDER_PRESSURE: &[Bench] = &[Bench::Guests, Bench::Victims, Bench::Stalls];
        let given = [
            ("fleet", &[Bench::Guests][..], !self.fleet.is_empty()),
            ("overcommit", UNDER_PRESSURE, !self.overcommit.is_empty()),
            ("time", ALL, self.time.is_some()),
            ("profile", ALL, self.profile.is_some()),
            ("policy", ALL, self.policy.is_some()),
            ("set", ALL, !self.set.is_empty()),
            ("no-inline", ALL, self.no_inline),
        ];
        let mut given = given.into_iter().filter(|(_, _, given)| *given);
        let astray = given.find(|(_, of, _)| !of.iter().any(|bench| benches.contains(bench)));
        astray.map(|(option, of, _)| (option, of))
    }

    fn fleets(&self) -> anyhow::Result<Vec<Chosen>> {
        let mut fleets = Vec::new();
        for text in &self.fleet {
            match text.parse::<Builtin>() {
                Ok(builtin) => fleets.push(Chosen::Builtin(builtin)),
                Err(_) if text == "all" => fleets.extend(
                    Builtin::value_variants()
                        .iter()
                        .copied()
                        .map(Chosen::Builtin),
                ),
                Err(unknown) if !Path::new(text).exists() => {
                    return Err(UsageError(format!("--fleet: {unknown}")).into());
                }
                Err(_) => {
                    let fleet = Fleet::load(Path::new(text));
                    let fleet = fleet.map_err(|error| UsageError(chain(&error)))?;
                    fleets.push(Chosen::File(fleet));
                }
            }
        }
        if fleets.is_empty() {
            fleets = [Builtin::Text, Builtin::Mixed].map(Chosen::Builtin).into();
        }
        Ok(fleets)
    }
}

fn fits(name: &str, wants: Bytes, available: Bytes) -> Result<(), UsageError> {
    let most = Bytes(available.0 / COPIES);
    if wants > most {
        return Err(UsageError(format!(
            "the guests of {name} want {wants}, which is too much: {available} of memory are free, of which \
             {COPIES} times as much is needed; allowed: up to {most}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fleet_that_does_not_fit_is_refused_with_what_does() {
        let size = Bytes::from_mib(512);
        assert!(fits("kv-text", size, Bytes::from_mib(1024)).is_ok());
        let error = fits("kv-text", size, Bytes::from_mib(1000)).expect_err("too much");
        for part in ["kv-text", "512.0 MiB", "up to 500.0 MiB"] {
            assert!(error.0.contains(part), "{error}");
        }
    }
}
