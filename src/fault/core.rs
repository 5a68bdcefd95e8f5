//! The fault path of one VM as a state machine: events and the time go in, actions come out.
//!
//! It decides everything about a fault from the moment it is read to the moment it is answered: whether it is served,
//! which neighbours come with it, what it waits for, in which order waiting faults go on, and what ends the VM. It
//! reads no clock and no descriptor. It puts pages in place through the VM's [`Engine`](crate::engine::Engine), and
//! hands answers for the guest to a [`Driver`]. One driver is the fault thread ([`super::thread`]), the other is the
//! simulated machine ([`crate::sim`]): the code that is tested in any order of events is the code that ships.
//!
//! Waiting faults go on when an event says so; they are not polled. The bell of the VM rings when a page that a fault
//! waits for is unlocked, when the VM has been granted memory, and when an attachment has ended. Only faults that wait
//! for memory are also tried from time to time, in case a change of the policy went unnoticed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use memvisor_wire::memory::{Fault, MAX_REPORT};
use memvisor_wire::streams::Streams;

use super::ahead::resolve_in_stream;
use super::attach::Attacher;
use super::credits::Credits;
use super::driver::{Driver, Event};
use super::ended::Ended;
use super::resolve::{Access, Outcome, Pending, cause, complete};
use super::waiting::{Asker, Waiter, Waiting};
use crate::engine::Reply;
use crate::page::Claims;
use crate::seeded::Seeded;
use crate::throttle::Throttle;
use crate::units::{Gfn, Pages};
use crate::vm::{Cause, Stall, Vm};

/// How often faults that wait for memory are tried again without a call.
const STARVED_RETRY: Duration = Duration::from_millis(200);
/// How long a fault has waited for memory before the log gets a warning, and the time between two such warnings.
const STARVED_WARNING: Duration = Duration::from_secs(5);

/// Limits log lines about wrong bytes. A guest that really finds some asks once and ends; a malicious one could flood
/// the log.
static REPORTS: Throttle = Throttle::new(8, Duration::from_secs(1));

/// What a channel is in the middle of.
#[derive(Debug)]
pub(super) enum Channel {
    Idle,
    /// Its fault is parked.
    Waiting,
    /// Its pages are being attached. The receiver gets how many were.
    Attaching(Receiver<u32>),
    /// Its thread has been told to change a mapping and stands still until it has done so.
    Confirming(Pending, Stall),
}

/// What is left to do after an attempt to serve a fault.
enum Next {
    Nothing,
    /// The guest asked because it had no credit: it gets some.
    TopUp,
    /// The fault waits for memory: the VM joins the queue.
    Enqueue,
}

/// See the module text. Between calls, every page of the VM is in a consistent state.
#[derive(Debug)]
pub struct Core {
    pub(super) vm: Arc<Vm>,
    pub(super) channels: Vec<Channel>,
    pub(crate) waiting: Waiting,
    streams: Streams,
    credits: Credits,
    pub(super) attacher: Box<dyn Attacher>,
    /// When to try faults that wait for memory again.
    retry: Instant,
    warned: Instant,
}

impl Core {
    /// The fault path of `vm`, which has `channels` fault channels. `attacher` attaches its pages. At most `ahead`
    /// pages are given before they are asked for.
    #[must_use]
    pub fn new(
        vm: Arc<Vm>,
        channels: usize,
        attacher: Box<dyn Attacher>,
        ahead: u32,
        now: Instant,
    ) -> Self {
        let credits = Credits::new(vm.params.pages, now);
        Self {
            vm,
            channels: (0..channels).map(|_| Channel::Idle).collect(),
            waiting: Waiting::default(),
            streams: Streams::new(ahead),
            credits,
            attacher,
            retry: now,
            warned: now,
        }
    }

    /// Does what an event asks for.
    ///
    /// # Errors
    /// [`Ended`]: the VM ends, and [`end`](Self::end) is to be called.
    pub fn handle(
        &mut self,
        event: Event,
        now: Instant,
        out: &mut dyn Driver,
    ) -> Result<(), Ended> {
        match event {
            Event::Userfault(gfn) => {
                let fault = self.begin(gfn, Access::Any, Asker::Kernel, now)?;
                self.serve(fault, now, out)
            }
            Event::Message(channel, fault) => self.message(channel, fault, now, out),
            Event::Bell => {
                // A ring does not say why it came, and several rings are one: every cause is looked at.
                self.tell_attached(out)?;
                let mut unlocked = false;
                while let Some(gfn) = self.vm.parking.pop() {
                    unlocked = true;
                    for fault in self.waiting.unlocked(gfn) {
                        let fault = self.note_cause(fault, now);
                        self.serve(fault, now, out)?;
                    }
                }
                // Nothing was granted: the call was for unlocked pages alone, and faults that wait for their turn
                // need not try.
                let granted = self.vm.begin_turn();
                if granted == Pages(0) && unlocked && !self.vm.parking.is_barred() {
                    return Ok(());
                }
                self.serve_starved(now, out)
            }
        }
    }

