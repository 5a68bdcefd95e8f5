//! Why a setting cannot be read or set, and what may have been meant.

use strsim::jaro_winkler;
use thiserror::Error;

use super::value::Wrong;

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
    #[error("{name} cannot be `{value}`: {wrong}; allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        wrong: Wrong,
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
            Self::Value {
                name, value, wrong, ..
            } => format!("{name} cannot be `{value}`: {wrong}"),
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
pub(super) fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
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
