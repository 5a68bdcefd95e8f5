//! Large pages: making them, tearing their mapping, breaking them.
//!
//! A large page is made of pages that are there already. A kernel that backs memory by large pages at its first touch
//! gives 2 MiB to a guest that wants 4 KiB; here RAM is charged page by page. So the pages of a region come as they
//! always do, and once all of them are resident, the guest's kernel is asked to put them into one large page.
//!
//! *No byte is lost* because all pages of the region are locked while it changes. The kernel fills holes of what becomes
//! a large page with zeroes, and nobody would fault on such a page, so a page that is in a store would come back as
//! zeroes. But a page that is locked and resident is no hole, and cannot become one.
//!
//! *No memory is lost* because a region is copied into small pages when it is broken ([`Engine::dissolve`]). From then on
//! its pages are like all others, and each hole that is punched frees a page.
//!
//! [`Engine::dissolve`]: crate::engine::Engine::dissolve

use super::access::{freeze, room, thaw, unless_refused};
use crate::engine::{EngineError, EngineKind};
use crate::page::{Entry, Home, PageGuard, Urgency};
use crate::units::{Gfn, GfnRun};
use crate::vm::{Region, Vm};

/// What became of an attempt to make a large page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Enlarged {
    /// It is one.
    Yes,
    /// Its pages are not ready for it, or memory is short.
    NotNow,
    /// The guest's kernel refused.
    Refused,
}

/// Makes a region a large page, or maps one that is torn as a whole again. `takes_frozen`: frozen pages are opened for
/// it; otherwise they are in the way.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub(crate) fn enlarge(
    vm: &Vm,
    region: Region,
    takes_frozen: bool,
) -> Result<Enlarged, EngineError> {
    let is_ready = |entry: Entry| {
        let accessible = takes_frozen || entry.is_open();
        entry.home() == Home::Resident && !entry.is_sampled() && accessible
    };
    let run = vm.large.run(region);
    // Two for this region, whatever its neighbours are.
    if room(vm) < 2 {
        return Ok(Enlarged::NotNow);
    }
    let Some(pages) = lock(vm, run, is_ready) else {
        return Ok(Enlarged::NotNow);
    };
    // While the kernel copies the pages, it has both.
    let is_new = !vm.large.is_large(region);
    let extra = if is_new { u64::from(run.count) } else { 0 };
    if is_new && !vm.budget.take(extra, Urgency::Touch) {
        return Ok(Enlarged::NotNow);
    }
    let enlarged = map_large(vm, run, &pages);
    vm.budget.give(extra);
    if !enlarged? {
        return Ok(Enlarged::Refused);
    }
    vm.large.set_large(region);
    note_vmas(vm);
    if is_new {
        vm.stats.enlarged.one();
    }
    Ok(Enlarged::Yes)
}

fn map_large(vm: &Vm, run: GfnRun, pages: &[PageGuard<'_>]) -> Result<bool, EngineError> {
    if vm.engine.kind() == EngineKind::Mprotect {
        // The kernel maps a large page only where the guest may do the same with all of it.
        let is_closed = |page: &PageGuard<'_>| !page.entry().is_open();
        if pages.iter().any(is_closed) && !thaw(vm, pages)? {
            return Ok(false);
        }
    }
    let _change = vm.vmas.change(1);
    let enlarged = unless_refused(vm.engine.enlarge(run))?;
    // After a refusal too: with userfaultfd an open page may lose its mapping at any time.
    pages.iter().for_each(PageGuard::set_open);
    Ok(enlarged)
}

/// Has the guest's kernel map the pages of a large region one by one, so that one of them can be frozen without its
/// neighbours. `false`: one of the pages is busy, or the kernel refused.
///
/// # Errors
/// As [`enlarge`].
pub(crate) fn tear(vm: &Vm, region: Region) -> Result<bool, EngineError> {
    if vm.large.is_torn(region) {
        return Ok(true);
    }
    let run = vm.large.run(region);
    // In engine mprotect the kernel itself does that when it protects one of the pages.
    if vm.engine.kind() == EngineKind::Uffd {
        let Some(pages) = lock(vm, run, |_| true) else {
            return Ok(false);
        };
        let _change = vm.vmas.change(1);
        if !unless_refused(vm.engine.thaw(&[run]))? {
            return Ok(false);
        }
        pages.iter().for_each(PageGuard::set_open);
    }
    vm.large.set_torn(region);
    Ok(true)
}

/// Breaks a large region: its pages are small ones from now on, to be shared and taken like all others. `false`: one of
/// the pages is busy, or the guest's kernel refused.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone, or its memory is lost because the machine has none left.
pub(crate) fn break_up(vm: &Vm, region: Region) -> Result<bool, EngineError> {
    let run = vm.large.run(region);
    let Some(pages) = lock(vm, run, |_| true) else {
        return Ok(false);
    };
    if !freeze(vm, pages.iter())? {
        return Ok(false);
    }
    vm.engine.dissolve(run)?;
    let change = vm.vmas.change(1);
    let is_open = unless_refused(vm.engine.thaw(&[run]))?;
    if is_open {
        for page in &pages {
            // An open page that is marked would be touched unseen, and count as idle.
            page.set_sampled(false);
            page.set_open();
        }
    } else if vm.engine.kind() == EngineKind::Uffd {
        // Writes to it are not tracked yet, so it must not be scanned as if they were. It is tried again.
        vm.large.set_torn(region);
        return Ok(false);
    }
    vm.large.set_small(region);
    drop(change);
    note_vmas(vm);
    vm.stats.broken.one();
    // The hashes that the scanner has noted are hints: nobody knows which pages were written since.
    run.iter().for_each(|gfn| vm.table.note_written(gfn));
    vm.settled.note(None);
    Ok(true)
}

/// Breaks the large regions in which pages of `runs` are, as far as that can be done now.
///
/// # Errors
/// As [`break_up`].
pub(crate) fn break_under(vm: &Vm, runs: &[GfnRun]) -> Result<(), EngineError> {
    if vm.large.count() == 0 {
        return Ok(());
    }
    for run in runs {
        for region in vm.large.large_in(*run) {
            break_up(vm, region)?;
        }
    }
    Ok(())
}

/// Locks all pages of a run, if they qualify.
fn lock(vm: &Vm, run: GfnRun, qualifies: impl Fn(Entry) -> bool) -> Option<Vec<PageGuard<'_>>> {
    if let Some(claims) = vm.table.claims() {
        // What the guest has brought or opened itself is known once the page is locked.
        let done = run.iter().filter(|gfn| claims.is_done(*gfn));
        done.for_each(|gfn| drop(vm.try_lock(gfn)));
    }
    // Asked first, because a look is cheaper than a lock, and again under it.
    if !run.iter().all(|gfn| qualifies(vm.table.entry(gfn))) {
        return None;
    }
    let lock = |gfn: Gfn| vm.try_lock(gfn).filter(|page| qualifies(page.entry()));
    run.iter().map(lock).collect()
}

fn note_vmas(vm: &Vm) {
    // Without userfaultfd a large page is mapped like any other.
    if vm.engine.kind() == EngineKind::Uffd {
        vm.vmas.set_large(vm.large.vmas());
    }
}
