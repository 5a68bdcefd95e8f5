//! One agent's connection, from `START` to its end.
//!
//! ```text
//!            START ok                 pop                     START
//! (waiting) ---------> (connected) ----------> (resetting) ----------> (connected)
//!     |  anything else      | STOP: empty, STOPPED  | all but START and STOP: dropped
//!     v  5 s                v                       v STOP
//!   ERROR                (ended)                 (ended)
//! ```
//! Requests that were under way when the host sent `RESET` arrive in the resetting state. They are
//! about a balloon that no longer exists, and are dropped without an answer.

mod heard;
mod unasked;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    self as protocol, Capabilities, MAX_MESSAGE_BYTES, MAX_RANGES, Start, Started, ToAgent, ToHost,
};
use memvisor_wire::{Received, SeqPacket, wait_readable};

use super::counters::add;
use super::rate::Allowance;
use super::variant::{self, Variant};
use super::{BalloonHost, BalloonVm, GuestStats, Refusal, SessionEnd, SessionError, Tap};
use crate::units::Pages;

/// How long a new connection may be silent. An agent sends `START` at once, and a thread waits for it.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an agent may leave its replies unread before the host gives up on it.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The most targets that are pushed while the agent sends nothing: an agent that sleeps must not lose its
/// session because its queue is full. The next reply carries the newest target anyway.
const MAX_UNANSWERED_PUSHES: u32 = 16;

/// Serves one connection to its end, on this thread. `poll_interval` is the time that agents are asked to
/// leave between two `GET_TARGET`; in ESX it is one second.
///
/// # Errors
/// [`SessionError`] when the host ended the session. The agent has been told why, if it could be reached.
pub fn serve(
    socket: &SeqPacket,
    host: &dyn BalloonHost,
    poll_interval: Duration,
) -> Result<SessionEnd, SessionError> {
    let mut connection = Connection::new(socket, poll_interval, host.tap());
    let mut ended = socket
        .set_send_timeout(SEND_TIMEOUT)
        .map_err(SessionError::from)
        .and_then(|()| connection.run(host));
    // An agent that leaves while it is being answered has closed the connection, as any other that leaves.
    if let Err(SessionError::Socket(error)) = &ended
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        ended = Ok(SessionEnd::Closed);
    }
    if let Err(error) = &ended
        && let Some(code) = error.code()
    {
        let text = error.to_string();
        // The connection ends either way; an agent that is gone needs no explanation.
        let _ = connection.send(0, &ToAgent::Error { code, text });
    }
    if let Some(tap) = &mut connection.tap {
        match &ended {
            Ok(end) => tap.ended(end.as_str()),
            Err(error) => tap.ended(&error.to_string()),
        }
    }
    ended
}

/// The socket of a session, a buffer for what is read from it, the allowance for that, and who listens.
struct Connection<'s> {
    socket: &'s SeqPacket,
    tap: Option<Box<dyn Tap>>,
    poll_interval: Duration,
    buffer: Vec<u8>,
    /// Bytes of the latest message.
    len: usize,
    allowance: Allowance,
}

impl<'s> Connection<'s> {
    fn new(socket: &'s SeqPacket, poll_interval: Duration, tap: Option<Box<dyn Tap>>) -> Self {
        Self {
            socket,
            tap,
            poll_interval,
            buffer: vec![0; MAX_MESSAGE_BYTES],
            len: 0,
            allowance: Allowance::new(Instant::now()),
        }
    }

    fn run(&mut self, host: &dyn BalloonHost) -> Result<SessionEnd, SessionError> {
        if wait_readable([self.socket.as_fd()], Some(START_TIMEOUT))? == [false] {
            return Err(order("START", "did not come within 5 seconds"));
        }
        let Some((seq, message)) = self.receive()? else {
            return Ok(SessionEnd::Closed);
        };
        let ToHost::Start(start) = message else {
            return Err(order(message.name(), "came before START"));
        };
        check_version(&start)?;
        let vm = host.connect(&start)?;
        let mut session = Session::new(vm.as_ref(), start.token);
        self.count(&session);
        let started = session.start(&start, self.poll_interval)?;
        self.reply(&session, seq, &started)?;
        self.serve(&mut session)
    }

