//! The VMs that are powered on, and how the rest of the daemon reaches each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::vm_settings::Layered;
use crate::balloon::{AgentProgress, BalloonCounters, Doorbell, GuestStats, Relief};
use crate::engine::{Link, Ram};
use crate::page::Home;
use crate::reclaim::{Job, WorkerHandle};
use crate::settings::{Domain, VmSettings};
use crate::share::Peers;
use crate::sys::Process;
use crate::units::{Gfn, Pages, VmId};
use crate::vm::Vm;

/// How long a guest may owe the answer to a command before nothing is expected of it. A good one takes a
/// millisecond; on a machine that is busy, some hundred.
const MUTE: Duration = Duration::from_secs(1);
/// How long a new guest waits for its name while the VM that has it is ending.
const ENDING: Duration = Duration::from_secs(3);

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
}

/// The host's side of a VM's balloon.
#[derive(Debug)]
pub(super) struct BalloonLine {
    /// What the agent must know to be believed.
    pub(super) token: u64,
    pub(super) doorbell: Doorbell,
    pub(super) counters: BalloonCounters,
    /// The most pages it may hold; the settings say it, and may change.
    max: AtomicU64,
    pub(super) attached: AtomicBool,
    pub(super) closing: AtomicBool,
    /// Pops that the agent has been told of by a reset.
    pub(super) told_pops: AtomicU64,
    progress: Mutex<AgentProgress>,
    waited_for: AtomicBool,
    stats: Mutex<GuestStats>,
    relief: Mutex<Relief>,
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
            attached: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            told_pops: AtomicU64::new(0),
            progress: Mutex::default(),
            waited_for: AtomicBool::new(false),
            stats: Mutex::default(),
            relief: Mutex::default(),
        }
    }

    /// The most pages it may hold.
    pub(super) fn max(&self) -> Pages {
        Pages(self.max.load(Ordering::Relaxed))
    }

    /// Sets the most pages it may hold; whether that changed.
    pub(super) fn set_max(&self, max: Pages) -> bool {
        self.max.swap(max.0, Ordering::Relaxed) != max.0
    }

    /// Looks how far it has come; whether its agent just began or ceased to be worth waiting for.
    pub(super) fn look(&self, now: Instant, target: Pages, ballooned: Pages) -> Option<bool> {
        let attached = self.attached.load(Ordering::Acquire);
        let alive = lock(&self.progress).look(now, attached, target, ballooned);
        let before = self.waited_for.swap(alive, Ordering::Relaxed);
        (alive != before).then_some(alive)
    }

    /// Whether an agent is connected and has come closer to its target lately, or is there.
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

    pub(super) fn set_stats(&self, stats: &GuestStats) {
        lock(&self.stats).clone_from(stats);
    }

    /// What the guest said about itself last.
    pub(super) fn stats(&self) -> GuestStats {
        *lock(&self.stats)
    }

    /// The guest asks for `pages` of the `ballooned` pages back.
    pub(super) fn relieve(&self, ballooned: Pages, pages: Pages) {
        lock(&self.relief).ask(Instant::now(), ballooned, pages);
    }

    /// The most pages that the policy may want in it while relief holds.
    pub(super) fn relief(&self) -> Option<Pages> {
        lock(&self.relief).ceiling(Instant::now())
    }
}

impl Member {
    /// Its settings now.
    pub(super) fn settings(&self) -> VmSettings {
        lock(&self.layered).now.clone()
    }

    /// Its settings by where they come from.
    pub(super) fn layered(&self) -> Layered {
        lock(&self.layered).clone()
    }

    /// Replaces its settings.
    pub(super) fn set_layered(&self, layered: Layered) {
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

    /// Ends the VM: its guest is told why, its session thread does the rest.
    pub(super) fn end(&self, why: &str) {
        self.vm.set_end_reason(why);
        self.balloon.closing.store(true, Ordering::Release);
        self.balloon.doorbell.ring();
        self.link.end(why);
    }

    /// What sampling says it uses, at least `floor_percent` of it.
    pub(super) fn active(&self, floor_percent: u32) -> Option<Pages> {
        let size = Pages(u64::from(self.vm.params.pages));
        self.vm.activity.pages(size, floor_percent)
    }

    /// Whether its guest does not answer.
    pub(super) fn is_mute(&self) -> bool {
        self.link.silence() >= MUTE
    }

    /// The size its balloon shall have, whoever says so: no more than it may hold.
    pub(super) fn balloon_target(&self) -> Pages {
        self.vm.orders.balloon_target().min(self.balloon.max())
    }

    /// Pages in its balloon.
    pub(super) fn ballooned(&self) -> Pages {
        Pages(self.vm.table.count(Home::Ballooned))
    }
}

/// All VMs. Names are taken from the handshake on, before there is a member.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<State>,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    names: Vec<Taken>,
    members: Vec<Arc<Member>>,
}

