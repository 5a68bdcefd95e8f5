//! The host settings as the daemon uses them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::table::{Key, Spec};
use super::value::{Value, shown};
use crate::policy::{Config, Generation, IdleTaxType};
use crate::reclaim::victims;
use crate::units::Pages;

/// A set of defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Fast enough to watch, on a host of some hundred MiB.
    #[default]
    Lab,
    /// What ESX ships.
    Esx,
    /// Like `lab`, but with whatever makes guests fast, even where ESX does otherwise.
    Throughput,
}

impl Profile {
    /// What names one.
    pub const NAMES: &str = "lab, esx, throughput";

    /// The default of a setting in this profile.
    #[must_use]
    pub const fn default_of(self, spec: &Spec) -> Value {
        match self {
            Self::Lab => spec.lab,
            Self::Esx => spec.esx,
            Self::Throughput => match spec.throughput {
                Some(value) => value,
                None => spec.lab,
            },
        }
    }
}

/// A text that names no profile.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no profile `{0}`; allowed: {names}", names = Profile::NAMES)]
pub struct ProfileError(String);

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        match text {
            "lab" => Ok(Self::Lab),
            "esx" => Ok(Self::Esx),
            "throughput" => Ok(Self::Throughput),
            _ => Err(ProfileError(shown(text))),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lab => "lab",
            Self::Esx => "esx",
            Self::Throughput => "throughput",
        })
    }
}

/// Which VMs share pages with each other: `Mem.ShareForceSalting`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForceSalting {
    /// 0: salts are ignored, all VMs share.
    Ignore,
    /// 1: VMs without a salt share with each other.
    Common,
    /// 2: a VM without a salt shares within itself only.
    Own,
}

/// The values of all host settings at one moment. Their ranges are those of
/// [`TABLE`](super::TABLE).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HostSettings {
    /// `Mem.ShareScanTime`.
    pub share_scan_time: Duration,
    /// `Mem.ShareScanGHz`, in MB/s for each GHz.
    pub share_scan_ghz: u32,
    /// `Mem.ShareRateMax`, in pages a second.
    pub share_rate_max: u32,
    /// `Mem.ShareForceSalting`.
    pub share_force_salting: ForceSalting,
    /// `Mem.IdleTax`, in percent.
    pub idle_tax: u32,
    /// `Mem.IdleTaxType`.
    pub idle_tax_type: IdleTaxType,
    /// `Mem.SamplePeriod`; zero turns sampling off.
    pub sample_period: Duration,
    /// `Mem.SampleActivePctMin`, in percent.
    pub sample_active_pct_min: u32,
    /// `Mem.BalancePeriod`.
    pub balance_period: Duration,
    /// `Mem.CtlMaxPercent`, in percent; 0 turns ballooning off.
    pub ctl_max_percent: u32,
    /// `Mem.MemMinFreePct`, in percent; 0 means what [`HostSettings::free_states`] keeps free.
    pub mem_min_free_pct: u32,
    /// `Mem.MemZipEnable`.
    pub mem_zip_enable: bool,
    /// `Mem.MemZipMaxPct`, in percent.
    pub mem_zip_max_pct: u32,
    /// `Mem.MemZipMaxAllocPct`, in percent.
    pub mem_zip_max_alloc_pct: u32,
    /// `Memvisor.FreeStates`.
    pub free_states: Generation,
    /// `Memvisor.StateMargin`, in percent.
    pub state_margin: u32,
    /// `Memvisor.Headroom`, in percent.
    pub headroom: u32,
    /// `Memvisor.EvictRound`.
    pub evict_round: Pages,
    /// `Memvisor.BalloonTakes`: whether balloons take free pages of their guests only.
    pub balloon_takes_free_only: bool,
    /// `Memvisor.CacheKeeps`: whether compression caches keep only what is worth its memory.
    pub cache_keeps_paying: bool,
    /// `Memvisor.FaultsWait`: whether faults wait for reclaim before the state is low.
    pub faults_wait_early: bool,
    /// `Memvisor.ScanAtRest`, in percent.
    pub scan_at_rest: u32,
    /// `Memvisor.Victims`.
    pub victims: victims::Choice,
}

