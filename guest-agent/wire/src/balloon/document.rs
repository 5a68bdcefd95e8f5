//! Holds docs/balloon-protocol.md to the code.

use super::*;
use crate::{Gfn, GfnRun};

const DOCUMENT: &str = include_str!("../../../../docs/balloon-protocol.md");

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

fn agent_says() -> Vec<(u32, ToHost)> {
    let batch = |runs: &[(u32, u32)]| {
        let runs = runs
            .iter()
            .map(|&(start, count)| GfnRun::new(Gfn(start), count));
        RangeBatch::new(runs.collect()).unwrap()
    };
    let start = Start {
        min_version: 1,
        max_version: 1,
        capabilities: Capabilities::all(),
        token: 0x0123_4567_89ab_cdef,
        total_pages: 262_144,
        name: "web-1".into(),
    };
    let target = ToHost::GetTarget {
        total_pages: 262_144,
        balloon_pages: 0,
    };
    let stats = vec![
        Stat::new(StatTag::FREE_MEMORY, 512 << 20),
        Stat::new(StatTag::TOTAL_MEMORY, 1 << 30),
    ];
    vec![
        (1, ToHost::Start(start)),
        (2, target),
        (3, ToHost::Lock(batch(&[(0x100, 6), (0x40000, 1)]))),
        (4, ToHost::Unlock(batch(&[(0x100, 4)]))),
        (5, ToHost::Stats(stats)),
        (6, ToHost::Relief { pages: 256 }),
        (7, ToHost::Stop),
    ]
}

fn host_says() -> Vec<(u32, ToAgent)> {
    let run = |start, count, status| StatusRun {
        run: GfnRun::new(Gfn(start), count),
        status,
    };
    let started = Started {
        capabilities: Capabilities::all(),
        vm: 3,
        poll_interval_ms: 1000,
        max_ranges: 512,
        balloon_max: 262_144 * 65 / 100,
    };
    let locked = BatchResult {
        target: 7,
        runs: vec![
            run(0x100, 4, PageStatus::Ok),
            run(0x104, 2, PageStatus::AlreadyLocked),
            run(0x40000, 1, PageStatus::Invalid),
        ],
    };
    let unlocked = BatchResult {
        target: 0,
        runs: vec![run(0x100, 4, PageStatus::Ok)],
    };
    let error = ToAgent::Error {
        code: ErrorCode::Order,
        text: "LOCK came before START".into(),
    };
    vec![
        (1, ToAgent::Started(started)),
        (2, ToAgent::Target { pages: 7 }),
        (3, ToAgent::LockResult(locked)),
        (0, ToAgent::Target { pages: 0 }),
        (4, ToAgent::UnlockResult(unlocked)),
        (0, ToAgent::Reset),
        (7, ToAgent::Stopped),
        (0, error),
    ]
}

#[test]
fn worked_example_decodes_to_what_it_says_and_encodes_to_its_bytes() {
    let (mut to_host, mut to_agent) = (Vec::new(), Vec::new());
    for (direction, bytes) in example() {
        match direction {
            '>' => {
                let (seq, message) = ToHost::decode(&bytes).expect("the example is right");
                assert_eq!(message.encode(seq), bytes);
                to_host.push((seq, message));
            }
            '<' => {
                let (seq, message) = ToAgent::decode(&bytes).expect("the example is right");
                assert_eq!(message.encode(seq), bytes);
                to_agent.push((seq, message));
            }
            other => panic!("`{other}` is no direction"),
        }
    }
    assert_eq!(to_host, agent_says());
    assert_eq!(to_agent, host_says());
}

#[test]
fn document_states_the_limits_and_the_version_of_the_code() {
    for row in [
        format!("# The balloon protocol, version {VERSION}\n"),
        "| message | 65 536 bytes |".to_owned(),
        format!("| ranges in a batch | {MAX_RANGES},"),
        format!("| pages in a batch | {MAX_BATCH_PAGES} |"),
        format!("| statistics in a message | {MAX_STATS} |"),
        format!("| name | {MAX_NAME_BYTES} bytes |"),
        format!("| error text | {MAX_ERROR_BYTES} bytes |"),
    ] {
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
    assert_eq!(MAX_MESSAGE_BYTES, 65_536);
}
