//! Types of which there are a few named values: profiles, engines, and what settings choose between.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::value::{FromValue, Value, shown};
use crate::policy::{Generation, IdleTaxType, Law, law};
use crate::reclaim::victims;
use crate::units::Pages;

/// A text that is none of the names of a choice.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{text}` is none of these; allowed: {}", allowed.join(", "))]
pub struct ChoiceError {
    text: String,
    /// The names.
    pub allowed: &'static [&'static str],
}

/// Declares enums whose variants are named once, each with its name.
macro_rules! choices {
    ($(
        $(#[$doc:meta])*
        $choice:ident { $($(#[$of:meta])* $variant:ident = $name:literal,)+ }
    )+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub enum $choice { $($(#[$of])* #[serde(rename = $name)] $variant,)+ }

        impl $choice {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// Their names, in the same order.
            pub const NAMES: &[&str] = &[$($name),+];

            /// The name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }

            /// The value of a setting that is this choice.
            #[must_use]
            pub const fn value(self) -> Value {
                Value::Choice(self.name())
            }
        }

        impl FromStr for $choice {
            type Err = ChoiceError;

            fn from_str(text: &str) -> Result<Self, ChoiceError> {
                let found = Self::ALL.iter().find(|choice| choice.name() == text);
                found.copied().ok_or_else(|| ChoiceError {
                    text: shown(text),
                    allowed: Self::NAMES,
                })
            }
        }

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromValue for $choice {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::Choice(name) => name.parse().ok(),
                    _ => None,
                }
            }
        }
    )+};
}

choices! {
    /// A set of defaults.
    #[derive(Default)]
    Profile {
        /// Fast enough to watch, on a host of some hundred MiB.
        #[default]
        Lab = "lab",
        /// What ESX ships.
        Esx = "esx",
        /// Like `lab`, but with whatever makes guests fast, even where ESX does otherwise.
        Throughput = "throughput",
    }

    /// Which engine handles the faults of guests.
    EngineChoice {
        /// userfaultfd where the system allows it, else page protection.
        Auto = "auto",
        /// userfaultfd.
        Uffd = "uffd",
        /// Page protection.
        Mprotect = "mprotect",
    }

    /// What balloons take: `Memvisor.BalloonTakes`.
    BalloonTakes {
        /// As much as memory is to be had.
        All = "all",
        /// No more than the guest has free.
        Free = "free",
    }

    /// Which pages compression caches keep: `Memvisor.CacheKeeps`.
    CacheKeeps {
        /// All for which there is room.
        All = "all",
        /// Those that are worth their memory.
        Paying = "paying",
    }

    /// In which state guests begin to wait for reclaim: `Memvisor.FaultsWait`.
    FaultsWait {
        /// In low, and only those above their targets.
        Low = "low",
        /// In hard, all.
        Hard = "hard",
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

impl FromValue for ForceSalting {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Whole(0) => Some(Self::Ignore),
            Value::Whole(1) => Some(Self::Common),
            Value::Whole(2) => Some(Self::Own),
            _ => None,
        }
    }
}

impl FromValue for IdleTaxType {
    fn from_value(value: Value) -> Option<Self> {
        u32::from_value(value)?.to_string().parse().ok()
    }
}

impl FromValue for Generation {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Choice(name) => name.parse().ok(),
            _ => None,
        }
    }
}

impl FromValue for &'static dyn Law {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Choice(name) => law::named(name).ok(),
            _ => None,
        }
    }
}

impl FromValue for victims::Choice {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Choice(name) => Self::named(name),
            _ => None,
        }
    }
}

impl FromValue for Pages {
    fn from_value(value: Value) -> Option<Self> {
        u32::from_value(value).map(|pages| Self(pages.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_by_their_names_and_nothing_else_is_one() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(*profile));
        }
        let error = "ESXi".parse::<Profile>().expect_err("none").to_string();
        assert!(
            error.contains("`ESXi`") && error.contains("lab, esx, throughput"),
            "{error}"
        );
    }
}
