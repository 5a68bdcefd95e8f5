//! A host without guests: the daemon's balloon session on a page table that is a set of numbers.
//!
//! It is for people who write agents. What the policy, other guests and a touch of a page cause in a daemon is caused here
//! by [`Change`]s, by hand or by a [`Schedule`](super::schedule::Schedule).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use memvisor_wire::Doorbell;
use memvisor_wire::balloon::{PageStatus, Start, StatusRun};

use super::schedule::Change;
use crate::balloon::{BalloonCounters, BalloonHost, BalloonVm, GuestStats, Refusal, Relief, Tap};
use crate::units::{Gfn, GfnRun, Pages, VmId};

/// The number of the only VM.
const VM: VmId = VmId(1);

/// Makes the ears of a new session.
pub type MakeTap = Box<dyn Fn() -> Option<Box<dyn Tap>> + Send + Sync>;

/// A host of one VM.
pub struct Alone {
    token: u64,
    total: u64,
    state: Mutex<State>,
    doorbell: Doorbell,
    counters: BalloonCounters,
    taps: MakeTap,
}

impl std::fmt::Debug for Alone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alone").finish_non_exhaustive()
    }
}

struct State {
    balloon: BTreeSet<u32>,
    target: u64,
    max: u64,
    /// How many pages, from the first on, are busy.
    busy: u64,
    popped: bool,
    closing: bool,
    connected: bool,
    short: bool,
    relief: Relief,
}

impl Alone {
    /// A host whose VM has `total` pages, of which its balloon may hold `max`.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(token: u64, total: Pages, max: Pages, taps: MakeTap) -> std::io::Result<Self> {
        Ok(Self {
            token,
            total: total.0,
            state: Mutex::new(State {
                balloon: BTreeSet::new(),
                target: 0,
                max: max.0.min(total.0),
                busy: 0,
                popped: false,
                closing: false,
                connected: false,
                short: false,
                relief: Relief::default(),
            }),
            doorbell: Doorbell::new()?,
            counters: BalloonCounters::default(),
            taps,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages in the balloon.
    #[must_use]
    pub fn locked(&self) -> u64 {
        self.state().balloon.len() as u64
    }

    /// Makes something happen.
    pub fn apply(&self, change: Change) {
        let mut state = self.state();
        match change {
            Change::Target(pages) => state.target = pages.0,
            Change::BalloonMax(pages) => state.max = pages.0.min(self.total),
            Change::Busy(pages) => state.busy = pages.0,
            Change::Reset => state.popped = true,
            Change::Short(short) => state.short = short,
            Change::Close => state.closing = true,
        }
        drop(state);
        self.doorbell.ring();
    }
}

impl BalloonHost for Alone {
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal> {
        let mut state = self.state();
        if start.token != self.token {
            return Err(Refusal::UnknownToken);
        }
        if state.max == 0 {
            return Err(Refusal::Disabled(VM));
        }
        if start.total_pages > self.total {
            return Err(Refusal::TooLarge {
                vm: VM,
                claimed: start.total_pages,
                actual: self.total,
            });
        }
        if std::mem::replace(&mut state.connected, true) {
            return Err(Refusal::Taken(VM));
        }
        Ok(Box::new(OneVm(self)))
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        (self.taps)()
    }
}

/// The VM, held by one session.
struct OneVm<'h>(&'h Alone);

impl Drop for OneVm<'_> {
    fn drop(&mut self) {
        self.0.state().connected = false;
    }
}

fn each(runs: &[GfnRun], mut status: impl FnMut(u32) -> PageStatus) -> Vec<StatusRun> {
    let gfns = runs.iter().flat_map(|run| run.iter());
    let page = |gfn: Gfn| StatusRun {
        run: GfnRun::single(gfn),
        status: status(gfn.0),
    };
    gfns.map(page).collect()
}

