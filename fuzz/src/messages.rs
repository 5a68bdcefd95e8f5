//! The messages of both sockets and of the fault channels.

use arbitrary::{Result, Unstructured};
use memvisor_wire::balloon::{
    BatchResult, Capabilities, ErrorCode, MAX_BATCH_PAGES, MAX_ERROR_BYTES, MAX_NAME_BYTES,
    MAX_RANGES, MAX_STATS, PageStatus, RangeBatch, Start, Started, Stat, StatTag, StatusRun,
    ToAgent, ToHost,
};
use memvisor_wire::memory::{
    Ack, Command, Engine, Fault, Hello, MAX_NAME, MAX_REPORT, MAX_RUNS, MAX_TEXT, Message, Op,
    Ready, Remap, Reply, Welcome,
};
use memvisor_wire::{Gfn, GfnRun, RunsExt};

use super::{mutate, text};

/// A message of the memory socket. Each message has exactly one encoding.
pub(crate) fn memory(u: &mut Unstructured<'_>) -> Result<()> {
    let message = message(u)?;
    let mut bytes = message.encode();
    assert_eq!(Message::decode(&bytes), Ok(message));
    mutate(u, &mut bytes)?;
    if let Ok(message) = Message::decode(&bytes) {
        assert_eq!(message.encode(), bytes, "{message:?}");
    }
    Ok(())
}

/// Messages of threads on a fault channel, and the replies. They may have several encodings.
pub(crate) fn channels(u: &mut Unstructured<'_>) -> Result<()> {
    let (fault, thread) = (fault(u)?, u.arbitrary()?);
    let mut bytes = fault.encode(thread).to_vec();
    assert_eq!(Fault::decode(&bytes), Ok((fault, thread)));
    mutate(u, &mut bytes)?;
    if let Ok((fault, thread)) = Fault::decode(&bytes) {
        assert_eq!(Fault::decode(&fault.encode(thread)), Ok((fault, thread)));
    }
    let reply = reply(u)?;
    let mut bytes = reply.encode().to_vec();
    assert_eq!(Reply::decode(&bytes), Ok(reply));
    mutate(u, &mut bytes)?;
    if let Ok(reply) = Reply::decode(&bytes) {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
    Ok(())
}

/// Messages of the balloon socket in both directions. Unknown capabilities are dropped, so encodings may differ.
pub(crate) fn balloon(u: &mut Unstructured<'_>) -> Result<()> {
    let (message, seq) = (to_host(u)?, u.int_in_range(1..=u32::MAX)?);
    let mut bytes = message.encode(seq);
    assert_eq!(ToHost::decode(&bytes), Ok((seq, message)));
    mutate(u, &mut bytes)?;
    if let Ok((seq, message)) = ToHost::decode(&bytes) {
        assert_eq!(ToHost::decode(&message.encode(seq)), Ok((seq, message)));
    }
    let (message, seq) = (to_agent(u)?, u.arbitrary()?);
    let mut bytes = message.encode(seq);
    assert_eq!(ToAgent::decode(&bytes), Ok((seq, message)));
    mutate(u, &mut bytes)?;
    if let Ok((seq, message)) = ToAgent::decode(&bytes) {
        assert_eq!(ToAgent::decode(&message.encode(seq)), Ok((seq, message)));
    }
    Ok(())
}

fn run(u: &mut Unstructured<'_>) -> Result<GfnRun> {
    Ok(GfnRun::new(Gfn(u.arbitrary()?), u.arbitrary()?))
}

fn message(u: &mut Unstructured<'_>) -> Result<Message> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Message::Hello(hello(u)?),
        1 => Message::Welcome(Welcome {
            vm: u.arbitrary()?,
            engine: *u.choose(&[Engine::Uffd, Engine::Mprotect])?,
            token: u.arbitrary()?,
            pool_frames: u.arbitrary()?,
            arena_pages: u.arbitrary::<Option<u32>>()?.filter(|pages| *pages > 0),
        }),
        2 => Message::Ready(Ready {
            base: u.arbitrary()?,
            channels: u.arbitrary()?,
        }),
        3 => Message::Go,
        4 => Message::Command(command(u)?),
        5 => Message::Ack(Ack {
            seq: u.arbitrary()?,
            done: u.arbitrary()?,
            errno: u.arbitrary()?,
        }),
        6 => Message::Error(text(u, MAX_REPORT)?),
        _ => Message::Pool {
            seq: u.arbitrary()?,
        },
    })
}

fn hello(u: &mut Unstructured<'_>) -> Result<Hello> {
    let [pages, reservation, limit, shares, balloon_max] = u.arbitrary()?;
    let [uffd, sharing, inline, salted] = u.arbitrary()?;
    Ok(Hello {
        name: text(u, MAX_NAME)?,
        pages,
        uffd,
        reservation,
        limit,
        shares,
        balloon_max,
        sharing,
        salt: if salted {
            Some(text(u, MAX_TEXT)?)
        } else {
            None
        },
        workload: text(u, MAX_TEXT)?,
        inline,
    })
}

fn command(u: &mut Unstructured<'_>) -> Result<Command> {
    let ops = [
        Op::Freeze,
        Op::MapShared,
        Op::MapPrivate,
        Op::Close,
        Op::Reveal,
        Op::Open,
    ];
    let count = u.int_in_range(0..=MAX_RUNS)?.min(u.len() / 4);
    let remap = |u: &mut Unstructured<'_>| {
        let (run, frame) = (run(u)?, u.arbitrary()?);
        Ok(Remap { run, frame })
    };
    Ok(Command {
        seq: u.arbitrary()?,
        op: *u.choose(&ops)?,
        runs: (0..count).map(|_| remap(u)).collect::<Result<_>>()?,
    })
}

