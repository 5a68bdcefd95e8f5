//! The fault thread of one VM: reads faults, serves or parks them, and notices when the guest ends.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_guest_agent::protocol::memory::{FAULT_BYTES, Fault, MAX_REPORT};
use memvisor_guest_agent::shim::{Received, SeqPacket};
use nix::sys::epoll::EpollTimeout;

use super::ahead::Ahead;
use super::attach::{Attacher, Attaching};
use super::credits::Credits;
use super::ended::Ended;
use super::near::Near;
use super::resolve::{Access, Outcome, Pending, complete};
use super::waiting::{Asker, Waiter, Waiting};
use super::watch::{Event, Watch};
use crate::engine::{Link, Reply};
use crate::page::Claims;
use crate::sys::{Uffd, UserFault};
use crate::units::{Gfn, GfnRun, PAGE_SIZE};
use crate::vm::Vm;

/// While faults wait for memory, how often to look without being called, in case a policy change
/// went unnoticed; and after how long, and how often, to say so.
const STARVED_LOOK_MS: u16 = 200;
const STARVED_WARNING: Duration = Duration::from_secs(5);

/// What a channel is in the middle of.
#[derive(Debug)]
enum Channel {
    Idle,
    /// Its fault is parked.
    Waiting,
    /// Its thread has been told to change a mapping.
    Confirming(Pending),
}

/// The guest's process, as far as faults come from it.
#[derive(Debug)]
pub struct Faulter {
    /// Its number.
    pub pid: i32,
    /// Where its shim maps RAM.
    pub base: u64,
    /// What reports its faults, where it has that.
    pub uffd: Option<Arc<Uffd>>,
    /// The daemon's ends of the fault channels.
    pub sockets: Vec<SeqPacket>,
}

/// See the module text.
#[derive(Debug)]
pub struct FaultThread {
    vm: Arc<Vm>,
    /// Kept open as long as the epoll watches it.
    _link: Arc<Link>,
    guest: Faulter,
    channels: Vec<Channel>,
    waiting: Waiting,
    ahead: Ahead,
    credits: Credits,
    near: Near,
    attaching: Attaching,
    watch: Watch,
    warned: Instant,
}

impl FaultThread {
    /// A thread for the faults of `vm`, whose pages are attached by `attacher`.
    ///
    /// # Errors
    /// [`Ended::Kernel`] when no epoll can be made.
    pub fn new(
        vm: Arc<Vm>,
        link: Arc<Link>,
        guest: Faulter,
        attacher: Box<dyn Attacher>,
    ) -> Result<Self, Ended> {
        let Faulter { uffd, sockets, .. } = &guest;
        let watch = Watch::new(vm.parking.bell(), &link, uffd.as_deref(), sockets)?;
        let channels = sockets.iter().map(|_| Channel::Idle).collect();
        let waiting = Waiting::default();
        let now = Instant::now();
        Ok(Self {
            vm,
            _link: link,
            channels,
            waiting,
            ahead: Ahead::default(),
            credits: Credits::new(now),
            near: Near::new(guest.pid, now),
            attaching: Attaching::new(attacher),
            watch,
            warned: now,
            guest,
        })
    }

    /// Serves faults until the VM ends, and says why it did.
    pub fn run(mut self) -> Ended {
        let ended = loop {
            if let Err(ended) = self.turn() {
                break ended;
            }
        };
        // The guest will not confirm any more; what it was told counts as done, so that every page
        // has one home when the VM is torn down.
        for channel in std::mem::take(&mut self.channels) {
            if let Channel::Confirming(pending) = channel {
                complete(&self.vm, pending);
            }
        }
        ended
    }

    fn turn(&mut self) -> Result<(), Ended> {
        for event in self.watch.wait(self.timeout())? {
            match event {
                Event::Bell => self.vm.parking.answer(),
                Event::HangUp => return Err(self.hung_up()),
                Event::Faults => self.read_uffd()?,
                Event::Message(channel) => self.read_channel(channel)?,
            }
        }
        let now = Instant::now();
        self.credits.look(&self.vm, now);
        self.near.rest(now);
        if let Some(lie) = self.vm.table.claims().and_then(Claims::lie) {
            return Err(Ended::Protocol(lie.to_owned()));
        }
        if let Some((index, count)) = self.attaching.answered() {
            self.tell_attached(index, count)?;
        }
        self.retry()
    }

