//! One VM that is powered on, and how the rest of the daemon reaches it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memvisor_wire::Doorbell;

use super::recent::Recent;
use super::vm_settings::Layered;
use crate::balloon::{AgentProgress, BalloonCounters, GuestStats, Relief, SwapWaits};
use crate::compress::Worth;
use crate::engine::{Link, Ram};
use crate::page::Home;
use crate::reclaim::WorkerHandle;
use crate::settings::{Domain, VmSettings};
use crate::sys::Process;
use crate::units::Pages;
use crate::vm::{Stalled, Vm};

/// How long a guest may owe the answer to a command before nothing is expected of it. A good guest takes a
/// millisecond, or some hundred milliseconds on a busy machine.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// One VM that is powered on.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) vm: Arc<Vm>,
    pub(super) ram: Arc<Ram>,
    pub(super) link: Arc<Link>,
    pub(super) worker: WorkerHandle,
    pub(super) process: Arc<Process>,
    pub(super) balloon: BalloonLine,
    /// Its settings by where they come from.
    pub(super) layered: Mutex<Layered>,
    /// The sharing domain it is in, or on its way to.
    pub(super) domain: Mutex<Domain>,
    /// How much of its compression cache is worth its memory.
    pub(super) worth: Mutex<Worth>,
    /// How fast its counters moved lately, and what else was found.
    pub(super) recent: Mutex<Recent>,
}

/// The host's side of a VM's balloon.
#[derive(Debug)]
pub(super) struct BalloonLine {
    /// What the agent must know to be believed.
    pub(super) token: u64,
    pub(super) doorbell: Doorbell,
    pub(super) counters: BalloonCounters,
    /// The most pages it may hold, by the settings, which may change.
    max: AtomicU64,
    pub(super) connected: AtomicBool,
    pub(super) closing: AtomicBool,
    /// Whether its agent may cause as much work as it likes: in benchmarks alone.
    pub(super) unlimited: AtomicBool,
    /// Pops that the agent has been told of by a reset.
    pub(super) told_pops: AtomicU64,
    progress: Mutex<AgentProgress>,
    waited_for: AtomicBool,
    stats: Mutex<GuestStats>,
    /// Its size, plus what the guest had free beside it, when the guest last reported.
    free: Mutex<Option<Pages>>,
    relief: Mutex<Relief>,
    swap_waits: Mutex<SwapWaits>,
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BalloonLine {
    pub(super) fn new(token: u64, max: Pages, doorbell: Doorbell) -> Self {
        Self {
            token,
            doorbell,
            max: AtomicU64::new(max.0),
            counters: BalloonCounters::default(),
            connected: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            unlimited: AtomicBool::new(false),
            told_pops: AtomicU64::new(0),
            progress: Mutex::default(),
            waited_for: AtomicBool::new(false),
            stats: Mutex::default(),
            free: Mutex::default(),
            relief: Mutex::default(),
            swap_waits: Mutex::default(),
        }
    }

    /// The most pages it may hold.
    pub(super) fn max(&self) -> Pages {
        Pages(self.max.load(Ordering::Relaxed))
    }

    /// Sets the most pages it may hold; returns whether that changed.
    pub(super) fn set_max(&self, max: Pages) -> bool {
        self.max.swap(max.0, Ordering::Relaxed) != max.0
    }

    /// Notes how far it has come. Returns whether it is worth waiting for, if that has changed.
    pub(super) fn note_progress(
        &self,
        now: Instant,
        target: Pages,
        ballooned: Pages,
    ) -> Option<bool> {
        let connected = self.connected.load(Ordering::Relaxed);
        let alive = lock(&self.progress).note(now, connected, target, ballooned);
        let before = self.waited_for.swap(alive, Ordering::Relaxed);
        (alive != before).then_some(alive)
    }

    /// Whether an agent is connected and has lately come closer to its target, or has reached it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// Whether the balloon is below its target and moves.
    pub(super) fn inflates(&self) -> bool {
        lock(&self.progress).inflates()
    }

    /// The pages it can be expected to bring in time; `None`: not known.
    pub(super) fn brings(&self) -> Option<Pages> {
        lock(&self.progress).brings()
    }

    /// Notes what the guest, whose balloon holds `ballooned` pages, says about itself.
    pub(super) fn set_stats(&self, stats: &GuestStats, ballooned: Pages) {
        lock(&self.swap_waits).note(Instant::now(), stats.swap_wait_us);
        let free = stats.free.map(|free| Pages(ballooned.0 + free.pages().0));
        *lock(&self.free) = free;
        lock(&self.stats).clone_from(stats);
    }

    /// The size up to which it takes only pages that its guest has free; `None`: not known.
    pub(super) fn free(&self) -> Option<Pages> {
        *lock(&self.free)
    }

    /// For how long its threads waited for its own swap device lately, in microseconds a second, as the guest says.
    pub(super) fn guest_stall(&self, now: Instant) -> u64 {
        lock(&self.swap_waits).us_per_s(now)
    }

    /// What the guest said about itself last.
    pub(super) fn stats(&self) -> GuestStats {
        *lock(&self.stats)
    }

    /// Notes that the guest asks for `pages` of the `ballooned` pages back.
    pub(super) fn relieve(&self, ballooned: Pages, pages: Pages) {
        lock(&self.relief).ask(Instant::now(), ballooned, pages);
    }

    /// The most pages that the policy may want in the balloon while relief holds.
    pub(super) fn relief(&self) -> Option<Pages> {
        lock(&self.relief).ceiling(Instant::now())
    }
}

impl Member {
    /// Its settings now.
    pub(super) fn settings(&self) -> VmSettings {
        lock(&self.layered).now.clone()
    }

