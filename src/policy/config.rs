//! The settings of the policy.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Generation, Law};
use crate::units::Pages;

/// By which means the idle memory tax is taken (`Mem.IdleTaxType`).
///
/// VMware documents the values 0 and 1 and no more. A common reading is that 0 means paging and 1 the
/// balloon; another is that with 1 the rate rises with idleness, by a formula that is not published.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleTaxType {
    /// 0: balloons take what they would without the tax, and what the tax takes beyond that is paged out.
    Flat,
    /// 1: balloons take what is taxed, as they take everything else.
    #[default]
    Variable,
}

/// A text that names no type of tax.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no type of idle memory tax: flat (or 0) and variable (or 1) are allowed")]
pub struct UnknownTaxType(String);

impl fmt::Display for IdleTaxType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flat => "flat",
            Self::Variable => "variable",
        })
    }
}

impl FromStr for IdleTaxType {
    type Err = UnknownTaxType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "flat" | "0" => Ok(Self::Flat),
            "variable" | "1" => Ok(Self::Variable),
            _ => Err(UnknownTaxType(text.to_owned())),
        }
    }
}

/// The settings of the policy. [`Config::default`] is what ESX ships, or our choice where ESX does
/// not publish one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The generation of ESX that decides the thresholds and what runs in which state. Default 5.0.
    pub generation: Generation,
    /// What is kept free (`minFree`), in % of the budget; the other thresholds follow from it. Range
    /// 0..=50, default 0: what the generation keeps free. Source: `Mem.MemMinFreePct`.
    pub min_free_percent: u32,
    /// What is kept free besides for writes to shared pages, in % of what sharing saves, which is what it would cost if all
    /// of them were written. Range 0..=100, default 0, as in ESX, which keeps nothing for that. Our choice.
    pub share_reserve_percent: u32,
    /// How far free memory must exceed a threshold before the state improves, in % of the gap to
    /// the threshold below it. Default 20, range 10..=25. ESX has such a margin but does not
    /// publish it ("significantly exceeding"); this is our choice.
    pub margin_percent: u32,
    /// The most a balloon may take, in % of the size of its VM. Default 65, range 0..=99, 0
    /// disables ballooning. Source: `Mem.CtlMaxPercent`.
    pub balloon_max_percent: u32,
    /// How much of its balloon a VM is presumed to want back in one step, in % of its size.
    /// Default 10, range 1..=100. ESX publishes "consumed plus headroom" without a number; this
    /// is our choice.
    pub headroom_percent: u32,
    /// The idle memory tax: the largest part, in %, that others may take of the pages a VM holds
    /// and does not use. Default 75, range 0..=99; at 0 only shares count. It applies to VMs whose
    /// active pages are known. Source: `Mem.IdleTax`; OSDI 2002 section 5.2.
    pub idle_tax_percent: u32,
    /// By which means the tax is taken. Default variable. Source: `Mem.IdleTaxType`.
    pub idle_tax_type: IdleTaxType,
    /// Whether pages are compressed at all; 2002 never does. Default true. Source:
    /// `Mem.MemZipEnable`.
    pub zip_enabled: bool,
    /// The most pages that one plan orders to be evicted, over all VMs. Default 4096 (16 MiB, some
    /// 30 ms of writing to a fast disk), at least 1: a round must end before the next snapshot is
    /// worth taking. Our choice.
    pub evict_round: Pages,
    /// Whether balloons take no more than what their guests have free. Default false, as in ESX. Our choice.
    pub balloon_takes_free_only: bool,
    /// Whether faults wait for reclaim before the state is low. Default false, as in ESX. Our choice.
    pub faults_wait_early: bool,
    /// How balloons are led. Default ESX's own.
    pub law: &'static dyn Law,
    /// `pid`: how much of the error is added to the target, in %. Default 100, range 0..=1000.
    pub pid_proportional_percent: u32,
    /// `pid`: by how much of the error the target moves in a second, in %. Default 100, range 0..=1000.
    pub pid_integral_percent: u32,
    /// `pid`: how many seconds of the change of the error are added to the target, in %. Default 25, range 0..=1000.
    pub pid_derivative_percent: u32,
    /// `senpai`: the stall that it wants of each guest, in microseconds a second. Default 1667: 10 ms in 6 s, as
    /// in `senpai.py`. Range 1..=1000000.
    pub senpai_stall_us: u32,
    /// `senpai`: the time between two probes. Default 6 s, range one second to ten minutes.
    pub senpai_interval: Duration,
    /// `senpai`: the most that a probe takes of what a VM has without its balloon, in %. Default 1, range 1..=50.
    pub senpai_probe_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            generation: Generation::default(),
            min_free_percent: 0,
            share_reserve_percent: 0,
            margin_percent: 20,
            balloon_max_percent: 65,
            headroom_percent: 10,
            idle_tax_percent: 75,
            idle_tax_type: IdleTaxType::default(),
            zip_enabled: true,
            evict_round: Pages(4096),
            balloon_takes_free_only: false,
            faults_wait_early: false,
            law: <&dyn Law>::default(),
            pid_proportional_percent: 100,
            pid_integral_percent: 100,
            pid_derivative_percent: 25,
            senpai_stall_us: 1667,
            senpai_interval: Duration::from_secs(6),
            senpai_probe_percent: 1,
        }
    }
}

