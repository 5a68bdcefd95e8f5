//! Bringing swapped pages back that nobody has asked for.
//!
//! As with the neighbours of a fault, nothing depends on these pages: one that is busy, sampled or damaged stays where
//! it is until its guest touches it, and none may take memory that a fault needs. They count neither as refills nor
//! as pages that were wanted back, because nobody has wanted them.

use super::ahead::has_room;
use super::give::{lock_run, read_together};
use crate::engine::{Content, EngineKind};
use crate::page::{Home, PageGuard, Urgency};
use crate::units::{GfnRun, PageBuf};
use crate::vm::Vm;

/// Brings back the first page of `run` if it is in the swap file, and those behind it that follow it there. Returns how
/// many came.
pub(crate) fn bring_back(vm: &Vm, run: GfnRun) -> u32 {
    let is_swapped = |home| matches!(home, Home::Swapped(_));
    let pages = lock_run(vm, run.iter(), &|_, entry| is_swapped(entry.home()));
    let Some((first, behind)) = pages.split_first() else {
        return 0;
    };
    let mut read = read_together(vm, first, behind);
    if read.is_empty() {
        let mut page = PageBuf::zeroed();
        // A page that cannot be read stays: its guest is told when it touches the page.
        let is_read = match first.home() {
            Home::Swapped(slot) => vm.swap.read(slot, &mut page).is_ok(),
            _ => false,
        };
        read.extend(is_read.then_some(page));
    }
    let come = pages
        .iter()
        .zip(&read)
        .take_while(|(page, content)| has_room(vm) && place(vm, page, content));
    let come = u32::try_from(come.count()).unwrap_or(u32::MAX);
    vm.stats.unswapped.add(come.into());
    come
}

/// Makes a locked page resident that is in the swap file. Whether memory and the engine allowed it.
fn place(vm: &Vm, page: &PageGuard<'_>, content: &PageBuf) -> bool {
    // As a first touch: it leaves the whole reserve to faults.
    if !vm.charge(Urgency::Touch) {
        return false;
    }
    if vm
        .engine
        .provide(page.gfn(), Content::Bytes(content))
        .is_err()
    {
        vm.budget.give(1);
        return false;
    }
    let old = page.home();
    page.set_home(Home::Resident);
    vm.release(old);
    if vm.engine.kind() == EngineKind::Uffd {
        page.set_open();
    }
    true
}
