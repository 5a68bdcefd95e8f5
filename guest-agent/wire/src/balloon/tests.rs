use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{DecodeError, Gfn, GfnRun, RunsExt, Writer};

proptest! {
    #[test]
    fn to_host_decodes_to_what_was_encoded(message in ToHost::any(), seq in 1..=u32::MAX) {
        let datagram = message.encode(seq);
        prop_assert!(datagram.len() <= MAX_MESSAGE_BYTES);
        prop_assert_eq!(ToHost::decode(&datagram), Ok((seq, message)));
    }

    #[test]
    fn to_agent_decodes_to_what_was_encoded(message in ToAgent::any(), seq: u32) {
        let datagram = message.encode(seq);
        prop_assert!(datagram.len() <= MAX_MESSAGE_BYTES);
        prop_assert_eq!(ToAgent::decode(&datagram), Ok((seq, message)));
    }

    #[test]
    fn every_cut_or_lengthened_message_is_refused(message in ToHost::any(), at: usize, more in 1..9_usize) {
        let mut datagram = message.encode(1);
        let cut = at % datagram.len();
        let short = matches!(ToHost::decode(&datagram[..cut]), Err(DecodeError::Short { .. }));
        prop_assert!(short, "{} of {} bytes", cut, datagram.len());
        datagram.resize(datagram.len() + more, 0);
        prop_assert_eq!(ToHost::decode(&datagram), Err(DecodeError::Trailing { extra: more }));
    }

    #[test]
    fn any_bytes_decode_or_err_but_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok((seq, message)) = ToHost::decode(&bytes) {
            prop_assert_eq!(ToHost::decode(&message.encode(seq)), Ok((seq, message)));
        }
        let _ = ToAgent::decode(&bytes);
    }

    #[test]
    #[cfg_attr(miri, ignore = "looks at a hundred thousand pages")]
    fn split_loses_no_page_and_keeps_the_limits(
        gaps in vec((0..9_u32, 0..9000_u32), 0..60),
        max_ranges in 0..20_u32,
        seed: u64,
    ) {
        let mut at = 0;
        let mut runs: Vec<GfnRun> = gaps.iter().map(|(gap, count)| {
            let run = GfnRun::new(Gfn(at + gap), *count);
            at += gap + count;
            run
        }).collect();
        let sorted: Vec<Gfn> = runs.iter().flat_map(|run| run.iter()).collect();
        let turn = seed as usize % runs.len().max(1);
        runs.rotate_left(turn);

        let batches = RangeBatch::split(runs, max_ranges);
        let split: Vec<Gfn> =
            batches.iter().flat_map(|b| b.runs().iter().flat_map(|run| run.iter())).collect();
        prop_assert_eq!(split, sorted);
        for batch in &batches {
            let again = RangeBatch::new(batch.runs().to_vec());
            prop_assert_eq!(again.as_ref(), Ok(batch));
            prop_assert!(batch.runs().len() <= max_ranges.max(1) as usize);
        }
    }
}

fn header(to: &mut Writer, version: u16, kind: u16, seq: u32) -> &mut Writer {
    to.u16(version).u16(kind).u32(seq)
}

/// `(datagram, field that the error names)`: one for each rule of the format.
fn broken() -> Vec<(Vec<u8>, &'static str)> {
    let lock = |runs: &[(u32, u32)]| {
        let mut to = Writer::new();
        header(&mut to, VERSION, 3, 1).u32(runs.len() as u32);
        for (start, count) in runs {
            to.u32(*start).u32(*count);
        }
        to.finish()
    };
    let kind = |kind, seq| header(&mut Writer::new(), VERSION, kind, seq).finish();
    let start = |min: u16, max: u16, name: &[u8]| {
        let mut to = Writer::new();
        header(&mut to, HANDSHAKE_VERSION, 1, 1)
            .u16(min)
            .u16(max)
            .u32(0)
            .u64(0)
            .u64(0)
            .u16(name.len() as u16)
            .bytes(name);
        to.finish()
    };
    vec![
        (vec![0; MAX_MESSAGE_BYTES + 1], "message length"),
        (kind(7, 0), "seq"),
        (kind(99, 1), "type"),
        (kind(0x8002, 1), "type"),
        (start(0, 1, b""), "min_version"),
        (start(2, 1, b""), "max_version"),
        (start(1, 1, &[b'x'; 65]), "name"),
        (start(1, 1, &[0xff]), "name"),
        (lock(&[]), "number of ranges"),
        (lock(&[(0, 1); 513]), "number of ranges"),
        (lock(&[(3, 0)]), "range count"),
        (lock(&[(0, 4), (3, 1)]), "range start"),
        (lock(&[(9, 1), (3, 1)]), "range start"),
        (lock(&[(u32::MAX, 2)]), "range end"),
        (lock(&[(0, 4000), (5000, 97)]), "pages in one batch"),
        (
            header(&mut Writer::new(), VERSION, 5, 1).u32(33).finish(),
            "number of statistics",
        ),
    ]
}

