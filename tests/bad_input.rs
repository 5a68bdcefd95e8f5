//! Guests and agents that break the rules: each is told why and loses its connection, and no other guest
//! notices.

mod rig;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memvisor::units::Bytes;
use memvisor_wire::balloon::{PageStatus, RangeBatch, Stat, StatTag, StatusRun, ToAgent, ToHost};
use memvisor_wire::memory::{
    Ack, Command, Engine, Fault, Hello, MAX_CHANNELS, Message, Op, Ready, Remap, Reply, VERSION,
    Welcome,
};
use memvisor_wire::{Gfn, GfnRun, Received, SeqPacket};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rig::raw::{BASE, HANDSHAKE, Powered, RawAgent, RawGuest, hello, start};
use rig::{Host, PATIENCE, Process, engines, eventually, memvisor, names_all};

/// Not a test: the process that stands for a scripted guest, see [`rig::raw`].
#[test]
#[ignore = "started by other tests"]
fn connector() {
    rig::raw::connector();
}

/// A good guest that must not notice anything; it runs until it is told to end.
fn bystander(host: &Host) -> Process {
    let guest = host.guest("good", "--memory 16M --workload kv,size=8M");
    host.await_vm("good", "runs", |vm| vm.homes.resident_pages.0 > 1000);
    guest
}

#[track_caller]
fn end_well(host: Host, bystander: Process) -> String {
    bystander.stop();
    host.is_empty(Duration::from_secs(2));
    host.stop()
}

/// Sends one datagram to the memory socket; expects a refusal that has all of `words`, and the end of the connection.
#[track_caller]
fn refused(host: &Host, datagram: &[u8], words: &str) {
    let socket = SeqPacket::connect(&host.socket("memory.sock")).expect("connect");
    socket.send(datagram).expect("send");
    told(&socket, words);
}

#[track_caller]
fn told(socket: &SeqPacket, words: &str) {
    let mut buffer = [0; 8192];
    let received = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
    let Some(Received::Message { len }) = received else {
        panic!("no message that names `{words}`: {received:?}");
    };
    let message = Message::decode(&buffer[..len]).expect("a message");
    let Message::Error(why) = message else {
        panic!("{} where ERROR `{words}` is expected", message.name());
    };
    names_all(&why, words);
    let end = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
    assert_eq!(end, Some(Received::Closed), "{why}");
}

/// The clients open connections, begin a request or send nothing at all, and then stay silent.
#[test]
fn operator_is_answered_beside_a_flood_of_connections_that_say_nothing() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let body = "PATCH /v1/vms/good HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 99\r\n\r\n{";
    let _flood: Vec<UnixStream> = ["", "GET /v1/vms HTTP", body]
        .iter()
        .cycle()
        .take(120)
        .map(|beginning| {
            let mut stream = UnixStream::connect(host.socket("control.sock")).expect("connect");
            // The host may have closed it again already.
            let _ = stream.write_all(beginning.as_bytes());
            stream
        })
        .collect();
    let mut command = memvisor();
    let sockets = host.socket("");
    command.args(["vm", "ls", "--runtime-dir"]).arg(sockets);
    let answer = command.output().expect("start");
    let shown = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.status.success() && shown.contains("good"),
        "{answer:?}"
    );
    end_well(host, good);
}

/// Whoever reads the log must be able to trust its lines, and to find the important ones among them.
#[test]
fn guests_forge_no_lines_of_the_log_and_do_not_fill_it() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let forged = "x\nERROR host ends \x1b[2J";
    let hello = Message::Hello(hello(forged, 64)).encode();
    for _ in 0..100 {
        refused(&host, &hello, "name x");
    }
    // Once the throttle lets a line through again, that line says how many were left out.
    let unsaid = || {
        refused(&host, &hello, "name x");
        host.log().contains("unsaid=").then_some(())
    };
    eventually(
        "the log tells how many lines it does not have",
        PATIENCE,
        unsaid,
    );
    let log = host.stop();
    let lines = log
        .lines()
        .filter(|line| line.contains("was not powered on"));
    assert!(lines.count() < 40, "{log}");
    assert!(!log.contains('\x1b'), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("ERROR")), "{log}");
}