    fn timeout(&self) -> EpollTimeout {
        if self.waiting.starved().is_some() {
            return EpollTimeout::from(STARVED_LOOK_MS);
        }
        let now = Instant::now();
        let dues = [self.credits.due(&self.vm, now), self.near.due(now)];
        let due = dues.into_iter().flatten().min();
        // Rounded up, or the last millisecond would be spent in a loop.
        let millis = due.map(|due| u16::try_from(due.as_millis() + 1).unwrap_or(u16::MAX));
        millis.map_or(EpollTimeout::NONE, EpollTimeout::from)
    }

    /// The socket is closed: by the guest's death, or by us because somebody asked for it.
    fn hung_up(&self) -> Ended {
        self.vm.end_reason().map_or(Ended::GuestGone, Ended::Asked)
    }

    fn read_uffd(&mut self) -> Result<(), Ended> {
        let Some(uffd) = self.guest.uffd.clone() else {
            return Ok(());
        };
        let mut faults = Vec::new();
        let what = "read faults";
        uffd.read_faults(&mut faults)
            .map_err(|source| Ended::Kernel { what, source })?;
        for UserFault { address, thread } in faults {
            let page = address.wrapping_sub(self.guest.base) / PAGE_SIZE as u64;
            let gfn = Gfn(u32::try_from(page).unwrap_or(u32::MAX));
            let since = Instant::now();
            self.serve(Waiter {
                gfn,
                access: Access::Any,
                asker: Asker::Uffd,
                since,
            })?;
            // Only now: the thread that faulted runs meanwhile.
            self.near.note(thread, since);
        }
        Ok(())
    }

    fn read_channel(&mut self, index: usize) -> Result<(), Ended> {
        let Some(socket) = self.guest.sockets.get(index) else {
            return Ok(());
        };
        let mut bytes = [0; FAULT_BYTES];
        let len = match socket.try_recv(&mut bytes) {
            // The shim may hold this end too, and have read it first.
            Ok(None) => return Ok(()),
            Ok(Some(Received::Message {
                len,
                truncated: false,
            })) => len,
            Ok(Some(Received::Message {
                len,
                truncated: true,
            })) => {
                let error = format!("{len} bytes on a fault channel, {FAULT_BYTES} are allowed");
                return Err(Ended::Protocol(error));
            }
            Ok(Some(Received::Closed)) | Err(_) => return Err(self.hung_up()),
        };
        let since = Instant::now();
        let (fault, thread) = Fault::decode(&bytes[..len])?;
        let (gfn, access) = match fault {
            Fault::Done(errno) => return self.confirmed(index, errno),
            Fault::History(gfn) => return self.tell_history(index, gfn),
            Fault::Credits => {
                self.credits.top_up(&self.vm, Instant::now());
                return Ok(());
            }
            Fault::Attach { pages, source } => return self.attach(index, pages, source),
            Fault::Read(gfn) => (gfn, Access::Read),
            Fault::Write(gfn) => (gfn, Access::Write),
        };
        self.begin(index)?;
        self.serve(Waiter {
            gfn,
            access,
            asker: Asker::Channel(index),
            since,
        })?;
        // A guest that serves itself runs while what it did is noted: that is better done elsewhere.
        if self.vm.table.claims().is_none() {
            self.near.note(thread, since);
        }
        Ok(())
    }

    /// What came over a channel is to be answered.
    fn begin(&mut self, index: usize) -> Result<(), Ended> {
        if !matches!(self.channels.get(index), Some(Channel::Idle)) {
            let error = "a second fault on a channel before the first was answered";
            return Err(Ended::Protocol(error.to_owned()));
        }
        self.channels[index] = Channel::Waiting;
        Ok(())
    }

    fn attach(&mut self, index: usize, pages: GfnRun, source: Gfn) -> Result<(), Ended> {
        self.begin(index)?;
        match self.attaching.begin(&self.vm, index, pages, source)? {
            true => Ok(()),
            false => self.tell_attached(index, 0),
        }
    }

    fn tell_attached(&mut self, index: usize, count: u32) -> Result<(), Ended> {
        self.channels[index] = Channel::Idle;
        self.send(index, &Reply::Attached(count).encode())
    }