impl HostSettings {
    /// The settings, each with the value that `value` returns for it.
    ///
    /// # Panics
    /// If a value is not of its setting's kind and range; [`Key::read`] returns no such value.
    #[must_use]
    pub fn of(value: impl Fn(Key) -> Value) -> Self {
        let whole = |key| match value(key) {
            Value::Whole(number) => number,
            other => panic!("{other:?} is no number for {key:?}"),
        };
        let time = |key| match value(key) {
            Value::Time(time) => time,
            other => panic!("{other:?} is no time for {key:?}"),
        };
        Self {
            share_scan_time: time(Key::ShareScanTime),
            share_scan_ghz: whole(Key::ShareScanGHz),
            share_rate_max: whole(Key::ShareRateMax),
            share_force_salting: match whole(Key::ShareForceSalting) {
                0 => ForceSalting::Ignore,
                1 => ForceSalting::Common,
                _ => ForceSalting::Own,
            },
            idle_tax: whole(Key::IdleTax),
            idle_tax_type: match whole(Key::IdleTaxType) {
                0 => IdleTaxType::Flat,
                _ => IdleTaxType::Variable,
            },
            sample_period: time(Key::SamplePeriod),
            sample_active_pct_min: whole(Key::SampleActivePctMin),
            balance_period: time(Key::BalancePeriod),
            ctl_max_percent: whole(Key::CtlMaxPercent),
            mem_min_free_pct: whole(Key::MemMinFreePct),
            mem_zip_enable: whole(Key::MemZipEnable) == 1,
            mem_zip_max_pct: whole(Key::MemZipMaxPct),
            mem_zip_max_alloc_pct: whole(Key::MemZipMaxAllocPct),
            free_states: match value(Key::FreeStates) {
                Value::Choice(name) => name.parse().expect("every choice is a generation"),
                other => panic!("{other:?} is no choice of FreeStates"),
            },
            state_margin: whole(Key::StateMargin),
            headroom: whole(Key::Headroom),
            evict_round: Pages(whole(Key::EvictRound).into()),
            balloon_takes_free_only: value(Key::BalloonTakes) == Value::Choice("free"),
            cache_keeps_paying: value(Key::CacheKeeps) == Value::Choice("paying"),
            faults_wait_early: value(Key::FaultsWait) == Value::Choice("hard"),
            scan_at_rest: whole(Key::ScanAtRest),
            victims: match value(Key::Victims) {
                Value::Choice(name) => victims::Choice::named(name).expect("it is registered"),
                other => panic!("{other:?} is no choice of Victims"),
            },
        }
    }

    /// The settings that the policy needs.
    #[must_use]
    pub const fn policy(&self) -> Config {
        Config {
            generation: self.free_states,
            min_free_percent: self.mem_min_free_pct,
            margin_percent: self.state_margin,
            balloon_max_percent: self.ctl_max_percent,
            headroom_percent: self.headroom,
            idle_tax_percent: self.idle_tax,
            idle_tax_type: self.idle_tax_type,
            zip_enabled: self.mem_zip_enable,
            evict_round: self.evict_round,
            balloon_takes_free_only: self.balloon_takes_free_only,
            faults_wait_early: self.faults_wait_early,
        }
    }