fn fault(u: &mut Unstructured<'_>) -> Result<Fault> {
    let gfn = Gfn(u.arbitrary()?);
    Ok(match u.int_in_range(0..=5)? {
        0 => Fault::Read(gfn),
        1 => Fault::Write(gfn),
        2 => Fault::Done(gfn.0),
        3 => Fault::History(gfn),
        4 => Fault::Credits,
        _ => Fault::Attach {
            pages: run(u)?,
            source: gfn,
        },
    })
}

fn reply(u: &mut Unstructured<'_>) -> Result<Reply> {
    let run = run(u)?;
    let replies = [
        Reply::Retry,
        Reply::Open(run),
        Reply::Private(run),
        Reply::Reveal(run),
        Reply::Attached(run.count),
    ];
    u.choose(&replies).copied()
}

fn to_host(u: &mut Unstructured<'_>) -> Result<ToHost> {
    Ok(match u.int_in_range(0..=6)? {
        0 => {
            let min_version = u.int_in_range(1..=u16::MAX)?;
            ToHost::Start(Start {
                min_version,
                max_version: u.int_in_range(min_version..=u16::MAX)?,
                capabilities: Capabilities::from_bits_truncate(u.arbitrary()?),
                token: u.arbitrary()?,
                total_pages: u.arbitrary()?,
                name: text(u, MAX_NAME_BYTES)?,
            })
        }
        1 => ToHost::GetTarget {
            total_pages: u.arbitrary()?,
            balloon_pages: u.arbitrary()?,
        },
        2 => ToHost::Lock(batch(u)?),
        3 => ToHost::Unlock(batch(u)?),
        4 => {
            let stat =
                |u: &mut Unstructured<'_>| Ok(Stat::new(StatTag(u.arbitrary()?), u.arbitrary()?));
            let count = u.int_in_range(0..=MAX_STATS)?;
            ToHost::Stats((0..count).map(|_| stat(u)).collect::<Result<_>>()?)
        }
        5 => ToHost::Relief {
            pages: u.arbitrary()?,
        },
        _ => ToHost::Stop,
    })
}

/// A valid batch of ranges: in order, without overlap, and within the limits.
fn batch(u: &mut Unstructured<'_>) -> Result<RangeBatch> {
    let (mut runs, mut at, mut pages) = (Vec::new(), 0u32, 0);
    for _ in 0..u.int_in_range(1..=MAX_RANGES)? {
        let gap = u32::from(u.arbitrary::<u16>()?);
        let count = u.int_in_range(1..=64)?;
        pages += count;
        if pages > MAX_BATCH_PAGES || u.is_empty() {
            break;
        }
        runs.push(GfnRun::new(Gfn(at + gap), count));
        at += gap + count;
    }
    if runs.is_empty() {
        runs.push(GfnRun::single(Gfn(at)));
    }
    let again = RangeBatch::split(runs.clone(), u.arbitrary()?);
    let pages: u64 = again.iter().map(RangeBatch::pages).sum();
    assert_eq!(pages, runs.pages());
    Ok(RangeBatch::new(runs).expect("made by the rules"))
}

fn to_agent(u: &mut Unstructured<'_>) -> Result<ToAgent> {
    Ok(match u.int_in_range(0..=6)? {
        0 => ToAgent::Started(Started {
            capabilities: Capabilities::from_bits_truncate(u.arbitrary()?),
            vm: u.arbitrary()?,
            poll_interval_ms: u.int_in_range(1..=u32::MAX)?,
            max_ranges: u.int_in_range(1..=MAX_RANGES as u32)?,
            balloon_max: u.arbitrary()?,
        }),
        1 => ToAgent::Target {
            pages: u.arbitrary()?,
        },
        2 => ToAgent::LockResult(result(u)?),
        3 => ToAgent::UnlockResult(result(u)?),
        4 => ToAgent::Reset,
        5 => ToAgent::Stopped,
        _ => {
            let codes = [
                ErrorCode::Version,
                ErrorCode::Malformed,
                ErrorCode::Order,
                ErrorCode::Refused,
                ErrorCode::Closing,
            ];
            ToAgent::Error {
                code: *u.choose(&codes)?,
                text: text(u, MAX_ERROR_BYTES)?,
            }
        }
    })
}

fn result(u: &mut Unstructured<'_>) -> Result<BatchResult> {
    let statuses = [
        PageStatus::Ok,
        PageStatus::Invalid,
        PageStatus::AlreadyLocked,
        PageStatus::NotLocked,
        PageStatus::Busy,
        PageStatus::NotNeeded,
    ];
    let run = |u: &mut Unstructured<'_>| {
        Ok(StatusRun {
            run: GfnRun::new(Gfn(u.arbitrary()?), u.int_in_range(1..=u32::MAX)?),
            status: *u.choose(&statuses)?,
        })
    };
    let count = u
        .int_in_range(1..=MAX_BATCH_PAGES as usize)?
        .min(1 + u.len() / 8);
    Ok(BatchResult {
        target: u.arbitrary()?,
        runs: (0..count).map(|_| run(u)).collect::<Result<_>>()?,
    })
}
