//! What hosts do in the protocol with a shared map.

use std::sync::Arc;
use std::time::Instant;

use memvisor_wire::balloon::{Capabilities, FreeMap, PageState, map_words};

use super::super::{Fault, PATIENCE, must};
use super::Trial;
use super::end::AgentEnd;
use super::protocols::{PAUSE, session};
use crate::sys::SharedWords;
use crate::units::{Gfn, GfnRun};

/// A session with a map, and the map.
fn mapped(trial: &Trial) -> Result<(AgentEnd, FreeMap<Arc<SharedWords>>), Fault> {
    let mut end = session(trial, Capabilities::BITMAP)?;
    let descriptor = end.descriptors().into_iter().next();
    let descriptor = descriptor.ok_or("no descriptor comes with STARTED")?;
    let words = SharedWords::of(descriptor, map_words(trial.pages))
        .map_err(|error| format!("what comes with STARTED is no map: {error}"))?;
    Ok((end, FreeMap::new(Arc::new(words), trial.pages)))
}

/// How many of the pages are in a state.
fn count(map: &FreeMap<Arc<SharedWords>>, run: GfnRun, state: PageState) -> u64 {
    run.iter().filter(|gfn| map.state(*gfn) == state).count() as u64
}

/// Waits until so many pages of a run are in a state; the agent polls meanwhile.
fn becomes(
    (end, trial): (&mut AgentEnd, &Trial),
    map: &FreeMap<Arc<SharedWords>>,
    run: GfnRun,
    (state, wanted): (PageState, u64),
) -> Result<(), Fault> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        end.target(trial)?;
        let is = count(map, run, state);
        if is == wanted {
            return Ok(());
        }
        must(Instant::now() < deadline, || {
            let state = state.name();
            format!("{is} pages are {state} and not {wanted} after {PATIENCE:?}")
        })?;
        std::thread::sleep(PAUSE);
    }
}

/// Pages that the guest of a case frees.
const FREED: GfnRun = GfnRun::new(Gfn(100), 96);

/// The guest frees [`FREED`].
fn free(map: &FreeMap<Arc<SharedWords>>) -> Result<(), Fault> {
    let freed = map.change_run(FREED, PageState::Used, PageState::Free);
    must(freed == FREED.count, || {
        format!("of a new map {freed} pages of {} are USED", FREED.count)
    })
}

fn whole(trial: &Trial) -> GfnRun {
    GfnRun::new(Gfn(0), trial.pages)
}

pub(super) fn comes_with_started(trial: &Trial) -> Result<(), Fault> {
    let (_, map) = mapped(trial)?;
    let used = count(&map, whole(trial), PageState::Used);
    must(used == u64::from(trial.pages), || {
        format!("{used} of its {} pages are USED", trial.pages)
    })
}

pub(super) fn is_taken_from(trial: &Trial) -> Result<(), Fault> {
    let (mut end, map) = mapped(trial)?;
    trial.target(32)?;
    free(&map)?;
    becomes((&mut end, trial), &map, FREED, (PageState::Taken, 32))?;
    let left = count(&map, FREED, PageState::Free);
    must(left == 64, || {
        format!("{left} pages are still FREE and not 64")
    })
}

pub(super) fn keeps_used_pages(trial: &Trial) -> Result<(), Fault> {
    let (mut end, map) = mapped(trial)?;
    // More than is free.
    trial.target(128)?;
    free(&map)?;
    becomes((&mut end, trial), &map, FREED, (PageState::Taken, 96))?;
    let used = count(&map, whole(trial), PageState::Used);
    let kept = u64::from(trial.pages - FREED.count);
    must(used == kept, || {
        format!("of {kept} pages that were USED {used} are")
    })
}

pub(super) fn gets_pages_back(trial: &Trial) -> Result<(), Fault> {
    let (mut end, map) = mapped(trial)?;
    trial.target(32)?;
    free(&map)?;
    becomes((&mut end, trial), &map, FREED, (PageState::Taken, 32))?;
    trial.target(0)?;
    becomes((&mut end, trial), &map, FREED, (PageState::Free, 96))
}

pub(super) fn is_new(trial: &Trial) -> Result<(), Fault> {
    {
        let (_end, map) = mapped(trial)?;
        free(&map)?;
    }
    let (_, map) = mapped(trial)?;
    let used = count(&map, whole(trial), PageState::Used);
    must(used == u64::from(trial.pages), || {
        "the map of another START has pages that the guest has freed in the one before".to_owned()
    })
}