#[test]
fn decode_of_each_broken_rule_names_the_field() {
    for (datagram, field) in broken() {
        let error = ToHost::decode(&datagram).expect_err(field).to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
}

#[test]
fn decode_of_broken_host_messages_names_the_field() {
    let head = |kind| {
        let mut to = Writer::new();
        header(&mut to, if kind == 0x80ff { 0 } else { VERSION }, kind, 1);
        to
    };
    let started = |poll, ranges| {
        head(0x8001)
            .u32(0)
            .u32(1)
            .u32(poll)
            .u32(ranges)
            .u64(0)
            .finish()
    };
    let runs = |count, status| {
        head(0x8003)
            .u64(0)
            .u32(1)
            .u32(0)
            .u32(count)
            .u32(status)
            .finish()
    };
    for (datagram, field) in [
        (started(0, 1), "poll_interval_ms"),
        (started(1, 0), "max_ranges"),
        (started(1, 513), "max_ranges"),
        (head(0x8003).u64(0).u32(0).finish(), "number of runs"),
        (head(0x8004).u64(0).u32(4097).finish(), "number of runs"),
        (runs(0, 0), "range count"),
        (runs(1, 6), "status"),
        (head(0x80ff).u16(6).u16(0).finish(), "code"),
        (head(3).finish(), "type"),
    ] {
        let error = ToAgent::decode(&datagram).expect_err(field).to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
}

#[test]
fn decode_of_another_version_names_both() {
    let mut datagram = ToHost::Stop.encode(1);
    datagram[0] = 7;
    let error = ToHost::decode(&datagram).unwrap_err();
    assert_eq!(
        error,
        DecodeError::Version {
            protocol: "balloon",
            theirs: 7,
            ours: 1
        }
    );
}

#[test]
fn agreed_version_needs_ours_in_their_span() {
    let start = |min_version, max_version| Start {
        min_version,
        max_version,
        capabilities: Capabilities::empty(),
        token: 0,
        total_pages: 0,
        name: String::new(),
    };
    assert_eq!(start(1, 3).agreed_version(), Some(1));
    assert_eq!(start(2, 3).agreed_version(), None);
}

#[test]
fn split_of_pages_given_twice_keeps_both() {
    let runs = vec![GfnRun::new(Gfn(0), 4), GfnRun::new(Gfn(2), 4)];
    let batches = RangeBatch::split(runs.clone(), 512);
    assert_eq!(
        batches.iter().map(RangeBatch::pages).sum::<u64>(),
        runs.pages()
    );
    assert!(
        batches
            .iter()
            .all(|batch| RangeBatch::new(batch.runs().to_vec()).is_ok())
    );
}

#[test]
fn covers_is_about_pages_not_about_cuts() {
    let run = |start, count| GfnRun::new(Gfn(start), count);
    let request = RangeBatch::new(vec![run(1, 4), run(5, 1), run(9, 2)]).unwrap();
    let answer = |runs: &[GfnRun]| -> Vec<StatusRun> {
        let status = PageStatus::Ok;
        runs.iter()
            .map(|run| StatusRun { run: *run, status })
            .collect()
    };
    assert!(covers(
        &answer(&[run(1, 2), run(3, 3), run(9, 2)]),
        &request
    ));
    for wrong in [
        vec![run(1, 5)],
        vec![run(9, 2), run(1, 5)],
        vec![run(1, 5), run(9, 3)],
        vec![run(1, 5), run(9, 2), run(9, 1)],
    ] {
        assert!(!covers(&answer(&wrong), &request), "{wrong:?}");
    }
}

#[test]
fn texts_that_are_too_long_are_cut_at_a_character() {
    let text = "ü".repeat(MAX_ERROR_BYTES);
    let error = ToAgent::Error {
        code: ErrorCode::Order,
        text,
    };
    let (_, decoded) = ToAgent::decode(&error.encode(0)).unwrap();
    let ToAgent::Error { text, .. } = decoded else {
        panic!("{decoded:?}");
    };
    assert_eq!(text, "ü".repeat(MAX_ERROR_BYTES / 2));
}
