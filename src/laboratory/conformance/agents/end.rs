//! The host's end of a connection with an agent on trial.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    Capabilities, ErrorCode, FreeMap, PageStatus, Protocol, Start, Started, ToAgent, ToHost,
    Wanted, map_words,
};

use super::super::{Fault, PATIENCE};
use super::PAGES;
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::{Came, Peer};
use crate::sys::SharedWords;

/// How often agents on trial are to poll, unless a case says otherwise.
pub(super) const POLL_MS: u32 = 20;
/// A poll that never comes: what happens is caused by the case alone.
pub(super) const NO_POLL_MS: u32 = 3_600_000;

/// What is agreed on in a `STARTED`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) capabilities: Capabilities,
    pub(super) poll_ms: u32,
    pub(super) max_ranges: u32,
    pub(super) balloon_max: u64,
}

impl Terms {
    /// Those of a protocol.
    pub(super) fn of(protocol: Protocol) -> Self {
        Self {
            capabilities: Capabilities::COMMON | protocol.capabilities(),
            ..Self::default()
        }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            capabilities: Capabilities::COMMON,
            poll_ms: POLL_MS,
            max_ranges: 512,
            balloon_max: 1 << 20,
        }
    }
}

/// How pages of a batch are answered.
pub(super) type Status = fn(u32) -> PageStatus;

pub(super) struct HostEnd<'t> {
    peer: Peer,
    pub(super) memory: &'t SimulatedMemory,
    pub(super) target: u64,
    /// How pages are named.
    pub(super) protocol: Protocol,
    /// What is in the balloon.
    pub(super) held: BTreeSet<u32>,
    /// What is wanted of the latest offer.
    pub(super) wanted: Wanted,
    /// The map that the agent was sent, if it was.
    pub(super) map: Option<FreeMap<SharedWords>>,
    /// What becomes of pages; those that are locked or unlocked by it move.
    pub(super) lock: Status,
    pub(super) unlock: Status,
    /// Whether runs of answers are cut into pages.
    pub(super) cuts: bool,
}

impl<'t> HostEnd<'t> {
    pub(super) fn new(peer: Peer, memory: &'t SimulatedMemory) -> Self {
        Self {
            peer,
            memory,
            target: 0,
            protocol: Protocol::Ranges,
            held: BTreeSet::new(),
            wanted: Wanted {
                epoch: 0,
                missing: 0,
                ranges: Vec::new(),
            },
            map: None,
            lock: |_| PageStatus::Ok,
            unlock: |_| PageStatus::Ok,
            cuts: false,
        }
    }

    /// What the agent says next.
    pub(super) fn next(&mut self) -> Result<(u32, ToHost), Fault> {
        self.next_within(PATIENCE)?
            .ok_or_else(|| format!("it says nothing for {PATIENCE:?}").into())
    }

    /// The same; `None` if it says nothing within `time`.
    pub(super) fn next_within(&mut self, time: Duration) -> Result<Option<(u32, ToHost)>, Fault> {
        match self.peer.hear(time)? {
            Came::Nothing => Ok(None),
            Came::Closed => Err("it closed the connection".into()),
            Came::Datagram(datagram) => Ok(Some(ToHost::decode(&datagram)?)),
        }
    }

    pub(super) fn say(&mut self, seq: u32, message: &ToAgent) -> Result<(), Fault> {
        self.peer.say(&message.encode(seq)).map_err(|error| {
            let gone = super::gone(&error);
            let what = if gone {
                "it closed the connection".to_owned()
            } else {
                error.to_string()
            };
            Fault::Broken(what)
        })
    }

    /// Rings the doorbell.
    pub(super) fn ring(&mut self, target: u64) -> Result<(), Fault> {
        self.target = target;
        self.say(0, &ToAgent::Target { pages: target })
    }

    /// Hears a `START` and consents.
    pub(super) fn welcome(&mut self, terms: Terms) -> Result<Start, Fault> {
        let (seq, start) = self.start()?;
        self.consent(seq, &start, terms)?;
        Ok(start)
    }

    /// Consents to a `START`, as far as it offers what the terms have.
    pub(super) fn consent(&mut self, seq: u32, start: &Start, terms: Terms) -> Result<(), Fault> {
        let capabilities = terms.capabilities & start.capabilities;
        let batched = capabilities.contains(Capabilities::BATCHED);
        let started = ToAgent::Started(Started {
            capabilities,
            vm: 1,
            poll_interval_ms: terms.poll_ms,
            max_ranges: if batched { terms.max_ranges } else { 1 },
            balloon_max: terms.balloon_max,
        });
        self.held.clear();
        self.protocol = Protocol::of(capabilities);
        if self.protocol != Protocol::Bitmap {
            self.map = None;
            return self.say(seq, &started);
        }
        // To keep: the agent leaves the map in order after this end has gone.
        let words = SharedWords::kept("memvisor-free-map", map_words(PAGES))?;
        self.peer.hand(&started.encode(seq), words.as_fd())?;
        self.map = Some(FreeMap::new(words, PAGES));
        Ok(())
    }

    pub(super) fn start(&mut self) -> Result<(u32, Start), Fault> {
        match self.next()? {
            (seq, ToHost::Start(start)) => Ok((seq, start)),
            (_, other) => Err(format!("it says {} and not START", other.name()).into()),
        }
    }

    pub(super) fn refuse(&mut self, code: ErrorCode) -> Result<(), Fault> {
        let text = "for a trial".to_owned();
        self.say(0, &ToAgent::Error { code, text })
    }

    /// Answers requests until `done`, which sees each of them before its answer.
    pub(super) fn serve(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Self, &ToHost) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some((seq, message)) = self.next_within(left)? else {
                let held = self.held.len();
                return Err(
                    format!("not within {PATIENCE:?}: {what} (it holds {held} pages)").into(),
                );
            };
            let is_done = done(self, &message)?;
            self.answer(seq, &message)?;
            self.follow_target();
            if is_done {
                return Ok(());
            }
            if left.is_zero() {
                let held = self.held.len();
                return Err(
                    format!("not within {PATIENCE:?}: {what} (it holds {held} pages)").into(),
                );
            }
        }
    }

    /// Sets the target and answers requests until the balloon has `size` pages and the agent polls.
    pub(super) fn reach(&mut self, target: u64, size: u64) -> Result<(), Fault> {
        self.target = target;
        let what = format!("a balloon of {size} pages for a target of {target}");
        self.serve(&what, |end, message| {
            let is_poll = matches!(message, ToHost::GetTarget { .. });
            Ok(is_poll && end.held.len() as u64 == size)
        })
    }
}
