//! The fault thread of a simulated guest, and the line on which its threads report to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::engine::Reply;
use crate::fault::{Access, Ahead, Credits, FaultError, Outcome, Pending, complete, resolve};
use crate::page::Claims;
use crate::sync::Mutex;
use crate::units::Gfn;
use crate::vm::Vm;

/// Where the answer to a fault goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// Nowhere: providing the page wakes the thread.
    Kernel,
    /// To a thread that has the signal handler's channel of this number.
    Channel(usize),
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiter {
    pub(super) gfn: Gfn,
    pub(super) access: Access,
    pub(super) asker: Asker,
}

/// What a guest's thread tells the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    Fault(Waiter),
    /// The thread on this channel has done what it was told.
    Done(usize),
    /// The guest runs out of credits.
    Credits,
}

/// The userfaultfd and the fault channels of one guest.
#[derive(Debug, Default)]
pub(super) struct Line {
    messages: Mutex<VecDeque<Message>>,
    replies: Mutex<HashMap<usize, Reply>>,
}

impl Line {
    /// A guest's thread says something.
    pub(super) fn send(&self, message: Message) {
        self.messages.lock().push_back(message);
    }

    /// The reply on a channel, if there is one by now.
    pub(super) fn reply(&self, channel: usize) -> Option<Reply> {
        self.replies.lock().remove(&channel)
    }

    fn receive(&self) -> Option<Message> {
        self.messages.lock().pop_front()
    }

    fn answer(&self, channel: usize, reply: Reply) {
        let unread = self.replies.lock().insert(channel, reply);
        assert_eq!(unread, None, "a second reply on channel {channel}");
    }
}

/// [`crate::fault::FaultThread`] without descriptors. It serves again what it has parked only when
/// the bell of the VM has rung: there is no other way for it to learn that it may go on.
#[derive(Debug)]
pub(super) struct FaultThread {
    vm: Arc<Vm>,
    line: Arc<Line>,
    busy: HashMap<Gfn, Vec<Waiter>>,
    starved: Vec<Waiter>,
    confirming: HashMap<usize, Pending>,
    credits: Credits,
    /// Where pages are given ahead.
    ahead: Option<Ahead>,
    /// The time, which passes only when it is told to.
    now: Instant,
}

impl FaultThread {
    pub(super) fn new(vm: Arc<Vm>, line: Arc<Line>) -> Self {
        let now = Instant::now();
        Self {
            credits: Credits::new(now),
            ahead: None,
            now,
            vm,
            line,
            busy: HashMap::new(),
            starved: Vec::new(),
            confirming: HashMap::new(),
        }
    }

    /// Serves what there is to serve; whether there was anything.
    pub(super) fn turn(&mut self) -> Result<bool, FaultError> {
        let mut busy = false;
        while let Some(message) = self.line.receive() {
            busy = true;
            match message {
                Message::Fault(waiter) => self.serve(waiter)?,
                Message::Done(channel) => {
                    let pending = self.confirming.remove(&channel);
                    complete(
                        &self.vm,
                        pending.expect("a guest confirms what it was told"),
                    );
                }
                Message::Credits => self.credits.top_up(&self.vm, self.now),
            }
        }
        self.credits.look(&self.vm, self.now);
        if let Some(lie) = self.vm.table.claims().and_then(Claims::lie) {
            panic!("a good guest lies: {lie}");
        }
        if self.bell_rings() {
            busy = true;
            self.vm.parking.answer();
            self.retry()?;
        }
        Ok(busy)
    }

    fn bell_rings(&self) -> bool {
        let bell = self.vm.parking.bell().expect("made with a bell");
        let mut fds = [PollFd::new(bell, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("an eventfd can be polled") > 0
    }

    fn serve(&mut self, waiter: Waiter) -> Result<(), FaultError> {
        let were_missing = Credits::were_missing(&self.vm, waiter.gfn, waiter.access);
        let outcome = match &mut self.ahead {
            Some(ahead) => ahead.resolve(&self.vm, waiter.gfn, waiter.access),
            None => resolve(&self.vm, waiter.gfn, waiter.access),
        };
        match (outcome?, waiter.asker) {
            (Outcome::Served, Asker::Kernel) => {}
            (Outcome::Served, Asker::Channel(channel)) => self.line.answer(channel, Reply::Retry),
            (Outcome::Ask(reply, pending), Asker::Channel(channel)) => {
                let before = self.confirming.insert(channel, pending);
                assert!(
                    before.is_none(),
                    "channel {channel} confirms something else"
                );
                self.line.answer(channel, reply);
            }
            (Outcome::Ask(reply, _), Asker::Kernel) => {
                panic!("a thread that waits in the kernel is told {reply:?}")
            }
            (Outcome::Busy, _) => {
                self.vm.stats.parked.one();
                self.busy.entry(waiter.gfn).or_default().push(waiter);
                return Ok(());
            }
            (Outcome::Starved, _) => {
                self.vm.take_back_credits();
                self.starved.push(waiter);
                if !self.vm.parking.is_starved() {
                    self.vm.stats.starved.one();
                    self.vm.budget.starve(&self.vm.parking, true);
                    self.vm.parking.ring();
                }
                return Ok(());
            }
        }
        if were_missing {
            self.credits.top_up(&self.vm, self.now);
        }
        Ok(())
    }

    /// From now on pages are given ahead.
    pub(super) fn give_ahead(&mut self) {
        self.ahead = Some(Ahead::default());
    }

    /// A while passes.
    pub(super) fn rest(&mut self) {
        self.now += Duration::from_secs(1);
        self.credits.look(&self.vm, self.now);
    }

    fn retry(&mut self) -> Result<(), FaultError> {
        while let Some(gfn) = self.vm.parking.pop() {
            for waiter in self.busy.remove(&gfn).unwrap_or_default() {
                self.serve(waiter)?;
            }
        }
        for waiter in std::mem::take(&mut self.starved) {
            self.serve(waiter)?;
        }
        if self.starved.is_empty() {
            self.vm.budget.starve(&self.vm.parking, false);
        }
        Ok(())
    }

    /// Whether a fault on this page waits for memory.
    pub(super) fn is_starved(&self, gfn: Gfn) -> bool {
        self.starved.iter().any(|waiter| waiter.gfn == gfn)
    }

    /// Whether a fault on this page waits for the page.
    pub(super) fn is_busy(&self, gfn: Gfn) -> bool {
        self.busy.contains_key(&gfn)
    }

    /// The guest is gone: what its threads were told counts as done.
    pub(super) fn end(&mut self) {
        for (_, pending) in self.confirming.drain() {
            complete(&self.vm, pending);
        }
    }
}