/// A name that is taken, and what its VM was promised before it runs.
#[derive(Debug)]
struct Taken {
    name: String,
    /// Its size and its reservation.
    promise: Option<(Pages, Pages)>,
}

impl State {
    fn is_taken(&self, name: &str) -> bool {
        self.names.iter().any(|taken| taken.name == name)
    }

    /// Whether a VM of this name runs and is not ending. One in its handshake counts as alive: it
    /// may take as long as its guest likes.
    fn is_alive(&self, name: &str) -> bool {
        let member = self
            .members
            .iter()
            .find(|member| member.vm.params.name == name);
        member.is_none_or(|member| {
            let ended = member.process.wait(Duration::ZERO);
            !ended && !member.balloon.closing.load(Ordering::Acquire)
        })
    }
}

impl Members {
    /// Takes a name for a VM that is being powered on; `None` if it is in use. A name whose VM is just
    /// ending is waited for: a guest is often started again as soon as it has exited.
    pub(super) fn take_name(self: &Arc<Self>, name: &str) -> Option<Name> {
        let is_ending = |state: &mut State| state.is_taken(name) && !state.is_alive(name);
        let waited = self
            .emptied
            .wait_timeout_while(lock(&self.state), ENDING, is_ending);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.is_taken(name) {
            return None;
        }
        state.names.push(Taken {
            name: name.to_owned(),
            promise: None,
        });
        Some(Name {
            members: Arc::clone(self),
            name: name.to_owned(),
        })
    }

    /// The VM runs: from here on its settings say what it is promised.
    pub(super) fn add(&self, member: Arc<Member>) {
        let mut state = lock(&self.state);
        for taken in &mut state.names {
            if taken.name == member.vm.params.name {
                taken.promise = None;
            }
        }
        state.members.push(member);
    }

    /// Size and reservation of the VMs that are admitted and do not run yet.
    pub(super) fn promised(&self) -> Vec<(Pages, Pages)> {
        let state = lock(&self.state);
        state
            .names
            .iter()
            .filter_map(|taken| taken.promise)
            .collect()
    }

    pub(super) fn remove(&self, id: VmId) {
        lock(&self.state)
            .members
            .retain(|member| member.vm.id != id);
    }

    /// All of them, in the order in which they came.
    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        lock(&self.state).members.clone()
    }

    pub(super) fn by_id(&self, id: VmId) -> Option<Arc<Member>> {
        self.find(|member| member.vm.id == id)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Member>> {
        self.find(|member| member.vm.params.name == name)
    }

    pub(super) fn by_token(&self, token: u64) -> Option<Arc<Member>> {
        self.find(|member| member.balloon.token == token)
    }

    fn find(&self, wanted: impl Fn(&Member) -> bool) -> Option<Arc<Member>> {
        lock(&self.state)
            .members
            .iter()
            .find(|member| wanted(member))
            .cloned()
    }

    /// Waits at most `timeout` until no name is taken any more; whether that is so.
    pub(super) fn wait_until_empty(&self, timeout: Duration) -> bool {
        let waited = self
            .emptied
            .wait_timeout_while(lock(&self.state), timeout, |state| !state.names.is_empty());
        waited.is_ok_and(|(_, result)| !result.timed_out())
    }
}

/// A name that is taken; given back when dropped, which is when nothing is left of its VM.
#[derive(Debug)]
pub(super) struct Name {
    members: Arc<Members>,
    name: String,
}

impl Name {
    /// Notes what the VM of this name is promised, until it runs.
    pub(super) fn promise(&self, size: Pages, reservation: Pages) {
        for taken in &mut lock(&self.members.state).names {
            if taken.name == self.name {
                taken.promise = Some((size, reservation));
            }
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.members.state)
            .names
            .retain(|taken| taken.name != self.name);
        self.members.emptied.notify_all();
    }
}

impl Peers for Members {
    fn known_hash(&self, vm: VmId, gfn: Gfn) -> Option<u32> {
        let member = self.by_id(vm)?;
        let table = &member.vm.table;
        table.contains(gfn).then(|| table.known_hash(gfn))?
    }

    fn nudge(&self, vm: VmId, gfn: Gfn) {
        if let Some(member) = self.by_id(vm)
            && !member.worker.suggest(Job::Look(gfn))
        {
            // Its worker is behind: the next pass looks.
            member.vm.table.note_written(gfn);
        }
    }
}