impl BalloonVm for OneVm<'_> {
    fn id(&self) -> VmId {
        VM
    }

    fn total_pages(&self) -> u64 {
        self.0.total
    }

    fn balloon_max(&self) -> u64 {
        self.0.state().max
    }

    fn target(&self) -> u64 {
        let state = self.0.state();
        let ceiling = state.relief.ceiling(Instant::now());
        ceiling.map_or(state.target, |ceiling| ceiling.0.min(state.target))
    }

    fn locked(&self) -> u64 {
        self.0.locked()
    }

    fn holds(&self, gfn: Gfn) -> bool {
        self.0.state().balloon.contains(&gfn.0)
    }

    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let state = &mut *self.0.state();
        each(runs, |gfn| match gfn {
            busy if u64::from(busy) < state.busy => PageStatus::Busy,
            gfn if state.balloon.insert(gfn) => PageStatus::Ok,
            _ => PageStatus::AlreadyLocked,
        })
    }

    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let state = &mut *self.0.state();
        each(runs, |gfn| match gfn {
            busy if u64::from(busy) < state.busy => PageStatus::Busy,
            gfn if state.balloon.remove(&gfn) => PageStatus::Ok,
            _ => PageStatus::NotLocked,
        })
    }

    fn release_all(&self) {
        self.0.state().balloon.clear();
    }

    fn take_reset(&self) -> bool {
        std::mem::take(&mut self.0.state().popped)
    }

    fn is_closing(&self) -> bool {
        self.0.state().closing
    }

    fn report(&self, _stats: &GuestStats) {}

    fn relief(&self, pages: u64) {
        let mut state = self.0.state();
        if !state.short {
            let ballooned = Pages(state.balloon.len() as u64);
            state.relief.ask(Instant::now(), ballooned, Pages(pages));
        }
    }

    fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }

    fn counters(&self) -> &BalloonCounters {
        &self.0.counters
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use memvisor_wire::SeqPacket;
    use memvisor_wire::balloon::{Capabilities, MAX_MESSAGE_BYTES, ToHost};

    use super::*;
    use crate::balloon::serve;
    use crate::laboratory::said::Said;
    use crate::laboratory::tape::Side;

    struct Notes(Arc<Mutex<Vec<String>>>);

    impl Notes {
        fn note(&self, text: String) {
            self.0.lock().expect("no panic").push(text);
        }
    }

    impl Tap for Notes {
        fn received(&mut self, datagram: &[u8]) {
            let said = Said::decode(Side::Agent, datagram).expect("a message");
            self.note(format!("> {}", said.name));
        }
        fn sent(&mut self, datagram: &[u8]) {
            let said = Said::decode(Side::Host, datagram).expect("a message");
            self.note(format!("< {}", said.name));
        }
        fn ended(&mut self, why: &str) {
            self.note(format!("ended: {why}"));
        }
    }

    fn start(token: u64) -> Vec<u8> {
        let start = Start {
            min_version: 1,
            max_version: 1,
            capabilities: Capabilities::empty(),
            token,
            total_pages: 100,
            name: String::new(),
        };
        ToHost::Start(start).encode(1)
    }

    /// Says each of these and hears what comes; what a tap has heard.
    fn heard(says: &[Vec<u8>]) -> Vec<String> {
        let notes = Arc::default();
        let theirs = Arc::clone(&notes);
        let taps = move || Some(Box::new(Notes(Arc::clone(&theirs))) as Box<dyn Tap>);
        let host = Alone::new(7, Pages(100), Pages(100), Box::new(taps)).expect("a doorbell");
        let (ours, agent) = SeqPacket::pair().expect("a pair");
        thread::scope(|scope| {
            // It ends with an error or not; the tap is told which.
            let session = scope.spawn(|| drop(serve(&ours, &host, Duration::from_secs(1))));
            for datagram in says {
                agent.send(datagram).expect("it listens");
                agent.recv(&mut [0; MAX_MESSAGE_BYTES]).expect("it answers");
            }
            drop(agent);
            session.join().expect("no panic");
        });
        drop(host);
        let notes: &Mutex<Vec<String>> = &notes;
        notes.lock().expect("no panic").clone()
    }

    #[test]
    fn tap_hears_both_sides_in_order_and_how_it_ended() {
        let twice = "ended: START came again without a RESET";
        let expected = ["> START", "< STARTED", "> START", "< ERROR", twice];
        assert_eq!(heard(&[start(7), start(7)]), expected);
        let stop = ToHost::Stop.encode(2);
        let expected = [
            "> START",
            "< STARTED",
            "> STOP",
            "< STOPPED",
            "ended: the agent said STOP",
        ];
        assert_eq!(heard(&[start(7), stop]), expected);
        let unknown = "ended: no VM has the token of this START";
        assert_eq!(heard(&[start(8)]), ["> START", "< ERROR", unknown]);
    }
}
