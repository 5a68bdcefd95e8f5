//! Settings that can be changed only by starting the host anew.

use std::path::PathBuf;
use std::str::FromStr;

use super::host::Profile;
use crate::policy::Policy;
use crate::units::Bytes;

/// Which engine handles the faults of guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineChoice {
    /// userfaultfd where the system allows it, else page protection.
    Auto,
    /// userfaultfd.
    Uffd,
    /// Page protection.
    Mprotect,
}

impl FromStr for EngineChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "uffd" => Ok(Self::Uffd),
            "mprotect" => Ok(Self::Mprotect),
            _ => Err(()),
        }
    }
}

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
