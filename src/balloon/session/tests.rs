use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use memvisor_guest_agent::balloon::{Agent, AgentSettings, PageSource};
use memvisor_wire::balloon::{
    ErrorCode, ListedPage, PageStatus, Protocol, RangeBatch, Stat, StatTag, StatusRun,
};
use memvisor_wire::{Doorbell, Writer};

use super::*;
use crate::balloon::{BalloonCounters, Relief, SLACK_PAGES};
use crate::units::{Bytes, Gfn, GfnRun, VmId, runs_of};

const TOKEN: u64 = 0x5eed;
const RAM: u64 = 10_000;
const MAX: u64 = 6500;
/// Far longer than anything here takes, even on a machine that hardly lets it run. Only a broken session
/// lasts that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something that threads change and a test waits for. It does not poll: on a busy machine that would
/// take processor time from the threads for which it waits.
#[derive(Default)]
struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    fn new(value: T) -> Self {
        let changed = Condvar::new();
        Self {
            value: Mutex::new(value),
            changed,
        }
    }

    /// Those that wait look again as soon as the guard is dropped.
    fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.value.lock().unwrap();
        self.changed.notify_all();
        guard
    }

    fn inspect<R>(&self, inspect: impl FnOnce(&T) -> R) -> R {
        inspect(&self.value.lock().unwrap())
    }

    fn wait(&self, what: &str, mut reached: impl FnMut(&T) -> bool) {
        let value = self.value.lock().unwrap();
        let (_value, timeout) = self
            .changed
            .wait_timeout_while(value, PATIENCE, |value| !reached(value))
            .unwrap();
        assert!(!timeout.timed_out(), "{what}: the session does nothing");
    }
}

/// A host with one VM, whose page table is a set.
struct FakeHost {
    state: Watched<State>,
    doorbell: Doorbell,
    counters: BalloonCounters,
}

struct State {
    balloon: BTreeSet<u32>,
    busy: BTreeSet<u32>,
    target: u64,
    max: u64,
    popped: bool,
    closing: bool,
    emptied: u32,
    reports: Vec<GuestStats>,
    /// Whether the host itself is short of memory.
    is_short: bool,
    relief: Relief,
    /// A clock that stands still.
    now: Instant,
}

impl State {
    fn new(target: u64) -> Self {
        Self {
            balloon: BTreeSet::new(),
            busy: BTreeSet::new(),
            target,
            max: MAX,
            popped: false,
            closing: false,
            emptied: 0,
            reports: Vec::new(),
            is_short: false,
            relief: Relief::default(),
            now: Instant::now(),
        }
    }

    fn target(&self) -> u64 {
        let ceiling = self.relief.ceiling(self.now);
        ceiling.map_or(self.target, |ceiling| ceiling.0.min(self.target))
    }
}

impl FakeHost {
    fn new(target: u64) -> Self {
        Self {
            state: Watched::new(State::new(target)),
            doorbell: Doorbell::new().unwrap(),
            counters: BalloonCounters::default(),
        }
    }

    fn prepare(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.prepare(change);
        self.doorbell.ring();
    }

    fn inspect<T>(&self, inspect: impl FnOnce(&State) -> T) -> T {
        self.state.inspect(inspect)
    }

    fn each(runs: &[GfnRun], mut status: impl FnMut(u32) -> PageStatus) -> Vec<StatusRun> {
        let pages = runs.iter().flat_map(|run| run.iter());
        pages
            .map(|gfn| StatusRun {
                run: GfnRun::single(gfn),
                status: status(gfn.0),
            })
            .collect()
    }
}

impl BalloonHost for FakeHost {
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal> {
        if start.token == TOKEN {
            return Ok(Box::new(FakeVm(self)));
        }
        Err(Refusal::UnknownToken)
    }
}

struct FakeVm<'h>(&'h FakeHost);

