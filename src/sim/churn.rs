//! Pages that are taken and wanted back again and again cost their guest little, and no page is forgotten for it.

use std::ops::Range;

use super::scenario::{KINDS, alone, each};
use super::{Guest, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::units::PageBuf;

/// Passes of a test. A page is taken in the 1st, 3rd, 7th, 15th, 31st, 63rd and 95th if it is always wanted back.
const PASSES: u32 = 100;
const TAKEN: u64 = 7;
/// Passes in which every page of a guest that does nothing is taken: a page that waits the longest is held once more.
const CALM: u32 = 80;

fn specs(pages: u32) -> [Spec; 3] {
    let [uffd, mprotect] = KINDS.map(|kind| Spec::of(kind, pages));
    let inline = Spec {
        inline: true,
        ..uffd
    };
    [uffd, inline, mprotect]
}

fn zeroed(guest: &Guest) -> u64 {
    guest.vm.stats.zeroed.get()
}

/// Has the guest write zeroes.
fn clear(guest: &mut Guest, pages: Range<u32>) {
    pages.for_each(|gfn| guest.write(gfn, PageBuf::zeroed()));
    // Else nobody knows yet which pages it has brought by itself.
    guest.vm.settle_done();
}

/// Scans a guest that does nothing.
fn calm(guest: &mut Guest) {
    for _ in 0..CALM {
        guest.scan();
    }
}

fn rest(guest: &Guest, at_rest: bool) {
    guest.worker.handle.change(|it| it.at_rest = at_rest);
}

#[test]
fn page_that_is_cleared_again_and_again_is_dropped_ever_more_seldom() {
    const PAGES: u32 = 8;
    each(specs(PAGES), |_, guest| {
        rest(guest, false);
        for _ in 0..PASSES {
            clear(guest, 0..PAGES);
            guest.scan();
        }
        assert_eq!(zeroed(guest), TAKEN * u64::from(PAGES));
        calm(guest);
        assert_eq!(guest.vm.table.count(Home::Zero), u64::from(PAGES));
    });
}

/// Pages that are cleared in every pass; those behind them are cleared once.
const BUSY: u32 = 80;
const ALL: u32 = 100;

/// Has a guest that wants back what is taken clear pages that nobody has looked at; how many were dropped.
fn churn(guest: &mut Guest) -> u64 {
    // Not before the guest is known to want pages back.
    (BUSY / 2..ALL).for_each(|gfn| guest.write(gfn, samples::random(gfn.into())));
    for _ in 0..2 {
        clear(guest, 0..BUSY / 2);
        guest.scan();
    }
    let before = zeroed(guest);
    clear(guest, BUSY..ALL);
    for _ in 0..PASSES {
        clear(guest, BUSY / 2..BUSY);
        guest.scan();
    }
    zeroed(guest) - before
}

#[test]
fn pages_of_a_guest_that_wants_them_back_are_dropped_when_they_stood_still() {
    for spec in specs(ALL) {
        alone(spec, |_, guest| {
            rest(guest, true);
            let dropped = churn(guest);
            // The first half was cleared once more, and stood still since, as what was cleared once.
            let still = u64::from(ALL - BUSY / 2);
            let busy = match spec.kind {
                EngineKind::Uffd => 0,
                // Nobody tells that a page was cleared which holds zeroes.
                EngineKind::Mprotect => TAKEN * u64::from(BUSY / 2),
            };
            assert!(
                (still..=still + busy).contains(&dropped),
                "{dropped} {still} {busy}"
            );
            calm(guest);
            assert_eq!(guest.vm.table.count(Home::Zero), u64::from(ALL));
        });
    }
}

#[test]
fn pages_are_dropped_at_once_when_memory_is_short() {
    each(specs(ALL), |_, guest| {
        rest(guest, false);
        let dropped = churn(guest);
        assert!(dropped >= TAKEN * u64::from(BUSY / 2), "{dropped}");
    });
}
