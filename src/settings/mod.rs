//! Settings of the host and of its VMs: names, values, and where they come from.
//!
//! A setting is given on a command line, in a file or over the API, and is shown and documented. If
//! each of these places knew its range and default, they would soon disagree. So there is one table of host
//! settings ([`TABLE`]) and one of VM settings ([`VM_KEYS`]), and all places ask these. Names are ESX's
//! where ESX has such a setting.
//!
//! - `value.rs`: reading and showing values and their units.
//! - `choice.rs`: types of which there are a few named values.
//! - `table.rs`, `host.rs`, `layers.rs`: host settings, their defaults by profile, the four places where
//!   they are given ([`Layers`]).
//! - `vm.rs`, `field.rs`, `patch.rs`, `domain.rs`: VM settings, their types, changes of them, and with which VMs
//!   one shares pages.
//! - `resource_pool.rs`: settings of resource pools, and the tree that these make.
//! - `keyed.rs`: settings of either as somebody has written them, in a table of a file or in JSON.
//! - `tree.rs`: TOML and JSON files, and all that is wrong with one.
//! - `file.rs`, `start.rs`: the configuration file.
//!
//! Nothing here has an effect: whoever holds the settings reads them and acts.

mod choice;
mod domain;
mod error;
mod field;
mod file;
mod host;
mod key;
mod keyed;
mod layers;
#[cfg(test)]
pub(crate) mod mistakes;
mod patch;
mod resource_pool;
mod spec;
mod start;
mod table;
mod tree;
mod value;
mod vm;

/// The names of the control laws, from which `Memvisor.BalloonLaw` chooses.
pub use crate::policy::law::NAMES as BALLOON_LAWS;
pub use choice::{
    BalloonTakes, CacheKeeps, ChoiceError, EngineChoice, FaultsWait, ForceSalting, Profile,
};
pub use domain::Domain;
pub(crate) use error::nearest;
pub use error::{SettingError, VmSettingsError};
pub use file::{ConfigError, ConfigFile};
pub use keyed::{PoolTable, VmTable};
pub use layers::{DEFAULT, Layer, Layers, Origin, SettingView};
pub use resource_pool::{
    POOL_KEYS, PoolKey, PoolPatch, PoolSettingsError, ROOT_POOL, UnknownPool, check_pool_name,
    tree as pool_tree,
};
pub use spec::{Departure, Spec};
pub use start::{HttpAddress, Memory, StartSettings};
pub use table::{HostSettings, Key, TABLE};
pub use tree::{Invalid, Problem};
pub(crate) use tree::{Keys, Reading, number, text_of};
pub(crate) use value::shown;
pub use value::{Kind, Scalar, Value};
pub use vm::{SALT_MAX, VM_KEYS, VmKey, VmPatch, VmSettings};

#[cfg(test)]
mod tests;
