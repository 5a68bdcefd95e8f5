//! Single pages, as two kinds of balloon drivers name them.

use memvisor_wire::balloon::{
    Capabilities, Listed, ListedPage, PageStatus, RangeBatch, StatusRun, ToAgent, ToHost,
};

use super::{Variant, batch_of, target};
use crate::balloon::{BalloonVm, batch};
use crate::units::Gfn;

/// Lists in which each page gets a status, as VMware's driver has them.
#[derive(Debug)]
pub(super) struct PageLists;

impl Variant for PageLists {
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent> {
        Some(match message {
            ToHost::LockPages(pages) => {
                ToAgent::PagesLocked(listed(vm, pages, batch::lock, PageStatus::AlreadyLocked))
            }
            ToHost::UnlockPages(pages) => {
                ToAgent::PagesUnlocked(listed(vm, pages, batch::unlock, PageStatus::NotLocked))
            }
            _ => return None,
        })
    }
}

/// Does to the pages of a list what `act` does to a batch. `again` is the status of a page that the list names again.
fn listed(
    vm: &dyn BalloonVm,
    pages: &[ListedPage],
    act: impl Fn(&dyn BalloonVm, &RangeBatch) -> Vec<StatusRun>,
    again: PageStatus,
) -> Listed {
    let gfn = |listed: &ListedPage| u32::try_from(listed.page).ok().map(Gfn);
    let batch = batch_of(pages.iter().filter_map(gfn).collect());
    let answers = batch.map_or(Vec::new(), |batch| act(vm, &batch));
    // Ascending, as the batch was: each page is found by bisection.
    let status_of = |gfn: Gfn| {
        let at = answers.partition_point(|answer| answer.run.end() <= u64::from(gfn.0));
        answers
            .get(at)
            .map_or(PageStatus::Invalid, |answer| answer.status)
    };
    let mut named = std::collections::HashSet::new();
    let answer = pages.iter().map(|page| {
        let status = match gfn(page) {
            None => PageStatus::Invalid,
            Some(gfn) if named.insert(gfn) => status_of(gfn),
            Some(gfn) if status_of(gfn) == PageStatus::Ok => again,
            Some(gfn) => status_of(gfn),
        };
        page.answered(status)
    });
    Listed {
        pages: answer.collect(),
        target: target(vm),
    }
}

/// Arrays of page numbers that are answered without a status, as virtio-balloon has them. What the host does not take
/// stays the guest's without its knowing: it is pinned there and costs the host what it cost before.
#[derive(Debug)]
pub(super) struct PfnArrays {
    must_tell: bool,
}

impl PfnArrays {
    pub(super) const fn new(used: Capabilities) -> Self {
        Self {
            must_tell: used.contains(Capabilities::MUST_TELL_HOST),
        }
    }
}

impl Variant for PfnArrays {
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent> {
        let named = |pfns: &[Gfn]| batch_of(pfns.to_vec());
        // The statuses have nowhere to go.
        match message {
            ToHost::Inflate(pfns) => drop(named(pfns).map(|batch| batch::lock(vm, &batch))),
            ToHost::Deflate(pfns) => drop(named(pfns).map(|batch| batch::unlock(vm, &batch))),
            _ => return None,
        }
        Some(ToAgent::Used)
    }

    fn may_touch(&self) -> bool {
        !self.must_tell
    }
}
