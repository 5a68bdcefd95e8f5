//! The law that docs/balloon-lab.md shows as an example.

use super::super::{Law, Memory, Pages, Seen, Step};

/// See the document.
#[derive(Debug)]
pub(super) struct Twentieth;

impl Law for Twentieth {
    fn name(&self) -> &'static str {
        "twentieth"
    }

    fn about(&self) -> &'static str {
        "takes a twentieth of what is free, and gives all back to a guest that waits"
    }

    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step {
        let vm = seen.vm;
        if vm.stall_us_per_s + vm.guest_stall_us_per_s > 10_000 {
            return Step::at_once(seen.least);
        }
        let free = vm.balloon_free.unwrap_or_default();
        let before = seen.before(memory);
        let more = free.saturating_sub(before).0 / 20;
        Step {
            target: Pages(before.0 + more),
            // In pages a second; the next plan comes a quarter of a second later.
            pace: more,
        }
    }
}