#[test]
fn memory_socket_bad_first_message_is_refused_with_the_reason() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let hello_bytes = Message::Hello(hello("x", 64)).encode();
    let mut version = hello_bytes.clone();
    version[0] = 9;
    let mut kind = hello_bytes.clone();
    kind[2] = 99;
    let mut long = hello_bytes.clone();
    long.push(0);
    let mut text = hello_bytes.clone();
    let name_at = text
        .iter()
        .position(|byte| *byte == b'x')
        .expect("the name");
    text[name_at] = 0xff;
    let ready = Message::Ready(Ready {
        base: 0,
        channels: 1,
    })
    .encode();
    let ack = Message::Ack(Ack {
        seq: 0,
        done: 0,
        errno: 0,
    })
    .encode();
    for (datagram, why) in [
        (&hello_bytes[..1], "`version`"),
        (&hello_bytes[..hello_bytes.len() - 1], "ends inside"),
        (&version, "version 9 memory"),
        (&kind, "`type` 99"),
        (&long, "1 bytes"),
        (&text, "`name` UTF-8"),
        (&ready, "READY HELLO"),
        (&ack, "ACK HELLO"),
        (&[1; 20_000], "20000 16384"),
    ] {
        refused(&host, datagram, why);
    }
    for (change, why) in [
        ((|h| h.pages = 0) as fn(&mut Hello), "0 B"),
        (|h| h.pages = u32::MAX, "16384.00 GiB"),
        (|h| h.limit = 65, "limit 260.0 256.0"),
        (|h| h.reservation = 65, "reservation 260.0 256.0"),
        (|h| h.name = "../x".to_owned(), "`../x`"),
        (|h| h.name = "good".to_owned(), "`good`"),
    ] {
        let mut hello = hello("x", 64);
        change(&mut hello);
        refused(&host, &Message::Hello(hello).encode(), why);
    }
    assert_eq!(host.status().vms.len(), 1);
    end_well(host, good);
}

#[test]
fn memory_socket_bad_ready_is_refused_with_the_reason() {
    for engine in engines() {
        let host = Host::quiet(engine, "64M", &[]);
        let good = bystander(&host);
        let null = File::open("/dev/null").expect("open");
        let file = tempfile::tempfile().expect("a file");
        let (socket, _peer) = SeqPacket::pair().expect("a pair");
        let uffd = memvisor_wire::sys::uffd::open();
        let right = match (&uffd, engine) {
            (Ok(uffd), "uffd") => vec![uffd.as_fd()],
            _ => Vec::new(),
        };
        let with = |fds: &[std::os::fd::BorrowedFd<'_>], base, channels, why: &str| {
            let welcomed = RawGuest::connect(&host).hello(hello("bad", 64));
            welcomed.ready(base, channels, fds);
            welcomed.guest.is_told(why);
            host.forgets("bad", PATIENCE);
        };
        with(&right, BASE, 0, "0 1 16");
        let many = MAX_CHANNELS as u16 + 1;
        with(&right, BASE, many, "17 1 16");
        let belong = right.len();
        for wrong in [1 - belong, belong + 1, belong + MAX_CHANNELS, 200] {
            let why = format!("{wrong} descriptors; {belong}");
            with(&vec![socket.as_fd(); wrong], BASE, 1, &why);
        }
        with(&right, BASE + 1, 1, "aligned");
        with(&right, u64::MAX - 4095, 1, "address");
        if engine == "uffd" {
            for other in [null.as_fd(), file.as_fd(), socket.as_fd()] {
                with(&[other], BASE, 1, "userfaultfd");
            }
        }
        let welcomed = RawGuest::connect(&host).hello(hello("bad", 64));
        welcomed.guest.send(&Message::Hello(hello("bad", 64)));
        welcomed.guest.is_told("HELLO READY");
        end_well(host, good);
    }
}

