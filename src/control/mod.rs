//! The control API: HTTP and JSON over a Unix socket; and metrics, health and a live page at an address, if one is given
//! (`http.rs`).
//!
//! Each request stands in `routes`, with its answer and its errors; docs/openapi.json says the same for programs, and
//! `GET /v1/openapi.json` serves it.
//!
//! A size of the balloon that is `null` gives the decision back to the policy. Errors are
//! `{"error": what is wrong, "allowed": what would be right}` with a status code that fits.
//!
//! HTTP because every language and `curl --unix-socket` can speak it; a Unix socket because file
//! permissions then say who may speak. The server has a thread of its own with a single-threaded
//! runtime, and talks to the daemon only through [`Daemon`]: no part of a memory path is async, and a
//! slow client never holds a lock of the daemon.

mod client;
mod events;
mod http;
mod limit;
mod routes;
mod server;

use std::num::NonZeroU32;
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

pub use client::{Client, ClientError};
pub use server::{ServeError, Server};

use crate::settings::{
    PoolPatch, PoolSettingsError, Scalar, SettingError, SettingView, UnknownPool, VmPatch,
    VmSettingsError,
};
use crate::telemetry::{HostStatus, PoolStatus, ShareEstimate, VmStatus};
use crate::units::{Bytes, Pages};

/// The most bytes a request may carry: the largest sensible one has a path in it.
const REQUEST_BODY_MAX: usize = 8192;

/// What the control API needs from the daemon.
///
/// The methods run on the thread of the control server, one at a time. They should return within
/// milliseconds, because every other client waits meanwhile.
pub trait Daemon: Send + Sync + 'static {
    /// The whole host now.
    fn status(&self) -> HostStatus;

    /// When the policy planned last, and before its first plan when the daemon started.
    fn planned(&self) -> Instant;

    /// One VM now; `None` if no VM of that name runs.
    fn vm(&self, name: &str) -> Option<VmStatus>;

    /// Sets the balloon target by hand, or gives it back to the policy with `None`.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM or it cannot have such a balloon.
    fn set_balloon(&self, name: &str, target: Option<Pages>) -> Result<VmStatus, ControlError>;

    /// What sharing would save if it were on for all VMs. It takes up to some seconds.
    ///
    /// # Errors
    /// [`ControlError::Surveying`].
    fn estimate_sharing(&self) -> Result<ShareEstimate, ControlError>;

    /// Has the swapped pages of a VM brought back, so many a second; `None`: no longer.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM.
    fn set_unswap(&self, name: &str, rate: Option<NonZeroU32>) -> Result<VmStatus, ControlError>;

    /// Ends a VM: its guest process is killed and its memory given back.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM.
    fn kill(&self, name: &str) -> Result<(), ControlError>;

    /// All host settings.
    fn settings(&self) -> Vec<SettingView>;

    /// Sets a host setting; `default` takes away what was set at run time.
    ///
    /// # Errors
    /// [`ControlError::Setting`]; the setting is as before.
    fn set_setting(&self, name: &str, value: &str) -> Result<SettingView, ControlError>;

    /// Changes settings of a VM, all of them or none.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM, or the values contradict each other.
    fn set_vm(&self, name: &str, patch: &VmPatch) -> Result<VmStatus, ControlError>;

    /// What the policy decided about a VM and why: an object, which passes through as it is.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM.
    fn why(&self, name: &str) -> Result<serde_json::Value, ControlError>;

    /// All resource pools, the root first and each after its parent.
    fn pools(&self) -> Vec<PoolStatus>;

    /// One resource pool.
    ///
    /// # Errors
    /// [`ControlError::NoPool`].
    fn pool(&self, name: &str) -> Result<PoolStatus, ControlError> {
        let pools = self.pools();
        let found = pools.iter().find(|pool| pool.name == name).cloned();
        found.ok_or_else(|| {
            let known = pools.into_iter().map(|pool| pool.name).collect();
            let name = name.to_owned();
            UnknownPool { name, known }.into()
        })
    }

    /// Adds a resource pool.
    ///
    /// # Errors
    /// [`ControlError`] if it cannot be, or what it reserves does not fit.
    fn add_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError>;

    /// Changes settings of a resource pool, all of them or none.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such pool, or it cannot be so; everything is as before.
    fn set_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError>;

    /// Removes a resource pool in which nothing is.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such pool, something is in it, or the configuration file says that it is there.
    fn remove_pool(&self, name: &str) -> Result<(), ControlError>;

    /// What a balloon agent of a VM says in its `START`.
    ///
    /// # Errors
    /// [`ControlError`] if there is no such VM.
    fn token(&self, name: &str) -> Result<AgentToken, ControlError>;

    /// Reads the configuration file again and applies it, as a whole or not at all.
    ///
    /// # Errors
    /// [`ControlError::NoConfig`] or [`ControlError::Config`]; everything is as before.
    fn reload(&self) -> Result<ReloadReport, ControlError>;
}

/// The secret by which a balloon agent of a VM is known. Whoever may ask for it may end the VM as well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AgentToken {
    /// 64 bits as 16 hexadecimal digits after `0x`: a number of JSON need not hold so many.
    pub token: String,
}