impl BalloonVm for FakeVm<'_> {
    fn id(&self) -> VmId {
        VmId(7)
    }
    fn total_pages(&self) -> u64 {
        RAM
    }
    fn balloon_max(&self) -> u64 {
        self.0.inspect(|state| state.max)
    }
    fn target(&self) -> u64 {
        self.0.inspect(State::target)
    }
    fn locked(&self) -> u64 {
        self.0.inspect(|state| state.balloon.len() as u64)
    }
    fn holds(&self, gfn: Gfn) -> bool {
        self.0.inspect(|state| state.balloon.contains(&gfn.0))
    }
    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let state = &mut *self.0.state.lock();
        FakeHost::each(runs, |gfn| {
            assert!(u64::from(gfn) < RAM, "the session lets through {gfn}");
            if state.busy.contains(&gfn) {
                PageStatus::Busy
            } else if state.balloon.insert(gfn) {
                PageStatus::Ok
            } else {
                PageStatus::AlreadyLocked
            }
        })
    }
    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let state = &mut *self.0.state.lock();
        FakeHost::each(runs, |gfn| {
            assert!(u64::from(gfn) < RAM, "the session lets through {gfn}");
            if state.balloon.remove(&gfn) {
                PageStatus::Ok
            } else {
                PageStatus::NotLocked
            }
        })
    }
    fn release_all(&self) {
        let mut state = self.0.state.lock();
        state.balloon.clear();
        state.emptied += 1;
    }
    fn take_reset(&self) -> bool {
        std::mem::take(&mut self.0.state.lock().popped)
    }
    fn is_closing(&self) -> bool {
        self.0.inspect(|state| state.closing)
    }
    fn report(&self, stats: &GuestStats) {
        self.0.state.lock().reports.push(*stats);
    }
    fn relief(&self, pages: u64) {
        let mut state = self.0.state.lock();
        if !state.is_short {
            let (now, ballooned) = (state.now, Pages(state.balloon.len() as u64));
            state.relief.ask(now, ballooned, Pages(pages));
        }
    }
    fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }
    fn counters(&self) -> &BalloonCounters {
        &self.0.counters
    }
}

/// The agent's end, driven by hand.
struct Client(SeqPacket);

impl Client {
    fn send(&self, message: &ToHost) {
        self.0.send(&message.encode(9)).unwrap();
    }

    /// The next message with its sequence number; `None` when the host has hung up.
    fn next(&self) -> Option<(u32, ToAgent)> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match self
            .0
            .recv_timeout(&mut buffer, PATIENCE)
            .unwrap()
            .expect("an answer in time")
        {
            Received::Closed => None,
            Received::Message { len } => Some(ToAgent::decode(&buffer[..len]).unwrap()),
        }
    }

    fn ask(&self, message: &ToHost) -> ToAgent {
        self.send(message);
        let (seq, reply) = self.next().expect("a reply");
        assert_eq!(seq, 9, "{reply:?}");
        reply
    }

    fn statuses(&self, message: &ToHost) -> Vec<(u32, u32, PageStatus)> {
        let (ToAgent::LockResult(result) | ToAgent::UnlockResult(result)) = self.ask(message)
        else {
            panic!("no result");
        };
        let parts = result.runs.iter();
        parts
            .map(|part| (part.run.start.0, part.run.count, part.status))
            .collect()
    }

    fn error(&self) -> (ErrorCode, String) {
        let Some((0, ToAgent::Error { code, text })) = self.next() else {
            panic!("no ERROR");
        };
        assert_eq!(self.next(), None, "the connection ends after ERROR");
        (code, text)
    }
}

fn start() -> Start {
    Start {
        min_version: 1,
        max_version: 1,
        capabilities: Capabilities::COMMON,
        token: TOKEN,
        total_pages: RAM,
        name: "test".into(),
    }
}

fn batch(runs: &[(u32, u32)]) -> RangeBatch {
    let runs = runs
        .iter()
        .map(|&(start, count)| GfnRun::new(Gfn(start), count));
    RangeBatch::new(runs.collect()).unwrap()
}

/// Runs `script` against a session and returns how the session ended.
fn session(host: &FakeHost, script: impl FnOnce(&Client)) -> Result<SessionEnd, SessionError> {
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let client = Client(theirs);
    thread::scope(|scope| {
        let served = scope.spawn(move || serve(&ours, host, Duration::from_secs(1)));
        script(&client);
        drop(client);
        served.join().unwrap()
    })
}

