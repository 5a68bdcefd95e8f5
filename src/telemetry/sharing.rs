//! Why pages are not shared, and what sharing would save.

use serde::{Deserialize, Serialize};

use super::HostStatus;
use crate::units::Pages;

/// Where the pages of a VM stand with sharing. Each page is counted once, so the numbers add up to the configured size
/// at any time; while pages move, their homes here may be of another moment than in [`Homes`](super::Homes).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SharingStatus {
    /// Mapped onto a frame of the share pool.
    pub shared_pages: Pages,
    /// Zeroes, which cost nothing and need no frame.
    pub zero_pages: Pages,
    /// Never written.
    pub untouched_pages: Pages,
    /// Given up by the guest.
    pub ballooned_pages: Pages,
    /// In the compression cache, where nothing is shared.
    pub compressed_pages: Pages,
    /// In the swap file.
    pub swapped_pages: Pages,
    /// Resident, and not scanned since it became so or was last written.
    pub unscanned_pages: Pages,
    /// Resident, and it changed between two scans or after it was shared, or pages beside it did: left alone for a while.
    pub volatile_pages: Pages,
    /// Resident, and no page is known to be equal.
    pub unique_pages: Pages,
    /// Resident, and pages are known to be equal, but only of VMs that it may not share with. On hosts with many pages
    /// this part of the unique ones is estimated.
    pub other_salt_pages: Pages,
    /// Resident, and equal to others, but its guest has no mapping left for it.
    pub vma_budget_pages: Pages,
    /// Resident, and equal to others, but there was no memory for a frame.
    pub no_memory_pages: Pages,
    /// Resident, in a large page, of which nothing is shared.
    pub large_pages: Pages,
    /// Resident, and being moved just now.
    pub moving_pages: Pages,
    /// Resident, and sharing is off: for this VM, for all of them, or until it has moved to another sharing domain.
    pub off_pages: Pages,
}

impl SharingStatus {
    /// All pages.
    #[must_use]
    pub fn total(&self) -> Pages {
        Pages(self.each().iter().map(|(_, pages)| pages.0).sum())
    }

    /// Each number with its name: what saves memory first, then why the others do not, then what is not in RAM.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, Pages); 15] {
        [
            ("shared", self.shared_pages),
            ("zero", self.zero_pages),
            ("unscanned", self.unscanned_pages),
            ("volatile", self.volatile_pages),
            ("unique", self.unique_pages),
            ("other salt", self.other_salt_pages),
            ("VMA budget", self.vma_budget_pages),
            ("no memory", self.no_memory_pages),
            ("large page", self.large_pages),
            ("moving", self.moving_pages),
            ("off", self.off_pages),
            ("compressed", self.compressed_pages),
            ("swapped", self.swapped_pages),
            ("ballooned", self.ballooned_pages),
            ("untouched", self.untouched_pages),
        ]
    }

    /// The same for anybody who may look. Which pages of a VM equal those of VMs that it may not share with is for
    /// the operator: a guest that learned it would know what these VMs have, which is what salts are for.
    const fn without_other_salts(mut self) -> Self {
        self.unique_pages.0 += self.other_salt_pages.0;
        self.other_salt_pages = Pages(0);
        self
    }

    /// Adds another VM's pages.
    pub(super) fn add(&mut self, other: &Self) {
        self.shared_pages.0 += other.shared_pages.0;
        self.zero_pages.0 += other.zero_pages.0;
        self.untouched_pages.0 += other.untouched_pages.0;
        self.ballooned_pages.0 += other.ballooned_pages.0;
        self.compressed_pages.0 += other.compressed_pages.0;
        self.swapped_pages.0 += other.swapped_pages.0;
        self.unscanned_pages.0 += other.unscanned_pages.0;
        self.volatile_pages.0 += other.volatile_pages.0;
        self.unique_pages.0 += other.unique_pages.0;
        self.other_salt_pages.0 += other.other_salt_pages.0;
        self.vma_budget_pages.0 += other.vma_budget_pages.0;
        self.no_memory_pages.0 += other.no_memory_pages.0;
        self.large_pages.0 += other.large_pages.0;
        self.moving_pages.0 += other.moving_pages.0;
        self.off_pages.0 += other.off_pages.0;
    }
}

/// How pages of one VM came to be shared so far, and what the sharing scanner did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ScanStatus {
    /// Pages scanned.
    pub pages_scanned: u64,
    /// Pages mapped onto a shared frame.
    pub merged: u64,
    /// Pages mapped onto a shared frame because the guest asked for that, before it had them.
    pub attached: u64,
    /// Pages found to be all zero and given back.
    pub zero_found: u64,
    /// Pages left alone because they had changed since the last scan.
    pub volatile: u64,
    /// Passes over the whole VM that have ended.
    pub passes: u64,
    /// Whether the latest pass found nothing new, nothing is left to be scanned or merged, and no page has
    /// become resident since.
    pub settled: bool,
}

/// Large pages of one VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LargeStatus {
    /// Its pages that are in large pages.
    pub pages: Pages,
    /// Large pages made so far.
    pub made: u64,
    /// Large pages broken so far.
    pub broken: u64,
}

impl HostStatus {
    /// The same for anybody who may look: it does not say which pages only VMs of another salt have, and counts them as
    /// unique.
    #[must_use]
    pub fn for_anybody(mut self) -> Self {
        let vms = self.vms.iter_mut().map(|vm| &mut vm.sharing);
        for sharing in vms.chain([&mut self.totals.sharing]) {
            *sharing = sharing.without_other_salts();
        }
        self
    }
}

/// A number of pages that is estimated from a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EstimatedPages {
    /// The estimate.
    pub pages: Pages,
    /// In 95 of 100 cases it is off by no more; 0: all contents were counted.
    pub error_pages: Pages,
}

/// What sharing would save if all VMs shared as their salts allow, by the pages that are in memory now.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShareEstimate {
    /// Pages that were looked at: those in RAM of their own, and shared ones.
    pub looked_at_pages: Pages,
    /// What sharing saves now.
    pub saved_pages: Pages,
    /// What it would save, zeroes not counted.
    pub would_save: EstimatedPages,
    /// What it would save if all VMs shared with each other, whatever their salts.
    pub without_salts: EstimatedPages,
    /// Pages with zeroes in RAM of their own, all of which it would save besides.
    pub zero_pages: Pages,
    /// Contents that were counted.
    pub contents: u64,
    /// Which part of all contents that is.
    pub sampled_percent: f64,
    /// How long it took.
    pub took_ms: u64,
    /// The VMs, in order of their ids.
    pub vms: Vec<VmShareEstimate>,
    /// VMs that did not answer in time, and are not in any number.
    pub missing: Vec<String>,
}

/// The part of one VM in a [`ShareEstimate`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmShareEstimate {
    /// Its name.
    pub name: String,
    /// Pages that were looked at.
    pub looked_at_pages: Pages,
    /// Its part of what sharing saves now.
    pub saved_pages: Pages,
    /// Its part of what sharing would save: of a content that n pages have, each saves all but 1/n of a page.
    pub would_save: EstimatedPages,
    /// Its pages with zeroes in RAM of their own.
    pub zero_pages: Pages,
}