    fn confirmed(&mut self, index: usize, errno: u32) -> Result<(), Ended> {
        match std::mem::replace(&mut self.channels[index], Channel::Idle) {
            Channel::Confirming(pending) => complete(&self.vm, pending),
            other => {
                return Err(Ended::Protocol(format!(
                    "DONE on a channel that is {other:?}"
                )));
            }
        }
        match i32::try_from(errno) {
            Ok(0) => Ok(()),
            errno => Err(Ended::Mapping(io::Error::from_raw_os_error(
                errno.unwrap_or(libc::EIO),
            ))),
        }
    }

    fn tell_history(&self, index: usize, gfn: Gfn) -> Result<(), Ended> {
        let mut text = self.vm.table.history().of(gfn);
        text.truncate(MAX_REPORT);
        tracing::error!(vm = %self.vm.params.name, %gfn, "the guest found wrong bytes; {text}");
        self.send(index, text.as_bytes())
    }

    /// Never waits: a shim that asks and does not read must not be able to hold this thread.
    fn send(&self, index: usize, message: &[u8]) -> Result<(), Ended> {
        self.guest.sockets[index]
            .try_send(message)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => {
                    Ended::Protocol("answers on a fault channel are not read".to_owned())
                }
                _ => self.hung_up(),
            })
    }

    fn serve(&mut self, waiter: Waiter) -> Result<(), Ended> {
        let were_missing = Credits::were_missing(&self.vm, waiter.gfn, waiter.access);
        let outcome = self
            .ahead
            .resolve(&self.vm, waiter.gfn, waiter.access)
            .map_err(Ended::from);
        if let Err(Ended::Fault(_)) = &outcome {
            let homes = self.vm.table.history().of(waiter.gfn);
            tracing::error!(vm = %self.vm.params.name, "a page cannot be served; {homes}");
        }
        match outcome? {
            Outcome::Served => {
                self.vm.note_latency(waiter.since.elapsed());
                self.answer(waiter, Reply::Retry, Channel::Idle)?;
            }
            Outcome::Ask(reply, pending) => {
                self.vm.note_latency(waiter.since.elapsed());
                self.answer(waiter, reply, Channel::Confirming(pending))?;
            }
            Outcome::Busy => {
                self.vm.stats.parked.one();
                self.waiting.park_busy(waiter);
                return Ok(());
            }
            Outcome::Starved => {
                self.park_starved(waiter);
                return Ok(());
            }
        }
        // Only now: the thread that asked runs meanwhile.
        if were_missing {
            self.credits.top_up(&self.vm, Instant::now());
        }
        Ok(())
    }

    fn answer(&mut self, waiter: Waiter, reply: Reply, next: Channel) -> Result<(), Ended> {
        match waiter.asker {
            Asker::Channel(index) => {
                self.channels[index] = next;
                self.send(index, &reply.encode())
            }
            // The kernel was answered by providing the page.
            Asker::Uffd => match next {
                Channel::Confirming(pending) => {
                    complete(&self.vm, pending);
                    Err(Ended::Protocol(
                        "a userfault on a page without userfaultfd".to_owned(),
                    ))
                }
                Channel::Idle | Channel::Waiting => Ok(()),
            },
        }
    }

    fn park_starved(&mut self, waiter: Waiter) {
        self.vm.take_back_credits();
        self.waiting.park_starved(waiter);
        if !self.vm.parking.is_starved() {
            self.vm.stats.starved.one();
            self.vm.budget.starve(&self.vm.parking, true);
            // Memory may have come free before we said that we wait for some: look once more.
            self.vm.parking.ring();
        }
    }

    /// Serves again what was parked and may go on now.
    fn retry(&mut self) -> Result<(), Ended> {
        while let Some(gfn) = self.vm.parking.pop() {
            for waiter in self.waiting.unlocked(gfn) {
                self.serve(waiter)?;
            }
        }
        for waiter in self.waiting.take_starved() {
            self.serve(waiter)?;
        }
        match self.waiting.starved() {
            None => self.vm.budget.starve(&self.vm.parking, false),
            Some((count, since)) => self.warn_starved(count, since),
        }
        Ok(())
    }

    fn warn_starved(&mut self, count: usize, since: Instant) {
        if since.elapsed() < STARVED_WARNING || self.warned.elapsed() < STARVED_WARNING {
            return;
        }
        self.warned = Instant::now();
        tracing::warn!(
            vm = %self.vm.params.name,
            faults = count,
            waited_s = since.elapsed().as_secs(),
            free_pages = self.vm.budget.free().0,
            blocked = self.vm.orders.is_blocked(),
            swap_failing = self.vm.is_swap_failing(),
            "guest threads wait for memory"
        );
    }
}