/// Random numbers from a seed that a failing test shows, so that they can be repeated.
fn random() -> StdRng {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

#[test]
fn random_bytes_end_only_their_own_connection() {
    let mut random = random();
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    for _ in 0..30 {
        let mut bytes = vec![0; random.random_range(1..600)];
        random.fill_bytes(&mut bytes);
        for name in ["memory.sock", "balloon.sock"] {
            let socket = SeqPacket::connect(&host.socket(name)).expect("connect");
            socket.send(&bytes).expect("send");
            let mut buffer = [0; 8192];
            let told = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
            assert!(
                matches!(told, Some(Received::Message { .. })),
                "{name}: {told:?}"
            );
            let end = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
            assert_eq!(end, Some(Received::Closed), "{name}");
        }
        let mut control = UnixStream::connect(host.socket("control.sock")).expect("connect");
        control.write_all(&bytes).expect("send");
        control.shutdown(Shutdown::Write).ok();
        control.set_read_timeout(Some(PATIENCE)).expect("bound");
        // The server may hang up before it has read everything, which resets the connection.
        match control.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(host.status().vms.len(), 1);
    end_well(host, good);
}

/// Bytes of version and type. [`bent`] leaves them alone, so that the host reads the rest.
const MEMORY_HEADER: usize = 4;
const CHANNEL_HEADER: usize = 8;
const BALLOON_HEADER: usize = 8;

/// A message with up to three bytes behind its header changed, and now and then its length as well.
fn bent(random: &mut StdRng, mut bytes: Vec<u8>, header: usize) -> Vec<u8> {
    for _ in 0..random.random_range(1..=3) {
        if bytes.len() > header {
            let at = random.random_range(header..bytes.len());
            bytes[at] = [0, 1, 0x7f, 0xff, random.random()][random.random_range(0..5)];
        }
    }
    match random.random_range(0..6) {
        0 => bytes.truncate(random.random_range(header..=bytes.len())),
        1 => bytes.push(random.random()),
        _ => {}
    }
    bytes
}

/// One message of each kind.
fn memory_messages() -> Vec<Message> {
    let run = GfnRun::new(Gfn(8), 4);
    let remap = |run| Remap { run, frame: 1 };
    vec![
        Message::Hello(hello("bad", 64)),
        Message::Welcome(Welcome {
            vm: 1,
            engine: Engine::Mprotect,
            token: 1,
            pool_frames: 64,
            arena_pages: Some(8),
        }),
        Message::Ready(Ready {
            base: BASE,
            channels: 1,
        }),
        Message::Go,
        Message::Command(Command {
            seq: 0,
            op: Op::Freeze,
            runs: vec![remap(run); 3],
        }),
        Message::Ack(Ack {
            seq: 0,
            done: 1,
            errno: 0,
        }),
        Message::Error("enough".to_owned()),
        Message::Pool { seq: 0 },
    ]
}

/// What the host says to a message. `Some`: it ends the connection, for this reason, which is empty if it gives none.
fn answer(socket: &SeqPacket) -> Option<String> {
    let mut buffer = [0; 16 * 1024];
    let received = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
    let len = match received {
        Some(Received::Message { len }) => len,
        Some(Received::Closed) => return Some(String::new()),
        None => panic!("the host says nothing"),
    };
    let why = match Message::decode(&buffer[..len]) {
        Ok(Message::Error(why)) => why,
        Ok(_) => return None,
        Err(error) => panic!("{error}"),
    };
    let end = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
    assert_eq!(end, Some(Received::Closed), "{why}");
    Some(why)
}

/// Why the host ends a guest; empty if it gives no reason. Its worker may send commands until it notices the end.
fn end_of(socket: &SeqPacket) -> String {
    let mut buffer = [0; 16 * 1024];
    let mut reason = String::new();
    loop {
        let received = socket.recv_timeout(&mut buffer, PATIENCE).expect("receive");
        let len = match received {
            Some(Received::Message { len }) => len,
            Some(Received::Closed) => return reason,
            None => panic!("the guest is not ended, after {reason:?}"),
        };
        if let Message::Error(why) = Message::decode(&buffer[..len]).expect("a message") {
            reason = why;
        }
    }
}

/// Checks that the messages were read: none was refused for its version, and there are many different reasons.
#[track_caller]
fn were_read(reasons: &[String], least: usize) {
    for why in reasons {
        assert!(!why.contains("peer speaks version"), "{why}");
    }
    let different: BTreeSet<_> = reasons.iter().collect();
    assert!(different.len() >= least, "{different:?}");
}

/// Every kind of message with the right version and a few wrong bytes: as the first message of a connection,
/// and as the answer to a command.
#[test]
fn bent_memory_messages_of_every_kind_end_only_their_own_guest() {
    let mut random = random();
    // No scanner: the only commands are those of the balloon.
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let good = bystander(&host);
    let mut reasons = Vec::new();
    for message in memory_messages().iter().cycle().take(40) {
        let guest = RawGuest::connect(&host);
        let bytes = bent(&mut random, message.encode(), MEMORY_HEADER);
        guest.socket.send(&bytes).expect("send");
        // A bent HELLO may still be valid.
        reasons.extend(answer(&guest.socket));
    }
    were_read(&reasons, 8);
    reasons.clear();
    for message in memory_messages().iter().cycle().take(16) {
        let (mut guest, _agent, command) = with_command_under_way(&host, "bent");
        let bytes = bent(&mut random, message.encode(), MEMORY_HEADER);
        // A bent ACK may still be valid, and what it claims may be true. Then the guest would not be ended.
        let is_true = |ack: Ack| ack.seq == command.seq && ack.done <= 1;
        if matches!(Message::decode(&bytes), Ok(Message::Ack(ack)) if is_true(ack)) {
            drop(guest);
            host.forgets("bent", PATIENCE);
            continue;
        }
        guest.guest.socket.send(&bytes).expect("send");
        reasons.push(answer(&guest.guest.socket).expect("no answer to the command"));
        guest.guest.is_killed();
        host.forgets("bent", PATIENCE);
    }
    were_read(&reasons, 4);
    assert_eq!(host.status().vms.len(), 1);
    end_well(host, good);
}

/// The same on fault channels: messages that are still valid are served, the first other one ends the guest.
#[test]
fn bent_faults_of_every_kind_end_only_their_own_guest() {
    let mut random = random();
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let mut reasons = Vec::new();
    let pages = GfnRun::new(Gfn(8), 4);
    let source = Gfn(1);
    let faults = [
        Fault::Read(Gfn(3)),
        Fault::Write(Gfn(3)),
        Fault::Done(0),
        Fault::History(Gfn(3)),
        Fault::Credits,
        Fault::Attach { pages, source },
    ];
    for _ in 0..4 {
        let guest = Powered::on(&host, "bent", 64);
        // Sending goes on until a message ends the guest. After that it may succeed or fail, so errors are ignored.
        for (fault, channel) in faults.iter().zip(&guest.channels) {
            let bytes = bent(&mut random, fault.encode(1).to_vec(), CHANNEL_HEADER);
            let _ = channel.send(&bytes);
        }
        // Three bytes are no message, so this ends the guest for certain.
        let _ = guest.channels[0].send(&[1; 3]);
        reasons.push(end_of(&guest.guest.socket));
        host.forgets("bent", PATIENCE);
    }
    were_read(&reasons, 1);
    assert_eq!(host.status().vms.len(), 1);
    end_well(host, good);
}

fn balloon_messages(token: u64) -> Vec<Vec<u8>> {
    let batch = || RangeBatch::new(vec![GfnRun::new(Gfn(8), 4), GfnRun::new(Gfn(20), 1)]);
    let to_host = [
        ToHost::Start(rig::raw::start(token, 64)),
        ToHost::GetTarget {
            total_pages: 64,
            balloon_pages: 0,
        },
        ToHost::Lock(batch().expect("by the rules")),
        ToHost::Unlock(batch().expect("by the rules")),
        ToHost::Stats(vec![Stat::new(StatTag::FREE_MEMORY, 4096)]),
        ToHost::Relief { pages: 8 },
        ToHost::Stop,
    ];
    let to_agent = [ToAgent::Target { pages: 1 }, ToAgent::Reset];
    let to_host = to_host.iter().map(|message| message.encode(7));
    to_host
        .chain(to_agent.iter().map(|message| message.encode(7)))
        .collect()
}

/// The same on the balloon socket: as the first message, and from an agent that has started.
#[test]
fn bent_balloon_messages_of_every_kind_end_only_their_own_agent() {
    let mut random = random();
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let guest = Powered::on(&host, "vm", 64);
    let messages = balloon_messages(guest.token);
    let mut reasons = Vec::new();
    for (round, message) in messages.iter().cycle().take(60).enumerate() {
        let mut agent = RawAgent::connect(&host);
        let is_first = round % 2 == 0;
        if !is_first {
            agent.start(guest.token, 64);
        }
        let bytes = bent(&mut random, message.clone(), BALLOON_HEADER);
        agent.socket.send(&bytes).expect("send");
        // Statistics have no answer. This question has one, unless the host has ended the connection.
        let question = ToHost::GetTarget {
            total_pages: 64,
            balloon_pages: 0,
        };
        let _ = agent.socket.send(&question.encode(9));
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match agent.socket.recv_timeout(&mut buffer, PATIENCE) {
                Ok(Some(Received::Message { len })) => match ToAgent::decode(&buffer[..len]) {
                    Ok((9, _)) => break,
                    Ok((_, ToAgent::Error { text, .. })) => reasons.push(text),
                    Ok(_) => {}
                    Err(error) => panic!("{error}"),
                },
                Ok(Some(Received::Closed)) => break,
                // Comes once if the host closed before it read the question. The reason can still be received.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => panic!("{other:?}: {bytes:?}"),
            }
        }
        drop(agent);
        eventually("the place of the agent is free", PATIENCE, || {
            (!host.vm("vm").balloon.agent).then_some(())
        });
    }
    were_read(&reasons, 8);
    assert_eq!(host.status().vms.len(), 2);
    end_well_with(host, good, guest);
}

/// Sends a complete HTTP request; the answer.
fn http(host: &Host, request: &str) -> String {
    let mut control = UnixStream::connect(host.socket("control.sock")).expect("connect");
    control.write_all(request.as_bytes()).expect("send");
    control.set_read_timeout(Some(PATIENCE)).expect("bound");
    let mut answer = Vec::new();
    control.read_to_end(&mut answer).expect("the end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn control_socket_bad_requests_are_answered_with_what_is_allowed() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let put = |name: &str, body: &str| {
        format!(
            "PUT /v1/vms/{name}/balloon HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let line = |line: &str| format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n");
    let long = format!("{{\"target_bytes\": 1{}}}", " ".repeat(9000));
    for (request, status, words) in [
        (line("GET /v2/status HTTP/1.1"), "404", "GET /v1/status"),
        (line("POST /v1/status HTTP/1.1"), "405", "/v1/status POST"),
        (line("GET /v1/vms/nobody HTTP/1.1"), "404", "good"),
        (line("DELETE /v1/vms/nobody HTTP/1.1"), "404", "good"),
        (put("nobody", "{\"target_bytes\": null}"), "404", "nobody"),
        (put("good", "{\"target_bytes\": 5000}"), "400", "5000 4096"),
        (put("good", "{\"target_bytes\": 67108864}"), "422", "bytes"),
        (put("good", "{\"target_bytes\": -1}"), "422", "target_bytes"),
        (put("good", "{}"), "422", "target_bytes"),
        (put("good", "{\"target"), "400", "target_bytes"),
        (put("good", &long), "413", "8192"),
        ("nonsense\r\n\r\n".to_owned(), "400", ""),
    ] {
        let answer = http(&host, &request);
        let shown = &request[..request.len().min(60)];
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown}: {answer}"
        );
        names_all(&answer, words);
    }
    end_well(host, good);
}