/// Why a set of settings cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting is outside its range.
    #[error("{name} is {value}: {least} to {most} is allowed")]
    Range {
        /// The name of the setting.
        name: &'static str,
        /// What it was set to.
        value: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
}

impl Config {
    /// Whether every setting is within its range.
    ///
    /// # Errors
    ///
    /// The first setting that is not, with what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let number = |name, value: u32, least, most| (name, u64::from(value), least, most);
        let ranges = [
            ("min_free_percent", u64::from(self.min_free_percent), 0, 50),
            number("share_reserve_percent", self.share_reserve_percent, 0, 100),
            ("margin_percent", u64::from(self.margin_percent), 10, 25),
            (
                "balloon_max_percent",
                u64::from(self.balloon_max_percent),
                0,
                99,
            ),
            ("headroom_percent", u64::from(self.headroom_percent), 1, 100),
            ("idle_tax_percent", u64::from(self.idle_tax_percent), 0, 99),
            ("evict_round", self.evict_round.0, 1, u64::MAX),
            number(
                "pid_proportional_percent",
                self.pid_proportional_percent,
                0,
                1000,
            ),
            number("pid_integral_percent", self.pid_integral_percent, 0, 1000),
            number(
                "pid_derivative_percent",
                self.pid_derivative_percent,
                0,
                1000,
            ),
            number("senpai_stall_us", self.senpai_stall_us, 1, 1_000_000),
            (
                "senpai_interval in s",
                self.senpai_interval.as_secs(),
                1,
                600,
            ),
            number("senpai_probe_percent", self.senpai_probe_percent, 1, 50),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::Range {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_in_range() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn check_out_of_range_names_value_and_range() {
        let config = Config {
            balloon_max_percent: 100,
            ..Config::default()
        };
        let error = config.check().expect_err("100 % is not allowed");
        assert_eq!(
            error.to_string(),
            "balloon_max_percent is 100: 0 to 99 is allowed"
        );
    }

    #[test]
    fn tax_types_are_read_by_name_and_by_number() {
        for (text, expected) in [
            ("0", IdleTaxType::Flat),
            ("flat", IdleTaxType::Flat),
            ("1", IdleTaxType::Variable),
            ("variable", IdleTaxType::Variable),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        let error = "2".parse::<IdleTaxType>().expect_err("not known");
        assert_eq!(
            error.to_string(),
            "`2` is no type of idle memory tax: flat (or 0) and variable (or 1) are allowed"
        );
    }

    #[test]
    fn file_with_one_setting_keeps_the_other_defaults() {
        let config = r#"{"generation": "6.0", "idle_tax_type": "flat"}"#;
        let config: Config = serde_json::from_str(config).expect("valid");
        let expected = Config {
            generation: Generation::G60,
            idle_tax_type: IdleTaxType::Flat,
            ..Config::default()
        };
        assert_eq!(config, expected);
        serde_json::from_str::<Config>(r#"{"margin": 25}"#).expect_err("no such setting");
    }
}
