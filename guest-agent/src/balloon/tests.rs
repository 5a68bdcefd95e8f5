use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use memvisor_wire::balloon::{
    BatchResult, Capabilities, ErrorCode, MAX_MESSAGE_BYTES, MAX_RANGES, PageStatus, Protocol,
    Started, Stat, StatTag, StatusRun, ToAgent, ToHost, Wanted,
};
use memvisor_wire::{Gfn, GfnRun, Received, RunsExt, runs_of};

use super::*;

/// Far more than anything here takes; only a test of a broken agent waits this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// A poll interval that never ends within a test: all that happens is caused by the script.
const NO_POLL: u32 = 3_600_000;
const FAST_POLL: u32 = 2;
/// The maximum that every host of these tests names for the balloon.
const MAX_AT_START: u64 = 2500;

/// A guest with `free` pages that cost nothing and `cached` ones that must be reclaimed.
struct FakeGuest {
    state: Mutex<GuestState>,
    changed: Condvar,
}

#[derive(Default)]
struct GuestState {
    free: BTreeSet<u32>,
    cached: BTreeSet<u32>,
    pinned: BTreeSet<u32>,
    released: u64,
    /// Pages that the host has dropped, as far as the agent says.
    dropped: BTreeSet<u32>,
    wrong: Vec<GfnRun>,
}

impl FakeGuest {
    fn new(free: u32, cached: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(GuestState {
                free: (0..free).collect(),
                cached: (free..free + cached).collect(),
                ..GuestState::default()
            }),
            changed: Condvar::new(),
        })
    }

    fn pinned(&self) -> u64 {
        self.state.lock().unwrap().pinned.len() as u64
    }

    fn wait_for_pinned(&self, pages: u64) {
        let state = self.state.lock().unwrap();
        let other = |state: &mut GuestState| state.pinned.len() as u64 != pages;
        let (state, timeout) = self
            .changed
            .wait_timeout_while(state, PATIENCE, other)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "{} pages stay pinned",
            state.pinned.len()
        );
    }
}

impl PageSource for FakeGuest {
    fn total_pages(&self) -> u64 {
        1 << 16
    }

    fn allocate(&self, max: u32, may_reclaim: bool) -> Vec<GfnRun> {
        let mut state = self.state.lock().unwrap();
        let mut pages = Vec::new();
        while pages.len() < max as usize {
            let page = match state.free.pop_first() {
                None if may_reclaim => state.cached.pop_first(),
                page => page,
            };
            let Some(page) = page else { break };
            state.pinned.insert(page);
            pages.push(Gfn(page));
        }
        self.changed.notify_all();
        runs_of(pages)
    }

    fn release(&self, runs: &[GfnRun]) {
        let state = &mut *self.state.lock().unwrap();
        for &run in runs {
            for gfn in run.iter() {
                if !state.pinned.remove(&gfn.0) {
                    state.wrong.push(GfnRun::single(gfn));
                }
                state.free.insert(gfn.0);
            }
        }
        state.released += runs.pages();
        self.changed.notify_all();
    }

    fn free_pages(&self) -> Option<&dyn FreePages> {
        Some(self)
    }

    fn stats(&self) -> Vec<Stat> {
        vec![Stat::new(
            StatTag::FREE_MEMORY,
            4096 * self.state.lock().unwrap().free.len() as u64,
        )]
    }
}

impl FreePages for FakeGuest {
    fn list(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>) {
        let state = self.state.lock().unwrap();
        let wanted = |page: &&u32| !fresh || !state.dropped.contains(page);
        let pages = state.free.range(from.0..).filter(wanted).copied();
        let listed: Vec<Gfn> = pages.take(max as usize).map(Gfn).collect();
        let next = listed.last().filter(|_| listed.len() == max as usize);
        let next = next.map(|last| Gfn(last.0 + 1));
        (runs_of(listed), next)
    }

    fn pin(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        let mut state = self.state.lock().unwrap();
        let pages = runs.iter().flat_map(|run| run.iter());
        let free: Vec<Gfn> = pages.filter(|gfn| state.free.remove(&gfn.0)).collect();
        state.pinned.extend(free.iter().map(|gfn| gfn.0));
        runs_of(free)
    }

    fn dropped(&self, runs: &[GfnRun]) {
        let pages = runs.iter().flat_map(|run| run.iter());
        let mut state = self.state.lock().unwrap();
        state.dropped.extend(pages.map(|gfn| gfn.0));
    }

    fn reclaim(&self, _max: u32) -> u32 {
        0
    }

