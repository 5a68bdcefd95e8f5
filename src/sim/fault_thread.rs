//! The driver of a simulated guest's fault path, and the line on which its threads report to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use memvisor_guest_agent::protocol::memory::Fault;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::engine::Reply;
use crate::fault::{Action, Attacher, Core, Driver, Ended, Event};
use crate::sync::Mutex;
use crate::units::{Gfn, GfnRun};
use crate::vm::Vm;

/// The userfaultfd and the fault channels of one guest.
#[derive(Debug, Default)]
pub(super) struct Line {
    events: Mutex<VecDeque<Event>>,
    replies: Mutex<HashMap<usize, Reply>>,
}

impl Line {
    /// A guest's thread says something over a channel.
    pub(super) fn send(&self, channel: usize, fault: Fault) {
        self.events.lock().push_back(Event::Message(channel, fault));
    }

    /// A guest's thread waits for a page in the kernel.
    pub(super) fn fault(&self, gfn: Gfn) {
        self.events.lock().push_back(Event::Userfault(gfn));
    }

    /// The reply on a channel, if there is one by now.
    pub(super) fn reply(&self, channel: usize) -> Option<Reply> {
        self.replies.lock().remove(&channel)
    }

    fn receive(&self) -> Option<Event> {
        self.events.lock().pop_front()
    }
}

/// How the core answers at a moment of the simulated clock.
struct Answers<'a> {
    line: &'a Line,
    now: Instant,
}

impl Driver for Answers<'_> {
    fn now(&self) -> Instant {
        self.now
    }

    fn act(&mut self, action: Action) -> Result<(), Ended> {
        let (channel, reply) = match action {
            Action::Woken { .. } => return Ok(()),
            Action::Answer { channel, reply, .. } => (channel, reply),
            Action::Attached { channel, count } => (channel, Reply::Attached(count)),
            Action::History { text, .. } => panic!("a guest has found wrong bytes; {text}"),
        };
        let unread = self.line.replies.lock().insert(channel, reply);
        assert_eq!(unread, None, "a second reply on channel {channel}");
        Ok(())
    }
}

/// Simulated guests ask their worker themselves.
#[derive(Debug)]
struct NoAttacher;

impl Attacher for NoAttacher {
    fn attach(&self, _: GfnRun, _: Gfn, _: Sender<u32>) -> bool {
        false
    }
}

/// A fault thread without descriptors. Its clock stands still until it is told that time has passed, so nothing that was
/// parked is looked at again by chance: a wake-up that is forgotten is a fault that waits for ever.
#[derive(Debug)]
pub(super) struct FaultThread {
    core: Core,
    vm: Arc<Vm>,
    line: Arc<Line>,
    now: Instant,
    /// How long the core is at each event.
    pub(super) takes: Duration,
}

impl FaultThread {
    /// A fault thread of a guest with so many threads, which is given at most `ahead` pages ahead.
    pub(super) fn new(vm: Arc<Vm>, line: Arc<Line>, threads: usize, ahead: u32) -> Self {
        let now = Instant::now();
        Self {
            core: Core::new(Arc::clone(&vm), threads, Box::new(NoAttacher), ahead, now),
            vm,
            line,
            now,
            takes: Duration::ZERO,
        }
    }

    /// Serves what there is to serve; whether there was anything.
    pub(super) fn turn(&mut self) -> Result<bool, Ended> {
        let mut busy = false;
        while let Some(event) = self.line.receive() {
            busy = true;
            self.handle(event)?;
        }
        if self.bell_rings() {
            busy = true;
            self.vm.parking.answer();
            self.handle(Event::Bell)?;
        }
        self.tick()?;
        Ok(busy)
    }

    fn handle(&mut self, event: Event) -> Result<(), Ended> {
        let read = self.now;
        self.now += self.takes;
        let mut answers = Answers {
            line: &self.line,
            now: self.now,
        };
        self.core.handle(event, read, &mut answers)
    }

    fn tick(&mut self) -> Result<(), Ended> {
        let mut answers = Answers {
            line: &self.line,
            now: self.now,
        };
        self.core.tick(self.now, &mut answers)
    }

    fn bell_rings(&self) -> bool {
        let bell = self.vm.parking.bell().expect("made with a bell");
        let mut fds = [PollFd::new(bell, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("an eventfd can be polled") > 0
    }

    /// A while passes.
    pub(super) fn rest(&mut self) -> Result<(), Ended> {
        self.pass(Duration::from_secs(1));
        self.tick()
    }

    /// Time passes in which nothing is done.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// The time.
    pub(super) const fn now(&self) -> Instant {
        self.now
    }

    /// Whether a fault on this page waits for memory.
    pub(super) fn is_starved(&self, gfn: Gfn) -> bool {
        self.core.waiting().is_starved(gfn)
    }

    /// Whether a fault on this page waits for the page.
    pub(super) fn is_busy(&self, gfn: Gfn) -> bool {
        self.core.waiting().is_busy(gfn)
    }

    /// The guest is gone.
    pub(super) fn end(self) {
        self.core.end();
    }
}
