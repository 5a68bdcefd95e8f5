//! Plays a behaviour from the first connection to the end: a script by an [`Actor`], or the bundled agent.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use memvisor_guest_agent::balloon::{Agent, AgentSettings, PageSource};
use memvisor_guest_agent::outside::Unasked;
use memvisor_wire::{Doorbell, SeqPacket, wait_readable};

use super::actor::{Actor, Curtain, Identity};
use super::memory::{Memory, SlowMemory};
use super::peer::{Ears, Peer};
use super::script::Script;

/// How long an agent that comes back waits before it does.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the bundled agent is given to return pages to a guest that is short.
const RELIEF: Duration = Duration::from_secs(2);

/// What is played, and where.
pub struct Play {
    /// The script.
    pub script: Script,
    /// The memory whose pages it gives.
    pub memory: Arc<dyn Memory>,
    /// Who it says it is.
    pub me: Identity,
    /// The host's socket.
    pub socket: PathBuf,
    /// How many messages it says before it dies, on each connection; only of scripts.
    pub messages: Option<u32>,
}

impl std::fmt::Debug for Play {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Play")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Play {
    /// Plays until the script ends or `unasked` says that the agent should leave. `ears` makes who is told what is said,
    /// for each connection of a script.
    ///
    /// # Errors
    /// [`Curtain`] if the script did not come to its end.
    pub fn run(
        &self,
        unasked: Receiver<Unasked>,
        mut ears: impl FnMut() -> Ears,
    ) -> Result<(), Curtain> {
        if self.script.bundled {
            return self.run_bundled(&unasked);
        }
        let leave = Arc::new(Doorbell::new()?);
        let bell = Arc::clone(&leave);
        // Not joined: it ends with the sender, which may outlive the play.
        thread::Builder::new().name("leave".into()).spawn(move || {
            // A script gives relief when it says so, not when its guest asks.
            while matches!(unasked.recv(), Ok(Unasked::Relief(_))) {}
            bell.ring();
        })?;
        loop {
            let ended = self.connection(&leave, ears());
            let is_over = matches!(
                ended,
                Ok(()) | Err(Curtain::Left | Curtain::Died | Curtain::Stopped)
            );
            if is_over || !self.script.comes_back {
                return ended;
            }
            if wait_readable([leave.as_fd()], Some(PAUSE))? == [true] {
                return Err(Curtain::Left);
            }
        }
    }

    fn connection(&self, leave: &Doorbell, ears: Ears) -> Result<(), Curtain> {
        let peer = Peer::dial(&self.socket, ears)?;
        let memory = self.memory.as_ref();
        Actor::new(&self.script, memory, &self.me, leave, peer, self.messages).play()
    }

    fn run_bundled(&self, unasked: &Receiver<Unasked>) -> Result<(), Curtain> {
        let source: Arc<dyn PageSource> = match self.script.at_most {
            Some(pages) => Arc::new(SlowMemory::new(Arc::clone(&self.memory), pages)),
            None => Arc::<dyn Memory>::clone(&self.memory),
        };
        let settings = AgentSettings {
            protocol: self.script.protocol.0,
            ..AgentSettings::new(self.me.token, self.me.name.clone())
        };
        let socket = self.socket.clone();
        let agent = start(settings, source, socket)?;
        while let Ok(Unasked::Relief(pages)) = unasked.recv() {
            // It is the pages that count, and the guest sees those.
            let _ = agent.relieve(pages, RELIEF);
        }
        // Dropping the agent says `STOP`.
        drop(agent);
        Err(Curtain::Left)
    }
}

fn start(
    settings: AgentSettings,
    source: Arc<dyn PageSource>,
    socket: PathBuf,
) -> io::Result<Agent> {
    Agent::start(settings, source, move || SeqPacket::connect(&socket))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::scope;

    use memvisor_wire::SeqPacketListener;

    use super::*;
    use crate::balloon::serve;
    use crate::laboratory::alone::Alone;
    use crate::laboratory::memory::SimulatedMemory;
    use crate::laboratory::schedule::Change;
    use crate::laboratory::script::{BEHAVIOURS, behaviour};
    use crate::units::Pages;

    const TOKEN: u64 = 77;
    const PAGES: u32 = 4096;
    const TARGET: u64 = 64;
    const POLL: Duration = Duration::from_millis(2);

    fn play(script: &str, socket: &std::path::Path, messages: u32) -> Result<(), Curtain> {
        let play = Play {
            script: Script::parse(script).expect("a behaviour"),
            memory: Arc::new(SimulatedMemory::new(PAGES)),
            me: Identity {
                token: TOKEN,
                name: "test".to_owned(),
            },
            socket: socket.to_owned(),
            messages: Some(messages),
        };
        // Nobody tells it to leave.
        let (_say, unasked) = channel();
        play.run(unasked, || Box::new(|_| {}))
    }

    #[test]
    fn whatever_an_agent_does_and_wherever_it_dies_the_next_one_is_served() {
        let follower = behaviour("follower").expect("there is one");
        for (name, script) in BEHAVIOURS {
            let bundled = Script::parse(script).expect("a behaviour").bundled;
            for messages in (1..=8).filter(|_| !bundled) {
                let dir = tempfile::tempdir().expect("tempdir");
                let socket = dir.path().join("b");
                let listener = SeqPacketListener::bind(&socket).expect("bind");
                let pages = Pages(PAGES.into());
                let host = Alone::new(TOKEN, pages, pages, Box::new(|| None)).expect("a bell");
                host.apply(Change::Target(Pages(TARGET)));
                // Relief would hold the target of the second down too, and rightly so.
                host.apply(Change::Short(true));
                scope(|scope| {
                    // One after the other, so that the second never finds the balloon taken.
                    scope.spawn(|| {
                        for _ in 0..2 {
                            let socket = listener.accept().expect("a connection");
                            // The first may break any rule.
                            drop(serve(&socket, &host, POLL));
                        }
                    });
                    // It dies, or the host ends it.
                    let _ = play(script, &socket, messages);
                    // Its START, a poll and a LOCK, and another poll, which it says after that was answered.
                    let second = play(follower, &socket, 6);
                    assert!(matches!(second, Err(Curtain::Died)), "{name}: {second:?}");
                });
                assert_eq!(host.locked(), TARGET, "after {name}, dead after {messages}");
            }
        }
    }
}