/// As [`session`], after a good `START`.
fn started(host: &FakeHost, script: impl FnOnce(&Client)) -> Result<SessionEnd, SessionError> {
    session(host, |client| {
        assert!(matches!(
            client.ask(&ToHost::Start(start())),
            ToAgent::Started(_)
        ));
        script(client);
    })
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn start_answers_with_what_was_agreed() {
    let host = FakeHost::new(100);
    let end = session(&host, |client| {
        let capabilities = Capabilities::DOORBELL | Capabilities::STATS;
        let reply = client.ask(&ToHost::Start(Start {
            capabilities,
            max_version: 9,
            ..start()
        }));
        let expected = Started {
            capabilities,
            vm: 7,
            poll_interval_ms: 1000,
            max_ranges: 1,
            balloon_max: MAX,
        };
        assert_eq!(reply, ToAgent::Started(expected));
    });
    assert_eq!(end.unwrap(), SessionEnd::Closed);
}

#[test]
fn lock_and_unlock_answer_for_each_page() {
    let host = FakeHost::new(2000);
    host.prepare(|state| state.busy.extend([12]));
    let end = started(&host, |client| {
        use PageStatus::{AlreadyLocked, Busy, NotLocked, Ok};
        let lock = ToHost::Lock(batch(&[(10, 4), (20, 2)]));
        let expected = [(10, 2, Ok), (12, 1, Busy), (13, 1, Ok), (20, 2, Ok)];
        assert_eq!(client.statuses(&lock), expected);
        let lock = ToHost::Lock(batch(&[(13, 2)]));
        assert_eq!(
            client.statuses(&lock),
            [(13, 1, AlreadyLocked), (14, 1, Ok)]
        );
        let unlock = ToHost::Unlock(batch(&[(11, 3)]));
        let expected = [(11, 1, Ok), (12, 1, NotLocked), (13, 1, Ok)];
        assert_eq!(client.statuses(&unlock), expected);
    });
    assert_eq!(end.unwrap(), SessionEnd::Closed);
    assert_eq!(
        host.inspect(|state| state.balloon.iter().copied().collect::<Vec<_>>()),
        [10, 14, 20, 21],
        "an agent that vanishes leaves its pages in the balloon"
    );
    assert_eq!(count(&host.counters.inflated_pages), 6);
    assert_eq!(count(&host.counters.deflated_pages), 2);
    assert_eq!(count(&host.counters.refused_pages), 3);
}

#[test]
fn lying_agent_gets_statuses_and_takes_nothing() {
    let host = FakeHost::new(MAX);
    started(&host, |client| {
        use PageStatus::{Invalid, NotLocked, Ok};
        let edge = RAM as u32;
        let lock = ToHost::Lock(batch(&[(edge - 1, 3), (u32::MAX, 1)]));
        let expected = [
            (edge - 1, 1, Ok),
            (edge, 2, Invalid),
            (u32::MAX, 1, Invalid),
        ];
        assert_eq!(client.statuses(&lock), expected);
        let unlock = ToHost::Unlock(batch(&[(5, 1), (edge, 1)]));
        let expected = [(5, 1, NotLocked), (edge, 1, Invalid)];
        assert_eq!(client.statuses(&unlock), expected);
        client.ask(&ToHost::GetTarget {
            total_pages: RAM,
            balloon_pages: 4000,
        });
    })
    .unwrap();
    assert_eq!(count(&host.counters.invalid_pages), 4);
    assert_eq!(count(&host.counters.mismatches), 1);
    assert_eq!(host.inspect(|state| state.balloon.len()), 1);
}

#[test]
fn lock_beyond_target_or_maximum_is_not_needed() {
    use PageStatus::{AlreadyLocked, NotNeeded, Ok};
    let slack = SLACK_PAGES as u32;
    let host = FakeHost::new(100);
    started(&host, |client| {
        let lock = ToHost::Lock(batch(&[(0, 1000)]));
        let room = 100 + slack;
        let expected = [(0, room, Ok), (room, 1000 - room, NotNeeded)];
        assert_eq!(client.statuses(&lock), expected);
        // The balloon is full. An agent that offers again what is in it must not take that for its own.
        let expected = [(0, room, AlreadyLocked), (room, 1000 - room, NotNeeded)];
        assert_eq!(client.statuses(&lock), expected);
        host.prepare(|state| state.target = MAX);
        let mut at = room;
        while u64::from(at) + 2000 < MAX {
            assert_eq!(
                client.statuses(&ToHost::Lock(batch(&[(at, 2000)]))),
                [(at, 2000, Ok)]
            );
            at += 2000;
        }
        let rest = MAX as u32 - at;
        let expected = [(at, rest, Ok), (MAX as u32, 2000 - rest, NotNeeded)];
        assert_eq!(
            client.statuses(&ToHost::Lock(batch(&[(at, 2000)]))),
            expected
        );
    })
    .unwrap();
}

#[test]
fn maximum_that_changes_bounds_the_target_and_keeps_the_session() {
    let host = FakeHost::new(300);
    started(&host, |client| {
        for (max, pages) in [(1000, 300), (200, 200), (250, 250), (0, 0), (MAX, 300)] {
            host.change(|state| state.max = max);
            let get = ToHost::GetTarget {
                total_pages: RAM,
                balloon_pages: 0,
            };
            // The doorbell may have been heard already.
            client.send(&get);
            while client.next() != Some((9, ToAgent::Target { pages })) {}
        }
        host.change(|state| state.max = 100);
        assert_eq!(client.next(), Some((0, ToAgent::Target { pages: 100 })));
        let lock = ToHost::Lock(batch(&[(0, 150)]));
        let (ok, excess) = ((0, 100), (100, 50));
        assert_eq!(
            client.statuses(&lock),
            [
                (ok.0, ok.1, PageStatus::Ok),
                (excess.0, excess.1, PageStatus::NotNeeded)
            ]
        );
    })
    .unwrap();
}

#[test]
fn start_empties_what_an_earlier_agent_left() {
    let host = FakeHost::new(100);
    host.prepare(|state| {
        state.balloon.extend(0..50);
        state.popped = true;
    });
    started(&host, |client| {
        let target = client.ask(&ToHost::GetTarget {
            total_pages: RAM,
            balloon_pages: 0,
        });
        assert_eq!(target, ToAgent::Target { pages: 100 });
        assert_eq!(host.inspect(|state| state.balloon.len()), 0);
    })
    .unwrap();
    assert_eq!(count(&host.counters.resets), 0, "nothing is left to reset");
}

#[test]
fn stop_empties_the_balloon_before_its_reply() {
    let host = FakeHost::new(100);
    let end = started(&host, |client| {
        client.ask(&ToHost::Lock(batch(&[(0, 9)])));
        assert_eq!(client.ask(&ToHost::Stop), ToAgent::Stopped);
        assert_eq!(host.inspect(|state| state.balloon.len()), 0);
        assert_eq!(client.next(), None);
    });
    assert_eq!(end.unwrap(), SessionEnd::Stopped);
}

#[test]
fn target_change_rings_an_agent_with_a_doorbell() {
    let host = FakeHost::new(0);
    started(&host, |client| {
        host.change(|state| state.target = 42);
        assert_eq!(client.next(), Some((0, ToAgent::Target { pages: 42 })));
    })
    .unwrap();
}

#[test]
fn silent_agent_is_rung_sixteen_times_and_then_left_alone() {
    let host = FakeHost::new(0);
    started(&host, |client| {
        for pages in 1..=16 {
            host.change(|state| state.target = pages);
            assert_eq!(client.next(), Some((0, ToAgent::Target { pages })));
        }
        host.change(|state| state.target = 17);
        let get = ToHost::GetTarget {
            total_pages: RAM,
            balloon_pages: 0,
        };
        assert_eq!(client.ask(&get), ToAgent::Target { pages: 17 });
        host.change(|state| state.target = 18);
        assert_eq!(client.next(), Some((0, ToAgent::Target { pages: 18 })));
    })
    .unwrap();
}

#[test]
fn pop_resets_and_drops_what_was_under_way() {
    let host = FakeHost::new(100);
    started(&host, |client| {
        client.ask(&ToHost::Lock(batch(&[(0, 9)])));
        host.change(|state| state.popped = true);
        assert_eq!(client.next(), Some((0, ToAgent::Reset)));
        assert_eq!(host.inspect(|state| state.balloon.len()), 0);
        client.send(&ToHost::Lock(batch(&[(0, 9)])));
        assert!(matches!(
            client.ask(&ToHost::Start(start())),
            ToAgent::Started(_)
        ));
        assert_eq!(
            host.inspect(|state| state.balloon.len()),
            0,
            "the late LOCK was dropped"
        );
        client.statuses(&ToHost::Lock(batch(&[(0, 9)])));
    })
    .unwrap();
    assert_eq!(host.inspect(|state| state.balloon.len()), 9);
    assert_eq!(count(&host.counters.resets), 1);
}

#[test]
fn pop_without_a_doorbell_takes_the_place_of_the_next_reply() {
    let host = FakeHost::new(100);
    let start = ToHost::Start(Start {
        capabilities: Capabilities::STATS,
        ..start()
    });
    session(&host, |client| {
        client.ask(&start);
        client.ask(&ToHost::Lock(batch(&[(0, 9)])));
        host.change(|state| state.popped = true);
        host.state.wait("the reset", |state| state.emptied >= 2);
        client.send(&ToHost::Stats(vec![]));
        assert_eq!(
            client.ask(&ToHost::Unlock(batch(&[(0, 9)]))),
            ToAgent::Reset
        );
        assert!(matches!(client.ask(&start), ToAgent::Started(_)));
    })
    .unwrap();
}

#[test]
fn stats_are_clamped_to_the_ram_of_the_vm() {
    let host = FakeHost::new(100);
    started(&host, |client| {
        client.send(&ToHost::Stats(vec![Stat::new(
            StatTag::FREE_MEMORY,
            u64::MAX,
        )]));
        client.ask(&ToHost::Relief { pages: 0 });
    })
    .unwrap();
    let free = host.inspect(|state| state.reports[0].free);
    assert_eq!(free, Some(Bytes(RAM * 4096)));
}

#[test]
fn relief_is_counted_from_what_the_balloon_holds_and_bounded_by_it() {
    let host = FakeHost::new(1000);
    started(&host, |client| {
        let relief = |pages| client.ask(&ToHost::Relief { pages });
        client.ask(&ToHost::Lock(batch(&[(0, 60)])));
        assert_eq!(relief(0), ToAgent::Target { pages: 1000 });
        assert_eq!(relief(10), ToAgent::Target { pages: 50 });
        client.ask(&ToHost::Unlock(batch(&[(50, 10)])));
        assert_eq!(relief(1), ToAgent::Target { pages: 49 });
        assert_eq!(relief(u64::MAX), ToAgent::Target { pages: 0 });
        let lock = ToHost::Lock(batch(&[(100, 600)]));
        let most = SLACK_PAGES as u32 - 50;
        assert_eq!(client.statuses(&lock)[0], (100, most, PageStatus::Ok));
    })
    .unwrap();
    assert_eq!(count(&host.counters.reliefs), 4);
}

#[test]
fn host_that_is_short_itself_gives_no_relief() {
    let host = FakeHost::new(1000);
    host.prepare(|state| state.is_short = true);
    started(&host, |client| {
        client.ask(&ToHost::Lock(batch(&[(0, 60)])));
        let reply = client.ask(&ToHost::Relief { pages: 10 });
        assert_eq!(reply, ToAgent::Target { pages: 1000 });
    })
    .unwrap();
}

#[test]
fn closing_host_says_so_to_its_agent() {
    let host = FakeHost::new(100);
    let end = started(&host, |client| {
        host.change(|state| state.closing = true);
        assert_eq!(client.error().0, ErrorCode::Closing);
    });
    assert!(matches!(end, Err(SessionError::Closing)), "{end:?}");
}

#[test]
fn first_message_other_than_a_good_start_is_an_error() {
    let version = Start {
        min_version: 2,
        max_version: 3,
        ..start()
    };
    let token = Start {
        token: 1,
        ..start()
    };
    let large = Start {
        total_pages: RAM + 1,
        ..start()
    };
    for (message, code, why) in [
        (ToHost::Stop, ErrorCode::Order, "STOP came before START"),
        (
            ToHost::Lock(batch(&[(0, 1)])),
            ErrorCode::Order,
            "LOCK came before START",
        ),
        (
            ToHost::Start(version),
            ErrorCode::Version,
            "versions 2 to 3 of the balloon protocol, this host speaks 1",
        ),
        (
            ToHost::Start(token),
            ErrorCode::Refused,
            "no VM has the token",
        ),
        (
            ToHost::Start(large),
            ErrorCode::Refused,
            "claims 10001 pages; the VM has 10000",
        ),
    ] {
        let host = FakeHost::new(100);
        let end = session(&host, |client| {
            client.send(&message);
            let (actual, text) = client.error();
            assert_eq!(actual, code);
            assert!(text.contains(why), "{text}");
        });
        assert!(end.is_err(), "{message:?}");
        assert_eq!(host.inspect(|state| state.emptied), 0, "{message:?}");
    }
}

#[test]
fn message_not_allowed_after_start_is_an_error() {
    let plain = Capabilities::empty();
    let all = Capabilities::COMMON;
    for (capabilities, message, why) in [
        (all, ToHost::Start(start()), "START came again"),
        (plain, ToHost::Stats(vec![]), "STATS needs a capability"),
        (
            plain,
            ToHost::Relief { pages: 1 },
            "RELIEF needs a capability",
        ),
        (
            plain,
            ToHost::Lock(batch(&[(0, 1), (5, 1)])),
            "LOCK needs a capability",
        ),
        (
            plain,
            ToHost::Unlock(batch(&[(0, 1), (5, 1)])),
            "UNLOCK needs a capability",
        ),
    ] {
        let host = FakeHost::new(100);
        let end = session(&host, |client| {
            client.ask(&ToHost::Start(Start {
                capabilities,
                ..start()
            }));
            client.send(&message);
            let (code, text) = client.error();
            assert_eq!(code, ErrorCode::Order);
            assert!(text.contains(why), "{text}");
        });
        assert!(matches!(end, Err(SessionError::Order { .. })), "{end:?}");
    }
}

#[test]
fn reset_does_not_let_an_agent_change_vm() {
    let host = FakeHost::new(100);
    let end = started(&host, |client| {
        host.change(|state| state.popped = true);
        assert_eq!(client.next(), Some((0, ToAgent::Reset)));
        client.send(&ToHost::Start(Start {
            token: 1,
            ..start()
        }));
        assert_eq!(client.error().0, ErrorCode::Refused);
    });
    assert!(
        matches!(end, Err(SessionError::Refused(Refusal::TokenChanged))),
        "{end:?}"
    );
}

#[test]
fn malformed_message_ends_the_session_with_why() {
    let raw = |version: u16, kind: u16, seq: u32, body: &[u8]| {
        Writer::new()
            .u16(version)
            .u16(kind)
            .u32(seq)
            .bytes(body)
            .finish()
    };
    for (datagram, why) in [
        (vec![1], "ends inside `version`"),
        (raw(1, 2, 1, &[0; 15]), "ends inside `balloon_pages`"),
        (raw(1, 7, 1, &[0]), "1 bytes follow the end"),
        (raw(1, 99, 1, &[]), "`type` is 99"),
        (
            raw(2, 7, 1, &[]),
            "version 2 of the balloon protocol, this side speaks 1",
        ),
        (raw(1, 7, 0, &[]), "`seq` is 0"),
        (
            raw(1, 3, 1, &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]),
            "`range count` is 0",
        ),
        (vec![0; MAX_MESSAGE_BYTES + 1], "`message length` is 65537"),
    ] {
        let host = FakeHost::new(100);
        let end = started(&host, |client| {
            client.0.send(&datagram).unwrap();
            let (code, text) = client.error();
            assert_eq!(code, ErrorCode::Malformed);
            assert!(text.contains(why), "{text}");
        });
        assert!(matches!(end, Err(SessionError::Malformed(_))), "{end:?}");
    }
}

