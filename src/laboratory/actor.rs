//! Plays the agent of a script.

mod pages;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    Capabilities, MAX_STATS, Start, Started, ToAgent, ToHost, VERSION, Wanted,
};
use memvisor_wire::{DecodeError, Doorbell, wait_readable};
use thiserror::Error;

use super::memory::Memory;
use super::peer::{Came, Peer};
use super::said::code_name;
use super::script::{Script, Step};
use pages::{Map, Way};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an agent did not play its script to the end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Curtain {
    /// The script says so, or it has said as many messages as it was to say.
    #[error("the agent died, as it was told to")]
    Died,
    /// Its guest ends, or somebody interrupted it.
    #[error("the agent was told to leave")]
    Left,
    /// It said `STOP`, and the host agreed.
    #[error("the agent said STOP")]
    Stopped,
    /// The host ended the connection and said why.
    #[error("the host ended the connection: {0}")]
    Ended(String),
    /// The host ended the connection without a word.
    #[error("the host closed the connection")]
    Closed,
    /// The host does not answer.
    #[error("the host does not answer {0} within {secs} s", secs = PATIENCE.as_secs())]
    Silent(&'static str),
    /// The host answers with something else.
    #[error("the host answered {0} with {1}")]
    Unexpected(&'static str, &'static str),
    /// The host says what is no message.
    #[error("the host said what is no message: {0}")]
    Malformed(#[from] DecodeError),
    /// The socket failed.
    #[error("balloon socket: {0}")]
    Socket(#[from] io::Error),
}

/// Who the agent says it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token.
    pub token: u64,
    /// What its guest is called.
    pub name: String,
}

/// An agent on a connection.
#[derive(Debug)]
pub struct Actor<'a> {
    script: &'a Script,
    memory: &'a dyn Memory,
    me: &'a Identity,
    leave: &'a Doorbell,
    peer: Peer,
    held: BTreeSet<u32>,
    /// What the host wants of the latest offer.
    wanted: Option<Wanted>,
    /// The map of free pages, if the host has sent one.
    map: Option<Map>,
    target: u64,
    started: Started,
    seq: u32,
    /// How many messages it may still say.
    left: Option<u32>,
    /// Whether the host drops what it says, because it ignored a reset.
    is_dropped: bool,
}

impl<'a> Actor<'a> {
    /// An agent that has said nothing yet. It says at most `messages` messages; `leave` is rung when it is to go.
    pub const fn new(
        script: &'a Script,
        memory: &'a dyn Memory,
        me: &'a Identity,
        leave: &'a Doorbell,
        peer: Peer,
        messages: Option<u32>,
    ) -> Self {
        Self {
            script,
            memory,
            me,
            leave,
            peer,
            held: BTreeSet::new(),
            wanted: None,
            map: None,
            target: 0,
            // Until the host has said something else.
            started: Started {
                capabilities: Capabilities::COMMON,
                vm: 0,
                poll_interval_ms: 1000,
                max_ranges: 1,
                balloon_max: 0,
            },
            seq: 0,
            left: messages,
            is_dropped: false,
        }
    }

    /// Plays the script. What it holds at the end goes back to the guest, whatever the host believes.
    ///
    /// # Errors
    /// [`Curtain`] if the script did not come to its end.
    pub fn play(mut self) -> Result<(), Curtain> {
        let played = self.steps(&self.script.step);
        self.release_all();
        played
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), Curtain> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<(), Curtain> {
        match step {
            Step::Start { .. } => self.start(step),
            Step::Poll { claim } => {
                let held = self.held.len() as u64;
                self.ask_target(&ToHost::GetTarget {
                    total_pages: self.memory.total_pages(),
                    balloon_pages: claim.unwrap_or(held),
                })
            }
            Step::Inflate { pages } => self.inflate(*pages),
            Step::Deflate { pages } => self.deflate(*pages),
            Step::Lock { ranges } => self.name(ranges.0.runs(), Way::In),
            Step::LockHeld { pages } => self.name(&self.some_held(*pages), Way::In),
            Step::Unlock { ranges } => self.name(ranges.0.runs(), Way::Out),
            Step::Reuse { pages } => {
                self.give_back(&self.some_held(*pages));
                Ok(())
            }
            Step::Report { ranges } => self.ask(&ToHost::Report(ranges.0.clone())).map(drop),
            Step::Offer { ranges } => self.offer(&ranges.0),
            Step::Give => self.give(),
            Step::Show { ranges } => self.change(ranges.0.runs(), Map::show),
            Step::TakeBack { ranges } => self.change(ranges.0.runs(), Map::take_back),
            Step::Stats { values } => {
                let mut stats = match values {
                    Some(values) => values.0.clone(),
                    None => self.memory.stats(),
                };
                stats.truncate(MAX_STATS);
                self.tell(&ToHost::Stats(stats))
            }
            Step::Relief { pages } => self.ask_target(&ToHost::Relief { pages: *pages }),
            Step::Wait { time } => self.wait(time.map(|time| time.get())),
            Step::Raw { bytes } => self.say(&bytes.0),
            Step::Stop => match self.ask(&ToHost::Stop)? {
                Some(ToAgent::Stopped) => Err(Curtain::Stopped),
                Some(other) => Err(Curtain::Unexpected("STOP", other.name())),
                None => Ok(()),
            },
            Step::Die => Err(Curtain::Died),
            Step::Repeat { times, steps } => {
                let mut left = *times;
                while left != Some(0) {
                    self.steps(steps)?;
                    self.look_for_leave()?;
                    left = left.map(|left| left - 1);
                }
                Ok(())
            }
        }
    }

    fn start(&mut self, step: &Step) -> Result<(), Curtain> {
        let Step::Start {
            token,
            total_pages,
            capabilities,
            min_version,
            max_version,
        } = step
        else {
            return Ok(());
        };
        let start = ToHost::Start(Start {
            min_version: min_version.unwrap_or(VERSION),
            max_version: max_version.unwrap_or(VERSION),
            capabilities: capabilities.map_or_else(|| self.script.offer(), |offer| offer.0),
            token: token.unwrap_or(self.me.token),
            total_pages: total_pages.unwrap_or_else(|| self.memory.total_pages()),
            name: self.me.name.clone(),
        });
        match self.ask(&start)? {
            Some(ToAgent::Started(started)) => {
                self.started = started;
                self.target = 0;
                self.wanted = None;
                self.map = Map::of(self.peer.descriptors(), self.memory.total_pages())?;
                Ok(())
            }
            Some(other) => Err(Curtain::Unexpected("START", other.name())),
            None => Ok(()),
        }
    }

    fn ask_target(&mut self, question: &ToHost) -> Result<(), Curtain> {
        match self.ask(question)? {
            Some(ToAgent::Target { pages }) => self.target = pages,
            Some(other) => return Err(Curtain::Unexpected(question.name(), other.name())),
            None => {}
        }
        Ok(())
    }

    fn say(&mut self, datagram: &[u8]) -> Result<(), Curtain> {
        if self.left == Some(0) {
            return Err(Curtain::Died);
        }
        self.left = self.left.map(|left| left - 1);
        self.peer.say(datagram)?;
        // It dies after it has spoken, and before it hears the answer.
        match self.left {
            Some(0) => Err(Curtain::Died),
            _ => Ok(()),
        }
    }

    fn tell(&mut self, message: &ToHost) -> Result<(), Curtain> {
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        self.say(&message.encode(self.seq))
    }

    /// The host's answer; `None` if a reset took its place.
    fn ask(&mut self, question: &ToHost) -> Result<Option<ToAgent>, Curtain> {
        self.tell(question)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_dropped {
            let Some((seq, message)) = self.hear(deadline)? else {
                return Err(Curtain::Silent(question.name()));
            };
            match message {
                ToAgent::Reset => {
                    self.reset()?;
                    return Ok(None);
                }
                message if seq == self.seq => return Ok(Some(message)),
                ToAgent::Target { pages } if seq == 0 => self.target = pages,
                other => return Err(Curtain::Unexpected(question.name(), other.name())),
            }
        }
        Ok(None)
    }

    /// The next message; `None` when there is none until `deadline`.
    fn hear(&mut self, deadline: Instant) -> Result<Option<(u32, ToAgent)>, Curtain> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = wait_readable([self.peer.as_fd(), self.leave.as_fd()], Some(left))?;
        if ready == [false, true] {
            return Err(Curtain::Left);
        }
        match self.peer.hear(Duration::ZERO)? {
            Came::Nothing => Ok(None),
            Came::Closed => Err(Curtain::Closed),
            Came::Datagram(datagram) => match ToAgent::decode(&datagram)? {
                (_, ToAgent::Error { code, text }) => {
                    Err(Curtain::Ended(format!("{}, {text}", code_name(code))))
                }
                message => Ok(Some(message)),
            },
        }
    }

    fn reset(&mut self) -> Result<(), Curtain> {
        if self.script.ignores_reset {
            self.is_dropped = true;
            return Ok(());
        }
        self.release_all();
        let first = self.script.step.first();
        first.map_or(Ok(()), |step| self.start(step))
    }

    fn look_for_leave(&self) -> Result<(), Curtain> {
        match wait_readable([self.leave.as_fd()], Some(Duration::ZERO))? {
            [true] => Err(Curtain::Left),
            [false] => Ok(()),
        }
    }

    fn wait(&mut self, time: Option<Duration>) -> Result<(), Curtain> {
        let poll = Duration::from_millis(self.started.poll_interval_ms.into());
        let deadline = Instant::now() + time.unwrap_or(poll);
        while Instant::now() < deadline {
            match self.hear(deadline)? {
                Some((0, ToAgent::Target { pages })) => {
                    self.target = pages;
                    // Where it waits for the next poll, the doorbell ends that.
                    if time.is_none() {
                        return Ok(());
                    }
                }
                Some((_, ToAgent::Reset)) => self.reset()?,
                Some((_, other)) if !self.is_dropped => {
                    return Err(Curtain::Unexpected("nothing", other.name()));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}
