//! Holds docs/memory-protocol.md to the code.

use super::*;
use crate::claims::{
    BREAKS, CREDITS, FIRST_CREDIT, FREE, HEADER_WORDS, MARK, ROW_WORDS, State, USED,
};
use crate::{Gfn, GfnRun};

const DOCUMENT: &str = include_str!("../../../../docs/memory-protocol.md");

/// The messages of the worked example: the direction and the bytes.
fn example() -> Vec<(char, Vec<u8>)> {
    let (_, rest) = DOCUMENT
        .split_once("```hex\n")
        .expect("the document has an example");
    let (block, _) = rest.split_once("```").expect("the example ends");
    let lines = block.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (direction, hex) = line.split_at(1);
            let byte = |text| u8::from_str_radix(text, 16).expect("a byte in hex");
            (
                direction.chars().next().unwrap(),
                hex.split_whitespace().map(byte).collect(),
            )
        })
        .collect()
}

fn command(seq: u32, op: Op, runs: &[(u32, u32, u32)]) -> Message {
    let remap = |&(start, count, frame): &(u32, u32, u32)| Remap {
        run: GfnRun::new(Gfn(start), count),
        frame,
    };
    let runs = runs.iter().map(remap).collect();
    Message::Command(Command { seq, op, runs })
}

fn shim_says() -> Vec<Message> {
    let ack = |seq, done, errno| Message::Ack(Ack { seq, done, errno });
    vec![
        Message::Hello(Hello {
            name: "web-1".to_owned(),
            pages: 65_536,
            uffd: true,
            reservation: 4096,
            limit: 65_536,
            shares: 2560,
            balloon_max: u32::MAX,
            sharing: true,
            salt: None,
            workload: "kv,size=128M".to_owned(),
            inline: true,
            resource_pool: String::new(),
        }),
        Message::Ready(Ready {
            base: 0x7f00_0000_0000,
            channels: 16,
        }),
        ack(0, 2, 0),
        ack(1, 1, 12),
        ack(2, 2, 0),
        ack(3, 0, 0),
        ack(4, 1, 0),
    ]
}

fn daemon_says() -> Vec<Message> {
    vec![
        Message::Welcome(Welcome {
            vm: 3,
            engine: Engine::Uffd,
            token: 0x0123_4567_89ab_cdef,
            pool_frames: 524_288,
            arena_pages: Some(65_536),
        }),
        Message::Go,
        command(0, Op::Freeze, &[(0x100, 4, 0), (0x200, 1, 0)]),
        command(1, Op::MapShared, &[(0x100, 4, 7), (0x200, 1, 40)]),
        command(2, Op::MapPrivate, &[(0x100, 1, 0), (0x102, 2, 0)]),
        Message::Pool { seq: 3 },
        command(4, Op::MapShared, &[(0x400, 200, 64)]),
        Message::Error("the host shuts down".to_owned()),
    ]
}

#[test]
fn worked_example_decodes_to_what_it_says_and_encodes_to_its_bytes() {
    let (mut shim, mut daemon) = (Vec::new(), Vec::new());
    let (mut faults, mut replies) = (Vec::new(), Vec::new());
    for (direction, bytes) in example() {
        match direction {
            '>' | '<' => {
                let message = Message::decode(&bytes).expect("the example is right");
                assert_eq!(message.encode(), bytes);
                let said = if direction == '>' {
                    &mut shim
                } else {
                    &mut daemon
                };
                said.push(message);
            }
            '!' => {
                let (fault, thread) = Fault::decode(&bytes).expect("the example is right");
                assert_eq!(fault.encode(thread)[..], bytes);
                assert_eq!(thread, 1234);
                faults.push(fault);
            }
            '?' => {
                let reply = Reply::decode(&bytes).expect("the example is right");
                assert_eq!(reply.encode()[..], bytes);
                replies.push(reply);
            }
            other => panic!("`{other}` is no direction"),
        }
    }
    assert_eq!(shim, shim_says());
    assert_eq!(daemon, daemon_says());
    let attach = Fault::Attach {
        pages: GfnRun::new(Gfn(0x400), 256),
        source: Gfn(0x300),
    };
    let write = Fault::Write(Gfn(0x101));
    assert_eq!(faults, [write, Fault::Done(0), Fault::Credits, attach]);
    let private = Reply::Private(GfnRun::single(Gfn(0x101)));
    assert_eq!(replies, [private, Reply::Attached(200)]);
}

