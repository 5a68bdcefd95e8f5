//! Pages that come with the one that was asked for: what is wrong with them is no loss, and nobody has touched them.

use std::time::Duration;

use super::scenario::{SWAP, ZIP, evicted, ways};
use super::{Guest, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::units::{Gfn, PageBuf};

const PAGES: u32 = 32;
/// Of sampling.
const PERIOD: Duration = Duration::from_millis(50);

fn content(gfn: u32) -> PageBuf {
    samples::mixed(gfn.into(), 1800)
}

#[test]
fn damaged_page_in_a_row_ends_nothing_until_somebody_asks_for_it() {
    for (kind, means) in ways() {
        evicted(Spec::of(kind, PAGES), means, content, |guest| {
            guest.damage(13);
            let home = guest.home(13);
            (0..13).chain(14..PAGES).for_each(|gfn| guest.read(gfn));
            assert_eq!(guest.home(13), home);
            guest.damage(13);
            guest.read(13);
        });
    }
}

#[test]
fn damaged_page_in_a_block_ends_nothing_until_somebody_asks_for_it() {
    for means in [ZIP, SWAP] {
        evicted(
            Spec::of(EngineKind::Mprotect, PAGES),
            means,
            content,
            |guest| {
                guest.vm.vmas.set_budget(1);
                [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
                guest.read(5);
                assert_eq!(
                    guest.resident(),
                    [4, 5, 6],
                    "the block as far as it is whole"
                );
                [3, 7].into_iter().for_each(|gfn| guest.damage(gfn));
            },
        );
    }
}

#[test]
fn sampled_page_waits_for_its_own_access() {
    for (kind, means) in ways() {
        evicted(Spec::of(kind, PAGES), means, content, |guest| {
            // The whole guest is smaller than a sample.
            guest.worker.handle.set_sample_period(PERIOD);
            guest.worker.wait(PERIOD);
            let is_sampled = |guest: &Guest, gfn| guest.vm.table.entry(Gfn(gfn)).is_sampled();
            for gfn in 0..PAGES {
                assert!(is_sampled(guest, gfn), "{gfn} was not touched: {kind:?}");
                guest.read(gfn);
                assert!(!is_sampled(guest, gfn), "{gfn} was touched: {kind:?}");
            }
        });
    }
}