    /// Its settings, by where they come from.
    pub(super) fn layered(&self) -> Layered {
        lock(&self.layered).clone()
    }

    /// Replaces its settings.
    pub(super) fn set_layered(&self, layered: Layered) {
        self.vm.swap.file.set_kept(layered.now.swap_persist);
        *lock(&self.layered) = layered;
    }

    /// The sharing domain it is in, or on its way to.
    pub(super) fn domain(&self) -> Domain {
        lock(&self.domain).clone()
    }

    /// Notes its sharing domain.
    pub(super) fn set_domain(&self, domain: Domain) {
        *lock(&self.domain) = domain;
    }

    /// How much of its compression cache is worth its memory.
    pub(super) fn worth(&self) -> MutexGuard<'_, Worth> {
        lock(&self.worth)
    }

    /// How fast its counters moved lately.
    pub(super) fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }

    /// Ends the VM: tells its guest why; its session thread does the rest.
    pub(super) fn end(&self, why: &str) {
        // First, because whoever finds the link closed looks for the reason.
        self.vm.set_end_reason(why);
        self.balloon.closing.store(true, Ordering::Relaxed);
        self.balloon.doorbell.ring();
        self.link.end(why);
    }

    /// What sampling says it uses, at least `floor_percent` of it.
    pub(super) fn active(&self, floor_percent: u32) -> Option<Pages> {
        let size = Pages(u64::from(self.vm.params.pages));
        self.vm.activity.pages(size, floor_percent)
    }

    /// Whether it is on its way to its end: told so, or its guest is gone.
    pub(super) fn is_ending(&self) -> bool {
        self.balloon.closing.load(Ordering::Relaxed) || self.process.wait(Duration::ZERO)
    }

    /// Whether its guest does not answer.
    pub(super) fn is_silent(&self) -> bool {
        self.link.silence() >= SILENT_AFTER
    }

    /// For how long its threads have stood still.
    pub(super) fn stalled(&self) -> Stalled {
        let now = Instant::now();
        self.vm.stalled(|| self.threads(now), now)
    }

    /// How many threads its guest has, or had within the latest second.
    fn threads(&self, now: Instant) -> u32 {
        // Not in one expression with what follows: that takes the lock again.
        let known = self.recent().threads(now);
        known.unwrap_or_else(|| {
            // Where the kernel does not tell, the guest counts as having one thread.
            let threads = self.process.threads().unwrap_or(1);
            self.recent().note_threads(now, threads);
            threads
        })
    }

    /// Lets its balloon hold at most `pages`.
    pub(super) fn set_balloon_max(&self, pages: Pages) {
        if self.balloon.set_max(pages) {
            self.balloon.doorbell.ring();
        }
    }

    /// The size its balloon is to have, by the policy or by hand: no more than it may hold.
    pub(super) fn balloon_target(&self) -> Pages {
        self.vm.orders.balloon_target().min(self.balloon.max())
    }

    /// Pages in its balloon.
    pub(super) fn ballooned(&self) -> Pages {
        Pages(self.vm.table.count(Home::Ballooned))
    }
}
