//! How sessions with hosts begin and end, and what they must refuse.

use std::time::Duration;

use memvisor_wire::balloon::{Capabilities, ErrorCode, Start, Stat, StatTag, ToAgent, ToHost};

use super::super::{Fault, must};
use super::Trial;
use super::end::{AgentEnd, batch, start};

const COMMON: Capabilities = Capabilities::COMMON;
/// How long a host is given to say what it must not.
const QUIET: Duration = Duration::from_millis(300);

pub(super) fn started(trial: &Trial) -> Result<(), Fault> {
    let (_, started) = AgentEnd::started(trial, Capabilities::STATS)?;
    let used = started.capabilities;
    must(Capabilities::STATS.contains(used), || {
        format!("it uses {used:?}, and STATS was offered")
    })
}

pub(super) fn unknown_capabilities(trial: &Trial) -> Result<(), Fault> {
    drop(AgentEnd::started(trial, COMMON)?);
    let mut end = trial.dial()?;
    let mut bytes = ToHost::Start(start(trial, Capabilities::empty())).encode(1);
    // The highest bit of the capabilities.
    bytes[15] = 0x80;
    for _ in 0..100 {
        end.say(&bytes)?;
        match end.next()? {
            Some((_, ToAgent::Started(_))) => return Ok(()),
            // The agent before may not be gone for the host yet.
            Some((
                _,
                ToAgent::Error {
                    code: ErrorCode::Refused,
                    ..
                },
            )) => {
                std::thread::sleep(Duration::from_millis(20));
                end = trial.dial()?;
            }
            other => return Err(format!("it says {other:?}").into()),
        }
    }
    Err("it refuses START".into())
}

pub(super) fn no_common_version(trial: &Trial) -> Result<(), Fault> {
    let mut end = trial.dial()?;
    end.tell(&ToHost::Start(Start {
        min_version: 77,
        max_version: 99,
        ..start(trial, COMMON)
    }))?;
    let text = end.fails(ErrorCode::Version)?;
    let both = text.contains("77") && text.contains('1');
    must(both, || format!("the text does not name both: {text}"))
}

pub(super) fn highest_version(trial: &Trial) -> Result<(), Fault> {
    drop(AgentEnd::started(trial, COMMON)?);
    for _ in 0..100 {
        let mut end = trial.dial()?;
        let more = Start {
            max_version: u16::MAX,
            ..start(trial, COMMON)
        };
        // Its header has the version of the document, or it would not be read.
        match end.ask(&ToHost::Start(more))? {
            ToAgent::Started(_) => return Ok(()),
            ToAgent::Error {
                code: ErrorCode::Refused,
                ..
            } => std::thread::sleep(Duration::from_millis(20)),
            other => return Err(format!("it says {}", other.name()).into()),
        }
    }
    Err("it refuses START".into())
}

pub(super) fn wrong_token(trial: &Trial) -> Result<(), Fault> {
    let mut end = trial.dial()?;
    let token = !trial.token;
    end.tell(&ToHost::Start(Start {
        token,
        ..start(trial, COMMON)
    }))?;
    let text = end.fails(ErrorCode::Refused)?;
    let echoed = text.contains(&token.to_string()) || text.contains(&format!("{token:x}"));
    must(!echoed, || format!("it repeats the token: {text}"))
}

pub(super) fn too_many_pages(trial: &Trial) -> Result<(), Fault> {
    drop(AgentEnd::started(trial, COMMON)?);
    let mut end = trial.dial()?;
    end.tell(&ToHost::Start(Start {
        total_pages: u64::from(trial.pages) + 1,
        ..start(trial, COMMON)
    }))?;
    end.fails(ErrorCode::Refused).map(drop)
}

pub(super) fn second_agent(trial: &Trial) -> Result<(), Fault> {
    let (mut first, _) = AgentEnd::started(trial, COMMON)?;
    let mut second = trial.dial()?;
    second.tell(&ToHost::Start(start(trial, COMMON)))?;
    second.fails(ErrorCode::Refused)?;
    first.target(trial).map(drop)
}

pub(super) fn before_start(trial: &Trial) -> Result<(), Fault> {
    let mut end = trial.dial()?;
    end.tell(&ToHost::Lock(batch(&[(0, 1)])))?;
    let text = end.fails(ErrorCode::Order)?;
    must(text.contains("LOCK"), || {
        format!("the text does not name the message: {text}")
    })
}

