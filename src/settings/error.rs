//! Why a setting cannot be read or set, and what may have been meant.

use strsim::jaro_winkler;
use thiserror::Error;

use super::vm::VM_KEYS;
use crate::units::Bytes;

/// Why a host setting cannot be read or set.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SettingError {
    /// There is no setting of that name.
    #[error("there is no setting `{name}`; {}", self.allowed())]
    Unknown {
        /// The name.
        name: String,
        /// Settings whose names are like it, the likest first.
        nearest: Vec<&'static str>,
    },
    /// The setting cannot have that value.
    #[error("{name} cannot be `{value}`; allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        allowed: String,
    },
}

impl SettingError {
    /// What is wrong, without what would be right.
    #[must_use]
    pub fn wrong(&self) -> String {
        match self {
            Self::Unknown { name, .. } => format!("there is no setting `{name}`"),
            Self::Value { name, value, .. } => format!("{name} cannot be `{value}`"),
        }
    }

    /// What would be right.
    #[must_use]
    pub fn allowed(&self) -> String {
        const LIST: &str = "`memvisor get --all` lists them";
        match self {
            Self::Unknown { nearest, .. } if nearest.is_empty() => LIST.to_owned(),
            Self::Unknown { nearest, .. } => format!("near: {}; {LIST}", nearest.join(", ")),
            Self::Value { allowed, .. } => allowed.clone(),
        }
    }
}

/// How alike a name must be to be suggested: a swapped or missing letter is alike enough, another word is not.
const ALIKE: f64 = 0.85;

/// Up to three of `names` that are like `name`, prefixes aside; the likest first.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let last = |name: &str| {
        let part = name.rsplit('.').next().unwrap_or_default();
        part.to_ascii_lowercase()
    };
    let asked = last(name);
    let mut alike: Vec<(f64, &str)> = names
        .map(|known| (jaro_winkler(&asked, &last(known)), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    alike.into_iter().take(3).map(|(_, known)| known).collect()
}

/// Why settings of a VM are refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VmSettingsError {
    /// Not of the form `KEY=VALUE`.
    #[error("`{0}` is not KEY=VALUE")]
    Word(String),
    /// No such key.
    #[error("there is no VM setting `{key}`")]
    Unknown {
        /// The key.
        key: String,
        /// Keys that are like it, the likest first.
        nearest: Vec<&'static str>,
    },
    /// The key cannot have that value.
    #[error("{key} cannot be `{value}`")]
    Value {
        /// The key's short name.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// The key is given more than once, perhaps under both names.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// The limit is more than the VM has.
    #[error("limit {limit} is more than the VM's memory of {size}")]
    Limit {
        /// The limit.
        limit: Bytes,
        /// The VM's memory.
        size: Bytes,
    },
    /// The reservation is more than the VM may have.
    #[error("reservation {reservation} is more than the {most} that the VM may have")]
    Reservation {
        /// The reservation.
        reservation: Bytes,
        /// The limit, or the VM's memory.
        most: Bytes,
    },
}

impl VmSettingsError {
    /// What would be right.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Unknown { nearest, .. } if !nearest.is_empty() => nearest.join(", "),
            Self::Word(_) | Self::Unknown { .. } => {
                VM_KEYS.map(|key| key.name).join(", ") + ", or their ESX names"
            }
            Self::Value { allowed, .. } => (*allowed).to_owned(),
            Self::Twice(_) => "each setting once, under one of its two names".to_owned(),
            Self::Limit { size, .. } => format!("a limit of at most {size}, or none"),
            Self::Reservation { most, .. } => format!("a reservation of at most {most}"),
        }
    }

    /// The short name of the setting that is at fault, if a single one is.
    #[must_use]
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::Word(_) | Self::Unknown { .. } => None,
            Self::Value { key, .. } | Self::Twice(key) => Some(key),
            Self::Limit { .. } => Some("limit"),
            Self::Reservation { .. } => Some("reservation"),
        }
    }

    /// What is wrong and what would be right, in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        format!("{self}; allowed: {}", self.allowed())
    }
}