#[test]
fn silent_connections_are_told_and_dropped_after_five_seconds() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let began = Instant::now();
    let mute = SeqPacket::connect(&host.socket("memory.sock")).expect("connect");
    let half = RawGuest::connect(&host).hello(hello("half", 64));
    let agent = RawAgent::connect(&host);
    told(&mute, "5s HELLO");
    half.guest.is_told("5s READY");
    agent.is_told("START 5 seconds");
    assert!(began.elapsed() < HANDSHAKE, "{:?}", began.elapsed());
    host.forgets("half", PATIENCE);
    end_well(host, good);
}

#[test]
fn fault_channel_misuse_ends_that_guest_with_the_reason() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let write = |gfn| Fault::Write(Gfn(gfn)).encode(0).to_vec();
    let done = |errno| Fault::Done(errno).encode(0).to_vec();
    let mut version = write(0);
    version[0] = 9;
    let mut kind = write(0);
    kind[4] = 77;
    let ask_and = |datagram: Vec<u8>| vec![write(0), datagram];
    for (datagrams, why) in [
        (ask_and(write(1)), "second fault"),
        (ask_and(done(12)), "cannot map"),
        (vec![done(0)], "DONE Idle"),
        (vec![write(64)], "64 pages"),
        (vec![write(u32::MAX)], "64 pages"),
        (vec![version], "version 9 memory"),
        (vec![kind], "`kind` 77"),
        (vec![write(0)[..5].to_vec()], "`kind`"),
        (vec![vec![0; 25]], "25 24"),
        (vec![attach(8, 0, 1)], "0 1 1024"),
        (vec![attach(8, 1025, 1)], "1025 1 1024"),
        (vec![attach(60, 5, 1)], "64 pages"),
        (vec![attach(1, 5, 60)], "64 pages"),
        (vec![attach(u32::MAX, 1, 0)], "64 pages"),
        (vec![attach(0, 1024, u32::MAX)], "64 pages"),
        (ask_and(attach(8, 1, 1)), "second fault"),
    ] {
        let mut guest = Powered::on(&host, "bad", 64);
        for datagram in datagrams {
            guest.channels[3].send(&datagram).expect("send");
        }
        guest.guest.is_told(why);
        guest.guest.is_killed();
        host.forgets("bad", PATIENCE);
    }
    end_well(host, good);
}