pub(super) fn second_start(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, COMMON)?;
    end.tell(&ToHost::Start(start(trial, COMMON)))?;
    end.fails(ErrorCode::Order).map(drop)
}

pub(super) fn without_capability(trial: &Trial) -> Result<(), Fault> {
    for message in [ToHost::Stats(vec![]), ToHost::Relief { pages: 1 }] {
        let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
        end.tell(&message)?;
        let text = end.fails(ErrorCode::Order)?;
        let name = message.name();
        must(text.contains(name), || {
            format!("the text does not name {name}: {text}")
        })?;
    }
    Ok(())
}

pub(super) fn one_range(trial: &Trial) -> Result<(), Fault> {
    let (mut end, started) = AgentEnd::started(trial, Capabilities::empty())?;
    let most = started.max_ranges;
    must(most == 1, || {
        format!("max_ranges is {most} without BATCHED")
    })?;
    end.tell(&ToHost::Lock(batch(&[(0, 1), (5, 1)])))?;
    end.fails(ErrorCode::Order).map(drop)
}

pub(super) fn silent_agent(trial: &Trial) -> Result<(), Fault> {
    trial.dial()?.fails(ErrorCode::Order).map(drop)
}

/// Each of these breaks the form of a message in another way.
pub(super) fn malformed(trial: &Trial) -> Result<(), Fault> {
    let poll = ToHost::GetTarget {
        total_pages: 1,
        balloon_pages: 0,
    }
    .encode(7);
    let changed = |at: usize, byte: u8| {
        let mut bytes = poll.clone();
        bytes[at] = byte;
        bytes
    };
    for (what, bytes) in [
        ("a message that is too short", poll[..20].to_vec()),
        ("half a header", poll[..5].to_vec()),
        ("an unknown type", changed(2, 99)),
        ("a wrong header version", changed(0, 9)),
    ] {
        refuses(trial, what, &bytes)?;
    }
    Ok(())
}

fn refuses(trial: &Trial, what: &str, bytes: &[u8]) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, COMMON)?;
    end.say(bytes)?;
    end.fails(ErrorCode::Malformed)
        .map(drop)
        .map_err(|fault| match fault {
            Fault::Broken(why) => Fault::Broken(format!("{what}: {why}")),
            other => other,
        })
}

pub(super) fn trailing_bytes(trial: &Trial) -> Result<(), Fault> {
    let mut bytes = ToHost::Relief { pages: 1 }.encode(7);
    bytes.push(0);
    refuses(trial, "a byte too many", &bytes)
}

pub(super) fn seq_zero(trial: &Trial) -> Result<(), Fault> {
    refuses(trial, "seq 0", &ToHost::Relief { pages: 1 }.encode(0))
}

/// A `LOCK` with these ranges, whatever they are.
fn lock(ranges: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = [1_u16, 3, 7, 0].map(u16::to_le_bytes).concat();
    bytes.extend((ranges.len() as u32).to_le_bytes());
    for (start, count) in ranges {
        bytes.extend([start.to_le_bytes(), count.to_le_bytes()].concat());
    }
    bytes
}

pub(super) fn ranges_in_order(trial: &Trial) -> Result<(), Fault> {
    refuses(trial, "ranges that descend", &lock(&[(8, 1), (4, 1)]))?;
    refuses(trial, "ranges that overlap", &lock(&[(4, 4), (7, 1)]))?;
    refuses(trial, "an empty range", &lock(&[(4, 0)]))?;
    refuses(trial, "no range", &lock(&[]))
}

pub(super) fn past_the_last_gfn(trial: &Trial) -> Result<(), Fault> {
    refuses(trial, "a range past the last gfn", &lock(&[(u32::MAX, 2)]))
}

pub(super) fn pages_in_a_batch(trial: &Trial) -> Result<(), Fault> {
    refuses(trial, "4097 pages", &lock(&[(0, 4097)]))
}

pub(super) fn empty_datagram(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, COMMON)?;
    end.say(&[])?;
    let said = end.next()?;
    must(said.is_none(), || format!("it says {said:?}"))
}

pub(super) fn stop(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, COMMON)?;
    end.statuses(&ToHost::Lock(batch(&[(0, 8)])))?;
    let reply = end.ask(&ToHost::Stop)?;
    must(reply == ToAgent::Stopped, || {
        format!("it answers STOP with {}", reply.name())
    })?;
    let said = end.next()?;
    must(said.is_none(), || {
        format!("it goes on after STOPPED: {said:?}")
    })
}

