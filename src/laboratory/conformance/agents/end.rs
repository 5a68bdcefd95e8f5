//! The host's end of a connection with an agent on trial.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    BatchResult, Capabilities, ErrorCode, PageStatus, RangeBatch, Start, Started, StatusRun,
    ToAgent, ToHost,
};

use super::super::{Fault, PATIENCE};
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::{Came, Peer};
use crate::units::GfnRun;

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
    /// What is in the balloon.
    pub(super) held: BTreeSet<u32>,
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
            held: BTreeSet::new(),
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
        let capabilities = terms.capabilities & start.capabilities;
        let batched = capabilities.contains(Capabilities::BATCHED);
        let started = Started {
            capabilities,
            vm: 1,
            poll_interval_ms: terms.poll_ms,
            max_ranges: if batched { terms.max_ranges } else { 1 },
            balloon_max: terms.balloon_max,
        };
        self.held.clear();
        self.say(seq, &ToAgent::Started(started))?;
        Ok(start)
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

    /// Answers one request. The answer to a batch moves what is held.
    pub(super) fn answer(&mut self, seq: u32, message: &ToHost) -> Result<(), Fault> {
        let target = self.target;
        let reply = match message {
            ToHost::Stats(_) => return Ok(()),
            ToHost::GetTarget { .. } | ToHost::Relief { .. } => ToAgent::Target { pages: target },
            ToHost::Lock(batch) => {
                let runs = self.statuses(batch, self.lock);
                for part in &runs {
                    if matches!(part.status, PageStatus::Ok | PageStatus::AlreadyLocked) {
                        self.held.extend(part.run.iter().map(|gfn| gfn.0));
                    }
                }
                ToAgent::LockResult(BatchResult { target, runs })
            }
            ToHost::Unlock(batch) => {
                let runs = self.statuses(batch, self.unlock);
                for part in &runs {
                    if matches!(part.status, PageStatus::Ok | PageStatus::NotLocked) {
                        for gfn in part.run.iter() {
                            self.held.remove(&gfn.0);
                        }
                    }
                }
                ToAgent::UnlockResult(BatchResult { target, runs })
            }
            ToHost::Stop => ToAgent::Stopped,
            ToHost::Start(_) => return Err("it says START again, unasked".into()),
            other => {
                let name = other.name();
                return Err(format!("it says {name}, of a protocol that was not agreed on").into());
            }
        };
        self.say(seq, &reply)
    }

    fn statuses(&self, batch: &RangeBatch, status: Status) -> Vec<StatusRun> {
        let mut runs: Vec<StatusRun> = Vec::new();
        for gfn in batch.runs().iter().flat_map(|run| run.iter()) {
            let status = status(gfn.0);
            match runs.last_mut() {
                Some(last)
                    if !self.cuts
                        && last.status == status
                        && last.run.end() == u64::from(gfn.0) =>
                {
                    last.run.count += 1;
                }
                _ => runs.push(StatusRun {
                    run: GfnRun::single(gfn),
                    status,
                }),
            }
        }
        runs
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