fn attach(start: u32, count: u32, source: u32) -> Vec<u8> {
    let pages = GfnRun::new(Gfn(start), count);
    let source = Gfn(source);
    Fault::Attach { pages, source }.encode(0).to_vec()
}

/// A question to attach pages waits for the worker, which here waits for its guest's memory thread.
#[test]
fn attach_beside_another_is_answered_by_none_and_on_the_same_channel_ends_the_guest() {
    // No scanner: the only commands are those of the balloon.
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let good = bystander(&host);
    let (guest, agent, command) = with_command_under_way(&host, "vm");
    let ask = |channel: usize| {
        let sent = guest.channels[channel].send(&attach(8, 4, 20));
        sent.expect("send");
    };
    ask(1);
    ask(2);
    assert_eq!(guest.reply(2), Reply::Attached(0));
    guest.ack(command.seq, command.runs.len() as u32, 0);
    assert_eq!(
        guest.reply(1),
        Reply::Attached(4),
        "zeroes are there already"
    );

    let (mut other, _agent, _command) = with_command_under_way(&host, "other");
    for _ in 0..2 {
        other.channels[1].send(&attach(8, 4, 20)).expect("send");
    }
    other.guest.is_told("second fault");
    other.guest.is_killed();
    host.forgets("other", PATIENCE);
    drop((guest, agent));
    end_well(host, good);
}

