//! Rules for agents. The suite is the host, and the guest whose pages the agent gives.

mod end;
mod moves;
mod sessions;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use memvisor_guest_agent::balloon::{AgentSettings, PageSource};
use memvisor_guest_agent::outside::OutsideAgent;
use memvisor_wire::{SeqPacketListener, wait_readable};
use std::os::fd::AsFd;
use tempfile::TempDir;

use super::{Fault, PATIENCE, Rule, Verdict, chosen, judge};
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::Peer;
use crate::laboratory::tape::Side;
use end::HostEnd;

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

/// The rules.
pub const RULES: &[Rule<Trial>] = &[
    Rule {
        name: "start",
        sentence: "First on a connection, and again after `RESET`. The balloon is empty.",
        check: sessions::start,
    },
    Rule {
        name: "token",
        sentence: "the secret that the guest's virtual hardware handed to its agent",
        check: sessions::token,
    },
    Rule {
        name: "polls",
        sentence: "Ask once per `poll_interval_ms`, doorbell or not.",
        check: sessions::polls,
    },
    Rule {
        name: "inflates",
        sentence: "The size the balloon shall have.",
        check: moves::inflates,
    },
    Rule {
        name: "locks-pinned-pages",
        sentence: "Puts pages into the balloon, which the guest has pinned and will not touch; their content is lost.",
        check: moves::locks_pinned_pages,
    },
    Rule {
        name: "max-ranges",
        sentence: "A batch has at most `max_ranges` ranges, as `STARTED` said.",
        check: moves::max_ranges,
    },
    Rule {
        name: "one-range",
        sentence: "| BATCHED | 0x1 | up to `max_ranges` ranges in a `LOCK` or `UNLOCK` | one range |",
        check: moves::one_range,
    },
    Rule {
        name: "believes-what-it-holds",
        sentence: "pages the agent believes to be in the balloon; the host counts a difference and uses its own number",
        check: moves::believes_what_it_holds,
    },
    Rule {
        name: "unlocks-first",
        sentence: "`UNLOCK` first, and let the guest use only pages with status OK or NOT_LOCKED. Others stay in the balloon.",
        check: moves::unlocks_first,
    },
    Rule {
        name: "deflates-to-nothing",
        sentence: "When the maximum falls to 0 the target does, and the session stays; only a new session is refused then.",
        check: moves::deflates_to_nothing,
    },
    Rule {
        name: "follows-past-the-maximum",
        sentence: "The host keeps every target within the maximum of the moment, so an agent follows targets and compares nothing.",
        check: moves::follows_past_the_maximum,
    },
    Rule {
        name: "refused-pages-go-back",
        sentence: "A page refused by `LOCK` goes back to the guest,",
        check: moves::refused_pages_go_back,
    },
    Rule {
        name: "already-locked-pages-stay",
        sentence: "but for one that is ALREADY_LOCKED: that is in the balloon, however full it is.",
        check: moves::already_locked_pages_stay,
    },
    Rule {
        name: "busy-pages-stay",
        sentence: "| 4 | BUSY | the host is using it; offer it again later | still in the balloon; ask again later |",
        check: moves::busy_pages_stay,
    },
    Rule {
        name: "runs-cut-anyhow",
        sentence: "They need not be cut as its ranges are: a run can end inside a range, or join two ranges that touch.",
        check: moves::runs_cut_anyhow,
    },
    Rule {
        name: "doorbell",
        sentence: "With seq 0 it is the doorbell: the target has changed.",
        check: sessions::doorbell,
    },
    Rule {
        name: "doorbell-is-no-reply",
        sentence: "of a request: any number but 0; of a reply: that of its request; of what the host says unasked: 0",
        check: sessions::doorbell_is_no_reply,
    },
    Rule {
        name: "reset",
        sentence: "The agent frees all its pages **without** `UNLOCK` and sends `START` again on this connection.",
        check: sessions::reset,
    },
    Rule {
        name: "reset-in-place-of-a-reply",
        sentence: "Seq is 0, or that of the request whose reply it takes the place of.",
        check: sessions::reset_in_place_of_a_reply,
    },
    Rule {
        name: "no-stats",
        sentence: "| STATS | 0x4 | the agent may send `STATS` | it must not |",
        check: sessions::no_stats,
    },
    Rule {
        name: "no-relief",
        sentence: "| RELIEF | 0x8 | the agent may send `RELIEF` | it must not |",
        check: sessions::no_relief,
    },
    Rule {
        name: "relief",
        sentence: "The agent should deflate to it at once.",
        check: sessions::relief,
    },
    Rule {
        name: "comes-back",
        sentence: "**Reset**, and a lost connection: free everything without `UNLOCK`, start anew.",
        check: sessions::comes_back,
    },
    Rule {
        name: "pauses",
        sentence: "After a lost connection pause first: 100 ms, doubled up to 10 s, or up to 30 s when the host refuses.",
        check: sessions::pauses,
    },
    Rule {
        name: "never-gives-up",
        sentence: "Never give up: ballooning may be switched on later.",
        check: sessions::never_gives_up,
    },
    Rule {
        name: "stop",
        sentence: "The agent leaves. The host empties the balloon and replies;",
        check: sessions::stop,
    },
];
