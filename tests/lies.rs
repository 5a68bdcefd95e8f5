//! Agents that lie, in every protocol and in any order, while an honest guest is ballooned: a lie harms only the guest
//! whose agent tells it.

mod rig;

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use memvisor::units::Pages;
use memvisor_wire::balloon::{
    Capabilities, ListedPage, MAX_MESSAGE_BYTES, Protocol, RangeBatch, Start, ToAgent, ToHost,
};
use memvisor_wire::{Gfn, GfnRun, Received, SeqPacket, wait_readable};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rig::{Host, engines, eventually};

/// Pages of a guest whose agent lies.
const RAM: u32 = 2048;
const PATIENCE: Duration = Duration::from_secs(60);
/// A host answers in microseconds; it is given far more, and an agent that got no answer just goes on.
const ANSWER: Duration = Duration::from_secs(20);

/// Something that an agent does.
#[derive(Clone, Debug)]
enum Lie {
    /// A `START`, whether or not it is time for one, with the capabilities of some protocol.
    Start(usize),
    /// Pages that were never given, were given twice, or are in use, or are not there.
    Say(Message, u32, u32),
    /// Words of the shared map, whatever they were.
    Scribble(u32, u32),
    /// Bytes that are no message.
    Noise(Vec<u8>),
    /// The end of the connection, without a word.
    Leave,
}

/// The messages that name pages, and others.
#[derive(Clone, Copy, Debug)]
enum Message {
    Lock,
    Unlock,
    LockPages,
    UnlockPages,
    Inflate,
    Deflate,
    Report,
    Offer,
    Give(u32),
    Relief,
    GetTarget,
    Stop,
}

fn lie() -> impl Strategy<Value = (bool, Lie)> {
    use Message::*;
    let message = prop_oneof![
        4 => prop::sample::select(vec![
            Lock, Unlock, LockPages, UnlockPages, Inflate, Deflate, Report, Offer, Relief, GetTarget,
        ]),
        2 => (0..4_u32).prop_map(Give),
        1 => Just(Stop),
    ];
    let page = prop_oneof![8 => 0..RAM, 1 => RAM - 4..RAM + 4, 1 => Just(u32::MAX)];
    let lie = prop_oneof![
        3 => (0..Protocol::ALL.len()).prop_map(Lie::Start),
        16 => (message, page, 1..400_u32).prop_map(|(message, at, count)| Lie::Say(message, at, count)),
        6 => (0..RAM / 16, any::<u32>()).prop_map(|(at, word)| Lie::Scribble(at, word)),
        1 => vec(any::<u8>(), 1..40).prop_map(Lie::Noise),
        1 => Just(Lie::Leave),
    ];
    (any::<bool>(), lie)
}

/// An agent that does as it is told.
struct Liar<'h> {
    host: &'h Host,
    token: u64,
    socket: Option<SeqPacket>,
    map: Option<File>,
    seq: u32,
}

impl<'h> Liar<'h> {
    fn new(host: &'h Host, name: &str) -> Self {
        let token = host.client().token(name).expect("it is powered on");
        let text = token.token.trim_start_matches("0x");
        Self {
            host,
            token: u64::from_str_radix(text, 16).expect("hexadecimal digits"),
            socket: None,
            map: None,
            seq: 0,
        }
    }

    fn tell(&mut self, lie: &Lie) {
        match lie {
            Lie::Start(protocol) => self.start(Protocol::ALL[*protocol]),
            Lie::Say(message, at, count) => {
                if let Some(message) = message.with(*at, *count) {
                    self.say(&message);
                }
            }
            Lie::Scribble(at, word) => {
                if let Some(map) = &self.map {
                    let written = map.write_all_at(&word.to_ne_bytes(), u64::from(*at) * 4);
                    // The map of a balloon that has ended is cut down to nothing, and cannot grow again.
                    let _ = written;
                }
            }
            Lie::Noise(bytes) => self.send(bytes),
            Lie::Leave => self.socket = None,
        }
    }

    fn start(&mut self, protocol: Protocol) {
        // Most are the first message of a connection, as it should be; after others the host hangs up.
        if self.seq.is_multiple_of(4) || self.socket.is_none() {
            self.socket = SeqPacket::connect(&self.host.socket("balloon.sock")).ok();
        }
        self.say(&ToHost::Start(Start {
            min_version: 1,
            max_version: 1,
            capabilities: Capabilities::COMMON | protocol.capabilities(),
            token: self.token,
            total_pages: RAM.into(),
            name: "liar".to_owned(),
        }));
    }

