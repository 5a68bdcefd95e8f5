//! What hosts do in the protocols that are no ranges: single pages and reports here, hints and maps beside.

use std::time::{Duration, Instant};

use memvisor_wire::balloon::{
    Capabilities, ErrorCode, ListedPage, PageStatus, Protocol, ToAgent, ToHost,
};

use super::super::{Fault, must};
use super::Trial;
use super::end::{AgentEnd, batch};
use crate::units::Gfn;

/// How long a host that has to do nothing is watched.
const WATCHED: Duration = Duration::from_millis(300);
/// The pause between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// A session in a protocol, agreed on by `offer`; untested if the host does not have that.
pub(super) fn session(trial: &Trial, offer: Capabilities) -> Result<AgentEnd, Fault> {
    let (end, started) = AgentEnd::started(trial, offer | Capabilities::BATCHED)?;
    let protocol = Protocol::of(offer);
    if Protocol::of(started.capabilities) == protocol {
        return Ok(end);
    }
    let text = format!("the host does not agree to {}", protocol.name());
    Err(Fault::Untested(text))
}

pub(super) fn unlike(question: &ToHost, answer: &ToAgent) -> Fault {
    Fault::Broken(format!(
        "it answers {} with {}",
        question.name(),
        answer.name()
    ))
}

/// Asks what must be answered by this message.
fn must_answer(end: &mut AgentEnd, question: &ToHost, wanted: &ToAgent) -> Result<(), Fault> {
    let answer = end.ask(question)?;
    must(answer == *wanted, || {
        format!("it answers {} with {answer:?}", question.name())
    })
}

fn pages(of: &[u64]) -> Vec<ListedPage> {
    of.iter().copied().map(ListedPage::asked).collect()
}

/// Asks about a list; each page must be there again, with its status.
fn listed(
    end: &mut AgentEnd,
    question: &ToHost,
    wanted: &[(u64, PageStatus)],
) -> Result<(), Fault> {
    let answered = match (question, end.ask(question)?) {
        (ToHost::LockPages(_), ToAgent::PagesLocked(listed))
        | (ToHost::UnlockPages(_), ToAgent::PagesUnlocked(listed)) => listed,
        (_, other) => return Err(unlike(question, &other)),
    };
    let wanted: Vec<_> = (wanted.iter())
        .map(|(page, status)| ListedPage::asked(*page).answered(*status))
        .collect();
    must(answered.pages == wanted, || {
        let (question, is) = (question.name(), answered.pages);
        format!("{question} is answered by {is:?} and not {wanted:?}")
    })
}

pub(super) fn lists_in_any_order(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::PAGE_LISTS)?;
    let all = [9, 3, 700].map(|page| (page, PageStatus::Ok));
    listed(&mut end, &ToHost::LockPages(pages(&[9, 3, 700])), &all)?;
    listed(&mut end, &ToHost::UnlockPages(pages(&[9, 3, 700])), &all)
}

pub(super) fn lists_name_twice(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::PAGE_LISTS)?;
    let twice = pages(&[5, 5]);
    let locked = [(5, PageStatus::Ok), (5, PageStatus::AlreadyLocked)];
    listed(&mut end, &ToHost::LockPages(twice.clone()), &locked)?;
    let unlocked = [(5, PageStatus::Ok), (5, PageStatus::NotLocked)];
    listed(&mut end, &ToHost::UnlockPages(twice), &unlocked)
}

pub(super) fn lists_of_no_gfns(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::PAGE_LISTS)?;
    let mixed = [
        (1 << 40, PageStatus::Invalid),
        (4, PageStatus::Ok),
        (trial.pages.into(), PageStatus::Invalid),
    ];
    let named = mixed.map(|(page, _)| page);
    listed(&mut end, &ToHost::LockPages(pages(&named)), &mixed)
}

pub(super) fn other_protocol(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::PAGE_LISTS)?;
    end.tell(&ToHost::Lock(batch(&[(0, 1)])))?;
    end.fails(ErrorCode::Order).map(drop)
}

