//! The policy as a calculator: a host and its VMs, written by hand.
//!
//! Whoever plans a host asks what the policy *would* do: with these sizes, shares and working sets, which VM
//! gives how much, and by which means? The policy would answer for a snapshot, but nobody writes one by hand: it
//! counts pages, in all seven homes of each VM, and the room in its stores. What people know is a size, shares,
//! and how much is in use. The format here asks for that and works out the rest, so that a file of five lines
//! is a host. What cannot be worked out, or contradicts itself, is an error with its place: a
//! calculator that silently corrects its input answers another question.
//!
//! - `read.rs`, `vm.rs`: values to a [`Scenario`], or all that is wrong with them.
//! - `report.rs`: what the policy decides about a scenario, for people and programs.
//!
//! Nothing here reads a file, a clock or a running host.

mod read;
mod report;
mod vm;

use std::path::Path;

pub use self::report::{PoolReport, Report, VmReport};
use crate::policy::{self, Config, Explanation, HostSnapshot, Plan, Policy};
pub use crate::settings::Invalid;
use crate::settings::{Profile, Reading};
use crate::units::Pages;

/// The format in which a scenario is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// TOML.
    Toml,
    /// JSON, with the same tables and keys.
    Json,
}

impl Format {
    /// The format, judged by the ending of the file's name or, if that says nothing, by the text.
    #[must_use]
    pub fn of(path: &Path, text: &str) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("json") => Self::Json,
            Some("toml") => Self::Toml,
            // No TOML text begins with a brace.
            _ if text.trim_start().starts_with('{') => Self::Json,
            _ => Self::Toml,
        }
    }
}

/// A host and its VMs, as somebody has written them down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// The set of defaults.
    pub profile: Profile,
    /// The policy.
    pub policy: &'static dyn Policy,
    /// What the policy sees. The VMs are in the order of the file, numbered from 1 on.
    pub host: HostSnapshot,
    /// The settings of the policy.
    pub config: Config,
    /// The names of the VMs, in the same order.
    pub names: Vec<String>,
}

impl Scenario {
    /// Reads a scenario from the text of `file`, whose name is for errors.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong in it.
    pub fn parse(file: &str, format: Format, text: &str) -> Result<Self, Invalid> {
        let (reading, written) = match format {
            Format::Toml => Reading::toml(text, &["vm", "pool"]),
            Format::Json => Reading::json(text, &["vm", "pool"]),
        };
        let scenario = read::scenario(reading, &written);
        scenario.map_err(|problems| Invalid::new(file.to_owned(), problems))
    }

    /// Host pages that the VMs hold beyond what the host has. No real host can be in that state; the targets are
    /// then those at which a host would come to rest if every VM went on wanting that much.
    #[must_use]
    pub const fn beyond(&self) -> Pages {
        self.host.used.saturating_sub(self.host.budget)
    }

    /// What the policy decides.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.policy.plan(&self.host, &self.config)
    }

    /// What the policy decides, with all that the decision follows from.
    #[must_use]
    pub fn report(&self) -> Report {
        report::of(self, &self.plan())
    }

    /// Why the VM of that name is treated as it is. None: there is no such VM.
    #[must_use]
    pub fn explain(&self, name: &str) -> Option<Explanation> {
        let at = self.names.iter().position(|known| known == name)?;
        let id = self.host.vms[at].id;
        policy::explain(self.policy, &self.host, &self.config, &self.plan(), id)
    }
}

#[cfg(test)]
mod tests;