/// Nothing is left of frames that the shim refused to map, and pages that it maps and breaks have the right bytes.
#[test]
fn attach_that_the_shim_refuses_gives_back_what_it_took() {
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let guest = Powered::on(&host, "vm", 64);
    guest.write_page(5, 7);
    let used = host.status().used_pages;
    let ask = || guest.channels[1].send(&attach(10, 2, 5)).expect("send");

    ask();
    let command = guest.command();
    let runs = [(Op::MapShared, GfnRun::single(Gfn(10)))];
    assert_eq!([(command.op, command.runs[0].run)], runs);
    guest.ack(command.seq, 0, libc::ENOMEM as u32);
    assert_eq!(guest.reply(1), Reply::Attached(0));
    assert_eq!(host.vm("vm").homes.shared_pages.0, 0);
    assert_eq!(host.status().used_pages, used);

    ask();
    let command = guest.command();
    guest.ack(command.seq, 1, 0);
    assert_eq!(guest.reply(1), Reply::Attached(2), "page 6 is zero");
    let vm = host.vm("vm");
    assert_eq!((vm.homes.shared_pages.0, vm.scan.attached), (1, 1));
    assert_eq!(host.status().used_pages.0, used.0 + 1);

    // Broken out, it has the bytes of page 5, and the frame is gone.
    guest.fault(0, Fault::Write(Gfn(10)));
    assert_eq!(guest.reply(0), Reply::Private(GfnRun::single(Gfn(10))));
    let mut bytes = [0; 4096];
    guest.ram.read_exact_at(&mut bytes, 10 * 4096).expect("RAM");
    assert_eq!(bytes, [7; 4096]);
    guest.fault(0, Fault::Done(0));
    eventually("it is the guest's own", PATIENCE, || {
        let vm = host.vm("vm");
        (vm.homes.shared_pages.0 == 0 && vm.homes.resident_pages.0 == 2).then_some(())
    });
    assert_eq!(host.status().used_pages.0, used.0 + 1);
    drop(guest);
    host.is_empty(PATIENCE);
    host.stop();
}

/// If the fault thread waited for the shim to read, nobody could end it.
#[test]
fn fault_channel_answers_that_are_not_read_end_the_guest() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let mut guest = Powered::on(&host, "deaf", 64);
    let question = Fault::History(Gfn(0)).encode(0);
    // Until the guest is ended and sending fails, the queue may be full for a moment.
    let asked = Instant::now();
    while asked.elapsed() < PATIENCE {
        match guest.channels[0].try_send(&question) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => break,
        }
    }
    guest.guest.is_told("answers not read");
    guest.guest.is_killed();
    host.is_empty(PATIENCE);
    host.stop();
}

fn batch(start: u32, count: u32) -> RangeBatch {
    RangeBatch::new(vec![GfnRun::new(Gfn(start), count)]).expect("a batch")
}

/// A guest whose memory thread has been told to freeze page 5. The test decides when and how it answers.
fn with_command_under_way(host: &Host, name: &str) -> (Powered, RawAgent, Command) {
    let guest = Powered::on(host, name, 64);
    guest.write_page(5, 7);
    let mut agent = RawAgent::connect(host);
    agent.start(guest.token, 64);
    agent.send(&ToHost::Lock(batch(5, 1)));
    let command = guest.command();
    assert_eq!((command.op, command.runs.len()), (Op::Freeze, 1));
    (guest, agent, command)
}

#[test]
fn wrong_answers_of_the_memory_thread_end_that_guest_with_the_reason() {
    // No scanner: the only command is that of the balloon.
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let good = bystander(&host);
    let ack = |seq, done, errno| Message::Ack(Ack { seq, done, errno }).encode();
    type Answer = Box<dyn Fn(u32) -> Vec<u8>>;
    let answers: [(Answer, &str); 6] = [
        (Box::new(move |seq| ack(seq + 1, 1, 0)), "Ack"),
        (Box::new(move |seq| ack(seq, 0, 0)), "Ack"),
        (Box::new(move |seq| ack(seq, 2, 0)), "Ack"),
        (Box::new(move |seq| ack(seq, 1, 12)), "Ack"),
        (Box::new(|_| Message::Go.encode()), "GO"),
        (Box::new(|_| vec![VERSION as u8, 0, 99, 0]), "`type` 99"),
    ];
    for (answer, why) in answers {
        let (mut guest, agent, command) = with_command_under_way(&host, "bad");
        guest.guest.socket.send(&answer(command.seq)).expect("send");
        guest.guest.is_told(why);
        guest.guest.is_killed();
        host.forgets("bad", PATIENCE);
        drop(agent);
    }
    end_well(host, good);
}

#[test]
fn guest_that_hangs_up_in_the_middle_of_sharing_leaves_nothing() {
    let host = Host::quiet("mprotect", "64M", &["--share-scan-time", "120ms"]);
    let good = bystander(&host);
    let mut torn = Vec::new();
    for answered in 0..3 {
        // Not while it writes: it has one thread, which would wait for the answer to a command and not give it.
        host.set("Mem.ShareRateMax", "0");
        let guest = Powered::on(&host, "torn", 64);
        // A third of the pages each: zero, all equal, all different.
        for gfn in 0..60 {
            let byte = [0, 255, gfn as u8][gfn as usize % 3];
            guest.write_page(gfn, byte);
        }
        host.set("Mem.ShareRateMax", "32768");
        for _ in 0..answered {
            let command = guest.command();
            guest.ack(command.seq, command.runs.len() as u32, 0);
        }
        torn.push(guest.command().op);
        drop(guest);
        host.forgets("torn", Duration::from_secs(3));
    }
    assert!(torn.contains(&Op::Freeze), "{torn:?}");
    assert!(torn.contains(&Op::MapShared), "{torn:?}");
    end_well(host, good);
}