/// A guest that gives pages in order and knows which it has given.
#[derive(Default)]
struct FakeSource(Watched<BTreeSet<u32>>);

impl PageSource for FakeSource {
    fn total_pages(&self) -> u64 {
        RAM
    }
    fn allocate(&self, max: u32, _may_reclaim: bool) -> Vec<GfnRun> {
        let mut pinned = self.0.lock();
        let free = (0..RAM as u32).filter(|gfn| !pinned.contains(gfn));
        let pages: Vec<u32> = free.take(max as usize).collect();
        pinned.extend(&pages);
        runs_of(pages.into_iter().map(Gfn))
    }
    fn release(&self, runs: &[GfnRun]) {
        let mut pinned = self.0.lock();
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            assert!(pinned.remove(&gfn.0), "{gfn} was not pinned");
        }
    }
    fn stats(&self) -> Vec<Stat> {
        vec![Stat::new(StatTag::TOTAL_MEMORY, 4096)]
    }
}

/// Runs `script` while a real agent has a session with the host. `script` is given the agent, and a function that
/// waits until both sides have this many pages in the balloon, the same ones.
fn with_real_agent(host: &FakeHost, script: impl FnOnce(&Agent, &dyn Fn(usize))) {
    with_real_agent_of(Protocol::Ranges, host, script);
}

