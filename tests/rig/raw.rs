//! Shims and agents that a test scripts itself, to say what no good one would.
//!
//! The daemon kills the process of a guest that does not end, so the test must not be that process. Another
//! process connects and passes the connection to the test, and the daemon takes that process for the guest.

use std::env;
use std::fs::File;
use std::io::stdin;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use memvisor_wire::balloon::{Capabilities, Start, Started, ToAgent, ToHost};
use memvisor_wire::memory::{
    Ack, Command as Order, Fault, Hello, MAX_CHANNELS, MAX_MESSAGE, MAX_REPORT, Message,
    REPLY_BYTES, Ready, Reply, Welcome,
};
use memvisor_wire::sys::uffd;
use memvisor_wire::{Received, SeqPacket, wait_readable};
use nix::sys::signal::Signal;

use super::sys::unanswered;
use super::{Host, PATIENCE, eventually, names_all};

const SOCKET: &str = "MEMVISOR_TEST_CONNECT";
/// The address at which a scripted guest says that it maps RAM. Nothing is mapped there, and nobody looks.
pub(crate) const BASE: u64 = 1 << 40;

/// What the connecting process does. Each test binary has an ignored test `connector` that calls this. It does
/// nothing unless its environment is set, as when somebody runs all ignored tests.
pub(crate) fn connector() {
    let Some(path) = env::var_os(SOCKET) else {
        return;
    };
    let fd = stdin().as_fd().try_clone_to_owned().expect("stdin");
    let parent = SeqPacket::from(fd);
    let connection = SeqPacket::connect(path.as_ref()).expect("connect");
    parent
        .send_with_fds(b"connected", &[connection.as_fd()])
        .expect("pass on");
    drop(connection);
    // Lives until the test closes its end, or asks for a file to be kept locked.
    let asked = parent.recv_with_fds(&mut [0; 1]);
    if let Some(file) = asked.ok().and_then(|(_, mut fds)| fds.pop()) {
        keep_locked(&parent, file.into());
    }
}

/// Writes a page that never arrives to `file`, so that the kernel keeps the file locked, and says so.
fn keep_locked(parent: &SeqPacket, file: File) {
    let said = match unanswered() {
        Ok((faults, page)) => {
            thread::spawn(move || file.write_at(&page, 0));
            wait_readable([faults.as_fd()], None).expect("poll");
            parent.send(b"locked").expect("say so");
            let _ = parent.recv(&mut [0; 1]);
            return;
        }
        Err(error) => error.to_string(),
    };
    parent.send(said.as_bytes()).expect("say so");
}

/// A guest whose shim is the test.
#[derive(Debug)]
pub(crate) struct RawGuest {
    process: Child,
    line: SeqPacket,
    pub(crate) socket: SeqPacket,
}

impl RawGuest {
    pub(crate) fn connect(host: &Host) -> Self {
        let (line, theirs) = SeqPacket::pair().expect("a pair");
        let process = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "connector", "--ignored", "--quiet"])
            .env(SOCKET, host.socket("memory.sock"))
            .stdin(theirs.as_fd().try_clone_to_owned().expect("a descriptor"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start this test again");
        let (received, mut fds) = line.recv_with_fds(&mut [0; 16]).expect("receive");
        assert!(
            matches!(received, Received::Message { .. }),
            "the connector failed"
        );
        let socket = SeqPacket::from(fds.pop().expect("the connection"));
        Self {
            process,
            line,
            socket,
        }
    }

    pub(crate) fn send(&self, message: &Message) {
        self.socket.send(&message.encode()).expect("send");
    }

    /// Has the guest's process keep `file` locked for as long as the process lives; whether it can.
    pub(crate) fn lock(&self, file: &File) -> bool {
        let asked = self.line.send_with_fds(&[1], &[file.as_fd()]);
        asked.expect("ask");
        let mut said = [0; 64];
        let received = self.line.recv_timeout(&mut said, PATIENCE);
        let Some(Received::Message { len }) = received.expect("receive") else {
            panic!("the connector failed");
        };
        let said = String::from_utf8_lossy(&said[..len]);
        let locked = said == "locked";
        if !locked {
            eprintln!("SKIPPED: no faults of the kernel for this user ({said})");
        }
        locked
    }

    /// The next message; panics at the end of the connection.
    pub(crate) fn receive(&self) -> Message {
        self.receive_with_fds().0
    }

    pub(crate) fn receive_with_fds(&self) -> (Message, Vec<OwnedFd>) {
        let mut buffer = [0; MAX_MESSAGE];
        let ready = wait_readable([self.socket.as_fd()], Some(PATIENCE));
        assert_eq!(ready.expect("poll"), [true], "the host says nothing");
        let (received, fds) = self.socket.recv_with_fds(&mut buffer).expect("receive");
        let Received::Message { len } = received else {
            panic!("the host hung up");
        };
        (Message::decode(&buffer[..len]).expect("a message"), fds)
    }

    /// Expects the host to end the session for a reason that has all of `words`, and to hang up. Commands
    /// that were under way are ignored.
    #[track_caller]
    pub(crate) fn is_told(&self, words: &str) {
        let why = loop {
            match self.receive() {
                Message::Error(why) => break why,
                Message::Command(_) => {}
                other => panic!("{} where ERROR `{words}` is expected", other.name()),
            }
        };
        names_all(&why, words);
        let mut buffer = [0; MAX_MESSAGE];
        let end = loop {
            let next = self.socket.recv_timeout(&mut buffer, PATIENCE);
            // The worker may send one more before the host hangs up.
            match next.expect("receive") {
                Some(Received::Message { len }) => {
                    let late = Message::decode(&buffer[..len]).expect("a message");
                    assert!(matches!(late, Message::Command(_)), "{late:?} behind {why}");
                }
                end => break end,
            }
        };
        assert_eq!(end, Some(Received::Closed), "{why}");
    }

    /// Expects the host to have ended the guest's process, which never ends by itself.
    #[track_caller]
    pub(crate) fn is_killed(&mut self) {
        let status = eventually("the guest's process is killed", PATIENCE, || {
            self.process.try_wait().expect("a child")
        });
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    }

    /// Says HELLO and takes WELCOME.
    pub(crate) fn hello(self, hello: Hello) -> Welcomed {
        self.send(&Message::Hello(hello));
        let (message, mut fds) = self.receive_with_fds();
        let Message::Welcome(welcome) = message else {
            panic!("no WELCOME: {message:?}");
        };
        let inline = fds.split_off(2);
        let [ram, pool] = <[OwnedFd; 2]>::try_from(fds).expect("RAM and pool");
        Welcomed {
            guest: self,
            welcome,
            ram: File::from(ram),
            pool,
            inline,
        }
    }
}