#[test]
fn mute_memory_thread_hinders_nobody_and_can_be_killed() {
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let good = bystander(&host);
    let (mut guest, _agent, _) = with_command_under_way(&host, "mute");
    // The guest's own faults on other pages are served, another guest comes and goes, and the API answers.
    guest.write_page(40, 1);
    let mut second = host.guest(
        "second",
        "--memory 8M --workload churn,size=4M --duration 1s",
    );
    second.verifies();
    assert_eq!(host.vm("mute").homes.resident_pages.0, 2);
    host.client().kill("mute").expect("the host answers");
    guest.guest.is_told("request");
    guest.guest.is_killed();
    host.forgets("mute", Duration::from_secs(3));
    end_well(host, good);
}

#[test]
fn mute_memory_thread_does_not_hold_up_the_end_of_the_host() {
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let (mut guest, _agent, _) = with_command_under_way(&host, "mute");
    let log = host.stop();
    guest.guest.is_told("shuts down");
    guest.guest.is_killed();
    assert!(!log.contains("still ending"), "{log}");
}

fn statuses(answer: ToAgent) -> Vec<(u32, u32, PageStatus)> {
    let (ToAgent::LockResult(result) | ToAgent::UnlockResult(result)) = answer else {
        panic!("no result: {answer:?}");
    };
    let all = result.runs.iter();
    all.map(|StatusRun { run, status }| (run.start.0, run.count, *status))
        .collect()
}

#[test]
fn agent_pages_outside_ram_or_given_twice_are_refused_one_by_one() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let guest = Powered::on(&host, "vm", 64);
    let mut agent = RawAgent::connect(&host);
    agent.start(guest.token, 64);
    let mut lock = |pages| statuses(agent.ask(&ToHost::Lock(pages)));
    assert_eq!(
        lock(batch(60, 8)),
        [(60, 4, PageStatus::Ok), (64, 4, PageStatus::Invalid)]
    );
    assert_eq!(
        lock(batch(58, 4)),
        [(58, 2, PageStatus::Ok), (60, 2, PageStatus::AlreadyLocked)]
    );
    assert_eq!(
        lock(batch(u32::MAX, 1)),
        [(u32::MAX, 1, PageStatus::Invalid)]
    );
    // The balloon may have 65 % of 64 pages, which is 41. It has 6, so it takes 35 more.
    assert_eq!(
        lock(batch(0, 50)),
        [(0, 35, PageStatus::Ok), (35, 15, PageStatus::NotNeeded)]
    );
    let mut unlock = |pages| statuses(agent.ask(&ToHost::Unlock(pages)));
    assert_eq!(
        unlock(batch(40, 30)),
        [
            (40, 18, PageStatus::NotLocked),
            (58, 6, PageStatus::Ok),
            (64, 6, PageStatus::Invalid)
        ]
    );
    assert_eq!(host.vm("vm").homes.ballooned_pages.0, 35);
    end_well_with(host, good, guest);
}

#[track_caller]
fn end_well_with(host: Host, good: Process, guest: Powered) {
    drop(guest);
    end_well(host, good);
}

#[test]
fn agent_page_in_use_pops_reads_zero_and_forces_a_reset() {
    let host = Host::quiet("mprotect", "64M", &["--share-rate-max", "0"]);
    let good = bystander(&host);
    let (guest, mut agent, command) = with_command_under_way(&host, "vm");
    guest.ack(command.seq, 1, 0);
    let answer = loop {
        match agent.receive() {
            (0, _) => {}
            (_, answer) => break answer,
        }
    };
    assert_eq!(statuses(answer), [(5, 1, PageStatus::Ok)]);
    // The guest goes on using the page that it gave away.
    guest.fault(0, Fault::Read(Gfn(5)));
    let reply = guest.reply(0);
    let mut page = [1; 4096];
    guest.ram.read_exact_at(&mut page, 5 * 4096).expect("read");
    assert_eq!(page, [0; 4096], "{reply:?}");
    guest.fault(0, Fault::Done(0));
    eventually("RESET", PATIENCE, || match agent.receive() {
        (0, ToAgent::Reset) => Some(()),
        _ => None,
    });
    // The host ignores this LOCK, because it concerns the balloon before the reset. Only START counts now.
    agent.send(&ToHost::Lock(batch(9, 1)));
    agent.start(guest.token, 64);
    let vm = host.vm("vm");
    assert_eq!((vm.homes.ballooned_pages.0, vm.faults.pop), (0, 1));
    end_well_with(host, good, guest);
}

