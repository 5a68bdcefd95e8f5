//! The agent's end of a connection with a host on trial.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    Capabilities, ErrorCode, PageStatus, RangeBatch, Start, Started, ToAgent, ToHost, VERSION,
};

use super::super::{Fault, PATIENCE, must};
use super::Trial;
use crate::laboratory::peer::{Came, Peer};
use crate::laboratory::said::{code_name, status_name};
use crate::units::{Gfn, GfnRun};

/// How long a host may take to see that an agent has left.
const SEEN: Duration = Duration::from_secs(5);
/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct AgentEnd {
    peer: Peer,
    seq: u32,
}

/// What a host said.
pub(super) type Said = Option<(u32, ToAgent)>;

pub(super) fn start(trial: &Trial, capabilities: Capabilities) -> Start {
    Start {
        min_version: VERSION,
        max_version: VERSION,
        capabilities,
        token: trial.token,
        total_pages: trial.pages.into(),
        name: "conform".to_owned(),
    }
}

/// A batch of these ranges.
pub(super) fn batch(ranges: &[(u32, u32)]) -> RangeBatch {
    let run = |&(start, count): &(u32, u32)| GfnRun::new(Gfn(start), count);
    // The ranges are written in this suite; splitting them keeps the rules whatever they are.
    RangeBatch::split(ranges.iter().map(run).collect(), 512).swap_remove(0)
}

impl AgentEnd {
    pub(super) const fn new(peer: Peer) -> Self {
        Self { peer, seq: 0 }
    }

    /// A session. A host may need a moment to see that the agent of the case before has left.
    pub(super) fn started(trial: &Trial, offer: Capabilities) -> Result<(Self, Started), Fault> {
        let deadline = Instant::now() + SEEN;
        loop {
            let mut end = trial.dial()?;
            match end.ask(&ToHost::Start(start(trial, offer)))? {
                ToAgent::Started(started) => return Ok((end, started)),
                ToAgent::Error {
                    code: ErrorCode::Refused,
                    ..
                } if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                ToAgent::Error { code, text } => {
                    return Err(format!("it answers START with {}: {text}", code_name(code)).into());
                }
                other => return Err(format!("it answers START with {}", other.name()).into()),
            }
        }
    }

    /// The descriptors that came with what the host said last.
    pub(super) fn descriptors(&mut self) -> Vec<OwnedFd> {
        self.peer.descriptors()
    }

    pub(super) fn say(&mut self, datagram: &[u8]) -> Result<(), Fault> {
        Ok(self.peer.say(datagram)?)
    }

    pub(super) fn tell(&mut self, message: &ToHost) -> Result<u32, Fault> {
        self.seq += 1;
        self.say(&message.encode(self.seq))?;
        Ok(self.seq)
    }

    /// What the host says next; `None` when it has closed the connection.
    pub(super) fn next(&mut self) -> Result<Said, Fault> {
        match self.peer.hear(PATIENCE)? {
            Came::Nothing => Err(format!("it says nothing for {PATIENCE:?}").into()),
            Came::Closed => Ok(None),
            Came::Datagram(datagram) => Ok(Some(ToAgent::decode(&datagram)?)),
        }
    }

    /// Whether the host says nothing for `time`.
    pub(super) fn is_silent(&mut self, time: Duration) -> Result<(), Fault> {
        match self.peer.hear(time)? {
            Came::Nothing => Ok(()),
            Came::Closed => Err("it closed the connection".into()),
            Came::Datagram(datagram) => {
                let (_, message) = ToAgent::decode(&datagram)?;
                Err(format!("it says {} unasked", message.name()).into())
            }
        }
    }

    /// The reply to a question, or the `ERROR` that comes in its place. Doorbells before it are skipped.
    pub(super) fn ask(&mut self, question: &ToHost) -> Result<ToAgent, Fault> {
        let asked = self.tell(question)?;
        loop {
            let Some((seq, message)) = self.next()? else {
                return Err(format!("it closes the connection after {}", question.name()).into());
            };
            let wanted = match &message {
                ToAgent::Target { .. } if seq == 0 => continue,
                ToAgent::Error { .. } => 0,
                ToAgent::Reset if seq == 0 => 0,
                _ => asked,
            };
            must(seq == wanted, || {
                format!("{} has seq {seq} and not {wanted}", message.name())
            })?;
            return Ok(message);
        }
    }

    pub(super) fn target(&mut self, trial: &Trial) -> Result<u64, Fault> {
        let question = ToHost::GetTarget {
            total_pages: trial.pages.into(),
            balloon_pages: 0,
        };
        match self.ask(&question)? {
            ToAgent::Target { pages } => Ok(pages),
            other => Err(format!("it answers GET_TARGET with {}", other.name()).into()),
        }
    }

    /// What became of each page, as runs.
    pub(super) fn statuses(
        &mut self,
        question: &ToHost,
    ) -> Result<Vec<(u32, u32, PageStatus)>, Fault> {
        let result = match (question, self.ask(question)?) {
            (ToHost::Lock(_), ToAgent::LockResult(result))
            | (ToHost::Unlock(_), ToAgent::UnlockResult(result)) => result,
            (_, other) => {
                let (question, other) = (question.name(), other.name());
                return Err(format!("it answers {question} with {other}").into());
            }
        };
        let runs = result.runs.iter();
        Ok(runs
            .map(|part| (part.run.start.0, part.run.count, part.status))
            .collect())
    }

    /// Asks about one range all of whose pages must have `wanted`.
    pub(super) fn all(&mut self, question: &ToHost, wanted: PageStatus) -> Result<(), Fault> {
        for (start, count, status) in self.statuses(question)? {
            must(status == wanted, || {
                let (question, is) = (question.name(), status_name(status));
                format!(
                    "{question}: {count} pages from {start} on are {is} and not {}",
                    status_name(wanted)
                )
            })?;
        }
        Ok(())
    }

    /// The host must say `ERROR` with this code, and then close the connection.
    pub(super) fn fails(&mut self, wanted: ErrorCode) -> Result<String, Fault> {
        loop {
            match self.next()? {
                Some((0, ToAgent::Target { .. })) => {}
                Some((seq, ToAgent::Error { code, text })) => {
                    must(seq == 0, || format!("ERROR has seq {seq} and not 0"))?;
                    must(code == wanted, || {
                        format!(
                            "ERROR is {} and not {}: {text}",
                            code_name(code),
                            code_name(wanted)
                        )
                    })?;
                    must(self.next()?.is_none(), || {
                        "it goes on after ERROR".to_owned()
                    })?;
                    return Ok(text);
                }
                Some((_, other)) => {
                    let wanted = code_name(wanted);
                    return Err(format!("it says {} and not ERROR {wanted}", other.name()).into());
                }
                None => return Err("it closes the connection without an ERROR".into()),
            }
        }
    }
}