    fn serve(&mut self, session: &mut Session<'_>) -> Result<SessionEnd, SessionError> {
        loop {
            let moved = session.act();
            if moved > 0 {
                self.show_shared(session);
                self.allowance.pay(moved, Instant::now());
            } else if let Some(push) = session.news() {
                self.reply(session, 0, &push)?;
            }
            let ready = self.wait(session.vm, moved > 0)?;
            if ready.doorbell
                && let Some(reset) = session.doorbell()?
            {
                self.reply(session, 0, &reset)?;
            }
            if !ready.message {
                continue;
            }
            self.show_shared(session);
            let Some((seq, message)) = self.receive()? else {
                return Ok(SessionEnd::Closed);
            };
            self.count(session);
            let stop = message == ToHost::Stop;
            if let Some(reply) = session.answer(message, self.poll_interval)? {
                self.reply(session, seq, &reply)?;
            }
            if stop {
                return Ok(SessionEnd::Stopped);
            }
        }
    }

    /// Waits for the doorbell or a message; while the agent is in debt, for the doorbell alone. Only looks whether they
    /// are there if the session is busy.
    fn wait(&mut self, vm: &dyn BalloonVm, is_busy: bool) -> io::Result<Ready> {
        let doorbell = vm.doorbell().as_fd();
        let delay = self.allowance.delay(Instant::now());
        let delay = if vm.is_limited() {
            delay
        } else {
            Duration::ZERO
        };
        if delay.is_zero() {
            let limit = is_busy.then_some(Duration::ZERO);
            let [message, doorbell] = wait_readable([self.socket.as_fd(), doorbell], limit)?;
            return Ok(Ready { doorbell, message });
        }
        add(&vm.counters().throttles, 1);
        // The doorbell is still heard: an agent that is slowed down must learn of a reset or the end too.
        let [doorbell] = wait_readable([doorbell], Some(delay))?;
        Ok(Ready {
            doorbell,
            message: false,
        })
    }

    /// The next message and its sequence number; `None` when the agent is gone.
    fn receive(&mut self) -> Result<Option<(u32, ToHost)>, SessionError> {
        let len = match self.socket.recv(&mut self.buffer)? {
            Received::Closed => return Ok(None),
            Received::Message { len } if len > self.buffer.len() => {
                return Err(protocol::oversized(len).into());
            }
            Received::Message { len } => len,
        };
        self.len = len;
        if let Some(tap) = &mut self.tap {
            tap.received(&self.buffer[..len]);
        }
        let (seq, message) = ToHost::decode(&self.buffer[..len])?;
        self.allowance
            .pay(variant::pages_named(&message), Instant::now());
        Ok(Some((seq, message)))
    }

    /// Counts the latest message of the agent.
    fn count(&self, session: &Session<'_>) {
        let counters = session.vm.counters();
        add(&counters.messages_in, 1);
        add(&counters.bytes, self.len as u64);
    }

    /// Sends a message, `STARTED` with what its protocol shares with the agent.
    fn reply(&mut self, session: &Session<'_>, seq: u32, message: &ToAgent) -> io::Result<()> {
        let datagram = message.encode(seq);
        let counters = session.vm.counters();
        add(&counters.messages_out, 1);
        add(&counters.bytes, datagram.len() as u64);
        let begins = matches!(message, ToAgent::Started(_));
        // A map begins with its STARTED.
        if !begins {
            self.show_shared(session);
        }
        self.tell_tap(&datagram);
        match session.variant.descriptor() {
            Some(shared) if begins => self.socket.send_with_fds(&datagram, &[shared]),
            _ => self.socket.send(&datagram),
        }
    }

    /// Sends a message to an agent that has no session.
    fn send(&mut self, seq: u32, message: &ToAgent) -> io::Result<()> {
        let datagram = message.encode(seq);
        self.tell_tap(&datagram);
        self.socket.send(&datagram)
    }
}

/// Which of the two things for which a session waits is there.
struct Ready {
    doorbell: bool,
    message: bool,
}

/// A reset that the agent has not answered with `START` yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reset {
    /// The agent has no doorbell, so the `RESET` will take the place of the next reply.
    Owed,
    /// The agent has been sent the `RESET`.
    Sent,
}

/// What the two sides have agreed on.
struct Session<'v> {
    vm: &'v dyn BalloonVm,
    token: u64,
    capabilities: Capabilities,
    /// The target that the agent knows.
    target_sent: u64,
    /// Targets pushed since the agent's latest message.
    unanswered: u32,
    resetting: Option<Reset>,
    /// Whether the doorbell has rung since the agent was last told its target.
    has_news: bool,
    variant: Box<dyn Variant>,
}