impl Drop for RawGuest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A valid HELLO.
pub(crate) fn hello(name: &str, pages: u32) -> Hello {
    Hello {
        name: name.to_owned(),
        pages,
        uffd: uffd::open().is_ok(),
        reservation: 0,
        limit: pages,
        shares: 1000,
        balloon_max: u32::MAX,
        sharing: true,
        salt: None,
        workload: "scripted".to_owned(),
        inline: false,
        resource_pool: String::new(),
    }
}

/// A scripted guest after WELCOME.
#[derive(Debug)]
pub(crate) struct Welcomed {
    pub(crate) guest: RawGuest,
    pub(crate) welcome: Welcome,
    pub(crate) ram: File,
    pub(crate) pool: OwnedFd,
    /// What only an inline guest gets: the claim table, and the arena of its compression cache.
    pub(crate) inline: Vec<OwnedFd>,
}

impl Welcomed {
    pub(crate) fn ready(&self, base: u64, channels: u16, fds: &[BorrowedFd<'_>]) {
        let ready = Message::Ready(Ready { base, channels });
        let sent = self.guest.socket.send_with_fds(&ready.encode(), fds);
        sent.expect("send READY");
    }

    /// Finishes the handshake as a good shim does.
    pub(crate) fn power_on(self) -> Powered {
        self.power_on_while(None)
    }

    /// The same. Meanwhile a thread of its own calls `meanwhile` with the guest's userfaultfd, if there is one, again
    /// and again until the host lets the guest run.
    pub(crate) fn power_on_while(
        self,
        meanwhile: Option<&(dyn Fn(BorrowedFd<'_>) + Sync)>,
    ) -> Powered {
        let uffd = matches!(self.welcome.engine, memvisor_wire::memory::Engine::Uffd)
            .then(|| uffd::open().expect("it worked before"));
        let fds: Vec<_> = uffd.iter().map(AsFd::as_fd).collect();
        let (go, runs) = mpsc::channel();
        let (message, fds) = thread::scope(|scope| {
            if let (Some(meanwhile), Some(uffd)) = (meanwhile, &uffd) {
                scope.spawn(move || {
                    while runs.try_recv() == Err(TryRecvError::Empty) {
                        meanwhile(uffd.as_fd());
                    }
                });
            }
            // Dropped however this scope ends, a panic included, which ends the thread above.
            let _go: mpsc::Sender<()> = go;
            self.ready(BASE, MAX_CHANNELS as u16, &fds);
            self.guest.receive_with_fds()
        });
        assert_eq!(message, Message::Go);
        assert_eq!(fds.len(), MAX_CHANNELS);
        Powered {
            guest: self.guest,
            ram: self.ram,
            token: self.welcome.token,
            channels: fds.into_iter().map(SeqPacket::from).collect(),
            _uffd: uffd,
        }
    }
}

/// A scripted guest that is powered on.
#[derive(Debug)]
pub(crate) struct Powered {
    pub(crate) guest: RawGuest,
    pub(crate) ram: File,
    pub(crate) token: u64,
    pub(crate) channels: Vec<SeqPacket>,
    _uffd: Option<uffd::Userfault>,
}

impl Powered {
    pub(crate) fn on(host: &Host, name: &str, pages: u32) -> Self {
        RawGuest::connect(host).hello(hello(name, pages)).power_on()
    }

    pub(crate) fn fault(&self, channel: usize, fault: Fault) {
        self.channels[channel].send(&fault.encode(0)).expect("send");
    }

    pub(crate) fn reply(&self, channel: usize) -> Reply {
        let mut bytes = [0; REPLY_BYTES];
        let received = self.channels[channel].recv_timeout(&mut bytes, PATIENCE);
        let received = received.expect("receive").expect("an answer in time");
        assert!(matches!(received, Received::Message { .. }), "{received:?}");
        Reply::decode(&bytes).expect("a reply")
    }

    /// Touches a page of a VM without userfaultfd as a good shim would, and fills it with `byte`.
    pub(crate) fn write_page(&self, gfn: u32, byte: u8) {
        self.fault(0, Fault::Write(memvisor_wire::Gfn(gfn)));
        let reply = self.reply(0);
        if let Reply::Reveal(_) | Reply::Attached(_) = reply {
            panic!("a write is not answered so");
        }
        let at = u64::from(gfn) * 4096;
        self.ram.write_all_at(&[byte; 4096], at).expect("write RAM");
        // `Retry` means that the page is open already: it came ahead with another page.
        if reply != Reply::Retry {
            self.fault(0, Fault::Done(0));
            self.settled(0);
        }
    }

    /// Waits until the host has seen what was said on a channel. That matters for `DONE`: the page stays locked until
    /// then.
    fn settled(&self, channel: usize) {
        self.fault(channel, Fault::History(memvisor_wire::Gfn(0)));
        let mut text = [0; MAX_REPORT];
        let received = self.channels[channel].recv_timeout(&mut text, PATIENCE);
        received.expect("receive").expect("an answer in time");
    }

    /// The next command to the memory thread.
    pub(crate) fn command(&self) -> Order {
        match self.guest.receive() {
            Message::Command(command) => command,
            other => panic!("{} where COMMAND is expected", other.name()),
        }
    }

    pub(crate) fn ack(&self, seq: u32, done: u32, errno: u32) {
        let ack = Ack { seq, done, errno };
        self.guest.send(&Message::Ack(ack));
    }
}

/// A balloon agent that is the test.
#[derive(Debug)]
pub(crate) struct RawAgent {
    pub(crate) socket: SeqPacket,
    seq: u32,
}

impl RawAgent {
    pub(crate) fn connect(host: &Host) -> Self {
        let socket = SeqPacket::connect(&host.socket("balloon.sock")).expect("connect");
        Self { socket, seq: 0 }
    }

    pub(crate) fn send(&mut self, message: &ToHost) -> u32 {
        self.seq += 1;
        self.socket.send(&message.encode(self.seq)).expect("send");
        self.seq
    }

    pub(crate) fn receive(&self) -> (u32, ToAgent) {
        let mut buffer = vec![0; 64 * 1024];
        match self.socket.recv_timeout(&mut buffer, PATIENCE) {
            Ok(Some(Received::Message { len })) => {
                ToAgent::decode(&buffer[..len]).expect("a message")
            }
            other => panic!("no message: {other:?}"),
        }
    }

    /// Asks and takes the answer. Messages that the host sends unasked before it are ignored.
    pub(crate) fn ask(&mut self, message: &ToHost) -> ToAgent {
        let asked = self.send(message);
        loop {
            match self.receive() {
                (seq, answer) if seq == asked => return answer,
                (0, _) => {}
                (seq, answer) => panic!("{answer:?} answers {seq}, not {asked}"),
            }
        }
    }

    pub(crate) fn start(&mut self, token: u64, pages: u64) -> Started {
        match self.ask(&ToHost::Start(start(token, pages))) {
            ToAgent::Started(started) => started,
            other => panic!("no STARTED: {other:?}"),
        }
    }

    /// Expects an error that has all of `words`, then the end of the connection.
    #[track_caller]
    pub(crate) fn is_told(&self, words: &str) {
        let why = loop {
            match self.receive().1 {
                ToAgent::Error { text, .. } => break text,
                ToAgent::Target { .. } | ToAgent::Reset => {}
                other => panic!("{other:?} where an error `{words}` is expected"),
            }
        };
        names_all(&why, words);
        let end = self.socket.recv_timeout(&mut [0; 64], PATIENCE);
        assert_eq!(end.expect("receive"), Some(Received::Closed), "{why}");
    }
}

/// A valid START.
pub(crate) fn start(token: u64, total_pages: u64) -> Start {
    Start {
        min_version: 1,
        max_version: 1,
        capabilities: Capabilities::COMMON,
        token,
        total_pages,
        name: "scripted".to_owned(),
    }
}

/// A little more than how long the host waits for the first message of a connection.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(8);
