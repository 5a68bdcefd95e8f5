//! Control laws in incidents: what others' balloon controllers ran into, simulated.
//!
//! **The problem.** A control law looks good on the load for which it was written. What it does to a guest that grows at
//! the wrong moment, an agent that hangs, or ten guests at once, shows in production, on machines that cannot be asked
//! again. Those who ran into it have told (`catalogue.rs`); so each incident is a description here, and every law is led
//! through each, beside the controller with which it happened (`naive.rs`).
//!
//! **Why not with real guests.** Each would take minutes, and no two runs would be the same. One is a scenario too
//! (`docs/experiments/late-relief.toml`), to see that real guests do it as well.
//!
//! **What is simulated.** Guests alone (`guest.rs`): how much they use, what their agent does, and what a page costs that is
//! not there. The rest is the code of the daemon: the policy with the law in it, the progress of agents and their relief,
//! what guests report and for how long that counts, and what is kept of a law from plan to plan (`machine.rs`). Time is
//! virtual, numbers are whole, and nothing is drawn: the same incident and law give the same figures, on any machine.

mod catalogue;
mod costs;
mod guest;
mod machine;
mod measure;
mod naive;
mod page;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use self::catalogue::{ALL, Incident, NAMES};
pub use self::measure::Figures;
pub use self::page::{HEAD, page, row};
use crate::policy::Law;
use crate::recording::Recording;
use crate::settings::HostSettings;

/// What one law did in one incident.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The name of the incident.
    pub incident: &'static str,
    /// The name of the law.
    pub law: &'static str,
    /// Whether this is the controller with which it happened: its law, and an agent that asks for no relief.
    pub as_it_was: bool,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// The run over time.
    #[serde(skip)]
    pub recording: Recording,
}

/// Leads `law` through an incident, on a host with these settings.
#[must_use]
pub fn run(incident: &Incident, law: &'static dyn Law, settings: &HostSettings) -> Outcome {
    outcome(incident, law, settings, false)
}

/// Runs an incident with the controller with which it happened.
#[must_use]
pub fn as_it_was(incident: &Incident, settings: &HostSettings) -> Outcome {
    outcome(incident, incident.naive, settings, true)
}

fn outcome(
    incident: &Incident,
    law: &'static dyn Law,
    settings: &HostSettings,
    as_it_was: bool,
) -> Outcome {
    let (figures, recording) = machine::play(incident, law, settings, as_it_was);
    Outcome {
        incident: incident.name,
        law: law.name(),
        as_it_was,
        figures,
        recording,
    }
}