    fn show(&self, _map: OwnedFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn settle(&self) -> Settled {
        Settled::default()
    }

    fn hide(&self) {}
}

/// An agent on a fake guest, whose connections end at [`ScriptedHost`]s.
struct Rig {
    guest: Arc<FakeGuest>,
    agent: Agent,
    dialled: Sender<SeqPacket>,
}

impl Rig {
    fn new(free: u32, cached: u32) -> Self {
        Self::on(FakeGuest::new(free, cached), Protocol::Ranges)
    }

    fn on(guest: Arc<FakeGuest>, protocol: Protocol) -> Self {
        let (dialled, sockets) = channel::<SeqPacket>();
        let dial = move || {
            let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
            sockets.try_recv().map_err(refused)
        };
        let settings = AgentSettings {
            token: 77,
            name: "rig".into(),
            protocol,
            is_paced: true,
        };
        let source: Arc<dyn PageSource> = Arc::<FakeGuest>::clone(&guest);
        let agent = Agent::start(settings, source, dial).unwrap();
        Self {
            guest,
            agent,
            dialled,
        }
    }

    /// The agent's next connection, before its `START`.
    fn host(&self) -> ScriptedHost {
        let (ours, theirs) = SeqPacket::pair().unwrap();
        self.dialled.send(theirs).unwrap();
        ScriptedHost(ours)
    }

    /// The agent's next connection, after its `START` and with its first poll answered.
    fn polled(&self, target: u64) -> ScriptedHost {
        let host = self.host();
        host.welcome(NO_POLL);
        host.answer_poll(0, target);
        host
    }

    /// Stops the agent while `host` answers, and checks that the guest has all pages back.
    fn stop(self, host: &ScriptedHost) {
        let Self { guest, agent, .. } = self;
        thread::scope(|scope| {
            scope.spawn(|| drop(agent));
            let (seq, message) = host.next();
            assert_eq!(message, ToHost::Stop);
            assert_eq!(
                guest.state.lock().unwrap().wrong,
                [],
                "released without being pinned"
            );
            host.say(seq, &ToAgent::Stopped);
        });
        assert_eq!(guest.pinned(), 0);
    }
}

fn started(poll_interval_ms: u32) -> Started {
    Started {
        capabilities: Capabilities::COMMON,
        vm: 1,
        poll_interval_ms,
        max_ranges: 16,
        balloon_max: MAX_AT_START,
    }
}

/// The host's end of a connection, driven by hand.
struct ScriptedHost(SeqPacket);

impl ScriptedHost {
    fn next(&self) -> (u32, ToHost) {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match self.0.recv_timeout(&mut buffer, PATIENCE).unwrap() {
            Some(Received::Message { len }) => ToHost::decode(&buffer[..len]).unwrap(),
            other => panic!("no message: {other:?}"),
        }
    }

    fn say(&self, seq: u32, message: &ToAgent) {
        self.0.send(&message.encode(seq)).unwrap();
    }

    fn ring(&self, pages: u64) {
        self.say(0, &ToAgent::Target { pages });
    }

    fn welcome(&self, poll_interval_ms: u32) {
        self.welcome_by(Protocol::Ranges, poll_interval_ms);
    }

    fn welcome_by(&self, protocol: Protocol, poll_interval_ms: u32) {
        let (seq, ToHost::Start(start)) = self.next() else {
            panic!("no START");
        };
        assert_eq!((start.token, start.name.as_str()), (77, "rig"));
        let started = Started {
            capabilities: Capabilities::COMMON | protocol.capabilities(),
            ..started(poll_interval_ms)
        };
        self.say(seq, &ToAgent::Started(started));
    }

    /// Expects `STATS` and `GET_TARGET` with this balloon.
    fn answer_poll(&self, balloon: u64, target: u64) {
        let (_, stats) = self.next();
        assert!(matches!(stats, ToHost::Stats(_)), "{stats:?}");
        let (seq, poll) = self.next();
        let expected = ToHost::GetTarget {
            total_pages: 1 << 16,
            balloon_pages: balloon,
        };
        assert_eq!(poll, expected);
        self.say(seq, &ToAgent::Target { pages: target });
    }

    /// Answers one `LOCK` or `UNLOCK` with `status` for every page. Returns the number of pages.
    fn answer_batch(&self, status: PageStatus, target: u64) -> u64 {
        let (seq, message) = self.next();
        let (ToHost::Lock(batch) | ToHost::Unlock(batch)) = &message else {
            panic!("no batch: {message:?}");
        };
        assert!(batch.runs().len() <= 16, "more ranges than the host takes");
        let runs = batch.runs().iter().map(|&run| StatusRun { run, status });
        let result = BatchResult {
            target,
            runs: runs.collect(),
        };
        let reply = match message {
            ToHost::Lock(_) => ToAgent::LockResult(result),
            _ => ToAgent::UnlockResult(result),
        };
        self.say(seq, &reply);
        batch.pages()
    }

