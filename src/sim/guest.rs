//! One thread of a simulated guest.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard};

use super::fault_thread::{Asker, Message, Waiter};
use super::{AddressSpace, Line, Trap};
use crate::engine::Reply;
use crate::fault::Access;
use crate::units::{Gfn, PAGE_SIZE, PageBuf};
use crate::vm::Vm;

/// A page is accessed in two halves, so that it can move between them.
const HALF: usize = PAGE_SIZE / 2;

/// What the pages of a guest must hold: what it last wrote.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<StdMutex<Vec<PageBuf>>>);

impl Memory {
    pub(super) fn new(pages: u32) -> Self {
        let pages = (0..pages).map(|_| PageBuf::zeroed()).collect();
        Self(Arc::new(StdMutex::new(pages)))
    }

    pub(super) fn pages(&self) -> MutexGuard<'_, Vec<PageBuf>> {
        self.0.lock().expect("no holder panicked")
    }

    /// The guest has given the page up: it will read zeroes.
    pub(super) fn forget(&self, gfn: Gfn) {
        self.pages()[gfn.index()] = PageBuf::zeroed();
    }
}

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

#[derive(Clone, Copy, Debug)]
enum Wait {
    Nothing,
    Kernel { gfn: Gfn, wakes: u64 },
    Reply,
}

/// A thread; it runs as far as it can each time it is polled. Two threads of one guest must not use
/// the same pages.
#[derive(Debug)]
pub(super) struct GuestThread {
    vm: Arc<Vm>,
    space: Arc<AddressSpace>,
    line: Arc<Line>,
    memory: Memory,
    channel: usize,
    running: Option<Running>,
    wait: Wait,
}

impl fmt::Display for GuestThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vm, channel, wait, ..
        } = self;
        let gfn = self.at().unwrap_or_default();
        let (entry, view) = (vm.table.entry(gfn), self.space.view(gfn));
        write!(
            f,
            "thread {channel} of VM {} at {gfn} ({wait:?}, {entry:?}, {view:?}; ",
            vm.id
        )?;
        let (free, starving) = (vm.budget.free(), vm.budget.starving());
        write!(
            f,
            "starved {}; homes {:?}; ",
            vm.parking.is_starved(),
            vm.table.counts()
        )?;
        write!(f, "{free:?} free, {starving} VMs starving)")
    }
}

impl GuestThread {
    pub(super) fn new(
        vm: Arc<Vm>,
        space: Arc<AddressSpace>,
        line: Arc<Line>,
        memory: Memory,
        channel: usize,
    ) -> Self {
        Self {
            vm,
            space,
            line,
            memory,
            channel,
            running: None,
            wait: Wait::Nothing,
        }
    }

    /// Begins something; the thread must have ended what it did before.
    pub(super) fn begin(&mut self, gfn: Gfn, op: Op) {
        assert!(self.running.is_none(), "a thread does one thing at a time");
        self.running = Some(Running { gfn, op, at: 0 });
    }

    /// The guest's kernel drops its mapping of a page.
    pub(super) fn forget_mapping(&self, gfn: Gfn) {
        self.space.forget_mapping(gfn);
    }

    /// The page that the thread is at.
    pub(super) fn at(&self) -> Option<Gfn> {
        self.running.as_ref().map(|running| running.gfn)
    }

    /// Goes on as far as possible; `true`: the thread has nothing to do any more.
    pub(super) fn poll(&mut self) -> bool {
        if self.is_waiting() {
            return false;
        }
        while let Some(mut running) = self.running.take() {
            match self.access(&mut running) {
                Ok(()) if running.at == PAGE_SIZE => {}
                Ok(()) => self.running = Some(running),
                Err(trap) => {
                    self.fault(running.gfn, trap);
                    self.running = Some(running);
                    return false;
                }
            }
        }
        true
    }

    fn is_waiting(&mut self) -> bool {
        match self.wait {
            Wait::Nothing => {}
            Wait::Kernel { gfn, wakes } => {
                if self.space.wakes(gfn) == wakes {
                    return true;
                }
            }
            Wait::Reply => match self.line.reply(self.channel) {
                None => return true,
                Some(Reply::Retry) => {}
                Some(reply) => {
                    self.space.apply(reply);
                    self.line.send(Message::Done(self.channel));
                }
            },
        }
        self.wait = Wait::Nothing;
        false
    }

    fn fault(&mut self, gfn: Gfn, trap: Trap) {
        let (access, asker, wait) = match trap {
            Trap::Kernel { wakes } => (Access::Any, Asker::Kernel, Wait::Kernel { gfn, wakes }),
            Trap::Signal(access) => (access, Asker::Channel(self.channel), Wait::Reply),
        };
        self.wait = wait;
        self.line
            .send(Message::Fault(Waiter { gfn, access, asker }));
    }

    fn access(&self, running: &mut Running) -> Result<(), Trap> {
        let Running { gfn, op, at } = running;
        let range = *at..*at + HALF;
        match op {
            Op::Write(content) => {
                self.space.store(*gfn, *at, &content.0[range.clone()])?;
                self.memory.pages()[gfn.index()].0[range.clone()]
                    .copy_from_slice(&content.0[range]);
            }
            Op::Read => {
                let mut bytes = [0; HALF];
                self.space.load(*gfn, *at, &mut bytes)?;
                assert!(
                    bytes == self.memory.pages()[gfn.index()].0[range],
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
