//! Plays the host of a recording against an agent.
//!
//! An agent speaks first, and when it likes. So the recording is not played line by line: each message of the agent is
//! matched with the next one of the recorded agent, and gets the reply that this one got, about the agent's own pages.
//! Polls are matched loosely. An agent that polls more or less often than the recorded one hears the same targets in the
//! same order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_guest_agent::balloon::{AgentSettings, PageSource};
use memvisor_guest_agent::outside::OutsideAgent;
use memvisor_wire::balloon::{
    BatchResult, Capabilities, RangeBatch, Started, ToAgent, ToHost, map_words,
};
use memvisor_wire::{SeqPacketListener, wait_readable};
use std::os::fd::AsFd;

use super::compare::{asked, pages};
use super::lines::{Line, about, lines};
use super::shared::{ByHost, Map, PAUSE, Shared, by_host};
use super::{Clock, PATIENCE, Report, Speed, total_pages};
use crate::laboratory::map::WordRun;
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::{Came, Ears, Peer};
use crate::laboratory::tape::{Side, Tape};
use crate::sys::SharedWords;

/// How often an agent polls when the replay does not keep to the recorded times.
const FAST_POLL_MS: u32 = 10;

/// Plays what the host of `tape` said to the agent that `command` starts.
///
/// # Errors
/// When the agent cannot be started or its connection fails.
pub fn run(tape: &Tape, command: &str, speed: Speed, ears: Ears) -> std::io::Result<Report> {
    let total = total_pages(tape);
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("balloon.sock");
    let listener = SeqPacketListener::bind(&socket)?;
    let settings = AgentSettings::new(rand::random(), "replay".to_owned());
    let memory: Arc<dyn PageSource> = Arc::new(SimulatedMemory::new(total));
    let mut agent = OutsideAgent::start(command, &settings, &socket, memory)?;
    let report = play(tape, &listener, &agent, (speed, ears));
    agent.kill();
    report
}

/// Plays to the agent that connects.
pub(super) fn play(
    tape: &Tape,
    listener: &SeqPacketListener,
    agent: &OutsideAgent,
    (speed, ears): (Speed, Ears),
) -> std::io::Result<Report> {
    let mut report = Report::default();
    if wait_readable([listener.as_fd()], Some(PATIENCE))? == [false] {
        report.differs(Duration::ZERO, "the agent does not connect");
    } else {
        let peer = Peer::new(listener.accept()?, Side::Host, ears)?;
        let mut stage = Stage {
            peer,
            lines: lines(tape),
            total: total_pages(tape),
            shared: Shared::default(),
            next: 0,
            clock: Clock::new(speed),
            target: 0,
            since: (usize::MAX, Instant::now()),
            report: &mut report,
        };
        stage.play(agent);
    }
    Ok(report)
}

struct Stage<'r> {
    peer: Peer,
    lines: Vec<(Duration, Line)>,
    /// The pages of the VM.
    total: u32,
    shared: Shared,
    next: usize,
    clock: Clock,
    /// The latest target that was said.
    target: u64,
    /// Since when `next` is what it is.
    since: (usize, Instant),
    report: &'r mut Report,
}

const fn is_poll(message: &ToHost) -> bool {
    matches!(message, ToHost::GetTarget { .. })
}

