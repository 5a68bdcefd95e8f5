//! What is known about each host setting, whatever its value.

use super::table::Key;
use super::value::{Kind, Value};

/// What is known about a host setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Which one.
    pub key: Key,
    /// Its name: ESX's, or with the prefix `Memvisor.` where ESX has no such setting.
    pub name: &'static str,
    /// What it is about, for lists.
    pub group: &'static str,
    /// Its unit and range.
    pub kind: Kind,
    /// The default of profile `esx`.
    pub esx: Value,
    /// The default of profile `lab`, if it is not that of `esx`.
    pub lab: Option<Departure>,
    /// The default of profile `throughput`, if it is not that of `lab`.
    pub throughput: Option<Departure>,
    /// What it does.
    pub effect: &'static str,
    /// How it differs from ESX's setting; empty if it does not.
    pub deviation: &'static str,
}

/// A default that differs from that of the profile on which its profile is based.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departure {
    /// The default.
    pub value: Value,
    /// Why it differs.
    pub why: &'static str,
}
