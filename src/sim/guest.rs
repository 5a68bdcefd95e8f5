//! One thread of a simulated guest.

use std::fmt;
use std::sync::Arc;

use memvisor_guest_agent::shim::inline::{Inline, Step, Work};
use memvisor_wire::memory::Fault;
use memvisor_wire::streams::Touched;

use super::address_space::Who;
use super::claim_table::SimTable;
use super::{AddressSpace, Trap};
use crate::fault::Event;
use crate::units::{Gfn, PAGE_SIZE, PageBuf};
use crate::vm::Vm;

/// A page is accessed in two halves, so that the daemon can move it between them.
const HALF: usize = PAGE_SIZE / 2;

/// What a thread does with a page.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Reads all of it and compares.
    Read,
    /// Writes all of it.
    Write(Box<PageBuf>),
}

#[derive(Debug)]
struct Running {
    gfn: Gfn,
    op: Op,
    at: usize,
}

#[derive(Debug)]
enum Wait {
    Nothing,
    /// The thread has claimed a page; other tasks get a turn before it goes on.
    Claimed(Work),
    /// Another thread has claimed the page.
    Asleep {
        at: u32,
        wakes: u32,
    },
    Kernel {
        wakes: u64,
    },
    /// For the daemon's reply. With a page whose stream may go on, the guest continues the stream itself afterwards.
    Reply(Option<Touched>),
}

/// A thread that runs as far as it can each time it is polled. Two threads of one guest must not write the same
/// page: a read compares with what was last written.
#[derive(Debug)]
pub(super) struct GuestThread {
    vm: Arc<Vm>,
    pub(super) space: Arc<AddressSpace>,
    pub(super) channel: usize,
    running: Option<Running>,
    wait: Wait,
}

impl fmt::Display for GuestThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, space, .. } = self;
        let (channel, wait, gfn) = (self.channel, &self.wait, self.at().unwrap_or_default());
        let (entry, view, homes) = (vm.table.entry(gfn), space.view(gfn), vm.table.counts());
        let (starved, free) = (vm.parking.is_starved(), vm.budget.free());
        let (vm, starving) = (vm.id, vm.budget.starving());
        write!(
            f,
            "thread {channel} of VM {vm} at {gfn} ({wait:?}, {entry:?}, {view:?}; starved {starved}; \
             homes {homes:?}; {free:?} free, {starving} VMs starving)"
        )
    }
}

impl GuestThread {
    pub(super) fn new(vm: &Arc<Vm>, space: &Arc<AddressSpace>, channel: usize) -> Self {
        Self {
            vm: Arc::clone(vm),
            space: Arc::clone(space),
            channel,
            running: None,
            wait: Wait::Nothing,
        }
    }

    /// Begins `op`; the thread must have ended what it did before.
    pub(super) fn begin(&mut self, gfn: Gfn, op: Op) {
        assert!(self.running.is_none(), "a thread does one thing at a time");
        self.running = Some(Running { gfn, op, at: 0 });
    }

    /// Whether it can go on without anybody else.
    pub(super) const fn can_go_on(&self) -> bool {
        matches!(self.wait, Wait::Nothing | Wait::Claimed(_))
    }

    /// The page that the thread is at.
    pub(super) fn at(&self) -> Option<Gfn> {
        self.running.as_ref().map(|running| running.gfn)
    }

    /// Goes on as far as possible; `true`: the thread has nothing to do any more.
    pub(super) fn poll(&mut self) -> bool {
        let wait = std::mem::replace(&mut self.wait, Wait::Nothing);
        self.wait = self.go_on(wait);
        if !matches!(self.wait, Wait::Nothing) {
            return false;
        }
        while let Some(mut running) = self.running.take() {
            let accessed = self.access(&mut running);
            if running.at < PAGE_SIZE {
                self.running = Some(running);
            }
            if let Err(trap) = accessed {
                self.wait = self.fault(trap);
                return false;
            }
        }
        true
    }

    /// What the thread waits for now, having waited for `wait`.
    fn go_on(&self, wait: Wait) -> Wait {
        match wait {
            Wait::Kernel { wakes } if self.space.wakes(self.page().0) == wakes => wait,
            Wait::Asleep { at, wakes } if self.inline().table().wakes(at) == wakes => wait,
            Wait::Nothing | Wait::Asleep { .. } | Wait::Kernel { .. } => Wait::Nothing,
            Wait::Claimed(work) => {
                let map = self.space.mapped_by(Who::Claimer);
                self.step(self.inline().go_on(&map, work))
            }
            Wait::Reply(touched) => match self.space.line.reply(self.channel) {
                None => wait,
                Some(reply) => {
                    let done = self.space.obey(reply);
                    done.into_iter().for_each(|done| self.say(done));
                    if let Some(touched) = touched {
                        self.inline().was_served(touched, self.vm.table.pages());
                    }
                    Wait::Nothing
                }
            },
        }
    }

    /// What the thread waits for after an access that did not go through.
    fn fault(&self, trap: Trap) -> Wait {
        let (gfn, write) = self.page();
        match (trap, &self.space.claims) {
            (Trap::Kernel { wakes }, _) => {
                self.space.line.send(Event::Userfault(gfn));
                Wait::Kernel { wakes }
            }
            (Trap::Signal, None) => self.step(Step::Ask(None)),
            (Trap::Signal, Some(inline)) => self.step(inline.begin(gfn, write)),
        }
    }

    /// The driver of the signal handler.
    fn step(&self, step: Step) -> Wait {
        match step {
            Step::Claimed(work) => Wait::Claimed(work),
            Step::Sleep { at, word } => {
                let wakes = self.inline().table().sleep(at, word);
                wakes.map_or(Wait::Nothing, |wakes| Wait::Asleep { at, wakes })
            }
            Step::Access => Wait::Nothing,
            Step::Report => {
                self.say(Fault::Credits);
                Wait::Nothing
            }
            Step::Ask(touched) => {
                self.say(match self.page() {
                    (gfn, true) => Fault::Write(gfn),
                    (gfn, false) => Fault::Read(gfn),
                });
                Wait::Reply(touched)
            }
        }
    }

    fn say(&self, fault: Fault) {
        self.space.line.send(Event::Message(self.channel, fault));
    }

    fn inline(&self) -> &Inline<SimTable> {
        let claims = self.space.claims.as_ref();
        claims.expect("only such a guest claims")
    }

    /// The page that it accesses, and whether it writes.
    fn page(&self) -> (Gfn, bool) {
        let running = self.running.as_ref().expect("it is at a page");
        (running.gfn, matches!(running.op, Op::Write(_)))
    }

    fn access(&self, running: &mut Running) -> Result<(), Trap> {
        let Running { gfn, op, at } = running;
        let range = *at..*at + HALF;
        let space = &self.space;
        match op {
            Op::Write(content) => {
                let half = &content.0[range.clone()];
                let store = |page: &mut PageBuf| page.0[range.clone()].copy_from_slice(half);
                space.access(*gfn, true, store)?;
                space.memory()[gfn.index()].0[range].copy_from_slice(half);
            }
            Op::Read => {
                let mut bytes = [0; HALF];
                let load = |page: &mut PageBuf| bytes.copy_from_slice(&page.0[range.clone()]);
                space.access(*gfn, false, load)?;
                assert!(
                    bytes == space.memory()[gfn.index()].0[range],
                    "VM {}: {gfn} has other bytes at {at} than were written; {}",
                    self.vm.id,
                    self.vm.table.history().of(*gfn)
                );
            }
        }
        *at += HALF;
        Ok(())
    }
}
