//! Why settings of a resource pool are refused, and what may have been meant.

use thiserror::Error;

use super::super::error::nearest;
use super::{POOL_KEYS, ROOT_POOL};
use crate::units::Pages;

/// Why settings of a pool are refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PoolSettingsError {
    /// Not of the form `KEY=VALUE`.
    #[error("`{0}` is not KEY=VALUE")]
    Word(String),
    /// No such key.
    #[error("there is no setting `{key}` of a resource pool")]
    Unknown {
        /// The key.
        key: String,
        /// Keys that are like it, the likest first.
        nearest: Vec<&'static str>,
    },
    /// The key cannot have that value.
    #[error("{key} cannot be `{value}`")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// The key is given more than once.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// The name cannot be that of a pool.
    #[error("`{0}` cannot be the name of a resource pool")]
    Name(String),
    /// The root has what the host has.
    #[error("the resource pool `{ROOT_POOL}` is the host itself and has no {0} of its own")]
    Root(&'static str),
    /// The pool reserves more than it may have.
    #[error("reservation {} is more than the limit of {}", .reservation.bytes(), .limit.bytes())]
    Reservation {
        /// The reservation.
        reservation: Pages,
        /// The limit.
        limit: Pages,
    },
    /// The pool would stand in itself.
    #[error("the resource pools {0} would stand in each other in a circle")]
    Circle(String),
    /// The pool that is to be its parent does not exist.
    #[error(transparent)]
    NoPool(#[from] UnknownPool),
}

/// A name that is that of no pool.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no resource pool `{name}`")]
pub struct UnknownPool {
    /// The name.
    pub name: String,
    /// Those that there are.
    pub known: Vec<String>,
}

impl UnknownPool {
    /// What would be right.
    #[must_use]
    pub fn allowed(&self) -> String {
        let near = nearest(&self.name, self.known.iter().map(String::as_str));
        let known = self.known.join(", ");
        if near.is_empty() {
            return format!("one of: {known}; `memvisor pool add` makes one");
        }
        format!("near: {}; there are: {known}", near.join(", "))
    }

    /// What is wrong and what would be right, in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        format!("{self}; allowed: {}", self.allowed())
    }
}

impl PoolSettingsError {
    /// What would be right.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Unknown { nearest, .. } if !nearest.is_empty() => nearest.join(", "),
            Self::Word(_) | Self::Unknown { .. } => POOL_KEYS.map(|key| key.name).join(", "),
            Self::Value { allowed, .. } => (*allowed).to_owned(),
            Self::Twice(_) => "each setting once".to_owned(),
            Self::Name(_) => "1 to 63 letters, digits, `-`, `_` and `.`, a letter or digit first; \
                              `root` and `default` are taken"
                .to_owned(),
            Self::Root(_) => "scalable-shares".to_owned(),
            Self::Reservation { limit, .. } => format!("at most {}", limit.bytes()),
            Self::Circle(_) => "a parent that does not stand in the pool itself".to_owned(),
            Self::NoPool(unknown) => unknown.allowed(),
        }
    }

    /// The setting that is at fault, if a single one is.
    #[must_use]
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::Word(_) | Self::Unknown { .. } | Self::Name(_) => None,
            Self::Value { key, .. } | Self::Twice(key) | Self::Root(key) => Some(key),
            Self::Reservation { .. } => Some("reservation"),
            Self::Circle(_) | Self::NoPool(_) => Some("parent"),
        }
    }

    /// What is wrong and what would be right, in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        format!("{self}; allowed: {}", self.allowed())
    }
}
