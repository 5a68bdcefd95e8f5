//! Settings of the host and of its VMs: names, values, and where they come from.
//!
//! A setting is given on a command line, in a file or over the API, and is shown and documented. If
//! each of these places knew its range and default, they would soon disagree. So there is one table of host
//! settings ([`TABLE`]) and one of VM settings ([`VM_KEYS`]), and all places ask these. Names are ESX's
//! where ESX has such a setting.
//!
//! - `value.rs`: reading and showing values and their units.
//! - `table.rs`, `host.rs`, `layers.rs`: host settings, their typed values, the four places where
//!   they are given ([`Layers`]).
//! - `vm.rs`, `patch.rs`, `domain.rs`: VM settings, changes of them, and with which VMs one shares pages.
//! - `file.rs`, `start.rs`, `vm_table.rs`: the configuration file.
//!
//! Nothing here has an effect: whoever holds the settings reads them and acts.

mod domain;
mod error;
mod file;
mod host;
mod layers;
mod name;
mod patch;
mod start;
mod table;
mod value;
mod vm;
mod vm_table;

pub use domain::Domain;
pub use error::SettingError;
pub use file::{ConfigError, ConfigFile, Problem};
pub use host::{ForceSalting, HostSettings, Profile, ProfileError};
pub use layers::{DEFAULT, Layer, Layers, Origin, SettingView};
pub use name::{NAME_MAX, NameError, check_vm_name};
pub use patch::VmPatch;
pub use start::{EngineChoice, StartSettings};
pub use table::{Key, Spec, TABLE};
pub(crate) use value::shown;
pub use value::{Kind, Scalar, TimeUnit, Value, Wrong, time};
pub use vm::{SALT_MAX, VM_KEYS, VmKey, VmSettings, VmSettingsError};
pub use vm_table::VmTable;

#[cfg(test)]
mod tests;
