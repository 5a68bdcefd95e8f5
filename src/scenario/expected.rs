//! What is expected of a scenario: figures of its recordings, bounds of them, and what others have published.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What becomes of the values of a series.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// Their mean.
    Mean,
    /// The largest.
    Max,
    /// The least.
    Min,
    /// The first.
    First,
    /// The last.
    Last,
    /// By how much they grew.
    Growth,
    /// By how much they grew in a second.
    Rate,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Min => "min",
            Self::First => "first",
            Self::Last => "last",
            Self::Growth => "growth",
            Self::Rate => "rate",
        })
    }
}

/// A number of a recording.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Whether the series are of the host.
    pub of_host: bool,
    /// Whether they only grow while their VM lives.
    pub counter: bool,
    /// Whose: `host`, the name of a guest, or the beginning of names with a `*`, whose values are added up.
    pub of: String,
    /// Which series; several are added up.
    pub series: Vec<String>,
    /// What becomes of their values.
    pub value: Value,
    /// From when on, in milliseconds since the run began.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
    /// In which variant; `None`: in each by itself.
    pub variant: Option<String>,
}

/// Something expected.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Expect {
    /// What, as a sentence.
    pub text: String,
    /// The number.
    pub figure: Figure,
    /// What it is divided by.
    pub per: Option<Figure>,
    /// What it counts in.
    pub unit: String,
    /// Within which bounds it must be. Without any it is only shown.
    pub bound: Bound,
    /// What others have published.
    pub published: Option<Published>,
}

/// Bounds of a number.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Bound {
    /// The least that it may be.
    pub at_least: Option<f64>,
    /// The most that it may be.
    pub at_most: Option<f64>,
}

/// A number that others have published.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Published {
    /// The number, in the unit of the figure.
    pub value: f64,
    /// Where.
    pub source: String,
}