impl Stage<'_> {
    fn play(&mut self, agent: &OutsideAgent) {
        while let Some((at, line)) = self.lines.get(self.next) {
            let at = *at;
            let goes_on = match line {
                // Replies go with their questions.
                Line::Answered(seq, _) if *seq != 0 => {
                    self.next += 1;
                    Ok(())
                }
                Line::Answered(_, message) => {
                    let message = message.clone();
                    self.unasked(at, &message)
                }
                Line::Mapped(runs) => {
                    let runs = runs.clone();
                    self.mapped(at, &runs)
                }
                Line::Asked(_, wanted) => {
                    let wanted = wanted.clone();
                    self.provoke(at, &wanted, agent)
                        .and_then(|()| self.hear(at, &wanted))
                }
            };
            if let Err(what) = goes_on {
                self.report.differs(at, &what);
                return;
            }
        }
        self.report.is_complete = true;
    }

    /// Has the agent say what it says only when its guest wants something, once, when its time has come.
    fn provoke(
        &mut self,
        at: Duration,
        wanted: &ToHost,
        agent: &OutsideAgent,
    ) -> Result<(), String> {
        if self.since.0 == self.next {
            return Ok(());
        }
        self.since = (self.next, Instant::now());
        match wanted {
            ToHost::Relief { pages } => {
                self.idle_until(at)?;
                // How many come back is seen in what it unlocks.
                let _ = agent.relieve(*pages, Duration::ZERO);
            }
            ToHost::Stop => {
                self.idle_until(at)?;
                agent.hang_up();
            }
            _ => {}
        }
        Ok(())
    }

    /// Answers polls until a moment of the recording.
    fn idle_until(&mut self, at: Duration) -> Result<(), String> {
        self.idle(self.clock.until(at))
    }

    /// Answers polls for a while.
    fn idle(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.listen(left)? {
                None => return Ok(()),
                Some((seq, poll)) if is_poll(&poll) => self.more(seq, &poll)?,
                Some((_, other)) => {
                    return Err(format!("the agent says {} too early", other.name()));
                }
            }
        }
    }

    /// Moves as many pages as the recorded host did, once the agent has as many free.
    fn mapped(&mut self, at: Duration, runs: &[WordRun]) -> Result<(), String> {
        self.idle_until(at)?;
        self.next += 1;
        let moves = by_host(&self.shared.take(runs));
        if moves == ByHost::default() || self.shared.live().is_none() {
            return Ok(());
        }
        self.report.compared += 1;
        self.shared.give(moves.given);
        let deadline = Instant::now() + PATIENCE;
        let mut taken = self.shared.take_free(moves.taken);
        while taken < moves.taken {
            if Instant::now() > deadline {
                let was = moves.taken;
                let what = format!("the agent has {taken} pages free for the host, was {was}");
                self.report.differs(at, &what);
                break;
            }
            self.idle(PAUSE)?;
            taken += self.shared.take_free(moves.taken - taken);
        }
        Ok(())
    }

    /// Says what the host said unasked, when its time has come.
    fn unasked(&mut self, at: Duration, message: &ToAgent) -> Result<(), String> {
        self.idle_until(at)?;
        self.next += 1;
        if let ToAgent::Target { pages } = message {
            self.target = *pages;
        }
        self.say(0, message)
    }

    /// Hears what matches `wanted`, and answers as was answered then.
    fn hear(&mut self, at: Duration, wanted: &ToHost) -> Result<(), String> {
        let within = self.clock.until(at) + PATIENCE;
        let Some((seq, said)) = self.listen(within)? else {
            return match is_poll(wanted) {
                true => Err(format!("the agent does not poll for {within:?}")),
                false => Err(format!(
                    "the agent says nothing for {within:?}, was {}",
                    wanted.name()
                )),
            };
        };
        if said.name() == wanted.name() {
            self.report.compared += 1;
            if let Some(what) = asked(wanted, &said) {
                self.report.differs(at, &what);
            }
            let reply = self.reply();
            self.next += 1;
            return self.answer(seq, &said, reply);
        }
        if is_poll(&said) {
            // It may poll for ever and never come to what it did in the recording.
            if self.since.1.elapsed() > within {
                return Err(format!(
                    "the agent only polls for {within:?}, was {}",
                    wanted.name()
                ));
            }
            return self.more(seq, &said);
        }
        if is_poll(wanted) {
            // The agent has something else to say first: the poll is left out, and this is matched with what follows.
            self.skip_polls();
            return match self.lines.get(self.next) {
                Some((at, Line::Asked(_, next))) if next.name() == said.name() => {
                    let (at, next) = (*at, next.clone());
                    self.report.compared += 1;
                    if let Some(what) = asked(&next, &said) {
                        self.report.differs(at, &what);
                    }
                    let reply = self.reply();
                    self.next += 1;
                    self.answer(seq, &said, reply)
                }
                _ => Err(format!(
                    "the agent says {}, was {}",
                    said.name(),
                    wanted.name()
                )),
            };
        }
        Err(format!(
            "the agent says {}, was {}",
            said.name(),
            wanted.name()
        ))
    }

    /// Leaves out the polls of the recording, with their replies, up to the next thing that is none.
    fn skip_polls(&mut self) {
        while let Some((_, line)) = self.lines.get(self.next) {
            match line {
                Line::Asked(_, message) if is_poll(message) => self.report.fewer_polls += 1,
                Line::Answered(seq, ToAgent::Target { pages }) if *seq != 0 => self.target = *pages,
                Line::Answered(seq, _) if *seq != 0 => {}
                _ => return,
            }
            self.next += 1;
        }
    }

    /// The reply that the message at `next` got.
    fn reply(&self) -> Option<ToAgent> {
        let (_, Line::Asked(asked, _)) = self.lines.get(self.next)? else {
            return None;
        };
        self.lines[self.next..]
            .iter()
            .find_map(|(_, line)| match line {
                Line::Answered(seq, message) if seq == asked => Some(message.clone()),
                _ => None,
            })
    }

    /// Answers a poll that the recording does not have.
    fn more(&mut self, seq: u32, poll: &ToHost) -> Result<(), String> {
        self.report.more_polls += 1;
        self.answer(seq, poll, None)
    }

    /// Says `reply` to `message`, about its pages; where there is none, what a host would say.
    fn answer(&mut self, seq: u32, message: &ToHost, reply: Option<ToAgent>) -> Result<(), String> {
        let result = |recorded: Option<BatchResult>, batch: &RangeBatch, target: u64| {
            let statuses = recorded.as_ref().map(pages).unwrap_or_default();
            BatchResult {
                target: recorded.map_or(target, |result| result.target),
                runs: about(batch, &statuses),
            }
        };
        let said = match (message, reply) {
            (_, Some(ToAgent::Started(started))) => ToAgent::Started(self.paced(started)),
            (ToHost::Lock(batch), Some(ToAgent::LockResult(recorded))) => {
                ToAgent::LockResult(result(Some(recorded), batch, self.target))
            }
            (ToHost::Unlock(batch), Some(ToAgent::UnlockResult(recorded))) => {
                ToAgent::UnlockResult(result(Some(recorded), batch, self.target))
            }
            (_, Some(reply)) => reply,
            (_, None) => ToAgent::Target { pages: self.target },
        };
        match &said {
            ToAgent::Target { pages } => self.target = *pages,
            ToAgent::LockResult(result) | ToAgent::UnlockResult(result) => {
                self.target = result.target;
            }
            _ => {}
        }
        self.say(seq, &said)
    }

    const fn paced(&self, started: Started) -> Started {
        let poll_interval_ms = match self.clock.speed {
            Speed::Recorded => started.poll_interval_ms,
            Speed::Fast => FAST_POLL_MS,
        };
        Started {
            poll_interval_ms,
            ..started
        }
    }

    /// What the agent says next, but for statistics.
    fn listen(&mut self, within: Duration) -> Result<Option<(u32, ToHost)>, String> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let bytes = match self.peer.hear(left) {
                Err(error) => return Err(format!("the socket fails: {error}")),
                Ok(Came::Nothing) => return Ok(None),
                Ok(Came::Closed) => return Err("the agent closed the connection".to_owned()),
                Ok(Came::Datagram(bytes)) => bytes,
            };
            match ToHost::decode(&bytes) {
                Ok((_, ToHost::Stats(_))) => {}
                Ok(message) => return Ok(Some(message)),
                Err(error) => return Err(format!("the agent says what is no message: {error}")),
            }
        }
    }

    fn say(&mut self, seq: u32, message: &ToAgent) -> Result<(), String> {
        let datagram = message.encode(seq);
        let said = match message {
            ToAgent::Started(started) if started.capabilities.contains(Capabilities::BITMAP) => {
                let words = SharedWords::kept("memvisor-replay-map", map_words(self.total));
                let words =
                    words.map_err(|error| format!("there is no memory for a map: {error}"))?;
                let map = Map::new(Arc::new(words), self.total);
                let said = self.peer.hand(&datagram, map.words().as_fd());
                self.shared.begin(Some(map));
                said
            }
            _ => self.peer.say(&datagram),
        };
        said.map_err(|error| format!("the agent is gone: {error}"))
    }
}
