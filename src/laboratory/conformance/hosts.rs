//! Rules for hosts. The suite is the agent of a VM in which nothing runs but the balloon.

mod end;
mod hints;
mod maps;
mod pages;
mod protocols;
mod rules;
mod sessions;

use std::fmt;
use std::path::PathBuf;

use super::{Fault, Verdict, chosen, judge};
use crate::laboratory::peer::Peer;
use crate::units::Pages;
use end::AgentEnd;
pub use rules::RULES;

/// Makes something happen on the host.
pub type Lever<T> = Box<dyn Fn(T) -> Result<(), String> + Send + Sync>;

/// A host, and what is known of the VM whose balloon is tried.
pub struct Trial {
    /// Its balloon socket.
    pub socket: PathBuf,
    /// The token of the VM.
    pub token: u64,
    /// The pages of the VM.
    pub pages: u32,
    /// Sets the target, if the suite can.
    pub set_target: Option<Lever<Pages>>,
    /// Has the guest touch a page of its balloon, if the suite can.
    pub touch: Option<Lever<()>>,
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Trial {
    /// A new connection, on which nothing was said.
    fn dial(&self) -> Result<AgentEnd, Fault> {
        Ok(AgentEnd::new(Peer::dial(&self.socket, Box::new(|_| {}))?))
    }

    fn target(&self, pages: u64) -> Result<(), Fault> {
        let lever = self.set_target.as_ref();
        let lever = lever.ok_or_else(|| Fault::Untested("nothing sets the target".to_owned()))?;
        lever(Pages(pages)).map_err(Fault::Untested)
    }

    fn touch(&self) -> Result<(), Fault> {
        let lever = self.touch.as_ref();
        let lever = lever.ok_or_else(|| Fault::Untested("nothing touches a page".to_owned()))?;
        lever(()).map_err(Fault::Untested)
    }
}

/// Tests a host. `only` names cases; all if it is empty.
///
/// # Errors
/// That there is no such case.
pub fn run(trial: &Trial, only: &[String]) -> Result<Vec<Verdict>, String> {
    let rules = chosen(RULES, only)?;
    let verdicts = rules.into_iter().map(|rule| judge(rule, Ok(trial)));
    Ok(verdicts.collect())
}

#[cfg(test)]
mod tests;