fn with_real_agent_of(
    protocol: Protocol,
    host: &FakeHost,
    script: impl FnOnce(&Agent, &dyn Fn(usize)),
) {
    let guest = Arc::new(FakeSource::default());
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let settings = AgentSettings {
        token: TOKEN,
        name: "real".into(),
        protocol,
        is_paced: true,
    };
    let source: Arc<dyn PageSource> = Arc::<FakeSource>::clone(&guest);
    let mut sockets = vec![theirs];
    let dial = move || {
        sockets
            .pop()
            .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    };
    // The guest's pages change last of all when the balloon shrinks, and the host's when it grows.
    let agree = |pages: usize| {
        host.state
            .wait("the host", |state| state.balloon.len() == pages);
        guest.0.wait("the guest", |pinned| pinned.len() == pages);
        assert_eq!(
            guest.0.inspect(Clone::clone),
            host.inspect(|state| state.balloon.clone())
        );
    };
    thread::scope(|scope| {
        let agent = Agent::start(settings, source, dial).unwrap();
        // The host gives a new connection 5 seconds to say something, from when it serves it.
        assert_eq!(
            wait_readable([ours.as_fd()], Some(PATIENCE)).unwrap(),
            [true]
        );
        let served = scope.spawn(move || serve(&ours, host, Duration::from_secs(3600)));
        script(&agent, &agree);
        drop(agent);
        agree(0);
        assert_eq!(served.join().unwrap().unwrap(), SessionEnd::Stopped);
    });
    assert_eq!(count(&host.counters.mismatches), 0);
    assert_eq!(count(&host.counters.refused_pages), 0);
}