    /// Answers batches with `OK` until `pages` pages have been moved.
    fn grant(&self, pages: u64, target: u64) {
        let mut moved = 0;
        while moved < pages {
            moved += self.answer_batch(PageStatus::Ok, target);
        }
        assert_eq!(moved, pages);
    }

    /// Shows that the agent has nothing to do at `target`, which is at least its balloon: it sends only
    /// the two messages that its guest makes it send. After the first answer it has certainly seen all
    /// that the host said before, and it sends the second message after it has acted on that.
    fn assert_idle(&self, rig: &Rig, target: u64) {
        for _ in 0..2 {
            thread::scope(|scope| {
                let asked = scope.spawn(|| rig.agent.relieve(1, PATIENCE));
                let (seq, message) = self.next();
                assert_eq!(message, ToHost::Relief { pages: 1 });
                self.say(seq, &ToAgent::Target { pages: target });
                assert_eq!(asked.join().unwrap(), 0);
            });
        }
    }
}

#[test]
fn inflate_reaches_the_target_and_stops_there() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(9000);
    host.grant(9000, 9000);
    host.assert_idle(&rig, 9000);
    assert_eq!(rig.guest.pinned(), 9000);
    rig.stop(&host);
}

#[test]
fn doorbell_inflates_and_deflates_without_a_poll() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(0);
    host.ring(3000);
    host.grant(3000, 3000);
    host.ring(1000);
    host.grant(2000, 1000);
    rig.guest.wait_for_pinned(1000);
    host.ring(0);
    host.grant(1000, 0);
    rig.guest.wait_for_pinned(0);
    rig.stop(&host);
}

/// A regression: the target fell by the answer to a `LOCK`, so no doorbell followed, and the agent, which
/// had just inflated, slept until the next poll.
#[test]
fn target_that_turns_in_a_reply_is_followed_at_once() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 1000);
    host.grant(2000, 1500);
    host.grant(500, 1500);
    rig.guest.wait_for_pinned(1500);
    rig.stop(&host);
}

#[test]
fn target_a_little_lower_moves_no_page_unless_it_is_zero() {
    let rig = Rig::new(20_000, 0);
    let host = rig.host();
    host.welcome(FAST_POLL);
    host.answer_poll(0, 500);
    host.grant(500, 500);
    host.answer_poll(500, 1);
    host.answer_poll(500, 0);
    host.grant(500, 0);
    drop(host);
    rig.guest.wait_for_pinned(0);
}

/// The maximum may have been raised since `STARTED`, and the host keeps its targets within it.
#[test]
fn target_above_the_maximum_of_the_start_is_followed() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(2 * MAX_AT_START);
    host.grant(2 * MAX_AT_START, 2 * MAX_AT_START);
    rig.stop(&host);
}

#[test]
fn agent_that_was_refused_comes_again() {
    let rig = Rig::new(20_000, 0);
    for _ in 0..2 {
        let host = rig.host();
        assert!(matches!(host.next(), (_, ToHost::Start(_))));
        let refused = ToAgent::Error {
            code: ErrorCode::Refused,
            text: "ballooning is disabled".into(),
        };
        host.say(0, &refused);
    }
    let host = rig.polled(500);
    host.grant(500, 500);
    rig.stop(&host);
}

#[test]
fn window_bounds_what_is_inflated_between_two_polls() {
    let rig = Rig::new(40_000, 0);
    let host = rig.polled(30_000);
    host.grant(16_384, 30_000);
    host.ring(30_001);
    host.assert_idle(&rig, 30_001);
    rig.stop(&host);
}

#[test]
fn shortage_turns_to_reclaim_at_the_slow_rate() {
    let rig = Rig::new(100, 10_000);
    let host = rig.polled(9000);
    host.grant(100, 9000);
    host.grant(2048 - 100, 9000);
    host.assert_idle(&rig, 9000);
    assert_eq!(rig.guest.pinned(), 2048);
    rig.stop(&host);
}

#[test]
fn refused_pages_go_back_and_sixteen_end_the_window() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(5);
    host.grant(5, 15);
    assert_eq!(host.answer_batch(PageStatus::Busy, 15), 10);
    assert_eq!(host.answer_batch(PageStatus::NotNeeded, 15), 10);
    rig.guest.wait_for_pinned(5);
    host.ring(16);
    host.assert_idle(&rig, 16);
    assert_eq!(rig.guest.state.lock().unwrap().released, 20);
    rig.stop(&host);
}