pub(super) fn stats(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::STATS)?;
    let nonsense = vec![
        Stat::new(StatTag(0x7777), 5),
        Stat::new(StatTag::FREE_MEMORY, u64::MAX),
        Stat::new(StatTag::FREE_MEMORY, 1),
    ];
    end.tell(&ToHost::Stats(nonsense))?;
    end.is_silent(QUIET)?;
    end.target(trial).map(drop)
}

pub(super) fn relief(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::RELIEF)?;
    let reply = end.ask(&ToHost::Relief { pages: u64::MAX })?;
    let is_target = matches!(reply, ToAgent::Target { .. });
    must(is_target, || {
        format!("it answers RELIEF with {}", reply.name())
    })
}

pub(super) fn own_number(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
    let lie = ToHost::GetTarget {
        total_pages: u64::MAX,
        balloon_pages: u64::MAX,
    };
    let reply = end.ask(&lie)?;
    let is_target = matches!(reply, ToAgent::Target { .. });
    must(is_target, || format!("it answers with {}", reply.name()))
}

pub(super) fn in_order(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
    let poll = ToHost::GetTarget {
        total_pages: 1,
        balloon_pages: 0,
    };
    let asked = [
        end.tell(&poll)?,
        end.tell(&ToHost::Unlock(batch(&[(1, 1)])))?,
        end.tell(&poll)?,
    ];
    for wanted in asked {
        let seq = end.next()?.map(|(seq, _)| seq);
        must(seq == Some(wanted), || {
            format!("the reply to seq {wanted} has {seq:?}")
        })?;
    }
    Ok(())
}

pub(super) fn flood(trial: &Trial) -> Result<(), Fault> {
    /// Three times what is allowed at once.
    const MESSAGES: u32 = 1536;
    let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
    (0..MESSAGES).try_for_each(|_| end.target(trial).map(drop))
}

pub(super) fn doorbell(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::DOORBELL)?;
    // Twice, so that one of them is another target than before.
    for target in [0, 300] {
        trial.target(target)?;
    }
    loop {
        match end.next()? {
            Some((0, ToAgent::Target { pages: 300 })) => return Ok(()),
            Some((0, ToAgent::Target { .. })) => {}
            other => {
                return Err(format!("it says {other:?} and not TARGET 300 with seq 0").into());
            }
        }
    }
}

pub(super) fn no_doorbell(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
    trial.target(0)?;
    end.target(trial)?;
    trial.target(300)?;
    end.is_silent(QUIET)?;
    let target = end.target(trial)?;
    must(target == 300, || {
        format!("the target is {target}, and was set to 300")
    })
}

pub(super) fn reset(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::DOORBELL)?;
    let lock = ToHost::Lock(batch(&[(0, 8)]));
    end.all(&lock, memvisor_wire::balloon::PageStatus::Ok)?;
    trial.touch()?;
    let said = loop {
        match end.next()? {
            Some((0, ToAgent::Target { .. })) => {}
            other => break other,
        }
    };
    must(said == Some((0, ToAgent::Reset)), || {
        format!("it says {said:?} and not RESET")
    })?;
    // Under way when the host said RESET: it gets no reply.
    end.tell(&lock)?;
    end.is_silent(QUIET)?;
    let reply = end.ask(&ToHost::Start(start(trial, Capabilities::empty())))?;
    let is_started = matches!(reply, ToAgent::Started(_));
    must(is_started, || {
        format!("it answers START with {}", reply.name())
    })?;
    end.all(&lock, memvisor_wire::balloon::PageStatus::Ok)
}

pub(super) fn reset_in_place_of_a_reply(trial: &Trial) -> Result<(), Fault> {
    let (mut end, _) = AgentEnd::started(trial, Capabilities::empty())?;
    end.all(
        &ToHost::Lock(batch(&[(0, 8)])),
        memvisor_wire::balloon::PageStatus::Ok,
    )?;
    trial.touch()?;
    end.is_silent(QUIET)?;
    let reply = end.ask(&ToHost::Unlock(batch(&[(0, 1)])))?;
    must(reply == ToAgent::Reset, || {
        format!("it answers UNLOCK with {}", reply.name())
    })
}
