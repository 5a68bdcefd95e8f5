//! A real kernel and a real agent, and a host that gives relief or does not.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, Weak};
use std::thread;

use memvisor_wire::balloon::{
    BatchResult, Capabilities, MAX_MESSAGE_BYTES, PageStatus, Protocol, Started, StatusRun,
    ToAgent, ToHost,
};
use memvisor_wire::{Received, SeqPacket};

use super::*;
use crate::balloon::AgentSettings;
use crate::kernel::ram::VecMemory;
use crate::kernel::{AnonRegion, KernelOptions};
use crate::shim::Memory;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the host wants, and what it has heard.
#[derive(Default)]
struct State {
    target: u64,
    is_short: bool,
    balloon: BTreeSet<u32>,
    reliefs: u32,
    stats: Vec<Stat>,
}

impl State {
    fn answer(&mut self, message: ToHost) -> Option<ToAgent> {
        let target = |state: &Self| ToAgent::Target {
            pages: state.target,
        };
        Some(match message {
            ToHost::Start(_) => ToAgent::Started(Started {
                capabilities: Capabilities::COMMON,
                vm: 1,
                poll_interval_ms: 10,
                max_ranges: 512,
                balloon_max: 0,
            }),
            ToHost::GetTarget { .. } => target(self),
            ToHost::Relief { pages } => {
                self.reliefs += 1;
                if !self.is_short {
                    self.target = (self.balloon.len() as u64).saturating_sub(pages);
                }
                target(self)
            }
            ToHost::Lock(batch) => {
                let pages = batch.runs().iter().flat_map(|run| run.iter());
                self.balloon.extend(pages.map(|gfn| gfn.0));
                ToAgent::LockResult(self.all_ok(batch.runs()))
            }
            ToHost::Unlock(batch) => {
                let pages = batch.runs().iter().flat_map(|run| run.iter());
                pages.for_each(|gfn| assert!(self.balloon.remove(&gfn.0)));
                ToAgent::UnlockResult(self.all_ok(batch.runs()))
            }
            ToHost::Stats(stats) => {
                self.stats = stats;
                return None;
            }
            other => {
                assert_eq!(other, ToHost::Stop, "the agent says nothing else");
                ToAgent::Stopped
            }
        })
    }

    fn all_ok(&self, runs: &[GfnRun]) -> BatchResult {
        let status = PageStatus::Ok;
        BatchResult {
            target: self.target,
            runs: runs.iter().map(|&run| StatusRun { run, status }).collect(),
        }
    }
}

#[derive(Default)]
struct Host {
    state: Mutex<State>,
    changed: Condvar,
}

impl Host {
    fn serve(&self, socket: &SeqPacket) {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        while let Ok(Received::Message { len }) = socket.recv(&mut buffer) {
            let (seq, message) = ToHost::decode(&buffer[..len]).expect("a good message");
            let answer = self.state.lock().expect("no panic").answer(message);
            self.changed.notify_all();
            if let Some(answer) = answer
                && socket.send(&answer.encode(seq)).is_err()
            {
                return;
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic"));
    }

    fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let state = self.state.lock().expect("no panic");
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !reached(state));
        let (_books, timeout) = waited.expect("no panic");
        assert!(!timeout.timed_out(), "{what}");
    }
}

struct Guest {
    host: Arc<Host>,
    kernel: Arc<Kernel>,
    _relief: Arc<Relief>,
    _directory: tempfile::TempDir,
}

const RAM: u32 = 600;
const BALLOON: u64 = 400;
/// More pages than the balloon leaves to the guest.
const NEED: u32 = 500;

