//! The balloon agent: gives pages of this guest to its host and takes them back.
//!
//! **The problem.** The host wants memory back. Only the guest's kernel knows which pages it can
//! spare, and it spares them best by its own means: free pages first, then caches, then its own
//! swap disk. The agent turns the host's wish into ordinary memory pressure in the guest: it
//! allocates pages, pins them and names them to the host.
//!
//! **Why the naive way fails.** Allocating the whole target at once starves the guest that still
//! has to react. So `pace` bounds the agent: fast while free pages last, slow as soon as the kernel
//! must reclaim. If the agent freed a page before the host had taken it out of its books, the guest
//! could use a page that the host is still dropping; so the agent unlocks a page first and releases
//! it afterwards. And there is no arguing with a host that lost count: on `RESET`, and whenever the
//! connection breaks, the agent releases everything without unlocking and starts from nothing.
//!
//! **The structures.** One thread owns the connection (`link`), the pages and the pace
//! (`inflate`), and names pages by one of several protocols (`variant`); it sleeps until the host says
//! something, the guest wants relief or the next poll
//! is due. [`Agent`] is the handle. It shares only a stop flag, a bell and the `relief` requests with the
//! thread. The agent calls its [`PageSource`] without holding a lock.

mod inflate;
mod link;
mod pace;
mod relief;
mod retry;
mod source;
mod variant;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use link::LinkError;
pub use source::{FreePages, PageSource, Settled};

use memvisor_wire::balloon::Protocol;
use memvisor_wire::{Doorbell, SeqPacket};
use relief::ReliefRequests;
use worker::Worker;

/// How the agent identifies itself to the host.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// The secret that the virtual hardware handed to this guest.
    pub token: u64,
    /// What the guest calls itself, for people.
    pub name: String,
    /// How pages are named, if the host allows it and the kernel can.
    pub protocol: Protocol,
    /// Whether the agent bounds its own rate, which all but benchmarks want.
    pub is_paced: bool,
}

impl AgentSettings {
    /// An agent of the default protocol that bounds its rate.
    #[must_use]
    pub fn new(token: u64, name: String) -> Self {
        Self {
            token,
            name,
            protocol: Protocol::default(),
            is_paced: true,
        }
    }
}

/// A running balloon agent. Dropping it tells the host that the balloon ends, gives all pages back to the guest and
/// ends the thread. A host that does not answer delays this by 10 seconds.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the handle and the thread share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    bell: Doorbell,
    relief: ReliefRequests,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Agent {
    /// Starts the agent's thread. `dial` connects to the host; it is called again, with growing
    /// pauses, whenever the connection is lost.
    ///
    /// # Errors
    /// When the system has no descriptor or thread left.
    pub fn start(
        settings: AgentSettings,
        source: Arc<dyn PageSource>,
        dial: impl FnMut() -> io::Result<SeqPacket> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            bell: Doorbell::new()?,
            relief: ReliefRequests::default(),
        });
        let theirs = Arc::clone(&shared);
        let run = move || Worker::new(settings, source.as_ref(), &theirs).run(dial);
        let thread = thread::Builder::new().name("balloon".into()).spawn(run)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Asks the host for `pages` pages back, because the guest is short of memory, and waits until
    /// the agent has served the request or `timeout` has passed. Returns how many pages came back: 0
    /// when the host needs them more, the balloon is empty or there is no host.
    ///
    /// The agent's thread calls [`PageSource::release`] meanwhile, so the caller must not hold a lock
    /// that `release` takes. A request that timed out is still carried out.
    #[must_use]
    pub fn relieve(&self, pages: u64, timeout: Duration) -> u64 {
        self.shared.relief.ask(pages, timeout, &self.shared.bell)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the balloon agent has panicked; its pages stay pinned");
        }
    }
}

#[cfg(test)]
mod tests;