pub(super) fn last_of_several(trial: &Trial) -> Result<(), Fault> {
    // Each alone first: a host need not have all of them.
    let all = &Protocol::ALL[1..];
    let mut has = Vec::new();
    for protocol in all {
        match session(trial, protocol.capabilities()) {
            Ok(_) => has.push(*protocol),
            Err(Fault::Untested(_)) => {}
            Err(broken) => return Err(broken),
        }
    }
    let [.., before, last] = has[..] else {
        return Err(Fault::Untested(
            "the host has fewer than two protocols".to_owned(),
        ));
    };
    let offer = before.capabilities() | last.capabilities();
    let (_, started) = AgentEnd::started(trial, offer)?;
    let is = started.capabilities;
    let is_last = Protocol::of(is) == last && !is.intersects(before.capabilities());
    must(is_last, || {
        let (before, last) = (before.name(), last.name());
        format!("of {before} and {last}, STARTED says {is:?}")
    })
}

fn inflate(pages: &[u32]) -> ToHost {
    ToHost::Inflate(pages.iter().copied().map(Gfn).collect())
}

fn deflate(pages: &[u32]) -> ToHost {
    ToHost::Deflate(pages.iter().copied().map(Gfn).collect())
}

pub(super) fn arrays(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::PFN_ARRAYS)?;
    // One that is refused too, and one that is there twice: nothing is said of a page.
    for question in [inflate(&[7, 3, trial.pages, 3]), deflate(&[3, 7, 900])] {
        must_answer(&mut end, &question, &ToAgent::Used)?;
    }
    Ok(())
}

pub(super) fn arrays_must_tell(trial: &Trial) -> Result<(), Fault> {
    let offer = Capabilities::PFN_ARRAYS | Capabilities::MUST_TELL_HOST | Capabilities::DOORBELL;
    let mut end = session(trial, offer)?;
    must_answer(&mut end, &inflate(&[3]), &ToAgent::Used)?;
    trial.touch()?;
    loop {
        return match end.next()? {
            Some((_, ToAgent::Target { .. })) => continue,
            Some((0, ToAgent::Reset)) => Ok(()),
            Some((_, other)) => Err(format!("it says {} and not RESET", other.name()).into()),
            None => Err("it closes the connection".into()),
        };
    }
}

pub(super) fn arrays_may_touch(trial: &Trial) -> Result<(), Fault> {
    let offer = Capabilities::PFN_ARRAYS | Capabilities::DOORBELL;
    no_reset(trial, offer, |end| {
        must_answer(end, &inflate(&[3]), &ToAgent::Used)
    })
}

/// A touch of what `begin` has given is no reason for a reset.
pub(super) fn no_reset(
    trial: &Trial,
    offer: Capabilities,
    begin: impl Fn(&mut AgentEnd) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut end = session(trial, offer)?;
    begin(&mut end)?;
    trial.touch()?;
    let deadline = Instant::now() + WATCHED;
    while Instant::now() < deadline {
        // It answers, so it waits for no START.
        end.target(trial)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

pub(super) fn arrays_keep_the_target(trial: &Trial) -> Result<(), Fault> {
    let offer = Capabilities::PFN_ARRAYS | Capabilities::DEFLATE_ON_OOM;
    let mut end = session(trial, offer)?;
    trial.target(64)?;
    must_answer(&mut end, &inflate(&[3, 4]), &ToAgent::Used)?;
    let before = end.target(trial)?;
    must_answer(&mut end, &deflate(&[3, 4]), &ToAgent::Used)?;
    let after = end.target(trial)?;
    must(before == after, || {
        format!("the target was {before} before DEFLATE and is {after}")
    })
}

pub(super) fn reports(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::REPORTING)?;
    let some = [(0, 64), (100, 8)];
    let report = ToHost::Report(batch(&some));
    must_answer(&mut end, &report, &ToAgent::Reported)?;
    // It is in no balloon: to one that had it, it would be ALREADY_LOCKED.
    end.all(&ToHost::Lock(batch(&some)), PageStatus::Ok)
}

pub(super) fn reports_whatever_the_target(trial: &Trial) -> Result<(), Fault> {
    let mut end = session(trial, Capabilities::REPORTING)?;
    trial.target(0)?;
    let report = ToHost::Report(batch(&[(0, 64)]));
    must_answer(&mut end, &report, &ToAgent::Reported)
}