/// A guest with a balloon of [`BALLOON`] pages.
fn guest(swap_pages: u32, is_short: bool) -> Guest {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = KernelOptions {
        swap_pages,
        disk_directory: directory.path().to_owned(),
    };
    let memory: Arc<dyn Memory> = Arc::new(VecMemory::new(RAM));
    let kernel = Kernel::new(memory, &options).expect("it boots");
    let host = Arc::new(Host::default());
    host.change(|state| {
        state.target = BALLOON;
        state.is_short = is_short;
    });
    let (ours, theirs) = SeqPacket::pair().expect("two sockets");
    let serving = Arc::clone(&host);
    thread::spawn(move || serving.serve(&ours));
    let mut sockets = vec![theirs];
    let dial = move || {
        let gone = || std::io::ErrorKind::ConnectionRefused.into();
        sockets.pop().ok_or_else(gone)
    };
    let settings = AgentSettings {
        token: 1,
        name: "guest".into(),
        protocol: Protocol::Ranges,
        is_paced: true,
    };
    let source: Arc<dyn PageSource> = Arc::new(KernelPages::new(Arc::clone(&kernel)));
    let agent = Agent::start(settings, source, dial).expect("a thread");
    let relief = Arc::new(Relief::Bundled(agent));
    let weak: Weak<Relief> = Arc::downgrade(&relief);
    kernel.set_pressure_hook(weak);
    host.wait("the balloon", |state| state.balloon.len() as u64 == BALLOON);
    Guest {
        host,
        kernel,
        _relief: relief,
        _directory: directory,
    }
}

fn page(number: u32) -> Vec<u8> {
    let bytes = (number + 1).to_le_bytes();
    bytes.into_iter().cycle().take(PAGE_SIZE).collect()
}

fn write_all(region: &AnonRegion) {
    for number in 0..NEED {
        let at = u64::from(number) * PAGE_SIZE as u64;
        region.write(at, &page(number)).expect("memory");
    }
}

fn check_all(region: &AnonRegion) {
    let mut found = vec![0; PAGE_SIZE];
    for number in 0..NEED {
        let at = u64::from(number) * PAGE_SIZE as u64;
        region.read(at, &mut found).expect("memory");
        assert!(found == page(number), "page {number}");
    }
}

#[test]
fn guest_that_is_out_of_memory_gets_its_balloon_back_at_once() {
    let guest = guest(0, false);
    let region = guest.kernel.map_anon(NEED);
    write_all(&region);
    check_all(&region);
    let stats = guest.kernel.stats();
    assert_eq!((stats.oom, stats.anon), (0, u64::from(NEED)));
    guest.host.wait("relief", |state| {
        (1..=BALLOON.div_ceil(256) as u32).contains(&state.reliefs)
    });
}

#[test]
fn guest_of_a_host_that_is_short_pages_by_itself_and_says_so() {
    let guest = guest(RAM, true);
    let region = guest.kernel.map_anon(NEED);
    write_all(&region);
    check_all(&region);
    let stats = guest.kernel.stats();
    assert_eq!((stats.oom, stats.relief, stats.balloon), (0, 0, BALLOON));
    let (out, back) = (stats.swap_out, stats.swap_in);
    assert!(out > 0 && back > 0, "{stats:?}");
    assert!(stats.swap_wait_us > 0, "{stats:?}");
    let expected = [
        Stat::new(StatTag::SWAP_IN, back * PAGE_SIZE as u64),
        Stat::new(StatTag::SWAP_OUT, out * PAGE_SIZE as u64),
        Stat::new(StatTag::OOM_KILLS, 0),
        Stat::new(StatTag::SWAP_WAIT, stats.swap_wait_us),
    ];
    guest.host.wait("its statistics", |state| {
        expected.iter().all(|stat| state.stats.contains(stat))
    });
}

#[test]
fn guest_without_a_disk_waits_for_a_host_that_is_short() {
    let guest = guest(0, true);
    let region = guest.kernel.map_anon(NEED);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(&region));
        guest.host.wait("it asks", |state| state.reliefs >= 3);
        assert!(!writer.is_finished());
        guest.host.change(|state| state.is_short = false);
        writer.join().expect("it has memory");
    });
    check_all(&region);
    assert_eq!(guest.kernel.stats().oom, 0);
}

#[test]
fn allocation_that_failed_is_reported_as_an_out_of_memory_kill() {
    let guest = guest(0, false);
    let region = guest.kernel.map_anon(2 * RAM);
    let failed = (0..2 * RAM).any(|number| {
        let at = u64::from(number) * PAGE_SIZE as u64;
        region.write(at, &page(number)).is_err()
    });
    assert!(failed, "it has no such memory");
    let oom = Stat::new(StatTag::OOM_KILLS, 1);
    guest
        .host
        .wait("its statistics", |state| state.stats.contains(&oom));
    assert_eq!(
        guest.kernel.stats().balloon,
        0,
        "all of the balloon was given first"
    );
}
