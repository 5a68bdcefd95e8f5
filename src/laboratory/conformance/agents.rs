//! Rules for agents. The suite is the host, and the guest whose pages the agent gives.

mod answers;
mod end;
mod hints;
mod maps;
mod moves;
mod protocols;
mod rules;
mod sessions;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use memvisor_guest_agent::balloon::{AgentSettings, PageSource};
use memvisor_guest_agent::outside::OutsideAgent;
use memvisor_wire::{SeqPacketListener, wait_readable};
use std::os::fd::AsFd;
use tempfile::TempDir;

use super::{Fault, PATIENCE, Verdict, chosen, judge};
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::Peer;
use crate::laboratory::tape::Side;
use end::HostEnd;
pub use rules::RULES;

/// The token of each trial.
const TOKEN: u64 = 0x0123_4567_89ab_cdef;
/// Pages of the guest of each trial. Every second one is in use, so that a run has one page.
const PAGES: u32 = 32_768;

/// An agent that has just been started, and what it is started with.
#[derive(Debug)]
pub struct Trial {
    memory: Arc<SimulatedMemory>,
    listener: SeqPacketListener,
    agent: Mutex<OutsideAgent>,
    // Dropped last: the socket is in it.
    _dir: TempDir,
}

impl Trial {
    fn begin(command: &str) -> Result<Self, Fault> {
        let dir = tempfile::tempdir()?;
        let socket: PathBuf = dir.path().join("balloon.sock");
        let listener = SeqPacketListener::bind(&socket)?;
        let memory = Arc::new(SimulatedMemory::scattered(PAGES));
        let settings = AgentSettings::new(TOKEN, "conform".to_owned());
        let source: Arc<dyn PageSource> = Arc::<SimulatedMemory>::clone(&memory);
        let agent = OutsideAgent::start(command, &settings, &socket, source)?;
        Ok(Self {
            memory,
            listener,
            agent: Mutex::new(agent),
            _dir: dir,
        })
    }

    /// The host's end of the agent's next connection.
    fn accept(&self) -> Result<HostEnd<'_>, Fault> {
        if wait_readable([self.listener.as_fd()], Some(PATIENCE))? == [false] {
            return Err(format!("it does not connect within {PATIENCE:?}").into());
        }
        let socket = self.listener.accept()?;
        let peer = Peer::new(socket, Side::Host, Box::new(|_| {}))?;
        Ok(HostEnd::new(peer, &self.memory))
    }

    fn agent(&self) -> std::sync::MutexGuard<'_, OutsideAgent> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Not told to leave, which an agent that waits for a host may take its time for.
        self.agent().kill();
    }
}

/// Tests the agent that `command` starts, by a new process for each case. `only` names cases; all if it is empty.
///
/// # Errors
/// That there is no such case.
pub fn run(command: &str, only: &[String]) -> Result<Vec<Verdict>, String> {
    let rules = chosen(RULES, only)?;
    let verdicts = rules
        .into_iter()
        .map(|rule| judge(rule, Trial::begin(command)));
    Ok(verdicts.collect())
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
