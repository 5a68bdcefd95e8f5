//! A host without a policy: guests power on with it as with any other, but only the caller asks anything of them.
//!
//! Benchmarks measure one mechanism at a time, with the product's own session, fault thread, stores and
//! balloon. A policy would move pages meanwhile, so there is none, and a VM's worker neither scans nor
//! samples nor evicts by itself: the caller may do that in its place, with one thread for each VM.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memvisor_wire::system_error::cannot;

use super::capability::Capabilities;
use super::daemon::{GUESTS_GRACE, Host};
use super::error::HostError;
use super::listen::Listeners;
use super::member::Member;
use super::options::HostOptions;
use super::vm_status::session_counts;
use crate::engine::EngineKind;
use crate::reclaim::WorkerHandle;
use crate::runtime_dir::HeldRuntimeDir;
use crate::telemetry::BalloonSessionStatus;
use crate::units::{Bytes, Pages};
use crate::vm::Vm;

/// Bytes of a thread's name that the kernel keeps.
const THREAD_NAME: usize = 15;

/// The host; its guests end when it is dropped.
#[derive(Debug)]
pub struct BareHost {
    host: Arc<Host>,
    listeners: Option<Listeners>,
    _dir: HeldRuntimeDir,
}

impl BareHost {
    /// Starts the host: from here on guests can be powered on.
    ///
    /// # Errors
    /// [`HostError`]; nothing is left behind.
    pub fn start(options: &HostOptions) -> Result<Self, HostError> {
        let held = options.runtime_dir.clone().claim()?;
        held.remove_sockets()?;
        let capabilities = Capabilities::probe(options)?;
        let host = Arc::new(Host::new(options, &capabilities)?);
        let listeners = Listeners::start(&host, held.dir()).map_err(cannot("listen for guests"))?;
        Ok(Self {
            host,
            listeners: Some(listeners),
            _dir: held,
        })
    }

    /// The engine that guests get.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.host.engines.first
    }

    /// The VM called `name`, once its guest is powered on.
    #[must_use]
    pub fn vm(&self, name: &str) -> Option<BareVm> {
        self.host.members.by_name(name).map(BareVm)
    }

    /// Waits at most `timeout` until no guest is left and all memory is back; returns whether that is so.
    #[must_use]
    pub fn wait_until_empty(&self, timeout: Duration) -> bool {
        self.host.members.wait_until_empty(timeout)
    }
}

impl Drop for BareHost {
    fn drop(&mut self) {
        self.host.stop();
        if let Some(listeners) = self.listeners.take() {
            listeners.stop();
        }
        // Guests that do not end are killed by their sessions before this is over.
        let _ = self.host.members.wait_until_empty(GUESTS_GRACE);
    }
}

/// A VM of such a host.
#[derive(Clone, Debug)]
pub struct BareVm(Arc<Member>);

impl BareVm {
    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.0.vm
    }

    /// Its worker.
    #[must_use]
    pub fn worker(&self) -> &WorkerHandle {
        &self.0.worker
    }

    /// Whether its balloon agent is connected.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.0.balloon.connected.load(Ordering::Relaxed)
    }

    /// Asks its balloon to hold `target` pages.
    pub fn set_balloon(&self, target: Pages) {
        self.0.vm.orders.set_manual(Some(target));
        self.0.balloon.doorbell.ring();
    }

    /// Lets its agent and its session move pages as fast as they can.
    pub fn lift_balloon_rate(&self) {
        self.0.balloon.unlimited.store(true, Ordering::Relaxed);
    }

    /// What its balloon's sessions have counted.
    #[must_use]
    pub fn balloon_counts(&self) -> BalloonSessionStatus {
        session_counts(&self.0.balloon.counters)
    }

    /// What its guest says that it has free; `None` until it has said so.
    #[must_use]
    pub fn guest_free(&self) -> Option<Bytes> {
        self.0.balloon.stats().free
    }

    /// What its guest says that it has written to its own swap device; `None` until it has said so.
    #[must_use]
    pub fn guest_paged_out(&self) -> Option<Bytes> {
        self.0.balloon.stats().swap_out
    }

    /// Processor time so far of the threads that serve its balloon: the session's and the worker's.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn balloon_cpu(&self) -> io::Result<Duration> {
        let worker = format!("work-{}", self.0.vm.params.name);
        // The kernel cuts the names of threads.
        let worker = &worker[..worker.floor_char_boundary(THREAD_NAME)];
        let mut total = Duration::ZERO;
        for task in fs::read_dir("/proc/self/task")? {
            let dir = task?.path();
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            if [worker, "balloon-conn"].contains(&name.trim_end()) {
                let text = fs::read_to_string(dir.join("schedstat")).unwrap_or_default();
                let ran = text
                    .split_whitespace()
                    .next()
                    .and_then(|ns| ns.parse().ok());
                total += Duration::from_nanos(ran.unwrap_or(0));
            }
        }
        Ok(total)
    }
}