#[test]
fn real_agent_and_session_agree_on_every_page() {
    let host = FakeHost::new(3000);
    with_real_agent(&host, |agent, agree| {
        agree(3000);
        host.change(|state| state.target = 1000);
        agree(1000);
        host.change(|state| state.popped = true);
        host.state.wait("the reset", |state| state.emptied >= 2);
        agree(1000);
        assert_eq!(agent.relieve(10, PATIENCE), 10);
        agree(990);
    });
}

#[test]
fn real_agent_of_page_lists_and_session_agree_on_every_page() {
    let host = FakeHost::new(3000);
    with_real_agent_of(Protocol::PageLists, &host, |agent, agree| {
        agree(3000);
        host.change(|state| state.target = 1000);
        agree(1000);
        assert_eq!(agent.relieve(10, PATIENCE), 10);
        agree(990);
    });
    assert_eq!(count(&host.counters.inflated_pages), 3000);
}

/// It asks nobody when its guest is out of memory, and does not take the pages again before the target changes.
#[test]
fn real_agent_of_arrays_deflates_by_itself_and_waits_for_another_target() {
    let host = FakeHost::new(3000);
    with_real_agent_of(Protocol::PfnArrays, &host, |agent, agree| {
        agree(3000);
        assert_eq!(agent.relieve(10, PATIENCE), 256);
        agree(3000 - 256);
        assert_eq!(agent.relieve(300, PATIENCE), 256);
        agree(3000 - 512);
        host.change(|state| state.target = 2900);
        agree(2900);
    });
    assert_eq!(count(&host.counters.reliefs), 0);
}

