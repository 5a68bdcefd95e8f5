//! The options of `memvisor bench guests`.

use std::path::Path;
use std::time::Duration;

use super::super::exit::UsageError;
use super::super::values;
use crate::bench::Machine;
use crate::bench::guests::{Builtin, Chosen, Fleet, GuestsOptions, Overcommit};
use crate::chain::chain;
use crate::settings::{Key, Profile};
use crate::units::Bytes;

/// What the guests of a fleet want together, how long they run and how often; the same of `--quick`.
const SIZE: Bytes = Bytes::from_mib(1280);
const QUICK_SIZE: Bytes = Bytes::from_mib(320);
const TIME: Duration = Duration::from_secs(20);
const QUICK_TIME: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 3;
const QUICK_ROUNDS: u32 = 2;
/// A fleet's memory is there at most twice at a time: in use, and in swap or in files.
const COPIES: u64 = 2;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of guests")]
pub(super) struct Args {
    /// Which guests: kv-text, kv-mixed, kv-random, clones, demo, phases, bully, all, or the path of a TOML
    /// file; may be given more than once [default: kv-text,kv-mixed].
    #[arg(long, value_name = "NAME|FILE", value_delimiter = ',')]
    fleet: Vec<String>,

    /// How many times the budget guests want, such as 1.5,2,3; below 1 there is no pressure [default: 2].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    overcommit: Vec<Overcommit>,

    /// How long guests run [default: 20s].
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    time: Option<Duration>,

    /// The set of defaults of the host, as for `memvisor host`.
    #[arg(long)]
    profile: Option<Profile>,

    /// A setting of the host, as for `memvisor host`; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    set: Vec<(Key, String)>,

    /// Guests ask for every page, as with `memvisor guest --no-inline`.
    #[arg(long)]
    no_inline: bool,
}

impl Args {
    /// The options, if `wanted`, or the defaults if none is given.
    pub(super) fn options(
        &self,
        (size, rounds): (Option<Bytes>, Option<u32>),
        quick: bool,
        wanted: bool,
    ) -> anyhow::Result<GuestsOptions> {
        if let (false, Some(option)) = (wanted, self.first_given()) {
            return Err(
                UsageError(format!("--{option} is for the benchmark `guests` alone")).into(),
            );
        }
        let (usual_size, usual_time, usual_rounds) = if quick {
            (QUICK_SIZE, QUICK_TIME, QUICK_ROUNDS)
        } else {
            (SIZE, TIME, ROUNDS)
        };
        let size = size.unwrap_or(usual_size);
        let fleets = self.fleets()?;
        if wanted {
            for fleet in &fleets {
                fits(fleet, size, Machine::available())?;
            }
        }
        let two = || "2".parse().map_err(UsageError);
        Ok(GuestsOptions {
            fleets,
            overcommit: match &self.overcommit[..] {
                [] => vec![two()?],
                given => given.to_vec(),
            },
            time: self.time.unwrap_or(usual_time),
            rounds: rounds.unwrap_or(usual_rounds),
            size,
            profile: self.profile.unwrap_or_default(),
            settings: self.set.clone(),
            inline: !self.no_inline,
        })
    }

    fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("fleet", !self.fleet.is_empty()),
            ("overcommit", !self.overcommit.is_empty()),
            ("time", self.time.is_some()),
            ("profile", self.profile.is_some()),
            ("set", !self.set.is_empty()),
            ("no-inline", self.no_inline),
        ];
        given
            .iter()
            .find(|(_, given)| *given)
            .map(|(name, _)| *name)
    }

    fn fleets(&self) -> anyhow::Result<Vec<Chosen>> {
        let mut fleets = Vec::new();
        for text in &self.fleet {
            match text.parse::<Builtin>() {
                Ok(builtin) => fleets.push(Chosen::Builtin(builtin)),
                Err(_) if text == "all" => fleets.extend(Builtin::ALL.map(Chosen::Builtin)),
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

fn fits(fleet: &Chosen, size: Bytes, available: Bytes) -> Result<(), UsageError> {
    let (name, wants) = match fleet {
        Chosen::Builtin(builtin) => (builtin.name(), size),
        Chosen::File(fleet) => (fleet.name.as_str(), fleet.wants()),
    };
    let most = Bytes(available.0 / COPIES);
    if wants > most {
        return Err(UsageError(format!(
            "the guests of fleet {name} want {wants}, which is too much: {available} of memory are free, of which \
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
        let text = Chosen::Builtin(Builtin::Text);
        let size = Bytes::from_mib(512);
        assert!(fits(&text, size, Bytes::from_mib(1024)).is_ok());
        let error = fits(&text, size, Bytes::from_mib(1000)).expect_err("too much");
        for part in ["kv-text", "512.0 MiB", "up to 500.0 MiB"] {
            assert!(error.0.contains(part), "{error}");
        }
    }
}
