//! One thread of a simulated guest.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard};

use super::{AddressSpace, Claims, Line, Trap};
use memvisor_guest_agent::protocol::claims::{Attempt, Claim, State};
use memvisor_guest_agent::protocol::memory::Fault;

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

    /// The guest was told that a page has the bytes of another.
    pub(super) fn copy(&self, from: Gfn, to: Gfn) {
        let mut pages = self.pages();
        pages[to.index()] = pages[from.index()].clone();
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

#[derive(Debug)]
enum Wait {
    Nothing,
    /// It has claimed a page and looks away for a moment.
    Claimed(Claim, State),
    /// Another thread has claimed the page.
    Claim(Gfn),
    Kernel {
        gfn: Gfn,
        wakes: u64,
    },
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
    claims: Option<Claims>,
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
        claims: Option<Claims>,
    ) -> Self {
        Self {
            vm,
            space,
            line,
            memory,
            channel,
            running: None,
            wait: Wait::Nothing,
            claims,
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

    /// Whether it waits for nobody.
    pub(super) const fn can_go_on(&self) -> bool {
        matches!(self.wait, Wait::Nothing | Wait::Claimed(..))
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
            Wait::Claim(gfn) => {
                if self
                    .claims
                    .as_ref()
                    .is_some_and(|claims| claims.is_taken(gfn))
                {
                    return true;
                }
            }
            Wait::Claimed(..) => self.end_claim(),
            Wait::Reply => match self.line.reply(self.channel) {
                None => return true,
                Some(Reply::Retry) => {}
                Some(reply) => {
                    self.space.apply(reply);
                    self.line.send(self.channel, Fault::Done(0));
                }
            },
        }
        self.wait = Wait::Nothing;
        false
    }

    /// Does what was claimed.
    fn end_claim(&mut self) {
        let wait = std::mem::replace(&mut self.wait, Wait::Nothing);
        let (Wait::Claimed(claim, offer), Some(claims)) = (wait, &self.claims) else {
            return;
        };
        let gfn = claim.gfn();
        if offer == State::Zip {
            self.space.install(gfn, claims.decompress(&claim));
        } else {
            self.space.break_shared(gfn);
            self.space.map_copy(gfn);
        }
        claims.claimer().done(claim);
    }

    /// Serves a fault without the daemon, as far as that is offered; whether it need not be asked.
    fn serve(&mut self, gfn: Gfn, access: Access) -> bool {
        let Some(claims) = &self.claims else {
            return false;
        };
        let claimer = claims.claimer();
        let offer = claimer.look(gfn);
        match offer {
            State::Frame if access == Access::Read => return true,
            State::Frame if !claimer.may_break() => return false,
            State::Zip | State::Frame => {}
            State::Taken { .. } => {
                self.wait = Wait::Claim(gfn);
                return true;
            }
            State::None | State::Done { .. } => return false,
        }
        match claimer.claim(gfn, offer) {
            Attempt::Claimed(claim) => {
                if claimer.should_tell(&claim) {
                    self.line.send(self.channel, Fault::Credits);
                }
                self.wait = Wait::Claimed(claim, offer);
                true
            }
            Attempt::NoCredit => false,
            Attempt::Changed => true,
        }
    }

    fn fault(&mut self, gfn: Gfn, trap: Trap) {
        if let Trap::Signal(access) = trap
            && self.serve(gfn, access)
        {
            return;
        }
        self.wait = match trap {
            Trap::Kernel { wakes } => {
                self.line.fault(gfn);
                Wait::Kernel { gfn, wakes }
            }
            Trap::Signal(access) => {
                let is_write = access == Access::Write;
                let fault = if is_write { Fault::Write } else { Fault::Read };
                self.line.send(self.channel, fault(gfn));
                Wait::Reply
            }
        };
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
