//! What agents do in the protocol with hints.

use memvisor_wire::balloon::{Protocol, ToHost};

use super::super::{Fault, must};
use super::Trial;
use super::protocols::{WATCHED, is_poll, names_pinned_pages, session, watch};

/// Fewer pages than an offer has.
const FEW: u64 = 40;

pub(super) fn inflate(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Hints)?;
    host.reach(300, 300)?;
    host.reach(700, 700)
}

pub(super) fn give_wanted_pages(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Hints)?;
    for target in [FEW, 2 * FEW] {
        host.target = target;
        host.serve("what is wanted", |end, message| {
            if let ToHost::Give { epoch, ranges } = message {
                must(end.wants(*epoch, ranges), || {
                    let (wanted, runs) = (&end.wanted, ranges.runs());
                    format!(
                        "it gives {runs:?} in epoch {epoch}; wanted are {:?}, in epoch {}",
                        wanted.ranges, wanted.epoch
                    )
                })?;
            }
            Ok(is_poll(message) && end.held.len() as u64 == target)
        })?;
    }
    Ok(())
}

pub(super) fn pin_what_they_give(trial: &Trial) -> Result<(), Fault> {
    names_pinned_pages(&mut session(trial, Protocol::Hints)?, 300)
}

pub(super) fn get_pages_back(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Hints)?;
    host.reach(300, 300)?;
    watch(&mut host, 2, |end, message| {
        let pinned = end.memory.pinned();
        must(!is_poll(message) || pinned == 0, || {
            format!("{pinned} pages are pinned after GIVEN")
        })
    })
}

pub(super) fn deflate_in_silence(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Hints)?;
    host.reach(300, 300)?;
    host.target = 0;
    // It hears of the target by the first.
    watch(&mut host, 2, |_, _| Ok(()))?;
    watch(&mut host, WATCHED, |_, message| {
        let is_silent = matches!(message, ToHost::GetTarget { .. } | ToHost::Stats(_));
        must(is_silent, || format!("it says {}", message.name()))
    })
}