/// A session of a protocol, in which `script` has said `START` and was welcomed.
fn started_by(
    protocol: Protocol,
    host: &FakeHost,
    script: impl FnOnce(&Client),
) -> Result<SessionEnd, SessionError> {
    session(host, |client| {
        let capabilities = Capabilities::COMMON | protocol.capabilities();
        let started = client.ask(&ToHost::Start(Start {
            capabilities,
            ..start()
        }));
        let ToAgent::Started(started) = started else {
            panic!("{started:?}");
        };
        assert_eq!(started.capabilities, capabilities);
        script(client);
    })
}

#[test]
fn list_gets_a_status_for_each_entry_in_its_order() {
    use PageStatus::{AlreadyLocked, Busy, Invalid, NotLocked, Ok};
    let host = FakeHost::new(2000);
    host.prepare(|state| state.busy.extend([12]));
    started_by(Protocol::PageLists, &host, |client| {
        let listed = |pages: &[u64]| pages.iter().copied().map(ListedPage::asked).collect();
        let statuses = |answer: ToAgent| {
            let (ToAgent::PagesLocked(listed) | ToAgent::PagesUnlocked(listed)) = answer else {
                panic!("{answer:?}");
            };
            assert_eq!(listed.target, 2000);
            let all = listed.pages.iter();
            all.map(|page| (page.page, page.status.unwrap()))
                .collect::<Vec<_>>()
        };
        let lock = ToHost::LockPages(listed(&[30, 12, 10, 30, RAM, 1 << 40]));
        assert_eq!(
            statuses(client.ask(&lock)),
            [
                (30, Ok),
                (12, Busy),
                (10, Ok),
                (30, AlreadyLocked),
                (RAM, Invalid),
                (1 << 40, Invalid)
            ]
        );
        let unlock = ToHost::UnlockPages(listed(&[10, 11, 10]));
        assert_eq!(
            statuses(client.ask(&unlock)),
            [(10, Ok), (11, NotLocked), (10, NotLocked)]
        );
    })
    .unwrap();
    assert_eq!(host.inspect(|state| state.balloon.len()), 1);
}

#[test]
fn arrays_are_used_whatever_becomes_of_their_pages() {
    let host = FakeHost::new(100);
    started_by(Protocol::PfnArrays, &host, |client| {
        let inflate = ToHost::Inflate([9, 3, 9, RAM as u32, u32::MAX].map(Gfn).to_vec());
        assert_eq!(client.ask(&inflate), ToAgent::Used);
        assert_eq!(
            client.ask(&ToHost::Deflate(vec![Gfn(3), Gfn(4)])),
            ToAgent::Used
        );
    })
    .unwrap();
    assert_eq!(
        host.inspect(|state| state.balloon.iter().copied().collect::<Vec<_>>()),
        [9]
    );
    assert_eq!(count(&host.counters.invalid_pages), 2);
}

#[test]
fn reported_pages_are_dropped_and_in_no_balloon() {
    let host = FakeHost::new(0);
    started_by(Protocol::Reporting, &host, |client| {
        client.ask(&ToHost::Lock(batch(&[(100, 2)])));
        assert_eq!(
            client.ask(&ToHost::Report(batch(&[(98, 6)]))),
            ToAgent::Reported
        );
    })
    .unwrap();
    assert_eq!(
        host.inspect(|state| state.balloon.iter().copied().collect::<Vec<_>>()),
        [100, 101],
        "what was in the balloon stays there"
    );
    assert_eq!(count(&host.counters.reported_pages), 4);
}