    fn say(&mut self, message: &ToHost) {
        self.seq += 1;
        self.send(&message.encode(self.seq));
        if !message.has_reply() {
            return;
        }
        while let Some((seq, answer)) = self.receive() {
            let ends = matches!(answer, ToAgent::Error { .. } | ToAgent::Stopped);
            if ends {
                self.socket = None;
            }
            if ends || seq == self.seq || matches!(answer, ToAgent::Reset) {
                break;
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let sent = self.socket.as_ref().map(|socket| socket.send(bytes));
        if matches!(sent, Some(Err(_))) {
            self.socket = None;
        }
    }

    /// The next message; `None` when the host has hung up.
    fn receive(&mut self) -> Option<(u32, ToAgent)> {
        let socket = self.socket.as_ref()?;
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let ready = wait_readable([socket.as_fd()], Some(ANSWER)).expect("a socket");
        assert_eq!(ready, [true], "the host is silent");
        match socket.recv_with_fds(&mut buffer) {
            Ok((Received::Message { len }, fds)) => {
                self.keep(fds);
                Some(ToAgent::decode(&buffer[..len]).expect("the host keeps the format"))
            }
            _ => {
                self.socket = None;
                None
            }
        }
    }

    fn keep(&mut self, fds: Vec<OwnedFd>) {
        if let Some(fd) = fds.into_iter().next() {
            self.map = Some(File::from(fd));
        }
    }
}

impl Message {
    /// The message about `count` pages from `at` on, as far as the form allows; `None` if it allows none.
    fn with(self, at: u32, count: u32) -> Option<ToHost> {
        let pages = || (0..count).map(move |page| at.wrapping_add(page));
        let ranges = || {
            let fits = count.min(u32::MAX - at);
            RangeBatch::new(vec![GfnRun::new(Gfn(at), fits.max(1))]).ok()
        };
        // In an order and with repetitions that no honest agent has.
        let listed = || pages().chain(pages()).rev().take(512);
        Some(match self {
            Self::Lock => ToHost::Lock(ranges()?),
            Self::Unlock => ToHost::Unlock(ranges()?),
            Self::LockPages => ToHost::LockPages(
                listed()
                    .map(|page| ListedPage::asked(page.into()))
                    .collect(),
            ),
            Self::UnlockPages => ToHost::UnlockPages(
                listed()
                    .map(|page| ListedPage::asked(page.into()))
                    .collect(),
            ),
            Self::Inflate => ToHost::Inflate(listed().take(256).map(Gfn).collect()),
            Self::Deflate => ToHost::Deflate(listed().take(256).map(Gfn).collect()),
            Self::Report => ToHost::Report(ranges()?),
            Self::Offer => ToHost::Offer(ranges()?),
            Self::Give(epoch) => ToHost::Give {
                epoch,
                ranges: ranges()?,
            },
            Self::Relief => ToHost::Relief {
                pages: count.into(),
            },
            Self::GetTarget => ToHost::GetTarget {
                total_pages: RAM.into(),
                balloon_pages: at.into(),
            },
            Self::Stop => ToHost::Stop,
        })
    }
}

/// Two agents lie by turns, and a third guest, whose balloon moves all the time, verifies all that it reads.
fn lies(engine: &str, honest: Protocol) {
    let host = Host::start(engine, "96M", &[]);
    let words = |more: &str| format!("--memory 8M --workload {more} --no-agent");
    // Their content is theirs to lose, so nobody looks at it.
    let liars = ["one", "two"].map(|name| host.guest(name, &words("idle,size=4M")));
    let words =
        format!("--memory 32M --workload churn,size=12M,threads=2 --balloon-protocol {honest}");
    let good = host.guest("good", &words);
    eventually("the honest agent", PATIENCE, || {
        host.vm("good").balloon.agent.then_some(())
    });
    for name in ["one", "two"] {
        eventually("the guests", PATIENCE, || {
            (host.vm(name).homes.untouched_pages < Pages(RAM.into())).then_some(())
        });
    }
    let config = Config {
        cases: 6,
        failure_persistence: None,
        ..Config::default()
    };
    let turn = Cell::new(0_u64);
    let told = TestRunner::new(config).run(&vec(lie(), 40..120), |lies| {
        let mut agents = ["one", "two"].map(|name| Liar::new(&host, name));
        agents.iter_mut().for_each(|agent| agent.start(honest));
        for (number, (which, lie)) in lies.iter().enumerate() {
            agents[usize::from(*which)].tell(lie);
            if number % 16 == 0 {
                turn.set(turn.get() + 1);
                let turn = turn.get();
                let balloon = |pages| {
                    host.client()
                        .set_balloon("good", Some(Pages(pages).bytes()))
                };
                balloon(turn % 5 * 1000).expect("it is there");
                for name in ["one", "two"] {
                    let set = host
                        .client()
                        .set_balloon(name, Some(Pages(turn % 3 * 600).bytes()));
                    // Its agent may just have left.
                    let _ = set;
                }
            }
        }
        let status = host.status();
        prop_assert!(status.used_pages <= status.budget_pages, "{status:#?}");
        for vm in &status.vms {
            prop_assert_eq!(vm.homes.total(), vm.configured_pages, "{:#?}", vm);
        }
        Ok(())
    });
    if let Err(error) = told {
        panic!("{engine}, {honest}: {error}");
    }
    let moved = host.vm("good").balloon.session;
    assert!(
        moved.inflated_pages > Pages(0),
        "{engine}, {honest}: {moved:#?}"
    );
    assert_eq!(
        moved.invalid_pages,
        Pages(0),
        "{engine}, {honest}: {moved:#?}"
    );
    drop(liars);
    let report = good.stop();
    assert!(report.pages_verified > 0, "{report:#?}");
    host.is_empty(PATIENCE);
    host.stop();
}

macro_rules! in_each_protocol {
    ($($test:ident: $protocol:ident;)*) => {$(
        #[test]
        fn $test() {
            for engine in engines() {
                lies(engine, Protocol::$protocol);
            }
        }
    )*};
}

in_each_protocol! {
    lies_harm_nobody_who_is_ballooned_by_ranges: Ranges;
    lies_harm_nobody_who_is_ballooned_by_page_lists: PageLists;
    lies_harm_nobody_who_is_ballooned_by_arrays: PfnArrays;
    lies_harm_nobody_who_is_ballooned_by_reports: Reporting;
    lies_harm_nobody_who_is_ballooned_by_hints: Hints;
    lies_harm_nobody_who_is_ballooned_by_a_map: Bitmap;
}