impl<'v> Session<'v> {
    fn new(vm: &'v dyn BalloonVm, token: u64) -> Self {
        let (variant, capabilities) = variant::choose(vm, Capabilities::empty());
        Self {
            vm,
            token,
            capabilities,
            target_sent: 0,
            unanswered: 0,
            resetting: None,
            has_news: false,
            variant,
        }
    }

    /// Begins with an empty balloon on both sides.
    fn start(&mut self, start: &Start, poll_interval: Duration) -> Result<ToAgent, SessionError> {
        check_version(start)?;
        if start.token != self.token {
            return Err(Refusal::TokenChanged.into());
        }
        let (claimed, actual) = (start.total_pages, self.vm.total_pages());
        if claimed > actual {
            let vm = self.vm.id();
            return Err(Refusal::TooLarge {
                vm,
                claimed,
                actual,
            }
            .into());
        }
        self.vm.release_all();
        // A page of the old balloon may have popped. That balloon is empty now, so it needs no reset any more.
        self.vm.take_reset();
        self.resetting = None;
        // A new balloon has no target, so any other than 0 is news.
        self.target_sent = 0;
        (self.variant, self.capabilities) = variant::choose(self.vm, start.capabilities);
        let batched = start.capabilities.contains(Capabilities::BATCHED);
        let millis = u32::try_from(poll_interval.as_millis()).unwrap_or(u32::MAX);
        Ok(ToAgent::Started(Started {
            capabilities: self.capabilities,
            vm: self.vm.id().0,
            poll_interval_ms: millis.max(1),
            max_ranges: if batched { MAX_RANGES as u32 } else { 1 },
            balloon_max: self.vm.balloon_max(),
        }))
    }

    /// Serves one message.
    fn answer(
        &mut self,
        message: ToHost,
        poll_interval: Duration,
    ) -> Result<Option<ToAgent>, SessionError> {
        self.check_capability(&message)?;
        self.unanswered = 0;
        let reply = match message {
            ToHost::Stop => {
                self.vm.release_all();
                ToAgent::Stopped
            }
            ToHost::Start(start) if self.resetting == Some(Reset::Sent) => {
                self.start(&start, poll_interval)?
            }
            ToHost::Start(_) => return Err(order("START", "came again without a RESET")),
            _ if self.resetting.is_some() => return Ok(self.answer_resetting(&message)),
            ToHost::GetTarget {
                total_pages,
                balloon_pages,
            } => {
                let differs =
                    self.variant.is_counted_by_agent() && balloon_pages != self.vm.locked();
                if total_pages > self.vm.total_pages() || differs {
                    // Counted and no more: what the balloon holds is in the page table.
                    add(&self.vm.counters().mismatches, 1);
                }
                self.tell_target()
            }
            ToHost::Relief { pages } => {
                add(&self.vm.counters().reliefs, 1);
                if pages > 0 {
                    self.vm.relief(pages.min(self.vm.locked()));
                }
                // Before the answer: a guest that waits for pages looks for them when it comes.
                self.act();
                self.tell_target()
            }
            ToHost::Stats(claims) => {
                let ram = Pages(self.vm.total_pages());
                self.vm.report(&GuestStats::from_claims(&claims, ram));
                return Ok(None);
            }
            pages => {
                let name = pages.name();
                let answer = self.variant.answer(self.vm, &pages);
                let Some(answer) = answer else {
                    return Err(order(name, "is not of the protocol that was agreed on"));
                };
                if let Some(target) = answer.target() {
                    self.target_sent = target;
                }
                answer
            }
        };
        Ok(Some(reply))
    }

    fn check_capability(&self, message: &ToHost) -> Result<(), SessionError> {
        if self.capabilities.contains(message.needs()) {
            return Ok(());
        }
        Err(order(
            message.name(),
            "needs a capability that START did not offer",
        ))
    }

    fn tell_target(&mut self) -> ToAgent {
        self.target_sent = self.target();
        ToAgent::Target {
            pages: self.target_sent,
        }
    }

    fn target(&self) -> u64 {
        variant::target(self.vm)
    }
}

fn check_version(start: &Start) -> Result<(), SessionError> {
    let (min, max) = (start.min_version, start.max_version);
    let agreed = start.agreed_version();
    agreed.map(drop).ok_or(SessionError::Version { min, max })
}

const fn order(message: &'static str, why: &'static str) -> SessionError {
    SessionError::Order { message, why }
}

#[cfg(test)]
mod tests;