#[test]
fn document_states_the_limits_and_the_version_of_the_code() {
    for row in [
        format!("# The memory protocol, version {VERSION}\n"),
        "| message | 16 384 bytes |".to_owned(),
        format!("| runs in a command | {MAX_RUNS} |"),
        format!("| name | {MAX_NAME} bytes |"),
        format!("| salt, workload | {MAX_TEXT} bytes each |"),
        format!("| fault channels | {MAX_CHANNELS} |"),
        format!("| pages attached at once | {MAX_ATTACH} |"),
        format!("| error text, history | {MAX_REPORT} bytes |"),
        format!("Shim to daemon, {FAULT_BYTES} bytes:"),
        format!("Daemon to shim, {REPLY_BYTES} bytes:"),
    ] {
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
    assert_eq!(MAX_MESSAGE, 16_384);
    let longest = command(0, Op::Freeze, &vec![(0, 1, 0); MAX_RUNS]).encode();
    assert_eq!(longest.len(), 12_300);
}

#[test]
fn every_message_and_kind_has_its_number_in_the_document() {
    let kinds = |bytes: Vec<u8>| u16::from_le_bytes([bytes[2], bytes[3]]);
    for message in shim_says().into_iter().chain(daemon_says()) {
        let row = format!("**{}** (type {}", message.name(), kinds(message.encode()));
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
    for (name, code) in [
        ("READ", Fault::Read(Gfn(0)).encode(0)[4]),
        ("WRITE", Fault::Write(Gfn(0)).encode(0)[4]),
        ("DONE", Fault::Done(0).encode(0)[4]),
        ("HISTORY", Fault::History(Gfn(0)).encode(0)[4]),
        ("CREDITS", Fault::Credits.encode(0)[4]),
        (
            "ATTACH",
            Fault::Attach {
                pages: GfnRun::single(Gfn(0)),
                source: Gfn(0),
            }
            .encode(0)[4],
        ),
        ("ATTACHED", Reply::Attached(0).encode()[4]),
        ("RETRY", Reply::Retry.encode()[4]),
        ("OPEN", Reply::Open(GfnRun::single(Gfn(0))).encode()[4]),
        (
            "PRIVATE",
            Reply::Private(GfnRun::single(Gfn(0))).encode()[4],
        ),
        ("REVEAL", Reply::Reveal(GfnRun::single(Gfn(0))).encode()[4]),
    ] {
        assert!(DOCUMENT.contains(&format!("{code} {name}")), "{name}");
    }
}

#[test]
fn document_states_the_words_of_the_claim_table() {
    let credit = 0x12;
    let taken = |waited| State::Taken { credit, waited }.encode();
    for row in [
        format!("| {MARK} | mark |"),
        format!("| {BREAKS} | breaks |"),
        format!(
            "| {FIRST_CREDIT} to {} | credits |",
            FIRST_CREDIT + CREDITS - 1
        ),
        format!("| {HEADER_WORDS} + {ROW_WORDS} * gfn | state of the page |"),
        format!("the gfn + {USED} for which it was taken"),
        format!("| {} | NONE |", State::None.encode()),
        format!("| {} | EMPTY |", State::Empty.encode()),
        format!("| {} | FROZEN |", State::Frozen.encode()),
        format!("| {} | ZIP |", State::Zip.encode()),
        format!("| {} | SWAP |", State::Swap.encode()),
        format!("| {} | FRAME |", State::Frame.encode()),
        format!("| {:#x} | TAKEN with credit {credit:#x} |", taken(false)),
        format!("| {:#x} | TAKEN, and others wait |", taken(true)),
        format!(
            "| {:#x} | DONE with credit {credit:#x} |",
            State::Done { credit }.encode()
        ),
        format!(
            "| {:#x} | DONE without a credit |",
            State::Done { credit: FREE }.encode()
        ),
        format!("in place of the number of a\n   credit stands {FREE}"),
        format!("| credits | {CREDITS} |"),
    ] {
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
}
