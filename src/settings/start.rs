//! Settings that can be changed only by starting the host anew.

use std::path::PathBuf;

use super::choice::{EngineChoice, Profile};
use crate::policy::Policy;
use crate::units::Bytes;

/// What takes effect only when a host starts: the table `[host]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StartSettings {
    /// The set of defaults.
    pub profile: Option<Profile>,
    /// The policy by which memory is divided.
    pub policy: Option<&'static dyn Policy>,
    /// The budget.
    pub memory: Option<Bytes>,
    /// The engine.
    pub engine: Option<EngineChoice>,
    /// Where swap files are made.
    pub swap_dir: Option<PathBuf>,
}
