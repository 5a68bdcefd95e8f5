//! The fault thread of one VM: the driver of its fault path ([`Core`]). It reads faults and the clock, sends answers,
//! and notices when the guest ends.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use memvisor_wire::memory::{FAULT_BYTES, Fault};
use memvisor_wire::streams::MAX_AHEAD;
use memvisor_wire::system_error::cannot;
use memvisor_wire::{Received, SeqPacket};
use nix::sys::epoll::EpollTimeout;

use super::attach::Attacher;
use super::core::Core;
use super::driver::{Driver, Event};
use super::ended::Ended;
use super::follow::Follower;
use super::watch::{BELL, FIRST_CHANNEL, LINK, UFFD, Watch};
use crate::engine::{Link, Reply};
use crate::sys::{Uffd, UserFault};
use crate::units::{Gfn, PAGE_SIZE};
use crate::vm::Vm;

/// The guest's process, as far as faults come from it.
#[derive(Debug)]
pub struct Faulter {
    /// Its number.
    pub pid: i32,
    /// Where its shim maps RAM.
    pub base: u64,
    /// The userfaultfd that reports its faults, in engine uffd.
    pub uffd: Option<Arc<Uffd>>,
    /// The daemon's ends of the fault channels.
    pub sockets: Vec<SeqPacket>,
}

/// See the module text.
#[derive(Debug)]
pub struct FaultThread {
    core: Core,
    follower: Follower,
    watch: Watch,
    guest: Guest,
    /// The faults that were read last. The buffer is kept, so that a fault needs no allocation.
    faults: Vec<UserFault>,
    /// When the latest turn ended. Timeouts are reckoned from it: the next wait begins hardly later.
    now: Instant,
}

/// How the guest is answered.
#[derive(Debug)]
struct Guest {
    vm: Arc<Vm>,
    faulter: Faulter,
    /// Keeps the socket open as long as the epoll watches it.
    _link: Arc<Link>,
}

impl Guest {
    /// Why a socket is closed: the guest died, or the daemon closed it because somebody asked for the VM's end.
    fn hung_up(&self) -> Ended {
        self.vm.end_reason().map_or(Ended::GuestGone, Ended::Asked)
    }

    /// Never waits: a shim that asks and does not read the answers must not hold this thread up.
    fn send(&self, channel: usize, message: &[u8]) -> Result<(), Ended> {
        self.faulter.sockets[channel]
            .try_send(message)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => {
                    Ended::Protocol("answers on a fault channel are not read".to_owned())
                }
                _ => self.hung_up(),
            })
    }
}

impl Driver for Guest {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn reply(&mut self, channel: usize, reply: Reply) -> Result<(), Ended> {
        self.send(channel, &reply.encode())
    }

    fn history(&mut self, channel: usize, text: &str) -> Result<(), Ended> {
        self.send(channel, text.as_bytes())
    }
}

impl FaultThread {
    /// A thread for the faults of `vm`. `attacher` attaches its pages.
    ///
    /// # Errors
    /// [`Ended::Kernel`] when no epoll can be made.
    pub fn new(
        vm: Arc<Vm>,
        link: Arc<Link>,
        faulter: Faulter,
        attacher: Box<dyn Attacher>,
    ) -> Result<Self, Ended> {
        let now = Instant::now();
        let Faulter { uffd, sockets, .. } = &faulter;
        Ok(Self {
            watch: Watch::new(vm.parking.bell(), &link, uffd.as_deref(), sockets)?,
            core: Core::new(Arc::clone(&vm), sockets.len(), attacher, MAX_AHEAD, now),
            follower: Follower::new(faulter.pid, now),
            guest: Guest {
                vm,
                faulter,
                _link: link,
            },
            faults: Vec::new(),
            now,
        })
    }

    /// Serves faults until the VM ends, and says why it did.
    pub fn run(mut self) -> Ended {
        let ended = loop {
            if let Err(ended) = self.turn() {
                break ended;
            }
        };
        self.core.end();
        ended
    }

    fn turn(&mut self) -> Result<(), Ended> {
        for descriptor in self.watch.wait(self.timeout())? {
            match descriptor {
                BELL => {
                    // Silenced before the look: what happens during it rings again.
                    self.guest.vm.parking.answer();
                    self.handle(Event::Bell, Instant::now())?;
                }
                LINK => return Err(self.guest.hung_up()),
                UFFD => self.read_uffd()?,
                channel => self.read_channel(channel - FIRST_CHANNEL)?,
            }
        }
        self.now = Instant::now();
        self.follower.rest(self.now);
        self.core.tick(self.now, &mut self.guest)
    }

    fn handle(&mut self, event: Event, now: Instant) -> Result<(), Ended> {
        self.core.handle(event, now, &mut self.guest)
    }

    fn timeout(&self) -> EpollTimeout {
        let due = [self.core.due(self.now), self.follower.due(self.now)];
        let due = due.into_iter().flatten().min();
        // Rounded up: otherwise the last fraction of a millisecond would be spent in a busy loop.
        let millis = due.map(|due| u16::try_from(due.as_millis() + 1).unwrap_or(u16::MAX));
        millis.map_or(EpollTimeout::NONE, EpollTimeout::from)
    }

    fn read_uffd(&mut self) -> Result<(), Ended> {
        let Faulter { uffd, base, .. } = &self.guest.faulter;
        let (Some(uffd), base) = (uffd, *base) else {
            return Ok(());
        };
        self.faults.clear();
        uffd.read_faults(&mut self.faults)
            .map_err(cannot("read faults"))?;
        // One time for all of them: the last one waits while those before it are served, and that counts as its
        // latency.
        let since = Instant::now();
        // By number, because `handle` needs the whole of `self`.
        for at in 0..self.faults.len() {
            let UserFault { address, thread } = self.faults[at];
            let page = address.wrapping_sub(base) / PAGE_SIZE as u64;
            // An address outside RAM becomes a gfn that no guest has, and the core refuses it.
            let gfn = Gfn(u32::try_from(page).unwrap_or(u32::MAX));
            self.handle(Event::Userfault(gfn), since)?;
            // After the answer: the thread that faulted already runs while we look where it is.
            self.follower.note(thread, since);
        }
        Ok(())
    }

    fn read_channel(&mut self, channel: usize) -> Result<(), Ended> {
        let socket = &self.guest.faulter.sockets[channel];
        let mut bytes = [0; FAULT_BYTES];
        let len = match socket.try_recv(&mut bytes) {
            Ok(None) => return Ok(()),
            Ok(Some(Received::Message { len })) if len <= FAULT_BYTES => len,
            Ok(Some(Received::Message { len })) => {
                let error = format!("{len} bytes on a fault channel, {FAULT_BYTES} are allowed");
                return Err(Ended::Protocol(error));
            }
            Ok(Some(Received::Closed)) | Err(_) => return Err(self.guest.hung_up()),
        };
        let since = Instant::now();
        let decoded = Fault::decode(&bytes[..len]);
        let (fault, thread) = decoded.map_err(|error| Ended::Protocol(error.to_string()))?;
        self.handle(Event::Message(channel, fault), since)?;
        // A guest that serves faults itself runs on while the daemon notes what it did, so the daemon is better off on
        // another processor.
        if matches!(fault, Fault::Read(_) | Fault::Write(_))
            && self.guest.vm.table.claims().is_none()
        {
            self.follower.note(thread, since);
        }
        Ok(())
    }
}
