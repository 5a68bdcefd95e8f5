//! Free pages that the guest offers, of which the host wants some, in two phases.
//!
//! In the first phase nothing happens to a page: the guest may use it, and the host only says whether it wants it. In
//! the second the guest gives the pages that it has not used meanwhile, and uses none until the host has answered. So
//! no page is dropped that the guest might be using. After the answer the guest uses pages without asking: a touch
//! takes a page out of the balloon.
//!
//! The number of the offer, its epoch, says which pages the host wanted. A `GIVE` of another epoch, or of pages that
//! were not wanted, moves none: what it says of is over.

use memvisor_wire::balloon::{
    MAX_RANGES, PageStatus, RangeBatch, StatusRun, ToAgent, ToHost, Wanted,
};

use super::{Variant, give_back, result, target};
use crate::balloon::{BalloonVm, batch};
use crate::units::{Gfn, GfnRun};

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Hints {
    epoch: u32,
    /// What the host wanted in this epoch, ascending; empty once it was given.
    wanted: Vec<GfnRun>,
    /// Where the host looks first for pages to give back.
    from: u32,
}

impl Hints {
    fn offer(&mut self, vm: &dyn BalloonVm, offered: &RangeBatch) -> Wanted {
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        let missing = target(vm).saturating_sub(vm.locked());
        let total = vm.total_pages();
        let useful = |gfn: &Gfn| u64::from(gfn.0) < total && !vm.holds(*gfn);
        let pages = offered.runs().iter().flat_map(|run| run.iter());
        let most = usize::try_from(missing).unwrap_or(usize::MAX);
        self.wanted = crate::units::runs_of(pages.filter(useful).take(most));
        self.wanted.truncate(MAX_RANGES);
        Wanted {
            epoch: self.epoch,
            missing,
            ranges: self.wanted.clone(),
        }
    }

    fn give(&mut self, vm: &dyn BalloonVm, epoch: u32, given: &RangeBatch) -> Vec<StatusRun> {
        let wanted = std::mem::take(&mut self.wanted);
        let is_wanted = |run: &GfnRun| {
            let at = wanted.partition_point(|wanted| wanted.end() <= u64::from(run.start.0));
            let within = |wanted: &GfnRun| wanted.start <= run.start && run.end() <= wanted.end();
            wanted.get(at).is_some_and(within)
        };
        if epoch == self.epoch && given.runs().iter().all(is_wanted) {
            return batch::lock(vm, given);
        }
        let refused = given.runs().iter().map(|run| StatusRun {
            run: *run,
            status: PageStatus::NotNeeded,
        });
        refused.collect()
    }
}

impl Variant for Hints {
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent> {
        Some(match message {
            ToHost::Offer(ranges) => ToAgent::Wanted(self.offer(vm, ranges)),
            ToHost::Give { epoch, ranges } => {
                let runs = self.give(vm, *epoch, ranges);
                ToAgent::Given(result(vm, runs))
            }
            _ => return None,
        })
    }

    /// The guest has the pages already, so giving back only says that the host does not count on them any more.
    fn act(&mut self, vm: &dyn BalloonVm) -> u64 {
        super::pages_ok(&give_back(vm, &mut self.from))
    }

    fn may_touch(&self) -> bool {
        true
    }

    fn is_counted_by_agent(&self) -> bool {
        false
    }
}