    /// The defaults of a profile.
    #[must_use]
    pub fn profile(profile: Profile) -> Self {
        Self::of(|key| profile.default_of(key.spec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_esx_is_what_esx_ships() {
        let esx = HostSettings::profile(Profile::Esx);
        let expected = HostSettings {
            share_scan_time: Duration::from_secs(3600),
            share_scan_ghz: 4,
            share_rate_max: 1024,
            share_force_salting: ForceSalting::Own,
            idle_tax: 75,
            idle_tax_type: IdleTaxType::Variable,
            sample_period: Duration::from_secs(60),
            sample_active_pct_min: 1,
            balance_period: Duration::from_secs(15),
            ctl_max_percent: 65,
            mem_min_free_pct: 0,
            mem_zip_enable: true,
            mem_zip_max_pct: 10,
            mem_zip_max_alloc_pct: 50,
            free_states: Generation::G60,
            state_margin: 20,
            headroom: 10,
            evict_round: Pages(4096),
            balloon_takes_free_only: false,
            cache_keeps_paying: false,
            faults_wait_early: false,
            scan_at_rest: 100,
            victims: victims::Choice::default(),
        };
        assert_eq!(esx, expected);
    }

    #[test]
    fn profile_lab_is_the_default_and_differs_in_seven_settings() {
        assert_eq!(Profile::default(), Profile::Lab);
        let lab = HostSettings::profile(Profile::Lab);
        let expected = HostSettings {
            share_scan_time: Duration::from_secs(3),
            share_scan_ghz: 32,
            share_rate_max: 32_768,
            share_force_salting: ForceSalting::Common,
            sample_period: Duration::from_secs(2),
            balance_period: Duration::from_secs(1),
            free_states: Generation::G50,
            ..HostSettings::profile(Profile::Esx)
        };
        assert_eq!(lab, expected);
    }

    #[test]
    fn profile_throughput_is_lab_but_for_seven_settings() {
        let throughput = HostSettings::profile(Profile::Throughput);
        let expected = HostSettings {
            mem_zip_max_pct: 50,
            mem_zip_max_alloc_pct: 80,
            balloon_takes_free_only: true,
            cache_keeps_paying: true,
            faults_wait_early: true,
            scan_at_rest: 5,
            victims: victims::Choice::named("second-chance").expect("it is one"),
            ..HostSettings::profile(Profile::Lab)
        };
        assert_eq!(throughput, expected);
    }

    #[test]
    fn every_value_that_may_be_set_is_one_that_the_policy_takes() {
        for profile in [Profile::Lab, Profile::Esx, Profile::Throughput] {
            HostSettings::profile(profile)
                .policy()
                .check()
                .expect("defaults are in range");
        }
        for spec in &super::super::TABLE {
            let Some((min, max)) = spec.kind.bounds() else {
                continue;
            };
            for bound in [min, max] {
                let value = spec
                    .key
                    .read(&bound.to_string())
                    .expect("a bound is allowed");
                let settings = HostSettings::of(|key| {
                    let default = Profile::Lab.default_of(key.spec());
                    if key == spec.key { value } else { default }
                });
                settings.policy().check().expect(spec.name);
            }
        }
    }

    #[test]
    fn profiles_are_named_and_nothing_else_is_one() {
        for profile in [Profile::Lab, Profile::Esx, Profile::Throughput] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        let error = "ESXi".parse::<Profile>().expect_err("none");
        assert_eq!(
            error.to_string(),
            "there is no profile `ESXi`; allowed: lab, esx, throughput"
        );
    }

    #[test]
    fn every_choice_of_a_switch_has_a_meaning() {
        for spec in &super::super::TABLE {
            let words: Vec<String> = match (spec.kind.bounds(), spec.kind) {
                (Some((min, max)), _) => vec![min.to_string(), max.to_string()],
                (None, super::super::Kind::Choice(words)) => {
                    words.iter().map(|word| (*word).to_owned()).collect()
                }
                (None, kind) => panic!("{kind:?} has no bounds"),
            };
            let mut seen = Vec::new();
            for word in words {
                let chosen = spec.key.read(&word).expect("allowed");
                let settings = HostSettings::of(|key| {
                    let default = Profile::Lab.default_of(key.spec());
                    if key == spec.key { chosen } else { default }
                });
                assert!(!seen.contains(&settings), "{}: {word}", spec.name);
                seen.push(settings);
            }
        }
    }
}