    /// Does what is due. It must be called when [`due`](Self::due) says so, and after events.
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    pub fn tick(&mut self, now: Instant, out: &mut dyn Driver) -> Result<(), Ended> {
        self.credits.tick(&self.vm, now);
        // After that tick, which finds forged credits.
        if let Some(violation) = self.vm.table.claims().and_then(Claims::violation) {
            return Err(Ended::Protocol(violation.to_owned()));
        }
        if self.waiting.starved().is_some() && now >= self.retry {
            self.vm.begin_turn();
            self.serve_starved(now, out)?;
        }
        Ok(())
    }

    /// How long it may take until the next [`tick`](Self::tick); `None` while nothing will be due.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Duration> {
        let starved = self.waiting.starved();
        let retry = starved.map(|_| self.retry.saturating_duration_since(now));
        retry
            .into_iter()
            .chain(self.credits.due(&self.vm, now))
            .min()
    }

    /// Ends the fault path of a guest that is gone and will not confirm any more. Mappings that it was told to change
    /// count as changed, so that every page has one home when the VM is torn down.
    pub fn end(self) {
        for channel in self.channels {
            if let Channel::Confirming(pending, _) = channel {
                complete(&self.vm, pending);
            }
        }
    }

    fn message(
        &mut self,
        channel: usize,
        fault: Fault,
        now: Instant,
        out: &mut dyn Driver,
    ) -> Result<(), Ended> {
        let (gfn, access) = match fault {
            Fault::Read(gfn) => (gfn, Access::Read),
            Fault::Write(gfn) => (gfn, Access::Write),
            Fault::Done(_) if Seeded::LostDone.is_sown() => return Ok(()),
            Fault::Done(errno) => return self.confirmed(channel, errno, now),
            Fault::History(gfn) => {
                let mut text = self.vm.table.history().of(gfn);
                text.truncate(MAX_REPORT);
                REPORTS.line(|unsaid| {
                    let vm = &self.vm.params.name;
                    tracing::error!(vm, %gfn, unsaid, "the guest found wrong bytes; {text}");
                });
                return out.history(channel, &text);
            }
            Fault::Credits => {
                self.credits.top_up(&self.vm, now);
                return Ok(());
            }
            Fault::Attach { pages, source } => return self.attach(channel, pages, source, out),
        };
        self.claim(channel)?;
        let fault = self.begin(gfn, access, Asker::Channel(channel), now)?;
        self.serve(fault, now, out)
    }

    /// A fault that was read at `since`. Its thread counts as standing still from then on.
    fn begin(
        &self,
        gfn: Gfn,
        access: Access,
        asker: Asker,
        since: Instant,
    ) -> Result<Waiter, Ended> {
        let table = &self.vm.table;
        if !table.contains(gfn) {
            let error = format!("a fault on {gfn}, and it has {} pages", table.pages());
            return Err(Ended::Protocol(error));
        }
        let cause = cause(&self.vm, gfn, access);
        Ok(Waiter {
            gfn,
            access,
            asker,
            since,
            stall: self.vm.stalls.begin(cause, since),
        })
    }

    /// Marks a channel as waiting for an answer. A guest that asks twice before it was answered breaks the protocol.
    pub(super) fn claim(&mut self, channel: usize) -> Result<(), Ended> {
        if !matches!(self.channels[channel], Channel::Idle) {
            let error = "a second fault on a channel before the first was answered";
            return Err(Ended::Protocol(error.to_owned()));
        }
        self.channels[channel] = Channel::Waiting;
        Ok(())
    }

    fn confirmed(&mut self, channel: usize, errno: u32, now: Instant) -> Result<(), Ended> {
        let told = std::mem::replace(&mut self.channels[channel], Channel::Idle);
        let Channel::Confirming(pending, stall) = told else {
            let error = format!("DONE on a channel that is {told:?}");
            return Err(Ended::Protocol(error));
        };
        self.vm.stalls.end(stall, now);
        // Even after an error, which ends the VM: every page must have one home when it is torn down.
        complete(&self.vm, pending);
        match i32::try_from(errno).unwrap_or(libc::EIO) {
            0 => Ok(()),
            errno => Err(Ended::Mapping(io::Error::from_raw_os_error(errno))),
        }
    }

    fn serve(&mut self, fault: Waiter, now: Instant, out: &mut dyn Driver) -> Result<(), Ended> {
        match self.try_serve(fault, now, out)? {
            Next::Nothing => {}
            Next::TopUp => self.credits.top_up(&self.vm, now),
            Next::Enqueue => self.waiting.enqueue(&self.vm),
        }
        Ok(())
    }

    /// Notes what the thread of a fault that has waited stands still for now: its page may have another home than
    /// before.
    fn note_cause(&self, mut fault: Waiter, now: Instant) -> Waiter {
        let cause = cause(&self.vm, fault.gfn, fault.access);
        self.vm.stalls.change(&mut fault.stall, cause, now);
        fault
    }

    /// Serves a fault or parks it.
    fn try_serve(
        &mut self,
        mut fault: Waiter,
        now: Instant,
        out: &mut dyn Driver,
    ) -> Result<Next, Ended> {
        // Asked before the page is served: its new home would not tell what was missing.
        let were_missing = Credits::were_missing(&self.vm, fault.gfn, fault.access);
        let outcome = resolve_in_stream(&self.streams, &self.vm, fault.gfn, fault.access);
        match outcome.map_err(|error| Ended::of_fault(&self.vm, fault.gfn, error))? {
            Outcome::Served { .. } => self.answer(fault, Reply::Retry, None, out)?,
            Outcome::Ask(reply, mut pending) => {
                if Seeded::EarlyUnlock.is_sown() {
                    complete(&self.vm, std::mem::take(&mut pending));
                }
                self.answer(fault, reply, Some(pending), out)?;
            }
            Outcome::Busy => {
                self.vm.stats.parked.one();
                self.vm.stalls.change(&mut fault.stall, Cause::Busy, now);
                self.waiting.park_busy(fault, &self.vm.stalls);
                return Ok(Next::Nothing);
            }
            Outcome::Starved => {
                self.starve(fault, now);
                return Ok(Next::Enqueue);
            }
        }
        // After the answer: the thread that asked already runs while credits are granted.
        Ok(if were_missing {
            Next::TopUp
        } else {
            Next::Nothing
        })
    }

    fn answer(
        &mut self,
        fault: Waiter,
        reply: Reply,
        pending: Option<Pending>,
        out: &mut dyn Driver,
    ) -> Result<(), Ended> {
        let now = out.now();
        let took = now.saturating_duration_since(fault.since);
        self.vm.note_latency(took);
        let Asker::Channel(channel) = fault.asker else {
            self.vm.stalls.end(fault.stall, now);
            // Providing the page has woken the thread: a userfault needs no other answer.
            let Some(pending) = pending else {
                return Ok(());
            };
            complete(&self.vm, pending);
            let error = "a userfault on a page without userfaultfd";
            return Err(Ended::Protocol(error.to_owned()));
        };
        self.channels[channel] = match pending {
            Some(pending) => Channel::Confirming(pending, fault.stall),
            None => {
                self.vm.stalls.end(fault.stall, now);
                Channel::Idle
            }
        };
        out.reply(channel, reply)
    }

    fn starve(&mut self, mut fault: Waiter, now: Instant) {
        // Credits that the guest has not used are memory too: it must not wait for pages that it holds itself.
        self.vm.take_back_credits();
        let cause = self.vm.refused(fault.stall.cause());
        self.vm.stalls.change(&mut fault.stall, cause, now);
        self.waiting.park_starved(fault, &self.vm.stalls);
        if !self.vm.parking.is_starved() {
            self.retry = now + STARVED_RETRY;
            self.vm.stats.starved.one();
        }
    }

    /// Serves the faults that wait for memory again, in the order in which they came, with the pages granted for this
    /// turn.
    fn serve_starved(&mut self, now: Instant, out: &mut dyn Driver) -> Result<(), Ended> {
        self.retry = now + STARVED_RETRY;
        if self.waiting.starved().is_none() {
            return Ok(());
        }
        let mut were_missing = false;
        // All are taken out first, because a fault that still gets nothing parks itself again.
        for fault in self.waiting.take_starved() {
            let fault = self.note_cause(fault, now);
            were_missing |= matches!(self.try_serve(fault, now, out)?, Next::TopUp);
        }
        // Once, behind all faults: credits must not take the pages that were granted for a fault that is still to be
        // served.
        if were_missing {
            self.credits.top_up(&self.vm, now);
        }
        // Before the turn ends: otherwise the pages that it gives back could be granted to this VM again.
        self.waiting.enqueue(&self.vm);
        self.vm.end_turn();
        if let Some((count, since)) = self.waiting.starved() {
            self.warn_starved(count, now, since);
        }
        Ok(())
    }

    fn warn_starved(&mut self, count: usize, now: Instant, since: Instant) {
        let waited = now.saturating_duration_since(since);
        if waited < STARVED_WARNING || now.saturating_duration_since(self.warned) < STARVED_WARNING
        {
            return;
        }
        self.warned = now;
        tracing::warn!(
            vm = %self.vm.params.name,
            faults = count,
            waited_s = waited.as_secs(),
            free_pages = self.vm.budget.free().0,
            blocked = self.vm.is_blocked(),
            swap_failing = self.vm.is_swap_failing(),
            "guest threads wait for memory"
        );
    }
}
