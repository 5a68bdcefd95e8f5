//! How agents begin, poll, hear what they did not ask for, and end.

use std::time::{Duration, Instant};

use memvisor_wire::balloon::{Capabilities, ErrorCode, ToAgent, ToHost};

use super::super::{Fault, PATIENCE, must};
use super::end::{HostEnd, NO_POLL_MS, Terms};
use super::{PAGES, TOKEN, Trial};

pub(super) fn start(trial: &Trial) -> Result<(), Fault> {
    let start = trial.accept()?.welcome(Terms::default())?;
    let total = start.total_pages;
    must(total <= PAGES.into(), || {
        format!("it sees {total} pages, and its guest has {PAGES}")
    })?;
    let (min, max) = (start.min_version, start.max_version);
    must(start.agreed_version().is_some(), || {
        format!("it speaks versions {min} to {max}, and not that of the document, 1")
    })
}

pub(super) fn token(trial: &Trial) -> Result<(), Fault> {
    let (_, start) = trial.accept()?.start()?;
    must(start.token == TOKEN, || {
        "its token is not the one that it was given".to_owned()
    })
}

pub(super) fn polls(trial: &Trial) -> Result<(), Fault> {
    const POLL: Duration = Duration::from_millis(50);
    const POLLS: u32 = 10;
    let mut host = trial.accept()?;
    host.welcome(Terms {
        poll_ms: POLL.as_millis() as u32,
        ..Terms::default()
    })?;
    let is_poll = |message: &ToHost| matches!(message, ToHost::GetTarget { .. });
    host.serve("a poll", |_, message| Ok(is_poll(message)))?;
    let began = Instant::now();
    for _ in 0..POLLS {
        host.serve("a poll", |_, message| Ok(is_poll(message)))?;
    }
    let (took, least) = (began.elapsed(), POLL * POLLS / 2);
    must(took >= least, || {
        format!("{POLLS} polls came in {took:?}, one in {POLL:?} was agreed on")
    })
}

fn needs(start: Capabilities, wanted: Capabilities, name: &str) -> Result<(), Fault> {
    if start.contains(wanted) {
        return Ok(());
    }
    Err(Fault::Untested(format!("it does not offer {name}")))
}

/// A host whose agent has polled once, and will not again.
fn after_one_poll<'t>(
    trial: &'t Trial,
    wanted: Capabilities,
    name: &str,
) -> Result<HostEnd<'t>, Fault> {
    let mut host = trial.accept()?;
    let start = host.welcome(Terms {
        poll_ms: NO_POLL_MS,
        ..Terms::default()
    })?;
    needs(start.capabilities, wanted, name)?;
    host.serve("a poll", |_, message| {
        Ok(matches!(message, ToHost::GetTarget { .. }))
    })?;
    Ok(host)
}

/// Answers until the balloon has `size` pages, without waiting for a poll.
fn fill(host: &mut HostEnd<'_>, size: u64) -> Result<(), Fault> {
    while (host.held.len() as u64) < size {
        let (seq, message) = host.next()?;
        host.answer(seq, &message)?;
    }
    Ok(())
}

pub(super) fn doorbell(trial: &Trial) -> Result<(), Fault> {
    let mut host = after_one_poll(trial, Capabilities::DOORBELL, "DOORBELL")?;
    host.ring(300)?;
    fill(&mut host, 300)
}

pub(super) fn doorbell_is_no_reply(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    let start = host.welcome(Terms::default())?;
    needs(start.capabilities, Capabilities::DOORBELL, "DOORBELL")?;
    host.target = 400;
    host.serve("400 pages", |end, message| {
        Ok(matches!(message, ToHost::GetTarget { .. }) && end.held.len() == 400)
    })?;
    // Between a request and its reply.
    let seq = loop {
        let (seq, message) = host.next()?;
        if matches!(message, ToHost::GetTarget { .. }) {
            break seq;
        }
        host.answer(seq, &message)?;
    };
    host.say(0, &ToAgent::Target { pages: 410 })?;
    host.say(seq, &ToAgent::Target { pages: 700 })?;
    host.reach(700, 700)
}