#[test]
fn pages_that_the_host_has_already_stay_pinned_until_they_are_unlocked() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(10);
    assert_eq!(host.answer_batch(PageStatus::AlreadyLocked, 10), 10);
    host.assert_idle(&rig, 10);
    assert_eq!(rig.guest.pinned(), 10);
    host.ring(0);
    assert_eq!(host.answer_batch(PageStatus::Ok, 0), 10);
    rig.guest.wait_for_pinned(0);
    rig.stop(&host);
}

#[test]
fn deflate_keeps_what_the_host_keeps() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    host.ring(1000);
    assert_eq!(host.answer_batch(PageStatus::Busy, 1000), 2000);
    host.assert_idle(&rig, 3000);
    assert_eq!(rig.guest.pinned(), 3000, "not unlocked, not released");
    rig.stop(&host);
}

#[test]
fn deflate_releases_pages_the_host_never_locked() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    host.ring(0);
    assert_eq!(host.answer_batch(PageStatus::NotLocked, 0), 3000);
    rig.guest.wait_for_pinned(0);
    rig.stop(&host);
}

#[test]
fn reset_releases_all_without_unlock_and_starts_again() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    host.say(0, &ToAgent::Reset);
    host.welcome(NO_POLL);
    assert_eq!(rig.guest.pinned(), 0, "released before START");
    host.answer_poll(0, 500);
    host.grant(500, 500);
    rig.stop(&host);
}

#[test]
fn reset_in_place_of_a_reply_releases_the_pages_in_flight() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    let (seq, lock) = host.next();
    assert!(matches!(lock, ToHost::Lock(_)));
    host.say(seq, &ToAgent::Reset);
    host.welcome(NO_POLL);
    assert_eq!(rig.guest.pinned(), 0);
    host.answer_poll(0, 0);
    rig.stop(&host);
}

#[test]
fn lost_host_releases_all_and_is_dialled_again() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    drop(host);
    rig.guest.wait_for_pinned(0);
    let host = rig.polled(200);
    host.grant(200, 200);
    rig.stop(&host);
}

#[test]
fn pages_of_a_lock_without_an_answer_stay_pinned_until_a_host_has_done_with_it() {
    let rig = Rig::new(20_000, 0);
    let silent = rig.polled(300);
    let (_, lock) = silent.next();
    assert!(matches!(lock, ToHost::Lock(_)), "{lock:?}");
    // Dialled when the agent has given up the silent host, which may still read the LOCK.
    let next = rig.host();
    let (seq, start) = next.next();
    assert!(matches!(start, ToHost::Start(_)), "{start:?}");
    assert_eq!(rig.guest.pinned(), 300);
    next.say(seq, &ToAgent::Started(started(NO_POLL)));
    rig.guest.wait_for_pinned(0);
    next.answer_poll(0, 0);
    rig.stop(&next);
}

#[test]
fn error_and_nonsense_from_the_host_release_all() {
    let refused = ToAgent::Error {
        code: ErrorCode::Closing,
        text: "going away".into(),
    };
    for datagram in [
        refused.encode(0),
        vec![1, 2, 3],
        vec![0; MAX_MESSAGE_BYTES + 1],
        ToAgent::Stopped.encode(0),
        ToAgent::Target { pages: 1 }.encode(12_345),
    ] {
        let rig = Rig::new(20_000, 0);
        let host = rig.polled(300);
        host.grant(300, 300);
        host.0.send(&datagram).unwrap();
        rig.guest.wait_for_pinned(0);
        drop(rig.agent);
    }
}

#[test]
fn statuses_of_other_pages_are_not_believed() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(300);
    let (seq, _) = host.next();
    let result = BatchResult {
        target: 300,
        runs: vec![StatusRun {
            run: GfnRun::new(Gfn(0), 299),
            status: PageStatus::Ok,
        }],
    };
    host.say(seq, &ToAgent::LockResult(result));
    rig.guest.wait_for_pinned(0);
}

#[test]
fn relief_deflates_at_once_and_says_how_much_came_back() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    thread::scope(|scope| {
        let asked = scope.spawn(|| rig.agent.relieve(100, PATIENCE));
        let (seq, message) = host.next();
        assert_eq!(message, ToHost::Relief { pages: 100 });
        host.say(seq, &ToAgent::Target { pages: 2900 });
        assert_eq!(
            host.answer_batch(PageStatus::Ok, 2900),
            100,
            "below the usual gap"
        );
        assert_eq!(asked.join().unwrap(), 100);
    });
    assert_eq!(rig.guest.pinned(), 2900);
    rig.stop(&host);
}

