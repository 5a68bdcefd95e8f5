//! Plays the agent of a recording against a host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use memvisor_wire::balloon::{Capabilities, Start, Started, ToAgent, ToHost, map_words};

use super::shared::{ByHost, Map, Shared, by_host};
use super::{Clock, PATIENCE, Report, Speed, compare, total_pages};
use crate::laboratory::map::WordRun;
use crate::laboratory::peer::{Came, Ears, Peer};
use crate::laboratory::tape::{Entry, Heard, Side, Tape};
use crate::sys::SharedWords;

/// How a recording is played against a host.
#[derive(Clone, Copy, Debug)]
pub struct Against<'a> {
    /// The host's socket.
    pub socket: &'a Path,
    /// The token that stands in place of the recorded one, which is not in the recording.
    pub token: u64,
    /// How fast.
    pub speed: Speed,
    /// Whether other targets are no difference.
    pub ignores_target: bool,
}

/// Plays what the agent of `tape` said, and compares what the host answers.
///
/// # Errors
/// When there is no host.
pub fn run(tape: &Tape, against: &Against<'_>, ears: Ears) -> std::io::Result<Report> {
    let mut peer = Peer::dial(against.socket, ears)?;
    let clock = Clock::new(against.speed);
    let mut report = Report::default();
    let mut shared = Shared::default();
    // When the recorded host had moved pages in the map, until the host has done the same.
    let mut moved = None;
    for entry in &tape.entries {
        let (heard, goes_on) = match entry {
            Entry::Mapped { at, runs } => {
                std::thread::sleep(clock.until(*at));
                await_host(&shared, moved.take(), &mut report);
                let is_by_host = follow(&mut shared, runs);
                moved = (is_by_host && !against.ignores_target).then_some(*at);
                continue;
            }
            Entry::Said(heard) => match heard.by {
                Side::Agent => {
                    std::thread::sleep(clock.until(heard.at));
                    let said = peer.say(&with_token(&heard.bytes, against.token));
                    (heard, said.is_ok())
                }
                Side::Host => (heard, hear(&mut peer, heard, against, &mut report)),
            },
        };
        if let Some(started) = started(heard) {
            shared.begin(map(&mut peer, tape, &started, (heard.at, &mut report)));
        }
        if !goes_on {
            if report.differences.is_empty() {
                report.differs(heard.at, "the host closed the connection");
            }
            return Ok(report);
        }
    }
    await_host(&shared, moved, &mut report);
    report.is_complete = true;
    Ok(report)
}

/// What a host said, if it is a `STARTED`.
fn started(heard: &Heard) -> Option<Started> {
    match ToAgent::decode(&heard.bytes) {
        Ok((_, ToAgent::Started(started))) if heard.by == Side::Host => Some(started),
        _ => None,
    }
}

/// The map that came with the host's `STARTED`, where that of the recording came with one.
fn map(
    peer: &mut Peer,
    tape: &Tape,
    started: &Started,
    (at, report): (Duration, &mut Report),
) -> Option<Map> {
    let descriptors = peer.descriptors();
    if !started.capabilities.contains(Capabilities::BITMAP) {
        return None;
    }
    let pages = total_pages(tape);
    let words = descriptors
        .into_iter()
        .next()
        .map(|map| SharedWords::of(map, map_words(pages)));
    match words {
        Some(Ok(words)) => Some(Map::new(Arc::new(words), pages)),
        Some(Err(error)) => {
            report.differs(at, &format!("STARTED: its map cannot be used: {error}"));
            None
        }
        None => {
            report.differs(at, "STARTED: no map comes with it");
            None
        }
    }
}

/// Moves pages as the recorded guest did. Returns whether the recorded host has moved any too.
fn follow(shared: &mut Shared, runs: &[WordRun]) -> bool {
    let moves = shared.take(runs);
    shared.play_guest(&moves);
    by_host(&moves) != ByHost::default()
}

/// Waits until the host has moved as many pages as the recorded one had at that time, if it had moved any.
///
/// That is for the next look at the map and not for the same: what the recorded host had done by itself between two
/// messages, another may do when the second one comes.
fn await_host(shared: &Shared, moved: Option<Duration>, report: &mut Report) {
    let Some(at) = moved else {
        return;
    };
    report.compared += 1;
    if let Err((is, was)) = shared.await_host(PATIENCE) {
        report.differs(at, &format!("the host has taken {is} pages, was {was}"));
    }
}

/// A datagram with the token in place of what is recorded, if it is a `START`.
fn with_token(datagram: &[u8], token: u64) -> Vec<u8> {
    match ToHost::decode(datagram) {
        Ok((seq, ToHost::Start(start))) => ToHost::Start(Start { token, ..start }).encode(seq),
        _ => datagram.to_vec(),
    }
}

/// Compares what the host says with the recording. Returns whether the replay can go on.
fn hear(peer: &mut Peer, heard: &Heard, against: &Against<'_>, report: &mut Report) -> bool {
    let Ok((wanted, recorded)) = ToAgent::decode(&heard.bytes) else {
        return true;
    };
    // A doorbell comes when a host has one, and the next reply has the target too.
    if wanted == 0 && matches!(recorded, ToAgent::Target { .. }) {
        return true;
    }
    report.compared += 1;
    let said = loop {
        match next(peer, PATIENCE) {
            Ok((0, ToAgent::Target { .. })) => {}
            Ok((_, said)) => break said,
            Err(what) => {
                let was = recorded.name();
                report.differs(heard.at, &format!("{what}, and was {was}"));
                return false;
            }
        }
    };
    let difference = compare::answered(&recorded, &said, against.ignores_target);
    if let Some(what) = difference {
        report.differs(heard.at, &what);
    }
    // Behind another kind of message, answers would be compared with those of other questions.
    said.name() == recorded.name()
}

fn next(peer: &mut Peer, within: Duration) -> Result<(u32, ToAgent), String> {
    match peer.hear(within) {
        Err(error) => Err(format!("the socket fails: {error}")),
        Ok(Came::Nothing) => Err(format!("the host says nothing for {within:?}")),
        Ok(Came::Closed) => Err("the host closed the connection".to_owned()),
        Ok(Came::Datagram(bytes)) => ToAgent::decode(&bytes)
            .map_err(|error| format!("the host says what is no message: {error}")),
    }
}