/// Why the daemon refuses a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// No VM of that name runs.
    #[error("there is no VM `{name}`")]
    UnknownVm {
        /// The name asked for.
        name: String,
        /// The names of the VMs that run.
        running: Vec<String>,
    },
    /// The balloon would take more than it may.
    #[error("a balloon of {} is too large for VM `{name}`", asked.bytes())]
    BalloonTooLarge {
        /// The VM.
        name: String,
        /// The target asked for.
        asked: Pages,
        /// The largest target allowed.
        max: Pages,
    },
    /// No agent is connected that could inflate the balloon.
    #[error("VM `{name}` has no balloon agent connected")]
    NoAgent {
        /// The VM.
        name: String,
    },
    /// Somebody else has asked what sharing would save, and is not answered yet.
    #[error("what sharing would save is being estimated for somebody else")]
    Surveying,
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Stopping,
    /// There is no such host setting, or it cannot have that value.
    #[error("{}", .0.wrong())]
    Setting(#[from] SettingError),
    /// The VM cannot have these settings.
    #[error(transparent)]
    VmSettings(#[from] VmSettingsError),
    /// There is no file to read again.
    #[error("the host was started without a configuration file")]
    NoConfig,
    /// The configuration file has a fault; the text names file and line.
    #[error("{0}")]
    Config(String),
    /// The policy has not looked at the VM yet.
    #[error("VM `{0}` has only just started: nothing was decided about it")]
    NotYet(String),
    /// There is no such resource pool.
    #[error(transparent)]
    NoPool(#[from] UnknownPool),
    /// The resource pool cannot have these settings.
    #[error(transparent)]
    PoolSettings(#[from] PoolSettingsError),
    /// There is such a resource pool already.
    #[error("there is a resource pool `{name}` already")]
    PoolExists {
        /// Its name.
        name: String,
    },
    /// Something is in the resource pool that is to be removed.
    #[error("resource pool `{name}` is not empty: {} in it", in_it(.vms, .pools))]
    PoolOccupied {
        /// Its name.
        name: String,
        /// The VMs in it.
        vms: Vec<String>,
        /// The pools in it.
        pools: Vec<String>,
    },
    /// The configuration file says that there is this resource pool.
    #[error("resource pool `{name}` stands in the configuration file")]
    PoolInFile {
        /// Its name.
        name: String,
    },
    /// The host cannot give the VM what the change would require.
    #[error("{0}")]
    Refused(String),
}

/// What is in a resource pool, in words.
fn in_it(vms: &[String], pools: &[String]) -> String {
    let named = |what: &str, names: &[String]| format!("{what} {}", names.join(", "));
    let parts = [("VMs", vms), ("pools", pools)].into_iter();
    let parts = parts.filter(|(_, names)| !names.is_empty());
    let parts: Vec<String> = parts.map(|(what, names)| named(what, names)).collect();
    format!("{} are", parts.join(" and "))
}

impl ControlError {
    /// What the caller could do instead, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::UnknownVm { running, .. } if running.is_empty() => "no VM is running".to_owned(),
            Self::UnknownVm { running, .. } => format!("one of: {}", running.join(", ")),
            Self::BalloonTooLarge { max, .. } => {
                format!("at most {} ({} bytes)", max.bytes(), max.bytes().0)
            }
            Self::Surveying => "the same again in some seconds".to_owned(),
            Self::NoAgent { .. } => "try again once the guest's agent is connected".to_owned(),
            Self::Stopping => "start another daemon".to_owned(),
            Self::Setting(error) => error.allowed(),
            Self::VmSettings(error) => error.allowed(),
            Self::NoConfig => "start it with `memvisor host --config FILE`".to_owned(),
            Self::Config(_) => "a file without faults; what was in force still is".to_owned(),
            Self::NoPool(unknown) => unknown.allowed(),
            Self::PoolSettings(error) => error.allowed(),
            Self::PoolExists { name } => {
                format!("another name; `memvisor pool set {name}` changes that one")
            }
            Self::PoolOccupied { vms, pools, .. } => match (vms.first(), pools.first()) {
                (Some(vm), _) => {
                    format!("an empty pool: move VMs by `memvisor vm set {vm} pool=root`")
                }
                (_, Some(pool)) => {
                    format!("an empty pool: move pools by `memvisor pool set {pool} parent=root`")
                }
                _ => "an empty pool".to_owned(),
            },
            Self::PoolInFile { name } => {
                format!("take [pool.{name}] out of the file, then `memvisor reload`")
            }
            Self::NotYet(_) => "the same again in a second".to_owned(),
            Self::Refused(_) => "what the host has left, as the error says".to_owned(),
        }
    }
}

/// The body of `PUT /v1/vms/{name}/balloon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// The size to reach in bytes, a multiple of 4096; `null` gives the decision back to the policy.
    #[serde(deserialize_with = "present")]
    pub target_bytes: Option<Bytes>,
}

/// The body of `PUT /v1/vms/{name}/unswap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnswapRequest {
    /// How many swapped pages are to come back in a second, until none is left; `null`: no more.
    #[serde(deserialize_with = "present")]
    pub pages_per_s: Option<NonZeroU32>,
}

/// Reads a field that may be `null` but not missing: an empty object must not undo an order.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer)
}

/// The body of `PUT /v1/settings/{name}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SettingRequest {
    /// The value: a number in the setting's unit, or a text such as `50%` or `30s`.
    pub value: Scalar,
}

/// What a reload of the configuration file has changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReloadReport {
    /// The file.
    pub file: String,
    /// The host settings that have another value now.
    pub settings: Vec<SettingView>,
    /// The names of the running VMs whose settings have changed.
    pub vms: Vec<String>,
    /// The names of the resource pools that have changed, came or went.
    pub pools: Vec<String>,
}

/// The body of every error.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What is wrong, with the value.
    pub error: String,
    /// What would be right.
    pub allowed: String,
}

#[cfg(test)]
mod openapi;
#[cfg(test)]
mod tests;