#[test]
fn relief_that_the_host_denies_is_zero() {
    let rig = Rig::new(20_000, 0);
    let host = rig.polled(3000);
    host.grant(3000, 3000);
    thread::scope(|scope| {
        let asked = scope.spawn(|| rig.agent.relieve(100, PATIENCE));
        let (seq, _) = host.next();
        host.say(seq, &ToAgent::Target { pages: 3000 });
        assert_eq!(asked.join().unwrap(), 0);
    });
    rig.stop(&host);
}

#[test]
fn relief_without_a_host_or_a_balloon_returns_at_once() {
    let rig = Rig::new(20_000, 0);
    let before = Instant::now();
    assert_eq!(rig.agent.relieve(5, PATIENCE), 0);
    let host = rig.polled(0);
    assert_eq!(rig.agent.relieve(5, PATIENCE), 0);
    assert!(before.elapsed() < PATIENCE);
    rig.stop(&host);
}

#[test]
fn polls_carry_statistics_and_the_size_of_the_balloon() {
    let rig = Rig::new(20_000, 0);
    let host = rig.host();
    host.welcome(FAST_POLL);
    host.answer_poll(0, 40);
    host.grant(40, 40);
    host.answer_poll(40, 40);
    host.answer_poll(40, 40);
    drop(host);
    rig.guest.wait_for_pinned(0);
}

/// A guest whose free pages are single ones, more of them than one message has ranges for.
fn scattered() -> Arc<FakeGuest> {
    let guest = FakeGuest::new(6 * MAX_RANGES as u32, 0);
    guest
        .state
        .lock()
        .unwrap()
        .free
        .retain(|page| page % 2 == 0);
    guest
}

#[test]
fn pages_behind_a_report_that_failed_are_not_kept() {
    let rig = Rig::on(scattered(), Protocol::Reporting);
    let host = rig.host();
    host.welcome_by(Protocol::Reporting, NO_POLL);
    host.answer_poll(0, 0);
    let (seq, first) = host.next();
    let ToHost::Report(batch) = first else {
        panic!("no REPORT: {first:?}");
    };
    assert_eq!(batch.runs().len(), MAX_RANGES);
    assert_eq!(rig.guest.pinned(), 3 * MAX_RANGES as u64);
    host.say(seq, &ToAgent::Reported);
    let (seq, second) = host.next();
    assert!(matches!(second, ToHost::Report(_)), "{second:?}");
    // Something else than the answer: the agent leaves.
    host.say(seq, &ToAgent::Stopped);
    rig.guest.wait_for_pinned(0);
    let state = rig.guest.state.lock().unwrap();
    assert_eq!(state.wrong, []);
    assert_eq!(state.dropped.len(), MAX_RANGES);
}

#[test]
fn pages_behind_hints_that_failed_are_not_kept() {
    let rig = Rig::on(FakeGuest::new(6 * MAX_RANGES as u32, 0), Protocol::Hints);
    let host = rig.host();
    host.welcome_by(Protocol::Hints, NO_POLL);
    host.answer_poll(0, 4096);
    let (seq, offer) = host.next();
    let ToHost::Offer(offered) = offer else {
        panic!("no OFFER: {offer:?}");
    };
    // The guest begins to use every other page, which cuts what it gives into more ranges than a message has.
    rig.guest
        .state
        .lock()
        .unwrap()
        .free
        .retain(|page| page % 2 == 0);
    let wanted = Wanted {
        epoch: 1,
        missing: 4096,
        ranges: offered.runs().to_vec(),
    };
    host.say(seq, &ToAgent::Wanted(wanted));
    let (seq, give) = host.next();
    let ToHost::Give { ranges, .. } = give else {
        panic!("no GIVE: {give:?}");
    };
    assert_eq!(rig.guest.pinned(), 3 * MAX_RANGES as u64);
    // The host takes the first page of them only.
    let (first, others) = ranges.runs().split_first().expect("at least one");
    let mut runs = vec![StatusRun {
        run: *first,
        status: PageStatus::Ok,
    }];
    runs.extend(others.iter().map(|run| StatusRun {
        run: *run,
        status: PageStatus::NotNeeded,
    }));
    let target = 4096;
    host.say(seq, &ToAgent::Given(BatchResult { target, runs }));
    let (seq, _) = host.next();
    assert_eq!(rig.guest.pinned(), 2 * MAX_RANGES as u64);
    host.say(seq, &ToAgent::Stopped);
    rig.guest.wait_for_pinned(0);
    let state = rig.guest.state.lock().unwrap();
    assert_eq!(state.wrong, []);
    assert_eq!(state.dropped, BTreeSet::from([0]));
}
