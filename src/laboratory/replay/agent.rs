//! Plays the agent of a recording against a host.

use std::path::Path;
use std::time::Duration;

use memvisor_wire::balloon::{Start, ToAgent, ToHost};

use super::{Clock, PATIENCE, Report, Speed, compare};
use crate::laboratory::peer::{Came, Ears, Peer};
use crate::laboratory::tape::{Heard, Side, Tape};

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
    for heard in &tape.heard {
        let goes_on = match heard.by {
            Side::Agent => {
                std::thread::sleep(clock.until(heard.at));
                peer.say(&with_token(&heard.bytes, against.token)).is_ok()
            }
            Side::Host => hear(&mut peer, heard, against, &mut report),
        };
        if !goes_on {
            if report.differences.is_empty() {
                report.differs(heard.at, "the host closed the connection");
            }
            return Ok(report);
        }
    }
    report.is_complete = true;
    Ok(report)
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
