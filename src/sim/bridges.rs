//! Runs that are frozen together are joined over pages that are not mapped.

use super::scenario::{ZIP, alone, small};
use super::{Guest, Spec};
use crate::engine::EngineKind;
use crate::page::Home;
use crate::remap::{BRIDGE, bridged, freeze};
use crate::units::{Gfn, runs_of};

/// The page after the longest gap that is still bridged, counted from page 0.
const NEAR: u32 = 1 + BRIDGE as u32;
/// The page after a gap that is one page too long, counted from [`NEAR`].
const FAR: u32 = NEAR + 2 + BRIDGE as u32;

/// The runs by which these pages are frozen: the first page and the length of each.
fn runs(guest: &Guest, pages: &[u32]) -> Vec<(u32, u32)> {
    let runs = runs_of(pages.iter().copied().map(Gfn));
    let runs = bridged(&guest.vm, &runs);
    runs.iter().map(|run| (run.start.0, run.count)).collect()
}

#[test]
fn runs_are_joined_over_what_is_not_mapped_and_over_nothing_else() {
    let spec = Spec {
        ahead: 0,
        ..Spec::of(EngineKind::Uffd, FAR + 1)
    };
    alone(spec, |_, guest| {
        assert_eq!(runs(guest, &[0, NEAR, FAR]), [(0, NEAR + 1), (FAR, 1)]);
        guest.write(4, small(0));
        let apart = vec![(0, 1), (8, 1)];
        assert_eq!(runs(guest, &[0, 8]), apart, "the guest has page 4");
        let page = guest.vm.try_lock(Gfn(4)).expect("nobody has it");
        assert!(freeze(&guest.vm, [&page].into_iter()).expect("the session lives"));
        drop(page);
        assert_eq!(runs(guest, &[0, 8]), [(0, 9)], "frozen");
        guest.read(4);
        assert_eq!(runs(guest, &[0, 8]), apart, "opened");
        guest.write(12, small(0));
        let merged = guest.scan() + guest.scan();
        assert!(merged > 0 && matches!(guest.home(4), Home::Shared(_)));
        assert_eq!(runs(guest, &[0, 8]), apart, "a frame is mapped");
        guest.write(4, small(4));
        assert_eq!(guest.evict_by(1, ZIP), 1);
        assert!(matches!(guest.home(4), Home::Compressed(_)));
        assert_eq!(runs(guest, &[0, 8]), [(0, 9)], "compressed");
    });
}