#[test]
fn agent_that_is_not_welcome_is_told_why() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let guest = Powered::on(&host, "vm", 64);
    let first = |datagram: &[u8], why: &str| {
        let agent = RawAgent::connect(&host);
        agent.socket.send(datagram).expect("send");
        agent.is_told(why);
    };
    let said = |start| ToHost::Start(start).encode(1);
    let right = start(guest.token, 64);
    first(&said(start(guest.token ^ 1, 64)), "token");
    first(&said(start(guest.token, 65)), "65 64");
    let mut newer = right.clone();
    (newer.min_version, newer.max_version) = (2, 9);
    first(&said(newer), "2 9");
    first(&ToHost::Stop.encode(1), "STOP START");
    first(&said(right.clone())[..9], "ends inside");
    first(&vec![0; 65_537], "`message length` 65537");
    let mut version = ToHost::Stop.encode(1);
    version[0] = 9;
    first(&version, "version 9 balloon");

    let mut agent = RawAgent::connect(&host);
    agent.start(guest.token, 64);
    first(&said(right.clone()), "agent already");
    agent.send(&ToHost::Start(right.clone()));
    agent.is_told("START RESET");
    // The place of the agent is free again.
    let place = eventually("the place of the agent is free", PATIENCE, || {
        let mut agent = RawAgent::connect(&host);
        let answer = agent.ask(&ToHost::Start(right.clone()));
        matches!(answer, ToAgent::Started(_)).then_some(agent)
    });
    let mut twisted = ToHost::Lock(batch(3, 2)).encode(7);
    twisted.extend_from_slice(&[0; 8]);
    place.socket.send(&twisted).expect("send");
    place.is_told("8 bytes");
    end_well_with(host, good, guest);
}

/// Statistics that cannot be true are clamped where there is a bound, shown, and steer nothing.
#[test]
fn agent_statistics_that_cannot_be_true_are_clamped_and_harm_nobody() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let guest = Powered::on(&host, "vm", 64);
    let mut agent = RawAgent::connect(&host);
    agent.start(guest.token, 64);
    let before = host.vm("vm");
    let claims = [
        Stat::new(StatTag::TOTAL_MEMORY, u64::MAX),
        Stat::new(StatTag::FREE_MEMORY, 1 << 60),
        Stat::new(StatTag::AVAILABLE_MEMORY, 4096),
        Stat::new(StatTag::SWAP_IN, u64::MAX),
        Stat::new(StatTag::MAJOR_FAULTS, 7),
        Stat::new(StatTag::MAJOR_FAULTS, 3),
        Stat::new(StatTag(0xffff), 1),
    ];
    agent.send(&ToHost::Stats(claims.to_vec()));
    let seen = eventually("the claims are seen", PATIENCE, || {
        let vm = host.vm("vm");
        vm.guest.total_bytes.is_some().then_some(vm)
    });
    let ram = Some(Bytes(64 * 4096));
    assert_eq!((seen.guest.total_bytes, seen.guest.free_bytes), (ram, ram));
    assert_eq!(seen.guest.available_bytes, Some(Bytes(4096)));
    assert_eq!(seen.guest.swap_in_bytes, Some(Bytes(u64::MAX)));
    assert_eq!(seen.guest.major_faults, Some(3));
    assert_eq!(seen.guest.cache_bytes, None);
    // Counters that fall, and a total that is less than its parts.
    agent.send(&ToHost::Stats(vec![
        Stat::new(StatTag::TOTAL_MEMORY, 0),
        Stat::new(StatTag::FREE_MEMORY, 4096),
        Stat::new(StatTag::SWAP_IN, 0),
    ]));
    let seen = eventually("the second claims are seen", PATIENCE, || {
        let vm = host.vm("vm");
        (vm.guest.swap_in_bytes == Some(Bytes(0))).then_some(vm)
    });
    assert_eq!(seen.guest.free_bytes, Some(Bytes(0)));
    assert_eq!(
        (seen.allocation.target_pages, seen.balloon.target_pages),
        (before.allocation.target_pages, before.balloon.target_pages)
    );
    end_well_with(host, good, guest);
}

#[test]
fn agent_that_floods_is_slowed_down_and_loses_its_place_when_it_does_not_read() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let good = bystander(&host);
    let guest = Powered::on(&host, "vm", 64);
    let mut agent = RawAgent::connect(&host);
    agent.start(guest.token, 64);
    let question = ToHost::GetTarget {
        total_pages: 64,
        balloon_pages: 0,
    }
    .encode(9);
    agent.socket.set_send_timeout(PATIENCE).expect("bound");
    let began = Instant::now();
    let mut answered = Duration::ZERO;
    let mut sent = 0;
    // The loop ends when the host gives up, because its answers are not read.
    while agent.socket.send(&question).is_ok() {
        sent += 1;
        assert!(began.elapsed() < PATIENCE, "{sent} messages");
        if sent % 100 == 0 {
            let asked = Instant::now();
            host.status();
            answered = answered.max(asked.elapsed());
        }
    }
    assert!(sent > 100, "{sent}");
    assert!(answered < Duration::from_secs(2), "{answered:?}");
    eventually("the place is free", PATIENCE, || {
        (!host.vm("vm").balloon.agent).then_some(())
    });
    end_well_with(host, good, guest);
}