/// A touch of a page of the balloon: where the guest must not, it is a reset.
#[test]
fn touch_is_a_reset_unless_the_protocol_allows_it() {
    for (protocol, resets) in [
        (Protocol::Ranges, 1),
        (Protocol::PageLists, 1),
        (Protocol::PfnArrays, 1),
        (Protocol::Reporting, 1),
        (Protocol::Hints, 0),
        (Protocol::Bitmap, 1),
    ] {
        let host = FakeHost::new(0);
        let _ = started_by(protocol, &host, |client| {
            host.change(|state| state.popped = true);
            if resets == 0 {
                host.change(|state| state.target = 1);
                assert_eq!(client.next().unwrap().1, ToAgent::Target { pages: 1 });
            } else {
                assert_eq!(client.next().unwrap().1, ToAgent::Reset);
            }
        });
        assert_eq!(count(&host.counters.resets), resets, "{protocol}");
    }
}

#[test]
fn message_of_another_protocol_is_refused() {
    let batch = || batch(&[(1, 1)]);
    let messages = [
        (Protocol::Ranges, ToHost::Lock(batch())),
        (
            Protocol::PageLists,
            ToHost::LockPages(vec![ListedPage::asked(1)]),
        ),
        (Protocol::PfnArrays, ToHost::Inflate(vec![Gfn(1)])),
        (Protocol::Reporting, ToHost::Report(batch())),
        (Protocol::Hints, ToHost::Offer(batch())),
    ];
    for spoken in Protocol::ALL {
        for (of, message) in &messages {
            let is_its_own =
                *of == spoken || (*of, spoken) == (Protocol::Ranges, Protocol::Reporting);
            let host = FakeHost::new(10);
            let end = started_by(spoken, &host, |client| {
                client.send(message);
                if is_its_own {
                    assert!(client.next().is_some());
                } else {
                    let (code, text) = client.error();
                    assert_eq!(code, ErrorCode::Order, "{spoken}: {text}");
                    assert!(text.contains(message.name()), "{text}");
                }
            });
            assert_eq!(end.is_ok(), is_its_own, "{spoken}, {}", message.name());
        }
    }
}

/// What the guest got back stays with it for a while, whatever the host wants, and is then taken again.
#[test]
fn real_agent_keeps_what_relief_gave_it_until_that_ends() {
    let host = FakeHost::new(3000);
    let pass = |seconds| {
        host.change(|state| state.now += Duration::from_secs(seconds));
    };
    with_real_agent(&host, |agent, agree| {
        agree(3000);
        assert_eq!(agent.relieve(1000, PATIENCE), 1000);
        agree(2000);
        host.change(|state| state.target = 4000);
        assert_eq!(agent.relieve(500, PATIENCE), 500);
        agree(1500);
        pass(9);
        assert_eq!(agent.relieve(1, PATIENCE), 1);
        agree(1499);
        pass(11);
        agree(4000);
        assert_eq!(agent.relieve(1000, PATIENCE), 1000);
        pass(19);
        agree(3000);
        host.prepare(|state| state.is_short = true);
        assert_eq!(agent.relieve(1000, PATIENCE), 0);
        agree(3000);
    });
}

#[test]
fn real_agent_follows_a_maximum_that_changes() {
    let host = FakeHost::new(3000);
    with_real_agent(&host, |_, agree| {
        for (max, pages) in [(MAX, 3000), (1000, 1000), (0, 0), (2000, 2000), (MAX, 3000)] {
            host.change(|state| state.max = max);
            agree(pages);
        }
    });
}

#[test]
fn agent_that_leaves_with_replies_unread_has_closed() {
    let host = FakeHost::new(0);
    let end = started(&host, |client| {
        for _ in 0..20 {
            client.send(&ToHost::Relief { pages: 0 });
        }
    });
    assert_eq!(end.unwrap(), SessionEnd::Closed);
}

#[test]
fn flood_is_slowed_down_and_not_cut_off() {
    let host = FakeHost::new(0);
    // Pages outside RAM cost the fake host nothing, so only the price of their number slows the flood down.
    let flood = ToHost::Lock(batch(&[(RAM as u32, 4096)]));
    let end = started(&host, |client| {
        for _ in 0..70 {
            assert!(matches!(client.ask(&flood), ToAgent::LockResult(_)));
        }
    });
    assert_eq!(end.unwrap(), SessionEnd::Closed);
    assert!(count(&host.counters.throttles) > 0);
}
