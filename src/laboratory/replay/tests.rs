//! Sessions with a shared map of free pages, recorded and played again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::balloon::AgentSettings;
use memvisor_guest_agent::outside::OutsideAgent;
use memvisor_wire::SeqPacketListener;
use memvisor_wire::balloon::{Capabilities, PageState, Start, ToAgent, VERSION, map_words};

use super::agent::Against;
use super::shared::Map;
use super::*;
use crate::balloon::{Tap, serve};
use crate::laboratory::alone::Alone;
use crate::laboratory::memory::SimulatedMemory;
use crate::laboratory::peer::{Came, Peer};
use crate::laboratory::record::Recording;
use crate::laboratory::schedule::Change;
use crate::sys::SharedWords;
use crate::units::{Gfn, GfnRun, Pages};

const TOKEN: u64 = 77;
const RAM: u32 = 1024;
const OFFER: Capabilities = Capabilities::BITMAP;

/// The guest's end of a session with a map.
struct Guest {
    peer: Peer,
    map: Option<Map>,
}

impl Guest {
    fn start(socket: &Path) -> Self {
        let peer = Peer::dial(socket, Box::new(|_| {})).expect("somebody listens");
        let mut guest = Self { peer, map: None };
        let start = Start {
            min_version: VERSION,
            max_version: VERSION,
            capabilities: OFFER,
            token: TOKEN,
            total_pages: RAM.into(),
            name: "test".to_owned(),
        };
        let ToAgent::Started(started) = guest.ask(&ToHost::Start(start)) else {
            panic!("no STARTED");
        };
        assert!(started.capabilities.contains(OFFER));
        let map = guest.peer.descriptors().into_iter().next().expect("a map");
        let words = SharedWords::of(map, map_words(RAM)).expect("long enough");
        guest.map = Some(Map::new(Arc::new(words), RAM));
        guest
    }

    fn ask(&mut self, question: &ToHost) -> ToAgent {
        self.peer.say(&question.encode(1)).expect("it listens");
        match self.peer.hear(PATIENCE).expect("it answers") {
            Came::Datagram(bytes) => ToAgent::decode(&bytes).expect("a message").1,
            other => panic!("{other:?}"),
        }
    }

    fn poll(&mut self) {
        let poll = ToHost::GetTarget {
            total_pages: RAM.into(),
            balloon_pages: 0,
        };
        assert!(matches!(self.ask(&poll), ToAgent::Target { .. }));
    }

    fn frees(&self, start: u32, count: u32) {
        let map = self.map.as_ref().expect("it has started");
        let run = GfnRun::new(Gfn(start), count);
        assert_eq!(map.change_run(run, PageState::Used, PageState::Free), count);
    }

    /// Polls until the host has so many pages.
    fn until_taken(&mut self, wanted: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let map = self.map.as_ref().expect("it has started");
            let taken = (0..RAM).filter(|gfn| map.state(Gfn(*gfn)) == PageState::Taken);
            if taken.count() == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not {wanted} pages");
            thread::sleep(Duration::from_millis(2));
            self.poll();
        }
    }
}

/// A host whose target is so many pages, at a socket, until the process ends; with a recording if there is a path.
fn host(dir: &Path, target: u64, record: Option<PathBuf>) -> PathBuf {
    let socket = dir.join(format!("host-{target}-{}", record.is_some()));
    let listener = SeqPacketListener::bind(&socket).expect("a new socket");
    let taps = move || -> Option<Box<dyn Tap>> {
        let recording = Recording::begin(record.as_ref()?);
        Some(Box::new(recording.expect("room")))
    };
    let pages = Pages(RAM.into());
    let alone = Alone::new(TOKEN, pages, pages, Box::new(taps)).expect("a doorbell");
    alone.apply(Change::Target(Pages(target)));
    thread::spawn(move || {
        let socket = listener.accept().expect("an agent");
        serve(&socket, &alone, Duration::from_secs(1))
    });
    socket
}

/// A session in which the guest frees 300 pages, and the host takes those of its target.
fn recorded(dir: &Path, target: u64) -> Tape {
    let file = dir.join(format!("{target}.balloon"));
    let mut guest = Guest::start(&host(dir, target, Some(file.clone())));
    guest.frees(100, 300);
    guest.until_taken(usize::try_from(target).expect("few"));
    assert!(matches!(guest.ask(&ToHost::Stop), ToAgent::Stopped));
    // The end of a recording is written when the session has ended.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tape = Tape::read(&std::fs::read(&file).expect("there")).expect("a recording");
        if matches!(tape.stop, crate::laboratory::tape::Stop::Ended { .. }) {
            return tape;
        }
        assert!(Instant::now() < deadline, "{:?}", tape.stop);
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn agent_with_a_map_is_played_to_a_host() {
    let dir = tempfile::tempdir().expect("tempdir");
    let tape = recorded(dir.path(), 64);
    let against = |target| {
        let socket = host(dir.path(), target, None);
        let against = Against {
            socket: &socket,
            token: TOKEN,
            speed: Speed::Fast,
            ignores_target: false,
        };
        agent::run(&tape, &against, Box::new(|_| {})).expect("it listens")
    };
    let same = against(64);
    assert!(same.is_same(), "{same:?}");
    let other = against(32);
    let told = other.differences.join("\n");
    assert!(
        told.contains("the host has taken 32 pages, was 64"),
        "{told}"
    );
}

#[test]
fn host_with_a_map_is_played_to_an_agent() {
    let dir = tempfile::tempdir().expect("tempdir");
    let tape = recorded(dir.path(), 64);
    // Other pages than those of the recording, and fewer of them.
    let same = played_to(&tape, 80);
    assert!(same.is_same(), "{same:?}");
}

/// Plays the host of `tape` to a guest that frees so many pages.
fn played_to(tape: &Tape, frees: u32) -> Report {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("replay");
    let listener = SeqPacketListener::bind(&socket).expect("a new socket");
    let memory = Arc::new(SimulatedMemory::new(RAM));
    let settings = AgentSettings::new(TOKEN, "test".to_owned());
    // The agent is a thread of the test: the process beside it says nothing.
    let mut process =
        OutsideAgent::start("exec sleep 60", &settings, &socket, memory).expect("there is a shell");
    let guest = thread::spawn(move || {
        let mut guest = Guest::start(&socket);
        guest.frees(500, frees);
        guest.until_taken(64);
        guest.ask(&ToHost::Stop);
    });
    let ears: crate::laboratory::peer::Ears = Box::new(|_| {});
    let report = host::play(tape, &listener, &process, (Speed::Fast, ears)).expect("it connects");
    guest.join().expect("no panic");
    process.kill();
    report
}
