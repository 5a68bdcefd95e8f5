//! What agents do in the protocol with a shared map.

use std::time::Instant;

use memvisor_wire::balloon::{FreeMap, PageState, Protocol, ToAgent, ToHost};

use super::super::{Fault, PATIENCE, must};
use super::end::{HostEnd, Terms};
use super::protocols::{WATCHED, is_poll, session, watch};
use super::{PAGES, Trial};
use crate::sys::SharedWords;
use crate::units::{Gfn, GfnRun};

/// The pages that are in a state.
fn pages(map: &FreeMap<SharedWords>, state: PageState) -> Vec<Gfn> {
    let all = (0..PAGES).map(Gfn);
    all.filter(|gfn| map.state(*gfn) == state).collect()
}

fn map<'h>(host: &'h HostEnd<'_>) -> Result<&'h FreeMap<SharedWords>, Fault> {
    let map = host.map.as_ref();
    map.ok_or_else(|| "no map was agreed on".into())
}

pub(super) fn shows_pages_that_nobody_uses(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.target = 300;
    host.serve("300 pages", |end, message| {
        let map = map(end)?;
        let is_used = |gfn: &Gfn| !end.memory.has_pinned(&[GfnRun::single(*gfn)]);
        let used = pages(map, PageState::Free).into_iter().find(is_used);
        // Unless it has come into use in between, which the map says first.
        let wrong = used.filter(|gfn| map.state(*gfn) == PageState::Free);
        must(wrong.is_none(), || {
            format!(
                "it shows page {} to be FREE, which its guest uses",
                used.unwrap_or_default().0
            )
        })?;
        Ok(is_poll(message) && end.held.len() == 300)
    })
}

pub(super) fn inflates(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.reach(300, 300)?;
    host.reach(700, 700)
}

pub(super) fn leaves_taken_pages(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.reach(300, 300)?;
    watch(&mut host, WATCHED, |end, _| {
        let map = map(end)?;
        let is_gone = |page: &&u32| map.state(Gfn(**page)) != PageState::Taken;
        let gone = end.held.iter().find(is_gone);
        must(gone.is_none(), || {
            let page = gone.copied().unwrap_or_default();
            let state = map.state(Gfn(page)).name();
            format!("it makes page {page} {state}, which the host has")
        })
    })
}

pub(super) fn gets_pages_back(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.reach(300, 300)?;
    host.reach(100, 100)?;
    let deadline = Instant::now() + PATIENCE;
    // What is FREE and pinned may still be shown for a while.
    host.serve("pages that its guest uses again", |end, message| {
        let free = pages(map(end)?, PageState::Free).len() as u64;
        let pinned = end.memory.pinned();
        must(pinned >= 100, || {
            format!("its guest uses {} pages that the host has", 100 - pinned)
        })?;
        let is_back = pinned <= 100 + free;
        must(is_back || Instant::now() < deadline, || {
            format!("{pinned} pages are pinned; the host has 100, and {free} are FREE")
        })?;
        Ok(is_poll(message) && is_back)
    })
}

pub(super) fn is_left(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.reach(300, 300)?;
    starts_anew(&mut host).map(drop)
}

/// Resets the agent, and hears its `START`. By then it has left its map.
fn starts_anew(host: &mut HostEnd<'_>) -> Result<(), Fault> {
    host.say(0, &ToAgent::Reset)?;
    let (seq, start) = loop {
        // Others were said before it heard of the reset.
        if let (seq, ToHost::Start(start)) = host.next()? {
            break (seq, start);
        }
    };
    for state in [PageState::Free, PageState::Taken] {
        let left = pages(map(host)?, state).len();
        must(left == 0, || {
            format!("{left} pages are {} when it says START", state.name())
        })?;
    }
    let pinned = host.memory.pinned();
    must(pinned == 0, || {
        format!("{pinned} pages are still pinned when it says START")
    })?;
    host.consent(seq, &start, Terms::of(Protocol::Bitmap))
}

pub(super) fn is_new(trial: &Trial) -> Result<(), Fault> {
    let mut host = session(trial, Protocol::Bitmap)?;
    host.reach(300, 300)?;
    starts_anew(&mut host)?;
    host.reach(200, 200)
}
