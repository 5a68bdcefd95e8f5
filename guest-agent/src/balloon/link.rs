//! The connection to the host: questions, their answers, and what the host says unasked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{ErrorCode, MAX_MESSAGE_BYTES, Start, Started, ToAgent, ToHost};
use memvisor_wire::{DecodeError, Received, SeqPacket, wait_readable};
use thiserror::Error;

/// How long the host may take to answer. It answers in microseconds unless it is short of memory
/// itself. After this time the agent takes it to hang, and the guest gets its pages back, but
/// for those of the question.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the conversation with the host cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The host wants to begin anew on this connection. Not a failure.
    #[error("the host has reset the balloon")]
    Reset,
    /// The host ended the connection and said why.
    #[error("the host ended the connection ({code:?}): {text}")]
    Refused {
        /// What kind of reason.
        code: ErrorCode,
        /// The reason.
        text: String,
    },
    /// The host closed the connection without a word.
    #[error("the host closed the connection")]
    Closed,
    /// The host does not answer.
    #[error("no answer to {question} in {} s", REPLY_TIMEOUT.as_secs())]
    Silent {
        /// The message without an answer.
        question: &'static str,
    },
    /// The host sent a message that cannot be decoded.
    #[error("bad message from the host: {0}")]
    Malformed(#[from] DecodeError),
    /// The host sent a message that does not fit the question.
    #[error("the host answered {question} with {answer}")]
    Unexpected {
        /// What was asked.
        question: &'static str,
        /// What came, shortened.
        answer: String,
    },
    /// The socket failed.
    #[error("balloon socket: {0}")]
    Socket(#[from] io::Error),
}

impl LinkError {
    /// Whether the host may still read the question that it did not answer, and do what that asks for.
    pub(super) const fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }
}

/// A connection on which `START` has been answered.
#[derive(Debug)]
pub(super) struct Link {
    socket: SeqPacket,
    buffer: Vec<u8>,
    seq: u32,
    target: u64,
    started: Started,
    /// What came with `STARTED`.
    shared: Vec<OwnedFd>,
}

impl Link {
    /// Says `START` on a new connection.
    pub(super) fn open(socket: SeqPacket, start: &Start) -> Result<Self, LinkError> {
        socket.set_send_timeout(REPLY_TIMEOUT)?;
        let mut link = Self {
            socket,
            buffer: vec![0; MAX_MESSAGE_BYTES],
            seq: 0,
            target: 0,
            shared: Vec::new(),
            // Holds until `restart` puts the host's answer here.
            started: Started {
                capabilities: start.capabilities,
                vm: 0,
                poll_interval_ms: 1,
                max_ranges: 1,
                balloon_max: 0,
            },
        };
        link.restart(start)?;
        Ok(link)
    }

    /// Says `START` again, after a reset.
    pub(super) fn restart(&mut self, start: &Start) -> Result<(), LinkError> {
        self.target = 0;
        match self.ask(&ToHost::Start(start.clone()))? {
            ToAgent::Started(started) => {
                self.started = started;
                Ok(())
            }
            other => Err(unexpected("START", &other)),
        }
    }

    /// What the host agreed to.
    pub(super) const fn started(&self) -> &Started {
        &self.started
    }

    /// What came with `STARTED`, once.
    pub(super) fn take_shared(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.shared)
    }

    /// The last target that the host gave. It is not bounded here by the maximum in `STARTED`, which may
    /// have changed since: the host keeps its targets within the current maximum.
    pub(super) const fn target(&self) -> u64 {
        self.target
    }

    /// Asks for the target, by `GET_TARGET` or `RELIEF`.
    pub(super) fn ask_target(&mut self, question: &ToHost) -> Result<(), LinkError> {
        match self.ask(question)? {
            ToAgent::Target { .. } => Ok(()),
            other => Err(unexpected(question.name(), &other)),
        }
    }

    /// Takes leave; returns when the host has emptied the balloon.
    pub(super) fn stop(&mut self) -> Result<(), LinkError> {
        match self.ask(&ToHost::Stop)? {
            ToAgent::Stopped => Ok(()),
            other => Err(unexpected("STOP", &other)),
        }
    }

    /// Sends a message without waiting for an answer.
    pub(super) fn tell(&mut self, message: &ToHost) -> Result<(), LinkError> {
        // Never 0, which marks what the host says unasked.
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        Ok(self.socket.send(&message.encode(self.seq))?)
    }

    /// Reads one message that the host sent unasked. Call this when the socket is readable.
    pub(super) fn read_unasked(&mut self) -> Result<(), LinkError> {
        match self.receive("nothing", Duration::ZERO) {
            Err(LinkError::Silent { .. }) => Ok(()),
            Ok((0, ToAgent::Target { pages })) => {
                self.target = pages;
                Ok(())
            }
            Ok((_, other)) => Err(unexpected("nothing", &other)),
            Err(error) => Err(error),
        }
    }

    /// Sends a message and waits for its answer. A target that the answer carries is the target from then on.
    pub(super) fn ask(&mut self, question: &ToHost) -> Result<ToAgent, LinkError> {
        self.tell(question)?;
        let deadline = Instant::now() + REPLY_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(question.name(), left)? {
                (seq, answer) if seq == self.seq => {
                    self.target = answer.target().unwrap_or(self.target);
                    return Ok(answer);
                }
                // A target that was pushed while the question was under way is no answer to it.
                (0, ToAgent::Target { pages }) => self.target = pages,
                (_, other) => return Err(unexpected(question.name(), &other)),
            }
        }
    }

    /// The next message; `RESET` and `ERROR` are errors whenever they come.
    fn receive(
        &mut self,
        question: &'static str,
        timeout: Duration,
    ) -> Result<(u32, ToAgent), LinkError> {
        if wait_readable([self.socket.as_fd()], Some(timeout))? == [false] {
            return Err(LinkError::Silent { question });
        }
        let (received, shared) = self.socket.recv_with_fds(&mut self.buffer)?;
        let len = match received {
            Received::Closed => return Err(LinkError::Closed),
            // `len` is the length that the host sent, so a message that was cut is longer than the
            // buffer. Decoding what is there says that the rest is missing.
            Received::Message { len } => len.min(self.buffer.len()),
        };
        match ToAgent::decode(&self.buffer[..len])? {
            (_, ToAgent::Reset) => Err(LinkError::Reset),
            (_, ToAgent::Error { code, text }) => Err(LinkError::Refused { code, text }),
            message => {
                // Kept from `STARTED` until the protocol asks for them; those of other messages are closed.
                if matches!(message.1, ToAgent::Started(_)) {
                    self.shared = shared;
                }
                Ok(message)
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(super) fn unexpected(question: &'static str, answer: &ToAgent) -> LinkError {
    let mut answer = format!("{answer:?}");
    answer.truncate(answer.floor_char_boundary(80));
    LinkError::Unexpected { question, answer }
}
