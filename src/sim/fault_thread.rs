//! The driver of a simulated guest's fault path, and the line on which its threads report to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::wait_readable;

use super::{AddressSpace, Clock, Spec};
use crate::engine::Reply;
use crate::fault::{Core, Driver, Ended, Event};
use crate::reclaim::WorkerHandle;
use crate::sync::Mutex;
use crate::vm::Vm;

/// The userfaultfd and the fault channels of one guest.
#[derive(Debug, Default)]
pub(super) struct Line {
    events: Mutex<VecDeque<Event>>,
    replies: Mutex<HashMap<usize, Reply>>,
    /// The clock of the fault thread that serves this line.
    pub(super) clock: Clock,
}

impl Line {
    /// Reports that a guest's thread waits for a page in the kernel, or says something over a channel.
    pub(super) fn send(&self, event: Event) {
        self.events.lock().push_back(event);
    }

    /// The reply on a channel, if there is one by now.
    pub(super) fn reply(&self, channel: usize) -> Option<Reply> {
        self.replies.lock().remove(&channel)
    }

    fn receive(&self) -> Option<Event> {
        self.events.lock().pop_front()
    }
}

/// Through this the core reads the time and answers the guest.
impl Driver for Arc<AddressSpace> {
    fn now(&self) -> Instant {
        self.line.clock.now()
    }

    fn reply(&mut self, channel: usize, reply: Reply) -> Result<(), Ended> {
        let unread = self.line.replies.lock().insert(channel, reply);
        assert_eq!(unread, None, "a second reply on channel {channel}");
        Ok(())
    }

    fn history(&mut self, _channel: usize, text: &str) -> Result<(), Ended> {
        panic!("a guest has found wrong bytes; {text}")
    }
}

/// A fault thread without descriptors. Its clock stands still until a test lets time pass, so parked faults are never
/// looked at again by chance: a forgotten wake-up is a fault that waits for ever.
#[derive(Debug)]
pub(super) struct FaultThread {
    pub(super) core: Core,
    vm: Arc<Vm>,
    space: Arc<AddressSpace>,
    /// How long the core takes for each event.
    pub(super) takes: Duration,
}

impl FaultThread {
    /// The fault thread of a guest like this.
    pub(super) fn new(
        vm: &Arc<Vm>,
        space: &Arc<AddressSpace>,
        worker: &WorkerHandle,
        spec: &Spec,
    ) -> Self {
        let (vm, attacher) = (Arc::clone(vm), Box::new(worker.clone()));
        let clock = &space.line.clock;
        // The VM counts its time from when it was made, and it was made after the clock. Without this, the clock would
        // be behind the VM's start.
        clock.pass(clock.now().elapsed());
        let now = clock.now();
        Self {
            core: Core::new(Arc::clone(&vm), spec.threads, attacher, spec.ahead, now),
            vm,
            space: Arc::clone(space),
            takes: Duration::ZERO,
        }
    }

    /// Serves all that waits; whether there was anything.
    pub(super) fn turn(&mut self) -> Result<bool, Ended> {
        let mut busy = false;
        while let Some(event) = self.space.line.receive() {
            busy = true;
            self.handle(event)?;
        }
        if self.is_woken() {
            busy = true;
            self.vm.parking.answer();
            self.handle(Event::Bell)?;
        }
        self.core.tick(self.space.now(), &mut self.space)?;
        Ok(busy)
    }

    fn handle(&mut self, event: Event) -> Result<(), Ended> {
        let read = self.space.now();
        self.space.line.clock.pass(self.takes);
        self.core.handle(event, read, &mut self.space)
    }

    /// Whether its bell rings.
    pub(super) fn is_woken(&self) -> bool {
        let bell = self.vm.parking.bell();
        wait_readable([bell], Some(Duration::ZERO)).expect("an eventfd can be polled") == [true]
    }
}
