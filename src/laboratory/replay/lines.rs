//! A recording as what its host had to do.

use std::time::Duration;

use memvisor_wire::balloon::{PageStatus, RangeBatch, StatusRun, ToAgent, ToHost};

use crate::laboratory::map::WordRun;
use crate::laboratory::tape::{Entry, Heard, Side, Tape};
use crate::units::GfnRun;

/// A message of the recording, or what has changed in its map.
pub(super) enum Line {
    Asked(u32, ToHost),
    Answered(u32, ToAgent),
    Mapped(Vec<WordRun>),
}

/// What is in a recording, without what an agent may say or not.
pub(super) fn lines(tape: &Tape) -> Vec<(Duration, Line)> {
    let line = |heard: &Heard| {
        let line = match heard.by {
            Side::Agent => match ToHost::decode(&heard.bytes) {
                // An agent may say them or not, and they get no answer.
                Ok((_, ToHost::Stats(_))) => return None,
                decoded => decoded.map(|(seq, it)| Line::Asked(seq, it)),
            },
            Side::Host => ToAgent::decode(&heard.bytes).map(|(seq, it)| Line::Answered(seq, it)),
        };
        // What is no message is nothing that an agent in order would say again.
        Some((heard.at, line.ok()?))
    };
    let entry = |entry: &Entry| match entry {
        Entry::Said(heard) => line(heard),
        Entry::Mapped { at, runs } => Some((*at, Line::Mapped(runs.clone()))),
    };
    tape.entries.iter().filter_map(entry).collect()
}

/// The statuses of a recorded batch, page for page, for the pages of another one.
pub(super) fn about(batch: &RangeBatch, statuses: &[(u32, PageStatus)]) -> Vec<StatusRun> {
    let last = statuses
        .last()
        .map_or(PageStatus::Ok, |(_, status)| *status);
    let mut runs: Vec<StatusRun> = Vec::new();
    let gfns = batch.runs().iter().flat_map(|run| run.iter());
    for (at, gfn) in gfns.enumerate() {
        let status = statuses.get(at).map_or(last, |(_, status)| *status);
        match runs.last_mut() {
            Some(run) if run.status == status && run.run.end() == u64::from(gfn.0) => {
                run.run.count += 1;
            }
            _ => runs.push(StatusRun {
                run: GfnRun::single(gfn),
                status,
            }),
        }
    }
    runs
}
