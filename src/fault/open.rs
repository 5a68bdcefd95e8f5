//! Opening pages without userfaultfd: the faulting thread has to allow itself the access, and does so for a
//! run by one system call. So with the page that it asked for come those behind it if it was one of a row, and
//! whole blocks where every mapping counts.

use std::collections::VecDeque;

use super::resolve::{FaultError, Given, Outcome, ask, give};
use crate::engine::Reply;
use crate::page::{Home, PageGuard};
use crate::units::Gfn;
use crate::vm::Vm;

/// Has the faulting thread open a page that is in place and was at `home`: with those `behind` it if it is one of a
/// row, and with its neighbours if every mapping counts.
pub(super) fn ask_open<'a>(
    vm: &'a Vm,
    page: PageGuard<'a>,
    home: Home,
    behind: u32,
) -> Result<Outcome, FaultError> {
    let mut pages = VecDeque::from([page]);
    if vm.vmas.is_exceeded(&vm.table) {
        widen(vm, &mut pages)?;
    } else {
        give_behind(vm, &mut pages, home, behind);
    }
    vm.vmas.begin(1);
    let kept = pages.into_iter().map(PageGuard::keep).collect();
    Ok(ask(Reply::Open, kept))
}

/// Gives up to `count` pages behind one that was at `home`, as long as they are at one of its kind.
fn give_behind<'a>(vm: &'a Vm, pages: &mut VecDeque<PageGuard<'a>>, home: Home, count: u32) {
    let Some(first) = pages.front().map(PageGuard::gfn) else {
        return;
    };
    let alike = |gfn: &Gfn| {
        vm.table.contains(*gfn) && {
            let entry = vm.table.entry(*gfn);
            // One that is open needs nothing, and one that is sampled is to be asked for.
            entry.home().kind() == home.kind() && !entry.is_open() && !entry.is_sampled()
        }
    };
    for step in 1..=count {
        let Some(next) = first.checked_add(step).filter(alike) else {
            break;
        };
        // What is wrong with a page is the loss of who asks for it.
        let Ok(Some(page)) = give_neighbour(vm, next) else {
            break;
        };
        pages.push_back(page);
    }
}

/// Pages that are opened together near the limit of VMAs, aligned: 64 KiB.
const BLOCK: u32 = 16;

/// Without userfaultfd each boundary between open and closed pages is a VMA, and a guest that touches
/// single pages all over its RAM would run out of them. Near the limit its faults bring whole blocks.
fn widen<'a>(vm: &'a Vm, pages: &mut VecDeque<PageGuard<'a>>) -> Result<(), FaultError> {
    let Some(gfn) = pages.front().map(PageGuard::gfn) else {
        return Ok(());
    };
    let start = gfn.0 / BLOCK * BLOCK;
    let end = start.saturating_add(BLOCK).min(vm.table.pages());
    for neighbour in (gfn.0 + 1..end).map(Gfn) {
        match give_neighbour(vm, neighbour)? {
            Some(page) => pages.push_back(page),
            None => break,
        }
    }
    for neighbour in (start..gfn.0).rev().map(Gfn) {
        match give_neighbour(vm, neighbour)? {
            Some(page) => pages.push_front(page),
            None => break,
        }
    }
    Ok(())
}

/// A neighbour that nobody asked for: given unless it is busy, shared, ballooned, or memory is short.
fn give_neighbour(vm: &Vm, gfn: Gfn) -> Result<Option<PageGuard<'_>>, FaultError> {
    let Some(page) = vm.try_lock(gfn) else {
        return Ok(None);
    };
    if matches!(page.home(), Home::Shared(_) | Home::Ballooned) {
        return Ok(None);
    }
    match give(vm, page)? {
        Given::Ready(page, _) => {
            // Nothing will tell whether the guest touches it.
            page.set_sampled(false);
            Ok(Some(page))
        }
        Given::Starved => Ok(None),
    }
}
