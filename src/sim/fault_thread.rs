//! The driver of a simulated guest's fault path, and the line on which its threads report to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_guest_agent::shim::wait_readable;

use super::{AddressSpace, Spec};
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
}

impl Line {
    /// A guest's thread waits for a page in the kernel, or says something over a channel.
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

/// Where the core reads the time and answers.
#[derive(Debug)]
struct SimDriver {
    space: Arc<AddressSpace>,
    now: Instant,
}

impl Driver for SimDriver {
    fn now(&self) -> Instant {
        self.now
    }

    fn reply(&mut self, channel: usize, reply: Reply) -> Result<(), Ended> {
        let unread = self.space.line.replies.lock().insert(channel, reply);
        assert_eq!(unread, None, "a second reply on channel {channel}");
        Ok(())
    }

    fn history(&mut self, _channel: usize, text: &str) -> Result<(), Ended> {
        panic!("a guest has found wrong bytes; {text}")
    }
}

/// A fault thread without descriptors. Its clock stands still until it is told that time has passed, so nothing that was
/// parked is looked at again by chance: a wake-up that is forgotten is a fault that waits for ever.
#[derive(Debug)]
pub(super) struct FaultThread {
    pub(super) core: Core,
    vm: Arc<Vm>,
    driver: SimDriver,
    /// How long the core is at each event.
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
        let (attacher, now) = (Box::new(worker.clone()), Instant::now());
        let (vm, space) = (Arc::clone(vm), Arc::clone(space));
        Self {
            core: Core::new(Arc::clone(&vm), spec.threads, attacher, spec.ahead, now),
            vm,
            driver: SimDriver { space, now },
            takes: Duration::ZERO,
        }
    }

    /// Serves what there is to serve; whether there was anything.
    pub(super) fn turn(&mut self) -> Result<bool, Ended> {
        let mut busy = false;
        while let Some(event) = self.driver.space.line.receive() {
            busy = true;
            self.handle(event)?;
        }
        if self.is_called() {
            busy = true;
            self.vm.parking.answer();
            self.handle(Event::Bell)?;
        }
        self.tick()?;
        Ok(busy)
    }

    fn handle(&mut self, event: Event) -> Result<(), Ended> {
        let read = self.driver.now;
        self.pass(self.takes);
        self.core.handle(event, read, &mut self.driver)
    }

    fn tick(&mut self) -> Result<(), Ended> {
        self.core.tick(self.driver.now, &mut self.driver)
    }

    /// Whether its bell rings.
    pub(super) fn is_called(&self) -> bool {
        let bell = self.vm.parking.bell();
        wait_readable([bell], Some(Duration::ZERO)).expect("an eventfd can be polled") == [true]
    }

    /// A while passes.
    pub(super) fn rest(&mut self) -> Result<(), Ended> {
        self.pass(Duration::from_secs(1));
        self.tick()
    }

    /// Time passes in which nothing is done.
    pub(super) fn pass(&mut self, time: Duration) {
        self.driver.now += time;
    }

    /// The time.
    pub(super) const fn now(&self) -> Instant {
        self.driver.now
    }
}
