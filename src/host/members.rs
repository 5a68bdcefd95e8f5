//! The registry of the VMs that are powered on or about to be.
//!
//! A name belongs to a VM from the handshake on, before there is a [`Member`], and until nothing is left
//! of the VM. So there are never two swap files of one name, and no guest is taken for its predecessor.
//! What a VM is promised before it runs is noted with its name; once it runs, its settings say what it is promised.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::member::Member;
use crate::reclaim::Job;
use crate::share::Peers;
use crate::units::{Gfn, Pages, VmId};

/// How long a new guest waits for what an ending VM still has: its name, its memory, its disk space.
const ENDING: Duration = Duration::from_secs(3);

/// The registry: all VMs, and the names that are taken. It has one lock, which is held for a look at the lists or a
/// change of them. The only waits are those for VMs that end, and they release the lock.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<State>,
    emptied: Condvar,
    ids: AtomicU32,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    names: Vec<Taken>,
    members: Vec<Arc<Member>>,
}

/// A name that is taken, and what its VM is promised until it runs.
#[derive(Debug)]
struct Taken {
    name: String,
    promise: Option<Promise>,
}

/// What a VM is promised that does not run yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Promise {
    pub(super) size: Pages,
    pub(super) reservation: Pages,
    /// The resource pool that it is to be in.
    pub(super) pool: String,
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
        member.is_none_or(|member| !member.is_ending())
    }
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Members {
    /// A number that no VM of this host has had.
    pub(super) fn next_id(&self) -> VmId {
        VmId(self.ids.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Ends all VMs, including those that are about to be added: whoever adds a VM asks
    /// [`Members::is_closed`] after that.
    pub(super) fn close(&self, why: &str) {
        // Relaxed: whoever adds a VM takes the lock of `all` before asking. So either `all` has the VM, or its
        // session sees this store.
        self.closed.store(true, Ordering::Relaxed);
        for member in self.all() {
            member.end(why);
        }
    }

    /// Kills the processes of all guests: a guest may keep the thread waiting that should see to its end.
    pub(super) fn kill(&self) {
        for member in self.all() {
            let _ = member.process.kill(Duration::ZERO);
        }
    }

    /// Whether the host is ending.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Takes a name for a VM that is being powered on; `None` if the name is in use. Waits for a name whose VM
    /// is just ending: a guest is often started again as soon as it has exited.
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

    /// Waits until no VM is ending; returns whether any was.
    pub(super) fn await_endings(&self) -> bool {
        let is_any = |state: &mut State| state.members.iter().any(|member| member.is_ending());
        let mut state = lock(&self.state);
        // Asked before the wait, after which nobody may be ending any more.
        let found = is_any(&mut state);
        drop(self.emptied.wait_timeout_while(state, ENDING, is_any));
        found
    }

    /// Adds a VM that runs: from here on its settings say what it is promised.
    pub(super) fn add(&self, member: Arc<Member>) {
        let mut state = lock(&self.state);
        for taken in &mut state.names {
            if taken.name == member.vm.params.name {
                // From here on the snapshot has the VM with its reservation: left here, it would count twice.
                taken.promise = None;
            }
        }
        state.members.push(member);
    }

    /// What the VMs are promised that are admitted and do not run yet, by name.
    pub(super) fn promised(&self) -> Vec<(String, Promise)> {
        let state = lock(&self.state);
        state
            .names
            .iter()
            .filter_map(|taken| Some((taken.name.clone(), taken.promise.clone()?)))
            .collect()
    }

    pub(super) fn remove(&self, id: VmId) {
        lock(&self.state)
            .members
            .retain(|member| member.vm.id != id);
    }

    /// All VMs that run, in the order in which they were added.
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

    /// Waits at most `timeout` until no name is taken any more; returns whether that is so.
    pub(super) fn wait_until_empty(&self, timeout: Duration) -> bool {
        let waited = self
            .emptied
            .wait_timeout_while(lock(&self.state), timeout, |state| !state.names.is_empty());
        waited.is_ok_and(|(_, result)| !result.timed_out())
    }
}

/// A name that is taken. It is given back when this is dropped, which is when nothing is left of its VM.
#[derive(Debug)]
pub(super) struct Name {
    members: Arc<Members>,
    name: String,
}

impl Name {
    /// Notes what the VM of this name is promised, until it runs.
    pub(super) fn promise(&self, promise: Promise) {
        for taken in &mut lock(&self.members.state).names {
            if taken.name == self.name {
                taken.promise = Some(promise);
                return;
            }
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.members.state)
            .names
            .retain(|taken| taken.name != self.name);
        // All, because some wait for this name, some for any VM's end, and some for the last.
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
            && !member.worker.suggest(Job::Nudge(gfn))
        {
            // Its worker is too far behind to take a job: the page is looked at in the next pass instead.
            member.vm.table.note_written(gfn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_taken_once_and_free_again_when_nothing_is_left_of_its_vm() {
        let members = Arc::new(Members::default());
        let name = members.take_name("a").expect("nobody has it");
        assert!(members.take_name("a").is_none(), "it is being powered on");
        let other = members.take_name("b").expect("another");
        assert!(!members.wait_until_empty(Duration::ZERO));
        drop((name, other));
        assert!(members.wait_until_empty(Duration::ZERO));
        assert!(members.take_name("a").is_some());
    }

    #[test]
    fn promise_counts_from_admission_until_the_name_is_given_back() {
        let members = Arc::new(Members::default());
        let name = members.take_name("a").expect("nobody has it");
        assert_eq!(members.promised(), [], "nothing was promised yet");
        let promise = Promise {
            size: Pages(100),
            reservation: Pages(10),
            pool: "root".to_owned(),
        };
        name.promise(promise.clone());
        assert_eq!(members.promised(), [("a".to_owned(), promise)]);
        drop(name);
        assert_eq!(members.promised(), []);
    }

    #[test]
    fn ids_are_never_used_twice_and_begin_at_one() {
        let members = Members::default();
        assert_eq!([VmId(1), VmId(2)], [members.next_id(), members.next_id()]);
    }

    #[test]
    fn registry_that_is_closed_says_so() {
        let members = Members::default();
        assert!(!members.is_closed());
        members.close("the host shuts down");
        assert!(members.is_closed());
    }
}
