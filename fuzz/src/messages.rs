//! The messages of both sockets and of the fault channels.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use memvisor_wire::balloon::{ToAgent, ToHost};
use memvisor_wire::memory::{
    Ack, Command, Engine, Fault, Hello, MAX_NAME, MAX_REPORT, MAX_RUNS, MAX_TEXT, Message, Op,
    Ready, Remap, Reply, Welcome,
};
use memvisor_wire::{Gfn, GfnRun};

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

/// The messages of the balloon socket: the worked example of the document has each of them.
static EXAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let document = include_str!("../../docs/balloon-protocol.md");
    let lines = document
        .lines()
        .filter_map(|line| line.strip_prefix(['<', '>']));
    let byte = |hex| u8::from_str_radix(hex, 16).ok();
    let bytes = lines.filter_map(|line| line.split_whitespace().map(byte).collect());
    bytes.collect()
});

/// Messages of the balloon socket in both directions. Unknown capabilities are dropped, so encodings may differ.
pub(crate) fn balloon(u: &mut Unstructured<'_>) -> Result<()> {
    let mut bytes = u.choose(&EXAMPLES)?.clone();
    mutate(u, &mut bytes)?;
    // A text or a list has become longer.
    if u.arbitrary()? {
        bytes.extend_from_slice(u.arbitrary()?);
    }
    if let Ok((seq, message)) = ToHost::decode(&bytes) {
        assert_eq!(ToHost::decode(&message.encode(seq)), Ok((seq, message)));
    }
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
        resource_pool: text(u, MAX_NAME)?,
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
        Op::Enlarge,
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
