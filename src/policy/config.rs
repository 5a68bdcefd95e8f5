//! The settings of the policy.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::units::Pages;

/// The settings of the policy. [`Config::default`] is what ESX ships, or our choice where ESX does
/// not publish one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Free memory, in % of the budget, that the targets aim to exceed. Default 6, range 1..=50,
    /// and above `soft_percent`. Source: OSDI 2002 section 6.3; range of `Mem.MemMinFreePct`.
    pub high_percent: u32,
    /// Below this much free memory, in % of the budget, the state is soft. Default 4, between
    /// `hard_percent` and `high_percent`. Source: OSDI 2002 section 6.3.
    pub soft_percent: u32,
    /// Below this much free memory, in % of the budget, the state is hard. Default 2, between
    /// `low_percent` and `soft_percent`. Source: OSDI 2002 section 6.3.
    pub hard_percent: u32,
    /// Below this much free memory, in % of the budget, the state is low. Default 1, at least 0
    /// and below `hard_percent`. Source: OSDI 2002 section 6.3.
    pub low_percent: u32,
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
    /// The most pages that one plan orders to be evicted, over all VMs. Default 4096 (16 MiB, some
    /// 30 ms of writing to a fast disk), at least 1: a round must end before the next snapshot is
    /// worth taking. Our choice.
    pub evict_round: Pages,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            high_percent: 6,
            soft_percent: 4,
            hard_percent: 2,
            low_percent: 1,
            margin_percent: 20,
            balloon_max_percent: 65,
            headroom_percent: 10,
            evict_round: Pages(4096),
        }
    }
}

/// Why a set of settings cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
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
    /// The thresholds of the free-memory states do not fall from high to low.
    #[error(
        "high_percent {high}, soft_percent {soft}, hard_percent {hard}, low_percent {low}: \
         each must be smaller than the one before"
    )]
    Order {
        /// `high_percent` as set.
        high: u32,
        /// `soft_percent` as set.
        soft: u32,
        /// `hard_percent` as set.
        hard: u32,
        /// `low_percent` as set.
        low: u32,
    },
}

impl Config {
    /// Whether every setting is within its range.
    ///
    /// # Errors
    ///
    /// The first setting that is not, with what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("high_percent", u64::from(self.high_percent), 1, 50),
            ("margin_percent", u64::from(self.margin_percent), 10, 25),
            (
                "balloon_max_percent",
                u64::from(self.balloon_max_percent),
                0,
                99,
            ),
            ("headroom_percent", u64::from(self.headroom_percent), 1, 100),
            ("evict_round", self.evict_round.0, 1, u64::MAX),
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
        self.check_order()
    }

    fn check_order(&self) -> Result<(), ConfigError> {
        let (high, soft) = (self.high_percent, self.soft_percent);
        let (hard, low) = (self.hard_percent, self.low_percent);
        if high > soft && soft > hard && hard > low {
            return Ok(());
        }
        Err(ConfigError::Order {
            high,
            soft,
            hard,
            low,
        })
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
    fn check_unordered_thresholds_are_refused() {
        let config = Config {
            soft_percent: 6,
            ..Config::default()
        };
        assert!(matches!(
            config.check(),
            Err(ConfigError::Order {
                high: 6,
                soft: 6,
                ..
            })
        ));
    }

    #[test]
    fn file_with_one_setting_keeps_the_other_defaults() {
        let config: Config = serde_json::from_str(r#"{"margin_percent": 25}"#).expect("valid");
        let expected = Config {
            margin_percent: 25,
            ..Config::default()
        };
        assert_eq!(config, expected);
        serde_json::from_str::<Config>(r#"{"margin": 25}"#).expect_err("no such setting");
    }
}