/// Hears what was under way before a reset, and then the new `START`; nothing may be pinned by then.
fn starts_anew(host: &mut HostEnd<'_>) -> Result<(), Fault> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match host.next()? {
            (_, ToHost::Unlock(_)) => return Err("it says UNLOCK after the reset".into()),
            (seq, ToHost::Start(_)) => {
                let pinned = host.memory.pinned();
                must(pinned == 0, || {
                    format!("{pinned} pages are still pinned when it says START")
                })?;
                let started = memvisor_wire::balloon::Started {
                    capabilities: Capabilities::empty(),
                    vm: 1,
                    poll_interval_ms: 20,
                    max_ranges: 1,
                    balloon_max: 1 << 20,
                };
                host.held.clear();
                return host.say(seq, &ToAgent::Started(started));
            }
            // Said before it heard of the reset.
            _ => {}
        }
    }
    Err("it does not say START after the reset".into())
}

pub(super) fn reset(trial: &Trial) -> Result<(), Fault> {
    let mut host = after_one_poll(trial, Capabilities::DOORBELL, "DOORBELL")?;
    host.ring(300)?;
    fill(&mut host, 300)?;
    host.say(0, &ToAgent::Reset)?;
    starts_anew(&mut host)?;
    host.reach(20, 20)
}

pub(super) fn reset_in_place_of_a_reply(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(300, 300)?;
    loop {
        let (seq, message) = host.next()?;
        if message.has_reply() {
            host.say(seq, &ToAgent::Reset)?;
            break;
        }
    }
    starts_anew(&mut host)?;
    host.reach(20, 20)
}

/// Answers ten polls of an agent that may say nothing but what needs no capability.
fn says_never(trial: &Trial, what: &'static str, is_it: fn(&ToHost) -> bool) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms {
        capabilities: Capabilities::empty(),
        ..Terms::default()
    })?;
    host.reach(30, 30)?;
    // A guest that is short, which is when an agent would like to say so.
    let _ = trial.agent().relieve(5, Duration::ZERO);
    for _ in 0..10 {
        host.serve("a poll", |_, message| {
            must(!is_it(message), || {
                format!("it says {what}, which was not agreed on")
            })?;
            Ok(matches!(message, ToHost::GetTarget { .. }))
        })?;
    }
    Ok(())
}

pub(super) fn no_stats(trial: &Trial) -> Result<(), Fault> {
    says_never(trial, "STATS", |message| {
        matches!(message, ToHost::Stats(_))
    })
}

pub(super) fn no_relief(trial: &Trial) -> Result<(), Fault> {
    says_never(trial, "RELIEF", |message| {
        matches!(message, ToHost::Relief { .. })
    })
}

pub(super) fn relief(trial: &Trial) -> Result<(), Fault> {
    let wanted = Capabilities::DOORBELL | Capabilities::RELIEF;
    let mut host = after_one_poll(trial, wanted, "DOORBELL and RELIEF")?;
    host.ring(2000)?;
    fill(&mut host, 2000)?;
    let _ = trial.agent().relieve(700, Duration::ZERO);
    host.target = 1300;
    host.serve("RELIEF", |_, message| {
        Ok(matches!(message, ToHost::Relief { .. }))
    })?;
    while host.held.len() > 1300 {
        let (seq, message) = host.next()?;
        host.answer(seq, &message)?;
    }
    Ok(())
}

pub(super) fn comes_back(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(300, 300)?;
    drop(host);
    let mut again = trial.accept()?;
    again.welcome(Terms::default())?;
    let pinned = again.memory.pinned();
    must(pinned == 0, || {
        format!("{pinned} pages are still pinned when it says START")
    })?;
    again.reach(20, 20)
}

pub(super) fn pauses(trial: &Trial) -> Result<(), Fault> {
    /// A little less than the document says: clocks are not alike.
    const LEAST: Duration = Duration::from_millis(90);
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    let began = Instant::now();
    drop(host);
    drop(trial.accept()?);
    let took = began.elapsed();
    must(took >= LEAST, || format!("it came back after {took:?}"))
}

pub(super) fn never_gives_up(trial: &Trial) -> Result<(), Fault> {
    for _ in 0..4 {
        let mut host = trial.accept()?;
        host.start()?;
        host.refuse(ErrorCode::Refused)?;
    }
    trial.accept()?.welcome(Terms::default()).map(drop)
}

pub(super) fn stop(trial: &Trial) -> Result<(), Fault> {
    let mut host = trial.accept()?;
    host.welcome(Terms::default())?;
    host.reach(300, 300)?;
    // It is told to leave on another thread, because that waits until it has.
    std::thread::scope(|scope| {
        let leaves = scope.spawn(|| trial.agent().leave());
        let said = host.serve("STOP", |_, message| Ok(matches!(message, ToHost::Stop)));
        let status = leaves.join().ok().flatten();
        said?;
        must(status.is_some_and(|status| status.success()), || {
            format!("its process ends with {status:?}")
        })
    })
}
